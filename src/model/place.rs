//! A dataset on a host: the two coordinates that name one end of a transfer.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{DatasetName, Guid, HostName};

/// A dataset that is in the way, and the name that it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SetAside {
    /// The guid of the dataset. No other dataset is renamed.
    pub guid: Guid,
    /// Its new name, next to the old one.
    pub dataset: DatasetName,
}

/// A dataset on a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The host.
    pub host: HostName,
    /// The dataset there.
    pub dataset: DatasetName,
}

impl fmt::Display for Place {
    /// `HOST:DATASET`, as people write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.dataset)
    }
}
