//! Receives a copy that is brought back. Nothing is overwritten: the dataset must not exist, or be one that an earlier
//! attempt has begun and not completed, or be set aside.
//!
//! A dataset is set aside immediately before the first stream is received. Until then, everything that can fail has
//! been tried, and the dataset is only treated as if it did not exist.
//!
//! Until everything has arrived, the dataset is read-only and excluded from all policies. It has the property
//! `zsync:restoring`, by which the next attempt recognizes it. At the end, the properties of the lost dataset are set, all
//! of that is removed, and what the dataset inherits is in force again. `canmount` is not used for it: it could not be
//! inherited again.

use std::collections::BTreeMap;
use std::path::Path;

use crate::host::error::OrderError;
use crate::model::tags::{EXCLUDE, FLAGS, KEY_FROM, RESTORING};
use crate::model::{DatasetInventory, DatasetKind, DatasetName, HostName, SendFlags, SetAside, hint};
use crate::policy::properties::is_restorable;
use crate::slave::receive::{IncomingStream, Purpose, Receiver, Surroundings};
use crate::zfs::{Depth, ErrorKind, ReceiveSpec, Zfs, ZfsError};

const READONLY: &str = "readonly";

/// Whether something would be hidden by a filesystem that is mounted in this place.
fn is_occupied(mountpoint: &Path) -> bool {
    std::fs::read_dir(mountpoint).is_ok_and(|mut entries| entries.next().is_some())
}

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
                .with_hint(format!(
                    "restore it under another name, as in --as {another}, or rename what is there with --set-aside"
                ))),
            (None, None) => Err(refused("there is no such pool".to_owned()).with_hint("create or import the pool")),
            (None, Some(parent)) if !surroundings.has_parent => Err(refused(format!("{parent} does not exist"))
                .with_hint(format!("restore {parent} first, or create it (zfs create -p {})", hint::word(&parent)))),
            (None, Some(_)) => Ok(()),
        }
    }

    /// Whether a dataset is what a restore has left that was not completed. Once it is no longer excluded, it is an
    /// ordinary dataset, even if the mark of the restore could not be removed any more.
    pub(crate) async fn is_unfinished(&self, dataset: &DatasetName) -> Result<bool, ZfsError> {
        let properties = self.zfs.properties(dataset).await?;
        let is = |property: &str, value: &str| properties.get(property).is_some_and(|found| found == value);
        Ok(is(RESTORING, dataset.as_str()) && is(EXCLUDE, "on"))
    }

    /// What is to be set aside; `None` if nothing is, or if it has been set aside.
    async fn in_the_way(
        &self,
        dataset: &DatasetName,
        found: Option<&DatasetInventory>,
    ) -> Result<Option<&SetAside>, ZfsError> {
        match (&self.purpose, found) {
            (Purpose::Restore { set_aside: Some(aside), .. }, Some(found)) if found.guid == Some(aside.guid) => {
                Ok(if self.is_unfinished(dataset).await? { None } else { Some(aside) })
            }
            _ => Ok(None),
        }
    }

    /// Removes from a listing what is to be set aside, as it will be missing when the first stream is received.
    pub(crate) async fn without_what_is_in_the_way(
        &self,
        dataset: &DatasetName,
        found: Option<DatasetInventory>,
        surroundings: Surroundings,
    ) -> Result<(Option<DatasetInventory>, Surroundings), ZfsError> {
        Ok(match self.in_the_way(dataset, found.as_ref()).await? {
            Some(_) => (None, Surroundings { key_conflict: None, ..surroundings }),
            None => (found, surroundings),
        })
    }

    /// Checks that what is in the way may be set aside, if anything is. `source` is the host of the copy.
    pub(crate) async fn check_set_aside(&self, dataset: &DatasetName, source: &HostName) -> Result<(), OrderError> {
        let found = self.list(dataset).await?;
        let Some(SetAside { dataset: aside, .. }) = self.in_the_way(dataset, found.as_ref()).await? else {
            return Ok(());
        };
        let refused = |reason: &str| OrderError::refused(format!("cannot rename {dataset} to {aside}: {reason}"));
        if dataset.parent().is_none() || aside.parent() != dataset.parent() {
            return Err(refused("only a dataset below a pool is set aside, with a name next to its own"));
        }
        if self.list(aside).await?.is_some() {
            return Err(refused("a dataset with the new name exists"));
        }
        self.local.permission_to_restore(dataset)?;
        self.check_rename(source, dataset, aside).await
    }

    /// Renames what is in the way, with everything below it, so that it is excluded from all policies and is not mounted
    /// in the place of what is restored when the host starts.
    async fn set_aside_for_restore(&self, dataset: &DatasetName, source: &HostName) -> Result<(), OrderError> {
        self.check_set_aside(dataset, source).await?;
        let found = self.list(dataset).await?;
        let Some(SetAside { dataset: aside, .. }) = self.in_the_way(dataset, found.as_ref()).await? else {
            return Ok(());
        };
        self.rename_aside(dataset, aside, "a copy is restored in its place").await?;
        for (name, found) in self.zfs.list(std::slice::from_ref(aside), Depth::Recursive).await? {
            let is_off = self.zfs.properties(&name).await?.get("canmount").is_some_and(|value| value == "off");
            if found.kind == DatasetKind::Filesystem
                && !is_off
                && let Err(error) = self.zfs.set(&name, "canmount", "noauto").await
            {
                log::warn!("{name}: cannot set canmount=noauto: {error}");
            }
        }
        Ok(())
    }

    /// The arguments of `zfs receive` for a restore. What is in the way is set aside.
    pub(super) async fn prepare_restore(
        &self,
        dataset: &DatasetName,
        source: &HostName,
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
            self.set_aside_for_restore(dataset, source).await?;
            let all = [("readonly", "on"), (EXCLUDE, "on"), (RESTORING, dataset.as_str())];
            properties.extend(all.map(|(name, value)| (name.to_owned(), value.to_owned())));
            let is_plain = flags.is_some_and(|flags| flags != SendFlags::Raw);
            if is_plain && surroundings.is_below_raw_copy {
                properties.insert("encryption".to_owned(), "off".to_owned());
            }
        }
        Ok(ReceiveSpec { dataset: dataset.clone(), properties, origin: None, overwrite: false, is_unresumable })
    }

    /// Completes a restore of which everything has arrived: sets the properties, and from now on, the dataset is an
    /// ordinary one. What excludes it is removed last, so that an interrupted completion is repeated. Returns
    /// which properties were not set, each with the reason.
    pub(crate) async fn complete_restore(
        &self,
        dataset: &DatasetName,
        properties: &BTreeMap<String, String>,
        key_from: Option<&DatasetName>,
    ) -> Result<Vec<String>, ZfsError> {
        let mut not_set = Vec::new();
        if let Some(root) = key_from {
            self.zfs.set(dataset, KEY_FROM, root.as_str()).await?;
        }
        for (name, value) in properties.iter().filter(|(name, _)| *name != READONLY) {
            if let Err(why) = self.restore_property(dataset, name, value, properties).await? {
                not_set.push(format!("{name} was not set: {why}"));
            }
        }
        match properties.get(READONLY) {
            Some(value) => self.zfs.set(dataset, READONLY, value).await?,
            None => self.zfs.inherit(dataset, READONLY).await?,
        }
        for property in [FLAGS, EXCLUDE, RESTORING] {
            self.zfs.inherit(dataset, property).await?;
        }
        log::info!("restored {dataset}");
        not_set.iter().for_each(|what| log::warn!("{dataset}: {what}"));
        Ok(not_set)
    }

    /// Sets one property of what is restored. The inner error says why it cannot be set here; an outer one ends the
    /// attempt.
    async fn restore_property(
        &self,
        dataset: &DatasetName,
        name: &str,
        value: &str,
        all: &BTreeMap<String, String>,
    ) -> Result<Result<(), String>, ZfsError> {
        if !is_restorable(name) {
            return Ok(Err("a restore does not set it".to_owned()));
        }
        let is_mounted = all.get("canmount").is_none_or(|value| value == "on");
        if name == "mountpoint" && is_mounted && is_occupied(Path::new(value)) {
            let set = hint::word(&format!("mountpoint={value}"));
            let command = format!("zfs set {set} {}", hint::word(dataset));
            return Ok(Err(format!("{value} is not an empty folder; to mount it there nevertheless: {command}")));
        }
        match self.zfs.set(dataset, name, value).await {
            Ok(()) => Ok(Ok(())),
            // What is wrong concerns more than this property. The next attempt continues.
            Err(error) if error.kind.is_about_pool() || error.kind == ErrorKind::Missing => Err(error),
            Err(error) => Ok(Err(error.to_string())),
        }
    }
}
