//! What can go wrong with a `zfs` command.

use std::fmt;

use thiserror::Error;

/// What the failure means for whoever asked. Taken from the command's words, hence a help for messages and
/// retries, never a proof: the state of the pool is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The dataset, snapshot or pool does not exist.
    NotFound,
    /// It exists already.
    Exists,
    /// Something else uses it; it may work later.
    Busy,
    /// No space is left, or a quota is reached.
    NoSpace,
    /// The destination was written to since its newest snapshot.
    Modified,
    /// The user may not do that.
    Permission,
    /// A resume token that no longer fits.
    StaleToken,
    /// It has clones.
    HasClones,
    /// The stream ended early or is damaged.
    Stream,
    /// Somebody killed it.
    Killed,
    /// The pool is suspended or a disk failed.
    Pool,
    /// `zfs` cannot be run at all.
    Missing,
    /// `zfs` is older than what zsync works with.
    TooOld,
    /// It printed what zsync does not understand.
    Output,
    /// Something else.
    Other,
}

impl ErrorKind {
    /// Whether trying again later may help, without anybody doing anything.
    #[must_use]
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Busy | Self::Stream | Self::Killed)
    }
}

/// A failed `zfs` command: what was attempted, how it ended, what it said.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ZfsError {
    /// What it means.
    pub kind: ErrorKind,
    /// The command as it was run.
    pub command: String,
    /// "exit status 1", "killed by signal 9", "did not start", ...
    pub status: String,
    /// Its standard error output, or what was wrong with its output.
    pub stderr: String,
}

impl fmt::Display for ZfsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, command, status, stderr } = self;
        let said = stderr.trim().replace('\n', "; ");
        match kind {
            ErrorKind::Missing => write!(
                f,
                "cannot run {:?}: {said}; install OpenZFS' command line tools, or name the program with --zfs",
                command.split(' ').next().unwrap_or(command)
            ),
            ErrorKind::TooOld => {
                let program = command.split(' ').next().unwrap_or(command);
                write!(f, "cannot work with {program:?}: {said}; update it, or name another one with --zfs")
            }
            ErrorKind::Output => write!(f, "cannot understand the output of \"{command}\": {said}"),
            _ if said.is_empty() => write!(f, "\"{command}\" failed: {status}"),
            _ => write!(f, "\"{command}\" failed ({status}): {said}"),
        }
    }
}
