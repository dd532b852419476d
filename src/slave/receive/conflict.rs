//! What is done about a destination that cannot take the next stream, or is there under another name: always by an
//! order's leave, never on a stranger's.

use crate::model::tags;
use crate::model::{DatasetInventory, DatasetName, Guid, OnDivergence, ResponseStatus, Snapshot};
use crate::slave::receive::{Receiving, StepError};
use crate::sys::clock;
use crate::wire::OrderToSlave;
use crate::zfs::{Depth, Fate, Named, Zfs, ZfsError};

impl<Z: Zfs> Receiving<Z> {
    /// Rolls back to the newest common snapshot, `guid`. What is newer there must be exactly `destroys`, which an order
    /// must allow to be destroyed; nothing that is held or has clones is.
    pub async fn rollback(&self, order: &OrderToSlave, guid: Guid, destroys: &[Guid]) -> Result<(), StepError> {
        let dataset = &order.dest_dataset;
        let refused =
            |reason: &str| StepError::new(ResponseStatus::Refused, format!("{dataset} is not rolled back: {reason}"));
        if !order.rollback_if_needed {
            return Err(refused("the order does not allow it"));
        }
        if !destroys.is_empty() && !order.rollback_may_destroy {
            return Err(refused("the order does not allow snapshots to be destroyed for that"));
        }
        self.local.permission_to_destroy(dataset)?;
        let found = self.look(dataset).await?;
        let Some(at) = found.as_ref().and_then(|f| f.snapshots.iter().position(|s| s.guid == guid)) else {
            return Err(refused("the common snapshot is not there any more"));
        };
        let found = found.unwrap_or_default();
        let (common, newer) = (&found.snapshots[at], &found.snapshots[at + 1..]);
        if !newer.iter().map(|s| s.guid).eq(destroys.iter().copied()) {
            let reason = format!("{dataset} is not rolled back: it has other snapshots after @{} by now", common.name);
            return Err(StepError::temporary(ResponseStatus::WasWritten, reason));
        }
        if found.resume_token.is_some() {
            self.zfs.abort_receive(dataset).await?;
        }
        if newer.is_empty() {
            log::warn!("{dataset} was written to and is rolled back to @{}, as the policy allows", common.name);
        } else {
            self.destroy_newer(order, &found, common, newer).await?;
        }
        // Cursors of what is gone: ZFS rolls back over no bookmark, and no others may go.
        for cursor in found.bookmarks.iter().filter(|b| b.createtxg > common.createtxg && tags::is_cursor(&b.name)) {
            self.zfs.destroy_bookmark(dataset, &cursor.name).await?;
        }
        Ok(self.zfs.rollback(dataset, &common.name).await?)
    }

    /// Destroys what a rollback loses: all of it or nothing.
    async fn destroy_newer(
        &self,
        order: &OrderToSlave,
        found: &DatasetInventory,
        common: &Snapshot,
        newer: &[Snapshot],
    ) -> Result<(), StepError> {
        let dataset = &order.dest_dataset;
        let names = newer.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
        // The newest of them may have our own hold: it goes over to the common one, which is never without.
        self.settle(dataset, &mut found.clone(), &order.source, common.guid).await?;
        log::warn!("{dataset} is rolled back to @{}, which destroys {names}, as the policy allows", common.name);
        let named = |s: &Snapshot| Named { name: s.name.clone(), guid: s.guid };
        let victims: Vec<Named> = newer.iter().map(named).collect();
        let fates = self.zfs.destroy(dataset, &victims, &[named(common)], true).await?;
        let left = victims.iter().zip(&fates).find_map(|(victim, fate)| {
            let why = match fate {
                Fate::Destroyed | Fate::Gone | Fate::Spared => return None,
                Fate::Held => "is held",
                Fate::Cloned => "has clones",
                Fate::Another => "is another one by now",
                Fate::Failed(_) => "cannot be destroyed",
            };
            Some(format!("{} {why}", dataset.at(&victim.name)))
        });
        let all_gone = fates.iter().all(|fate| matches!(fate, Fate::Destroyed | Fate::Gone));
        match left {
            None if all_gone => Ok(()),
            left => {
                let why = left.unwrap_or_else(|| format!("{} is gone", dataset.at(&common.name)));
                let reason = format!("{dataset} is not rolled back to @{}: {why}", common.name);
                Err(StepError::new(ResponseStatus::WasWritten, reason))
            }
        }
    }

    /// Renames a dataset that cannot take increments, with all below it, and has zsync leave it alone from then on.
    /// Gives the new name.
    pub async fn set_aside(&self, order: &OrderToSlave, newest: Option<Guid>) -> Result<DatasetName, StepError> {
        let dataset = &order.dest_dataset;
        if order.on_divergence != OnDivergence::SetAside {
            let reason = format!("{dataset} is not set aside: the order does not allow it");
            return Err(StepError::new(ResponseStatus::Refused, reason));
        }
        let found = self.look(dataset).await?;
        let Some(found) = found.filter(|found| found.newest().map(|s| s.guid) == newest) else {
            let reason = format!("{dataset} is not set aside: it has changed meanwhile");
            return Err(StepError::temporary(ResponseStatus::WasWritten, reason));
        };
        if dataset.parent().is_none() {
            let reason = format!("{dataset} is a pool and cannot be set aside; name a dataset below it in the policy");
            return Err(StepError::new(ResponseStatus::Refused, reason));
        }
        let aside = self.free_name(dataset).await?;
        self.local.permission_to_rename(dataset, &aside)?;
        if found.resume_token.is_some() {
            self.zfs.abort_receive(dataset).await?;
        }
        self.rename(dataset, &aside).await?;
        log::warn!("{dataset} cannot take what {} sends: it is {aside} now, and begins anew", order.source);
        // From here on it is nobody's copy.
        if let Err(error) = self.zfs.set(&aside, tags::EXCLUDE, "on").await {
            log::warn!("{aside}: {}=on could not be set: {error}", tags::EXCLUDE);
        }
        for (name, inventory) in self.zfs.list(std::slice::from_ref(&aside), Depth::Recursive).await? {
            let holds = self.received_holds(&name, &inventory).await?;
            self.release(&name, holds).await?;
        }
        Ok(aside)
    }

    /// A name beside the dataset's that tells what happened and when, and is nobody's yet.
    async fn free_name(&self, dataset: &DatasetName) -> Result<DatasetName, StepError> {
        let stamp = clock::now().format("%Y%m%dT%H%M%SZ");
        for number in 1..100 {
            let more = if number == 1 { String::new() } else { format!("_{number}") };
            let name: DatasetName = format!("{dataset}_diverged_{stamp}{more}").parse().map_err(|error| {
                StepError::new(ResponseStatus::Refused, format!("{dataset} cannot be set aside: {error}"))
            })?;
            if self.look(&name).await?.is_none() {
                return Ok(name);
            }
        }
        Err(StepError::new(ResponseStatus::Refused, format!("{dataset} cannot be set aside: all names are taken")))
    }

    /// Renames the copy as its source was renamed, if it is that source's: its hold says so.
    pub async fn follow(&self, order: &OrderToSlave) -> Result<(), StepError> {
        let dataset = &order.dest_dataset;
        let Some(from) = &order.renamed_from else {
            return Err(StepError::new(ResponseStatus::Refused, "the order names no former name"));
        };
        let old = &from.dataset;
        let not = |reason: String| {
            StepError::new(ResponseStatus::Refused, format!("{old} is not renamed to {dataset}: {reason}"))
        };
        self.local.permission_to_receive(old, &order.source)?;
        self.local.permission_to_rename(old, dataset)?;
        let Some(_claim) = self.busy.claim(old) else { return Err(not("it is being received into".into())) };
        let Some(found) = self.look(old).await? else { return Err(not("it is not there".into())) };
        if found.by_guid(from.guid).is_none() {
            return Err(not(format!("it has no snapshot with the guid {}", from.guid)));
        }
        let tag = tags::received(&order.source);
        if !self.received_holds(old, &found).await?.iter().any(|(_, found)| *found == tag) {
            return Err(not(format!("nothing in it is held by {tag}")));
        }
        if self.look(dataset).await?.is_some() {
            return Err(not("that exists".into()));
        }
        self.zfs.create_ancestors(dataset).await?;
        self.rename(old, dataset).await?;
        log::warn!("{old} is {dataset} now, as {} was renamed on {}", from.source_dataset, order.source);
        Ok(())
    }

    /// Renames a dataset with all below it: what is published of this host is to be compared with ZFS.
    async fn rename(&self, from: &DatasetName, to: &DatasetName) -> Result<(), ZfsError> {
        let renamed = self.zfs.rename(from, to).await;
        if let Some(publisher) = &self.publisher {
            publisher.lapse(&format!("{from} was renamed to {to}, with all below it"));
        }
        renamed
    }
}
