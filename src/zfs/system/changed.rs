//! Lists only what has changed. Listing the snapshots is most of the cost of a listing, and most datasets have not
//! changed since the previous one.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{DatasetInventory, DatasetName, HostListing, Marks, Unchanged};
use crate::sys::{clock, runtime};
use crate::zfs::parse::Histories;
use crate::zfs::system::runner::Runner;
use crate::zfs::{Depth, Known, Listed, ZfsError, argv};

/// Seconds after which snapshots are listed again in any case: `snapshots_changed` does not reflect changes of
/// bookmarks and holds, nor renamed snapshots.
const MAX_AGE: i64 = 3600;
/// How many datasets one command names at most. `zfs list` prints nothing before it has found everything, so the time
/// limit of a command is for this many.
const MOST_NAMED: usize = 500;
/// How many such commands run at a time for one pool.
const CONCURRENT_BATCHES: usize = 2;

/// Whether the snapshots in `known` are still those of the dataset. `now` is the dataset as it was listed at the time
/// `at`, without its snapshots; `changed` is its `snapshots_changed`.
fn is_current(known: &DatasetInventory, now: &DatasetInventory, changed: Option<i64>, at: i64) -> bool {
    let (Some(unchanged), Some(changed)) = (known.unchanged, changed) else { return false };
    // If the guid or the origin differs, this is another dataset of the same name, or the dataset was promoted and has
    // taken over snapshots.
    known.guid.is_some()
        && (known.guid, &known.origin) == (now.guid, &now.origin)
        && (unchanged.from..=unchanged.to).contains(&changed)
        && (unchanged.listed..unchanged.listed + MAX_AGE).contains(&at)
        // A hold or a clone keeps a snapshot from being pruned, and may be gone by now, so the snapshots are listed
        // again. This does not matter for the newest snapshot, which is never pruned, and for what is in the trash,
        // because its holds are listed in any case.
        && known.snapshots.iter().rev().skip(1).all(|snapshot| known.other_holds(snapshot) == 0 && !snapshot.has_clones)
}

impl Runner {
    /// Lists datasets with everything below them, several pools at a time. Snapshots that are current in `known` are
    /// not listed again.
    pub(super) async fn list_pools(&self, roots: &[DatasetName], known: &Known) -> Result<HostListing, ZfsError> {
        let each = |this: Self, roots: Vec<DatasetName>| {
            let known = known.clone();
            async move { this.list_changed_now(&roots, &known).await }
        };
        let mut listing = self.each_pool(roots, each).await?;
        self.add_holds(&mut listing.datasets).await;
        Ok(listing)
    }

    async fn list_changed_now(&self, roots: &[DatasetName], known: &Known) -> Result<Vec<Listed>, ZfsError> {
        // The time before the listing, so that a change during the listing counts as later.
        let at = clock::now().timestamp();
        let datasets = self.datasets(roots, Depth::Recursive, self.has_snapshots_changed()).await?;
        let is_known = |(name, now): &Listed, changed| known.get(name).is_some_and(|k| is_current(k, now, changed, at));
        let stale: BTreeSet<DatasetName> = datasets
            .iter()
            .filter(|(listed, changed)| !is_known(listed, *changed))
            .map(|((name, _), _)| name.clone())
            .collect();
        let histories = self.histories_of_all(&stale).await?;
        let (mut bare, mut spans) = (Vec::with_capacity(datasets.len()), BTreeMap::new());
        for ((name, inventory), changed) in datasets {
            // A dataset that changed during this second may change once more within it.
            spans.insert(name.clone(), changed.filter(|changed| *changed < at));
            bare.push((name, inventory));
        }
        let mut listed = histories.join(bare);
        for (name, inventory) in &mut listed {
            let span = spans.get(name).copied().flatten();
            match known.get(name).filter(|_| !stale.contains(name)) {
                None => inventory.unchanged = span.map(|at_then| Unchanged { from: at_then, to: at_then, listed: at }),
                Some(known) => {
                    inventory.unchanged = known.unchanged;
                    inventory.bookmarks.clone_from(&known.bookmarks);
                    inventory.snapshots.clone_from(&known.snapshots);
                    inventory.snapshots.iter_mut().for_each(|snapshot| snapshot.marks = Marks::default());
                }
            }
        }
        Ok(listed)
    }

    /// The snapshots and bookmarks of any number of datasets.
    async fn histories_of_all(&self, datasets: &BTreeSet<DatasetName>) -> Result<Histories, ZfsError> {
        let names: Vec<DatasetName> = datasets.iter().cloned().collect();
        let batches = names.chunks(MOST_NAMED).map(|batch| {
            let (this, argv) = (self.clone(), argv::list_snapshots(batch, Depth::Only));
            async move { this.found_histories(&argv).await }
        });
        let batches: Vec<_> = batches.collect();
        let mut all = Histories::default();
        for histories in runtime::side_by_side(CONCURRENT_BATCHES, batches).await {
            all.append(histories?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Guid, Snapshot};

    fn snapshot(guid: u64, userrefs: u32) -> Snapshot {
        Snapshot {
            guid: Guid(guid),
            name: format!("s{guid}").parse().unwrap(),
            createtxg: guid,
            creation: chrono::DateTime::UNIX_EPOCH,
            userrefs,
            has_clones: false,
            used: 0,
            marks: Marks::default(),
        }
    }

    #[test]
    fn is_current_requires_the_same_dataset_without_changes() {
        let now = DatasetInventory { guid: Some(Guid(1)), ..DatasetInventory::default() };
        let unchanged = Some(Unchanged { from: 100, to: 102, listed: 102 });
        let known = DatasetInventory { unchanged, snapshots: vec![snapshot(1, 0), snapshot(2, 1)], ..now.clone() };
        for changed in [100, 101, 102] {
            assert!(is_current(&known, &now, Some(changed), 103));
        }
        // Changed since, or rewound to an earlier state, as after zpool-checkpoint(8).
        for changed in [Some(103), Some(99), None] {
            assert!(!is_current(&known, &now, changed, 104), "{changed:?}");
        }
        // Too old, or listed in the future by a clock that was set back.
        for at in [101, 102 + MAX_AGE] {
            assert!(!is_current(&known, &now, Some(100), at), "{at}");
        }
        let others = [
            DatasetInventory { guid: Some(Guid(2)), ..now.clone() },
            DatasetInventory { origin: Some("tank/a@b".parse().unwrap()), ..now.clone() },
        ];
        for other in others {
            assert!(!is_current(&known, &other, Some(100), 103));
        }
        let held = DatasetInventory { snapshots: vec![snapshot(1, 1), snapshot(2, 1)], ..known.clone() };
        assert!(!is_current(&held, &now, Some(100), 103), "the hold may have been released");
        assert!(!is_current(&DatasetInventory { unchanged: None, ..known }, &now, Some(100), 103));
    }
}
