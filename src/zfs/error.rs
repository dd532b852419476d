//! Defines the errors of the `zfs` command.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

/// What a failure means for the caller. It is derived from the words of the command, so it helps with messages and
/// retries, but proves nothing: before acting on it, callers list the pool again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The dataset, snapshot or pool does not exist.
    NotFound,
    /// The dataset, snapshot or bookmark exists already.
    Exists,
    /// Something else is using the dataset or snapshot. Retrying may help.
    Busy,
    /// No space is left, or a quota is reached.
    NoSpace,
    /// The destination was written to since its newest snapshot.
    Modified,
    /// This user has no permission.
    Permission,
    /// The resume token is invalid, or its snapshot no longer exists.
    StaleToken,
    /// The snapshot has clones.
    HasClones,
    /// The stream ended early or is damaged.
    Stream,
    /// The command was killed.
    Killed,
    /// The pool is suspended or a disk failed.
    Pool,
    /// The pool was imported read-only.
    ReadOnly,
    /// The pool lacks a feature that the stream needs.
    Feature,
    /// The copy was received with `-L`, but the stream was sent without it.
    LargeBlocks,
    /// ZFS, or the pool, does not have a property, or not with this value.
    Property,
    /// The key of an encrypted dataset is not loaded.
    KeyNotLoaded,
    /// The copy was not received raw, but the stream is raw.
    NotRaw,
    /// `zfs` cannot be run.
    Missing,
    /// The host of the command was not reached through ssh, or the connection was lost.
    Unreachable,
    /// `zfs` is older than zsync supports.
    TooOld,
    /// The output cannot be parsed.
    Output,
    /// Something else.
    Other,
}

impl ErrorKind {
    /// Whether the `zfs` program itself cannot be used, so that every other command fails as well.
    #[must_use]
    pub fn is_about_program(self) -> bool {
        matches!(self, Self::Missing | Self::TooOld | Self::Permission | Self::Unreachable)
    }

    /// Whether nothing else can be changed in the pool either.
    #[must_use]
    pub fn is_about_pool(self) -> bool {
        matches!(self, Self::Pool | Self::ReadOnly | Self::Killed | Self::NotFound)
    }

    /// Whether retrying later may help without intervention.
    #[must_use]
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Busy | Self::Stream | Self::Killed | Self::Unreachable)
    }
}

/// A failed `zfs` command: the command line, how it ended, and its messages.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ZfsError {
    /// What the failure means.
    pub kind: ErrorKind,
    /// The command line.
    pub command: String,
    /// "exit status 1", "signal 9 (SIGKILL)", "did not run", ...
    pub status: String,
    /// Its standard error, or what is wrong with its output.
    pub stderr: String,
}

impl ZfsError {
    /// The error of a copy whose two commands failed: when one fails, the other one fails as well. If the receiver only
    /// reports that its stream ended, the error of the sender is the cause, unless the sender only found that nobody
    /// reads what it sends.
    #[must_use]
    pub(super) fn of_copy(sent: Self, received: Self) -> Self {
        if received.kind == ErrorKind::Stream && !sent.is_broken_pipe() { sent } else { received }
    }

    /// Whether a sender ended because nobody reads what it sends.
    fn is_broken_pipe(&self) -> bool {
        let words = self.stderr.to_lowercase();
        self.status.contains("SIGPIPE") || words.contains("broken pipe") || words.contains("signal received")
    }

    /// The snapshots that `zfs snapshot` names as the reason why it took none, each with ZFS' message about it.
    #[must_use]
    pub fn refused_snapshots(&self) -> BTreeMap<String, String> {
        let refused = |line: &str| {
            let rest = line.trim().strip_prefix("cannot create snapshot '")?;
            let (snapshot, words) = rest.split_once("': ")?;
            Some((snapshot.to_owned(), words.to_owned()))
        };
        self.stderr.lines().filter_map(refused).collect()
    }
}

impl fmt::Display for ZfsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, command, status, stderr } = self;
        let words = stderr.trim().replace('\n', "; ");
        let of_ssh = command.strip_prefix("ssh ").and_then(|rest| rest.split_once(' '));
        match (kind, of_ssh) {
            (ErrorKind::Unreachable, Some((host, _))) => write!(
                f,
                "cannot reach {host}: {words}; hint: this command has to succeed: ssh -o BatchMode=yes {host} true"
            ),
            (ErrorKind::Missing, Some(_)) if status == "did not run" => {
                write!(f, "cannot run \"ssh\": {words}; hint: install OpenSSH's client")
            }
            (ErrorKind::Missing, Some((host, command))) => write!(
                f,
                "cannot run {:?} on {host}: {words}; hint: install the command line tools of OpenZFS there, or name the \
                 program with --far-zfs",
                command.split(' ').next().unwrap_or(command)
            ),
            (ErrorKind::Missing, _) => write!(
                f,
                "cannot run {:?}: {words}; hint: install the command line tools of OpenZFS, or name the program with --zfs",
                command.split(' ').next().unwrap_or(command)
            ),
            (ErrorKind::TooOld, _) => {
                let program = command.split(' ').next().unwrap_or(command);
                write!(f, "cannot use {program:?}: {words}; hint: update it, or name another program with --zfs")
            }
            (ErrorKind::Output, _) => write!(f, "cannot parse the output of \"{command}\": {words}"),
            _ if words.is_empty() => write!(f, "\"{command}\" failed: {status}"),
            _ => write!(f, "\"{command}\" failed ({status}): {words}"),
        }
    }
}
