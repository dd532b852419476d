//! An order asks one host to take, send or destroy snapshots.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::actions::divergence::Allowed;
use crate::actions::route::Route;
use crate::actions::verdict::Side;
use crate::model::{DatasetName, Guid, HostName, Place, SnapName};

/// An order to one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Order {
    /// Take a snapshot of each of these datasets, in one atomic step.
    Take {
        /// The index of the entry in `policy.datasets`.
        entry: usize,
        /// The host.
        host: HostName,
        /// The name after `@`.
        name: SnapName,
        /// The datasets, all of one pool, parents first.
        datasets: Vec<DatasetName>,
        /// The policy's name.
        policy: String,
        /// Whether to leave out datasets that were not written to since their last snapshot.
        skip_if_not_written: bool,
        /// Why, in words.
        reason: String,
    },
    /// Send the snapshots of a dataset up to a given one to a destination.
    Send {
        /// The index of the entry in `policy.datasets`.
        entry: usize,
        /// The sending host.
        host: HostName,
        /// The dataset there.
        dataset: DatasetName,
        /// The name of the newest snapshot to send, on the source.
        snapshot: SnapName,
        /// Its identity.
        guid: Guid,
        /// The destination.
        to: Place,
        /// What may be done about a destination that cannot receive the next stream.
        #[serde(flatten)]
        allowed: Allowed,
        /// What the transfer needs to know about other datasets.
        #[serde(flatten)]
        route: Route,
        /// The policy's name.
        policy: String,
        /// Why, in words.
        reason: String,
        /// When the oldest snapshot that the destination lacks was taken.
        oldest_unsent: DateTime<Utc>,
        /// By when it has to arrive so that the destination does not exceed the policy's `lag`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<DateTime<Utc>>,
    },
    /// Destroy snapshots of one dataset.
    Destroy {
        /// The index of the entry in `policy.datasets`.
        entry: usize,
        /// The host.
        host: HostName,
        /// The dataset there.
        dataset: DatasetName,
        /// Whether the dataset is the policy's source or a destination.
        side: Side,
        /// The snapshots, oldest first.
        #[serde(with = "named")]
        snapshots: Vec<(Guid, SnapName)>,
        /// The datasets with which a common snapshot must remain: the destinations and the sources of this one.
        keep_common_with: Vec<Place>,
        /// Whether to leave alone a snapshot that was renamed meanwhile.
        skip_if_renamed: bool,
        /// Whether to leave alone a snapshot that has clones.
        skip_if_cloned: bool,
        /// The policy's name.
        policy: String,
        /// Why, in words.
        reason: String,
        /// The least number of bytes that this frees: the sum of what each snapshot alone references; 0 if unknown.
        bytes: u64,
    },
}

/// Serialises snapshots as objects, `{ "guid": ..., "name": ... }`, and not as bare pairs.
mod named {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::model::{Guid, SnapName};

    #[derive(Serialize)]
    struct Named<'a> {
        guid: Guid,
        name: &'a SnapName,
    }

    #[derive(Deserialize)]
    struct Owned {
        guid: Guid,
        name: SnapName,
    }

    pub fn serialize<S: Serializer>(all: &[(Guid, SnapName)], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(all.iter().map(|(guid, name)| Named { guid: *guid, name }))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<(Guid, SnapName)>, D::Error> {
        let all = Vec::<Owned>::deserialize(d)?;
        Ok(all.into_iter().map(|Owned { guid, name }| (guid, name)).collect())
    }
}

impl Order {
    /// The host that is to carry it out.
    #[must_use]
    pub fn host(&self) -> &HostName {
        match self {
            Self::Take { host, .. } | Self::Send { host, .. } | Self::Destroy { host, .. } => host,
        }
    }

    /// The index of the entry in `policy.datasets`.
    #[must_use]
    pub fn entry(&self) -> usize {
        match self {
            Self::Take { entry, .. } | Self::Send { entry, .. } | Self::Destroy { entry, .. } => *entry,
        }
    }
}
