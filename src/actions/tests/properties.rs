//! Tests of properties that hold for every policy and inventory, with random policies and inventories.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
use crate::policy::retention::{Rule, Tally};

/// A source of choices: a list of numbers, so that proptest can shrink a failing example by shrinking the list.
struct Choices(std::vec::IntoIter<u16>);

impl Choices {
    fn below(&mut self, n: usize) -> usize {
        self.0.next().map_or(0, usize::from) % n
    }

    fn of<'x, T: ?Sized>(&mut self, all: &[&'x T]) -> &'x T {
        all[self.below(all.len())]
    }

    /// True once in `n` times.
    fn rarely(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }
}

const HOSTS: [&str; 3] = ["alpha", "beta", "gamma"];
const DATASETS: [&str; 4] = ["t", "t/x", "t/x/y", "u"];
const PREFIXES: [&str; 3] = ["B", "B_B", "C"];
const NOW: &str = "11-23T12:20";

fn a_retention(choices: &mut Choices) -> Option<Retention> {
    let lists: [&[&str]; 5] = [
        &["1 in last day"],
        &["3 in last day", "1/day in last week", "1/month in last year"],
        &["1/hour in last 2 days", "2/week in last month"],
        &["all in last 6 hours"],
        &[],
    ];
    let list = choices.of(&lists);
    if list.is_empty() { None } else { rules(list) }
}

fn an_entry(choices: &mut Choices) -> DatasetPolicy {
    let one = |choices: &mut Choices, prefix: &str| SnapshotPolicy {
        name: prefix.to_lowercase(),
        prefix: prefix.parse().unwrap(),
        creation: (!choices.rarely(3)).then(|| choices.of(&["0 * * * *", "@daily", "*/5 * * * *"]).parse().unwrap()),
        catch_up: DEFAULT_CATCH_UP,
        sync_on: (0..choices.below(3))
            .map(|_| place(&format!("{}:{}", choices.of(&HOSTS), choices.of(&["t", "t/x", "u", "u/far", "v"]))))
            .collect(),
        sync_policy: choices.of(&["asap", "asap", "0 1 * * *"]).parse().unwrap(),
        retention: a_retention(choices),
        sync_retention: a_retention(choices),
        prune_unsent: choices.rarely(3),
        lag: None,
        check: crate::policy::Thresholds::default(),
    };
    let mut entry = entry(&format!("{}:{}", choices.of(&HOSTS), choices.of(&DATASETS)), &[]);
    let first = choices.below(3);
    entry.policies = vec![one(choices, PREFIXES[first])];
    if choices.rarely(3) {
        entry.policies.push(one(choices, PREFIXES[(first + 1) % 3]));
    }
    entry.recursive = choices.below(2) == 1;
    entry.rollback_if_needed = choices.rarely(4);
    entry.skip_if_renamed = !choices.rarely(3);
    entry.skip_if_cloned = !choices.rarely(3);
    entry
}

/// A dataset with some snapshots of one common history, so that different datasets have snapshots in common.
fn a_dataset(choices: &mut Choices) -> DatasetInventory {
    let mut dataset = DatasetInventory::default();
    let history = choices.below(2);
    let density = 1 + choices.below(4);
    let end = 24 - choices.below(12);
    for step in 0..end {
        if choices.below(density + 1) == 0 {
            continue;
        }
        // The last twelve snapshots are hours apart, the earlier ones days.
        let age = if step < 12 { TimeDelta::days(13 - step as i64) } else { TimeDelta::hours(24 - step as i64) };
        let creation = utc(NOW) - age;
        let prefix: Prefix = choices.of(&PREFIXES).parse().unwrap();
        let name = if choices.rarely(9) { "by-hand".parse().unwrap() } else { prefix.stamp(creation) };
        let guid = Guid(1000 * history as u64 + step as u64);
        let createtxg = 10 + step as u64;
        if choices.rarely(12) {
            dataset.bookmarks.push(Bookmark { name, guid, createtxg, creation });
            continue;
        }
        dataset.snapshots.push(Snapshot {
            name,
            guid,
            createtxg,
            creation: if choices.rarely(25) { creation + TimeDelta::days(40) } else { creation },
            userrefs: choices.rarely(12).into(),
            has_clones: choices.rarely(12),
            used: 1,
            marks: Marks { deleted: choices.rarely(20), ..Marks::default() },
        });
    }
    dataset
}

fn a_world() -> impl Strategy<Value = (Policy, Inventory)> {
    prop::collection::vec(any::<u16>(), 0..3000).prop_map(|numbers| {
        let mut choices = Choices(numbers.into_iter());
        let mut policy = policy((0..1 + choices.below(4)).map(|_| an_entry(&mut choices)).collect::<Vec<_>>());
        policy.timezone = *choices.of(&[&Zone::UTC, &"Europe/Berlin".parse().unwrap()]);
        let mut inventory = Inventory::default();
        for host in HOSTS {
            let known = inventory.hosts.entry(host.parse().unwrap()).or_default();
            known.observed = (!choices.rarely(15)).then(|| utc(NOW));
            for dataset in DATASETS.iter().chain(&["u/far", "v"]) {
                if !choices.rarely(4) {
                    known.datasets.insert(dataset.parse().unwrap(), a_dataset(&mut choices));
                }
            }
        }
        (policy, inventory)
    })
}

/// The datasets that one may be a copy of, through at most `hops` transfers.
fn origins(policy: &Policy, at: &Place, hops: usize) -> Vec<Place> {
    let mut all = vec![];
    for entry in policy.datasets.iter().filter(|_| hops > 0) {
        for target in entry.policies.iter().flat_map(|p| &p.sync_on).filter(|t| t.host == at.host) {
            let Some(below) = at.dataset.below(&target.dataset) else { continue };
            if let (true, Ok(dataset)) = (entry.recursive || below.is_empty(), entry.dataset.join(below)) {
                let origin = Place { host: entry.hostname.clone(), dataset };
                all.extend(origins(policy, &origin, hops - 1));
                all.push(origin);
            }
        }
    }
    all
}

/// The policies that govern a dataset, by a slow reference implementation: of all entries that cover it with one
/// prefix, the one with the longest name, and the first one of equal names.
fn governing<'a>(policy: &'a Policy, at: &Place) -> Vec<(&'a DatasetPolicy, &'a SnapshotPolicy)> {
    let origins = origins(policy, at, 4);
    let means = |e: &&DatasetPolicy| {
        let copy_of_itself =
            origins.iter().any(|o| o.host == e.hostname && o.dataset != at.dataset && o.dataset.is_within(&e.dataset));
        e.hostname == at.host
            && (e.dataset == at.dataset || e.recursive && at.dataset.is_within(&e.dataset) && !copy_of_itself)
    };
    let mut found: Vec<(&DatasetPolicy, &SnapshotPolicy)> = vec![];
    let mut entries: Vec<&DatasetPolicy> = policy.datasets.iter().filter(means).collect();
    entries.sort_by_key(|e| std::cmp::Reverse(e.dataset.as_str().len()));
    for (entry, one) in entries.into_iter().flat_map(|e| e.policies.iter().map(move |p| (e, p))) {
        if found.iter().all(|(_, p)| p.prefix != one.prefix) {
            found.push((entry, one));
        }
    }
    found
}

fn live(dataset: &DatasetInventory) -> Vec<&Snapshot> {
    let mut all: Vec<&Snapshot> = dataset.snapshots.iter().filter(|s| !s.marks.deleted).collect();
    all.sort_by_key(|s| (s.createtxg, s.guid));
    all
}

/// All pairs of source and destination that follow from the policy for the datasets of the inventory, with the policy.
fn pairs<'a>(policy: &'a Policy, inventory: &Inventory) -> Vec<(Place, Place, &'a SnapshotPolicy)> {
    let mut pairs = vec![];
    for (host, known) in &inventory.hosts {
        for name in known.datasets.keys() {
            let at = Place { host: host.clone(), dataset: name.clone() };
            for (entry, one) in governing(policy, &at) {
                for target in &one.sync_on {
                    let to = target.dataset.join(name.below(&entry.dataset).unwrap()).unwrap();
                    pairs.push((at.clone(), Place { host: target.host.clone(), dataset: to }, one));
                }
            }
        }
    }
    pairs
}

/// The newest common snapshot, by the source's createtxg.
fn base(inventory: &Inventory, from: &Place, to: &Place) -> Option<Guid> {
    let (source, destination) =
        (inventory.dataset(&from.host, &from.dataset)?, inventory.dataset(&to.host, &to.dataset)?);
    let there = live(destination);
    live(source).into_iter().rfind(|s| there.iter().any(|t| t.guid == s.guid)).map(|s| s.guid)
}

fn destroys(orders: &[Order]) -> Vec<(Place, Vec<Guid>)> {
    let all = orders.iter().filter_map(|o| match o {
        Order::Destroy { host, dataset, snapshots, .. } => {
            let place = Place { host: host.clone(), dataset: dataset.clone() };
            Some((place, snapshots.iter().map(|(guid, _)| *guid).collect()))
        }
        _ => None,
    });
    all.collect()
}

/// The snapshots that a rule keeps, by a slow reference implementation. `taken` is in the order of creation.
fn kept_by(rule: &Rule, tz: Zone, now: DateTime<Utc>, taken: &[&Snapshot]) -> Vec<Guid> {
    let text = rule.to_string();
    let (count, period) = match text.split_whitespace().next().unwrap().split_once('/') {
        Some((count, period)) => (count, Some(period)),
        None => (text.split_whitespace().next().unwrap(), None),
    };
    let count: usize = count.parse().unwrap_or(usize::MAX);
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut kept = vec![];
    for snapshot in taken.iter().rev() {
        let local = snapshot.creation.with_timezone(&tz);
        let format = match period {
            None => "",
            Some("hour") => "%Y-%m-%d %H %z",
            Some("day") => "%Y-%m-%d",
            Some("week") => "%G-%V",
            Some("month") => "%Y-%m",
            Some("year") => "%Y",
            Some(other) => panic!("{other}"),
        };
        let seen = seen.entry(local.format(format).to_string()).or_default();
        *seen += 1;
        if *seen <= count && now - snapshot.creation <= rule.window() {
            kept.push(snapshot.guid);
        }
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// After all orders of a plan, nothing is left to do except what cannot be done, and no order occurs twice.
    #[test]
    fn carrying_out_a_plan_leaves_nothing_to_do((policy, mut inventory) in a_world()) {
        let mut settled = false;
        let mut given: Vec<Order> = vec![];
        for _ in 0..12 {
            let orders = decide(&policy, &inventory, utc(NOW)).orders(&policy);
            for order in &orders {
                prop_assert!(
                    matches!(order, Order::Send { .. }) || !given.contains(order),
                    "the order was given twice: {order:?}"
                );
            }
            let before = inventory.clone();
            predict(&mut inventory, &orders, utc(NOW));
            given.extend(orders.clone());
            if inventory == before {
                prop_assert!(orders.iter().all(|o| matches!(o, Order::Send { .. })), "{orders:?}");
                settled = true;
                break;
            }
        }
        prop_assert!(settled, "the world does not settle");
    }

    /// No destroyed snapshot meets the definition of a protection.
    #[test]
    fn nothing_protected_is_destroyed((policy, inventory) in a_world()) {
        let plan = decide(&policy, &inventory, utc(NOW));
        let pairs = pairs(&policy, &inventory);
        let listed = |host: &HostName| inventory.hosts.get(host).is_some_and(|h| h.observed.is_some());
        for (at, guids) in destroys(&plan.orders(&policy)) {
            prop_assert!(listed(&at.host));
            let dataset = inventory.dataset(&at.host, &at.dataset).unwrap();
            let all = live(dataset);
            let governing = governing(&policy, &at);
            for guid in guids {
                let snapshot = all.iter().find(|s| s.guid == guid).unwrap();
                prop_assert_eq!(snapshot.userrefs, 0);
                let prefix: &Prefix = &PREFIXES.map(|p| p.parse::<Prefix>().unwrap()).into_iter()
                    .find(|p| p.time_in(&snapshot.name).is_some()).expect("a snapshot of some prefix");
                let newest = all.iter().rfind(|s| prefix.time_in(&s.name).is_some()).unwrap();
                prop_assert_ne!(newest.guid, guid);
                // On a source, it is on every destination, and all destinations are known.
                if let Some((entry, one)) = governing.iter().find(|(_, p)| p.prefix == *prefix) {
                    prop_assert!(one.retention.is_some());
                    prop_assert!(!(entry.skip_if_cloned && snapshot.has_clones));
                }
                for (_, to, one) in pairs.iter().filter(|(from, to, _)| *from == at && *to != at) {
                    prop_assert!(listed(&to.host));
                    if one.prefix != *prefix || one.prune_unsent {
                        continue;
                    }
                    let there = inventory.dataset(&to.host, &to.dataset).map(live).unwrap_or_default();
                    let is_there = |guid: Guid| there.iter().any(|s| s.guid == guid);
                    let snapshots = all.iter().filter(|s| is_there(s.guid)).map(|s| s.createtxg);
                    let bookmarks = dataset.bookmarks.iter().filter(|b| is_there(b.guid)).map(|b| b.createtxg);
                    let sent_up_to = snapshots.chain(bookmarks).max();
                    prop_assert!(sent_up_to.is_some_and(|txg| snapshot.createtxg <= txg), "{:?} is unsent", snapshot);
                }
            }
        }
    }

    /// Every pair with a common snapshot keeps the same newest one after all destroys, in any order, and even if only
    /// some are carried out.
    #[test]
    fn every_base_survives((policy, mut inventory) in a_world(), skip in any::<u64>()) {
        let pairs = pairs(&policy, &inventory);
        let before: Vec<_> = pairs.iter().map(|(from, to, _)| base(&inventory, from, to)).collect();
        let mut orders = decide(&policy, &inventory, utc(NOW)).orders(&policy);
        orders.retain(|o| matches!(o, Order::Destroy { .. }));
        let mut i = 0;
        orders.retain(|_| { i += 1; skip >> (i % 64) & 1 == 0 });
        predict(&mut inventory, &orders, utc(NOW));
        let after: Vec<_> = pairs.iter().map(|(from, to, _)| base(&inventory, from, to)).collect();
        prop_assert_eq!(before, after);
    }

    /// No snapshot is destroyed that a rule of an applicable policy keeps.
    #[test]
    fn no_rule_is_violated((policy, inventory) in a_world()) {
        let now = utc(NOW);
        let plan = decide(&policy, &inventory, now);
        let gone: BTreeMap<Place, Vec<Guid>> = destroys(&plan.orders(&policy)).into_iter().fold(BTreeMap::new(), |mut all, (at, guids)| {
            all.entry(at).or_default().extend(guids);
            all
        });
        let pairs = pairs(&policy, &inventory);
        for (at, gone) in &gone {
            let dataset = inventory.dataset(&at.host, &at.dataset).unwrap();
            let as_source = governing(&policy, at).into_iter().map(|(_, p)| (&p.prefix, p.retention.as_ref()));
            let received = pairs.iter().filter(|(from, to, _)| to == at && from != at);
            let as_destination = received.map(|(_, _, p)| (&p.prefix, p.sync_retention.as_ref()));
            for (prefix, retention) in as_source.chain(as_destination) {
                let taken: Vec<&Snapshot> =
                    live(dataset).into_iter().filter(|s| prefix.time_in(&s.name).is_some()).collect();
                let promised: Vec<Guid> = match retention {
                    Some(retention) => retention.rules().iter().flat_map(|r| kept_by(r, policy.timezone, now, &taken)).collect(),
                    None => taken.iter().map(|s| s.guid).collect(),
                };
                for guid in promised {
                    prop_assert!(!gone.contains(&guid), "{guid} of {at:?} was promised by {retention:?}");
                }
            }
        }
    }

    #[test]
    fn plan_is_independent_of_input_order((policy, inventory) in a_world(), turn in any::<usize>()) {
        let mut shuffled = inventory.clone();
        for dataset in shuffled.hosts.values_mut().flat_map(|h| h.datasets.values_mut()) {
            let middle = turn % dataset.snapshots.len().max(1);
            dataset.snapshots.rotate_left(middle);
            dataset.snapshots.reverse();
            dataset.bookmarks.reverse();
        }
        let plan = decide(&policy, &inventory, utc(NOW));
        prop_assert_eq!(decide(&policy, &shuffled, utc(NOW)).orders(&policy), plan.orders(&policy));
        shuffled.hosts.values_mut().flat_map(|h| h.datasets.values_mut()).for_each(DatasetInventory::sort);
        let mut sorted = inventory;
        sorted.hosts.values_mut().flat_map(|h| h.datasets.values_mut()).for_each(DatasetInventory::sort);
        prop_assert_eq!(decide(&policy, &shuffled, utc(NOW)), decide(&policy, &sorted, utc(NOW)));
    }

    /// An additional snapshot, dataset and host that no policy covers change nothing else.
    #[test]
    fn foreign_snapshots_datasets_and_hosts_change_nothing((policy, mut inventory) in a_world(), at in any::<usize>()) {
        let before = decide(&policy, &inventory, utc(NOW));
        let stranger = |guid| Snapshot { guid: Guid(guid), ..snapshot("stranger", 15) };
        for (dataset, guid) in inventory.hosts.values_mut().flat_map(|h| h.datasets.values_mut()).zip(70_000..) {
            let at = at % (dataset.snapshots.len() + 1);
            dataset.snapshots.insert(at, stranger(guid));
        }
        let nobodys = DatasetInventory { snapshots: vec![snapshot("B@11-01T00:00", 1), stranger(80_000)], ..Default::default() };
        for known in inventory.hosts.values_mut() {
            known.datasets.insert("zz/top".parse().unwrap(), nobodys.clone());
        }
        let host = HostInventory { observed: Some(utc(NOW)), datasets: [("t".parse().unwrap(), nobodys)].into(), ..HostInventory::default() };
        inventory.hosts.insert("omega".parse().unwrap(), host);
        let after = decide(&policy, &inventory, utc(NOW));
        prop_assert_eq!(after.orders(&policy), before.orders(&policy));
        prop_assert_eq!(&after.takes, &before.takes);
        prop_assert_eq!(&after.sends, &before.sends);
    }

    /// The tally agrees with its slow definition even if creation times and createtxg disagree.
    #[test]
    fn tally_agrees_with_its_definition(hours in prop::collection::vec(-30i64..20_000, 0..60)) {
        let now = utc(NOW);
        let taken: Vec<Snapshot> = hours.iter().zip(1..).map(|(h, i)| Snapshot {
            creation: now - TimeDelta::hours(*h),
            guid: Guid(i),
            ..snapshot("x", i)
        }).collect();
        let taken: Vec<&Snapshot> = taken.iter().collect();
        let retention = rules(&[
            "3 in last week", "1/hour in last 2 days", "2/day in last month", "1/week in last 3 months", "1/month in last year", "1/year in last 3 years",
        ]).unwrap();
        let tz = "Europe/Berlin".parse().unwrap();
        let mut tally = Tally::new(tz, now);
        tally.restart(retention.rules());
        let masks: Vec<(Guid, u64)> = taken.iter().rev().map(|s| (s.guid, tally.keep(s.creation, true))).collect();
        for (i, rule) in retention.rules().iter().enumerate() {
            let quick: Vec<Guid> = masks.iter().filter(|(_, m)| m >> i & 1 == 1).map(|(g, _)| *g).collect();
            prop_assert_eq!(quick, kept_by(rule, tz, now, &taken), "{}", rule);
        }
    }
}

/// Makes sure that the random examples contain enough orders for the properties to mean anything.
#[test]
fn random_examples_have_enough_orders() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut takes, mut sends, mut destroys, mut busy) = (0, 0, 0, 0);
    for _ in 0..200 {
        let (policy, inventory) = a_world().new_tree(&mut runner).unwrap().current();
        let orders = decide(&policy, &inventory, utc(NOW)).orders(&policy);
        takes += usize::from(orders.iter().any(|o| matches!(o, Order::Take { .. })));
        sends += usize::from(orders.iter().any(|o| matches!(o, Order::Send { .. })));
        destroys += usize::from(orders.iter().any(|o| matches!(o, Order::Destroy { .. })));
        busy += usize::from(orders.len() > 4);
    }
    assert!(takes > 80 && sends > 80 && destroys > 60 && busy > 40, "{takes} {sends} {destroys} {busy} of 200");
}
