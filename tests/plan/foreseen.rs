//! Compares previews with passes: in random fleets on pools in memory, a pass gives exactly the orders that the preview
//! before it shows, destroys exactly the same snapshots, and fails where the preview says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use zsync::actions::{Order, decide};
use zsync::agent::Agent;
use zsync::catalog::{MemoryCatalog, Outcome};
use zsync::config::parse_policy;
use zsync::director::{Pass, Report};
use zsync::fleet::known::{Asked, from_hosts};
use zsync::fleet::planned::PlannedOrder;
use zsync::fleet::{Dispatcher, FleetState};
use zsync::model::{Action, Counter, DatasetName, Place, ResponseStatus, SnapName};
use zsync::plan::foresee::foresee;
use zsync::policy::{Local, Policy};
use zsync::slave::Slave;
use zsync::sys::runtime;
use zsync::zfs::fake::Fake;
use zsync::zfs::{Depth, Listed, ReadOnly, Zfs, ZfsRead};

use super::common::loopback::listen;
use super::common::{ds, host, local, snap};

/// How many fleets there are, and how many passes each makes. Every pass is made in a world of its own.
const FLEETS: u64 = 100;
const PASSES: usize = 20;
/// Further fleets, in which a preview and a pass have once differed.
const FOUND: [u64; 8] = [116, 186, 228, 240, 338, 359, 379, 393];
/// A variable with another number of fleets, or with the numbers of the fleets, such as `116..117`.
const FLEETS_VARIABLE: &str = "ZSYNC_PREVIEW_FLEETS";

const HOSTS: [&str; 3] = ["alpha", "beta", "gamma"];

/// A source of choices: SplitMix64.
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn of<'x, T: ?Sized>(&mut self, all: &[&'x T]) -> &'x T {
        all[self.below(all.len())]
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A fleet of three hosts. alpha runs the director.
struct Fleet {
    pools: BTreeMap<&'static str, Fake>,
    addresses: BTreeMap<&'static str, (String, String)>,
    dispatcher: Arc<Dispatcher<Fake>>,
    preview: Arc<Dispatcher<ReadOnly<Fake>>>,
    state: FleetState<MemoryCatalog>,
    entries: Vec<String>,
    now: DateTime<Utc>,
}

/// What a host permits. `strict` may forbid something that the policies want.
fn a_local(choices: &mut Choices, strict: bool) -> Arc<Local> {
    let mut pool = r#""slave": true, "append_only": false, "rollback": true"#.to_owned();
    let mut tank = String::new();
    if strict {
        match choices.below(7) {
            0 => pool = r#""slave": true"#.to_owned(),
            1 => pool = r#""slave": true, "append_only": false"#.to_owned(),
            2 => pool = r#""slave": true, "append_only": false, "sources": ["gamma"]"#.to_owned(),
            3 => pool = r#""slave": false"#.to_owned(),
            4 => tank = r#", "take": false"#.to_owned(),
            5 => tank = r#", "append_only": true"#.to_owned(),
            _ => tank = r#", "destinations": ["gamma"]"#.to_owned(),
        }
    }
    local(&format!(r#"{{ "local_datasets": [ {{ "name": "tank" {tank} }}, {{ "name": "pool", {pool} }} ] }}"#))
}

fn a_policy(choices: &mut Choices, prefix: &str, targets: &[String]) -> String {
    let creation = choices.of(&["* * * * *", "* * * * *", "*/2 * * * *", "*/5 * * * *"]);
    let sync_policy = choices.of(&["asap", "asap", "*/3 * * * *"]);
    let retention = ["1 in last day", "2 in last day", "1 in last 3 minutes", "1/minute in last 4 minutes"];
    let (here, there) = (choices.of(&retention), choices.of(&retention));
    let targets: Vec<String> = targets.iter().map(|target| format!("{target:?}")).collect();
    let sync = match targets.is_empty() {
        true => String::new(),
        false => format!(
            r#", "sync_on": [{}], "sync_policy": "{sync_policy}", "sync_retention": ["{there}"]"#,
            targets.join(", ")
        ),
    };
    let unsent = choices.percent(20);
    let unsent = if unsent && !targets.is_empty() { r#", "prune_unsent": true"# } else { "" };
    format!(
        r#""{prefix}": {{ "prefix": "{prefix}", "creation": "{creation}", "retention": ["{here}"]{sync}{unsent} }}"#
    )
}

/// An entry of the policy. It sends `dataset` of `source` to `target` on some hosts, by policies with these prefixes.
fn an_entry(choices: &mut Choices, (source, dataset): (&str, &str), target: &str, prefixes: &[&str]) -> String {
    let targets = |choices: &mut Choices, suffix: &str| {
        // alpha has no slave: it receives only its own copies.
        let hosts = HOSTS.into_iter().filter(|name| *name != "alpha" || source == "alpha");
        let hosts: Vec<&str> = hosts.filter(|_| choices.percent(60)).collect();
        hosts.iter().map(|host| format!("{host}:{target}{suffix}")).collect::<Vec<String>>()
    };
    let first = targets(choices, "");
    let mut policies = Vec::new();
    for prefix in prefixes {
        let others = if policies.is_empty() || choices.percent(50) { first.clone() } else { targets(choices, "q") };
        policies.push(a_policy(choices, prefix, &others));
    }
    let mut options = String::new();
    // A listing does not say what was written between the snapshots of two policies.
    let skips = if prefixes == ["P"] { 70 } else { 0 };
    for (option, percent) in [("recursive", 60), ("skip_if_not_written", skips), ("rollback_if_needed", 50)] {
        options += &format!(r#", "{option}": {}"#, choices.percent(percent));
    }
    if options.contains(r#""rollback_if_needed": true"#) && choices.percent(60) {
        options += r#", "rollback_may_destroy": true"#;
    }
    if choices.percent(30) {
        options += r#", "on_divergence": "set_aside""#;
    }
    if options.contains(r#""recursive": true"#) && choices.percent(25) {
        options += &format!(r#", "exclude": ["{}"]"#, choices.of(&["c", "c/d", "x*", "**/d"]));
    }
    let policies = policies.join(", ");
    format!(r#"{{ "hostname": "{source}", "dataset": "{dataset}"{options}, "policies": {{ {policies} }} }}"#)
}

/// The entries for one dataset and for what is done with its copies.
fn some_entries(choices: &mut Choices, number: usize) -> Vec<String> {
    let source = choices.of(&["alpha", "alpha", "beta"]);
    let (dataset, target) = (format!("tank/d{number}"), format!("pool/e{number}"));
    let place = (source, dataset.as_str());
    match choices.below(10) {
        0..=2 => vec![an_entry(choices, place, &target, &["P"])],
        3 => vec![an_entry(choices, place, &target, &["P", "Q"])],
        // A chain, perhaps with a second policy or a second link.
        4..=6 => {
            let prefixes: &[&str] = if choices.percent(30) { &["Q", "P"] } else { &["P"] };
            let mut entries = vec![an_entry(choices, place, &target, prefixes)];
            let (middle, next) = (choices.of(&["beta", "beta", source]), format!("pool/f{number}"));
            entries.push(an_entry(choices, (middle, &target), &next, &["P"]));
            if choices.percent(20) {
                entries.push(an_entry(choices, ("gamma", &next), &format!("pool/g{number}"), &["P"]));
            }
            entries
        }
        // Several entries for one dataset, for the same destinations or for others.
        7..=8 => {
            let other = if choices.percent(50) { target.clone() } else { format!("pool/f{number}") };
            let first = an_entry(choices, place, &target, &["Q"]);
            vec![first, an_entry(choices, place, &other, &["R"])]
        }
        // An entry for a dataset below that of another entry.
        _ => {
            let prefix = choices.of(&["Q", "R"]);
            let (below, other) = (format!("{dataset}/c"), format!("pool/f{number}"));
            let first = an_entry(choices, place, &target, &["Q"]);
            vec![first, an_entry(choices, (source, &below), &other, &[prefix])]
        }
    }
}

impl Fleet {
    fn random(choices: &mut Choices) -> Self {
        let strict = choices.percent(30).then(|| choices.of(&HOSTS));
        let mut entries: Vec<String> =
            (0..1 + choices.below(3)).flat_map(|number| some_entries(choices, number)).collect();
        for last in (1..entries.len()).rev() {
            entries.swap(last, choices.below(last + 1));
        }
        Self::new(entries, &HOSTS.map(|name| (name, a_local(choices, strict == Some(name)))).into())
    }

    fn new(entries: Vec<String>, locals: &BTreeMap<&'static str, Arc<Local>>) -> Self {
        let (mut pools, mut addresses) = (BTreeMap::new(), BTreeMap::new());
        for (seed, name) in HOSTS.into_iter().enumerate() {
            let fake = Fake::new(seed as u64 + 1);
            fake.create(&ds("tank"));
            fake.create(&ds("pool"));
            for number in 0..3 {
                for child in ["", "/c", "/c/d"] {
                    fake.create(&ds(&format!("tank/d{number}{child}")));
                }
            }
            if name != "alpha" {
                let local = &locals[name];
                let agent = listen(Agent::new(host(name), Arc::new(fake.clone()), Arc::clone(local)), None);
                let slave = listen(Slave::new(Arc::new(fake.clone()), Arc::clone(local)), None);
                addresses.insert(name, (agent, slave));
            }
            pools.insert(name, fake);
        }
        let (alpha, here) = (&pools["alpha"], host("alpha"));
        let own = Agent::new(here.clone(), Arc::new(alpha.clone()), Arc::clone(&locals["alpha"]));
        let dispatcher = Arc::new(Dispatcher { here: here.clone(), own: Ok(Arc::new(own)), tls: None });
        let own = Agent::new(here.clone(), Arc::new(ReadOnly::new(alpha.clone())), Arc::clone(&locals["alpha"]));
        let preview = Arc::new(Dispatcher { here, own: Ok(Arc::new(own)), tls: None });
        let now = DateTime::from_timestamp(1_795_429_805, 0).unwrap();
        let state = FleetState::embedded(Arc::new(MemoryCatalog::new()));
        Self { pools, addresses, dispatcher, preview, state, entries, now }
    }

    /// A fleet in which alpha sends a tree to beta each hour. `beta` is what beta permits in its pool.
    fn of_two(beta: &str) -> Self {
        let entry = r#"{ "hostname": "alpha", "dataset": "tank/d0", "recursive": true, "backup": { "prefix": "P",
            "creation": "0 * * * *", "sync_on": ["beta:pool/e0"], "retention": ["1 in last day"],
            "sync_retention": ["1 in last day"] } }"#;
        let source = local(r#"{ "local_datasets": [ { "name": "tank" } ] }"#);
        let beta = local(&format!(r#"{{ "local_datasets": [ {{ "name": "pool", "slave": true, {beta} }} ] }}"#));
        Self::new(vec![entry.to_owned()], &[("alpha", Arc::clone(&source)), ("beta", beta), ("gamma", source)].into())
    }

    /// Writes to the tree, and makes a preview and a pass, which must be alike. Returns the orders, and the outcomes.
    fn preview_and_pass(&self) -> (Vec<String>, Vec<Outcome>) {
        self.preview_and_pass_of("")
    }

    /// Like [`Self::preview_and_pass`], but only the orders that begin with `kind` must be alike.
    fn preview_and_pass_of(&self, kind: &str) -> (Vec<String>, Vec<Outcome>) {
        let policy = self.policy(None);
        let alpha = &self.pools["alpha"];
        let tree = listed(alpha).into_iter().map(|(name, _)| name).filter(|name| name.is_within(&ds("tank/d0")));
        tree.for_each(|dataset| alpha.write(&dataset, 1000));
        self.pools.values().for_each(|fake| fake.set_now(self.now));
        let planned: Vec<String> = self.foresee(&policy).iter().map(shown).collect();
        let outcomes = self.pass(&policy).outcomes;
        let given = |o: &Outcome| format!("{}{}", given(o), if o.success { "" } else { " fails" });
        let (mut expected, mut found) = (planned.clone(), outcomes.iter().map(given).collect::<Vec<_>>());
        for orders in [&mut expected, &mut found] {
            orders.retain(|order| order.starts_with(kind));
            orders.sort();
        }
        assert_eq!(found, expected);
        (planned, outcomes)
    }

    fn policy(&self, down: Option<&str>) -> Arc<Policy> {
        let address = |host: &str, address: &str| match down == Some(host) {
            true => "127.0.0.1:1".to_owned(),
            false => address.to_owned(),
        };
        let hosts = self.addresses.iter().map(|(name, (agent, slave))| {
            let (agent, slave) = (address(name, agent), address(name, slave));
            format!(r#""{name}": {{ "address": "{agent}", "receive_address": "{slave}" }}"#)
        });
        let hosts = hosts.collect::<Vec<_>>().join(", ");
        let text =
            format!(r#"{{ "retry_for": "0s", "hosts": {{ {hosts} }}, "datasets": [ {} ] }}"#, self.entries.join(", "));
        Arc::new(parse_policy("server.json", &text).unwrap_or_else(|e| panic!("{e}\n{text}")))
    }

    /// Something happens in the fleet behind the director's back.
    fn disturb(&mut self, choices: &mut Choices) {
        for (name, fake) in &self.pools {
            fake.set_now(self.now - TimeDelta::seconds(30));
            let names = listed(fake).into_iter().map(|(name, _)| name);
            let names: Vec<DatasetName> = names.filter(|name| name.as_str().contains('/')).collect();
            for dataset in &names {
                let is_source = dataset.as_str().starts_with("tank");
                if is_source && choices.percent(70) {
                    fake.write(dataset, 1000);
                }
                if choices.percent(if is_source { 12 } else { 3 }) {
                    fake.write(dataset, if is_source { 1000 } else { 0 });
                    let name = snap(&format!("autosnap_{}", self.now.format("%F_%T")));
                    runtime::block_on(fake.snapshot(std::slice::from_ref(dataset), &name)).unwrap();
                }
                let snapshots: Vec<SnapName> =
                    fake.dataset(dataset).unwrap_or_default().snapshots.into_iter().map(|s| s.name).collect();
                if snapshots.is_empty() {
                    continue;
                }
                let one = snapshots[choices.below(snapshots.len())].clone();
                match choices.below(40) {
                    0 if is_source => fake.destroy_by_hand(dataset, &[one]),
                    1 => runtime::block_on(fake.hold("by-hand", dataset, &[one])).unwrap(),
                    2 => fake.clone_of(dataset, &one),
                    _ => {}
                }
            }
            if choices.percent(8) {
                let number = choices.below(3);
                let (from, to) =
                    (ds(&format!("tank/d{number}/c")), ds(&format!("tank/d{number}/x{}", choices.below(3))));
                let _ = runtime::block_on(fake.rename(&from, &to));
            }
            let away = choices.percent(8).then_some("the pool is not imported");
            if *name != "alpha" || away.is_none() {
                fake.set_away("pool", away);
            }
            fake.set_now(self.now);
        }
    }

    fn foresee(&self, policy: &Arc<Policy>) -> Vec<PlannedOrder> {
        let remembered = runtime::block_on(self.state.remembered()).unwrap();
        let asked = Counter::default();
        let asking = from_hosts(policy, &self.preview, remembered, BTreeMap::new(), &asked);
        let Asked { inventory, obstacles } = runtime::block_on(asking);
        let now = decide(policy, &inventory, self.now).orders(policy);
        foresee(policy, inventory, now, self.now, &obstacles).orders
    }

    fn pass(&self, policy: &Arc<Policy>) -> Report {
        let pass = Pass::new(Arc::clone(policy), Arc::clone(&self.dispatcher), self.state.clone(), self.now);
        runtime::block_on(pass.run()).unwrap()
    }

    /// How many calls each host's ZFS had so far.
    fn calls(&self) -> Vec<usize> {
        self.pools.values().map(|fake| fake.calls().len()).collect()
    }

    /// The snapshots that were destroyed since there had been so many calls.
    fn destroyed(&self, since: &[usize]) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for ((host, fake), since) in self.pools.iter().zip(since) {
            for call in fake.calls().into_iter().skip(*since) {
                let Some((dataset, names)) = call.strip_prefix("destroy ").and_then(|call| call.split_once('@')) else {
                    continue;
                };
                all.extend(names.split(',').map(|name| format!("{host}:{dataset}@{name}")));
            }
        }
        all
    }

    /// All snapshots of the fleet.
    fn snapshots(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for (name, fake) in &self.pools {
            for (dataset, found) in listed(fake) {
                all.extend(found.snapshots.iter().map(|s| format!("{name} {} {dataset}", s.guid)));
            }
        }
        all
    }
}

/// All datasets of a host.
fn listed(fake: &Fake) -> Vec<Listed> {
    let roots = [ds("tank"), ds("pool")];
    runtime::block_on(fake.list(&roots, Depth::Recursive)).unwrap()
}

fn shown(planned: &PlannedOrder) -> String {
    let fails = if planned.refused.is_some() { " fails" } else { "" };
    let text = match &planned.order {
        Order::Take { host, datasets, name, .. } => format!("take {host}:{}@{name}", datasets[0]),
        Order::Send { host, dataset, snapshot, to, .. } => {
            format!("send {host}:{dataset}@{snapshot} to {}:{}", to.host, to.dataset)
        }
        Order::Destroy { host, dataset, snapshots, .. } => match snapshots.as_slice() {
            [(_, only)] => format!("destroy {host}:{dataset}@{only}"),
            _ => format!("destroy {host}:{dataset}"),
        },
    };
    text + fails
}

fn given(outcome: &Outcome) -> String {
    let (host, dataset) = (&outcome.host, outcome.dataset.as_ref().unwrap());
    let snapshot = outcome.snapshot.as_ref().map(|name| format!("@{name}")).unwrap_or_default();
    match outcome.action {
        Action::TakeSnapshot => format!("take {host}:{dataset}{snapshot}"),
        Action::SendSnapshot => {
            let to = outcome.to.as_ref().unwrap();
            format!("send {host}:{dataset}{snapshot} to {}:{}", to.host, to.dataset)
        }
        _ => format!("destroy {host}:{dataset}{snapshot}"),
    }
}

/// The snapshots that the preview says are destroyed.
fn doomed(planned: &[PlannedOrder]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for PlannedOrder { order, refused, .. } in planned {
        if let (Order::Destroy { host, dataset, snapshots, .. }, None) = (order, refused) {
            all.extend(snapshots.iter().map(|(_, name)| format!("{host}:{dataset}@{name}")));
        }
    }
    all
}

/// Plays one fleet, and returns how many orders of each kind there were, and how many failed.
fn play(seed: u64) -> [usize; 4] {
    let mut choices = Choices(seed);
    let mut fleet = Fleet::random(&mut choices);
    let mut counts = [0; 4];
    for pass in 0..PASSES {
        // No age is a whole number of minutes, because a pass decides a moment after its preview.
        fleet.now += TimeDelta::seconds(7 + 60 * (1 + choices.below(3) as i64));
        fleet.disturb(&mut choices);
        let down = choices.percent(8).then(|| choices.of(&["beta", "gamma"]));
        let policy = fleet.policy(down);
        let before = fleet.snapshots();
        let planned = fleet.foresee(&policy);
        assert_eq!(fleet.snapshots(), before, "a preview changes nothing");
        let calls = fleet.calls();
        let report = fleet.pass(&policy);
        let mut expected: Vec<String> = planned.iter().map(|p| shown(p).replace(" fails", "")).collect();
        let mut found: Vec<String> = report.outcomes.iter().map(given).collect();
        expected.sort();
        found.sort();
        let details = || {
            let outcomes: Vec<String> = report
                .outcomes
                .iter()
                .map(|o| {
                    let failed = if o.success { String::new() } else { format!(" FAILED {:?}", o.error) };
                    given(o) + &failed
                })
                .collect();
            let planned: Vec<String> =
                planned.iter().map(|p| format!("{} {:?} {:?}", shown(p), p.after, p.refused)).collect();
            format!(
                "fleet {seed}, pass {pass} at {}, {down:?} is down\npolicy: {}\nplanned:\n  {}\ngiven:\n  {}",
                fleet.now,
                fleet.entries.join("\n"),
                planned.join("\n  "),
                outcomes.join("\n  ")
            )
        };
        assert_eq!(found, expected, "{}", details());
        let (gone, foreseen) = (fleet.destroyed(&calls), doomed(&planned));
        let sent: BTreeSet<String> =
            report.outcomes.iter().filter_map(|o| o.to.as_ref().map(Place::to_string)).collect();
        // A rollback destroys snapshots of a destination, too.
        let is_rollback = |name: &&String| sent.contains(name.split('@').next().unwrap());
        let wrong: Vec<&String> =
            foreseen.difference(&gone).chain(gone.difference(&foreseen).filter(|name| !is_rollback(name))).collect();
        assert!(wrong.is_empty(), "foreseen or destroyed: {wrong:?}\n{}", details());
        for planned in planned.iter().filter(|planned| planned.refused.is_some()) {
            let order = shown(planned).replace(" fails", "");
            let outcome = report.outcomes.iter().find(|o| given(o) == order).unwrap();
            assert!(!outcome.success, "{order} was to fail\n{}", details());
        }
        for outcome in &report.outcomes {
            let kind = match outcome.action {
                Action::TakeSnapshot => 0,
                Action::SendSnapshot => 1,
                _ => 2,
            };
            counts[kind] += 1;
            counts[3] += usize::from(!outcome.success);
        }
    }
    counts
}

#[test]
fn pass_gives_the_orders_that_the_preview_shows() {
    let fleets: Vec<u64> = match std::env::var(FLEETS_VARIABLE) {
        Ok(text) => {
            let (first, end) = text.split_once("..").unwrap_or(("0", &text));
            (first.parse().unwrap()..end.parse().unwrap()).collect()
        }
        Err(_) => (0..FLEETS).chain(FOUND).collect(),
    };
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failed = std::sync::atomic::AtomicU64::new(0);
    let work = || {
        let mut counts = [0; 4];
        loop {
            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(seed) = fleets.get(index).copied() else { return counts };
            let Ok(played) = std::panic::catch_unwind(|| play(seed)) else {
                failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                continue;
            };
            for (sum, count) in counts.iter_mut().zip(played) {
                *sum += count;
            }
        }
    };
    let counts: Vec<[usize; 4]> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(failed.into_inner(), 0, "fleets that failed; each is above");
    let sum = |kind: usize| counts.iter().map(|count| count[kind]).sum::<usize>();
    let [takes, sends, destroys, failed] = [0, 1, 2, 3].map(sum);
    // Otherwise the worlds prove little.
    assert!(
        fleets.len() < FLEETS as usize || takes > 1500 && sends > 1500 && destroys > 1000 && failed > 100,
        "{takes} takes, {sends} sends, {destroys} destroys, {failed} failed"
    );
}

#[test]
fn preview_knows_that_a_coming_snapshot_is_newer_than_that_of_another_tool() {
    let fleet = Fleet::of_two(r#""append_only": false"#);
    // It is half past, so the slot is older than this snapshot.
    let alpha = &fleet.pools["alpha"];
    alpha.set_now(fleet.now - TimeDelta::minutes(1));
    runtime::block_on(alpha.snapshot(&[ds("tank/d0"), ds("tank/d0/c")], &snap("autosnap"))).unwrap();
    let (planned, _) = fleet.preview_and_pass();
    assert_eq!(planned.iter().filter(|order| order.starts_with("take")).count(), 1, "{planned:?}");
    assert_eq!(planned.iter().filter(|order| order.starts_with("send")).count(), 3, "{planned:?}");
}

#[test]
fn preview_knows_that_a_copy_is_renamed_with_its_source() {
    let mut fleet = Fleet::of_two(r#""append_only": false"#);
    fleet.preview_and_pass();
    runtime::block_on(fleet.pools["alpha"].rename(&ds("tank/d0/c"), &ds("tank/d0/x"))).unwrap();
    fleet.now += TimeDelta::hours(1);
    let (planned, _) = fleet.preview_and_pass();
    assert!(planned.iter().any(|order| order.ends_with(" to beta:pool/e0/x")), "{planned:?}");
    let copy = |name: &str| fleet.pools["beta"].dataset(&ds(name)).map_or(0, |copy| copy.snapshots.len());
    assert_eq!([copy("pool/e0/x"), copy("pool/e0/x/d"), copy("pool/e0/c")], [2, 2, 0]);
}

/// A name that a dataset has given up is another one's at once, for the copies as well.
#[test]
fn preview_and_pass_follow_names_that_rotate() {
    let mut fleet = Fleet::of_two(r#""append_only": false"#);
    let (alpha, beta) = (fleet.pools["alpha"].clone(), fleet.pools["beta"].clone());
    alpha.create(&ds("tank/d0/a"));
    fleet.preview_and_pass();
    let of = |pool: &Fake, name: &str| pool.dataset(&ds(name)).unwrap().snapshots[0].guid;
    let before = [of(&alpha, "tank/d0/a"), of(&alpha, "tank/d0/c")];
    for (from, to) in [("tank/d0/c", "tank/d0/x"), ("tank/d0/a", "tank/d0/c")] {
        runtime::block_on(alpha.rename(&ds(from), &ds(to))).unwrap();
    }
    fleet.now += TimeDelta::hours(1);
    let (planned, outcomes) = fleet.preview_and_pass();
    assert!(outcomes.iter().all(|outcome| outcome.success), "{planned:?} {outcomes:?}");
    assert_eq!([of(&beta, "pool/e0/c"), of(&beta, "pool/e0/x")], before, "no copy begins from the start");
    assert!(beta.dataset(&ds("pool/e0/a")).is_none());
}

/// The names of sources go round in circles of three and four.
#[test]
fn preview_and_pass_follow_names_that_go_round() {
    let mut fleet = Fleet::of_two(r#""append_only": false, "rollback": true"#);
    let (alpha, beta) = (fleet.pools["alpha"].clone(), fleet.pools["beta"].clone());
    let names = ["a", "b", "c", "d/e"];
    for name in ["a", "b", "d", "d/e"] {
        alpha.create(&ds(&format!("tank/d0/{name}")));
    }
    fleet.preview_and_pass();
    let newest = |pool: &Fake, name: &str| pool.dataset(&ds(name)).and_then(|found| Some(found.newest()?.guid));
    let at = |pool: &Fake, top: &str| names.map(|name| newest(pool, &format!("{top}/{name}")));
    for circle in [&["a", "b", "c"][..], &["c", "b", "a"], &["d/e", "a", "c", "b"], &["b", "d/e", "a"]] {
        let before = at(&alpha, "tank/d0");
        let places: Vec<DatasetName> = circle.iter().map(|name| ds(&format!("tank/d0/{name}"))).collect();
        let rename = |from: &DatasetName, to: &DatasetName| runtime::block_on(alpha.rename(from, to)).unwrap();
        let between = ds("tank/d0/between");
        rename(&places[0], &between);
        places.windows(2).for_each(|two| rename(&two[1], &two[0]));
        rename(&between, &places[places.len() - 1]);
        assert_ne!(at(&alpha, "tank/d0"), before);
        fleet.now += TimeDelta::hours(1);
        // A copy that has waited under a name in between is listed again by then, and pruned in the same pass.
        let (planned, outcomes) = fleet.preview_and_pass_of("send");
        assert!(outcomes.iter().all(|outcome| outcome.success), "{circle:?}: {planned:#?} {outcomes:#?}");
        assert_eq!(at(&beta, "pool/e0"), at(&alpha, "tank/d0"), "{circle:?}: {planned:#?}");
        let begins = |outcome: &&Outcome| outcome.status == Some(ResponseStatus::Full);
        assert_eq!(outcomes.iter().find(begins), None, "no copy begins from the start");
    }
}

/// Sources that exchange their names need a third name for a moment, and so do their copies.
#[test]
fn preview_and_pass_follow_names_that_are_exchanged() {
    let mut fleet = Fleet::of_two(r#""append_only": false"#);
    let (alpha, beta) = (fleet.pools["alpha"].clone(), fleet.pools["beta"].clone());
    let names = ["a", "b", "c", "d/e", "f"];
    for name in &names[..2] {
        alpha.create(&ds(&format!("tank/d0/{name}")));
    }
    for name in ["d", "d/e", "f"] {
        alpha.create(&ds(&format!("tank/d0/{name}")));
    }
    fleet.preview_and_pass();
    let newest = |pool: &Fake, name: &str| pool.dataset(&ds(name)).and_then(|found| Some(found.newest()?.guid));
    let at = |pool: &Fake, top: &str| names.map(|name| newest(pool, &format!("{top}/{name}")));
    // With what is below them, and with another parent.
    for exchanged in [["a", "c"], ["f", "d/e"], ["b", "c"]] {
        let before = at(&alpha, "tank/d0");
        let [one, other] = exchanged.map(|name| ds(&format!("tank/d0/{name}")));
        let between = ds("tank/d0/between");
        for (from, to) in [(&one, &between), (&other, &one), (&between, &other)] {
            runtime::block_on(alpha.rename(from, to)).unwrap();
        }
        assert_ne!(at(&alpha, "tank/d0"), before);
        fleet.now += TimeDelta::hours(1);
        let (planned, outcomes) = fleet.preview_and_pass();
        assert!(outcomes.iter().all(|outcome| outcome.success), "{exchanged:?}: {planned:#?} {outcomes:#?}");
        assert_eq!(at(&beta, "pool/e0"), at(&alpha, "tank/d0"), "{exchanged:?}: {planned:#?}");
        let begins = |outcome: &&Outcome| outcome.status == Some(ResponseStatus::Full);
        assert_eq!(outcomes.iter().find(begins), None, "no copy begins from the start");
    }
}

#[test]
fn preview_knows_that_nothing_is_sent_to_a_pool_that_is_away() {
    let mut fleet = Fleet::of_two(r#""append_only": false"#);
    fleet.preview_and_pass();
    fleet.pools["beta"].set_away("pool", Some("the pool is not imported"));
    fleet.now += TimeDelta::hours(1);
    let (planned, _) = fleet.preview_and_pass();
    assert!(planned.len() == 1 && planned[0].starts_with("take alpha:tank/d0@"), "{planned:?}");
}

#[test]
fn preview_knows_what_a_host_does_not_permit() {
    let fleet = Fleet::of_two(r#""sources": ["gamma"]"#);
    let (planned, outcomes) = fleet.preview_and_pass();
    let mut sends = planned.iter().filter(|order| order.starts_with("send"));
    assert!(sends.clone().count() > 0 && sends.all(|order| order.ends_with(" fails")), "{planned:?}");
    assert!(!planned.iter().any(|order| order.starts_with("destroy")), "nothing follows from it: {planned:?}");
    let error = outcomes.iter().find(|o| !o.success).and_then(|o| o.error.as_ref()).unwrap();
    assert!(error.contains("does not receive from alpha"), "{error}");
}
