//! What can be wrong, and how bad it is.

use std::fmt;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Serialize, Serializer};

use crate::model::SnapName;
use crate::policy::Target;

/// How bad something is, as monitoring calls it. The order is that of the worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// All is well.
    #[default]
    Ok,
    /// Nobody knows.
    Unknown,
    /// It should be looked at.
    Warning,
    /// It has to be looked at.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "OK",
            Self::Unknown => "UNKNOWN",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        })
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// There is no snapshot of the policy, and should be.
    NoSnapshot,
    /// The newest snapshot is too old.
    SnapshotOld {
        /// How old it is, or since when nothing was written.
        age: TimeDelta,
        /// How old it may be.
        limit: TimeDelta,
        /// How bad that is.
        severity: Severity,
    },
    /// What is not on the destination yet is too old, or the newest replica is.
    ReplicaOld {
        /// How far it lags behind.
        age: TimeDelta,
        /// How far it may.
        limit: TimeDelta,
        /// How many snapshots are not there.
        behind: usize,
        /// How bad that is.
        severity: Severity,
    },
    /// The destination's newest snapshot is not the source's: no increment can be sent.
    Diverged {
        /// What it has.
        newest: SnapName,
        /// The newest one in common, if there is any.
        base: Option<SnapName>,
    },
    /// There are more snapshots of the policy than it allows.
    TooMany {
        /// How many.
        count: usize,
        /// How many there may be.
        limit: usize,
        /// Where, if not on the source.
        at: Option<Target>,
    },
    /// A snapshot has been held for too long.
    HeldLong {
        /// The oldest one.
        snapshot: SnapName,
        /// How old it is.
        age: TimeDelta,
        /// How old a held one may be.
        limit: TimeDelta,
    },
    /// A host could not be looked at.
    OutOfReach {
        /// When it was seen last.
        since: Option<DateTime<Utc>>,
        /// Why.
        reason: String,
    },
    /// A host was never looked at.
    NeverListed,
}

impl Finding {
    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::SnapshotOld { severity, .. } | Self::ReplicaOld { severity, .. } => *severity,
            Self::Diverged { .. } => Severity::Critical,
            Self::NoSnapshot
            | Self::TooMany { .. }
            | Self::HeldLong { .. }
            | Self::OutOfReach { since: Some(_), .. } => Severity::Warning,
            // How things are there, nobody knows.
            Self::OutOfReach { since: None, .. } | Self::NeverListed => Severity::Unknown,
        }
    }

    /// Whether it is about a policy's source, rather than about a destination or a host.
    #[must_use]
    pub fn is_of_source(&self) -> bool {
        matches!(
            self,
            Self::NoSnapshot | Self::SnapshotOld { .. } | Self::HeldLong { .. } | Self::TooMany { at: None, .. }
        )
    }

    /// Its name for programs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoSnapshot => "no_snapshot",
            Self::SnapshotOld { .. } => "snapshot_old",
            Self::ReplicaOld { .. } => "replica_old",
            Self::Diverged { .. } => "diverged",
            Self::TooMany { .. } => "too_many",
            Self::HeldLong { .. } => "held_long",
            Self::OutOfReach { .. } => "out_of_reach",
            Self::NeverListed => "never_listed",
        }
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Form {
            kind: &'static str,
            severity: Severity,
            text: String,
        }
        Form { kind: self.kind(), severity: self.severity(), text: self.to_string() }.serialize(s)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSnapshot => f.write_str("there is no snapshot of the policy"),
            Self::SnapshotOld { age, limit, .. } => {
                write!(f, "the newest snapshot is {} old (limit {})", span(*age), span(*limit))
            }
            Self::ReplicaOld { age, limit, behind, .. } => {
                write!(f, "the replica lags {} behind (limit {}, {behind} unsent)", span(*age), span(*limit))
            }
            Self::Diverged { newest, base: Some(base) } => {
                write!(f, "diverged: @{newest} is only there, the newest in common is @{base}")
            }
            Self::Diverged { newest, base: None } => write!(f, "diverged: @{newest} is there, nothing is in common"),
            Self::TooMany { count, limit, at: None } => write!(f, "{count} snapshots (limit {limit})"),
            Self::TooMany { count, limit, at: Some(_) } => write!(f, "{count} snapshots there (limit {limit})"),
            Self::HeldLong { snapshot, age, limit } => {
                write!(f, "@{snapshot} is held and {} old (limit {})", span(*age), span(*limit))
            }
            Self::OutOfReach { since: Some(since), reason } => {
                write!(f, "out of reach, last seen {}: {reason}", since.to_rfc3339_opts(SecondsFormat::Secs, true))
            }
            Self::OutOfReach { since: None, reason } => write!(f, "out of reach, never seen: {reason}"),
            Self::NeverListed => f.write_str("was never asked what it holds"),
        }
    }
}

/// A span of time in its two largest units, as in `2d 3h`.
#[must_use]
pub fn span(span: TimeDelta) -> String {
    let seconds = span.num_seconds().max(0);
    let units = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let Some(first) = units.iter().position(|(_, length)| seconds >= *length) else { return "0s".into() };
    let (name, length) = units[first];
    let text = format!("{}{name}", seconds / length);
    match units.get(first + 1).map(|(name, next)| (name, seconds % length / next)) {
        Some((name, rest)) if rest > 0 => format!("{text} {rest}{name}"),
        _ => text,
    }
}
