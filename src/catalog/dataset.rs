//! What a catalog knows of one dataset, and what changes do to it: the same for every catalog that keeps whole
//! datasets.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::catalog::Change;
use crate::model::{DatasetInventory, DatasetName, Guid, HostInventory, Marks, NotWritten, SnapName, Snapshot};

/// One dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dataset {
    /// Without marks of any kind; `None` while the dataset is not there.
    pub held: Option<DatasetInventory>,
    /// `#sent` and `#sync`, and when they were first made; also of snapshots that are not there.
    pub marks: BTreeMap<Guid, (Marks, DateTime<Utc>)>,
    /// `#NotWritten`.
    pub not_written: BTreeMap<SnapName, DateTime<Utc>>,
}

/// A snapshot that became history.
pub(super) struct Gone {
    pub name: SnapName,
    pub guid: Guid,
    pub marks: Marks,
    pub at: DateTime<Utc>,
}

/// Makes a change in an inventory, as a catalog would.
pub fn apply(host: &mut HostInventory, name: &DatasetName, change: Change) {
    let mut dataset = Dataset::default();
    if let Some(known) = host.datasets.remove(name) {
        dataset.put(known);
    }
    dataset.change(change);
    if let Some(now) = dataset.into_inventory() {
        host.datasets.insert(name.clone(), now);
    }
}

impl Dataset {
    /// Makes a change; what it destroyed is given back.
    pub fn change(&mut self, change: Change) -> Vec<Gone> {
        match change {
            Change::Listed(inventory) => self.put(inventory),
            Change::Gone => self.empty(),
            Change::Taken(snapshot) => self.taken(snapshot),
            Change::Mark { guid, marks, at } => return self.mark(guid, marks, at),
            Change::NotWritten(mark) => self.add_not_written(mark),
        }
        Vec::new()
    }

    fn add(&mut self, guid: Guid, marks: Marks, at: DateTime<Utc>) {
        if marks.sent || marks.sync {
            let (known, _) = self.marks.entry(guid).or_insert((Marks::default(), at));
            known.sent |= marks.sent;
            known.sync |= marks.sync;
        }
    }

    /// Replaces what the dataset holds; marks stay, and those of the listing are added.
    pub fn put(&mut self, mut inventory: DatasetInventory) {
        for snapshot in &mut inventory.snapshots {
            let marks = std::mem::take(&mut snapshot.marks);
            self.add(snapshot.guid, marks, snapshot.creation);
        }
        for mark in std::mem::take(&mut inventory.not_written) {
            self.add_not_written(mark);
        }
        inventory.sort();
        self.held = Some(inventory);
    }

    /// Takes the dataset from the inventory; its marks wait for it to come back.
    pub fn empty(&mut self) {
        self.held = None;
        self.not_written.clear();
    }

    fn taken(&mut self, mut snapshot: Snapshot) {
        let marks = std::mem::take(&mut snapshot.marks);
        self.add(snapshot.guid, marks, snapshot.creation);
        let held = self.held.get_or_insert_default();
        if held.by_guid(snapshot.guid).is_none() {
            held.snapshots.push(snapshot);
            held.sort();
        }
        held.written = Some(0);
    }

    fn add_not_written(&mut self, mark: NotWritten) {
        let at = self.not_written.entry(mark.name).or_insert(mark.at);
        *at = mark.at.max(*at);
    }

    fn mark(&mut self, guid: Guid, marks: Marks, at: DateTime<Utc>) -> Vec<Gone> {
        self.add(guid, marks, at);
        if !marks.deleted {
            return Vec::new();
        }
        let (last, _) = self.marks.remove(&guid).unwrap_or_default();
        let Some(held) = &mut self.held else { return Vec::new() };
        let gone = held.snapshots.extract_if(.., |one| one.guid == guid);
        gone.map(|one| Gone { name: one.name, guid, marks: Marks { deleted: true, ..last }, at }).collect()
    }

    /// Forgets what is older; marks of snapshots that are there have no age. Gives how many were forgotten.
    pub fn forget(&mut self, older_than: DateTime<Utc>) -> usize {
        let held: BTreeSet<Guid> = self.held.iter().flat_map(|held| &held.snapshots).map(|one| one.guid).collect();
        let before = self.marks.len() + self.not_written.len();
        self.marks.retain(|guid, (_, at)| held.contains(guid) || *at >= older_than);
        self.not_written.retain(|_, at| *at >= older_than);
        before - self.marks.len() - self.not_written.len()
    }

    /// Whether nothing is known any more.
    pub fn is_forgotten(&self) -> bool {
        self.held.is_none() && self.marks.is_empty() && self.not_written.is_empty()
    }

    /// The dataset as an inventory shows it, with its marks; `None` if it is not there.
    pub fn inventory(&self) -> Option<DatasetInventory> {
        self.clone().into_inventory()
    }

    /// The same of one that is not needed any more.
    pub fn into_inventory(self) -> Option<DatasetInventory> {
        let mut inventory = self.held?;
        if !self.marks.is_empty() {
            for snapshot in &mut inventory.snapshots {
                snapshot.marks = self.marks.get(&snapshot.guid).map(|(marks, _)| *marks).unwrap_or_default();
            }
        }
        inventory.not_written = self.not_written.into_iter().map(|(name, at)| NotWritten { name, at }).collect();
        Some(inventory)
    }
}
