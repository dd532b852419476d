//! Caches this host's listings, so that a transfer that begins right after a listing need not list its datasets again.
//!
//! A cached listing may be out of date. A transfer that was planned from a cached listing and fails before any byte was
//! sent is planned again from a new listing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;

use crate::model::{DatasetInventory, DatasetName, SnapName, SnapshotId};
use crate::slave::receive::Surroundings;
use crate::sys::clock;
use crate::zfs::{History, Known, Listed};

/// How old a listing may be for a transfer to be planned from it.
pub(crate) const FRESH: Duration = Duration::from_secs(30);

/// The cached listings of this host. All clones of this value share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListingCache(Arc<Mutex<Listings>>);

#[derive(Debug, Default)]
struct Listings {
    /// The last listing of the whole host.
    whole: Known,
    /// When that listing began; `None` if it is too old or too unreliable to plan from.
    began: Option<Moment>,
    /// The datasets that orders have changed since then, each with the number of its change.
    changed: BTreeMap<DatasetName, (u64, AfterChange)>,
    /// The number of changes so far.
    changes: u64,
}

/// A moment, both as a wall clock time and as an instant for measuring durations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    at: Instant,
    time: DateTime<Utc>,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { at: Instant::now(), time: clock::now() }
    }
}

/// What is known about a dataset after an order changed it.
#[derive(Clone, Debug)]
enum AfterChange {
    Unknown,
    Listed {
        since: Moment,
        inventory: Box<DatasetInventory>,
        /// The snapshot that was taken right before the listing.
        taken: Option<SnapName>,
    },
}

/// What the cache knows about a dataset.
enum Lookup<'a> {
    /// No listing of it is fresh.
    Unknown,
    /// It did not exist when it was listed.
    Absent { since: Moment },
    /// It existed when it was listed.
    Present { since: Moment, inventory: &'a DatasetInventory, taken: Option<&'a SnapName> },
}

/// The source and the destination of a transfer, as listed before it begins.
pub(crate) struct Sides {
    /// When the older of the two listings was made.
    pub(crate) at: Instant,
    pub(crate) from_cache: bool,
    /// Whether `ours` certainly has every snapshot that is older than the one to be sent. A listing may lack a snapshot
    /// that was taken while the listing ran, and still have the next one.
    pub(crate) sees_all: bool,
    /// The source.
    pub(crate) ours: DatasetInventory,
    /// The destination; `None` if it does not exist, or is on another host.
    pub(crate) theirs: Option<DatasetInventory>,
    /// The datasets above the destination.
    pub(crate) surroundings: Surroundings,
}

impl ListingCache {
    /// The last listing of the whole host.
    pub(crate) fn listed(&self) -> Known {
        Arc::clone(&self.0.lock().whole)
    }

    /// Begins a listing of the whole host. Pass the result to [`set`](Self::set) together with the listing.
    pub(crate) fn begin(&self) -> (Moment, u64) {
        (Moment::now(), self.0.lock().changes)
    }

    /// Stores a listing of the whole host. Changes that were made while the listing ran count as newer.
    pub(crate) fn set(&self, (began, changes): (Moment, u64), listed: &[Listed]) {
        let mut listings = self.0.lock();
        listings.whole = Arc::new(listed.iter().cloned().collect());
        listings.began = Some(began);
        listings.changed.retain(|_, (number, _)| *number >= changes);
        let Listings { whole, changed, .. } = &mut *listings;
        changed.keys().for_each(|dataset| list_again(whole, dataset));
    }

    /// Stores an older listing. [`listed`](Self::listed) returns it, but no transfer is planned from it.
    pub(crate) fn remember(&self, datasets: BTreeMap<DatasetName, DatasetInventory>) {
        let mut listings = self.0.lock();
        (listings.whole, listings.began) = (Arc::new(datasets), None);
    }

    /// Forgets a dataset that was changed and has not been listed since.
    pub(crate) fn invalidate(&self, dataset: &DatasetName) {
        self.0.lock().change(dataset, AfterChange::Unknown);
    }

    /// Has the next listing of the whole host list the snapshots of a dataset again, although ZFS does not consider them
    /// changed: their holds were.
    pub(crate) fn list_again(&self, dataset: &DatasetName) {
        list_again(&mut self.0.lock().whole, dataset);
    }

    /// Forgets everything that transfers could be planned from.
    pub(crate) fn invalidate_all(&self) {
        let mut listings = self.0.lock();
        listings.began = None;
        listings.changed.clear();
    }

    /// Stores a dataset that was changed, and listed after that.
    pub(crate) fn update(&self, dataset: &DatasetName, since: Moment, inventory: &DatasetInventory) {
        let listed = AfterChange::Listed { since, inventory: Box::new(inventory.clone()), taken: None };
        self.0.lock().change(dataset, listed);
    }

    /// Stores the history of a dataset that was listed right after the snapshot `name` of it was taken.
    pub(crate) fn taken(&self, dataset: &DatasetName, name: &SnapName, (snapshots, bookmarks): &History) {
        let mut listings = self.0.lock();
        let change = match listings.find(dataset) {
            Lookup::Present { since, inventory, .. } => {
                let (snapshots, bookmarks) = (snapshots.clone(), bookmarks.clone());
                let inventory = DatasetInventory { snapshots, bookmarks, ..inventory.clone() };
                AfterChange::Listed { since, inventory: Box::new(inventory), taken: Some(name.clone()) }
            }
            Lookup::Unknown | Lookup::Absent { .. } => AfterChange::Unknown,
        };
        listings.change(dataset, change);
    }

    /// Both sides of a transfer within this host, if the cache knows them well enough: the source has the snapshot, and
    /// the destination can take the next stream, or is to be created below an existing dataset.
    pub(crate) fn sides(&self, source: &DatasetName, snapshot: SnapshotId, to: &DatasetName) -> Option<Sides> {
        let listings = self.0.lock();
        let Lookup::Present { since, inventory: ours, taken } = listings.find(source) else { return None };
        let sent = ours.snapshots.iter().find(|s| s.guid.uuid() == snapshot)?;
        // ZFS stores creation times in whole seconds.
        let sees_all = taken == Some(&sent.name) || sent.creation.timestamp() < since.time.timestamp();
        let (listed, theirs, surroundings) = match listings.find(to) {
            Lookup::Unknown => return None,
            Lookup::Present { since, inventory: theirs, .. } => {
                let takes_increment = theirs.newest().is_some_and(|newest| ours.by_guid(newest.guid).is_some());
                if !takes_increment || theirs.resume_token.is_some() || theirs.encrypted {
                    return None;
                }
                (since, Some(theirs), Surroundings::default())
            }
            Lookup::Absent { since } => {
                let Lookup::Present { inventory: parent, .. } = listings.find(&to.parent()?) else { return None };
                (since, None, Surroundings::below(parent))
            }
        };
        let at = since.at.min(listed.at);
        let (ours, theirs) = (ours.clone(), theirs.cloned());
        Some(Sides { at, from_cache: true, sees_all, ours, theirs, surroundings })
    }
}

fn list_again(whole: &mut Known, dataset: &DatasetName) {
    if whole.get(dataset).is_some_and(|known| known.unchanged.is_some())
        && let Some(known) = Arc::make_mut(whole).get_mut(dataset)
    {
        known.unchanged = None;
    }
}

impl Listings {
    fn change(&mut self, dataset: &DatasetName, change: AfterChange) {
        self.changed.insert(dataset.clone(), (self.changes, change));
        self.changes += 1;
    }

    fn find(&self, dataset: &DatasetName) -> Lookup<'_> {
        let found = match self.changed.get(dataset) {
            Some((_, AfterChange::Unknown)) => Lookup::Unknown,
            Some((_, AfterChange::Listed { since, inventory, taken })) => {
                Lookup::Present { since: *since, inventory, taken: taken.as_ref() }
            }
            None => self.find_in_whole(dataset),
        };
        match &found {
            Lookup::Absent { since } | Lookup::Present { since, .. } if since.at.elapsed() >= FRESH => Lookup::Unknown,
            _ => found,
        }
    }

    fn find_in_whole(&self, dataset: &DatasetName) -> Lookup<'_> {
        let Some(since) = self.began else { return Lookup::Unknown };
        match self.whole.get(dataset) {
            Some(inventory) => Lookup::Present { since, inventory, taken: None },
            // A dataset is known to be absent only if its parent was listed or created. Elsewhere, perhaps nothing was
            // listed.
            None if self.has_known_parent(dataset) => Lookup::Absent { since },
            None => Lookup::Unknown,
        }
    }

    fn has_known_parent(&self, dataset: &DatasetName) -> bool {
        dataset.parent().is_some_and(|parent| {
            let was_created = matches!(self.changed.get(&parent), Some((_, AfterChange::Listed { .. })));
            was_created || self.whole.contains_key(&parent)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Guid, Snapshot};

    fn ds(text: &str) -> DatasetName {
        text.parse().unwrap()
    }

    fn with(guids: &[u64]) -> DatasetInventory {
        let snapshot = |guid: &u64| Snapshot {
            guid: Guid(*guid),
            name: format!("s{guid}").parse().unwrap(),
            createtxg: *guid,
            creation: chrono::DateTime::UNIX_EPOCH,
            userrefs: 0,
            has_clones: false,
            used: 0,
            marks: crate::model::Marks::default(),
        };
        DatasetInventory { snapshots: guids.iter().map(snapshot).collect(), ..DatasetInventory::default() }
    }

    #[test]
    fn sides_are_found_only_if_listings_are_fresh_and_sufficient() {
        let cache = ListingCache::default();
        let (a, copy, child) = (ds("tank/a"), ds("pool/copy"), ds("pool/copy/new"));
        let listing = [(a.clone(), with(&[1, 2])), (copy.clone(), with(&[1])), (ds("tank/b"), with(&[1, 2]))];
        let sides = |source: &DatasetName, guid, to: &DatasetName| cache.sides(source, Guid(guid).uuid(), to);
        assert!(sides(&a, 2, &copy).is_none(), "nothing was listed");
        let began = cache.begin();
        cache.set(began, &listing);
        let found = sides(&a, 2, &copy).unwrap();
        assert_eq!((found.ours, found.theirs), (with(&[1, 2]), Some(with(&[1]))));
        assert!(sides(&a, 3, &copy).is_none(), "the snapshot was taken since");
        assert!(sides(&a, 2, &ds("pool/other")).is_none(), "its parent is unknown");
        assert!(sides(&a, 2, &child).unwrap().surroundings.has_parent);
        // A diverged copy has to be listed again before a transfer.
        cache.update(&copy, Moment::now(), &with(&[1, 7]));
        assert!(sides(&a, 2, &copy).is_none());
        cache.update(&copy, Moment::now(), &with(&[1, 2]));
        assert!(sides(&a, 2, &copy).is_some());
        cache.invalidate(&copy);
        assert!(sides(&a, 2, &copy).is_none());
        cache.invalidate_all();
        assert!(sides(&a, 2, &copy).is_none() && sides(&ds("tank/b"), 2, &copy).is_none());
        // With a remembered listing, unchanged datasets need not be listed again, but no transfer is planned from it.
        cache.remember(BTreeMap::from(listing));
        assert!(cache.listed().contains_key(&a) && sides(&a, 2, &copy).is_none());
    }

    #[test]
    fn snapshot_taken_during_listing_may_have_unseen_predecessors() {
        let cache = ListingCache::default();
        let (a, copy) = (ds("tank/a"), ds("pool/copy"));
        let mut ours = with(&[1, 2, 3]);
        let began = cache.begin();
        ours.snapshots[2].creation = began.0.time;
        cache.set(began, &[(a.clone(), ours.clone()), (copy.clone(), with(&[1]))]);
        let sees_all = |guid: u64| cache.sides(&a, Guid(guid).uuid(), &copy).unwrap().sees_all;
        assert!(sees_all(2) && !sees_all(3));
        cache.taken(&a, &"s3".parse().unwrap(), &(ours.snapshots, Vec::new()));
        assert!(sees_all(3), "listed after it was taken");
    }

    #[test]
    fn change_during_listing_is_newer_than_listing() {
        let cache = ListingCache::default();
        let (a, copy) = (ds("tank/a"), ds("pool/copy"));
        let listing = [(a.clone(), with(&[1])), (copy.clone(), with(&[1]))];
        cache.invalidate(&copy);
        let began = cache.begin();
        cache.invalidate(&a);
        cache.set(began, &listing);
        assert!(cache.sides(&a, Guid(1).uuid(), &copy).is_none());
        cache.update(&a, Moment::now(), &with(&[1]));
        assert!(cache.sides(&a, Guid(1).uuid(), &copy).is_some(), "the copy was changed before the listing");
        let history = (with(&[1, 3, 4]).snapshots, Vec::new());
        cache.taken(&a, &"s4".parse().unwrap(), &history);
        let sides = cache.sides(&a, Guid(4).uuid(), &copy).unwrap();
        assert!(sides.sees_all && sides.ours.by_guid(Guid(3)).is_some());
    }
}
