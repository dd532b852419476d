//! Maintains holds on received snapshots: the newest snapshot that a copy has in common with its source is always held.

use std::collections::BTreeMap;

use futures_lite::future;

use crate::host::floor::record_arrivals;
use crate::model::tags;
use crate::model::{DatasetInventory, DatasetName, Guid, HostName, SnapName, SourceRecord};
use crate::slave::receive::Receiver;
use crate::sys::clock;
use crate::zfs::{Zfs, ZfsError};

/// What is known at the end of a transfer that arrived.
pub(crate) struct Settled<'a> {
    /// The host that sent.
    pub(crate) from: &'a HostName,
    /// The newest common snapshot.
    pub(crate) guid: Guid,
    /// The createtxg of the newest snapshot that was there before. Newer ones have just arrived.
    pub(crate) known: Option<u64>,
    /// What the sender says about the source.
    pub(crate) recorded: Option<SourceRecord>,
}

impl<Z: Zfs> Receiver<Z> {
    /// Ends a transfer: moves the hold, and records when the new snapshots arrived and what is known of the source. All
    /// of that runs at the same time, because each part waits for a transaction group.
    pub(crate) async fn settle(
        &self,
        dataset: &DatasetName,
        inventory: &mut DatasetInventory,
        settled: Settled<'_>,
    ) -> Result<(), ZfsError> {
        if self.purpose.is_restore() {
            return Ok(());
        }
        let Settled { from, guid, known, recorded } = settled;
        let as_listed = inventory.clone();
        let arrivals = self.record_arrivals(dataset, &as_listed, known);
        let recording = future::zip(arrivals, self.record_source(dataset, recorded));
        let (moved, _) = future::zip(self.move_hold(dataset, inventory, from, guid), recording).await;
        moved
    }

    /// Records the properties of the source on its copy. Without the record, a restore brings back less, so a failure is
    /// only logged.
    async fn record_source(&self, dataset: &DatasetName, recorded: Option<SourceRecord>) {
        let Some(recorded) = recorded else { return };
        if let Err(error) = self.zfs.set(dataset, tags::PROPERTIES, &recorded.value()).await {
            log::warn!("{dataset}: cannot record the properties of its source: {error}");
        }
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
        let mut holds = self.zfs.holds(dataset, &inventory.held()).await?;
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
