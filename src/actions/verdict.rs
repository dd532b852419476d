//! Verdicts about takes and sends: whether a snapshot or a transfer is due, and why.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::actions::divergence::Allowed;
use crate::actions::reason::{SendReason, TakeReason};
use crate::actions::route::Route;
use crate::model::{DatasetName, Guid, HostName, Place, SnapName, in_utc};

/// The policy and the dataset that a verdict is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Subject {
    /// The index of the entry in `policy.datasets`.
    pub entry: usize,
    /// The index of the policy in the entry's `policies`.
    #[serde(skip)]
    pub policy_index: usize,
    /// The policy's name: `backup`, `sync`, ...
    pub policy: String,
    /// The host that carries the decision out (for a send: the sending one).
    pub host: HostName,
    /// The dataset there.
    pub dataset: DatasetName,
}

/// Whether a snapshot of a dataset is due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TakeVerdict {
    /// The dataset to take a snapshot of, with its policy.
    #[serde(flatten)]
    pub subject: Subject,
    /// The snapshot's name if one is due, `None` if not.
    pub due: Option<SnapName>,
    /// Why it is due or not.
    pub reason: TakeReason,
}

/// Whether a transfer of a dataset to one destination is due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SendVerdict {
    /// The dataset to send, with its policy.
    #[serde(flatten)]
    pub subject: Subject,
    /// The destination.
    pub to: Place,
    /// What to send if a transfer is due, `None` if not.
    pub due: Option<DueSend>,
    /// What may be done about a destination that cannot receive the next stream. In a loop of datasets that send to
    /// each other, nothing may be done, whatever the policy permits: snapshots that only the destination has will be
    /// sent back to the source.
    #[serde(flatten)]
    pub allowed: Allowed,
    /// What the transfer needs to know about other datasets.
    #[serde(flatten)]
    pub route: Route,
    /// Why it is due or not.
    pub reason: SendReason,
}

/// The goal of a due transfer: the policy's newest snapshot. All snapshots between the common base and this one are
/// sent, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DueSend {
    /// Its name on the source.
    pub snapshot: SnapName,
    /// Its identity.
    pub guid: Guid,
    /// When the oldest of the policy's snapshots that the destination lacks was taken. The destination has been lagging
    /// since then.
    pub oldest_unsent: DateTime<Utc>,
    /// When the newest of the policy's snapshots that the destination has was taken; `None` if it has none.
    #[serde(skip)]
    pub newest_there: Option<DateTime<Utc>>,
    /// The slot of the sync policy that has passed since the snapshot was taken; `None` with `asap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<DateTime<Utc>>,
}

impl SendVerdict {
    /// The reason in words, as of the moment `at`. For a due transfer, this includes the slot that has passed, and
    /// since when the transfer has been waiting.
    #[must_use]
    pub fn why(&self, at: DateTime<Utc>) -> String {
        let mut why = self.reason.to_string();
        if let Some(DueSend { oldest_unsent, slot, .. }) = &self.due {
            if let Some(slot) = slot {
                why = format!("{why}; the slot {} has passed", in_utc(*slot));
            }
            if *oldest_unsent < at {
                why = format!("{why}; waiting since {}", in_utc(*oldest_unsent));
            }
        }
        why
    }
}

/// Which end of a policy a dataset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The dataset whose snapshots are taken.
    Source,
    /// A dataset that receives them.
    Destination,
}
