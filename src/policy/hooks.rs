//! Hooks: commands that zsync runs for a host's administrator. Only the `local.json` of the host itself can name a
//! command.

use std::time::Duration;

/// The default time limit of a hook.
pub const DEFAULT_HOOK_TIMEOUT: Duration = Duration::from_secs(60);

/// The hooks of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Runs before a snapshot is taken.
    pub before_snapshot: Option<Hook>,
    /// Runs after the attempt to take a snapshot, whether or not one was taken.
    pub after_snapshot: Option<Hook>,
    /// Runs after a receive.
    pub after_receive: Option<Hook>,
}

/// One hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The absolute path of the program, and its arguments. No shell is involved.
    pub command: Vec<String>,
    /// The time limit.
    pub timeout: Duration,
    /// Whether the order fails if the hook does.
    pub aborts: bool,
}
