//! Finds what transfers have left in ZFS for destinations that the policy no longer has: holds, which keep snapshots
//! from being pruned, and cursors. The next transfer to a destination would remove them, but it never comes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use serde::{Serialize, Serializer};

use crate::actions::index::{IndexedPolicy, PolicyIndex};
use crate::model::tags::{is_cursor, is_received};
use crate::model::{DatasetInventory, DatasetName, HostName, Inventory, Place, SentTo, counted, hint};
use crate::policy::Policy;

/// What transfers have left on one dataset for one destination that the policy no longer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The host of the source.
    pub host: HostName,
    /// The source.
    pub dataset: DatasetName,
    /// The destination.
    pub to: SentTo,
    /// On how many snapshots there is a hold.
    pub holds: usize,
    /// How many cursors there are.
    pub bookmarks: usize,
}

/// What transfers have left on one host for destinations that the policy no longer has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Leftovers {
    /// The destinations, without those that lie below another one.
    #[serde(serialize_with = "as_text")]
    pub destinations: Vec<SentTo>,
    /// How many holds there are.
    pub holds: usize,
    /// How many cursors there are.
    pub bookmarks: usize,
}

fn as_text<S: Serializer>(destinations: &[SentTo], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(destinations.iter().map(ToString::to_string))
}

impl Leftovers {
    /// The sum of leftovers.
    #[must_use]
    pub fn of(all: &[Leftover]) -> Self {
        let named: BTreeSet<&SentTo> = all.iter().map(|left| &left.to).collect();
        let is_root = |to: &&SentTo| !named.iter().any(|other| other != to && to.is_within(other));
        Self {
            destinations: named.iter().copied().filter(is_root).cloned().collect(),
            holds: all.iter().map(|left| left.holds).sum(),
            bookmarks: all.iter().map(|left| left.bookmarks).sum(),
        }
    }

    /// The command that removes them, or that lists them if there are several destinations.
    #[must_use]
    pub fn command(&self) -> String {
        match self.destinations.as_slice() {
            [only] => format!("zsync forget {}", hint::word(only)),
            _ => "zsync forget".to_owned(),
        }
    }
}

/// A number of holds and of cursors in words.
#[must_use]
pub fn in_words(holds: usize, bookmarks: usize) -> String {
    let all = [(holds, "hold"), (bookmarks, "bookmark")];
    let parts: Vec<String> = all.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| counted(n, what)).collect();
    parts.join(" and ")
}

impl fmt::Display for Leftovers {
    /// A clause whose subject is a host.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<String> = self.destinations.iter().take(3).map(ToString::to_string).collect();
        write!(f, "has {} of transfers to {}", in_words(self.holds, self.bookmarks), named.join(", "))?;
        match self.destinations.len() - named.len() {
            0 => {}
            more => write!(f, " and {more} more")?,
        }
        f.write_str(", where the policy no longer sends anything")
    }
}

/// Finds the leftovers on all hosts that were listed. What may still be needed is not among them: as long as the source
/// of a destination may exist, the destination is one of the policy.
#[must_use]
pub fn leftovers(policy: &Policy, index: &PolicyIndex, inventory: &Inventory) -> Vec<Leftover> {
    let finder = Finder { policy, index: IndexedPolicy::new(policy, index), inventory };
    let mut found = finder.left(true);
    if !found.is_empty() {
        let (used, below) = (finder.used(), finder.possible_roots());
        found.retain(|left| {
            let may_exist = below.iter().any(|root| left.to.is_within(root) || left.to.is_uuid());
            !may_exist && !used.contains(&left.to)
        });
    }
    found
}

/// Like [`leftovers`], but only those of one destination that is to be forgotten, and of places below it. The UUID that
/// stands for the destination itself in long names counts as well, although a UUID does not show for which place it
/// stands.
#[must_use]
pub fn leftovers_for(policy: &Policy, index: &PolicyIndex, inventory: &Inventory, to: &SentTo) -> Vec<Leftover> {
    let finder = Finder { policy, index: IndexedPolicy::new(policy, index), inventory };
    let used = finder.used();
    let mut found = leftovers(policy, index, inventory);
    found.retain(|left| left.to.is_within(to));
    if finder.possible_roots().iter().any(|root| to.is_within(root)) {
        return found;
    }
    for left in finder.left(false) {
        let is_exactly = left.to.is_uuid() && left.to.is_within(to) && !used.contains(&left.to);
        if is_exactly && !found.contains(&left) {
            found.push(left);
        }
    }
    found
}

/// The copies at a destination that the policy no longer has, and below it; of all such destinations if `to` is `None`: datasets on whose snapshots receives have
/// left holds, and that receive from nobody any more.
#[must_use]
pub fn copies_given_up(policy: &Policy, index: &PolicyIndex, inventory: &Inventory, to: Option<&SentTo>) -> Vec<Place> {
    let index = IndexedPolicy::new(policy, index);
    // Below a target, there may be copies whose sources are away, or set aside.
    let targets = policy.datasets.iter().flat_map(|entry| &entry.policies).flat_map(|p| &p.sync_on);
    let roots: Vec<SentTo> = targets.map(SentTo::from).collect();
    let is_wanted = |place: &SentTo| match to {
        Some(to) => place.is_within(to),
        None => !roots.iter().any(|root| place.is_within(root)),
    };
    let mut copies = Vec::new();
    for (host, known) in inventory.hosts.iter().filter(|(_, known)| known.observed.is_some()) {
        for (name, found) in &known.datasets {
            let place = Place { host: host.clone(), dataset: name.clone() };
            // A listing does not look at the single hold that every copy has on its newest snapshot.
            let is_usual_copy = found.flags.is_some() && found.held_by_unknown().next().is_none();
            let is_held = found.transfer_holds.iter().any(|tag| is_received(tag))
                || is_usual_copy && found.newest().is_some_and(|newest| newest.userrefs > 0);
            if is_held && is_wanted(&SentTo::from(&place)) && index.incoming(host, name).is_empty() {
                copies.push(place);
            }
        }
    }
    copies
}

/// The datasets that the policy sends to a destination or below it, if they exist or may exist.
#[must_use]
pub fn senders_to(policy: &Policy, index: &PolicyIndex, inventory: &Inventory, to: &SentTo) -> Vec<Place> {
    let finder = Finder { policy, index: IndexedPolicy::new(policy, index), inventory };
    let sends = |place: &Place| {
        let outgoing = finder.index.outgoing(&place.host, &place.dataset);
        outgoing.iter().flat_map(|out| SentTo::both(&out.to)).any(|used| used.is_within(to))
    };
    let mut senders: Vec<Place> = finder.datasets().filter(sends).collect();
    senders.extend(
        policy
            .datasets
            .iter()
            .filter(|entry| {
                let targets = entry.policies.iter().flat_map(|p| &p.sync_on);
                targets.flat_map(SentTo::both).any(|used| used.is_within(to))
            })
            .map(|entry| Place { host: entry.hostname.clone(), dataset: entry.dataset.clone() }),
    );
    senders.sort();
    senders.dedup();
    senders
}

struct Finder<'a> {
    policy: &'a Policy,
    index: IndexedPolicy<'a>,
    inventory: &'a Inventory,
}

impl Finder<'_> {
    /// All datasets that are known.
    fn datasets(&self) -> impl Iterator<Item = Place> {
        let hosts = self.inventory.hosts.iter();
        hosts.flat_map(|(host, known)| {
            known.datasets.keys().map(|name| Place { host: host.clone(), dataset: name.clone() })
        })
    }

    /// What there is for destinations that the dataset itself does not have. If `only_certain`, UUIDs that may stand for
    /// another copy of the dataset are left out.
    fn left(&self, only_certain: bool) -> Vec<Leftover> {
        let mut found = Vec::new();
        for host in self.policy.hosts_named() {
            let Some(known) = self.inventory.hosts.get(&host).filter(|known| known.observed.is_some()) else {
                continue;
            };
            let datasets = known.datasets.iter().filter(|(_, found)| may_have_any(found));
            for (name, inventory) in datasets.filter(|(name, _)| !known.unlisted.contains_key(name.pool())) {
                let outgoing = self.index.outgoing(&host, name);
                let left = by_destination(inventory, |to| outgoing.iter().any(|out| to.is(&out.to)));
                if left.is_empty() {
                    continue;
                }
                // A copy may have had another name when it was sent: renamed sources have bookmarks for it.
                let roots = self.roots_of_copies(&host, name);
                for (to, (holds, bookmarks)) in left {
                    // A UUID does not show whether it stands for a place below one of them.
                    let may_be_below = only_certain && to.is_uuid() && !roots.is_empty();
                    if !may_be_below && !roots.iter().any(|root| to.is_within(root)) {
                        found.push(Leftover { host: host.clone(), dataset: name.clone(), to, holds, bookmarks });
                    }
                }
            }
        }
        found
    }

    /// The targets of the recursive entries that a dataset belongs to.
    fn roots_of_copies(&self, host: &HostName, dataset: &DatasetName) -> Vec<SentTo> {
        let entries = self.policy.datasets.iter();
        let entries = entries.filter(|e| e.recursive && e.hostname == *host && dataset.is_within(&e.dataset));
        entries.flat_map(|e| &e.policies).flat_map(|p| &p.sync_on).map(SentTo::from).collect()
    }

    /// The destinations of all datasets that are known or that the policy names.
    fn used(&self) -> HashSet<SentTo> {
        let of_datasets = self.datasets().flat_map(|place| self.index.outgoing(&place.host, &place.dataset));
        let mut used: HashSet<SentTo> = of_datasets.flat_map(|out| SentTo::both(&out.to)).collect();
        let targets = self.policy.datasets.iter().flat_map(|entry| &entry.policies).flat_map(|p| &p.sync_on);
        used.extend(targets.flat_map(SentTo::both));
        used
    }

    /// The targets of recursive entries whose sources are not all known, because their host or pool was not listed.
    fn possible_roots(&self) -> Vec<SentTo> {
        let is_listed = |host: &HostName, dataset: &DatasetName| {
            self.inventory.hosts.get(host).is_some_and(|known| known.covers(dataset))
        };
        let unknown = self.policy.datasets.iter().filter(|e| e.recursive && !is_listed(&e.hostname, &e.dataset));
        unknown.flat_map(|e| &e.policies).flat_map(|p| &p.sync_on).map(SentTo::from).collect()
    }
}

/// Whether a dataset may have anything of a transfer, for whatever destination.
fn may_have_any(of: &DatasetInventory) -> bool {
    !of.transfer_holds.is_empty() || of.bookmarks.iter().any(|bookmark| is_cursor(&bookmark.name))
}

/// The numbers of holds and of cursors by destination, without the dataset's own destinations.
fn by_destination(of: &DatasetInventory, is_own: impl Fn(&SentTo) -> bool) -> BTreeMap<SentTo, (usize, usize)> {
    let mut found: BTreeMap<SentTo, (usize, usize)> = BTreeMap::new();
    let holds = of.transfer_holds.iter().filter_map(|tag| SentTo::of_hold(tag));
    for to in holds.filter(|to| !is_own(to)) {
        found.entry(to).or_default().0 += 1;
    }
    for bookmark in &of.bookmarks {
        let possible = SentTo::of_cursor(&bookmark.name);
        if let Some(to) = possible.first().filter(|_| !possible.iter().any(&is_own)) {
            found.entry(to.clone()).or_default().1 += 1;
        }
    }
    found
}
