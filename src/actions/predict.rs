//! Predicts the inventory after orders have been carried out, for previews and simulations.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use chrono::{DateTime, Utc};

use crate::actions::divergence::{Allowed, Remedy, remedy};
use crate::actions::order::Order;
use crate::actions::steps::{Base, Step, Transfer, steps};
use crate::model::{
    DatasetInventory, DatasetName, Guid, HostName, Inventory, Marks, NotWritten, Place, SnapName, Snapshot,
};

/// Changes an inventory as if all orders had succeeded at one moment.
///
/// - A new snapshot gets an invented guid, which is always the same for the same name in the same dataset.
/// - If nothing was written and the order skips such datasets, a take leaves a `#NotWritten` mark instead of a
///   snapshot.
/// - After a take, it is unknown how much was written since.
/// - A transfer that would end in a conflict changes nothing, unless the order permits a remedy.
/// - If the host of a destination has not been listed, the destination is assumed to be as it was last known, or empty,
///   and the host counts as listed from then on.
pub fn predict(inventory: &mut Inventory, orders: &[Order], at: DateTime<Utc>) {
    for order in orders {
        match order {
            Order::Take { host, name, datasets, skip_if_not_written, .. } => {
                take(inventory, host, name, datasets, *skip_if_not_written, at);
            }
            Order::Send { host, dataset, guid, to, allowed, .. } => {
                send(inventory, (host, dataset), *guid, to, *allowed, at);
            }
            Order::Destroy { host, dataset, snapshots, .. } => {
                if let Some(found) = dataset_mut(inventory, host, dataset) {
                    let goes: HashSet<Guid> = snapshots.iter().map(|(guid, _)| *guid).collect();
                    found.snapshots.retain(|s| !goes.contains(&s.guid));
                }
            }
        }
    }
}

fn dataset_mut<'i>(
    inventory: &'i mut Inventory,
    host: &HostName,
    dataset: &DatasetName,
) -> Option<&'i mut DatasetInventory> {
    inventory.hosts.get_mut(host)?.datasets.get_mut(dataset)
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
    let newest = datasets.iter().filter_map(|d| known.datasets.get(d)?.snapshots.last());
    let createtxg = newest.map(|s| s.createtxg).max().unwrap_or(0).saturating_add(1);
    for dataset in datasets {
        let Some(found) = known.datasets.get_mut(dataset) else { continue };
        if skip_if_not_written && found.written == Some(0) && !found.snapshots.is_empty() {
            found.not_written.push(NotWritten { name: name.clone(), at });
        } else {
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
        }
        found.written = None;
    }
}

fn send(
    inventory: &mut Inventory,
    (host, dataset): (&HostName, &DatasetName),
    guid: Guid,
    to: &Place,
    allowed: Allowed,
    at: DateTime<Utc>,
) {
    let Some(source) = dataset_mut(inventory, host, dataset) else { return };
    let live: Vec<Snapshot> = source.snapshots.iter().filter(|s| !s.marks.deleted).cloned().collect();
    let bookmarks = source.bookmarks.clone();
    let receiver = inventory.hosts.entry(to.host.clone()).or_default();
    receiver.observed.get_or_insert(at);
    let destination = receiver.datasets.entry(to.dataset.clone()).or_default();
    destination.snapshots.retain(|s| !s.marks.deleted);

    let mut planned = steps(&to.dataset, &live, &bookmarks, &destination.snapshots, None, None, guid);
    if let Err(conflict) = planned.clone() {
        match remedy(&conflict.into(), allowed) {
            Remedy::Rollback { destroys, .. } => destination.snapshots.retain(|s| !destroys.contains(&s.guid)),
            // The old copy becomes another dataset.
            Remedy::SetAside => destination.snapshots.clear(),
            Remedy::Stop | Remedy::Replace => {}
        }
        planned = steps(&to.dataset, &live, &bookmarks, &destination.snapshots, None, None, guid);
    }
    let Ok(Transfer::Steps { steps }) = planned else { return };
    for step in &steps {
        let (from, goal) = match step {
            Step::Resume { .. } | Step::Discard { .. } => continue,
            Step::Full { to } => (to.guid, to.guid),
            Step::Incremental { from: Base::Bookmark(_) | Base::Origin(..), to, .. } => (to.guid, to.guid),
            Step::Incremental { from: Base::Snapshot(from), to, .. } => (from.guid, to.guid),
        };
        let position = |guid: Guid| live.iter().position(|s| s.guid == guid);
        let (Some(first), Some(last)) = (position(from), position(goal)) else { continue };
        let first = if from == goal { first } else { first + 1 };
        for snapshot in &live[first..=last.max(first)] {
            let createtxg = destination.snapshots.last().map_or(1, |s| s.createtxg.saturating_add(1));
            let marks = Marks { sync: true, ..Marks::default() };
            let received = Snapshot { createtxg, userrefs: 0, has_clones: false, marks, ..snapshot.clone() };
            destination.snapshots.push(received);
        }
    }
    let sent = dataset_mut(inventory, host, dataset);
    if let Some(snapshot) = sent.and_then(|d| d.snapshots.iter_mut().find(|s| s.guid == guid)) {
        snapshot.marks.sent = true;
    }
}
