//! Hooks: commands that a host's administrator has zsync run. Only that host's own `local.json` ever names a command.

use std::time::Duration;

/// How long a hook may take, unless local.json says otherwise.
pub const DEFAULT_HOOK_TIMEOUT: Duration = Duration::from_secs(60);

/// The commands of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Before a snapshot is taken.
    pub before_snapshot: Option<Hook>,
    /// After that, whether or not it was taken.
    pub after_snapshot: Option<Hook>,
    /// After something was received.
    pub after_receive: Option<Hook>,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The program, from the root, and its arguments; no shell looks at them.
    pub command: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether its failure is one of the order, too.
    pub aborts: bool,
}
