//! What a catalog knows about one dataset, and how a [`Change`] alters it. Catalogs that store whole datasets share
//! this code.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::catalog::Change;
use crate::model::{DatasetInventory, DatasetName, Guid, HostInventory, Marks, NotWritten, Prefix, SnapName, Snapshot};

/// What a catalog knows of one dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CatalogDataset {
    /// The latest listing, without any marks; `None` while the dataset does not exist.
    pub listed: Option<DatasetInventory>,
    /// `#sent` and `#sync`, and when a snapshot was first marked. Includes snapshots that do not exist.
    pub marks: BTreeMap<Guid, (Marks, DateTime<Utc>)>,
    /// `#NotWritten`, and when the mark was last made.
    pub not_written: BTreeMap<SnapName, DateTime<Utc>>,
}

/// A snapshot that an order destroyed, to be recorded in the history.
pub(super) struct DestroyedSnapshot {
    pub name: SnapName,
    pub guid: Guid,
    pub marks: Marks,
    pub at: DateTime<Utc>,
}

/// Applies a change to an inventory, as a catalog would.
pub(crate) fn apply(host: &mut HostInventory, name: &DatasetName, change: Change) {
    let mut dataset = CatalogDataset::default();
    if let Some(known) = host.datasets.remove(name) {
        dataset.set_listed(known);
    }
    dataset.apply(change);
    if let Some(now) = dataset.into_inventory() {
        host.datasets.insert(name.clone(), now);
    }
}

impl CatalogDataset {
    /// Applies a change, and returns the snapshots that it moved to the history.
    pub fn apply(&mut self, change: Change) -> Vec<DestroyedSnapshot> {
        match change {
            Change::Listed(inventory) => self.set_listed(inventory),
            Change::Gone => self.clear_listed(),
            Change::Taken(snapshot) => self.add_snapshot(snapshot),
            Change::Mark { guid, marks, at } => return self.mark(guid, marks, at),
            Change::NotWritten(mark) => self.add_not_written(mark),
        }
        Vec::new()
    }

    fn add_marks(&mut self, guid: Guid, marks: Marks, at: DateTime<Utc>) {
        if marks.sent || marks.sync {
            let (known, _) = self.marks.entry(guid).or_insert((Marks::default(), at));
            known.sent |= marks.sent;
            known.sync |= marks.sync;
        }
    }

    /// Replaces the listing. Marks are kept, and those in the listing are added.
    pub fn set_listed(&mut self, mut inventory: DatasetInventory) {
        for snapshot in &mut inventory.snapshots {
            let marks = std::mem::take(&mut snapshot.marks);
            self.add_marks(snapshot.guid, marks, snapshot.creation);
        }
        for mark in std::mem::take(&mut inventory.not_written) {
            self.add_not_written(mark);
        }
        inventory.sort();
        // The listing that follows an order does not say what local.json forbids, and what is in the trash.
        inventory.complete_from(self.listed.as_ref());
        self.listed = Some(inventory);
    }

    /// Removes the dataset from the inventory. Its marks are kept in case it comes back.
    pub fn clear_listed(&mut self) {
        self.listed = None;
        self.not_written.clear();
    }

    fn add_snapshot(&mut self, mut snapshot: Snapshot) {
        let marks = std::mem::take(&mut snapshot.marks);
        self.add_marks(snapshot.guid, marks, snapshot.creation);
        let listed = self.listed.get_or_insert_default();
        if listed.by_guid(snapshot.guid).is_none() {
            listed.snapshots.push(snapshot);
            listed.sort();
        }
        listed.written = Some(0);
    }

    fn add_not_written(&mut self, mark: NotWritten) {
        let at = self.not_written.entry(mark.name).or_insert(mark.at);
        *at = mark.at.max(*at);
    }

    fn mark(&mut self, guid: Guid, marks: Marks, at: DateTime<Utc>) -> Vec<DestroyedSnapshot> {
        self.add_marks(guid, marks, at);
        if !marks.deleted {
            return Vec::new();
        }
        let (last_marks, _) = self.marks.remove(&guid).unwrap_or_default();
        let Some(listed) = &mut self.listed else { return Vec::new() };
        let destroyed = listed.snapshots.extract_if(.., |snapshot| snapshot.guid == guid);
        let marks = Marks { deleted: true, ..last_marks };
        destroyed.map(|snapshot| DestroyedSnapshot { name: snapshot.name, guid, marks, at }).collect()
    }

    /// Deletes marks older than `older_than`, except those of existing snapshots. Returns how many were deleted.
    pub fn forget(&mut self, older_than: DateTime<Utc>) -> usize {
        let existing: BTreeSet<Guid> =
            self.listed.iter().flat_map(|listed| &listed.snapshots).map(|snapshot| snapshot.guid).collect();
        let before = self.marks.len() + self.not_written.len();
        self.marks.retain(|guid, (_, at)| existing.contains(guid) || *at >= older_than);
        let newest = newest_of_prefix(&self.not_written);
        self.not_written.retain(|name, at| *at >= older_than || newest.contains(name));
        before - self.marks.len() - self.not_written.len()
    }

    /// The latest time at which anything is known to have been recorded, if there is one.
    pub fn last_recorded(&self) -> Option<DateTime<Utc>> {
        let unchanged = self.listed.as_ref().and_then(|listed| listed.unchanged);
        let listed = unchanged.and_then(|unchanged| DateTime::from_timestamp(unchanged.listed, 0));
        self.marks.values().map(|(_, at)| *at).chain(self.not_written.values().copied()).chain(listed).max()
    }

    /// Whether nothing is known any more.
    pub fn is_empty(&self) -> bool {
        self.listed.is_none() && self.marks.is_empty() && self.not_written.is_empty()
    }

    /// Returns the dataset with its marks, as an inventory shows it, or `None` if the dataset does not exist.
    #[cfg(any(test, feature = "test-support"))]
    pub fn inventory(&self) -> Option<DatasetInventory> {
        self.clone().into_inventory()
    }

    /// Converts into what an inventory shows, without a copy.
    pub fn into_inventory(self) -> Option<DatasetInventory> {
        let mut inventory = self.listed?;
        if !self.marks.is_empty() {
            for snapshot in &mut inventory.snapshots {
                snapshot.marks = self.marks.get(&snapshot.guid).map(|(marks, _)| *marks).unwrap_or_default();
            }
        }
        inventory.not_written = self.not_written.into_iter().map(|(name, at)| NotWritten { name, at }).collect();
        Some(inventory)
    }
}

/// The newest `#NotWritten` mark of each prefix. It is kept whatever its age: a policy with a rare schedule would
/// otherwise seem to have missed its slots.
pub(super) fn newest_of_prefix(marks: &BTreeMap<SnapName, DateTime<Utc>>) -> BTreeSet<SnapName> {
    let mut newest: BTreeMap<Prefix, (&SnapName, DateTime<Utc>)> = BTreeMap::new();
    for (name, at) in marks {
        let Some(prefix) = Prefix::of(name) else { continue };
        let known = newest.entry(prefix).or_insert((name, *at));
        if known.1 < *at {
            *known = (name, *at);
        }
    }
    newest.into_values().map(|(name, _)| name.clone()).collect()
}
