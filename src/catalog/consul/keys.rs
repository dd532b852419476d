//! The keys of the catalog's pairs, and the limits on their number and size.

use crate::catalog::consul::codec::Parts;
use crate::model::{DatasetName, HostName};

/// The largest value of one pair, in bytes. Base64 in the JSON of a transaction makes it a third larger, and Consul
/// accepts 512 KiB.
pub(super) const PART: usize = 256 << 10;
/// The largest number of parts of a dataset, so that the old and the new ones fit into one transaction.
pub(super) const MOST_PARTS: usize = 30;

/// The keys of one host's pairs.
#[derive(Clone)]
pub(super) struct Keys {
    /// The key of the generation pair.
    pub generation: String,
    /// The prefix of the keys of its datasets. Ends with a slash.
    pub inventory: String,
    /// The key of the history of its destroyed snapshots.
    pub destroyed: String,
    /// The key of the outcomes of its orders.
    pub outcomes: String,
}

impl Keys {
    pub fn new(root: &str, host: &HostName) -> Self {
        Self {
            generation: format!("{root}/generation/{host}"),
            inventory: format!("{root}/inventory/{host}/"),
            destroyed: format!("{root}/destroyed/{host}"),
            outcomes: format!("{root}/outcomes/{host}"),
        }
    }

    /// The key of a dataset's pair. Every name that ZFS accepts can be part of a key unchanged.
    pub fn dataset(&self, dataset: &DatasetName) -> String {
        format!("{}{dataset}", self.inventory)
    }

    /// The key of one part of a dataset that is too large for one pair. The name of a dataset never contains an `@`.
    pub fn part(&self, dataset: &DatasetName, parts: &Parts, number: usize) -> String {
        format!("{}{dataset}@{}/{number:04}", self.inventory, parts.set)
    }
}
