//! Finds out whose copy a dataset is.
//!
//! An entry of `local.json` without `sources` lets every host make copies. Each copy then belongs to the host that made
//! it: the hold that every transfer leaves on the newest common snapshot names that host.

use crate::host::error::OrderError;
use crate::model::tags;
use crate::model::{DatasetInventory, DatasetName, HostName};
use crate::policy::{Denied, LocalDataset};
use crate::slave::receive::{Receiver, Surroundings};
use crate::zfs::{Depth, Zfs, ZfsError};

impl<Z: Zfs> Receiver<Z> {
    /// Checks that a dataset is not another host's copy, and not to be created below one, unless `sources` names the
    /// host that sends. `found` is the dataset, if it exists.
    pub(crate) async fn check_owner(
        &self,
        source: &HostName,
        dataset: &DatasetName,
        found: Option<&DatasetInventory>,
        surroundings: &Surroundings,
    ) -> Result<(), OrderError> {
        if self.purpose.is_restore() {
            return self.check_restorable(dataset, found, surroundings).await;
        }
        let entry = self.local.permission_to_receive(dataset, source)?;
        if entry.sources.is_some() {
            return Ok(());
        }
        let other = match (found, &surroundings.copy_above) {
            (Some(found), _) => self.hold_of_another(source, dataset, found).await?.map(|tag| (dataset, tag)),
            (None, Some(above)) => {
                let copy = self.list(above).await?.unwrap_or_default();
                self.hold_of_another(source, above, &copy).await?.map(|tag| (above, tag))
            }
            (None, None) => None,
        };
        match other {
            None => Ok(()),
            Some((copy, tag)) => Err(self.taken(source, dataset, entry, copy, tag).into()),
        }
    }

    /// Lists a dataset and checks as [`Self::check_owner`] does, before the dataset is locked for `source`. It has to be
    /// checked again once it is locked.
    pub(crate) async fn check_owner_unlocked(
        &self,
        source: &HostName,
        dataset: &DatasetName,
    ) -> Result<(), OrderError> {
        if self.local.permission_to_receive(dataset, source)?.sources.is_some() {
            return Ok(());
        }
        let (found, surroundings) = self.list_around(dataset).await?;
        self.check_owner(source, dataset, found.as_ref(), &surroundings).await
    }

    /// Checks that a dataset may be renamed with everything below it: local.json protects all of it as well under the
    /// new names, and none of it has an entry of its own, or is another host's copy where no `sources` say who may send.
    pub(super) async fn check_rename(
        &self,
        source: &HostName,
        dataset: &DatasetName,
        to: &DatasetName,
    ) -> Result<(), OrderError> {
        let own = self.local.entry_for(dataset).map(|entry| &entry.name);
        for (name, inventory) in self.zfs.list(std::slice::from_ref(dataset), Depth::Recursive).await? {
            let entry = self.local.entry_for(&name);
            let why = if entry.map(|entry| &entry.name) != own {
                Some(format!("has an entry of its own in {}", self.local.file))
            } else if entry.is_some_and(|entry| entry.sources.is_some()) {
                None
            } else {
                let tag = self.hold_of_another(source, &name, &inventory).await?;
                tag.map(|tag| format!("is another host's copy (it has the hold {tag})"))
            };
            let Some(why) = why else {
                let renamed = to.join(name.below(dataset).unwrap_or_default()).map_err(|error| {
                    OrderError::refused(format!("cannot rename {dataset} to {to}, with {name} below it: {error}"))
                })?;
                self.local.permission_to_rename(&name, &renamed)?;
                continue;
            };
            let reason = format!("cannot rename {dataset}: that would also rename {name}, which {why}");
            return Err(OrderError::refused(reason).with_hint(format!(
                "rename {name} to a place outside {dataset}, or choose another destination in the policy \
                 (\"sync_dataset\")"
            )));
        }
        Ok(())
    }

    /// The tag of another host's hold on a dataset, if the dataset has no hold of `source`.
    async fn hold_of_another(
        &self,
        source: &HostName,
        dataset: &DatasetName,
        found: &DatasetInventory,
    ) -> Result<Option<String>, ZfsError> {
        if found.snapshots.iter().all(|snapshot| snapshot.userrefs == 0) {
            return Ok(None);
        }
        let own = tags::received(source);
        let holds = self.received_holds(dataset, found).await?;
        let is_own = holds.iter().any(|(_, tag)| *tag == own);
        Ok(holds.into_iter().map(|(_, tag)| tag).find(|_| !is_own))
    }

    fn taken(
        &self,
        source: &HostName,
        dataset: &DatasetName,
        entry: &LocalDataset,
        copy: &DatasetName,
        tag: String,
    ) -> Denied {
        Denied::SourceTaken {
            file: self.local.file.clone(),
            dataset: dataset.clone(),
            entry: entry.name.clone(),
            source_host: source.clone(),
            copy: copy.clone(),
            tag,
        }
    }
}
