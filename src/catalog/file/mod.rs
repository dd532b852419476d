//! A catalog as a text file, one JSON record a line: what `plan --export-catalog` writes and `plan --catalog` reads.
//!
//! What a record is, is told by its keys:
//!
//! - `host`, `dataset`, `name`, `guid`, `createtxg`, `creation` (and `flags`, `userrefs`, `clones`, `used`): a snapshot;
//! - the same with a name that begins with `#`: a bookmark;
//! - `host`, `dataset`, `name`, `creation` and the flag `#NotWritten`: a slot that made no snapshot;
//! - `host`, `dataset` (and `kind`, `guid`, `written`, `encrypted`, `resume_token`, `origin`, `excluded`, `send_flags`):
//!   a dataset, which may be empty;
//! - `host`, `observed`: when the host was listed; `null` for a host that was not.
//!
//! Records may come in any order. A dataset needs no record of its own if it has others, and a host of which the file
//! says nothing else counts as listed.

mod line;
mod read;
mod write;

use std::{fmt, io};

use thiserror::Error;

pub use read::read;
pub use write::write;

/// The longest line, in bytes.
pub const MAX_LINE: usize = 1 << 20;
/// How many broken lines are told; what is beyond is counted.
const SHOWN: usize = 20;

/// Why a catalog file is not read: nothing of it is used then.
#[derive(Debug, Error)]
pub enum FileError {
    /// The file cannot be read, or not to its end.
    #[error("cannot read the catalog file {file}")]
    Unreadable {
        /// The file as it was named.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// Some lines are wrong.
    #[error("{0}")]
    Broken(Broken),
}

/// What is wrong with which lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broken {
    /// The file as it was named.
    pub file: String,
    /// The first broken lines, by number from 1, each with its reason.
    pub lines: Vec<(u32, String)>,
    /// How many more there are.
    pub more: usize,
}

impl Broken {
    fn add(&mut self, line: u32, reason: impl Into<String>) {
        if self.lines.len() < SHOWN {
            self.lines.push((line, reason.into()));
        } else {
            self.more += 1;
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the catalog file {} is broken, nothing is decided:", self.file)?;
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
