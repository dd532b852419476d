//! A catalog as a text file with one JSON record per line: `plan --export-catalog` writes it, `plan --catalog` reads
//! it.
//!
//! The keys of a record determine what it describes:
//!
//! - `host`, `dataset`, `name`, `guid`, `createtxg`, `creation` (and `flags`, `userrefs`, `clones`, `used`): a
//!   snapshot;
//! - the same keys with a `name` that begins with `#`: a bookmark;
//! - `host`, `dataset`, `name`, `creation` and the flag `#NotWritten`: a slot in which no snapshot was taken;
//! - `host`, `dataset` (and `kind`, `guid`, `written`, `encrypted`, `resume_token`, `origin`, `excluded`, `append_only`,
//!   `send_flags`, `transfer_holds`, `destroy_after`, `trashed`): a dataset, which may have no snapshots;
//! - `host`, `observed`: when the host was listed; `null` for a host that was not listed.
//!
//! Records may come in any order. A dataset needs no record of its own if it has a record of a snapshot, a bookmark or
//! a slot. A host without an `observed` record counts as listed.

mod line;
mod read;
mod write;

use std::{fmt, io};

use thiserror::Error;

pub use read::read;
pub use write::write;

/// The longest line, in bytes.
pub const MAX_LINE: usize = 1 << 20;
/// How many invalid lines an error names. Further ones are counted.
const MOST_NAMED: usize = 20;

/// Why a catalog file cannot be read. None of its content is used then.
#[derive(Debug, Error)]
pub enum FileError {
    /// The file cannot be opened, or cannot be read to its end.
    #[error("cannot read the catalog file {file}")]
    Unreadable {
        /// The name of the file, as the user gave it.
        file: String,
        /// The system's error.
        source: io::Error,
    },
    /// Some lines are invalid.
    #[error("{0}")]
    Invalid(InvalidLines),
}

/// The invalid lines of a catalog file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InvalidLines {
    /// The name of the file, as the user gave it.
    pub file: String,
    /// The number of each of the first invalid lines, counted from 1, and the reason.
    pub lines: Vec<(u32, String)>,
    /// The number of further invalid lines.
    pub more: usize,
}

impl InvalidLines {
    fn add(&mut self, line: u32, reason: impl Into<String>) {
        if self.lines.len() < MOST_NAMED {
            self.lines.push((line, reason.into()));
        } else {
            self.more += 1;
        }
    }
}

impl fmt::Display for InvalidLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use the catalog file {}: these lines are invalid:", self.file)?;
        for (line, reason) in &self.lines {
            write!(f, "\n{}:{line}: {reason}", self.file)?;
        }
        match self.more {
            0 => Ok(()),
            1 => f.write_str("\nand 1 more line"),
            more => write!(f, "\nand {more} more lines"),
        }
    }
}

#[cfg(test)]
mod tests;
