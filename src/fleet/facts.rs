//! What orders told, as changes to what is known.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::catalog::Change;
use crate::model::{DatasetInventory, DatasetName, HostName, Marks};
use crate::wire::{Facts, Listing};

/// Puts the parts of listings together.
pub fn assemble(listings: impl IntoIterator<Item = Listing>) -> BTreeMap<(HostName, DatasetName), DatasetInventory> {
    let mut all = BTreeMap::new();
    for Listing { host, dataset, continued, inventory } in listings {
        let whole: &mut DatasetInventory = all.entry((host, dataset)).or_default();
        if continued {
            whole.snapshots.extend(inventory.snapshots);
            whole.bookmarks.extend(inventory.bookmarks);
        } else {
            *whole = inventory;
        }
    }
    all
}

/// What a host told, by the host that it is about: an agent tells what became of the other end, too.
pub fn changes(
    told_by: &HostName,
    facts: Vec<Facts>,
    at: DateTime<Utc>,
) -> BTreeMap<HostName, Vec<(DatasetName, Change)>> {
    let mut all: BTreeMap<HostName, Vec<(DatasetName, Change)>> = BTreeMap::new();
    let mut listings = Vec::new();
    for Facts { taken, not_written, destroyed, listing } in facts {
        let own = all.entry(told_by.clone()).or_default();
        let deleted = Marks { deleted: true, ..Marks::default() };
        // While their names are known: before any listing without them.
        own.extend(destroyed.into_iter().map(|(name, guid)| (name, Change::Mark { guid, marks: deleted, at })));
        own.extend(taken.into_iter().map(|(name, snapshot)| (name, Change::Taken(snapshot))));
        own.extend(not_written.into_iter().map(|(name, mark)| (name, Change::NotWritten(mark))));
        listings.extend(listing);
    }
    for ((host, dataset), inventory) in assemble(listings) {
        all.entry(host).or_default().push((dataset, Change::Listed(inventory)));
    }
    all.retain(|_, changes| !changes.is_empty());
    all
}
