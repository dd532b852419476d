//! How what a host says it holds differs from what the catalog knew: a line per difference.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{DatasetInventory, DatasetName, HostInventory};

/// What has to be changed in `known` to make it `found`. Sizes (`used`, `written`) change by themselves and are
/// no difference.
#[must_use]
pub fn differences(known: Option<&HostInventory>, found: &BTreeMap<DatasetName, DatasetInventory>) -> Vec<String> {
    let empty = BTreeMap::new();
    let known = known.map_or(&empty, |host| &host.datasets);
    let names: BTreeSet<&DatasetName> = known.keys().chain(found.keys()).collect();
    let mut lines = Vec::new();
    for name in names {
        match (known.get(name), found.get(name)) {
            (None, Some(found)) => {
                lines.push(format!("{name} was not known, with {} snapshots", found.snapshots.len()));
            }
            (Some(_), None) => lines.push(format!("{name} is not there")),
            (Some(known), Some(found)) => dataset(name, known, found, &mut lines),
            (None, None) => {}
        }
    }
    lines
}

fn dataset(name: &DatasetName, known: &DatasetInventory, found: &DatasetInventory, lines: &mut Vec<String>) {
    for snapshot in &found.snapshots {
        match known.by_guid(snapshot.guid) {
            None => lines.push(format!("{} was not known", name.at(&snapshot.name))),
            Some(before) if before.name != snapshot.name => {
                lines.push(format!("{} was known as @{}", name.at(&snapshot.name), before.name));
            }
            Some(before) if (before.userrefs, before.has_clones) != (snapshot.userrefs, snapshot.has_clones) => {
                lines.push(format!("{} has other holds or clones than was known", name.at(&snapshot.name)));
            }
            Some(_) => {}
        }
    }
    for gone in known.snapshots.iter().filter(|one| found.by_guid(one.guid).is_none()) {
        lines.push(format!("{} is not there", name.at(&gone.name)));
    }
    let marks = |of: &DatasetInventory| of.bookmarks.iter().map(|b| (b.name.clone(), b.guid)).collect::<BTreeSet<_>>();
    let (before, now) = (marks(known), marks(found));
    lines.extend(now.difference(&before).map(|(mark, _)| format!("{name}#{mark} was not known")));
    lines.extend(before.difference(&now).map(|(mark, _)| format!("{name}#{mark} is not there")));
    let kind = |of: &DatasetInventory| {
        (of.kind, of.guid, of.encrypted, of.origin.clone(), of.excluded, of.flags, of.resume_token.clone())
    };
    if kind(known) != kind(found) {
        lines.push(format!("{name} is another dataset, or has other properties, than was known"));
    }
}
