//! Why: the typed reasons of takes, sends and notices, each with its sentence.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use crate::model::SnapName;
use crate::policy::Target;

/// Why a snapshot is due or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TakeReason {
    /// Due: there is no snapshot of the policy yet.
    First,
    /// Due: a slot has passed since the last snapshot.
    SlotPassed {
        /// The newest slot.
        slot: DateTime<Utc>,
        /// When the last snapshot was taken, or the last slot that found nothing written.
        last: DateTime<Utc>,
    },
    /// Not due: no slot has passed since the last snapshot.
    UpToDate {
        /// When the last snapshot was taken, or the last slot that found nothing written.
        last: DateTime<Utc>,
        /// The next slot.
        next: Option<DateTime<Utc>>,
    },
    /// Not due: the slot's own snapshot is there already (the host's clock is a little behind the slot).
    SlotTaken {
        /// The slot.
        slot: DateTime<Utc>,
        /// The next slot.
        next: Option<DateTime<Utc>>,
    },
    /// Not due: a slot was missed, but longer ago than the policy makes up for.
    TooLate {
        /// The slot.
        slot: DateTime<Utc>,
        /// What the policy makes up for, in seconds.
        catch_up: u64,
        /// The next slot.
        next: Option<DateTime<Utc>>,
    },
    /// Not due: the last snapshot lies in the future; a clock was or is wrong.
    ClockBehind {
        /// The creation of the last snapshot.
        last: DateTime<Utc>,
    },
    /// Not due: the policy has no `creation`; others take its snapshots.
    NoSchedule,
    /// Not due: the dataset receives, and a snapshot of its own would make the two diverge.
    Receives {
        /// What it receives from.
        from: Target,
    },
}

/// Why a transfer is due or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SendReason {
    /// Due: the newest snapshot is not on the destination.
    NotThere {
        /// The newest common snapshot or bookmark (its name on the source), if there is any.
        base: Option<SnapName>,
    },
    /// Due: the destination's host is listed and does not have the dataset.
    DestinationAbsent,
    /// Due: nobody knows what the destination has; the agent finds out.
    DestinationUnknown,
    /// Not due: the newest snapshot is there.
    UpToDate {
        /// The newest snapshot.
        newest: SnapName,
    },
    /// Not due: the newest snapshot is unsent, but no slot of the sync policy has passed since it was taken.
    WaitsForSlot {
        /// The next slot.
        next: Option<DateTime<Utc>>,
    },
    /// Not due: the policy has no snapshot yet.
    NothingToSend,
    /// Never due: source and destination are the same dataset.
    ToItself,
    /// Never due: the destination's name would be longer than ZFS takes.
    NameTooLong,
    /// Never due: another dataset, named first in the policy, is sent to the same destination.
    DestinationTaken {
        /// What the destination receives from.
        by: Target,
    },
}

/// What a notice says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NoticeKind {
    /// The host's ZFS has not been listed: nothing is taken or destroyed there.
    HostNotListed,
    /// The policy names a dataset that its listed host does not have.
    DatasetMissing,
    /// The dataset has `zsync:exclude=on`: nothing is done about it, and about what inherits that.
    Excluded,
    /// Another entry, named first, claims the same dataset and prefix.
    ClaimedTwice {
        /// The index of that entry.
        by: usize,
        /// The prefix.
        prefix: String,
    },
    /// The newest snapshot lies in the future.
    FromTheFuture {
        /// The snapshot.
        snapshot: SnapName,
        /// Its creation.
        creation: DateTime<Utc>,
    },
    /// The dataset is a destination and has a schedule of its own: it is not followed.
    ReceivesAndTakes {
        /// What it receives from.
        from: Target,
    },
    /// Two datasets are sent to one destination: only the first is.
    DestinationTaken {
        /// The destination.
        to: Target,
        /// What it receives from.
        by: Target,
    },
    /// The dataset's name on a destination would be longer than ZFS takes.
    NameTooLong {
        /// The host of the destination and the dataset that the children go below.
        to: Target,
    },
    /// The destination has snapshots, but none in common with the source: nothing is destroyed there.
    NothingInCommon {
        /// The destination.
        with: Target,
    },
}

/// A moment as people read it, in UTC, to the second.
pub(super) fn time(t: DateTime<Utc>) -> String {
    t.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn next_slot(next: Option<DateTime<Utc>>) -> String {
    next.map_or_else(|| "there is no next slot".to_owned(), |t| format!("the next slot is {}", time(t)))
}

impl fmt::Display for TakeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("there is no snapshot of this policy yet"),
            Self::SlotPassed { slot, last } => {
                write!(f, "the slot {} has passed since the last snapshot ({})", time(*slot), time(*last))
            }
            Self::UpToDate { last, next } => {
                write!(f, "no slot has passed since the last snapshot ({}); {}", time(*last), next_slot(*next))
            }
            Self::SlotTaken { slot, next } => {
                write!(f, "the snapshot of the slot {} is there; {}", time(*slot), next_slot(*next))
            }
            Self::TooLate { slot, catch_up, next } => {
                let catch_up = humantime::format_duration(std::time::Duration::from_secs(*catch_up));
                write!(f, "the slot {} is more than {catch_up} ago; {}", time(*slot), next_slot(*next))
            }
            Self::ClockBehind { last } => {
                write!(f, "the last snapshot lies in the future ({}): a clock was or is wrong", time(*last))
            }
            Self::NoSchedule => f.write_str("the policy has no schedule; others take its snapshots"),
            Self::Receives { from } => {
                write!(f, "it receives from {}; a snapshot of its own would make the two diverge", place(from))
            }
        }
    }
}

/// A dataset on a host as people write it.
pub(super) fn place(target: &Target) -> String {
    format!("{}:{}", target.host, target.dataset)
}

impl fmt::Display for SendReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere { base: Some(base) } => {
                write!(f, "the newest snapshot is not on the destination; {base} is the newest common one")
            }
            Self::NotThere { base: None } => {
                f.write_str("the newest snapshot is not on the destination, and nothing else is common either")
            }
            Self::DestinationAbsent => f.write_str("the destination does not have the dataset yet"),
            Self::DestinationUnknown => f.write_str("the destination has not been listed; the agent will find out"),
            Self::UpToDate { newest } => write!(f, "the destination has the newest snapshot, {newest}"),
            Self::WaitsForSlot { next } => {
                write!(f, "the newest snapshot waits for the sync policy; {}", next_slot(*next))
            }
            Self::NothingToSend => f.write_str("there is no snapshot of this policy yet"),
            Self::ToItself => f.write_str("source and destination are the same dataset"),
            Self::NameTooLong => f.write_str("its name on the destination would be longer than ZFS takes"),
            Self::DestinationTaken { by } => write!(f, "the destination already receives from {}", place(by)),
        }
    }
}

impl NoticeKind {
    /// Whether something that the policy asks for does not happen, and no order will fail to say so.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        match self {
            Self::DatasetMissing
            | Self::ClaimedTwice { .. }
            | Self::FromTheFuture { .. }
            | Self::DestinationTaken { .. }
            | Self::NameTooLong { .. } => true,
            // A host that was not listed is told by itself, a destination without anything in common by a send that fails.
            Self::HostNotListed | Self::Excluded | Self::ReceivesAndTakes { .. } | Self::NothingInCommon { .. } => {
                false
            }
        }
    }
}

impl fmt::Display for NoticeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNotListed => f.write_str("has not been listed: nothing is taken or destroyed there"),
            Self::DatasetMissing => f.write_str("does not exist"),
            Self::Excluded => {
                f.write_str("has zsync:exclude=on: nothing of it is taken, sent or pruned (zfs inherit zsync:exclude)")
            }
            Self::ClaimedTwice { by, prefix } => {
                write!(f, "is claimed with the prefix {prefix} by entry {by} of the policy already; that one decides")
            }
            Self::FromTheFuture { snapshot, creation } => {
                write!(f, "has the snapshot {snapshot} from the future ({}): a clock was or is wrong", time(*creation))
            }
            Self::ReceivesAndTakes { from } => write!(
                f,
                "receives from {}, so its own schedule is not followed: a snapshot of its own would make the two diverge",
                place(from)
            ),
            Self::DestinationTaken { to, by } => {
                write!(f, "is not sent to {}, which already receives from {}", place(to), place(by))
            }
            Self::NameTooLong { to } => {
                write!(f, "is not sent below {}: its name there would be longer than ZFS takes", place(to))
            }
            Self::NothingInCommon { with } => {
                write!(f, "has no snapshot in common with {}: nothing is destroyed there", place(with))
            }
        }
    }
}

impl fmt::Display for crate::actions::plan::Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.dataset {
            Some(dataset) => write!(f, "{}:{dataset} {}", self.host, self.kind),
            None => write!(f, "{} {}", self.host, self.kind),
        }
    }
}
