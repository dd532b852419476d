//! Carries out take_snapshot: takes one snapshot of each dataset of an order, and runs this host's hooks before and
//! after.

use std::collections::BTreeMap;

use crate::agent::cache::ListingCache;
use crate::agent::context::{OrderContext, Success};
use crate::agent::request::TakeRequest;
use crate::agent::service::Agent;
use crate::host::clones;
use crate::host::error::OrderError;
use crate::host::floor::record_arrivals;
use crate::host::hooks::{HookError, SnapshotHooks};
use crate::model::{DatasetInventory, DatasetName, NotWritten, OrderId, Prefix, ResponseStatus, SnapName, Snapshot};
use crate::sys::clock;
use crate::wire::{Facts, PER_LINE};
use crate::zfs::{Depth, ErrorKind, History, Zfs, ZfsError};

/// The largest number of datasets that an error names if no snapshot of them could be taken.
const MAX_REFUSED_SHOWN: usize = 5;

/// The snapshots that the order asks for, after the take.
struct Taken {
    snapshots: Vec<(DatasetName, Snapshot)>,
    /// How many of them this attempt took.
    new: usize,
    /// Datasets of which ZFS cannot take a snapshot, each with the error.
    refused: Vec<(DatasetName, ZfsError)>,
    /// How many datasets no longer exist, which is no failure.
    gone: usize,
    /// The hooks that failed before the snapshot. Of the datasets of their entries none was taken.
    hooks_before: Vec<HookError>,
    /// The hooks that failed after the snapshot. The snapshots exist nevertheless.
    hooks_after: Vec<HookError>,
}

impl Taken {
    fn new(snapshots: Vec<(DatasetName, Snapshot)>, new: usize) -> Self {
        Self { snapshots, new, refused: Vec::new(), gone: 0, hooks_before: Vec::new(), hooks_after: Vec::new() }
    }

    fn add(&mut self, cache: &ListingCache, name: &SnapName, histories: Vec<(DatasetName, History)>) {
        histories.iter().for_each(|(dataset, history)| cache.taken(dataset, name, history));
        let snapshots = with_name(name, histories);
        self.new += snapshots.len();
        self.snapshots.extend(snapshots);
    }

    /// The error for the datasets of which no snapshot could be taken.
    fn refusal(&self, name: &SnapName) -> Option<OrderError> {
        let (_, first) = self.refused.first()?;
        let is_temporary = self.refused.iter().all(|(_, error)| error.kind.is_temporary());
        let shown = self.refused.iter().take(MAX_REFUSED_SHOWN).map(|(dataset, error)| {
            let words = error.stderr.lines().next().unwrap_or(&error.status);
            let reason = words.rsplit_once("': ").map_or(words, |(_, reason)| reason);
            format!("{}: {reason}", dataset.at(name))
        });
        let mut reason = format!("cannot take {}", shown.collect::<Vec<_>>().join("; "));
        if let more @ 1.. = self.refused.len().saturating_sub(MAX_REFUSED_SHOWN) {
            reason = format!("{reason}; and {more} more");
        }
        let error = match first.kind {
            ErrorKind::Permission => OrderError::refused(reason),
            _ if is_temporary => OrderError::busy(reason),
            _ => OrderError::new(ResponseStatus::Zerror, reason),
        };
        Some(error)
    }
}

impl<Z: Zfs> Agent<Z> {
    /// Takes one snapshot of every dataset of the order, in one transaction group. Datasets without changes are left
    /// out if the order says so.
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
        let taken = self.take_with_hooks(id, &datasets, &request.name).await?;
        let refusal = taken.refusal(&request.name);
        let Taken { snapshots, new, gone, hooks_before, hooks_after, refused: _ } = taken;
        self.record_taken(&snapshots).await;
        for part in snapshots.chunks(PER_LINE) {
            context.report(Facts { taken: part.to_vec(), ..Facts::default() }).await;
        }
        // Failures are returned only now, after the snapshots have been reported, because they exist nevertheless.
        let mut later: Vec<OrderError> = hooks_after.into_iter().map(OrderError::from).collect();
        for (dataset, _) in &snapshots {
            later.extend(clones::follow(&*self.zfs, &self.local, dataset).await.err().map(OrderError::from));
        }
        let has_failed_hooks = !hooks_before.is_empty();
        let not_taken = hooks_before.into_iter().map(OrderError::from).chain(refusal).reduce(OrderError::followed_by);
        let not_taken = not_taken.map(|error| match snapshots.len() {
            0 if has_failed_hooks => error.context("cannot take the snapshot"),
            0 => error,
            taken => error.context(format!("{taken} of {} datasets have their snapshot", datasets.len() - gone)),
        });
        let later = later.into_iter().reduce(OrderError::followed_by);
        let later = later.map(|error| error.context(format!("took {new}, but a later step failed")));
        if let Some(error) = not_taken.into_iter().chain(later).reduce(OrderError::followed_by) {
            return Err(error);
        }
        let status = if new == 0 { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
        let remark = if gone > 0 {
            format!("took {new}; {gone} of the datasets no longer exist")
        } else if new < snapshots.len() {
            format!("took {new}; the others existed already")
        } else if skipped > 0 {
            format!("took {new}; nothing was written in {skipped}")
        } else {
            format!("took {new}")
        };
        Ok(Success::new(status, remark))
    }

    /// Records when the snapshots of datasets that also receive were taken, so that they are not mistaken for received
    /// ones. Without a record they stay longer, so a failure is only logged.
    async fn record_taken(&self, taken: &[(DatasetName, Snapshot)]) {
        for (dataset, snapshot) in taken {
            let found = DatasetInventory { snapshots: vec![snapshot.clone()], ..DatasetInventory::default() };
            let recording = record_arrivals(&*self.zfs, &self.local, dataset, &found, None, clock::now());
            if let Err(error) = recording.await {
                log::warn!("{dataset}: cannot record when its snapshot was taken: {error}");
            }
        }
    }

    /// The datasets to which nothing was written since their last snapshot, each with the mark that records this.
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

    /// The datasets to which, according to ZFS, nothing was written since their newest snapshot with the same prefix. A
    /// newer snapshot of another policy does not replace the one that is due.
    async fn idle(&self, datasets: &[DatasetName], name: &SnapName) -> Result<Vec<DatasetName>, OrderError> {
        let prefix = Prefix::of(name);
        let of_policy = |s: &&Snapshot| prefix.as_ref().is_none_or(|p| p.time_in(&s.name).is_some());
        let mut idle = Vec::new();
        let mut unclear: BTreeMap<SnapName, Vec<DatasetName>> = BTreeMap::new();
        for (dataset, inventory) in self.zfs.list(datasets, Depth::Only).await? {
            // The first attempt of a repeated order took this snapshot, so the dataset must not be left out now.
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
            // If the query fails, for example because of one dataset, a snapshot of each of these datasets is taken.
            let written = self.zfs.written_since(&datasets, &last).await.unwrap_or_else(|error| {
                log::debug!("{error}");
                Vec::new()
            });
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
        let hooks_before = hooks.before().await;
        let permitted: Vec<DatasetName> =
            datasets.iter().filter(|dataset| !hooks.forbid(&self.local, dataset)).cloned().collect();
        let taken = self.take_missing(&permitted, name).await;
        let hooks_after = hooks.after(taken.is_ok()).await;
        match taken {
            Ok(taken) => Ok(Taken { hooks_before, hooks_after, ..taken }),
            Err(error) => {
                let hooks = hooks_before.into_iter().chain(hooks_after).map(OrderError::from);
                Err(hooks.fold(error, OrderError::followed_by))
            }
        }
    }

    /// Takes the missing snapshots, in one transaction group if possible. A dataset of which ZFS cannot take a
    /// snapshot does not prevent those of the others.
    async fn take_missing(&self, datasets: &[DatasetName], name: &SnapName) -> Result<Taken, OrderError> {
        let mut taken = Taken::new(Vec::new(), 0);
        let mut missing = datasets.to_vec();
        while !missing.is_empty() {
            let error = match self.zfs.snapshot(&missing, name).await {
                Ok(histories) => {
                    taken.add(&self.cache, name, histories);
                    break;
                }
                Err(error) if error.kind.is_about_program() || error.kind == ErrorKind::Killed => {
                    return Err(error.into());
                }
                Err(error) => error,
            };
            let left = self.take_a_look(&missing, name, &error, &mut taken).await?;
            if left.len() < missing.len() {
                missing = left;
                continue;
            }
            // ZFS does not say which dataset is in the way.
            for dataset in missing {
                match self.zfs.snapshot(std::slice::from_ref(&dataset), name).await {
                    Ok(histories) => taken.add(&self.cache, name, histories),
                    Err(error) => taken.refused.push((dataset, error)),
                }
            }
            break;
        }
        Ok(taken)
    }

    /// Finds out why a snapshot of `missing` datasets failed. Returns the datasets of which one can still be taken:
    /// those that exist, have none of this name yet, and were not refused.
    async fn take_a_look(
        &self,
        missing: &[DatasetName],
        name: &SnapName,
        error: &ZfsError,
        taken: &mut Taken,
    ) -> Result<Vec<DatasetName>, OrderError> {
        missing.iter().for_each(|dataset| self.cache.invalidate(dataset));
        let listed: BTreeMap<DatasetName, DatasetInventory> =
            self.zfs.list(missing, Depth::Only).await?.into_iter().collect();
        let refused = error.refused_snapshots();
        let mut left = Vec::new();
        for dataset in missing {
            let Some(inventory) = listed.get(dataset) else {
                taken.gone += 1;
                continue;
            };
            if let Some(snapshot) = inventory.snapshots.iter().rfind(|s| s.name == *name) {
                // An earlier order has taken this snapshot already, for example before a child was added.
                taken.snapshots.push((dataset.clone(), snapshot.clone()));
            } else if let Some(words) = refused.get(&dataset.at(name)) {
                taken.refused.push((dataset.clone(), ZfsError { stderr: words.clone(), ..error.clone() }));
            } else {
                left.push(dataset.clone());
            }
        }
        Ok(left)
    }

    /// Those of the order's snapshots that exist already.
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
