//! take_snapshot: takes one snapshot of each dataset of an order, with this host's hooks around it.

use std::collections::BTreeMap;

use crate::agent::context::{OrderContext, Success};
use crate::agent::request::TakeRequest;
use crate::agent::service::Agent;
use crate::host::clones;
use crate::host::error::OrderError;
use crate::host::hooks::{HookError, SnapshotHooks};
use crate::model::{DatasetInventory, DatasetName, NotWritten, OrderId, Prefix, ResponseStatus, SnapName, Snapshot};
use crate::sys::clock;
use crate::wire::{Facts, PER_LINE};
use crate::zfs::{Depth, ErrorKind, History, Zfs};

/// The wanted snapshots after a take.
struct Taken {
    snapshots: Vec<(DatasetName, Snapshot)>,
    /// How many of them were taken just now.
    new: usize,
    /// The failure of a hook after the snapshot. The snapshots exist all the same.
    failed_hook: Option<HookError>,
}

impl Taken {
    fn new(snapshots: Vec<(DatasetName, Snapshot)>, new: usize) -> Self {
        Self { snapshots, new, failed_hook: None }
    }
}

impl<Z: Zfs> Agent<Z> {
    /// Takes one snapshot of every dataset of the order, in one transaction group. Datasets without changes are left out
    /// if the order says so.
    pub(crate) async fn take(
        &self,
        id: OrderId,
        request: &TakeRequest,
        context: &OrderContext,
    ) -> Result<Success, OrderError> {
        for dataset in &request.datasets {
            self.local.permission_to_take(dataset)?;
        }
        let mut datasets = request.datasets.clone();
        let mut skipped = 0;
        if request.skip_if_not_written {
            let unwritten = self.unwritten(&datasets, &request.name).await?;
            datasets.retain(|dataset| !unwritten.iter().any(|(skipped, _)| skipped == dataset));
            skipped = unwritten.len();
            for part in unwritten.chunks(PER_LINE) {
                context.report(Facts { not_written: part.to_vec(), ..Facts::default() }).await;
            }
        }
        if datasets.is_empty() {
            return Ok(Success::new(ResponseStatus::NothingToDo, "nothing was written since the last snapshot"));
        }
        let Taken { snapshots, new, failed_hook } = self.take_with_hooks(id, &datasets, &request.name).await?;
        for part in snapshots.chunks(PER_LINE) {
            context.report(Facts { taken: part.to_vec(), ..Facts::default() }).await;
        }
        // Only now: the snapshots exist and are reported, whatever fails from here on.
        let but = |error: OrderError| error.context(format!("took {new}, but not all went well"));
        failed_hook.map_or(Ok(()), Err).map_err(|error| but(error.into()))?;
        for (dataset, _) in &snapshots {
            let followed = clones::follow(&*self.zfs, &self.local, dataset).await;
            followed.map_err(|error| but(error.into()))?;
        }
        if new < snapshots.len() {
            let status = if new == 0 { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
            return Ok(Success::new(status, format!("took {new}; the others existed already")));
        }
        let remark = match skipped {
            0 => format!("took {new}"),
            _ => format!("took {new}; nothing was written in {skipped}"),
        };
        Ok(Success::new(ResponseStatus::Done, remark))
    }

    /// The datasets in which nothing was written since their last snapshot, each with the mark that records that.
    async fn unwritten(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, NotWritten)>, OrderError> {
        let idle = self.idle(datasets, name).await?;
        let Some(first) = idle.first() else { return Ok(Vec::new()) };
        // ZFS counts what was written in the last seconds only once it is on disk.
        self.zfs.sync(first).await?;
        let at = clock::now();
        let idle = self.idle(&idle, name).await?;
        Ok(idle.into_iter().map(|dataset| (dataset, NotWritten { name: name.clone(), at })).collect())
    }

    /// The datasets in which, according to ZFS, nothing was written since their newest snapshot with the same prefix. A
    /// newer snapshot of another policy does not replace the one that is due.
    async fn idle(&self, datasets: &[DatasetName], name: &SnapName) -> Result<Vec<DatasetName>, OrderError> {
        let prefix = Prefix::of(name);
        let of_policy = |s: &&Snapshot| prefix.as_ref().is_none_or(|p| p.time_in(&s.name).is_some());
        let mut idle = Vec::new();
        let mut unclear: BTreeMap<SnapName, Vec<DatasetName>> = BTreeMap::new();
        for (dataset, inventory) in self.zfs.list(datasets, Depth::Only).await? {
            // The order is repeated, and took this snapshot the first time: it is not left out now.
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

    /// Takes the missing snapshots, with this host's hooks before and after.
    async fn take_with_hooks(
        &self,
        id: OrderId,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Taken, OrderError> {
        let mut hooks = SnapshotHooks::of(&self.local, datasets, id, name);
        if !hooks.is_empty() {
            // A repeated order runs no hooks.
            let existing = self.existing(datasets, name).await?;
            if existing.len() == datasets.len() {
                return Ok(Taken::new(existing, 0));
            }
        }
        let taken = match hooks.before().await {
            Ok(()) => self.take_missing(datasets, name).await,
            Err(error) => Err(OrderError::from(error).context("cannot take the snapshot")),
        };
        match (hooks.after(taken.is_ok()).await, taken) {
            (Ok(()), taken) => taken,
            (Err(error), Ok(taken)) => Ok(Taken { failed_hook: Some(error), ..taken }),
            (Err(hook), Err(error)) => Err(error.followed_by(hook.into())),
        }
    }

    async fn take_missing(&self, datasets: &[DatasetName], name: &SnapName) -> Result<Taken, OrderError> {
        match self.zfs.snapshot(datasets, name).await {
            Ok(histories) => {
                histories.iter().for_each(|(dataset, history)| self.cache.taken(dataset, name, history));
                let snapshots = with_name(name, histories);
                let new = snapshots.len();
                Ok(Taken::new(snapshots, new))
            }
            // The order is repeated, perhaps because a child was added meanwhile. Existing snapshots are as wanted, the
            // missing ones are taken one by one.
            Err(error) if error.kind == ErrorKind::Exists => {
                datasets.iter().for_each(|dataset| self.cache.invalidate(dataset));
                let mut snapshots = self.existing(datasets, name).await?;
                let mut new = 0;
                for dataset in datasets {
                    if !snapshots.iter().any(|(existing, _)| existing == dataset) {
                        let histories = self.zfs.snapshot(std::slice::from_ref(dataset), name).await?;
                        snapshots.extend(with_name(name, histories));
                        new += 1;
                    }
                }
                Ok(Taken::new(snapshots, new))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The wanted snapshots that exist.
    async fn existing(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, Snapshot)>, OrderError> {
        let listed = self.zfs.list(datasets, Depth::Only).await?;
        let history = |(dataset, found): (DatasetName, DatasetInventory)| (dataset, (found.snapshots, found.bookmarks));
        Ok(with_name(name, listed.into_iter().map(history)))
    }
}

/// The snapshot of each dataset that has this name.
fn with_name(
    name: &SnapName,
    histories: impl IntoIterator<Item = (DatasetName, History)>,
) -> Vec<(DatasetName, Snapshot)> {
    let find = |(dataset, (snapshots, _)): (DatasetName, History)| {
        snapshots.into_iter().rfind(|s| s.name == *name).map(|snapshot| (dataset, snapshot))
    };
    histories.into_iter().filter_map(find).collect()
}
