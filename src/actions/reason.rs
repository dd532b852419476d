//! The reasons for verdicts about takes and sends. `Display` writes each of them as a clause.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::model::{DatasetName, Place, SnapName, in_utc};

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
        /// When the last snapshot was taken, or the last slot that was skipped because nothing had been written.
        last: DateTime<Utc>,
    },
    /// Not due: no slot has passed since the last snapshot.
    UpToDate {
        /// When the last snapshot was taken, or the last slot that was skipped because nothing had been written.
        last: DateTime<Utc>,
        /// The next slot.
        next: Option<DateTime<Utc>>,
    },
    /// Not due: the slot's snapshot exists already, with an earlier creation time (the host's clock is a little slow).
    SlotTaken {
        /// The slot.
        slot: DateTime<Utc>,
        /// The next slot.
        next: Option<DateTime<Utc>>,
    },
    /// Not due: the slot passed longer ago than the policy's `catch_up`.
    TooLate {
        /// The slot.
        slot: DateTime<Utc>,
        /// The policy's `catch_up`, in seconds.
        catch_up: u64,
        /// The next slot.
        next: Option<DateTime<Utc>>,
    },
    /// Not due: the last snapshot is dated in the future, so a clock is or was wrong.
    ClockBehind {
        /// The creation time of the last snapshot.
        last: DateTime<Utc>,
    },
    /// Not due: the policy has no `creation`; its snapshots are taken by other means.
    NoSchedule,
    /// Not due: the dataset receives, and a snapshot of its own would make it diverge from its source.
    Receives {
        /// The source.
        from: Place,
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
    /// Due: the destination's host was listed and does not have the dataset.
    DestinationAbsent,
    /// Due: the destination's host was listed and no longer has the dataset, to which the source was sent before.
    DestinationGone,
    /// Due: the source was renamed, and the transfer first renames its copy as well.
    CopyRenamed {
        /// The copy under its former name.
        from: DatasetName,
    },
    /// Due: the destination's host has not been listed; the agent compares the two sides.
    DestinationUnknown,
    /// Not due: the destination's pool could not be listed, although its host was.
    PoolNotListed,
    /// Not due: the destination has the newest snapshot.
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
    /// Never due: the names of the snapshots would be longer at the destination than ZFS permits.
    NameTooLong,
    /// Never due: another dataset is sent to the same destination.
    DestinationTaken {
        /// The dataset that the destination receives from.
        by: Place,
    },
}

fn next_slot(next: Option<DateTime<Utc>>) -> String {
    next.map_or_else(|| "there is no next slot".to_owned(), |t| format!("the next slot is {}", in_utc(t)))
}

impl fmt::Display for TakeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("there is no snapshot of this policy yet"),
            Self::SlotPassed { slot, last } => {
                write!(f, "the slot {} has passed since the last snapshot ({})", in_utc(*slot), in_utc(*last))
            }
            Self::UpToDate { last, next } => {
                write!(f, "no slot has passed since the last snapshot ({}); {}", in_utc(*last), next_slot(*next))
            }
            Self::SlotTaken { slot, next } => {
                write!(f, "the snapshot for the slot {} exists already; {}", in_utc(*slot), next_slot(*next))
            }
            Self::TooLate { slot, catch_up, next } => {
                let catch_up = humantime::format_duration(std::time::Duration::from_secs(*catch_up));
                write!(f, "the slot {} passed more than {catch_up} (catch_up) ago; {}", in_utc(*slot), next_slot(*next))
            }
            Self::ClockBehind { last } => {
                write!(f, "the last snapshot is dated in the future ({}): a clock is or was wrong", in_utc(*last))
            }
            Self::NoSchedule => f.write_str("the policy has no schedule; its snapshots are taken by other means"),
            Self::Receives { from } => {
                write!(f, "the dataset receives from {from}; a snapshot of its own would make the two diverge")
            }
        }
    }
}

impl fmt::Display for SendReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere { base: Some(base) } => {
                write!(f, "the destination lacks the newest snapshot; the newest common one is {base}")
            }
            Self::NotThere { base: None } => {
                f.write_str("the destination lacks the newest snapshot and has none in common with the source")
            }
            Self::DestinationAbsent => f.write_str("the dataset does not exist on the destination yet"),
            Self::DestinationGone => f.write_str(
                "the destination no longer has the dataset, though it was sent there before (a bookmark shows that): a \
                 new copy begins",
            ),
            Self::CopyRenamed { from } => {
                write!(f, "the source was renamed: its copy {from} is renamed as well, and gets an increment")
            }
            Self::DestinationUnknown => {
                f.write_str("the destination could not be listed; the agent will compare both sides")
            }
            Self::PoolNotListed => f.write_str("the pool of the destination could not be listed"),
            Self::UpToDate { newest } => write!(f, "the destination has the newest snapshot, {newest}"),
            Self::WaitsForSlot { next } => {
                write!(f, "no slot of sync_policy has passed since the newest snapshot; {}", next_slot(*next))
            }
            Self::NothingToSend => f.write_str("there is no snapshot of this policy yet"),
            Self::ToItself => f.write_str("source and destination are the same dataset"),
            Self::NameTooLong => {
                f.write_str("the names of its snapshots would be longer on the destination than ZFS permits")
            }
            Self::DestinationTaken { by } => write!(f, "the destination already receives from {by}"),
        }
    }
}
