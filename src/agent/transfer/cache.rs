//! What this host held when it was listed last, or dealt with since: a transfer that begins right after need not list its
//! datasets once more. Whatever has changed meanwhile is noticed as the stream is made, and then all is looked at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};

use crate::model::{DatasetInventory, DatasetName, SnapName, SnapshotId};
use crate::slave::receive::Around;
use crate::sys::clock;
use crate::zfs::{History, Known, Listed};

/// For how long a listing is good to plan by.
pub(crate) const FRESH: Duration = Duration::from_secs(30);

/// It; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListingCache(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What was listed as a whole, and when that began.
    listed: Known,
    began: Option<Moment>,
    /// What was dealt with since, with how many were before; without an inventory it is not known any more.
    later: BTreeMap<DatasetName, (u64, Option<Seen>)>,
    count: u64,
}

/// A moment, for how long ago it was and for what was taken before it.
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

/// A dataset as it was found since a moment.
#[derive(Clone, Debug)]
struct Seen {
    since: Moment,
    found: DatasetInventory,
    /// The snapshot that was taken before it was listed.
    taken: Option<SnapName>,
}

/// What a transfer within this host is planned by.
pub(crate) struct Sides {
    pub(crate) at: Instant,
    /// Whether there are all snapshots that are older than the one to be sent. A listing may lack one that was taken while
    /// it was made, and have another that was taken right after that.
    pub(crate) sees_all: bool,
    pub(crate) ours: DatasetInventory,
    pub(crate) theirs: Option<DatasetInventory>,
    pub(crate) around: Around,
}

impl ListingCache {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// What was listed as a whole.
    pub(crate) fn listed(&self) -> Known {
        Arc::clone(&self.state().listed)
    }

    /// All is about to be listed; what comes back is for [`set`](Self::set).
    pub(crate) fn begin(&self) -> (Moment, u64) {
        (Moment::now(), self.state().count)
    }

    /// All was listed. What was dealt with meanwhile is later than that.
    pub(crate) fn set(&self, (began, count): (Moment, u64), listed: &[Listed]) {
        let mut state = self.state();
        state.listed = Arc::new(listed.iter().cloned().collect());
        state.began = Some(began);
        state.later.retain(|_, (number, _)| *number >= count);
    }

    /// Takes it that this is what the host held, at some time.
    pub(crate) fn remember(&self, datasets: BTreeMap<DatasetName, DatasetInventory>) {
        let mut state = self.state();
        (state.listed, state.began) = (Arc::new(datasets), None);
    }

    /// A dataset was changed, and is as it was found since a moment; or nobody has looked.
    pub(crate) fn changed(&self, dataset: &DatasetName, found: Option<(Moment, &DatasetInventory)>) {
        let seen = found.map(|(since, found)| Seen { since, found: found.clone(), taken: None });
        self.state().note(dataset, seen);
    }

    /// A snapshot of a dataset was taken, and then listed what it has.
    pub(crate) fn taken(&self, dataset: &DatasetName, name: &SnapName, (snapshots, bookmarks): &History) {
        let mut state = self.state();
        let known = state.find(dataset).and_then(|(since, found, _)| Some((since, found?)));
        let seen = known.map(|(since, found)| Seen {
            since,
            found: DatasetInventory { snapshots: snapshots.clone(), bookmarks: bookmarks.clone(), ..found.clone() },
            taken: Some(name.clone()),
        });
        state.note(dataset, seen);
    }

    /// Nothing of it is to be planned by any more.
    pub(crate) fn doubt(&self) {
        let mut state = self.state();
        state.began = None;
        state.later.clear();
    }

    /// The two datasets, if what is known of them is fresh and leaves nothing open: the snapshot to be sent is there, and
    /// the other one can take it, or is yet to be created in a place that is there.
    pub(crate) fn sides(&self, source: &DatasetName, snapshot: SnapshotId, to: &DatasetName) -> Option<Sides> {
        let state = self.state();
        let (since, ours, taken) = state.find(source)?;
        let (ours, sent) =
            ours.and_then(|ours| Some((ours, ours.snapshots.iter().find(|s| s.guid.uuid() == snapshot)?)))?;
        // ZFS counts whole seconds.
        let sees_all = taken == Some(&sent.name) || sent.creation.timestamp() < since.time.timestamp();
        let (begun, theirs, _) = state.find(to)?;
        let around = match theirs {
            Some(theirs) => {
                let takes = theirs.newest().is_some_and(|newest| ours.by_guid(newest.guid).is_some());
                (takes && theirs.resume_token.is_none()).then(Around::default)?
            }
            None => {
                let (_, parent, _) = state.find(&to.parent()?)?;
                Around { encrypts: parent?.encrypted, has_parent: true }
            }
        };
        let at = since.at.min(begun.at);
        Some(Sides { at, sees_all, ours: ours.clone(), theirs: theirs.cloned(), around })
    }
}

impl State {
    fn note(&mut self, dataset: &DatasetName, seen: Option<Seen>) {
        self.later.insert(dataset.clone(), (self.count, seen));
        self.count += 1;
    }

    /// A dataset as it was when it was seen, and the snapshot that was taken right before; the inner `None` says that it
    /// was not there.
    fn find(&self, dataset: &DatasetName) -> Option<(Moment, Option<&DatasetInventory>, Option<&SnapName>)> {
        let (since, found, taken) = match self.later.get(dataset) {
            Some((_, later)) => later.as_ref().map(|seen| (seen.since, Some(&seen.found), seen.taken.as_ref()))?,
            None => {
                let found = self.listed.get(dataset);
                // What was not listed may lie where nothing was.
                let near = found.is_some() || dataset.parent().is_some_and(|parent| self.listed.contains_key(&parent));
                (self.began.filter(|_| near || self.is_new_below(dataset))?, found, None)
            }
        };
        (since.at.elapsed() < FRESH).then_some((since, found, taken))
    }

    /// Whether a dataset lies in one that was created since all was listed.
    fn is_new_below(&self, dataset: &DatasetName) -> bool {
        let parent = dataset.parent();
        parent.is_some_and(|parent| matches!(self.later.get(&parent), Some((_, Some(_)))))
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
    fn only_what_leaves_nothing_open_is_planned_by() {
        let held = ListingCache::default();
        let (a, copy, child) = (ds("tank/a"), ds("pool/copy"), ds("pool/copy/new"));
        let listing = [(a.clone(), with(&[1, 2])), (copy.clone(), with(&[1])), (ds("tank/b"), with(&[1, 2]))];
        let sides = |source: &DatasetName, guid, to: &DatasetName| held.sides(source, Guid(guid).uuid(), to);
        assert!(sides(&a, 2, &copy).is_none(), "nothing was listed");
        let began = held.begin();
        held.set(began, &listing);
        let found = sides(&a, 2, &copy).unwrap();
        assert_eq!((found.ours, found.theirs), (with(&[1, 2]), Some(with(&[1]))));
        assert!(sides(&a, 3, &copy).is_none(), "a snapshot that was taken since");
        assert!(sides(&a, 2, &ds("pool/other")).is_none(), "what surrounds it is not known");
        assert!(sides(&a, 2, &child).unwrap().around.has_parent);
        // A copy that has gone its own way is looked at first.
        held.changed(&copy, Some((Moment::now(), &with(&[1, 7]))));
        assert!(sides(&a, 2, &copy).is_none());
        held.changed(&copy, Some((Moment::now(), &with(&[1, 2]))));
        assert!(sides(&a, 2, &copy).is_some());
        held.changed(&copy, None);
        assert!(sides(&a, 2, &copy).is_none());
        held.doubt();
        assert!(sides(&a, 2, &copy).is_none() && sides(&ds("tank/b"), 2, &copy).is_none());
        // What is written down spares a listing, and is nothing to plan by.
        held.remember(BTreeMap::from(listing));
        assert!(held.listed().contains_key(&a) && sides(&a, 2, &copy).is_none());
    }

    #[test]
    fn what_was_taken_while_all_was_listed_may_have_others_before_it() {
        let held = ListingCache::default();
        let (a, copy) = (ds("tank/a"), ds("pool/copy"));
        let mut ours = with(&[1, 2, 3]);
        let began = held.begin();
        ours.snapshots[2].creation = began.0.time;
        held.set(began, &[(a.clone(), ours.clone()), (copy.clone(), with(&[1]))]);
        let sees_all = |guid: u64| held.sides(&a, Guid(guid).uuid(), &copy).unwrap().sees_all;
        assert!(sees_all(2) && !sees_all(3));
        held.taken(&a, &"s3".parse().unwrap(), &(ours.snapshots, Vec::new()));
        assert!(sees_all(3), "listed after it was there");
    }

    #[test]
    fn what_is_dealt_with_while_all_is_listed_is_later() {
        let held = ListingCache::default();
        let (a, copy) = (ds("tank/a"), ds("pool/copy"));
        let listing = [(a.clone(), with(&[1])), (copy.clone(), with(&[1]))];
        held.changed(&copy, None);
        let began = held.begin();
        held.changed(&a, None);
        held.set(began, &listing);
        assert!(held.sides(&a, Guid(1).uuid(), &copy).is_none());
        held.changed(&a, Some((Moment::now(), &with(&[1]))));
        assert!(held.sides(&a, Guid(1).uuid(), &copy).is_some(), "the copy was dealt with before");
        let history = (with(&[1, 3, 4]).snapshots, Vec::new());
        held.taken(&a, &"s4".parse().unwrap(), &history);
        let sides = held.sides(&a, Guid(4).uuid(), &copy).unwrap();
        assert!(sides.sees_all && sides.ours.by_guid(Guid(3)).is_some());
    }
}
