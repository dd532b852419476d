//! Converts the listing of a dataset into the messages in which a slave reports it to an agent.

use crate::model::{DatasetInventory, DatasetStatus};
use crate::wire::{DestinationInfo, ListUuids, Listing};

/// Divides a dataset into messages that each fit on a line; `found` is `None` if the dataset does not exist.
pub(super) fn list_uuids(found: Option<DatasetInventory>, place: Option<DestinationInfo>) -> Vec<ListUuids> {
    let Some(inventory) = found else {
        return vec![ListUuids { status: Some(DatasetStatus::False), place, ..ListUuids::default() }];
    };
    let status = if inventory.snapshots.is_empty() { DatasetStatus::False } else { DatasetStatus::True };
    // Only the division into parts is used here, with placeholders for host and dataset: the conversation has named
    // both already.
    let (Ok(host), Ok(dataset)) = ("slave".parse(), "listing".parse()) else { return Vec::new() };
    let parts = Listing::parts(&host, &dataset, inventory);
    let last = parts.len() - 1;
    let line = |(n, part): (usize, Listing)| ListUuids {
        map_uuid: part.inventory.snapshots.iter().map(|s| s.guid.uuid().to_string()).collect(),
        status: (n == 0).then_some(status),
        place: place.clone().filter(|_| n == 0),
        error: String::new(),
        hint: None,
        inventory: Some(part.inventory),
        more: n < last,
    };
    parts.into_iter().enumerate().map(line).collect()
}
