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
