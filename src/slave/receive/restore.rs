//! Receives a copy that is brought back. Nothing is overwritten: the dataset must not exist, or be one that an earlier
//! attempt has begun and not completed.
//!
//! Until everything has arrived, the dataset is read-only and excluded from all policies. It has the property
//! `zsync:restoring`, by which the next attempt recognizes it. At the end, all of that is removed, and what the dataset
//! inherits is in force again. `canmount` is left alone: it could not be inherited again.

use std::collections::BTreeMap;

use crate::host::error::OrderError;
use crate::model::tags::{EXCLUDE, FLAGS, RESTORING};
use crate::model::{DatasetInventory, DatasetName, SendFlags, SnapshotId, hint};
use crate::slave::receive::{IncomingStream, Receiver, Surroundings};
use crate::zfs::{ReceiveSpec, Zfs, ZfsError};

impl<Z: Zfs> Receiver<Z> {
    /// Checks that a dataset can be restored: it does not exist, or an earlier restore of it has not been completed.
    pub(crate) async fn check_restorable(
        &self,
        dataset: &DatasetName,
        found: Option<&DatasetInventory>,
        surroundings: &Surroundings,
    ) -> Result<(), OrderError> {
        let another = hint::word(&dataset.restored_name());
        let refused = |reason: String| OrderError::refused(format!("cannot restore {dataset}: {reason}"));
        match (found, dataset.parent()) {
            (Some(_), _) if self.is_unfinished(dataset).await? => Ok(()),
            (Some(_), None) => Err(refused("it is a pool, which exists".to_owned())
                .with_hint(format!("restore it as a dataset below the pool, as in --as {another}"))),
            (Some(_), Some(_)) => Err(refused("a dataset with this name exists, and is never overwritten".to_owned())
                .with_hint(format!("restore it under another name, as in --as {another}"))),
            (None, None) => Err(refused("there is no such pool".to_owned()).with_hint("create or import the pool")),
            (None, Some(parent)) if !surroundings.has_parent => Err(refused(format!("{parent} does not exist"))
                .with_hint(format!("restore {parent} first, or create it (zfs create -p {})", hint::word(&parent)))),
            (None, Some(_)) => Ok(()),
        }
    }

    /// Whether a dataset is what a restore has left that was not completed.
    async fn is_unfinished(&self, dataset: &DatasetName) -> Result<bool, ZfsError> {
        let properties = self.zfs.properties(dataset).await?;
        Ok(properties.get(RESTORING).is_some_and(|of| of == dataset.as_str()))
    }

    /// The arguments of `zfs receive` for a restore.
    pub(super) fn prepare_restore(
        &self,
        dataset: &DatasetName,
        incoming: &IncomingStream,
        surroundings: &Surroundings,
    ) -> Result<ReceiveSpec, OrderError> {
        let IncomingStream { create, overwrite, cloned, flags, is_unresumable, .. } = *incoming;
        if overwrite || cloned {
            return Err(OrderError::refused(format!(
                "cannot restore {dataset}: a restore replaces and clones nothing"
            )));
        }
        let mut properties = BTreeMap::new();
        if create.is_some() {
            let all = [("readonly", "on"), (EXCLUDE, "on"), (RESTORING, dataset.as_str())];
            properties.extend(all.map(|(name, value)| (name.to_owned(), value.to_owned())));
            let is_plain = flags.is_some_and(|flags| flags != SendFlags::Raw);
            if is_plain && surroundings.is_below_raw_copy {
                properties.insert("encryption".to_owned(), "off".to_owned());
            }
        }
        Ok(ReceiveSpec { dataset: dataset.clone(), properties, origin: None, overwrite: false, is_unresumable })
    }

    /// Completes a restore if the snapshot that is wanted is the newest one: from now on, the dataset is an ordinary
    /// one. The mark of the restore is removed last, so that an interrupted completion is repeated.
    pub(super) async fn complete_restore(
        &self,
        dataset: &DatasetName,
        inventory: &mut DatasetInventory,
        wanted: SnapshotId,
    ) -> Result<(), ZfsError> {
        if inventory.newest().is_none_or(|newest| newest.guid.uuid() != wanted) {
            return Ok(());
        }
        for property in ["readonly", FLAGS, EXCLUDE, RESTORING] {
            self.zfs.inherit(dataset, property).await?;
        }
        (inventory.flags, inventory.excluded) = (None, false);
        log::info!("restored {dataset}");
        Ok(())
    }
}
