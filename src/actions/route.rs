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
    let receiver = inventory.hosts.get(&target.host);
    // The destination may be the copy of another dataset, which is about to be renamed like its source.
    let is_other = |there: &DatasetInventory| NewestCommon::of(from.dataset, &SnapshotsByGuid::of(there)).any.is_none();
    let renamed = receiver
        .filter(|_| there.is_none_or(|there| !there.snapshots.is_empty() && is_other(there)))
        .and_then(|host| renamed(policy, inventory, from, target, host));
    Route { origin, renamed, destinations }
}

/// The copy of a renamed dataset under its former name: a copy below the target whose own source is gone, and that has
/// a snapshot in common with the dataset. A cursor has to prove that the dataset was sent there: otherwise it is a copy
/// that somebody has renamed, perhaps to save it.
fn renamed(
    policy: &Policy,
    inventory: &Inventory,
    from: &SendSource<'_>,
    target: &Place,
    receiver: &HostInventory,
) -> Option<Renamed> {
    let entry = policy.datasets.get(from.claim.entry)?;
    let to = target.dataset.join(from.name.below(&entry.dataset)?).ok()?;
    let source_of = |copy: &DatasetName| entry.dataset.join(copy.below(&target.dataset)?).ok();
    let ours: HashSet<Guid> = {
        let snapshots = from.dataset.snapshots.iter().filter(|s| !s.marks.deleted).map(|s| s.guid);
        snapshots.chain(from.dataset.bookmarks.iter().map(|b| b.guid)).collect()
    };
    receiver
        .within(&target.dataset)
        .filter(|(name, _)| !to.is_within(name) && !name.is_within(&to))
        .filter(|(_, copy)| copy.snapshots.iter().any(|s| ours.contains(&s.guid)))
        .filter_map(|(name, copy)| {
            let source = source_of(name).filter(|source| source != from.name)?;
            if !tags::was_sent(from.dataset, &Place { host: target.host.clone(), dataset: name.clone() }) {
                return None;
            }
            let held = SnapshotsByGuid::of(copy);
            let still = inventory.dataset(from.host, &source);
            if still.is_some_and(|still| NewestCommon::of(still, &held).any.is_some()) {
                return None;
            }
            let common = NewestCommon::of(from.dataset, &held).any?;
            Some((common.createtxg, Renamed { dataset: name.clone(), source, guid: common.guid }))
        })
        .max_by(|(a, x), (b, y)| (a, &x.dataset).cmp(&(b, &y.dataset)))
        .map(|(_, renamed)| renamed)
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
