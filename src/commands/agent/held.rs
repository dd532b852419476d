//! What this host held when it was listed last, or dealt with since: a transfer that begins right after need not list its
//! datasets once more. Whatever has changed meanwhile is noticed as the stream is made, and then all is looked at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::commands::receiving::Around;
use crate::model::{DatasetInventory, DatasetName, Snapshot, SnapshotId};
use crate::zfs::{Known, Listed};

/// For how long a listing is good to plan by.
pub(super) const FRESH: Duration = Duration::from_secs(30);

/// It; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What was listed as a whole, and when that began.
    listed: Known,
    at: Option<Instant>,
    /// What was dealt with since, with how many were before; without an inventory it is not known any more.
    later: BTreeMap<DatasetName, (u64, Option<(Instant, DatasetInventory)>)>,
    count: u64,
}

/// What a transfer within this host is planned by.
pub(super) struct Sides {
    pub(super) at: Instant,
    pub(super) ours: DatasetInventory,
    pub(super) theirs: Option<DatasetInventory>,
    pub(super) around: Around,
}

impl Held {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was listed as a whole.
    pub(super) fn listed(&self) -> Known {
        Arc::clone(&self.state().listed)
    }

    /// All is about to be listed; what comes back is for [`set`](Self::set).
    pub(super) fn begin(&self) -> (Instant, u64) {
        (Instant::now(), self.state().count)
    }

    /// All was listed. What was dealt with meanwhile is later than that.
    pub(super) fn set(&self, (at, count): (Instant, u64), listed: &[Listed]) {
        let mut state = self.state();
        state.listed = Arc::new(listed.iter().cloned().collect());
        state.at = Some(at);
        state.later.retain(|_, (number, _)| *number >= count);
    }

    /// Takes it that this is what the host held, at some time.
    pub(super) fn remember(&self, datasets: BTreeMap<DatasetName, DatasetInventory>) {
        let mut state = self.state();
        (state.listed, state.at) = (Arc::new(datasets), None);
    }

    /// A dataset was changed, and is as it was found since `at`; or nobody has looked.
    pub(super) fn changed(&self, dataset: &DatasetName, found: Option<(Instant, &DatasetInventory)>) {
        let mut state = self.state();
        let number = state.count;
        state.count += 1;
        state.later.insert(dataset.clone(), (number, found.map(|(at, found)| (at, found.clone()))));
    }

    /// A snapshot of a dataset was taken.
    pub(super) fn taken(&self, dataset: &DatasetName, snapshot: &Snapshot) {
        let known = self.state().find(dataset).and_then(|(at, found)| Some((at, found?.clone())));
        let known = known.map(|(at, mut found)| {
            if found.by_guid(snapshot.guid).is_none() {
                found.snapshots.push(snapshot.clone());
            }
            (at, found)
        });
        self.changed(dataset, known.as_ref().map(|(at, found)| (*at, found)));
    }

    /// Nothing of it is to be planned by any more.
    pub(super) fn doubt(&self) {
        let mut state = self.state();
        state.at = None;
        state.later.clear();
    }

    /// The two datasets, if what is known of them is fresh and leaves nothing open: the snapshot to be sent is there, and
    /// the other one can take it, or is yet to be created in a place that is there.
    pub(super) fn sides(&self, source: &DatasetName, snapshot: SnapshotId, to: &DatasetName) -> Option<Sides> {
        let state = self.state();
        let (since, ours) = state.find(source)?;
        let ours = ours.filter(|ours| ours.snapshots.iter().any(|s| s.guid.uuid() == snapshot))?;
        let (at, theirs) = state.find(to)?;
        let around = match theirs {
            Some(theirs) => {
                let takes = theirs.newest().is_some_and(|newest| ours.by_guid(newest.guid).is_some());
                (takes && theirs.resume_token.is_none()).then(Around::default)?
            }
            None => {
                let (_, parent) = state.find(&to.parent()?)?;
                Around { encrypts: parent?.encrypted, has_parent: true }
            }
        };
        Some(Sides { at: since.min(at), ours: ours.clone(), theirs: theirs.cloned(), around })
    }
}

impl State {
    /// A dataset as it was when it was seen; the inner `None` says that it was not there.
    fn find(&self, dataset: &DatasetName) -> Option<(Instant, Option<&DatasetInventory>)> {
        let (at, found) = match self.later.get(dataset) {
            Some((_, later)) => later.as_ref().map(|(at, found)| (*at, Some(found)))?,
            None => {
                let found = self.listed.get(dataset);
                // What was not listed may lie where nothing was.
                let near = found.is_some() || dataset.parent().is_some_and(|parent| self.listed.contains_key(&parent));
                (self.at.filter(|_| near || self.is_new_below(dataset))?, found)
            }
        };
        (at.elapsed() < FRESH).then_some((at, found))
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
    use crate::model::Guid;

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
        let held = Held::default();
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
        held.changed(&copy, Some((Instant::now(), &with(&[1, 7]))));
        assert!(sides(&a, 2, &copy).is_none());
        held.changed(&copy, Some((Instant::now(), &with(&[1, 2]))));
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
    fn what_is_dealt_with_while_all_is_listed_is_later() {
        let held = Held::default();
        let (a, copy) = (ds("tank/a"), ds("pool/copy"));
        let listing = [(a.clone(), with(&[1])), (copy.clone(), with(&[1]))];
        held.changed(&copy, None);
        let began = held.begin();
        held.changed(&a, None);
        held.set(began, &listing);
        assert!(held.sides(&a, Guid(1).uuid(), &copy).is_none());
        held.changed(&a, Some((Instant::now(), &with(&[1]))));
        assert!(held.sides(&a, Guid(1).uuid(), &copy).is_some(), "the copy was dealt with before");
        held.taken(&a, &with(&[4]).snapshots[0]);
        assert!(held.sides(&a, Guid(4).uuid(), &copy).is_some());
    }
}
