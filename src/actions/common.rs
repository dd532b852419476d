//! What the decisions about taking, sending and destroying share: a policy's snapshots in a dataset, the slots of its
//! schedule, and what two datasets have in common.
//!
//! Snapshots in different datasets are compared by guid alone.

use chrono::{DateTime, Utc};

use crate::model::{DatasetInventory, Guid, Prefix, SnapName};

/// What is known about a dataset on another host.
#[derive(Clone, Copy, Debug)]
pub enum KnownDataset<'a> {
    /// Its host or its pool has not been listed. In a pass, this includes a host that was listed in an earlier pass and
    /// has not answered in this one.
    Unlisted,
    /// Its host was listed and does not have it.
    Absent,
    /// Its host was listed and has it.
    Present(&'a DatasetInventory),
}

/// A snapshot of one policy, with the fields on which decisions depend.
#[derive(Clone, Copy, Debug)]
pub(super) struct PolicySnapshot {
    /// Its index in the dataset's inventory.
    pub index: u32,
    pub guid: Guid,
    pub createtxg: u64,
    pub creation: DateTime<Utc>,
    /// The time in its name.
    pub stamp: DateTime<Utc>,
}

/// Collects the snapshots of a dataset that have a policy's prefix, oldest first. Returns the number of its other
/// snapshots. Snapshots that an order has destroyed, which only the catalog still has, are left out of both.
pub(super) fn policy_snapshots(dataset: &DatasetInventory, prefix: &Prefix, into: &mut Vec<PolicySnapshot>) -> usize {
    into.clear();
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
        into.push(PolicySnapshot { index, guid, createtxg, creation, stamp });
    }
    // The inventory promises this order. If it is violated nevertheless, the wrong snapshot could count as the newest,
    // and the base of the next increment could be destroyed.
    if !into.is_sorted_by_key(|s| (s.createtxg, s.guid)) {
        into.sort_by_key(|s| (s.createtxg, s.guid));
    }
    others
}

/// The slots of a schedule before and after now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slots {
    pub last: Option<DateTime<Utc>>,
    pub next: Option<DateTime<Utc>>,
}

/// A dataset's snapshots, sorted by guid.
#[derive(Clone, Debug, Default)]
pub(super) struct SnapshotsByGuid<'a> {
    sorted: Vec<(Guid, &'a SnapName)>,
}

impl<'a> SnapshotsByGuid<'a> {
    pub fn of(dataset: &'a DatasetInventory) -> Self {
        let live = dataset.snapshots.iter().filter(|s| !s.marks.deleted);
        let mut sorted: Vec<_> = live.map(|s| (s.guid, &s.name)).collect();
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

/// A snapshot or bookmark of a source from which an increment can be sent to a destination.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommonPoint<'a> {
    pub guid: Guid,
    /// Its createtxg on the source.
    pub createtxg: u64,
    /// Its name on the source.
    pub name: &'a SnapName,
}

/// The newest points that a source and a destination have in common.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NewestCommon<'a> {
    /// The newest snapshot that both sides have.
    pub snapshot: Option<CommonPoint<'a>>,
    /// The newest point of the source, snapshot or bookmark, whose guid a snapshot of the destination has. It is
    /// `snapshot` or a newer bookmark.
    pub any: Option<CommonPoint<'a>>,
}

impl<'a> NewestCommon<'a> {
    pub fn of(source: &'a DatasetInventory, destination: &SnapshotsByGuid<'_>) -> Self {
        let live = source.snapshots.iter().filter(|s| !s.marks.deleted);
        let snapshots = live.map(|s| CommonPoint { guid: s.guid, createtxg: s.createtxg, name: &s.name });
        let bookmarks = source.bookmarks.iter();
        let bookmarks = bookmarks.map(|b| CommonPoint { guid: b.guid, createtxg: b.createtxg, name: &b.name });
        let snapshot = snapshots.filter(|p| destination.has(p.guid)).max_by_key(|p| (p.createtxg, p.guid));
        let bookmark = bookmarks.filter(|p| destination.has(p.guid)).max_by_key(|p| (p.createtxg, p.guid));
        let newer = bookmark.filter(|b| snapshot.is_none_or(|s| b.createtxg > s.createtxg));
        Self { snapshot, any: newer.or(snapshot) }
    }
}
