//! Encryption keys that keep a copy from taking raw increments.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::model::DatasetName;

/// Why a raw increment would make datasets unreadable.
///
/// Each raw increment brings the source's key, wrapped by the source's wrapping key, and replaces the one that the copy
/// has. ZFS accepts that even if other datasets depend on the previous wrapping key (OpenZFS issues 12123 and 12614).
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyConflict {
    /// The copy uses the key of a dataset above it.
    #[error(
        "the copy uses the key of {root}: it was not received raw, or was received together with that dataset \
         (zfs send -R), or its own key was replaced (zfs change-key -i); a raw increment would fail, or make the copy \
         unreadable"
    )]
    Foreign {
        /// The encryption root of the copy.
        root: DatasetName,
    },
    /// Datasets below the copy use its key.
    #[error(
        "{} {} the key of the copy: if the key of the source has changed, a raw increment makes what is below unreadable",
        named(users), if users.len() == 1 { "uses" } else { "use" }
    )]
    Shared {
        /// Some of these datasets.
        users: Vec<DatasetName>,
    },
}

fn named(users: &[DatasetName]) -> String {
    users.iter().map(DatasetName::as_str).collect::<Vec<_>>().join(", ")
}

/// The key of an encrypted dataset, as ZFS lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// The dataset that has the key: itself, or one above it (`encryptionroot`, zfsprops(7)).
    pub root: DatasetName,
    /// Whether the key is loaded.
    pub is_loaded: bool,
}

/// A restored dataset that is to use the key of a dataset above it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyJoin {
    /// The restored dataset.
    pub dataset: DatasetName,
    /// The dataset whose key it is to use.
    pub root: DatasetName,
    /// Why that is impossible now; `None` if it is possible, or has been done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
