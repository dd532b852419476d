//! take_snapshot.

use std::collections::BTreeMap;

use crate::agent::{Agent, Failure, OrderContext, Success};
use crate::host::clones;
use crate::host::hooks::{HookError, SnapshotHooks};
use crate::model::{DatasetInventory, DatasetName, NotWritten, Prefix, ResponseStatus, SnapName, Snapshot};
use crate::sys::clock;
use crate::wire::{DirectorsOrder, Facts, PER_LINE};
use crate::zfs::{Depth, ErrorKind, History, Zfs};

/// The wanted snapshots, and how many of them were taken just now.
struct Taken {
    snapshots: Vec<(DatasetName, Snapshot)>,
    new: usize,
}

impl<Z: Zfs> Agent<Z> {
    /// Takes one snapshot of every dataset of the order, in one transaction group; those in which nothing was
    /// written are left out if the order says so.
    pub(crate) async fn take(&self, order: &DirectorsOrder, desk: &OrderContext) -> Result<Success, Failure> {
        let name: SnapName = order.snapshot_name.parse().map_err(|e| Failure::refused(format!("SnapshotName: {e}")))?;
        let first: DatasetName =
            order.dest_dataset.parse().map_err(|e| Failure::refused(format!("DestDataset: {e}")))?;
        let mut wanted = vec![first];
        wanted.extend(order.datasets.iter().cloned());
        wanted.sort();
        wanted.dedup();
        for dataset in &wanted {
            self.local.permission_to_take(dataset).map_err(|denied| Failure::refused(denied.to_string()))?;
        }
        if let Some(other) = wanted.iter().find(|d| d.pool() != wanted[0].pool()) {
            return Err(Failure::refused(format!("{} and {other} are in different pools", wanted[0])));
        }
        let mut unwritten = Vec::new();
        if order.skip_if_not_written {
            let idle = self.idle(&wanted, &name).await?;
            if !idle.is_empty() {
                // What was written in the last seconds counts only once it is on disk.
                self.zfs.sync(&wanted[0]).await?;
                let at = clock::now();
                let idle = self.idle(&idle, &name).await?;
                wanted.retain(|dataset| !idle.contains(dataset));
                unwritten = idle.into_iter().map(|d| (d, NotWritten { name: name.clone(), at })).collect();
            }
        }
        let skipped = unwritten.len();
        for part in unwritten.chunks(PER_LINE) {
            desk.tell(Facts { not_written: part.to_vec(), ..Facts::default() }).await;
        }
        if wanted.is_empty() {
            return Ok(Success::new(ResponseStatus::NothingToDo, "nothing was written since the last snapshot"));
        }
        let (Taken { snapshots, new }, after) = self.take_hooked(order, &wanted, &name).await?;
        for part in snapshots.chunks(PER_LINE) {
            desk.tell(Facts { taken: part.to_vec(), ..Facts::default() }).await;
        }
        // Only now: whatever becomes of these, the snapshots are there.
        after.map_err(|error| Failure::refused(format!("took {new}, but {error}")))?;
        for (dataset, _) in &snapshots {
            let followed = clones::follow(&*self.zfs, &self.local, dataset).await;
            followed.map_err(|error| Failure::refused(format!("took {new}, but {error}")))?;
        }
        if new < snapshots.len() {
            let status = if new == 0 { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
            return Ok(Success::new(status, format!("took {new}, the others are there already")));
        }
        let mut remark = format!("took {new}");
        if skipped > 0 {
            remark = format!("{remark}; nothing was written in {skipped}");
        }
        Ok(Success::new(ResponseStatus::Done, remark))
    }

    /// The datasets in which nothing was written since their newest snapshot of the same prefix: those of other
    /// policies do not stand in for one that is due.
    async fn idle(&self, datasets: &[DatasetName], name: &SnapName) -> Result<Vec<DatasetName>, Failure> {
        let prefix = Prefix::of(name);
        let of_policy = |s: &&Snapshot| prefix.as_ref().is_none_or(|p| p.time_in(&s.name).is_some());
        let mut idle = Vec::new();
        let mut unclear: BTreeMap<SnapName, Vec<DatasetName>> = BTreeMap::new();
        for (dataset, inventory) in self.zfs.list(datasets, Depth::Only).await? {
            // An order that is repeated: what was written before it is in the snapshot that it took then.
            if inventory.snapshots.iter().any(|s| s.name == *name) {
                continue;
            }
            let (Some(0), Some(last)) = (inventory.written, inventory.snapshots.iter().rfind(of_policy)) else {
                continue;
            };
            if inventory.newest().is_some_and(|newest| newest.guid == last.guid) {
                idle.push(dataset);
            } else {
                unclear.entry(last.name.clone()).or_default().push(dataset);
            }
        }
        for (last, datasets) in unclear {
            let written = self.zfs.written_since(&datasets, &last).await?;
            idle.extend(written.into_iter().filter(|(_, bytes)| *bytes == 0).map(|(dataset, _)| dataset));
        }
        Ok(idle)
    }

    /// Takes what is missing, with the hooks of this host around it. The inner error is that of a hook after it.
    async fn take_hooked(
        &self,
        order: &DirectorsOrder,
        wanted: &[DatasetName],
        name: &SnapName,
    ) -> Result<(Taken, Result<(), HookError>), Failure> {
        let mut hooks = SnapshotHooks::of(&self.local, wanted, order.order_uuid, name);
        if !hooks.is_empty() {
            // Nobody is disturbed for an order that is repeated.
            let there = self.there(wanted, name).await?;
            if there.len() == wanted.len() {
                return Ok((Taken { snapshots: there, new: 0 }, Ok(())));
            }
        }
        let taken = match hooks.before().await {
            Ok(()) => self.take_now(wanted, name).await,
            Err(error) => Err(Failure::refused(format!("nothing was taken: {error}"))),
        };
        match (hooks.after(taken.is_ok()).await, taken) {
            (Err(error), Err(failure)) => Err(Failure { reason: format!("{}; {error}", failure.reason), ..failure }),
            (after, taken) => taken.map(|taken| (taken, after)),
        }
    }

    async fn take_now(&self, wanted: &[DatasetName], name: &SnapName) -> Result<Taken, Failure> {
        match self.zfs.snapshot(wanted, name).await {
            Ok(histories) => {
                histories.iter().for_each(|(dataset, history)| self.held.taken(dataset, name, history));
                let snapshots = of_name(name, histories);
                Ok(Taken { new: snapshots.len(), snapshots })
            }
            // An order that is repeated, or one that a child added meanwhile makes part of: what is missing is
            // taken one by one, what is there already is what was wanted.
            Err(error) if error.kind == ErrorKind::Exists => {
                wanted.iter().for_each(|dataset| self.held.changed(dataset, None));
                let mut snapshots = self.there(wanted, name).await?;
                let mut new = 0;
                for dataset in wanted {
                    if !snapshots.iter().any(|(there, _)| there == dataset) {
                        let histories = self.zfs.snapshot(std::slice::from_ref(dataset), name).await?;
                        snapshots.extend(of_name(name, histories));
                        new += 1;
                    }
                }
                Ok(Taken { snapshots, new })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What there is of the wanted snapshots.
    async fn there(&self, wanted: &[DatasetName], name: &SnapName) -> Result<Vec<(DatasetName, Snapshot)>, Failure> {
        let listed = self.zfs.list(wanted, Depth::Only).await?;
        let history = |(dataset, found): (DatasetName, DatasetInventory)| (dataset, (found.snapshots, found.bookmarks));
        Ok(of_name(name, listed.into_iter().map(history)))
    }
}

/// Of each dataset the snapshot of this name.
fn of_name(
    name: &SnapName,
    histories: impl IntoIterator<Item = (DatasetName, History)>,
) -> Vec<(DatasetName, Snapshot)> {
    let find = |(dataset, (snapshots, _)): (DatasetName, History)| {
        snapshots.into_iter().rfind(|s| s.name == *name).map(|snapshot| (dataset, snapshot))
    };
    histories.into_iter().filter_map(find).collect()
}
