//! Changes a destination that cannot take the next stream, or that exists under another name: rolls it back, sets it
//! aside, or renames it as its source was renamed. Each change needs the permission of the order and of this host, and
//! none touches a dataset that is not the source's copy.

use crate::host::error::OrderError;
use crate::host::floor::Floor;
use crate::model::tags;
use crate::model::{DatasetInventory, DatasetName, Guid, OnDivergence, ResponseStatus, Snapshot};
use crate::slave::receive::{EXCLUDE, Receiver};
use crate::sys::clock;
use crate::wire::OrderToSlave;
use crate::zfs::{Depth, ErrorKind, Fate, Named, Zfs, ZfsError};

impl<Z: Zfs> Receiver<Z> {
    /// Rolls back to the newest common snapshot, `guid`. The newer snapshots must be exactly `destroys`, the order must
    /// allow destroying them, and none of them may be held or have clones.
    pub(crate) async fn rollback(&self, order: &OrderToSlave, guid: Guid, destroys: &[Guid]) -> Result<(), OrderError> {
        let dataset = &order.dest_dataset;
        let refused = |reason: &str| OrderError::refused(format!("cannot roll back {dataset}: {reason}"));
        if !order.rollback_if_needed {
            return Err(refused("the order does not allow it"));
        }
        if !destroys.is_empty() && !order.rollback_may_destroy {
            return Err(refused("the order does not allow destroying snapshots"));
        }
        self.local.permission_to_roll_back(dataset)?;
        let found = self.list(dataset).await?;
        let Some(at) = found.as_ref().and_then(|f| f.snapshots.iter().position(|s| s.guid == guid)) else {
            return Err(refused("the common snapshot no longer exists"));
        };
        let found = found.unwrap_or_default();
        let now = clock::now();
        let floor = Floor::of(&*self.zfs, &self.local, dataset, &found, now).await?;
        let (common, newer) = (&found.snapshots[at], &found.snapshots[at + 1..]);
        if !newer.iter().map(|s| s.guid).eq(destroys.iter().copied()) {
            let reason = format!("cannot roll back {dataset}: the snapshots after @{} have changed", common.name);
            return Err(OrderError::temporary(ResponseStatus::WasWritten, reason));
        }
        floor.record(&*self.zfs, dataset, now).await?;
        if let Some((kept, why)) = newer.iter().find_map(|s| Some((s, floor.kept.get(&s.guid)?))) {
            return Err(refused(&format!("that would destroy @{}, and {why}", kept.name)));
        }
        if let (false, Some(_)) = (newer.is_empty(), self.local.destroy_after(dataset)) {
            // ZFS rolls back only if the newer snapshots are destroyed at once.
            let reason = "that would destroy snapshots, which \"destroy_after\" in local.json keeps in the trash first";
            return Err(refused(reason).with_hint(
                "set \"on_divergence\": \"set_aside\" in server.json, which keeps the copy under another name and starts a new one",
            ));
        }
        if found.resume_token.is_some() {
            self.zfs.abort_receive(dataset).await?;
        }
        if newer.is_empty() {
            log::warn!("{dataset} was modified; rolling it back to @{}, as the policy allows", common.name);
        } else {
            self.destroy_newer(order, &found, common, newer).await?;
        }
        // ZFS does not roll back past a bookmark. Only zsync's own cursors may be destroyed for that.
        for cursor in found.bookmarks.iter().filter(|b| b.createtxg > common.createtxg && tags::is_cursor(&b.name)) {
            self.zfs.destroy_bookmark(dataset, &cursor.name).await?;
        }
        self.zfs.rollback(dataset, &common.name).await.map_err(OrderError::receiving)
    }

    /// Destroys the snapshots that a rollback loses: all of them or none.
    async fn destroy_newer(
        &self,
        order: &OrderToSlave,
        found: &DatasetInventory,
        common: &Snapshot,
        newer: &[Snapshot],
    ) -> Result<(), OrderError> {
        let dataset = &order.dest_dataset;
        let names = newer.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
        // zsync's own hold may be on the newest of them. It is moved to the common snapshot, because there must always
        // be one.
        self.move_hold(dataset, &mut found.clone(), &order.source, common.guid).await?;
        log::warn!("rolling {dataset} back to @{}, which destroys {names}, as the policy allows", common.name);
        let named = |s: &Snapshot| Named { name: s.name.clone(), guid: s.guid };
        let victims: Vec<Named> = newer.iter().map(named).collect();
        let fates = self.zfs.destroy(dataset, &victims, &[named(common)], true).await?;
        if fates.iter().all(|fate| matches!(fate, Fate::Destroyed | Fate::Gone)) {
            return Ok(());
        }
        let obstacle = victims.iter().zip(&fates).find_map(|(victim, fate)| {
            let why = match fate {
                Fate::Destroyed | Fate::Gone | Fate::Spared => return None,
                Fate::Held => "is held",
                Fate::Cloned => "has clones",
                Fate::Busy => "is in use",
                Fate::Another => "is now another snapshot",
                Fate::Failed(_) => "cannot be destroyed",
            };
            Some(format!("{} {why}", dataset.at(&victim.name)))
        });
        let why = obstacle.unwrap_or_else(|| format!("{} no longer exists", dataset.at(&common.name)));
        let reason = format!("cannot roll back {dataset} to @{}: {why}", common.name);
        Err(OrderError::new(ResponseStatus::WasWritten, reason))
    }

    /// Renames a dataset that cannot take increments, with everything below it, and excludes it from zsync. Returns the
    /// new name.
    pub(crate) async fn set_aside(
        &self,
        order: &OrderToSlave,
        newest: Option<Guid>,
    ) -> Result<DatasetName, OrderError> {
        let dataset = &order.dest_dataset;
        if order.on_divergence != OnDivergence::SetAside {
            return Err(OrderError::refused(format!("cannot set {dataset} aside: the order does not allow it")));
        }
        let found = self.list(dataset).await?;
        let Some(found) = found.filter(|found| found.newest().map(|s| s.guid) == newest) else {
            let reason = format!("cannot set {dataset} aside: its newest snapshot has changed");
            return Err(OrderError::temporary(ResponseStatus::WasWritten, reason));
        };
        if dataset.parent().is_none() {
            return Err(OrderError::refused(format!("cannot set {dataset} aside: it is a pool"))
                .with_hint("name a dataset below it in the policy"));
        }
        let aside = self.free_name(dataset).await?;
        self.check_rename(&order.source, dataset, &aside).await?;
        if found.resume_token.is_some() {
            self.zfs.abort_receive(dataset).await?;
        }
        let why = format!("it cannot take what {} sends: a new copy begins", order.source);
        self.rename_aside(dataset, &aside, &why).await?;
        for (name, inventory) in self.zfs.list(std::slice::from_ref(&aside), Depth::Recursive).await? {
            let holds = self.received_holds(&name, &inventory).await?;
            self.release(&name, holds).await?;
        }
        Ok(aside)
    }

    /// Renames a dataset with everything below it, and excludes it from all policies.
    pub(super) async fn rename_aside(
        &self,
        dataset: &DatasetName,
        aside: &DatasetName,
        why: &str,
    ) -> Result<(), OrderError> {
        self.rename(dataset, aside).await.map_err(|error| match error.kind {
            ErrorKind::Busy => OrderError::receiving(error)
                .with_hint(format!("stop the programs that use {dataset} (fuser -vm shows them)")),
            _ => OrderError::receiving(error),
        })?;
        log::warn!("renamed {dataset} to {aside}, because {why}");
        if let Err(error) = self.zfs.set(aside, EXCLUDE, "on").await {
            log::warn!("{aside}: cannot set {EXCLUDE}=on: {error}");
        }
        Ok(())
    }

    /// A name next to the dataset's that shows what happened and when, and that no dataset has yet.
    async fn free_name(&self, dataset: &DatasetName) -> Result<DatasetName, OrderError> {
        let stamp = clock::now().format("%Y%m%dT%H%M%SZ");
        for number in 1..100 {
            let more = if number == 1 { String::new() } else { format!("_{number}") };
            let name: DatasetName = format!("{dataset}_diverged_{stamp}{more}")
                .parse()
                .map_err(|error| OrderError::refused(format!("cannot set {dataset} aside: {error}")))?;
            if self.list(&name).await?.is_none() {
                return Ok(name);
            }
        }
        Err(OrderError::refused(format!("cannot set {dataset} aside: all names for it are taken")))
    }

    /// Renames the copy as its source was renamed, after checking by its hold that it is that source's copy.
    pub(crate) async fn follow_rename(&self, order: &OrderToSlave) -> Result<(), OrderError> {
        let dataset = &order.dest_dataset;
        let Some(from) = &order.renamed_from else {
            return Err(OrderError::refused("the order names no former name"));
        };
        let old = &from.dataset;
        let refused = |reason: &str| OrderError::refused(format!("cannot rename {old} to {dataset}: {reason}"));
        self.local.permission_to_receive(old, &order.source)?;
        self.local.permission_to_rename(old, dataset)?;
        self.check_owner_unlocked(&order.source, old).await?;
        let Some(_claim) = self.locks.claim(old) else {
            return Err(OrderError::busy(format!(
                "cannot rename {old} to {dataset}: a stream is being received into it"
            )));
        };
        let Some(found) = self.list(old).await? else { return Err(refused("it does not exist")) };
        if found.by_guid(from.guid).is_none() {
            return Err(refused(&format!("it has no snapshot with the guid {}", from.guid)));
        }
        let tag = tags::received(&order.source);
        if !self.received_holds(old, &found).await?.iter().any(|(_, found)| *found == tag) {
            return Err(refused(&format!("it has no hold {tag}")));
        }
        self.check_rename(&order.source, old, dataset).await?;
        let (taken, surroundings) = self.list_around(dataset).await?;
        if surroundings.encrypts && !found.encrypted {
            return Err(refused("it is not encrypted, but a new copy with that name would be"));
        }
        match taken {
            Some(other) if from.exchange => self.exchange(order, &other, old).await?,
            Some(other) if from.displace => drop(self.displace(order, &other, old).await?),
            Some(_) => return Err(refused("a dataset with the new name exists")),
            None => {
                self.zfs.create_ancestors(dataset).await.map_err(OrderError::receiving)?;
                self.follow(old, dataset).await?;
            }
        }
        log::warn!("renamed {old} to {dataset}, because {} was renamed on {}", from.source_dataset, order.source);
        Ok(())
    }

    /// Lets the destination, which is the copy of another dataset of the same host, and `old` exchange their names.
    async fn exchange(
        &self,
        order: &OrderToSlave,
        other: &DatasetInventory,
        old: &DatasetName,
    ) -> Result<(), OrderError> {
        let dataset = &order.dest_dataset;
        let refused =
            |reason: &str| OrderError::refused(format!("cannot exchange the names of {old} and {dataset}: {reason}"));
        let (_, surroundings) = self.list_around(old).await?;
        if surroundings.encrypts && !other.encrypted {
            return Err(refused("one is not encrypted, but a new copy in its place would be"));
        }
        self.check_rename(&order.source, dataset, old).await?;
        let between = self.displace(order, other, old).await?;
        self.follow(&between, old).await?;
        log::warn!("renamed {dataset} to {old}, which had its name");
        Ok(())
    }

    /// Gives `old` the name of the destination, which is the copy of another dataset of the same host. Returns the name
    /// that the destination gets. It shows what the destination was called, so that the next order or pass can rename it
    /// from there.
    async fn displace(
        &self,
        order: &OrderToSlave,
        other: &DatasetInventory,
        old: &DatasetName,
    ) -> Result<DatasetName, OrderError> {
        let dataset = &order.dest_dataset;
        let refused = |reason: &str| OrderError::refused(format!("cannot rename {old} to {dataset}: {reason}"));
        let tag = tags::received(&order.source);
        if !self.received_holds(dataset, other).await?.iter().any(|(_, found)| *found == tag) {
            return Err(refused(&format!("{dataset} has no hold {tag}")));
        }
        if dataset.is_within(old) || old.is_within(dataset) {
            return Err(refused("one contains the other"));
        }
        let between = tags::name_between(dataset).map_err(|error| refused(&error.to_string()))?;
        // It keeps that name if the next rename fails.
        self.check_rename(&order.source, dataset, &between).await?;
        if self.list(&between).await?.is_some() {
            return Err(refused(&format!("{between} exists")).with_hint(format!("rename {between}")));
        }
        self.follow(dataset, &between).await?;
        if let Err(error) = self.follow(old, dataset).await {
            self.rename(&between, dataset).await.map_err(OrderError::receiving)?;
            return Err(error);
        }
        log::warn!("renamed {dataset} to {between}, until it can have the new name of its source");
        Ok(between)
    }

    /// Renames a copy with everything below it, so that it has another name.
    async fn follow(&self, copy: &DatasetName, to: &DatasetName) -> Result<(), OrderError> {
        let busy = "end what uses it or a dataset below it, or unmount them (zfs unmount)";
        self.rename(copy, to).await.map_err(|error| match error.kind {
            ErrorKind::Busy => OrderError::receiving(error).with_hint(busy),
            _ => OrderError::receiving(error),
        })
    }

    /// Renames a dataset with everything below it. The published records of this host are then out of date.
    async fn rename(&self, from: &DatasetName, to: &DatasetName) -> Result<(), ZfsError> {
        let renamed = self.zfs.rename(from, to).await;
        if let Some(publisher) = &self.publisher {
            publisher.lapse(&format!("{from} was renamed to {to}, with everything below it"));
        }
        renamed
    }
}
