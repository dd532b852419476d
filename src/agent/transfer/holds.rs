//! What a transfer leaves in ZFS on the source: holds while it runs, a cursor when it has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::agent::transfer::course::{SendRequest, TransferState};
use crate::agent::{Agent, Failure};
use crate::model::tags;
use crate::model::{DatasetInventory, Guid, SnapName};
use crate::sys::runtime;
use crate::zfs::{Named, Zfs};

fn held(ours: &DatasetInventory) -> Vec<SnapName> {
    ours.snapshots.iter().filter(|s| s.userrefs > 0).map(|s| s.name.clone()).collect()
}

/// Waits until what is being held is. What cannot be is told: the transfer goes on without.
async fn held_now(job: &SendRequest, course: &mut TransferState) {
    for holding in std::mem::take(&mut course.holding) {
        if let Err(error) = holding.await {
            log::warn!("{}: should the transfer break off, it may have to begin anew: {error}", job.dataset);
        }
    }
}

impl<Z: Zfs> Agent<Z> {
    /// Releases what transfers to places that the dataset is not sent to any more left held: they would be held for
    /// ever. Nobody else sends this dataset meanwhile; it is claimed.
    pub(crate) async fn release_leftovers(&self, job: &SendRequest, ours: &DatasetInventory) -> Result<(), Failure> {
        let held = held(ours);
        // Without a list of all places, nobody knows which are left over.
        if job.destinations.is_empty() || held.is_empty() {
            return Ok(());
        }
        let current: BTreeSet<String> = job.destinations.iter().chain([&job.to]).map(tags::sending).collect();
        let mut left: BTreeMap<String, Vec<SnapName>> = BTreeMap::new();
        for (name, tag) in self.zfs.holds(&job.dataset, &held).await? {
            if tags::is_sending(&tag) && !current.contains(&tag) {
                left.entry(tag).or_default().push(name);
            }
        }
        for (tag, names) in left {
            log::info!("{}: holds {tag} of a destination that it has not any more are released", job.dataset);
            self.zfs.release(&tag, &job.dataset, &names).await?;
        }
        Ok(())
    }

    /// Begins to hold what the stream under way needs, unless that is so already.
    pub(crate) fn begin_to_hold(&self, job: &SendRequest, course: &mut TransferState) {
        let names = std::mem::take(&mut course.needed);
        if names.is_empty() {
            return;
        }
        // Noted first: of several, some may be held when that fails.
        course.held.extend(names.iter().cloned());
        let (zfs, tag, dataset) = (Arc::clone(&self.zfs), tags::sending(&job.to), job.dataset.clone());
        course.holding.push(runtime::spawn(async move { zfs.hold(&tag, &dataset, &names).await }));
    }

    /// Has what a stream needs held from now on: it may be gone on with, or nobody knows.
    pub(crate) async fn keep(&self, job: &SendRequest, course: &mut TransferState) {
        self.begin_to_hold(job, course);
        held_now(job, course).await;
    }

    /// Releases what this order held, and what earlier ones that broke off left held.
    pub(crate) async fn release(
        &self,
        job: &SendRequest,
        ours: &DatasetInventory,
        course: &mut TransferState,
    ) -> Result<(), Failure> {
        held_now(job, course).await;
        let mut of_order = std::mem::take(&mut course.held);
        let tag = tags::sending(&job.to);
        let left = self.zfs.holds(&job.dataset, &held(ours)).await?.into_iter().filter(|(_, t)| *t == tag);
        of_order.extend(left.map(|(name, _)| name));
        let names: Vec<SnapName> = of_order.into_iter().collect();
        Ok(self.zfs.release(&tag, &job.dataset, &names).await?)
    }

    /// Moves the cursor: the new bookmark first, then the older ones go.
    pub(crate) async fn move_cursor(
        &self,
        job: &SendRequest,
        ours: &DatasetInventory,
        guid: Guid,
    ) -> Result<(), Failure> {
        let cursor =
            tags::cursor(&job.dataset, &job.to, guid).map_err(|e| Failure::refused(format!("the cursor: {e}")))?;
        if let Some(common) = ours.by_guid(guid) {
            if !ours.bookmarks.iter().any(|b| b.name == cursor && b.guid == guid) {
                // ZFS says that it exists where one of another snapshot has its name: an error, for it is no cursor.
                let common = Named { name: common.name.clone(), guid };
                self.zfs.bookmark(&job.dataset, &common, &cursor).await?;
            }
        } else if !ours.bookmarks.iter().any(|b| b.guid == guid) {
            return Ok(());
        }
        for old in tags::old_cursors(&job.dataset, ours, &job.to, guid) {
            self.zfs.destroy_bookmark(&job.dataset, &old).await?;
        }
        Ok(())
    }
}
