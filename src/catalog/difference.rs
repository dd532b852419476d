//! Compares a host's listing with what the catalog knew of the host.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{DatasetInventory, DatasetName, HostInventory, UnlistedPools};

/// Describes how `found`, a host's new listing, differs from `known`, one line per difference. Sizes (`used`,
/// `written`) change all the time, and are not compared. Neither are pools that could not be listed.
#[must_use]
pub fn differences(
    known: Option<&HostInventory>,
    found: &BTreeMap<DatasetName, DatasetInventory>,
    unlisted: &UnlistedPools,
) -> Vec<String> {
    let empty = BTreeMap::new();
    let known = known.map_or(&empty, |host| &host.datasets);
    let names: BTreeSet<&DatasetName> = known.keys().chain(found.keys()).collect();
    let mut lines = Vec::new();
    for name in names {
        match (known.get(name), found.get(name)) {
            (None, Some(found)) => {
                lines.push(format!("{name} (with {} snapshots) was not in the catalog", found.snapshots.len()));
            }
            (Some(_), None) if unlisted.contains_key(name.pool()) => {}
            (Some(_), None) => lines.push(format!("{name} no longer exists")),
            (Some(known), Some(found)) => dataset_differences(name, known, found, &mut lines),
            (None, None) => {}
        }
    }
    lines
}

fn dataset_differences(
    name: &DatasetName,
    known: &DatasetInventory,
    found: &DatasetInventory,
    lines: &mut Vec<String>,
) {
    for snapshot in &found.snapshots {
        match known.by_guid(snapshot.guid) {
            None => lines.push(format!("{} was not in the catalog", name.at(&snapshot.name))),
            Some(before) if before.name != snapshot.name => {
                lines.push(format!("{} was @{} in the catalog", name.at(&snapshot.name), before.name));
            }
            Some(before) if (before.createtxg, before.creation) != (snapshot.createtxg, snapshot.creation) => {
                lines.push(format!("{} was created at another time in the catalog", name.at(&snapshot.name)));
            }
            Some(before) if (before.userrefs, before.has_clones) != (snapshot.userrefs, snapshot.has_clones) => {
                lines.push(format!("{} had different holds or clones in the catalog", name.at(&snapshot.name)));
            }
            Some(_) if known.trashed(snapshot.guid).is_some() != found.trashed(snapshot.guid).is_some() => {
                let before = if known.trashed(snapshot.guid).is_some() { "in the trash" } else { "not in the trash" };
                lines.push(format!("{} was {before} in the catalog", name.at(&snapshot.name)));
            }
            Some(_) => {}
        }
    }
    for missing in known.snapshots.iter().filter(|one| found.by_guid(one.guid).is_none()) {
        lines.push(format!("{} no longer exists", name.at(&missing.name)));
    }
    let bookmarks =
        |of: &DatasetInventory| of.bookmarks.iter().map(|b| (b.name.clone(), b.guid)).collect::<BTreeSet<_>>();
    let (before, now) = (bookmarks(known), bookmarks(found));
    lines.extend(now.difference(&before).map(|(bookmark, _)| format!("{name}#{bookmark} was not in the catalog")));
    lines.extend(before.difference(&now).map(|(bookmark, _)| format!("{name}#{bookmark} no longer exists")));
    let properties = |of: &DatasetInventory| {
        (of.kind, of.guid, of.encrypted, of.origin.clone(), of.excluded, of.flags, of.resume_token.clone())
    };
    if properties(known) != properties(found) {
        lines.push(format!("{name} was a different dataset, or had different properties, in the catalog"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Guid, Marks, Snapshot};

    fn dataset(creation: i64) -> DatasetInventory {
        let snapshot = Snapshot {
            guid: Guid(1),
            name: "s1".parse().unwrap(),
            createtxg: 7,
            creation: chrono::DateTime::from_timestamp(creation, 0).unwrap(),
            userrefs: 0,
            has_clones: false,
            used: 0,
            marks: Marks::default(),
        };
        DatasetInventory { snapshots: vec![snapshot], ..DatasetInventory::default() }
    }

    #[test]
    fn another_time_of_creation_is_a_difference() {
        let name: DatasetName = "tank/a".parse().unwrap();
        let known = HostInventory { datasets: [(name.clone(), dataset(1000))].into(), ..HostInventory::default() };
        let found = |creation| BTreeMap::from([(name.clone(), dataset(creation))]);
        assert_eq!(differences(Some(&known), &found(1000), &UnlistedPools::new()), [""; 0]);
        let lines = differences(Some(&known), &found(2000), &UnlistedPools::new());
        assert_eq!(lines, ["tank/a@s1 was created at another time in the catalog"]);
    }
}
