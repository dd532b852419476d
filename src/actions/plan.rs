//! What was decided and why: the verdicts of one pass, and the orders that follow from them.
//!
//! Everything here is `Serialize`, and every reason is a type whose `Display` is a plain sentence. A plan
//! holds a few bytes per snapshot; what a verdict about one snapshot means in words is made on demand by
//! [`PruneVerdict::explain`].

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::actions::divergence::Allowed;
use crate::actions::order;
use crate::actions::order::Order;
use crate::actions::reason::{NoticeKind, SendReason, TakeReason, time};
use crate::actions::route::Route;
use crate::actions::verdict::{Doomed, SnapVerdict};
use crate::model::{DatasetName, Guid, HostName, SnapName};
use crate::policy::{Policy, Target};

/// Everything that one pass decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The moment that it was decided for.
    pub at: DateTime<Utc>,
    /// One per dataset and policy: is a snapshot due?
    pub takes: Vec<TakeVerdict>,
    /// One per dataset, policy and destination: is a transfer due?
    pub sends: Vec<SendVerdict>,
    /// One per place (dataset of a host, source or destination) and prefix: what stays, what goes?
    pub prunes: Vec<PruneVerdict>,
    /// What an administrator should know about this pass beyond the verdicts.
    pub notices: Vec<Notice>,
}

/// Whose decision a verdict is.
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
    /// Whose snapshot.
    #[serde(flatten)]
    pub subject: Subject,
    /// Its name if one is due, `None` if not.
    pub due: Option<SnapName>,
    /// Why.
    pub reason: TakeReason,
}

/// Whether a transfer of a dataset to one destination is due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SendVerdict {
    /// Whose snapshots.
    #[serde(flatten)]
    pub subject: Subject,
    /// Where they go.
    pub to: Target,
    /// What to send if it is due, `None` if not.
    pub due: Option<DueSend>,
    /// What may be done about a destination that cannot take the next stream. Nothing in a loop, whatever the policy
    /// says: there, what only the destination has is to come back.
    #[serde(flatten)]
    pub allowed: Allowed,
    /// What the transfer has to know of other datasets.
    #[serde(flatten)]
    pub route: Route,
    /// Why.
    pub reason: SendReason,
}

/// The newest snapshot of a policy, which a due send names; everything between the common base and it travels too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DueSend {
    /// Its name on the source.
    pub snapshot: SnapName,
    /// Its identity.
    pub guid: Guid,
    /// When the oldest of the policy's snapshots that the destination lacks was taken: how far it lags behind.
    pub oldest_unsent: DateTime<Utc>,
    /// The slot of the sync policy that has passed since the snapshot was taken; `None` with `asap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<DateTime<Utc>>,
}

impl SendVerdict {
    /// Why, in one sentence as of a moment; of a due transfer also by which slot, and since when it waits.
    #[must_use]
    pub fn why(&self, at: DateTime<Utc>) -> String {
        let mut why = self.reason.to_string();
        if let Some(DueSend { oldest_unsent, slot, .. }) = &self.due {
            if let Some(slot) = slot {
                why = format!("{why}; the slot {} has passed", time(*slot));
            }
            if *oldest_unsent < at {
                why = format!("{why}; waiting since {}", time(*oldest_unsent));
            }
        }
        why
    }
}

/// Which end of a policy a dataset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Where the snapshots are taken.
    Source,
    /// Where they are received.
    Destination,
}

/// What stays and what goes of one prefix in one dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PruneVerdict {
    /// Whose snapshots; host and dataset are those of the place that is pruned.
    #[serde(flatten)]
    pub subject: Subject,
    /// Whether the place is the policy's source or one of its destinations.
    pub side: Side,
    /// How many snapshots of the prefix stay.
    pub kept: usize,
    /// What goes, oldest first.
    pub destroy: Vec<Doomed>,
    /// How many snapshots with other names the dataset has; they are never candidates.
    pub others: usize,
    /// The rules that were asked, in the order that verdicts number them.
    pub rules: Vec<String>,
    /// The datasets whose common snapshots are protected here, in the order that verdicts number them.
    pub peers: Vec<Target>,
    /// Whether a snapshot that has another name on another side stays.
    pub skip_if_renamed: bool,
    /// Whether a snapshot that has clones stays.
    pub skip_if_cloned: bool,
    /// One per snapshot of the prefix, oldest first; see [`PruneVerdict::explain`].
    #[serde(skip)]
    pub snapshots: Vec<SnapVerdict>,
}

/// Something that an administrator should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Notice {
    /// The index of the entry in `policy.datasets` that it is about.
    pub entry: usize,
    /// The host that it is about.
    pub host: HostName,
    /// The dataset that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetName>,
    /// What it says.
    #[serde(flatten)]
    pub kind: NoticeKind,
}

impl Plan {
    /// The orders that carry the plan out: takes, then sends, then destroys.
    #[must_use]
    pub fn orders(&self, policy: &Policy) -> Vec<Order> {
        order::orders(self, policy)
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.takes.iter().all(|t| t.due.is_none())
            && self.sends.iter().all(|s| s.due.is_none())
            && self.prunes.iter().all(|p| p.destroy.is_empty())
    }
}
