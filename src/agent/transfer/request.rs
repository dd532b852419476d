//! Finds in ZFS what an order to send names: its dataset, its snapshot, and what both sides have in common.

use std::time::Instant;

use crate::agent::cache::Sides;
use crate::agent::request::SendRequest;
use crate::agent::service::Agent;
use crate::agent::transfer::state::SendPlan;
use crate::host::error::OrderError;
use crate::model::{DatasetInventory, DatasetName, Guid, HostName, OrderId, Origin, Snapshot, SnapshotId};
use crate::slave::receive::{Purpose, Surroundings};
use crate::wire::{CloneOf, OrderToSlave, PROTOCOL};
use crate::zfs::{Depth, Zfs};

impl<Z: Zfs> Agent<Z> {
    /// The dataset of a snapshot: the one that the order names, otherwise the one in which the snapshot is found.
    pub(crate) async fn dataset_of(
        &self,
        dataset: Option<&DatasetName>,
        snapshot: SnapshotId,
        to: &HostName,
    ) -> Result<DatasetName, OrderError> {
        if let Some(dataset) = dataset {
            return Ok(dataset.clone());
        }
        let listed = self.zfs.list(&self.local.roots(), Depth::Recursive).await?;
        let has = |inventory: &DatasetInventory| inventory.snapshots.iter().any(|s| s.guid.uuid() == snapshot);
        let may_list = |name: &DatasetName| self.local.permission_to_list(name).is_ok();
        let mut found: Vec<DatasetName> =
            listed.into_iter().filter(|(name, of)| may_list(name) && has(of)).map(|(name, _)| name).collect();
        // Copies on this host have the same snapshot. If none may be sent, the first one's refusal gives the reason.
        found.sort_by_key(|name| self.local.permission_to_send(name, to).is_err());
        let none = || OrderError::refused(format!("no dataset here has a snapshot with the UUID {snapshot}"));
        found.into_iter().next().ok_or_else(none)
    }

    /// Lists a dataset that is to be sent.
    pub(crate) async fn list_source(
        &self,
        dataset: &DatasetName,
        to: &HostName,
        purpose: &Purpose,
    ) -> Result<DatasetInventory, OrderError> {
        self.check_may_send(dataset, to, purpose).await?;
        Ok(self.list_sides(dataset, None).await?.ours)
    }

    /// Checks that snapshots of a dataset may be sent to a host.
    pub(super) async fn check_may_send(
        &self,
        dataset: &DatasetName,
        to: &HostName,
        purpose: &Purpose,
    ) -> Result<(), OrderError> {
        if purpose.is_restore() {
            let has_come_from_there = self.has_come_from(dataset, to).await?;
            self.local.permission_to_send_back(dataset, to, has_come_from_there)?;
        } else {
            self.local.permission_to_send(dataset, to)?;
        }
        Ok(())
    }

    /// Both sides of a transfer, or only the source if the destination is on another host. With `may_use_cache`, cached
    /// listings are used if they are fresh and sufficient.
    pub(super) async fn sides(
        &self,
        source: &DatasetName,
        snapshot: SnapshotId,
        destination: Option<&DatasetName>,
        may_use_cache: bool,
    ) -> Result<Sides, OrderError> {
        let cached = destination.filter(|_| may_use_cache).and_then(|to| self.cache.sides(source, snapshot, to));
        match cached {
            Some(sides) => Ok(sides),
            None => self.list_sides(source, destination).await,
        }
    }

    async fn list_sides(&self, source: &DatasetName, destination: Option<&DatasetName>) -> Result<Sides, OrderError> {
        let names: Vec<DatasetName> = [Some(source), destination].into_iter().flatten().cloned().collect();
        // With `Depth::Around`, this listing is not batched with the listings after streams, which wait for streams
        // that are about to end. So transfers join the queue in the order of their arrival.
        let mut listed = self.zfs.list(&names, Depth::Around).await?;
        let at = Instant::now();
        let surroundings = match destination {
            Some(to) => Surroundings::of(&*self.zfs, to, &listed).await?,
            None => Surroundings::default(),
        };
        let mut take = |wanted: &DatasetName| {
            let at = listed.iter().position(|(name, _)| name == wanted)?;
            Some(listed.swap_remove(at).1)
        };
        let ours = take(source).ok_or_else(|| OrderError::refused(format!("{source} does not exist")))?;
        let theirs = destination.and_then(take);
        Ok(Sides { at, from_cache: false, sees_all: true, ours, theirs, surroundings })
    }

    /// Plans the order for a source as it is now.
    pub(super) async fn plan_send(
        &self,
        request: &SendRequest,
        source: DatasetName,
        ours: &DatasetInventory,
    ) -> Result<SendPlan, OrderError> {
        let target = find_snapshot(&source, ours, request.snapshot)?.clone();
        let origin = match request.origin_dataset {
            Some(_) => self.origin(ours).await?,
            None => None,
        };
        let (to, allowed, destinations) = (request.to.clone(), request.allowed, request.destinations.clone());
        let (renamed_from, purpose) = (request.renamed_from.clone(), request.purpose.clone());
        Ok(SendPlan { source, target, to, allowed, origin, renamed_from, destinations, purpose })
    }

    /// The snapshot that a dataset is a clone of.
    async fn origin(&self, ours: &DatasetInventory) -> Result<Option<(Origin, Guid)>, OrderError> {
        let Some(origin) = &ours.origin else { return Ok(None) };
        let listed = self.zfs.list(std::slice::from_ref(&origin.dataset), Depth::Only).await?;
        let mut snapshots = listed.into_iter().flat_map(|(_, inventory)| inventory.snapshots);
        Ok(snapshots.find(|s| s.name == origin.name).map(|s| (origin.clone(), s.guid)))
    }

    /// The order that a receiver gets.
    pub(super) fn order_to_slave(&self, id: OrderId, request: &SendRequest, plan: &SendPlan) -> OrderToSlave {
        let clone_of = request.origin_dataset.clone().zip(plan.origin.as_ref());
        OrderToSlave {
            source: self.host.clone(),
            order_uuid: id,
            snapshot_uuid: request.snapshot.to_string(),
            snapshot_name: plan.target.name.clone(),
            dest_dataset: plan.to.dataset.clone(),
            protocol: PROTOCOL,
            source_dataset: Some(plan.source.clone()),
            rollback_if_needed: plan.allowed.rollback,
            rollback_may_destroy: plan.allowed.may_destroy,
            on_divergence: plan.allowed.on_divergence,
            clone_of: clone_of.map(|(dataset, (_, guid))| CloneOf { dataset, guid: *guid }),
            renamed_from: request.renamed_from.clone(),
            oldest_unsent: request.oldest_unsent,
            start_by: request.start_by,
        }
    }
}

/// The order's snapshot in a listing of its dataset.
pub(crate) fn find_snapshot<'a>(
    source: &DatasetName,
    ours: &'a DatasetInventory,
    id: SnapshotId,
) -> Result<&'a Snapshot, OrderError> {
    ours.snapshots.iter().find(|s| s.guid.uuid() == id).ok_or_else(|| {
        OrderError::refused(format!("{source} no longer has a snapshot with the UUID {id}"))
            .with_hint("the next pass of the director sends the newest one")
    })
}

/// The newest of `theirs` that `ours` has as a snapshot or as a bookmark.
pub(super) fn newest_common(ours: &DatasetInventory, theirs: &DatasetInventory) -> Option<Guid> {
    let has = |guid: Guid| ours.by_guid(guid).is_some() || ours.bookmarks.iter().any(|b| b.guid == guid);
    theirs.snapshots.iter().rev().map(|s| s.guid).find(|guid| has(*guid))
}
