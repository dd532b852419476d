//! What two datasets have in common, by guid alone.

use chrono::{DateTime, Utc};

use crate::model::{DatasetInventory, Guid, Prefix, SnapName};

/// What is known of a dataset on another host.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// Its host has not been listed.
    Unlisted,
    /// Its host has been listed and does not have it.
    Absent,
    /// This is what it holds.
    There(&'a DatasetInventory),
}

/// A snapshot of one policy, taken out of its dataset's inventory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    /// Its index in the inventory.
    pub index: u32,
    pub guid: Guid,
    pub createtxg: u64,
    pub creation: DateTime<Utc>,
    /// The moment in its name.
    pub stamp: DateTime<Utc>,
}

/// Collects a policy's snapshots of a dataset, oldest first, and counts those with other names. What was
/// destroyed by an order and is only remembered is not there.
pub(super) fn own_snapshots(dataset: &DatasetInventory, prefix: &Prefix, own: &mut Vec<Own>) -> usize {
    own.clear();
    let mut others = 0;
    for (index, snapshot) in (0..).zip(&dataset.snapshots) {
        if snapshot.marks.deleted {
            continue;
        }
        let Some(stamp) = prefix.time_in(&snapshot.name) else {
            others += 1;
            continue;
        };
        let (guid, createtxg, creation) = (snapshot.guid, snapshot.createtxg, snapshot.creation);
        own.push(Own { index, guid, createtxg, creation, stamp });
    }
    // The inventory promises this order; where it is broken, a wrong "newest" could cost a base.
    if !own.is_sorted_by_key(|s| (s.createtxg, s.guid)) {
        own.sort_by_key(|s| (s.createtxg, s.guid));
    }
    others
}

/// A dataset's snapshots by guid.
#[derive(Clone, Debug, Default)]
pub(super) struct ByGuid<'a> {
    sorted: Vec<(Guid, &'a SnapName)>,
}

impl<'a> ByGuid<'a> {
    pub fn of(dataset: &'a DatasetInventory) -> Self {
        let there = dataset.snapshots.iter().filter(|s| !s.marks.deleted);
        let mut sorted: Vec<_> = there.map(|s| (s.guid, &s.name)).collect();
        sorted.sort_unstable_by_key(|(guid, _)| *guid);
        Self { sorted }
    }

    pub fn name_of(&self, guid: Guid) -> Option<&'a SnapName> {
        let at = self.sorted.binary_search_by_key(&guid, |(guid, _)| *guid).ok()?;
        Some(self.sorted[at].1)
    }

    pub fn has(&self, guid: Guid) -> bool {
        self.name_of(guid).is_some()
    }
}

/// The newest point from which an increment can be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base<'a> {
    pub guid: Guid,
    /// On the source.
    pub createtxg: u64,
    /// On the source.
    pub name: &'a SnapName,
}

/// The newest common points of a source and a destination.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Common<'a> {
    /// Among snapshots on both sides.
    pub snapshot: Option<Base<'a>>,
    /// Among the source's snapshots and bookmarks: the same or a newer one.
    pub any: Option<Base<'a>>,
}

impl<'a> Common<'a> {
    pub fn of(source: &'a DatasetInventory, destination: &ByGuid<'_>) -> Self {
        let live = source.snapshots.iter().filter(|s| !s.marks.deleted);
        let snapshots = live.map(|s| Base { guid: s.guid, createtxg: s.createtxg, name: &s.name });
        let bookmarks = source.bookmarks.iter().map(|b| Base { guid: b.guid, createtxg: b.createtxg, name: &b.name });
        let snapshot = snapshots.filter(|b| destination.has(b.guid)).max_by_key(|b| (b.createtxg, b.guid));
        let bookmark = bookmarks.filter(|b| destination.has(b.guid)).max_by_key(|b| (b.createtxg, b.guid));
        let newer = bookmark.filter(|b| snapshot.is_none_or(|s| b.createtxg > s.createtxg));
        Self { snapshot, any: newer.or(snapshot) }
    }
}
