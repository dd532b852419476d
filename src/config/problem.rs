//! The problems of a configuration file, with their positions.

use std::fmt;

/// How many problems an error prints. Further ones are counted.
const MOST_PRINTED: usize = 20;

/// One problem of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The name of the file, as the user gave it.
    pub file: String,
    /// Line and column, both from 1, the column in characters; `None` if the file could not be read.
    pub at: Option<(usize, usize)>,
    /// The path of the value, as in `datasets[0].backup.prefix`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and how to fix it.
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

/// All problems of one configuration file, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
    /// The number of problems that are not in `problems`.
    more: usize,
}

impl ConfigError {
    /// An error with these problems, and `more` that were too many to keep.
    pub(super) fn new(mut problems: Vec<Problem>, more: usize) -> Self {
        problems.sort_by_key(|problem| problem.at);
        Self { problems, more }
    }

    /// An error with a single problem, which has no position in the file.
    pub(super) fn of_file(file: &str, message: String) -> Self {
        Self::new(vec![Problem { file: file.to_owned(), at: None, key: String::new(), message }], 0)
    }

    /// The problems, in the order of the file. There is at least one, and at most a thousand.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    /// Prints the first twenty problems, one per line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(MOST_PRINTED).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        match self.problems.len().saturating_sub(MOST_PRINTED) + self.more {
            0 => Ok(()),
            1 => f.write_str("\nand 1 more problem"),
            more => write!(f, "\nand {more} more problems"),
        }
    }
}

impl std::error::Error for ConfigError {}
