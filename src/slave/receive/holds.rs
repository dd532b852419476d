//! What is held of what was received: always the newest that the source has as well.

use std::collections::BTreeMap;

use crate::model::tags;
use crate::model::{DatasetInventory, DatasetName, Guid, HostName, SnapName};
use crate::slave::receive::Receiving;
use crate::zfs::{Zfs, ZfsError};

impl<Z: Zfs> Receiving<Z> {
    /// Holds the newest common snapshot for its source, then releases what was held of it before: there is always one
    /// hold. What other hosts held is left over from before: it has one source.
    ///
    /// `inventory` is the dataset as it is now, and then as it is after that.
    pub async fn settle(
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
            // As every transfer leaves it: the one before is held, once, and this very hold is to go. If it is another
            // one after all, it stays, and is seen beside ours at the next transfer.
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

    /// What is held of what was received, with the tags.
    pub(crate) async fn received_holds(
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

    pub(crate) async fn release(
        &self,
        dataset: &DatasetName,
        holds: impl IntoIterator<Item = (SnapName, String)>,
    ) -> Result<(), ZfsError> {
        let mut left: BTreeMap<String, Vec<SnapName>> = BTreeMap::new();
        for (name, tag) in holds {
            left.entry(tag).or_default().push(name);
        }
        for (tag, names) in left {
            self.zfs.release(&tag, dataset, &names).await?;
        }
        Ok(())
    }
}
