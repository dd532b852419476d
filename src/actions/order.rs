//! From verdicts to orders: what an agent is asked to do.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::plan::{Plan, Side};
use crate::model::{DatasetName, Guid, HostName, SnapName};
use crate::policy::{Policy, Target};

/// One thing to carry out on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Order {
    /// Take a snapshot of all these datasets.
    Take {
        /// The index of the entry in `policy.datasets`.
        entry: usize,
        /// Where.
        host: HostName,
        /// The name after `@`.
        name: SnapName,
        /// Parents first, all of one pool: one atomic step.
        datasets: Vec<DatasetName>,
        /// The policy's name.
        policy: String,
        /// Whether a dataset without changes since its last snapshot is left out.
        skip_if_not_written: bool,
        /// Why, as a sentence.
        reason: String,
    },
    /// Send everything up to a snapshot.
    Send {
        /// The index of the entry in `policy.datasets`.
        entry: usize,
        /// The sending host.
        host: HostName,
        /// The dataset there.
        dataset: DatasetName,
        /// The snapshot's name there.
        snapshot: SnapName,
        /// The snapshot's identity.
        guid: Guid,
        /// The receiving host and its dataset.
        to: Target,
        /// Whether a diverged destination is rolled back to the newest common snapshot.
        rollback_if_needed: bool,
        /// The policy's name.
        policy: String,
        /// Why, as a sentence.
        reason: String,
        /// When the oldest snapshot that the destination lacks was taken.
        oldest_unsent: DateTime<Utc>,
    },
    /// Destroy these snapshots of one dataset.
    Destroy {
        /// The index of the entry in `policy.datasets`.
        entry: usize,
        /// Where.
        host: HostName,
        /// The dataset there.
        dataset: DatasetName,
        /// Whether the dataset is the policy's source or a destination.
        side: Side,
        /// What, oldest first.
        snapshots: Vec<(Guid, SnapName)>,
        /// The datasets with which a common snapshot must remain (destinations of this one, and what it receives from).
        keep_common_with: Vec<Target>,
        /// Whether a snapshot that has another name now is left alone.
        skip_if_renamed: bool,
        /// Whether a snapshot that has clones is left alone.
        skip_if_cloned: bool,
        /// The policy's name.
        policy: String,
        /// Why, as a sentence.
        reason: String,
        /// Bytes that only these snapshots hold, as far as known.
        bytes: u64,
    },
}

/// See [`Plan::orders`].
pub(super) fn orders(_plan: &Plan, _policy: &Policy) -> Vec<Order> {
    vec![]
}
