//! What is known of each host's datasets and snapshots, and since when.

use std::collections::BTreeMap;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::flags::SendFlags;
use crate::model::name::{DatasetName, HostName, NameError, SnapName};
use crate::model::snapshot::{Bookmark, Guid, Snapshot};

/// Everything known of every host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// By host. A host that is missing here has never been seen.
    pub hosts: BTreeMap<HostName, HostInventory>,
}

impl Inventory {
    /// One dataset of one host, if it is known.
    #[must_use]
    pub fn dataset(&self, host: &HostName, dataset: &DatasetName) -> Option<&DatasetInventory> {
        self.hosts.get(host)?.datasets.get(dataset)
    }
}

/// What one host holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInventory {
    /// When the host's own ZFS was last listed as a whole; `None` if only parts were ever told.
    #[serde(default)]
    pub observed: Option<DateTime<Utc>>,
    /// By dataset. After a whole listing, what is missing here does not exist there.
    pub datasets: BTreeMap<DatasetName, DatasetInventory>,
}

/// A filesystem or a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatasetKind {
    /// A filesystem.
    #[default]
    Filesystem,
    /// A volume (zvol).
    Volume,
}

/// One dataset with its snapshots and bookmarks, each sorted by createtxg, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetInventory {
    /// Filesystem or volume.
    #[serde(default)]
    pub kind: DatasetKind,
    /// The dataset's own guid; `None` when only its snapshots were told.
    #[serde(default)]
    pub guid: Option<Guid>,
    /// Bytes written since the newest snapshot (the `written` property); `None` when unknown.
    #[serde(default)]
    pub written: Option<u64>,
    /// Whether it is encrypted: then it travels raw.
    #[serde(default)]
    pub encrypted: bool,
    /// The snapshot that it is a clone of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Whether its administrator has said `zsync:exclude=on` about it, or about what it lies in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub excluded: bool,
    /// How what it received was sent, as noted on it (`zsync:flags`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<SendFlags>,
    /// The token of an interrupted receive into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_token: Option<String>,
    /// By what is told whether its snapshots have changed since they were listed; `None` where nothing tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchanged: Option<Unchanged>,
    /// Its snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Its bookmarks.
    #[serde(default)]
    pub bookmarks: Vec<Bookmark>,
    /// The catalog's `#NotWritten` marks: slots that made no snapshot because nothing was written.
    #[serde(default)]
    pub not_written: Vec<NotWritten>,
}

/// While a dataset's property `snapshots_changed` (zfsprops(7)) lies in this span, it has the snapshots that were listed.
/// All are seconds since 1970, by its own host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unchanged {
    /// Its beginning.
    pub from: i64,
    /// Its end, which is part of it.
    pub to: i64,
    /// When the snapshots were listed: of bookmarks and holds, which may have changed since, the property tells nothing.
    pub listed: i64,
}

/// The snapshot that a clone was made of: `pool/dataset@name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The dataset of the snapshot.
    pub dataset: DatasetName,
    /// The snapshot's name.
    pub name: SnapName,
}

impl FromStr for Origin {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // A name without "@" is no snapshot's: the empty name after it is told so.
        let (dataset, name) = text.split_once('@').unwrap_or((text, ""));
        Ok(Self { dataset: dataset.parse()?, name: name.parse()? })
    }
}

/// A `#NotWritten` mark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NotWritten {
    /// The name that the snapshot would have had; its time is the slot.
    pub name: SnapName,
    /// When it was found that nothing had been written.
    #[serde(with = "chrono::serde::ts_seconds")]
    pub at: DateTime<Utc>,
}

impl DatasetInventory {
    /// Brings snapshots and bookmarks into the order that the type promises: by createtxg, then
    /// guid (two snapshots may not share a createtxg in one dataset, but a catalog file may say so).
    pub fn sort(&mut self) {
        self.snapshots.sort_by_key(|s| (s.createtxg, s.guid));
        self.bookmarks.sort_by(|a, b| (a.createtxg, a.guid, &a.name).cmp(&(b.createtxg, b.guid, &b.name)));
        self.not_written.sort();
    }

    /// The snapshot with this guid.
    #[must_use]
    pub fn by_guid(&self, guid: Guid) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.guid == guid)
    }

    /// The newest snapshot of all, whoever took it.
    #[must_use]
    pub fn newest(&self) -> Option<&Snapshot> {
        self.snapshots.last()
    }
}
