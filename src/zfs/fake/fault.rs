//! Defines the faults that a test can cause in a stream.

/// What happens to a running `zfs send` or `zfs receive` once it has written or read this many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed.
    Killed(u64),
    /// The process moves no more bytes, and does not end.
    Stalled(u64),
    /// The next byte is changed. Only a send can do that.
    Damaged(u64),
}

impl Fault {
    /// How many bytes pass before the process is killed or stalls.
    pub(super) fn limit(self) -> Option<u64> {
        match self {
            Self::Killed(at) | Self::Stalled(at) => Some(at),
            Self::Damaged(_) => None,
        }
    }
}
