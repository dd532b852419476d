//! Predicts the inventory after orders have been carried out, for previews and simulations.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use chrono::{DateTime, Utc};

use crate::actions::divergence::{Allowed, Remedy, Trouble, remedy};
use crate::actions::lineage;
use crate::actions::order::Order;
use crate::actions::route::{Occupied, Renamed, Route};
use crate::actions::steps::{Base, Conflict, Step, Transfer, steps};
use crate::model::{
    Bookmark, DatasetInventory, DatasetName, Guid, HostInventory, HostName, Inventory, Marks, NotWritten, Place,
    Prefix, SnapName, Snapshot, Trashed, tags,
};

/// Changes an inventory as if all orders had been carried out at one moment. Returns for each order whether it succeeds.
///
/// - A new snapshot is dated `at`, whatever the time in its name. It gets an invented guid, which is always the same for
///   the same name in the same dataset.
/// - If nothing was written and the order skips such datasets, a take leaves a `#NotWritten` mark instead of a
///   snapshot.
/// - After a take, it is unknown how much was written since.
/// - The cursor of the source moves to the newest snapshot that the copy has.
/// - A copy is renamed with its source. Within one host, the hold of the last transfer moves to the snapshot that
///   arrives. The hold on another host moves, too, but the director learns that only from the next listing.
/// - A transfer that would end in a conflict changes nothing and fails, unless the order permits a remedy.
/// - If the host of a destination has not been listed, the destination is assumed to be as it was last known, or empty,
///   and the host counts as listed from then on.
pub fn predict(inventory: &mut Inventory, orders: &[Order], at: DateTime<Utc>) -> Vec<bool> {
    orders.iter().map(|order| predict_order(inventory, order, at, &|_| true).is_ok()).collect()
}

/// What a transfer does to its destination besides receiving, which the destination's host has to permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intervention<'a> {
    /// Roll the destination back, or replace it.
    RollBack(&'a Place),
    /// Rename the destination, to start the copy from scratch.
    SetAside(&'a Place),
    /// Rename the copy under the former name of its source to the destination.
    FollowRename(&'a DatasetName, &'a Place),
}

/// Changes an inventory as one order would, like [`predict`]. `permits` says what the destination's host permits. An
/// error says why the order fails.
pub fn predict_order(
    inventory: &mut Inventory,
    order: &Order,
    at: DateTime<Utc>,
    permits: &dyn Fn(Intervention<'_>) -> bool,
) -> Result<(), String> {
    match order {
        Order::Take { host, name, datasets, skip_if_not_written, .. } => {
            take(inventory, host, name, datasets, *skip_if_not_written, at);
            Ok(())
        }
        Order::Send { host, dataset, guid, to, allowed, route, .. } => {
            let sending = Sending { host, dataset, guid: *guid, to, allowed: *allowed, route, permits };
            sending.predict(inventory, at)
        }
        Order::Destroy { host, dataset, snapshots, .. } => {
            if let Some(found) = dataset_mut(inventory, host, dataset) {
                let goes: HashSet<Guid> = snapshots.iter().map(|(guid, _)| *guid).collect();
                destroy(found, &goes, at);
            }
            Ok(())
        }
    }
}

/// The snapshot of a copy that the last transfer from this source has held: by the cursor of the source or, if a source
/// that was set aside has taken its cursors along, the newest one that is held.
pub(crate) fn held_copy(
    source: &DatasetInventory,
    copy: &DatasetInventory,
    to: &Place,
    renamed: Option<&Renamed>,
) -> Option<Guid> {
    let last_sent = |to: &Place| tags::last_sent(source, to, copy.guid);
    let former = |renamed: &Renamed| Place { host: to.host.clone(), dataset: renamed.dataset.clone() };
    let newest_held = || copy.snapshots.iter().rfind(|s| s.userrefs > 0).map(|s| s.guid);
    last_sent(to).or_else(|| last_sent(&former(renamed?))).or_else(newest_held)
}

/// Destroys snapshots, or moves them to the trash if the host keeps them there first.
fn destroy(found: &mut DatasetInventory, goes: &HashSet<Guid>, at: DateTime<Utc>) {
    let mut trashed = found.trashed.take().unwrap_or_default();
    let is_trashed: HashSet<Guid> = trashed.iter().map(|trashed| trashed.guid).collect();
    let has_trash = found.destroy_after.is_some_and(|after| after > 0);
    found.snapshots.retain(|s| !goes.contains(&s.guid) || has_trash && !is_trashed.contains(&s.guid));
    for snapshot in found.snapshots.iter_mut().filter(|s| goes.contains(&s.guid)) {
        snapshot.userrefs = snapshot.userrefs.saturating_add(1);
        trashed.push(Trashed { guid: snapshot.guid, since: at, used: 0 });
    }
    trashed.retain(|trashed| !goes.contains(&trashed.guid) || !is_trashed.contains(&trashed.guid));
    found.set_trashed(trashed);
}

fn dataset_mut<'i>(
    inventory: &'i mut Inventory,
    host: &HostName,
    dataset: &DatasetName,
) -> Option<&'i mut DatasetInventory> {
    inventory.hosts.get_mut(host)?.datasets.get_mut(dataset)
}

/// Whether the agent skips a dataset to which nothing was written. If snapshots of others came after the policy's newest
/// one, the listing does not say whether something was written between them, and it is assumed that it was.
pub(crate) fn is_idle(dataset: &DatasetInventory, name: &SnapName) -> bool {
    let prefix = Prefix::of(name);
    let is_of_policy = |s: &Snapshot| prefix.as_ref().is_none_or(|prefix| prefix.time_in(&s.name).is_some());
    dataset.written == Some(0) && dataset.newest().is_some_and(is_of_policy)
}

fn take(
    inventory: &mut Inventory,
    host: &HostName,
    name: &SnapName,
    datasets: &[DatasetName],
    skip_if_not_written: bool,
    at: DateTime<Utc>,
) {
    let Some(known) = inventory.hosts.get_mut(host) else { return };
    // All snapshots of one order are taken in one transaction group.
    let before = datasets.iter().filter_map(|dataset| known.datasets.get(dataset)).flat_map(|dataset| {
        let bookmark = dataset.bookmarks.iter().map(|b| b.createtxg).max();
        dataset.snapshots.iter().map(|s| s.createtxg).max().into_iter().chain(bookmark)
    });
    let createtxg = before.max().unwrap_or(0).saturating_add(1);
    for dataset in datasets {
        let Some(found) = known.datasets.get_mut(dataset) else { continue };
        if found.snapshots.iter().any(|s| s.name == *name) {
            continue;
        }
        if skip_if_not_written && is_idle(found, name) {
            found.not_written.push(NotWritten { name: name.clone(), at });
            found.written = None;
            continue;
        }
        let mut hasher = DefaultHasher::new();
        (host, dataset, name).hash(&mut hasher);
        found.snapshots.push(Snapshot {
            name: name.clone(),
            guid: Guid(hasher.finish()),
            createtxg,
            creation: at,
            userrefs: 0,
            has_clones: false,
            used: 0,
            marks: Marks::default(),
        });
        found.written = None;
    }
}

/// A transfer whose effect is predicted.
struct Sending<'a> {
    host: &'a HostName,
    dataset: &'a DatasetName,
    guid: Guid,
    to: &'a Place,
    allowed: Allowed,
    route: &'a Route,
    permits: &'a dyn Fn(Intervention<'_>) -> bool,
}

impl Sending<'_> {
    /// Changes the inventory as the transfer would. An error says why it fails.
    fn predict(&self, inventory: &mut Inventory, at: DateTime<Utc>) -> Result<(), String> {
        let Self { host, dataset, guid, to, .. } = *self;
        let found = dataset_mut(inventory, host, dataset);
        let mut source = found.ok_or_else(|| format!("{host}:{dataset} does not exist"))?.clone();
        source.snapshots.retain(|s| !s.marks.deleted);
        let receiver = inventory.hosts.entry(to.host.clone()).or_default();
        receiver.observed.get_or_insert(at);
        self.follow_renames(&source, receiver)?;
        // A dataset that only contains copies was probably created for them, and gives way to a copy.
        let existed = receiver.datasets.get(&to.dataset).is_some_and(|found| {
            let has_copies = || receiver.within(&to.dataset).any(|(_, below)| below.flags.is_some());
            !found.snapshots.is_empty() || found.resume_token.is_some() || !has_copies()
        });
        let mut destination = receiver.datasets.get(&to.dataset).cloned().unwrap_or_default();
        destination.snapshots.retain(|s| !s.marks.deleted);
        let held = held_copy(&source, &destination, to, self.route.renamed.as_ref());
        let (mut arrives, is_set_aside) = self.streams(&source, &mut destination, existed)?;
        if is_set_aside {
            // Everything below it was renamed with it.
            receiver.datasets.retain(|name, _| !name.is_within(&to.dataset));
            // It may have been in the way of the copy that has the former name.
            if self.route.renamed.as_ref().is_some_and(|renamed| self.follow_rename(&source, renamed, receiver))
                && let Some(copy) = receiver.datasets.get(&to.dataset)
            {
                destination.clone_from(copy);
                (arrives, _) = self.streams(&source, &mut destination, true)?;
            }
        }
        let moves_hold = to.host == *host && !arrives.is_empty();
        let before = destination.snapshots.iter_mut().find(|s| moves_hold && Some(s.guid) == held);
        before.into_iter().for_each(|before| before.userrefs = before.userrefs.saturating_sub(1));
        for snapshot in arrives {
            let createtxg = destination.snapshots.last().map_or(1, |s| s.createtxg.saturating_add(1));
            let marks = Marks { sync: true, ..Marks::default() };
            destination.snapshots.push(Snapshot { createtxg, userrefs: 0, has_clones: false, marks, ..snapshot });
        }
        let arrived: HashSet<Guid> = destination.snapshots.iter().map(|s| s.guid).collect();
        let common = source.snapshots.iter().rfind(|s| arrived.contains(&s.guid)).cloned();
        let copy = destination.guid;
        receiver.datasets.insert(to.dataset.clone(), destination);
        if let Some(sent) = dataset_mut(inventory, host, dataset) {
            if let Some(common) = common {
                self.move_cursor(sent, &common, copy);
            }
            if let Some(snapshot) = sent.snapshots.iter_mut().find(|s| s.guid == guid) {
                snapshot.marks.sent = true;
            }
        }
        Ok(())
    }

    /// Moves the cursor of the source to the newest snapshot that the `copy` has, too.
    fn move_cursor(&self, source: &mut DatasetInventory, common: &Snapshot, copy: Option<Guid>) {
        let Ok(name) = tags::cursor(self.dataset, self.to, common.guid, copy) else { return };
        let old = tags::old_cursors(source, self.to, common.guid, copy);
        source.bookmarks.retain(|bookmark| bookmark.name != name && !old.contains(&bookmark.name));
        let Snapshot { guid, createtxg, creation, .. } = *common;
        source.bookmarks.push(Bookmark { name, guid, createtxg, creation });
        // Steps are planned from bookmarks in the sequence of a listing.
        source.sort();
    }

    /// Renames the copy first, as the agent does. An error says why the transfer fails.
    fn follow_renames(&self, source: &DatasetInventory, receiver: &mut HostInventory) -> Result<(), String> {
        let has = |guid| source.by_guid(guid).is_some() || source.bookmarks.iter().any(|b| b.guid == guid);
        let Some(there) = receiver.datasets.get(&self.to.dataset) else {
            if let Some(renamed) = &self.route.renamed {
                self.follow_rename(source, renamed, receiver);
            }
            return Ok(());
        };
        match (&self.route.renamed, self.route.occupied) {
            (Some(renamed), Some(Occupied::Exchange | Occupied::Displace)) => {
                if there.by_guid(renamed.guid).is_some() || self.follow_rename(source, renamed, receiver) {
                    return Ok(());
                }
                Err(format!("{} and {} cannot exchange their names", renamed.dataset, self.to.dataset))
            }
            (_, Some(Occupied::Wait)) if there.newest().is_some_and(|newest| !has(newest.guid)) => {
                Err(format!("{} is still the copy of another dataset", self.to))
            }
            _ => Ok(()),
        }
    }

    /// Renames the copy with everything below it, if a cursor proves that the source was sent there. What has its new
    /// name gives way: it gets the old one, or one in between. Returns whether it is renamed.
    fn follow_rename(&self, source: &DatasetInventory, renamed: &Renamed, receiver: &mut HostInventory) -> bool {
        let old = Place { host: self.to.host.clone(), dataset: renamed.dataset.clone() };
        let permits = |from: &DatasetName, to: &Place| (self.permits)(Intervention::FollowRename(from, to));
        let Ok(between) = tags::name_between(&self.to.dataset) else { return false };
        let is_taken = receiver.datasets.contains_key(&self.to.dataset);
        let gives_way_to = match self.route.occupied {
            Some(Occupied::Displace) => Place { host: self.to.host.clone(), dataset: between },
            _ => old.clone(),
        };
        if !tags::was_sent(source, &old)
            || !permits(&old.dataset, self.to)
            || is_taken && !permits(&self.to.dataset, &gives_way_to)
        {
            return false;
        }
        let mut moved = BTreeMap::new();
        for (from, to) in [(&old.dataset, &self.to.dataset), (&self.to.dataset, &gives_way_to.dataset)] {
            let moving: Vec<DatasetName> = receiver.within(from).map(|(name, _)| name.clone()).collect();
            for name in moving {
                let below = name.below(from).unwrap_or_default();
                if let (Ok(new), Some(dataset)) = (to.join(below), receiver.datasets.remove(&name)) {
                    moved.insert(new, dataset);
                }
            }
        }
        receiver.datasets.extend(moved);
        true
    }

    /// The snapshots that arrive, oldest first, and whether the old copy is set aside first. An error says why the
    /// transfer fails. A remedy changes the destination.
    fn streams(
        &self,
        source: &DatasetInventory,
        destination: &mut DatasetInventory,
        existed: bool,
    ) -> Result<(Vec<Snapshot>, bool), String> {
        let plan = |there: &DatasetInventory| {
            steps(&self.to.dataset, &source.snapshots, &source.bookmarks, &there.snapshots, None, None, self.guid)
        };
        let mut is_set_aside = false;
        let planned = match self.trouble(source, destination, existed, plan(destination)) {
            Ok(planned) => planned,
            Err(trouble) => {
                let remedy = remedy(&trouble, self.allowed);
                self.apply_remedy(&remedy, source, destination).ok_or_else(|| trouble.to_string())?;
                is_set_aside = matches!(remedy, Remedy::SetAside);
                plan(destination).map_err(|conflict| conflict.to_string())?
            }
        };
        let Transfer::Steps { steps } = planned else { return Ok((Vec::new(), is_set_aside)) };
        let position = |guid: Guid| source.snapshots.iter().position(|s| s.guid == guid);
        let mut arrives = Vec::new();
        for step in &steps {
            let (from, goal) = match step {
                Step::Resume { .. } | Step::Discard { .. } => continue,
                Step::Full { to } => (to.guid, to.guid),
                Step::Incremental { from: Base::Bookmark(_) | Base::Origin(..), to, .. } => (to.guid, to.guid),
                Step::Incremental { intermediates: false, to, .. } => (to.guid, to.guid),
                Step::Incremental { from: Base::Snapshot(from), to, .. } => (from.guid, to.guid),
            };
            let (Some(first), Some(last)) = (position(from), position(goal)) else { continue };
            let first = if from == goal { first } else { first + 1 };
            arrives.extend_from_slice(&source.snapshots[first..=last.max(first)]);
        }
        Ok((arrives, is_set_aside))
    }

    /// Changes the destination as a remedy would. `None` if the remedy fails.
    fn apply_remedy(
        &self,
        remedy: &Remedy,
        source: &DatasetInventory,
        destination: &mut DatasetInventory,
    ) -> Option<()> {
        let permitted = match remedy {
            Remedy::Stop => return None,
            Remedy::Rollback { .. } | Remedy::Replace => Intervention::RollBack(self.to),
            Remedy::SetAside => Intervention::SetAside(self.to),
        };
        if !(self.permits)(permitted) {
            return None;
        }
        match remedy {
            Remedy::Rollback { destroys, .. } => {
                // Where snapshots go to the trash first, no rollback destroys any.
                if !destroys.is_empty() && destination.destroy_after.is_some_and(|after| after > 0) {
                    return None;
                }
                // The hold of the last transfer is released, any other prevents the rollback.
                let held = held_copy(source, destination, self.to, None);
                let stays = |s: &Snapshot| s.has_clones || s.userrefs > u32::from(Some(s.guid) == held);
                if destination.snapshots.iter().any(|s| destroys.contains(&s.guid) && stays(s)) {
                    return None;
                }
                destination.snapshots.retain(|s| !destroys.contains(&s.guid));
                destination.written = Some(0);
            }
            // The old copy becomes another dataset.
            Remedy::SetAside => *destination = DatasetInventory::default(),
            Remedy::Replace | Remedy::Stop => {}
        }
        Some(())
    }

    /// What stands in the way of the planned streams, as the agent and ZFS would find it.
    fn trouble(
        &self,
        source: &DatasetInventory,
        destination: &DatasetInventory,
        existed: bool,
        planned: Result<Transfer, Conflict>,
    ) -> Result<Transfer, Trouble> {
        let planned = planned?;
        if !matches!(planned, Transfer::Steps { .. }) {
            return Ok(planned);
        }
        // What an interrupted first stream left is resumed.
        if existed && destination.snapshots.is_empty() && destination.resume_token.is_none() {
            return Err(Trouble::Bare);
        }
        if existed && let Err(mismatch) = lineage::flags(source, Some(destination)) {
            return Err(mismatch.into());
        }
        match Trouble::written(destination).filter(|_| destination.written.is_some_and(|bytes| bytes > 0)) {
            Some(written) => Err(written),
            None => Ok(planned),
        }
    }
}
