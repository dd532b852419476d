//! take_snapshot.

use std::collections::BTreeMap;

use super::{Agent, Desk, Failure, Success};
use crate::clock;
use crate::model::{DatasetName, NotWritten, Prefix, ResponseStatus, SnapName, Snapshot};
use crate::wire::{DirectorsOrder, Facts, PER_LINE};
use crate::zfs::{Depth, ErrorKind, Zfs};

impl<Z: Zfs> Agent<Z> {
    /// Takes one snapshot of every dataset of the order, in one transaction group; those in which nothing was
    /// written are left out if the order says so.
    pub(super) async fn take(&self, order: &DirectorsOrder, desk: &Desk) -> Result<Success, Failure> {
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
        let taken = match self.zfs.snapshot(&wanted, &name).await {
            Ok(taken) => taken,
            // An order that is repeated, or one that a child added meanwhile makes part of: what is missing is
            // taken one by one, what is there already is what was wanted.
            Err(error) if error.kind == ErrorKind::Exists => return self.take_missing(&wanted, &name, desk).await,
            Err(error) => return Err(error.into()),
        };
        let count = taken.len();
        for part in taken.chunks(PER_LINE) {
            desk.tell(Facts { taken: part.to_vec(), ..Facts::default() }).await;
        }
        let mut remark = format!("took {count}");
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

    async fn take_missing(&self, wanted: &[DatasetName], name: &SnapName, desk: &Desk) -> Result<Success, Failure> {
        let mut took = 0;
        for (dataset, inventory) in self.zfs.list(wanted, Depth::Only).await? {
            let taken = match inventory.snapshots.into_iter().find(|s| s.name == *name) {
                Some(there) => vec![(dataset, there)],
                None => {
                    took += 1;
                    self.zfs.snapshot(std::slice::from_ref(&dataset), name).await?
                }
            };
            desk.tell(Facts { taken, ..Facts::default() }).await;
        }
        let status = if took == 0 { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
        Ok(Success::new(status, format!("took {took}, the others are there already")))
    }
}
