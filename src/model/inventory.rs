//! Inventories: the datasets, snapshots and bookmarks of each host, and when they were listed.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::model::flags::SendFlags;
use crate::model::name::{DatasetName, HostName, NameError, SnapName};
use crate::model::snapshot::{Bookmark, Guid, Snapshot};

/// The inventories of all hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// By host. A host that is missing has never been listed.
    pub hosts: BTreeMap<HostName, HostInventory>,
}

impl Inventory {
    /// One dataset of one host, if it is known.
    #[must_use]
    pub fn dataset(&self, host: &HostName, dataset: &DatasetName) -> Option<&DatasetInventory> {
        self.hosts.get(host)?.datasets.get(dataset)
    }
}

/// The datasets of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInventory {
    /// When all of the host's datasets were last listed; `None` if only parts were ever reported, or, in a pass, if the
    /// host has not been listed in this pass.
    #[serde(default)]
    pub observed: Option<DateTime<Utc>>,
    /// By dataset. After a complete listing, a dataset that is missing does not exist on the host, unless its pool is
    /// one of the `unlisted`.
    pub datasets: BTreeMap<DatasetName, DatasetInventory>,
    /// The pools that could not be listed, each with the reason. Their datasets are as they were known before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unlisted: UnlistedPools,
    /// How far the host's clock was behind the director's when the host was listed; zero if it was not behind. `None`
    /// if the host did not say, and for the director's own host. No catalog stores it.
    #[serde(skip)]
    pub clock_behind: Option<Duration>,
}

impl HostInventory {
    /// Whether this dataset, if it existed, would have been seen by the last listing of the host.
    #[must_use]
    pub fn covers(&self, dataset: &DatasetName) -> bool {
        self.observed.is_some() && !self.unlisted.contains_key(dataset.pool())
    }
}

impl HostInventory {
    /// The datasets that are within this one, itself included, sorted by name.
    pub fn within<'s>(&'s self, root: &DatasetName) -> impl Iterator<Item = (&'s DatasetName, &'s DatasetInventory)> {
        // In the order of names, a dataset's descendants follow it, with at most a few others between them: "a-b" comes
        // before "a/b".
        let near = self.datasets.range(root..).take_while(|(name, _)| name.as_str().starts_with(root.as_str()));
        near.filter(|(name, _)| name.is_within(root))
    }
}

/// The reason for a pool that is not there.
pub const NOT_IMPORTED: &str = "the pool is not imported";

/// The names of pools that could not be listed, each with the reason.
pub type UnlistedPools = BTreeMap<String, String>;

/// A listing of a host, pool by pool: one pool in trouble does not hide the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostListing {
    /// The datasets of the pools that were listed.
    pub datasets: Vec<(DatasetName, DatasetInventory)>,
    /// The pools that could not be listed.
    pub unlisted: UnlistedPools,
}

impl From<Vec<(DatasetName, DatasetInventory)>> for HostListing {
    fn from(datasets: Vec<(DatasetName, DatasetInventory)>) -> Self {
        Self { datasets, unlisted: UnlistedPools::new() }
    }
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
    /// The dataset's own guid; `None` if only its snapshots were reported.
    #[serde(default)]
    pub guid: Option<Guid>,
    /// Bytes written since the newest snapshot (the `written` property); `None` if unknown.
    #[serde(default)]
    pub written: Option<u64>,
    /// Whether it is encrypted; if so, it is sent raw.
    #[serde(default)]
    pub encrypted: bool,
    /// The ancestor whose key it uses (`encryptionroot`, zfsprops(7)). `None` if it has a key of its own, is not
    /// encrypted, or comes from a catalog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_from: Option<DatasetName>,
    /// The snapshot that it is a clone of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Whether `zsync:exclude=on` is set on it or inherited from a dataset above.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub excluded: bool,
    /// Whether local.json of the host forbids destroying its snapshots; `None` if the host did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append_only: Option<bool>,
    /// For how many seconds local.json of the host keeps in the trash what orders destroy; 0 if it is destroyed at once,
    /// `None` if the host did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroy_after: Option<u64>,
    /// Its snapshots that are in the trash, sorted by guid; `None` if the listing does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trashed: Option<Vec<Trashed>>,
    /// The send flags of the streams that it received, as recorded in its property `zsync:flags`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<SendFlags>,
    /// The tags of the holds that transfers have left on its snapshots (`zsync:to:HOST:DATASET`, `zsync:from:HOST`), one
    /// for each held snapshot. Only listings of whole pools have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transfer_holds: Vec<String>,
    /// The resume token of an interrupted receive into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_token: Option<String>,
    /// The `snapshots_changed` range for which this listing is current; `None` if ZFS does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchanged: Option<Unchanged>,
    /// Its snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Its bookmarks.
    #[serde(default)]
    pub bookmarks: Vec<Bookmark>,
    /// The catalog's `#NotWritten` marks: slots without a snapshot because nothing had been written.
    #[serde(default)]
    pub not_written: Vec<NotWritten>,
}

/// The range for which a listing is current: as long as the dataset's property `snapshots_changed` (zfsprops(7)) lies
/// in it, the dataset has the snapshots that were listed. All times are seconds since 1970 by the dataset's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unchanged {
    /// Start of the range.
    pub from: i64,
    /// End of the range, inclusive.
    pub to: i64,
    /// When the snapshots were listed. Bookmarks and holds may have changed since: the property does not cover them.
    pub listed: i64,
}

/// The snapshot that a clone was made from: `pool/dataset@name`.
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
        // Without "@" the snapshot's name is empty, which its parser reports.
        let (dataset, name) = text.split_once('@').unwrap_or((text, ""));
        Ok(Self { dataset: dataset.parse()?, name: name.parse()? })
    }
}

/// A `#NotWritten` mark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NotWritten {
    /// The name that the snapshot would have had; the time in it is the slot.
    pub name: SnapName,
    /// When it was found that nothing had been written.
    #[serde(with = "chrono::serde::ts_seconds")]
    pub at: DateTime<Utc>,
}

/// A snapshot in the trash: an order would have destroyed it, but `destroy_after` of local.json keeps it for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trashed {
    /// The snapshot.
    pub guid: Guid,
    /// Since when it has been in the trash, by the clock of its host.
    #[serde(with = "chrono::serde::ts_seconds")]
    pub since: DateTime<Utc>,
    /// Bytes that only this snapshot references; 0 if unknown.
    #[serde(default)]
    pub used: u64,
}

impl DatasetInventory {
    /// The entry of a snapshot in the trash; `None` if it is not there.
    #[must_use]
    pub fn trashed(&self, guid: Guid) -> Option<&Trashed> {
        let trashed = self.trashed.as_ref()?;
        trashed.binary_search_by_key(&guid, |trashed| trashed.guid).ok().map(|at| &trashed[at])
    }

    /// Until when a snapshot stays in the trash; `None` if `destroy_after` of local.json does not say: then it stays
    /// there until somebody empties the trash.
    #[must_use]
    pub fn trashed_until(&self, trashed: &Trashed) -> Option<DateTime<Utc>> {
        let after = self.destroy_after.filter(|after| *after > 0)?;
        let after = i64::try_from(after).ok().and_then(TimeDelta::try_seconds)?;
        Some(trashed.since.checked_add_signed(after).unwrap_or(DateTime::<Utc>::MAX_UTC))
    }

    /// Sets which snapshots are in the trash.
    pub fn set_trashed(&mut self, mut trashed: Vec<Trashed>) {
        trashed.sort_by_key(|trashed| trashed.guid);
        trashed.dedup_by_key(|trashed| trashed.guid);
        self.trashed = Some(trashed);
    }

    /// Adds what a listing that followed an order does not say, as far as it is known from before.
    pub fn complete_from(&mut self, before: Option<&Self>) {
        let Some(before) = before else { return };
        self.append_only = self.append_only.or(before.append_only);
        self.destroy_after = self.destroy_after.or(before.destroy_after);
        if self.trashed.is_none()
            && let Some(mut trashed) = before.trashed.clone()
        {
            trashed.retain(|trashed| self.snapshots.iter().any(|s| s.guid == trashed.guid && s.userrefs > 0));
            self.trashed = Some(trashed);
        }
    }

    /// How many of a snapshot's holds are not due to the trash.
    #[must_use]
    pub fn other_holds(&self, snapshot: &Snapshot) -> u32 {
        snapshot.userrefs.saturating_sub(u32::from(self.trashed(snapshot.guid).is_some()))
    }

    /// Whether it is a copy that was received raw, and so has the key of its source.
    #[must_use]
    pub fn is_raw_copy(&self) -> bool {
        self.encrypted && self.flags == Some(SendFlags::Raw)
    }

    /// Sorts snapshots and bookmarks as the type promises: by createtxg, then by guid. In ZFS, two snapshots of one
    /// dataset never share a createtxg, but they may in a catalog file.
    pub fn sort(&mut self) {
        self.snapshots.sort_by_key(|s| (s.createtxg, s.guid));
        self.bookmarks.sort_by(|a, b| (a.createtxg, a.guid, &a.name).cmp(&(b.createtxg, b.guid, &b.name)));
        self.not_written.sort();
    }

    /// The names of the snapshots that have any hold.
    #[must_use]
    pub fn held(&self) -> Vec<SnapName> {
        self.snapshots.iter().filter(|s| s.userrefs > 0).map(|s| s.name.clone()).collect()
    }

    /// The snapshots whose holds have to be looked at: those that are held, unless it is a copy on which there is only
    /// the one hold that every copy has, on its newest snapshot.
    pub fn held_by_unknown(&self) -> impl Iterator<Item = &Snapshot> {
        let holds: u64 = self.snapshots.iter().map(|s| u64::from(s.userrefs)).sum();
        let is_newest_held = self.newest().is_some_and(|newest| newest.userrefs > 0);
        let is_usual = self.flags.is_some() && (holds == 0 || holds == 1 && is_newest_held);
        self.snapshots.iter().filter(move |s| !is_usual && s.userrefs > 0)
    }

    /// The snapshot with this guid.
    #[must_use]
    pub fn by_guid(&self, guid: Guid) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.guid == guid)
    }

    /// The newest snapshot, whoever took it.
    #[must_use]
    pub fn newest(&self) -> Option<&Snapshot> {
        self.snapshots.last()
    }
}
