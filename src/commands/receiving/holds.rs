//! What is held of what was received: always the newest that the source has as well.

use std::collections::BTreeMap;

use super::Receiving;
use crate::commands::marks;
use crate::model::{DatasetInventory, DatasetName, Guid, HostName, SnapName};
use crate::zfs::{Zfs, ZfsError};

impl<Z: Zfs> Receiving<Z> {
    /// Holds the newest common snapshot for its source, then releases what was held of it before: there is always one
    /// hold. What other hosts held is left over from before: it has one source.
    ///
    /// `inventory` is the dataset as it is now.
    pub async fn settle(
        &self,
        dataset: &DatasetName,
        inventory: &DatasetInventory,
        from: &HostName,
        guid: Guid,
    ) -> Result<(), ZfsError> {
        let Some(common) = inventory.by_guid(guid) else { return Ok(()) };
        let ours = (common.name.clone(), marks::received(from));
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
        }
        self.release(dataset, holds.into_iter().filter(|hold| *hold != ours)).await
    }

    /// What is held of what was received, with the tags.
    pub(super) async fn received_holds(
        &self,
        dataset: &DatasetName,
        inventory: &DatasetInventory,
    ) -> Result<Vec<(SnapName, String)>, ZfsError> {
        let held: Vec<SnapName> =
            inventory.snapshots.iter().filter(|s| s.userrefs > 0).map(|s| s.name.clone()).collect();
        let mut holds = self.zfs.holds(dataset, &held).await?;
        holds.retain(|(_, tag)| marks::is_received(tag));
        Ok(holds)
    }

    pub(super) async fn release(
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
