//! Infers a policy from what hosts have, for when the director's disk is lost: which dataset is a copy of which, which
//! prefixes there are, by which schedule they were taken, and rules that keep all that exists.
//!
//! The result is cautious: a pass with it destroys nothing that exists now, for at least [`MARGIN`]. That is not only
//! how the rules are chosen: the engine decides a pass with them, and rules by which it would destroy anything are
//! dropped.

mod guess;
mod links;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use glob::Pattern;

use crate::actions::adopt::links::{Links, datasets};
use crate::actions::engine::Engine;
use crate::model::{
    DatasetInventory, DatasetName, Guid, Inventory, Marks, OnDivergence, Place, Prefix, Snapshot, counted,
};
use crate::policy::{DEFAULT_CATCH_UP, DatasetPolicy, Exclude, Policy, SnapshotPolicy, SyncPolicy, Thresholds};

/// For how long a policy that was inferred destroys nothing of what existed then, at least.
pub const MARGIN: TimeDelta = TimeDelta::days(1);

/// What was inferred.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// The policy.
    pub policy: Policy,
    /// What could not be known, and what was left out.
    pub notes: Vec<String>,
}

/// What a policy has for one dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Item {
    /// The destinations of each prefix.
    policies: BTreeMap<Prefix, BTreeSet<Place>>,
    /// Whether its snapshots are taken there: it is no copy.
    is_origin: bool,
}

/// An entry with the datasets that it covers.
struct Covered<'a> {
    root: &'a Place,
    item: &'a Item,
    /// By their names below the root.
    below: Vec<&'a str>,
    exclude: Vec<&'a str>,
}

/// Infers the entries of a policy. `base` is the policy without any; its hosts are those that were asked.
#[must_use]
pub fn adopt(base: Policy, inventory: &Inventory, now: DateTime<Utc>) -> Adopted {
    let Links { links, mut notes, orphans } = links::links(inventory);
    let mut items: BTreeMap<Place, Item> = BTreeMap::new();
    let copies: BTreeSet<&Place> = links.iter().map(|link| &link.to).chain(&orphans).collect();
    for (place, found) in datasets(inventory).filter(|(place, _)| !copies.contains(place)) {
        let policies =
            found.snapshots.iter().filter_map(|s| Prefix::of(&s.name)).map(|p| (p, BTreeSet::new())).collect();
        items.insert(place, Item { policies, is_origin: true });
    }
    for link in &links {
        match Prefix::of(&link.last) {
            Some(prefix) => {
                let item = items.entry(link.from.clone()).or_default();
                item.policies.entry(prefix).or_default().insert(link.to.clone());
            }
            None => notes.push(format!(
                "not in the policy: the transfer of {} to {}: the name of the last snapshot that was sent, {}, has no \
                 prefix with a time",
                link.from, link.to, link.last
            )),
        }
    }
    items.retain(|_, item| !item.policies.is_empty());
    let covered = cover(&items, inventory);
    let mut policy = base;
    policy.datasets = covered.iter().map(|covered| entry(covered, inventory, now)).collect();
    for dropped in drop_what_destroys(&mut policy, inventory, now) {
        notes.push(format!("{dropped}: no rules keep all that exists there, so nothing is ever destroyed there"));
    }
    for entry in &mut policy.datasets {
        entry.policies.retain(|of| of.creation.is_some() || of.retention.is_some() || !of.sync_on.is_empty());
    }
    policy.datasets.retain(|entry| !entry.policies.is_empty());
    for entry in &policy.datasets {
        for of in entry.policies.iter().filter(|of| of.creation.is_none() && is_origin(&items, entry)) {
            notes.push(format!(
                "{}:{}: the snapshots {}_... show no schedule, so none are taken; hint: add \"creation\"",
                entry.hostname, entry.dataset, of.prefix
            ));
        }
    }
    Adopted { policy, notes }
}

fn is_origin(items: &BTreeMap<Place, Item>, entry: &DatasetPolicy) -> bool {
    let place = Place { host: entry.hostname.clone(), dataset: entry.dataset.clone() };
    items.get(&place).is_some_and(|item| item.is_origin)
}

/// Combines datasets with the same policies into entries.
fn cover<'a>(items: &'a BTreeMap<Place, Item>, inventory: &'a Inventory) -> Vec<Covered<'a>> {
    let mut covered: Vec<Covered<'a>> = Vec::new();
    let mut done: BTreeSet<Place> = BTreeSet::new();
    for (root, item) in items {
        if done.contains(root) {
            continue;
        }
        let mut entry = Covered { root, item, below: Vec::new(), exclude: Vec::new() };
        let known = inventory.hosts.get(&root.host).into_iter().flat_map(|known| known.within(&root.dataset));
        for (name, found) in known.filter(|(name, _)| **name != root.dataset) {
            let (Some(below), place) = (name.below(&root.dataset), at(root, name)) else { continue };
            let is_left_out = |out: &&str| below.strip_prefix(*out).is_some_and(|rest| rest.starts_with('/'));
            if found.excluded || entry.exclude.iter().any(is_left_out) {
                continue;
            }
            let is_like = |of: &Item| moved(item, below).is_some_and(|expected| expected == *of);
            if items.get(&place).is_some_and(is_like) && !done.contains(&place) {
                entry.below.push(below);
            } else {
                entry.exclude.push(below);
            }
        }
        if entry.below.is_empty() {
            entry.exclude.clear();
        }
        done.insert(root.clone());
        for below in &entry.below {
            done.extend(root.dataset.join(below).map(|name| at(root, &name)));
        }
        covered.push(entry);
    }
    covered
}

fn at(beside: &Place, dataset: &DatasetName) -> Place {
    Place { host: beside.host.clone(), dataset: dataset.clone() }
}

/// What a recursive entry with this item has for a dataset below; `None` if a name is too long.
fn moved(item: &Item, below: &str) -> Option<Item> {
    let mut moved = Item { is_origin: item.is_origin, ..Item::default() };
    for (prefix, targets) in &item.policies {
        let targets = targets.iter().map(|to| to.dataset.join(below).map(|name| at(to, &name)));
        moved.policies.insert(prefix.clone(), targets.collect::<Result<_, _>>().ok()?);
    }
    Some(moved)
}

fn entry(covered: &Covered<'_>, inventory: &Inventory, now: DateTime<Utc>) -> DatasetPolicy {
    let Covered { root, item, below, exclude } = covered;
    let all_at = |place: &Place| -> Vec<&DatasetInventory> {
        let names = std::iter::once("").chain(below.iter().copied()).filter_map(|below| place.dataset.join(below).ok());
        names.filter_map(|name| inventory.dataset(&place.host, &name)).collect()
    };
    let policies = item.policies.iter().map(|(prefix, targets)| {
        let here = all_at(root);
        let there = targets.iter().flat_map(all_at);
        let times = here.iter().flat_map(|of| &of.snapshots).filter_map(|s| prefix.time_in(&s.name));
        let name = if item.policies.len() == 1 { "backup".to_owned() } else { prefix.as_str().to_lowercase() };
        let retention = guess::retention(&here.iter().map(|of| dates(of, prefix)).collect::<Vec<_>>(), now, MARGIN);
        let sync_retention = guess::retention(&there.map(|of| dates(of, prefix)).collect::<Vec<_>>(), now, MARGIN);
        SnapshotPolicy {
            name,
            prefix: prefix.clone(),
            creation: item.is_origin.then(|| guess::schedule(&times.collect())).flatten(),
            catch_up: DEFAULT_CATCH_UP,
            sync_on: targets.iter().cloned().collect(),
            sync_policy: SyncPolicy::Asap,
            sync_retention: if targets.is_empty() { None } else { sync_retention.or_else(|| retention.clone()) },
            retention,
            prune_unsent: false,
            lag: None,
            check: Thresholds::default(),
        }
    });
    DatasetPolicy {
        hostname: root.host.clone(),
        dataset: root.dataset.clone(),
        recursive: !below.is_empty(),
        policies: policies.collect(),
        exclude: Exclude::new(exclude.iter().filter_map(|name| Pattern::new(&Pattern::escape(name)).ok()).collect()),
        rollback_if_needed: false,
        rollback_may_destroy: false,
        on_divergence: OnDivergence::Stop,
        skip_if_renamed: true,
        skip_if_not_written: true,
        skip_if_cloned: true,
    }
}

/// The creation times of a dataset's snapshots with this prefix, sorted.
fn dates(of: &DatasetInventory, prefix: &Prefix) -> Vec<DateTime<Utc>> {
    let mut dates: Vec<DateTime<Utc>> =
        of.snapshots.iter().filter(|s| prefix.time_in(&s.name).is_some()).map(|s| s.creation).collect();
    dates.sort();
    dates
}

/// Drops the rules by which a pass would destroy anything, now or after [`MARGIN`], also once there is a newer snapshot
/// of each policy. Returns where that was, in words.
fn drop_what_destroys(policy: &mut Policy, inventory: &Inventory, now: DateTime<Utc>) -> BTreeSet<String> {
    let mut dropped = BTreeSet::new();
    for (inventory, at) in
        [(inventory, now), (&with_newer(inventory, now), now), (&with_newer(inventory, now), now + MARGIN)]
    {
        // Without its rules, a policy keeps everything, so each of them is dropped once.
        loop {
            let plan = Engine::new(policy).decide(inventory, at);
            let destroying = plan.prunes.iter().filter(|verdict| !verdict.destroy.is_empty());
            let subjects: Vec<_> = destroying.map(|verdict| verdict.subject.clone()).collect();
            let mut any = false;
            for subject in subjects {
                let entry = policy.datasets.get_mut(subject.entry);
                let Some(of) = entry.and_then(|entry| entry.policies.get_mut(subject.policy_index)) else { continue };
                any |= of.retention.take().is_some() | of.sync_retention.take().is_some();
                dropped.insert(format!("{}:{} ({}_...)", subject.host, subject.dataset, of.prefix));
            }
            if !any {
                break;
            }
        }
    }
    dropped
}

/// The inventory with another snapshot of each prefix, the newest everywhere.
fn with_newer(inventory: &Inventory, now: DateTime<Utc>) -> Inventory {
    let mut inventory = inventory.clone();
    for found in inventory.hosts.values_mut().flat_map(|known| known.datasets.values_mut()) {
        let prefixes: BTreeSet<Prefix> = found.snapshots.iter().filter_map(|s| Prefix::of(&s.name)).collect();
        for prefix in prefixes {
            let createtxg = found.newest().map_or(0, |newest| newest.createtxg) + 1;
            // The same everywhere, so that it counts as sent.
            let guid = prefix.as_str().bytes().fold(1, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            found.snapshots.push(Snapshot {
                name: prefix.stamp(now),
                guid: Guid(guid),
                createtxg,
                creation: now,
                userrefs: 0,
                has_clones: false,
                used: 0,
                marks: Marks::default(),
            });
        }
    }
    inventory
}

impl Adopted {
    /// How much the policy has, in words.
    #[must_use]
    pub fn summary(&self) -> String {
        let copies = self.policy.datasets.iter().flat_map(|entry| &entry.policies).map(|of| of.sync_on.len()).sum();
        let entries = match self.policy.datasets.len() {
            1 => "1 entry".to_owned(),
            number => format!("{number} entries"),
        };
        format!("{entries} with {}", counted(copies, "destination"))
    }
}
