//! Finds what a transfer needs to know about other datasets: a clone's origin, a copy's former name, all destinations.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::actions::common::{NewestCommon, SnapshotsByGuid};
use crate::actions::index::{Claim, IndexedPolicy};
use crate::model::{DatasetInventory, DatasetName, Guid, HostInventory, HostName, Inventory, Place, tags};
use crate::policy::Policy;

/// What a send order says about other datasets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// For a clone: the destination's copy of the dataset that the clone's origin belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<DatasetName>,
    /// For a renamed source: the destination's copy under the former name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed: Option<Renamed>,
    /// What to do first if the destination is the copy of another dataset, which was renamed as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub occupied: Option<Occupied>,
    /// All destinations of the dataset.
    #[serde(skip)]
    pub destinations: Vec<Place>,
}

/// A copy whose source was renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renamed {
    /// The copy.
    pub dataset: DatasetName,
    /// The former name of the source.
    pub source: DatasetName,
    /// The newest snapshot that the copy and the renamed source have in common.
    pub guid: Guid,
}

/// What happens to a destination that is still the copy of another dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occupied {
    /// Sources have exchanged their names. This transfer lets the destination and its own copy do the same.
    Exchange,
    /// More than two sources have exchanged their names. This transfer gives the destination a name in between, from
    /// which another transfer renames it.
    Displace,
    /// Another transfer renames it. Until then, this one fails and changes nothing.
    Wait,
}

/// The source of a send.
pub(super) struct SendSource<'a> {
    pub claim: Claim,
    pub host: &'a HostName,
    pub name: &'a DatasetName,
    pub dataset: &'a DatasetInventory,
}

/// Finds what a transfer to `target` needs to know about other datasets. `there` is the destination, `None` if it does
/// not exist.
pub(super) fn route(
    policy: &Policy,
    index: IndexedPolicy<'_>,
    inventory: &Inventory,
    from: &SendSource<'_>,
    target: &Place,
    there: Option<&DatasetInventory>,
) -> Route {
    let destinations = index.outgoing(from.host, from.name).into_iter().map(|out| out.to).collect();
    let begins = there.is_none_or(|there| there.snapshots.is_empty());
    let origin = from.dataset.origin.as_ref().filter(|_| begins).and_then(|origin| {
        let mut places = index.outgoing(from.host, &origin.dataset);
        places.retain(|out| out.to.host == target.host);
        // The destination of the same policy is preferred, because there the clone and its origin have the same
        // snapshots.
        let same = places.iter().position(|out| out.claim == from.claim).unwrap_or(0);
        places.into_iter().nth(same).map(|out| out.to.dataset)
    });
    // The destination may be the copy of another dataset. As long as it has the snapshot that was sent there last, it is
    // the source's own, and no other copy has to be looked for.
    let common = there.and_then(|there| NewestCommon::of(from.dataset, &SnapshotsByGuid::of(there)).any);
    let is_own = || {
        let to = index.destination(from.claim, target, from.name);
        let sent = to.and_then(|to| tags::newest_sent(from.dataset, &to));
        common.is_some_and(|common| sent == Some(common.guid))
    };
    let renamed = inventory
        .hosts
        .get(&target.host)
        .filter(|_| there.is_none_or(|there| !there.snapshots.is_empty()) && !is_own())
        .and_then(|host| renamed(policy, inventory, from, target, host))
        .filter(|(createtxg, _)| common.is_none_or(|common| common.createtxg < *createtxg))
        .map(|(_, renamed)| renamed);
    Route { origin, renamed, occupied: None, destinations }
}

/// The copy of a renamed dataset under its former name: a copy below the target that has a newer snapshot in common with
/// the dataset than with the dataset that has the former name now, if there is one. A cursor has to prove that the
/// dataset was sent there: otherwise it is a copy that somebody has renamed, perhaps to save it. Also returns the
/// createtxg, on the source, of the newest snapshot in common.
fn renamed(
    policy: &Policy,
    inventory: &Inventory,
    from: &SendSource<'_>,
    target: &Place,
    receiver: &HostInventory,
) -> Option<(u64, Renamed)> {
    let entry = policy.datasets.get(from.claim.entry)?;
    if !from.dataset.bookmarks.iter().any(|bookmark| tags::is_cursor(&bookmark.name)) {
        return None;
    }
    let to = target.dataset.join(from.name.below(&entry.dataset)?).ok()?;
    let source_of = |copy: &DatasetName| entry.dataset.join(copy.below(&target.dataset)?).ok();
    let ours: HashSet<Guid> = guids(from.dataset).collect();
    receiver
        .within(&target.dataset)
        .filter(|(name, _)| !to.is_within(name) && !name.is_within(&to))
        .filter_map(|(name, copy)| {
            let shared = newest_of(copy, &ours)?;
            let source = source_of(name).filter(|source| source != from.name)?;
            if !tags::was_sent(from.dataset, &Place { host: target.host.clone(), dataset: name.clone() }) {
                return None;
            }
            let still = inventory.dataset(from.host, &source);
            if still.is_some_and(|still| newest_of(copy, &guids(still).collect()) >= Some(shared)) {
                return None;
            }
            let common = NewestCommon::of(from.dataset, &SnapshotsByGuid::of(copy)).any?;
            Some((common.createtxg, Renamed { dataset: name.clone(), source, guid: common.guid }))
        })
        .max_by(|(a, x), (b, y)| (a, &x.dataset).cmp(&(b, &y.dataset)))
}

/// The guids of the snapshots and bookmarks of a dataset.
fn guids(of: &DatasetInventory) -> impl Iterator<Item = Guid> {
    let snapshots = of.snapshots.iter().filter(|s| !s.marks.deleted).map(|s| s.guid);
    snapshots.chain(of.bookmarks.iter().map(|b| b.guid))
}

/// The position in a copy of its newest snapshot that is one of `guids`.
fn newest_of(copy: &DatasetInventory, guids: &HashSet<Guid>) -> Option<usize> {
    copy.snapshots.iter().rposition(|s| !s.marks.deleted && guids.contains(&s.guid))
}

/// Finds the destinations that are still copies of other datasets, which other transfers rename. `exists` says whether a
/// destination exists. Where two sources have exchanged their names, the first transfer lets their copies do the same.
/// Where more than two have, the copy in the way of the first transfer waits under a name in between.
pub(super) fn settle_renames<'r>(
    sends: impl Iterator<Item = (&'r Place, &'r mut Route)>,
    exists: impl Fn(&Place) -> bool,
) {
    let mut sends: Vec<(&Place, &mut Route)> = sends.collect();
    let former = |to: &Place, route: &Route| {
        Some(Place { host: to.host.clone(), dataset: route.renamed.as_ref()?.dataset.clone() })
    };
    // Where each copy that is renamed goes.
    let moves: BTreeMap<Place, Place> =
        sends.iter().filter_map(|(to, route)| Some((former(to, route)?, (*to).clone()))).collect();
    for (to, route) in &mut sends {
        let Some(goes_to) = moves.get(to).filter(|_| exists(to)) else { continue };
        let mut path = vec![goes_to];
        while let Some(next) = moves.get(path[path.len() - 1]).filter(|next| !path.contains(next)) {
            path.push(next);
        }
        route.occupied = match path.iter().position(|place| place == to) {
            None => Some(Occupied::Wait),
            Some(1) if *to < goes_to => Some(Occupied::Exchange),
            Some(1) => Some(Occupied::Wait),
            Some(circle) if path[..circle].iter().all(|place| *to < *place) => Some(Occupied::Displace),
            Some(_) => Some(Occupied::Wait),
        };
    }
    let displaced = sends.iter().filter(|(_, route)| route.occupied == Some(Occupied::Displace));
    let displaced: Vec<Place> = displaced.map(|(to, _)| (*to).clone()).collect();
    for place in displaced {
        let Ok(between) = tags::name_between(&place.dataset) else { continue };
        let next = sends.iter_mut().find(|(to, route)| former(to, route).as_ref() == Some(&place));
        if let Some(renamed) = next.and_then(|(_, route)| route.renamed.as_mut()) {
            renamed.dataset = between;
        }
    }
}

/// The order in which to send datasets, as ranks from 0. A dataset has a higher rank than each dataset that it waits
/// for, if that dataset is sent as well. Datasets of the same rank do not wait for each other.
#[must_use]
pub fn ranks(datasets: &BTreeMap<DatasetName, Vec<DatasetName>>) -> BTreeMap<DatasetName, usize> {
    let mut ranks: BTreeMap<DatasetName, usize> = BTreeMap::new();
    let after = |waits_for: &[DatasetName], ranks: &BTreeMap<DatasetName, usize>| {
        waits_for.iter().filter_map(|name| ranks.get(name).map(|rank| rank + 1)).max().unwrap_or(0)
    };
    // Sorted by name, a dataset may come before the one that it waits for, so one round is not enough. Each round
    // settles one more link of the longest chain. The number of rounds is bounded in case of a circle.
    for _ in 0..=datasets.len() {
        let mut settled = true;
        for (dataset, waits_for) in datasets {
            let rank = after(waits_for, &ranks);
            settled &= ranks.insert(dataset.clone(), rank) == Some(rank);
        }
        if settled {
            break;
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `b/x<a,c` is b/x, which waits for a and c.
    fn order(line: &str) -> String {
        let name = |text: &str| format!("t/{text}").parse::<DatasetName>().unwrap();
        let datasets = line.split_whitespace().map(|word| match word.split_once('<') {
            Some((dataset, first)) => (name(dataset), first.split(',').map(name).collect()),
            None => (name(word), Vec::new()),
        });
        let ranks = ranks(&datasets.collect());
        let mut words: Vec<String> =
            ranks.iter().map(|(name, rank)| format!("{rank}{}", name.as_str().trim_start_matches("t/"))).collect();
        words.sort();
        words.join(" ")
    }

    #[test]
    fn ranks_follow_the_dependencies() {
        assert_eq!(order("a b c"), "0a 0b 0c");
        assert_eq!(order("a a/b<a a/b/c<a/b,a d/e<d"), "0a 0d/e 1a/b 2a/b/c");
        assert_eq!(order("a a/b a/b/c<a"), "0a 0a/b 1a/b/c", "a child waits only for the datasets listed");
        assert_eq!(order("a<z z"), "0z 1a", "a clone whose name comes first");
        assert_eq!(order("a<b b<c c<d d a/x<a"), "0d 1c 2b 3a 4a/x");
        assert_eq!(order("b/x<a/y,b a a/y<a b"), "0a 0b 1a/y 2b/x");
        assert_eq!(order("a<gone b"), "0a 0b", "an origin that is not sent is not waited for");
        assert_eq!(order("p/clone<p p"), "0p 1p/clone");
        assert_eq!(order("a<y,z y z<y"), "0y 1z 2a");
        // ZFS permits no such circle, but the loop must end.
        order("a<b b<a");
    }
}
