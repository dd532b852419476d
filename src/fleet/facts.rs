//! Turns the facts that agents report into listings and into changes of the catalog.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::catalog::Change;
use crate::model::{DatasetInventory, DatasetName, HostName, Marks, UnlistedPools};
use crate::wire::{Facts, Listing, Response};

/// Joins the parts of listings.
pub fn assemble(listings: impl IntoIterator<Item = Listing>) -> BTreeMap<(HostName, DatasetName), DatasetInventory> {
    let mut all = BTreeMap::new();
    for Listing { host, dataset, continued, inventory } in listings {
        let joined: &mut DatasetInventory = all.entry((host, dataset)).or_default();
        if continued {
            joined.snapshots.extend(inventory.snapshots);
            joined.bookmarks.extend(inventory.bookmarks);
            if let Some(trashed) = inventory.trashed {
                let before = joined.trashed.take().unwrap_or_default();
                joined.set_trashed(before.into_iter().chain(trashed).collect());
            }
        } else {
            *joined = inventory;
        }
    }
    all
}

/// How far a host's clock is behind this one's, by its answer; `None` if the host has not told.
#[must_use]
pub fn clock_behind(response: &Response, now: DateTime<Utc>) -> Option<Duration> {
    response.clock.map(|clock| (now - clock).to_std().unwrap_or_default())
}

/// The pools that could not be listed.
#[must_use]
pub fn unlisted(facts: &[Facts]) -> UnlistedPools {
    facts.iter().flat_map(|fact| fact.unlisted.clone()).collect()
}

/// Converts the facts that one host has reported into changes of the catalog, by the host that they concern. After a
/// transfer, an agent also reports the listing of the destination, which may be another host.
pub fn changes(
    reported_by: &HostName,
    facts: Vec<Facts>,
    at: DateTime<Utc>,
) -> BTreeMap<HostName, Vec<(DatasetName, Change)>> {
    let mut all: BTreeMap<HostName, Vec<(DatasetName, Change)>> = BTreeMap::new();
    let mut listings = Vec::new();
    for Facts { taken, not_written, destroyed, listing, unlisted: _, permits: _ } in facts {
        let own = all.entry(reported_by.clone()).or_default();
        let deleted = Marks { deleted: true, ..Marks::default() };
        // The marks of destroyed snapshots come before the listing, which no longer contains these snapshots.
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
