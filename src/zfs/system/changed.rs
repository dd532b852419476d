//! Listing only what has changed. A dataset's snapshots are most of what a listing costs, and of most datasets nothing has
//! changed since the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use futures_lite::future;

use crate::model::{DatasetInventory, DatasetName, Marks, Unchanged};
use crate::sys::clock;
use crate::zfs::system::System;
use crate::zfs::{Depth, Known, Listed, ZfsError, argv, parse};

/// Seconds after which snapshots are listed again all the same: `snapshots_changed` tells nothing of bookmarks and holds,
/// nor of snapshots that were renamed.
const GOOD_FOR: i64 = 3600;
/// How many datasets one command names; of more, all below the roots are listed.
const MOST_NAMED: usize = 500;

/// Whether `known` still has the dataset's snapshots. `now` is how it is listed at a moment, without them, and `changed` its
/// `snapshots_changed`.
fn is_current(known: &DatasetInventory, now: &DatasetInventory, changed: Option<i64>, at: i64) -> bool {
    let (Some(unchanged), Some(changed)) = (known.unchanged, changed) else { return false };
    // Another dataset of that name, or one that was promoted and so took over snapshots.
    known.guid.is_some()
        && (known.guid, &known.origin) == (now.guid, &now.origin)
        && (unchanged.from..=unchanged.to).contains(&changed)
        && (unchanged.listed..unchanged.listed + GOOD_FOR).contains(&at)
        // A hold on any but the newest, which always stays, decides about what goes: is it still there?
        && known.snapshots.iter().rev().skip(1).all(|snapshot| snapshot.userrefs == 0)
}

impl System {
    /// Lists each pool's datasets with all below them, the pools side by side.
    pub(super) async fn list_changed_by_pool(
        &self,
        roots: &[DatasetName],
        known: &Known,
    ) -> Result<Vec<Listed>, ZfsError> {
        if !self.tells_changes.load(Ordering::Relaxed) {
            return self.list_by_pool(roots).await;
        }
        let each = |this: Self, roots: Vec<DatasetName>| {
            let known = known.clone();
            async move { this.list_changed_now(&roots, &known).await }
        };
        self.each_pool(roots, each).await
    }

    async fn list_changed_now(&self, roots: &[DatasetName], known: &Known) -> Result<Vec<Listed>, ZfsError> {
        // Before anything is listed: what changes meanwhile counts as changed later.
        let at = clock::now().timestamp();
        let (of_datasets, of_all) = (argv::list_changes(roots), argv::list_snapshots(roots, Depth::Recursive));
        let is_first =
            !known.iter().any(|(name, of)| of.unchanged.is_some() && roots.iter().any(|r| name.is_within(r)));
        let (datasets, snapshots) = if is_first {
            let (datasets, snapshots) = future::zip(self.listing(&of_datasets), self.listing(&of_all)).await;
            (datasets?, Some(snapshots?))
        } else {
            (self.listing(&of_datasets).await?, None)
        };
        let datasets = parse::changes(&datasets).map_err(|bad| self.unreadable(&of_datasets, bad))?;
        let is_known = |(name, now): &Listed, changed| known.get(name).is_some_and(|k| is_current(k, now, changed, at));
        let stale: BTreeSet<DatasetName> = datasets
            .iter()
            .filter(|(listed, changed)| !is_known(listed, *changed))
            .map(|((name, _), _)| name.clone())
            .collect();
        let named = stale.len() <= MOST_NAMED && stale.len() * 2 <= datasets.len();
        let stale_names: Vec<DatasetName> = stale.iter().cloned().collect();
        let of_stale = if named { argv::list_snapshots(&stale_names, Depth::Only) } else { of_all };
        let snapshots = match snapshots {
            Some(snapshots) => snapshots,
            None if stale.is_empty() => Vec::new(),
            None => self.listing(&of_stale).await?,
        };
        let rows = parse::snapshots(&snapshots).map_err(|bad| self.unreadable(&of_stale, bad))?;
        // Those that have not changed may be among them.
        let rows = rows.into_iter().filter(|(name, _)| stale.contains(name)).collect();
        let (mut bare, mut spans) = (Vec::with_capacity(datasets.len()), BTreeMap::new());
        for ((name, inventory), changed) in datasets {
            // What was changed in this very second may change in it once more.
            spans.insert(name.clone(), changed.filter(|changed| *changed < at));
            bare.push((name, inventory));
        }
        let mut listed = parse::join(bare, rows);
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
    fn what_is_known_counts_while_zfs_tells_of_no_change() {
        let now = DatasetInventory { guid: Some(Guid(1)), ..DatasetInventory::default() };
        let unchanged = Some(Unchanged { from: 100, to: 102, listed: 102 });
        let known = DatasetInventory { unchanged, snapshots: vec![snapshot(1, 0), snapshot(2, 1)], ..now.clone() };
        for changed in [100, 101, 102] {
            assert!(is_current(&known, &now, Some(changed), 103));
        }
        // Changed since; or a pool of an earlier day, as after zpool-checkpoint(8).
        for changed in [Some(103), Some(99), None] {
            assert!(!is_current(&known, &now, changed, 104), "{changed:?}");
        }
        // Not for ever, nor with a clock that goes backwards.
        for at in [101, 102 + GOOD_FOR] {
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
        assert!(!is_current(&held, &now, Some(100), 103), "whether that hold is still there is not known");
        assert!(!is_current(&DatasetInventory { unchanged: None, ..known }, &now, Some(100), 103));
    }
}
