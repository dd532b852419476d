//! What is wrong with a configuration file, and where.

use std::fmt;

/// How many problems one error prints; what is beyond is counted.
const SHOWN: usize = 20;

/// One thing that is wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named.
    pub file: String,
    /// Line and column, both from 1, the column in characters; `None` when the file could not be read at all.
    pub at: Option<(usize, usize)>,
    /// The way to the value, as in `datasets[0].backup.prefix`; empty for the file as a whole.
    pub key: String,
    /// What was found and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with one configuration file, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
    uncounted: usize,
}

impl ConfigError {
    /// `beyond` problems were found that are not among `problems`, for there were too many to keep.
    pub(super) fn new(mut problems: Vec<Problem>, beyond: usize) -> Self {
        problems.sort_by_key(|problem| problem.at);
        Self { problems, uncounted: beyond }
    }

    /// The one problem of a file that could not be read.
    pub(super) fn of_file(file: &str, message: String) -> Self {
        Self::new(vec![Problem { file: file.to_owned(), at: None, key: String::new(), message }], 0)
    }

    /// The problems in the file's order. There is at least one; beyond a thousand they are only counted.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    /// One problem per line, the first twenty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        match self.problems.len().saturating_sub(SHOWN) + self.uncounted {
            0 => Ok(()),
            1 => f.write_str("\nand 1 more problem"),
            more => write!(f, "\nand {more} more problems"),
        }
    }
}

impl std::error::Error for ConfigError {}
