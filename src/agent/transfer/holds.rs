//! Maintains what a transfer leaves in ZFS on the source: holds while it runs, and a cursor (a bookmark of the newest
//! common snapshot) when it has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::agent::transfer::state::{SendPlan, SourceHolds, Transfer};
use crate::host::error::OrderError;
use crate::model::tags;
use crate::model::{DatasetInventory, Guid, SnapName};
use crate::sys::runtime;
use crate::zfs::{ErrorKind, Named, Zfs};

impl SourceHolds {
    /// Starts to hold the snapshots that the current stream needs, unless that was started already.
    pub(super) fn start<Z: Zfs>(&mut self, zfs: &Arc<Z>) {
        let names = std::mem::take(&mut self.needed);
        if names.is_empty() {
            return;
        }
        // The names are recorded first, because if the command fails, some of the snapshots may be held nevertheless.
        self.held.extend(names.iter().cloned());
        let (zfs, tag, dataset) = (Arc::clone(zfs), self.tag.clone(), self.dataset.clone());
        self.pending.push(runtime::spawn(async move { zfs.hold(&tag, &dataset, &names).await }));
    }

    /// Waits for holds in progress. A failed hold is only logged: the transfer continues without it.
    async fn wait(&mut self) {
        for holding in std::mem::take(&mut self.pending) {
            if let Err(error) = holding.await {
                log::warn!("{}: cannot hold snapshots for resuming this transfer later: {error}", self.dataset);
            }
        }
    }
}

impl<Z: Zfs> Transfer<'_, Z> {
    /// Releases the holds of transfers to destinations that are no longer configured, because nothing else does. The
    /// source is locked, so no other transfer of it is running.
    pub(super) async fn release_obsolete_holds(&mut self) -> Result<(), OrderError> {
        let SendPlan { source, to, destinations, .. } = &self.plan;
        let held = self.ours.held();
        // Only an order that names all destinations shows which holds are obsolete.
        if destinations.is_empty() || held.is_empty() {
            return Ok(());
        }
        let current: BTreeSet<String> = destinations.iter().chain([to]).map(tags::sending).collect();
        let mut obsolete: BTreeMap<String, Vec<SnapName>> = BTreeMap::new();
        for (name, tag) in self.agent.zfs.holds(source, &held).await? {
            if tags::is_sending(&tag) && !current.contains(&tag) {
                obsolete.entry(tag).or_default().push(name);
            }
        }
        for (tag, names) in obsolete {
            log::info!("{source}: releasing holds {tag}: that destination is no longer configured");
            self.agent.zfs.release(&tag, source, &names).await?;
        }
        Ok(())
    }

    /// Holds the snapshots that the current stream needs, for a transfer that may be resumed later.
    pub(super) async fn keep_holds(&mut self) {
        self.holds.start(&self.agent.zfs);
        self.holds.wait().await;
    }

    /// Releases the holds of this order, and those that earlier, interrupted orders left.
    pub(super) async fn release_holds(&mut self) -> Result<(), OrderError> {
        self.holds.wait().await;
        let zfs = &self.agent.zfs;
        let SourceHolds { dataset, tag, held: of_order, .. } = &mut self.holds;
        let mut names = std::mem::take(of_order);
        let existing = zfs.holds(dataset, &self.ours.held()).await?;
        names.extend(existing.into_iter().filter(|(_, found)| found == tag).map(|(name, _)| name));
        let names: Vec<SnapName> = names.into_iter().collect();
        Ok(zfs.release(tag, dataset, &names).await?)
    }
}

impl SendPlan {
    /// Moves the cursor. `copy` is the guid of the receiving dataset. First makes the new bookmark, then destroys the
    /// older ones.
    pub(super) async fn move_cursor<Z: Zfs>(
        &self,
        zfs: &Z,
        ours: &DatasetInventory,
        guid: Guid,
        copy: Option<Guid>,
    ) -> Result<(), OrderError> {
        // A restored dataset is no copy that would have to be updated from here.
        if self.purpose.is_restore() {
            return Ok(());
        }
        let Ok(cursor) = tags::cursor(&self.source, &self.to, guid, copy) else {
            // The snapshot in common is kept without it.
            log::debug!("{}: its name is too long for a bookmark that marks what was sent", self.source);
            return Ok(());
        };
        if let Some(common) = ours.by_guid(guid) {
            if !ours.bookmarks.iter().any(|b| b.name == cursor && b.guid == guid) {
                // If a bookmark of another snapshot has this name, ZFS reports that it exists, which is an error here.
                let common = Named { name: common.name.clone(), guid };
                match zfs.bookmark(&self.source, &common, &cursor).await {
                    Err(error) if error.kind == ErrorKind::NotFound => {
                        // The stream arrived all the same. The next one starts from an older snapshot or cursor.
                        log::warn!("{}: cannot mark {} as sent: it was destroyed meanwhile", self.source, common.name);
                        return Ok(());
                    }
                    made => made?,
                }
            }
        } else if !ours.bookmarks.iter().any(|b| b.guid == guid) {
            return Ok(());
        }
        for old in tags::old_cursors(ours, &self.to, guid, copy) {
            zfs.destroy_bookmark(&self.source, &old).await?;
        }
        Ok(())
    }
}
