//! Decides how to restore a dataset, with everything that was below it, from the copies that exist.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::actions::index::{IndexedPolicy, PolicyIndex};
use crate::model::{
    DatasetInventory, DatasetName, Guid, HostName, Inventory, Place, SetAside, SnapName, Snapshot, counted, hint,
    in_utc, some_of,
};
use crate::policy::Policy;

/// How many datasets a note names at most.
const MAX_NAMED: usize = 5;

/// What is to be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// A dataset, with everything that was below it.
    Tree(Wanted),
    /// All datasets that the policy has of a host.
    Host {
        /// The host.
        host: HostName,
        /// The newest snapshots taken until then are restored; `None`: the newest of all.
        at: Option<DateTime<Utc>>,
    },
}

/// A tree that is to be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The dataset that was lost.
    pub source: Place,
    /// Where it is restored.
    pub to: Place,
    /// The copy to use; `None`: the best one of the policy's.
    pub from: Option<Place>,
    /// The newest snapshot taken until then is restored; `None`: the newest of all.
    pub at: Option<DateTime<Utc>>,
    /// What is in the way is renamed, with this moment in its new name; `None`: nothing is.
    pub set_aside: Option<DateTime<Utc>>,
}

/// One dataset to restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreStep {
    /// The dataset to create.
    pub to: Place,
    /// The copy that is used.
    pub from: Place,
    /// The snapshot that is restored, with all older ones of the copy.
    pub snapshot: Restorable,
    /// What is in the way, and is renamed first.
    pub set_aside: Option<SetAside>,
    /// The properties to set on it.
    pub properties: BTreeMap<String, String>,
    /// The dataset above it whose key it is to use again, as soon as that is possible.
    pub key_from: Option<DatasetName>,
    /// What the user has to know about it.
    pub notes: Vec<String>,
}

/// A snapshot of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restorable {
    /// Its name.
    pub name: SnapName,
    /// Its identity.
    pub guid: Guid,
    /// When it was taken.
    pub creation: DateTime<Utc>,
}

/// How to restore a tree of datasets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestorePlan {
    /// The datasets to restore, each after the one that contains it.
    pub steps: Vec<RestoreStep>,
    /// Datasets that have their snapshot already, which happens if a restore is repeated.
    pub present: Vec<String>,
    /// Datasets below the wanted one that are not restored, because no snapshot of them is old enough.
    pub left_out: Vec<String>,
    /// Why datasets cannot be restored, each with a way out.
    pub problems: Vec<String>,
}

/// A copy that exists.
struct Copy<'a> {
    place: Place,
    found: &'a DatasetInventory,
}

/// Decides from which copies to restore what was lost. `unseen` are the hosts that could not be listed, each with the
/// reason.
#[must_use]
pub fn restore_lost(
    policy: &Policy,
    inventory: &Inventory,
    unseen: &BTreeMap<HostName, String>,
    lost: &Lost,
) -> RestorePlan {
    let (host, at) = match lost {
        Lost::Tree(wanted) => return restore(policy, inventory, unseen, wanted),
        Lost::Host { host, at } => (host, *at),
    };
    let of_host = policy.datasets.iter().filter(|entry| entry.hostname == *host).map(|entry| &entry.dataset);
    let all: BTreeSet<&DatasetName> = of_host.collect();
    let is_inner = |dataset: &DatasetName| dataset.ancestors().any(|above| all.contains(&above));
    let mut whole = RestorePlan::default();
    if all.is_empty() {
        let hint = "see the hosts of the policy with zsync status";
        whole.problems.push(hint::join(format!("cannot restore {host}: the policy has no datasets of it"), Some(hint)));
    }
    for root in all.iter().filter(|dataset| !is_inner(dataset)) {
        let source = place(host, root);
        let wanted = Wanted { to: source.clone(), source, from: None, at, set_aside: None };
        let plan = restore_tree(policy, inventory, unseen, &wanted, PoolInTheWay::LeftOut);
        whole.steps.extend(plan.steps);
        whole.present.extend(plan.present);
        whole.left_out.extend(plan.left_out);
        // What could not be listed concerns all of them.
        let new = plan.problems.into_iter().filter(|problem| !whole.problems.contains(problem));
        whole.problems.extend(new.collect::<Vec<_>>());
    }
    whole
}

/// What happens to the dataset of a pool that exists and is to be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PoolInTheWay {
    /// It prevents the restore.
    Refused,
    /// It is left out, and everything below it is restored.
    LeftOut,
}

/// Decides from which copies to restore what is wanted. `unseen` are the hosts that could not be listed, each with the
/// reason.
#[must_use]
pub fn restore(
    policy: &Policy,
    inventory: &Inventory,
    unseen: &BTreeMap<HostName, String>,
    wanted: &Wanted,
) -> RestorePlan {
    restore_tree(policy, inventory, unseen, wanted, PoolInTheWay::Refused)
}

fn restore_tree(
    policy: &Policy,
    inventory: &Inventory,
    unseen: &BTreeMap<HostName, String>,
    wanted: &Wanted,
    pool: PoolInTheWay,
) -> RestorePlan {
    let mut plan = RestorePlan::default();
    let index = PolicyIndex::new(policy);
    let index = IndexedPolicy::new(policy, &index);
    let copies = match &wanted.from {
        Some(from) => copies_below(inventory, from),
        None => copies_by_policy(&index, inventory, &wanted.source),
    };
    let unlisted = unlisted(policy, inventory, unseen, wanted);
    if copies.is_empty() {
        plan.problems.extend(unlisted);
        plan.problems.push(nothing_found(wanted));
        return plan;
    }
    // What was not listed may have a newer copy.
    plan.problems.extend(unlisted);
    let mut blocked: BTreeSet<DatasetName> = BTreeSet::new();
    let mut moved: BTreeSet<DatasetName> = BTreeSet::new();
    for (below, of_dataset) in &copies {
        let Ok(dataset) = wanted.to.dataset.join(below) else {
            plan.problems.push(format!("cannot restore {}/{below}: the name is too long", wanted.to));
            continue;
        };
        if dataset.ancestors().any(|above| blocked.contains(&above)) {
            continue;
        }
        let is_moved = dataset.ancestors().any(|above| moved.contains(&above));
        let to = Place { host: wanted.to.host.clone(), dataset };
        match step(wanted, inventory, of_dataset, to.clone(), is_moved) {
            Outcome::Step(step) => {
                if step.set_aside.is_some() {
                    moved.insert(to.dataset);
                }
                plan.steps.push(step);
            }
            Outcome::Present(why) => plan.present.push(why),
            Outcome::Later(_) if !below.is_empty() && !plan.steps.is_empty() => {
                plan.left_out.push(format!(
                    "{to} is left out, with everything below it: no copy of it has a snapshot that is old enough; \
                     perhaps it did not exist yet"
                ));
                blocked.insert(to.dataset);
            }
            Outcome::InTheWay(_) if pool == PoolInTheWay::LeftOut && to.dataset.parent().is_none() => {
                plan.left_out.push(format!(
                    "{to} is a pool, which exists, so only what was below it is restored; hint: to get the files of the \
                     pool's own dataset, restore that under another name, as in zsync restore {} --as {}",
                    hint::word(&to),
                    hint::word(&to.dataset.restored_name())
                ));
            }
            Outcome::Later(why) | Outcome::InTheWay(why) | Outcome::Impossible(why) => {
                plan.problems.push(why);
                blocked.insert(to.dataset);
            }
        }
    }
    note_what_moves_along(&mut plan, inventory);
    note_what_is_sent(&mut plan, &index, wanted);
    plan
}

/// Adds a note if the policy also sends what is restored under another name.
fn note_what_is_sent(plan: &mut RestorePlan, index: &IndexedPolicy<'_>, wanted: &Wanted) {
    let Some(step) = plan.steps.first_mut().filter(|step| step.to == wanted.to && wanted.to != wanted.source) else {
        return;
    };
    let outgoing = index.outgoing(&step.to.host, &step.to.dataset);
    let places: BTreeSet<String> = outgoing.into_iter().map(|out| out.to.to_string()).collect();
    if !places.is_empty() {
        step.notes.push(format!(
            "an entry of the policy also covers this name: the next pass takes snapshots of it, and sends all of it to {}; \
             hint: to prevent that, restore it where no entry covers it, or exclude its name from the entry before",
            places.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
}

/// Adds a note about the datasets below one that is set aside that no step brings back.
fn note_what_moves_along(plan: &mut RestorePlan, inventory: &Inventory) {
    let restored: BTreeSet<Place> = plan.steps.iter().map(|step| step.to.clone()).collect();
    for step in plan.steps.iter_mut().filter(|step| step.set_aside.is_some()) {
        let Some(host) = inventory.hosts.get(&step.to.host) else { continue };
        let below = host.within(&step.to.dataset).map(|(name, _)| name);
        let without: Vec<&str> =
            below.filter(|name| !restored.contains(&place(&step.to.host, name))).map(DatasetName::as_str).collect();
        if !without.is_empty() {
            step.notes.push(format!("renamed with it, and not restored: {}", some_of(&without, MAX_NAMED)));
        }
    }
}

enum Outcome {
    Step(RestoreStep),
    Present(String),
    /// All snapshots of it are newer than what is wanted.
    Later(String),
    /// A dataset exists in its place.
    InTheWay(String),
    Impossible(String),
}

/// Chooses the copy of one dataset.
/// `is_moved` says that whatever has its name now is renamed before, with a dataset above it.
fn step(wanted: &Wanted, inventory: &Inventory, copies: &[Copy<'_>], to: Place, is_moved: bool) -> Outcome {
    let mut candidates: Vec<(&Copy<'_>, &Snapshot)> =
        copies.iter().filter_map(|copy| Some((copy, newest_until(copy.found, wanted.at)?))).collect();
    // Of copies that are equally new, one on the same host needs no network.
    candidates.sort_by_key(|(copy, snapshot)| {
        (std::cmp::Reverse(snapshot.creation), copy.place.host != to.host, copy.place.clone())
    });
    let Some(((copy, snapshot), others)) = candidates.split_first() else {
        return Outcome::Later(none_old_enough(&to, copies));
    };
    // If the host was not listed, it decides by itself.
    let known = inventory.hosts.get(&to.host).filter(|known| known.covers(&to.dataset) && !is_moved);
    let (mut notes, mut set_aside) = (Vec::new(), None);
    if let Some(existing) = known.and_then(|known| known.datasets.get(&to.dataset)) {
        match in_the_way(wanted, existing, snapshot, &to) {
            Existing::Present if wanted.set_aside.is_some() => {
                let what = format!("{to} exists, has the snapshot {}", snapshot.name);
                return Outcome::Present(format!("{what}, and nothing was written to it since"));
            }
            Existing::Present => {
                return Outcome::Present(format!("{to} exists, and has the snapshot {}", snapshot.name));
            }
            Existing::Unfinished => {}
            Existing::Refused(why) => return Outcome::InTheWay(why),
            Existing::SetAside(aside) if copy.place.host == to.host && copy.place.dataset.is_within(&to.dataset) => {
                return Outcome::Impossible(format!(
                    "cannot restore {to}: {} is below it, and would be renamed to a name below {}; hint: restore it \
                     under another name, as in --as {}",
                    copy.place,
                    aside.dataset,
                    hint::word(&wanted.to.dataset.restored_name())
                ));
            }
            Existing::SetAside(aside) => {
                let unless = if existing.excluded { ", unless it is what an interrupted restore has left" } else { "" };
                notes.push(format!("what is there is renamed to {}{unless}", aside.dataset));
                set_aside = Some(aside);
            }
        }
    }
    for (other, newest) in others.iter().filter(|(_, newest)| newest.guid != snapshot.guid) {
        notes.push(format!("another copy, {}, has an older snapshot: {}", other.place, newest.name));
    }
    let newer = |copy: &Copy<'_>| copy.found.snapshots.iter().filter(|s| s.creation > snapshot.creation).count();
    let is_in_place = wanted.to == wanted.source;
    for (copy, newer) in copies.iter().map(|copy| (copy, newer(copy))).filter(|(_, newer)| is_in_place && *newer > 0) {
        notes.push(format!(
            "{} has {} that the restored dataset will lack, so the next pass reports that copy as diverged and sends \
             nothing to it, or does what on_divergence and rollback_may_destroy of the policy permit: the latter destroys \
             them; hint: restore under another name (--as) to continue with the newest state",
            copy.place,
            counted(newer, "newer snapshot")
        ));
    }
    if copy.found.is_raw_copy() {
        notes.push("it is encrypted: to use it, load its key (zfs load-key)".to_owned());
    }
    let snapshot = Restorable { name: snapshot.name.clone(), guid: snapshot.guid, creation: snapshot.creation };
    Outcome::Step(RestoreStep {
        to,
        from: copy.place.clone(),
        snapshot,
        set_aside,
        properties: BTreeMap::new(),
        key_from: None,
        notes,
    })
}

/// What a restore does about a dataset that exists in the place of the one that is restored.
enum Existing {
    /// It has what is wanted.
    Present,
    /// It may be what an interrupted restore has left, which its host finds out.
    Unfinished,
    /// It is renamed.
    SetAside(SetAside),
    /// It prevents the restore.
    Refused(String),
}

fn in_the_way(wanted: &Wanted, existing: &DatasetInventory, snapshot: &Snapshot, to: &Place) -> Existing {
    let another = hint::word(&wanted.to.dataset.restored_name());
    let Some(at) = wanted.set_aside else {
        return match existing.by_guid(snapshot.guid) {
            _ if existing.excluded => Existing::Unfinished,
            Some(_) => Existing::Present,
            None => Existing::Refused(format!(
                "cannot restore {to}: a dataset with this name exists, and is never overwritten; hint: restore it under \
                 another name, as in --as {another}, or rename what is there with --set-aside"
            )),
        };
    };
    let is_newest = existing.newest().is_some_and(|newest| newest.guid == snapshot.guid);
    if is_newest && existing.written == Some(0) && !existing.excluded {
        return Existing::Present;
    }
    if to.dataset.parent().is_none() {
        return Existing::Refused(format!(
            "cannot restore {to}: it is a pool, which cannot be renamed; hint: restore it as a dataset below the pool, \
             as in --as {another}"
        ));
    }
    let named = format!("{}_set_aside_{}", to.dataset, at.format("%Y%m%dT%H%M%SZ")).parse();
    match (existing.guid, named) {
        (Some(guid), Ok(dataset)) => Existing::SetAside(SetAside { guid, dataset }),
        (None, _) => Existing::Refused(format!("cannot restore {to}: its host does not say what exists there")),
        (_, Err(error)) => Existing::Refused(format!("cannot restore {to}: cannot rename what is there: {error}")),
    }
}

/// The newest snapshot that was taken until a moment.
fn newest_until(copy: &DatasetInventory, at: Option<DateTime<Utc>>) -> Option<&Snapshot> {
    copy.snapshots.iter().rev().find(|s| at.is_none_or(|at| s.creation <= at))
}

fn none_old_enough(to: &Place, copies: &[Copy<'_>]) -> String {
    let oldest = copies.iter().flat_map(|copy| copy.found.snapshots.iter().map(move |s| (s.creation, &copy.place)));
    let Some((creation, place)) = oldest.min() else {
        return format!("cannot restore {to}: no copy of it has a snapshot");
    };
    let oldest = in_utc(creation);
    format!(
        "cannot restore {to}: no copy has a snapshot that is old enough; the oldest is of {oldest}, on {place}; hint: \
         --at {oldest}, or a later time"
    )
}

fn nothing_found(wanted: &Wanted) -> String {
    match &wanted.from {
        Some(from) => format!("cannot restore {}: {from} does not exist, or has no snapshots", wanted.source),
        None => format!(
            "cannot restore {}: no copy of it is known; hint: check the name, or name the copy with --from HOST:DATASET",
            wanted.source
        ),
    }
}

/// The hosts and pools that may have a copy and could not be listed.
fn unlisted(
    policy: &Policy,
    inventory: &Inventory,
    unseen: &BTreeMap<HostName, String>,
    wanted: &Wanted,
) -> Vec<String> {
    let may_matter = |host: &HostName, pool: Option<&str>| match &wanted.from {
        Some(from) => from.host == *host && pool.is_none_or(|pool| from.dataset.pool() == pool),
        None => policy
            .datasets
            .iter()
            .flat_map(|e| &e.policies)
            .flat_map(|p| &p.sync_on)
            .any(|target| target.host == *host && pool.is_none_or(|pool| target.dataset.pool() == pool)),
    };
    let of_hosts = unseen.iter().filter(|(host, _)| may_matter(host, None));
    let mut lines: Vec<String> =
        of_hosts.map(|(host, reason)| format!("cannot list the copies on {host}: {reason}")).collect();
    for (host, known) in &inventory.hosts {
        let pools = known.unlisted.iter().filter(|(pool, _)| may_matter(host, Some(pool)));
        lines.extend(pools.map(|(pool, reason)| format!("cannot list the pool {pool} of {host}: {reason}")));
    }
    lines
}

/// The datasets within a copy, by their names below it.
fn copies_below<'a>(inventory: &'a Inventory, root: &Place) -> BTreeMap<String, Vec<Copy<'a>>> {
    let mut copies: BTreeMap<String, Vec<Copy<'a>>> = BTreeMap::new();
    let Some(host) = inventory.hosts.get(&root.host).filter(|known| known.covers(&root.dataset)) else {
        return copies;
    };
    for (name, found) in host.within(&root.dataset).filter(|(_, found)| !found.snapshots.is_empty()) {
        let below = name.below(&root.dataset).unwrap_or_default().to_owned();
        copies.entry(below).or_default().push(Copy { place: place(&root.host, name), found });
    }
    copies
}

/// The copies of a dataset, and of those below it, according to the policy, by the names of the datasets below it.
/// Whether the datasets themselves still exist does not matter.
fn copies_by_policy<'a>(
    index: &IndexedPolicy<'_>,
    inventory: &'a Inventory,
    source: &Place,
) -> BTreeMap<String, Vec<Copy<'a>>> {
    let mut copies: BTreeMap<String, Vec<Copy<'a>>> = BTreeMap::new();
    for (host, known) in &inventory.hosts {
        let listed = known.datasets.iter().filter(|(name, _)| known.covers(name));
        // A copy that was set aside is excluded from the policy.
        for (name, found) in listed.filter(|(_, found)| !found.snapshots.is_empty() && !found.excluded) {
            let copy = place(host, name);
            let sources = sources(index, &copy);
            let below = sources.iter().filter(|s| s.host == source.host).find_map(|s| s.dataset.below(&source.dataset));
            if let Some(below) = below.filter(|_| copy != *source) {
                copies.entry(below.to_owned()).or_default().push(Copy { place: copy, found });
            }
        }
    }
    copies
}

/// Everything that a dataset receives from according to the policy, directly or through other hosts.
fn sources(index: &IndexedPolicy<'_>, copy: &Place) -> BTreeSet<Place> {
    let (mut all, mut next) = (BTreeSet::new(), vec![copy.clone()]);
    while let Some(place) = next.pop() {
        for incoming in index.incoming(&place.host, &place.dataset) {
            if all.insert(incoming.source.clone()) {
                next.push(incoming.source);
            }
        }
    }
    all
}

fn place(host: &HostName, dataset: &DatasetName) -> Place {
    Place { host: host.clone(), dataset: dataset.clone() }
}
