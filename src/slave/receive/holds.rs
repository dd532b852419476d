//! Maintains holds on received snapshots: the newest snapshot that a copy has in common with its source is always held.

use std::collections::BTreeMap;

use futures_lite::future;

use crate::host::floor::record_arrivals;
use crate::model::tags;
use crate::model::{DatasetInventory, DatasetName, Guid, HostName, SnapName};
use crate::slave::receive::{Purpose, Receiver};
use crate::sys::clock;
use crate::zfs::{Zfs, ZfsError};

impl<Z: Zfs> Receiver<Z> {
    /// Ends a transfer: moves the hold, and records when the new snapshots arrived, those that are newer than `known`
    /// (a createtxg), or all without a record. Both run at the same time, because each waits for a transaction group.
    pub(crate) async fn settle(
        &self,
        dataset: &DatasetName,
        inventory: &mut DatasetInventory,
        from: &HostName,
        guid: Guid,
        known: Option<u64>,
    ) -> Result<(), ZfsError> {
        if let Purpose::Restore { snapshot, .. } = self.purpose {
            return self.complete_restore(dataset, inventory, snapshot).await;
        }
        let as_listed = inventory.clone();
        let recording = self.record_arrivals(dataset, &as_listed, known);
        let (moved, ()) = future::zip(self.move_hold(dataset, inventory, from, guid), recording).await;
        moved
    }

    /// Records when the new snapshots of a dataset arrived. Without a record they stay longer, so a failure is only
    /// logged.
    pub(crate) async fn record_arrivals(&self, dataset: &DatasetName, found: &DatasetInventory, known: Option<u64>) {
        let recording = record_arrivals(&*self.zfs, &self.local, dataset, found, known, clock::now());
        if let Err(error) = recording.await {
            log::warn!("{dataset}: cannot record when its snapshots arrived: {error}");
        }
    }

    /// Moves the hold of a source to the newest common snapshot: first adds the new hold, then releases the older ones,
    /// so that there is always one. Holds of other source hosts are released as well, because a dataset has only one
    /// source.
    ///
    /// `inventory` is the dataset as listed, and is updated.
    pub(crate) async fn move_hold(
        &self,
        dataset: &DatasetName,
        inventory: &mut DatasetInventory,
        from: &HostName,
        guid: Guid,
    ) -> Result<(), ZfsError> {
        let Some(at) = inventory.snapshots.iter().position(|s| s.guid == guid) else { return Ok(()) };
        let common = &inventory.snapshots[at];
        let ours = (common.name.clone(), tags::received(from));
        let mut held = inventory.snapshots.iter().filter(|s| s.userrefs > 0);
        let holds = match (held.next(), held.next()) {
            // Every transfer leaves exactly one older snapshot with one hold, which is released now. If that hold is
            // not zsync's, releasing zsync's tag does nothing, and the next transfer finds two held snapshots.
            (Some(before), None) if before.userrefs == 1 && before.guid != guid => {
                vec![(before.name.clone(), ours.1.clone())]
            }
            _ => self.received_holds(dataset, inventory).await?,
        };
        if !holds.contains(&ours) {
            self.zfs.hold(&ours.1, dataset, std::slice::from_ref(&ours.0)).await?;
            inventory.snapshots[at].userrefs += 1;
        }
        let others: Vec<(SnapName, String)> = holds.into_iter().filter(|hold| *hold != ours).collect();
        self.release(dataset, others.iter().cloned()).await?;
        for (name, _) in others {
            let released = inventory.snapshots.iter_mut().find(|s| s.name == name);
            released.into_iter().for_each(|s| s.userrefs = s.userrefs.saturating_sub(1));
        }
        Ok(())
    }

    /// The holds that receives left on a dataset, with their tags.
    pub(super) async fn received_holds(
        &self,
        dataset: &DatasetName,
        inventory: &DatasetInventory,
    ) -> Result<Vec<(SnapName, String)>, ZfsError> {
        let held: Vec<SnapName> =
            inventory.snapshots.iter().filter(|s| s.userrefs > 0).map(|s| s.name.clone()).collect();
        let mut holds = self.zfs.holds(dataset, &held).await?;
        holds.retain(|(_, tag)| tags::is_received(tag));
        Ok(holds)
    }

    pub(super) async fn release(
        &self,
        dataset: &DatasetName,
        holds: impl IntoIterator<Item = (SnapName, String)>,
    ) -> Result<(), ZfsError> {
        let mut by_tag: BTreeMap<String, Vec<SnapName>> = BTreeMap::new();
        for (name, tag) in holds {
            by_tag.entry(tag).or_default().push(name);
        }
        for (tag, names) in by_tag {
            self.zfs.release(&tag, dataset, &names).await?;
        }
        Ok(())
    }
}
