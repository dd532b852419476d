//! Runs passes of a director with agents and slaves over loopback, on pools and a catalog in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use common::loopback::listen;
use common::{ds, local};
use zsync::agent::Agent;
use zsync::catalog::{CatalogError, CatalogRead, MemoryCatalog};
use zsync::config::parse_policy;
use zsync::director::{Pass, Report, Rounds};
use zsync::fleet::{Dispatcher, FleetState};
use zsync::model::{Action, DatasetName, HostName};
use zsync::policy::Policy;
use zsync::slave::Slave;
use zsync::sys::runtime;
use zsync::zfs::fake::Fake;
use zsync::zfs::{ErrorKind, Zfs};

/// A fleet. alpha runs the director, which works on its own host itself, and reaches the others over loopback.
struct Fleet {
    pools: BTreeMap<&'static str, Fake>,
    addresses: BTreeMap<&'static str, (String, String)>,
    dispatcher: Arc<Dispatcher<Fake>>,
    world: FleetState<MemoryCatalog>,
    now: DateTime<Utc>,
}

/// When each fleet begins.
fn begin() -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_429_805, 0).unwrap()
}

impl Fleet {
    fn new() -> Self {
        let mut pools = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        let source = r#"{ "local_datasets": [ { "name": "tank/data" }, { "name": "tank/other" }, { "name": "spare", "slave": true } ] }"#;
        let copies = r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true, "append_only": false } ] }"#;
        for (seed, host) in ["alpha", "beta", "gamma"].into_iter().enumerate() {
            let fake = Fake::new(seed as u64 + 1);
            if host != "alpha" {
                fake.create(&ds("pool"));
                let name: HostName = host.parse().unwrap();
                let agent = listen(Agent::new(name, Arc::new(fake.clone()), local(copies)), None);
                let slave = listen(Slave::new(Arc::new(fake.clone()), local(copies)), None);
                addresses.insert(host, (agent, slave));
            }
            pools.insert(host, fake);
        }
        let alpha = &pools["alpha"];
        for dataset in ["tank", "tank/data", "tank/data/child", "tank/other", "spare"] {
            alpha.create(&ds(dataset));
        }
        let here: HostName = "alpha".parse().unwrap();
        let own = Agent::new(here.clone(), Arc::new(alpha.clone()), local(source));
        let dispatcher = Arc::new(Dispatcher { here, own: Ok(Arc::new(own)), tls: None });
        let now = begin();
        Self { pools, addresses, dispatcher, world: FleetState::embedded(Arc::new(MemoryCatalog::new())), now }
    }

    fn policy(&self, datasets: &str) -> Arc<Policy> {
        let hosts: Vec<String> = self
            .addresses
            .iter()
            .map(|(host, (agent, slave))| {
                format!(r#""{host}": {{ "address": "{agent}", "receive_address": "{slave}" }}"#)
            })
            .collect();
        let text =
            format!(r#"{{ "retry_for": "0s", "hosts": {{ {} }}, "datasets": [ {datasets} ] }}"#, hosts.join(", "));
        Arc::new(parse_policy("server.json", &text).unwrap_or_else(|e| panic!("{e}")))
    }

    fn pass(&self, policy: &Arc<Policy>) -> Report {
        self.pools.values().for_each(|fake| fake.set_now(self.now));
        let pass = Pass::new(Arc::clone(policy), Arc::clone(&self.dispatcher), self.world.clone(), self.now);
        runtime::block_on(pass.run()).unwrap()
    }

    /// A pass some minutes later, with new data in every dataset.
    fn later(&mut self, minutes: i64, policy: &Arc<Policy>) -> Report {
        self.now += TimeDelta::minutes(minutes);
        for dataset in ["tank/data", "tank/data/child", "tank/other"] {
            self.pools["alpha"].write(&ds(dataset), 1000);
        }
        self.pass(policy)
    }

    fn names(&self, host: &str, dataset: &str) -> Vec<String> {
        let found = self.pools[host].dataset(&ds(dataset));
        found.map(|d| d.snapshots.iter().map(|s| s.name.to_string()).collect()).unwrap_or_default()
    }
}

fn outcomes(report: &Report) -> Vec<String> {
    let order = |o: &zsync::catalog::Outcome| {
        let to = o.to.as_ref().map(|t| format!(" to {}:{}", t.host, t.dataset)).unwrap_or_default();
        let ended = if o.success { "" } else { " FAILED" };
        format!("{} {}:{}{to}{ended}", o.action, o.host, o.dataset.as_ref().unwrap())
    };
    report.outcomes.iter().map(order).collect()
}

const SYNC: &str = r#"{ "hostname": "alpha", "dataset": "tank/data", "recursive": true,
    "sync": { "prefix": "S", "creation": "* * * * *", "sync_on": ["beta", "gamma"], "sync_dataset": "pool/copy",
              "retention": ["1 in last day"], "sync_retention": ["2 in last day"] } }"#;

#[test]
fn pass_takes_and_sends_to_all_and_leaves_nothing_to_the_next() {
    let fleet = Fleet::new();
    let policy = fleet.policy(SYNC);
    let report = fleet.pass(&policy);
    assert!(report.is_success(), "{report:?}");
    assert_eq!(
        outcomes(&report),
        [
            "take_snapshot alpha:tank/data",
            "send_snapshot alpha:tank/data to beta:pool/copy",
            "send_snapshot alpha:tank/data to gamma:pool/copy",
            "send_snapshot alpha:tank/data/child to beta:pool/copy/child",
            "send_snapshot alpha:tank/data/child to gamma:pool/copy/child",
        ]
    );
    for host in ["beta", "gamma"] {
        assert_eq!(fleet.names(host, "pool/copy/child"), fleet.names("alpha", "tank/data/child"));
    }
    let again = fleet.pass(&policy);
    assert!(again.is_success() && again.outcomes.is_empty(), "{:?}", outcomes(&again));
}

#[test]
fn pass_prunes_each_side_by_its_own_retention() {
    let mut fleet = Fleet::new();
    let policy = fleet.policy(SYNC);
    for _ in 0..5 {
        let report = fleet.later(1, &policy);
        assert!(report.is_success(), "{report:?}");
    }
    assert_eq!(fleet.names("alpha", "tank/data").len(), 1);
    assert_eq!(fleet.names("beta", "pool/copy").len(), 2);
    assert_eq!(fleet.names("gamma", "pool/copy/child").len(), 2);
}

#[test]
fn unreachable_host_stops_nothing_else_and_loses_nothing() {
    let mut fleet = Fleet::new();
    let policy = fleet.policy(SYNC);
    assert!(fleet.pass(&policy).is_success());
    let (agent, slave) = fleet.addresses["gamma"].clone();
    fleet.addresses.insert("gamma", ("127.0.0.1:1".into(), "127.0.0.1:1".into()));
    let without = fleet.policy(SYNC);
    for _ in 0..3 {
        let report = fleet.later(1, &without);
        assert!(!report.is_success());
        assert!(report.unseen["gamma".parse::<HostName>().as_ref().unwrap()].contains("cannot reach gamma"));
    }
    assert_eq!(fleet.names("beta", "pool/copy").last(), fleet.names("alpha", "tank/data").last());
    assert_eq!(fleet.names("alpha", "tank/data").len(), 4, "what gamma may still lack is not pruned");
    fleet.addresses.insert("gamma", (agent, slave));
    let policy = fleet.policy(SYNC);
    assert!(fleet.later(1, &policy).is_success());
    assert_eq!(fleet.names("gamma", "pool/copy").last(), fleet.names("alpha", "tank/data").last());
}

#[test]
fn silent_host_delays_only_its_own_orders() {
    let mut fleet = Fleet::new();
    // gamma accepts connections and never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    fleet.addresses.insert("gamma", (address.clone(), address));
    let entry = |dataset: &str, to: &str| {
        format!(
            r#"{{ "hostname": "alpha", "dataset": "{dataset}", "sync": {{ "prefix": "S", "creation": "* * * * *",
                 "sync_on": ["{to}"], "sync_dataset": "pool/copy", "retention": ["1 in last day"] }} }}"#
        )
    };
    let policy = fleet.policy(&[entry("tank/data", "beta"), entry("tank/other", "gamma")].join(","));
    fleet.pools.values().for_each(|fake| fake.set_now(fleet.now));
    let pass = Pass::new(Arc::clone(&policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), fleet.now);
    let report = runtime::block_on(async {
        let pass = runtime::spawn(pass.run());
        while fleet.names("beta", "pool/copy").is_empty() {
            runtime::sleep(std::time::Duration::from_millis(1)).await;
        }
        // This closes the open connections, so the director learns that there will be no response.
        drop(silent);
        pass.await.unwrap()
    });
    // The order is given nevertheless, because the slave may be running although the agent is unreachable.
    let unseen: Vec<String> = report.unseen.keys().map(ToString::to_string).collect();
    assert_eq!(unseen, ["gamma"]);
    assert_eq!(
        outcomes(&report),
        [
            "take_snapshot alpha:tank/data",
            "send_snapshot alpha:tank/data to beta:pool/copy",
            "take_snapshot alpha:tank/other",
            "send_snapshot alpha:tank/other to gamma:pool/copy FAILED",
        ]
    );
}

/// An agent refuses to send a dataset that it is sending already.
#[test]
fn dataset_of_two_entries_is_sent_to_one_destination_after_the_other() {
    let mut fleet = Fleet::new();
    let entries = r#"{ "hostname": "alpha", "dataset": "tank/data", "recursive": true,
             "backup": { "prefix": "O", "creation": "* * * * *", "sync_on": "gamma", "sync_dataset": "pool/copy" } },
           { "hostname": "alpha", "dataset": "tank/data/child",
             "sync": { "prefix": "I", "creation": "* * * * *", "sync_on": "beta", "sync_dataset": "pool/copy" } }"#;
    assert!(fleet.pass(&fleet.policy(entries)).is_success());
    // The slave on gamma accepts connections and never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let agent = fleet.addresses["gamma"].0.clone();
    fleet.addresses.insert("gamma", (agent, silent.local_addr().unwrap().to_string()));
    let policy = fleet.policy(entries);
    fleet.now += TimeDelta::minutes(1);
    for dataset in ["tank/data", "tank/data/child"] {
        fleet.pools["alpha"].write(&ds(dataset), 1000);
    }
    fleet.pools.values().for_each(|fake| fake.set_now(fleet.now));
    let pass = Pass::new(Arc::clone(&policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), fleet.now);
    let report = runtime::block_on(async {
        let pass = runtime::spawn(pass.run());
        runtime::sleep(std::time::Duration::from_millis(300)).await;
        drop(silent);
        pass.await.unwrap()
    });
    let of_child = |o: &&zsync::catalog::Outcome| o.to.is_some() && o.dataset == Some(ds("tank/data/child"));
    let sent: Vec<_> = report.outcomes.iter().filter(of_child).map(|o| (o.success, o.error.clone())).collect();
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert!(sent.iter().all(|(_, error)| !format!("{error:?}").contains("already")), "{sent:?}");
    let arrived = fleet.names("beta", "pool/copy");
    assert_eq!(arrived.iter().filter(|name| name.starts_with("I_")).count(), 2, "{arrived:?}");
}

/// Transfers may run for days, and snapshots have to be taken at their time.
#[test]
fn snapshots_are_taken_while_transfers_occupy_all_slots() {
    const DATASETS: usize = 70;
    let mut fleet = Fleet::new();
    // The slave on gamma accepts connections and never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let agent = fleet.addresses["gamma"].0.clone();
    fleet.addresses.insert("gamma", (agent, silent.local_addr().unwrap().to_string()));
    let names: Vec<String> = (0..DATASETS).map(|n| format!("tank/data/{n:02}")).collect();
    names.iter().for_each(|name| fleet.pools["alpha"].create(&ds(name)));
    let entry = |name: &String| {
        let copy = name.replace("tank/data", "pool/copy");
        format!(
            r#"{{ "hostname": "alpha", "dataset": "{name}", "sync": {{ "prefix": "S", "creation": "* * * * *",
                 "sync_on": "gamma", "sync_dataset": "{copy}" }} }}"#
        )
    };
    let policy = fleet.policy(&names.iter().map(entry).collect::<Vec<_>>().join(","));
    fleet.pools.values().for_each(|fake| fake.set_now(fleet.now));
    let pass = Pass::new(Arc::clone(&policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), fleet.now);
    let pass = runtime::spawn(async move { pass.run().await });
    common::wait_until("each dataset has a snapshot", || {
        names.iter().all(|name| !fleet.names("alpha", name).is_empty())
    });
    drop(silent);
    let report = runtime::block_on(pass).unwrap();
    assert!(report.outcomes.iter().all(|o| o.success == o.to.is_none()), "{:?}", outcomes(&report));
}

/// A transfer hangs. Meanwhile, all else is done: the same datasets are taken, others are taken, sent and pruned.
#[test]
fn passes_do_not_wait_for_a_transfer_of_an_earlier_one() {
    /// Enough for all that does not hang.
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
    let mut fleet = Fleet::new();
    // The slave on gamma accepts connections and never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (agent, slave) = fleet.addresses["gamma"].clone();
    fleet.addresses.insert("gamma", (agent.clone(), silent.local_addr().unwrap().to_string()));
    let entries = r#"{ "hostname": "alpha", "dataset": "tank/data", "recursive": true,
             "sync": { "prefix": "S", "creation": "* * * * *", "sync_on": "gamma", "sync_dataset": "pool/copy" } },
           { "hostname": "alpha", "dataset": "tank/other",
             "sync": { "prefix": "S", "creation": "* * * * *", "sync_on": "beta", "sync_dataset": "pool/copy",
                       "retention": ["1 in last day"], "sync_retention": ["2 in last day"] } }"#;
    let policy = fleet.policy(entries);
    // No slot comes meanwhile.
    let mut rounds = Rounds::by_clock(begin);
    let round = |fleet: &Fleet, policy: &Arc<Policy>, rounds: &mut Rounds<Fake, MemoryCatalog>| {
        fleet.pools.values().for_each(|fake| fake.set_now(fleet.now));
        let pass = Pass::new(Arc::clone(policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), fleet.now);
        runtime::block_on(async {
            let begun = rounds.pass(pass, None, Some(LIMIT)).await.unwrap();
            (begun.report().await.unwrap(), begun.has_ended())
        })
    };
    let (report, has_ended) = round(&fleet, &policy, &mut rounds);
    let first = [
        "take_snapshot alpha:tank/data",
        "take_snapshot alpha:tank/other",
        "send_snapshot alpha:tank/other to beta:pool/copy",
    ];
    assert_eq!((outcomes(&report), has_ended), (first.map(str::to_owned).to_vec(), false));
    for minute in 2..4 {
        fleet.now += TimeDelta::minutes(1);
        ["tank/data", "tank/data/child", "tank/other"]
            .iter()
            .for_each(|name| fleet.pools["alpha"].write(&ds(name), 1000));
        let (report, has_ended) = round(&fleet, &policy, &mut rounds);
        // The child waits for its parent, and does not fail.
        assert!(report.is_success() && has_ended, "{report:?}");
        let done = outcomes(&report);
        assert_eq!(done[..3], first, "{done:?}");
        assert!(done.contains(&"destroy_snapshot alpha:tank/other".to_owned()), "{done:?}");
        assert_eq!(fleet.names("alpha", "tank/data/child").len(), minute);
        assert_eq!(fleet.names("alpha", "tank/other").len(), 1);
        assert_eq!(fleet.names("beta", "pool/copy").len(), 2, "{done:?}");
        assert_eq!(rounds.lanes().progress().running().len(), 1);
        assert!(!rounds.is_quiet());
    }
    // The transfer fails. The next pass reports that, and sends everything.
    drop(silent);
    runtime::block_on(rounds.quiet());
    assert!(rounds.is_quiet());
    fleet.addresses.insert("gamma", (agent, slave));
    let (report, has_ended) = round(&fleet, &fleet.policy(entries), &mut rounds);
    assert!(report.is_success() && has_ended, "the later transfer makes up for it: {report:?}");
    for (copy, source) in [("pool/copy", "tank/data"), ("pool/copy/child", "tank/data/child")] {
        assert_eq!(fleet.names("gamma", copy), fleet.names("alpha", source));
    }
    let failed = |o: &zsync::catalog::Outcome| !o.success && o.dataset == Some(ds("tank/data"));
    assert!(fleet.world.catalog().outcomes(100).unwrap().iter().any(failed));
}

/// A dataset is being sent to one destination when others become due, for which entries of the policy come in another
/// sequence than their deadlines.
#[test]
fn least_slack_is_sent_first_once_the_dataset_is_free() {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(1);
    let mut fleet = Fleet::new();
    // The slave on gamma accepts connections and never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let agent = fleet.addresses["gamma"].0.clone();
    fleet.addresses.insert("gamma", (agent, silent.local_addr().unwrap().to_string()));
    let entry = |prefix: &str, to: &str, lag: &str| {
        format!(
            r#"{{ "hostname": "alpha", "dataset": "tank/data", "sync": {{ "prefix": "{prefix}",
                 "creation": "@hourly", "sync_on": "{to}"{lag} }} }}"#
        )
    };
    let entries = [
        entry("H", "gamma:pool/copy", ""),
        entry("E", "beta:pool/easy", ""),
        entry("L", "beta:pool/late", r#", "lag": "5h""#),
        entry("T", "beta:pool/tight", r#", "lag": "2h""#),
    ];
    let policy = fleet.policy(&entries.join(","));
    fleet.pools.values().for_each(|fake| fake.set_now(fleet.now));
    let mut rounds = Rounds::by_clock(begin);
    for _ in 0..4 {
        let pass = Pass::new(Arc::clone(&policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), fleet.now);
        runtime::block_on(async {
            let begun = rounds.pass(pass, None, Some(LIMIT)).await.unwrap();
            begun.report().await.unwrap()
        });
    }
    assert_eq!(rounds.lanes().progress().running().len(), 1);
    drop(silent);
    runtime::block_on(rounds.quiet());
    // The newest outcome comes first.
    let outcomes = fleet.world.catalog().outcomes(100).unwrap().into_iter().rev();
    let sent: Vec<String> = outcomes.filter_map(|outcome| Some(outcome.to?.dataset.to_string())).collect();
    assert_eq!(sent, ["pool/copy", "pool/tight", "pool/late", "pool/easy"]);
}

/// A destination that fails for ever is tried after growing pauses, and holds up nothing else.
#[test]
fn order_that_fails_again_and_again_rests_until_something_has_changed() {
    let mut fleet = Fleet::new();
    let policy = fleet.policy(
        r#"{ "hostname": "alpha", "dataset": "tank/other", "sync": { "prefix": "S", "creation": "* * * * *",
             "sync_on": ["beta", "gamma"], "sync_dataset": "pool/copy", "retention": ["2 in last day"] } }"#,
    );
    let mut rounds = Rounds::by_clock(begin);
    // Whether the transfers to beta and to gamma were attempted, and whether they succeeded.
    let pass = |fleet: &mut Fleet, rounds: &mut Rounds<Fake, MemoryCatalog>| {
        fleet.now += TimeDelta::seconds(61);
        fleet.pools["alpha"].write(&ds("tank/other"), 1000);
        fleet.pools.values().for_each(|fake| fake.set_now(fleet.now));
        let pass = Pass::new(Arc::clone(&policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), fleet.now);
        let report = runtime::block_on(async {
            let begun = rounds.pass(pass, None, TimeDelta::minutes(1).to_std().ok()).await.unwrap();
            begun.report().await.unwrap()
        });
        let of = |host: &str| {
            let found = report.outcomes.iter().find(|o| o.to.as_ref().is_some_and(|to| to.host.as_str() == host));
            found.map(|o| o.success)
        };
        (of("beta"), of("gamma"), report)
    };
    assert!(matches!(pass(&mut fleet, &mut rounds), (Some(true), Some(true), _)));
    let beta = fleet.pools["beta"].clone();
    let diverge = |name: &str| {
        beta.write(&ds("pool/copy"), 1000);
        let name = name.parse().unwrap();
        runtime::block_on(beta.snapshot(&[ds("pool/copy")], &name)).unwrap();
    };
    diverge("by-hand");
    let mut tried = Vec::new();
    for minute in 0..50 {
        let (to_beta, to_gamma, report) = pass(&mut fleet, &mut rounds);
        assert_eq!(to_gamma, Some(true), "minute {minute}: {:?}", outcomes(&report));
        assert!(!report.is_success(), "a failure that is not repeated has not ended");
        assert_ne!(to_beta, Some(true));
        let is_tried = to_beta.is_some();
        let resting = rounds.lanes().progress().resting();
        assert!(is_tried || resting.len() == 1, "the status says when it is tried again: {resting:?}");
        assert!(
            resting
                .iter()
                .all(|order| order.until > fleet.now && order.failures as usize == tried.len() + usize::from(is_tried))
        );
        tried.extend(is_tried.then_some(minute));
    }
    assert_eq!(tried, [0, 1, 3, 7, 15, 30, 45], "pauses of 1, 2, 4, 8 and 15 minutes");
    // SIGHUP and a changed policy.
    rounds.lanes().wake();
    assert!(pass(&mut fleet, &mut rounds).0.is_some());
    assert!(pass(&mut fleet, &mut rounds).0.is_some(), "the first failure has no pause");
    assert!(pass(&mut fleet, &mut rounds).0.is_none());
    // Somebody does something about it, in vain and then in earnest.
    diverge("by-hand-again");
    assert_eq!(pass(&mut fleet, &mut rounds).0, Some(false));
    let by_hand = ["by-hand", "by-hand-again"].map(|name| name.parse().unwrap());
    beta.destroy_by_hand(&ds("pool/copy"), &by_hand);
    let (to_beta, _, report) = pass(&mut fleet, &mut rounds);
    assert!(to_beta == Some(true) && report.is_success(), "{:?}", outcomes(&report));
    assert!(rounds.lanes().progress().resting().is_empty());
}

/// How many seconds after the beginning of its fleet it is in `single_pass_ends_although_something_is_always_due`.
static SECONDS: AtomicI64 = AtomicI64::new(0);

/// What becomes due meanwhile is carried out as long as something is left that was due at the beginning, and what then
/// still runs is left to the next pass.
#[test]
fn single_pass_ends_although_something_is_always_due() {
    /// One second before the next minute, and two seconds later.
    const MINUTE: (i64, i64) = (54, 56);
    const INTERVAL: std::time::Duration = std::time::Duration::from_millis(300);
    fn clock() -> DateTime<Utc> {
        begin() + TimeDelta::seconds(SECONDS.load(Ordering::SeqCst))
    }
    let mut fleet = Fleet::new();
    let data = r#"{ "hostname": "alpha", "dataset": "tank/data",
        "sync": { "prefix": "S", "creation": "* * * * *", "sync_on": "gamma", "sync_dataset": "pool/copy" } }"#;
    let other = r#"{ "hostname": "alpha", "dataset": "tank/other",
        "sync": { "prefix": "S", "creation": "* * * * *", "sync_on": "beta", "sync_dataset": "pool/copy" } }"#;
    assert!(fleet.pass(&fleet.policy(data)).is_success());
    // From now on, both slaves accept connections and never respond.
    let silent = ["beta", "gamma"].map(|host| {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let agent = fleet.addresses[host].0.clone();
        fleet.addresses.insert(host, (agent, silent.local_addr().unwrap().to_string()));
        silent
    });
    // Nothing is due for the first dataset, and a first copy of the second one.
    let policy = fleet.policy(&format!("{data}, {other}"));
    let pools: Vec<Fake> = fleet.pools.values().cloned().collect();
    let time = std::thread::spawn(move || {
        let [to_beta, to_gamma] = silent;
        let mut to_beta = Some(to_beta);
        for minute in 0..20 {
            for second in [MINUTE.0, MINUTE.1] {
                SECONDS.store(minute * 60 + second, Ordering::SeqCst);
                pools.iter().for_each(|fake| fake.set_now(clock()));
                pools[0].write(&ds("tank/data"), 1000);
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            // The transfer that was due at the beginning fails.
            to_beta = to_beta.filter(|_| minute < 10);
        }
        to_gamma
    });
    let mut rounds = Rounds::by_clock(clock);
    let next = async |_: &zsync::director::Lanes| {
        Ok(Pass::new(Arc::clone(&policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), clock()))
    };
    let ended = runtime::block_on(runtime::timeout(common::PATIENCE, rounds.single(INTERVAL, None, next)));
    let report = ended.expect("it ends").unwrap();
    let to = |host: &str| -> Vec<bool> {
        let is_to = |o: &&zsync::catalog::Outcome| o.to.as_ref().is_some_and(|to| to.host.as_str() == host);
        report.outcomes.iter().filter(is_to).map(|o| o.success).collect()
    };
    assert_eq!(to("beta"), [false], "{:?}", outcomes(&report));
    assert!(to("gamma").is_empty(), "it has not failed: {:?}", outcomes(&report));
    let taken = fleet.names("alpha", "tank/data").len();
    assert!(taken > 2, "snapshots are taken meanwhile: {taken}");
    drop(time.join().unwrap());
}

/// A transfer of a single pass runs while the catalog cannot be used for a time.
#[test]
fn single_pass_survives_a_catalog_that_fails_for_a_while() {
    const INTERVAL: std::time::Duration = std::time::Duration::from_millis(300);
    let mut fleet = Fleet::new();
    // The slave on gamma accepts connections and never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let agent = fleet.addresses["gamma"].0.clone();
    fleet.addresses.insert("gamma", (agent, silent.local_addr().unwrap().to_string()));
    let policy = fleet.policy(
        r#"{ "hostname": "alpha", "dataset": "tank/data", "sync": { "prefix": "S", "creation": "@hourly",
             "sync_on": "gamma", "sync_dataset": "pool/copy" } }"#,
    );
    fleet.pools.values().for_each(|fake| fake.set_now(fleet.now));
    let (mut rounds, mut passes, mut silent) = (Rounds::by_clock(begin), 0, Some(silent));
    let next = async |_: &zsync::director::Lanes| {
        passes += 1;
        if (2..4).contains(&passes) {
            return Err(CatalogError::Locked { path: "catalog".into(), pid: None, holder: None });
        }
        silent = silent.take().filter(|_| passes < 4);
        Ok(Pass::new(Arc::clone(&policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), fleet.now))
    };
    let ended = runtime::block_on(runtime::timeout(common::PATIENCE, rounds.single(INTERVAL, None, next)));
    let report = ended.expect("it ends").unwrap();
    let expected = ["take_snapshot alpha:tank/data", "send_snapshot alpha:tank/data to gamma:pool/copy FAILED"];
    assert_eq!(outcomes(&report), expected);
    // What fails at the beginning has done nothing.
    let next = async |_: &zsync::director::Lanes| -> Result<Pass<Fake, MemoryCatalog>, CatalogError> {
        Err(CatalogError::Locked { path: "catalog".into(), pid: None, holder: None })
    };
    assert!(runtime::block_on(Rounds::by_clock(begin).single(INTERVAL, None, next)).is_err());
}

#[test]
fn interrupted_transfer_of_an_earlier_pass_is_reported() {
    let mut fleet = Fleet::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let agent = fleet.addresses["gamma"].0.clone();
    fleet.addresses.insert("gamma", (agent, silent.local_addr().unwrap().to_string()));
    let policy = fleet.policy(
        r#"{ "hostname": "alpha", "dataset": "tank/other",
             "sync": { "prefix": "S", "creation": "* * * * *", "sync_on": "gamma", "sync_dataset": "pool/copy" } }"#,
    );
    let mut rounds = Rounds::by_clock(begin);
    runtime::block_on(async {
        for _ in 0..2 {
            let pass = Pass::new(Arc::clone(&policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), fleet.now);
            let limit = Some(std::time::Duration::from_millis(100));
            let report = rounds.pass(pass, None, limit).await.unwrap().report().await.unwrap();
            assert!(report.is_success(), "a running transfer has not failed: {report:?}");
        }
        let report = rounds.interrupt(TimeDelta::minutes(1).to_std().unwrap(), "enough".into()).await.unwrap().unwrap();
        assert_eq!(outcomes(&report), ["send_snapshot alpha:tank/other to gamma:pool/copy FAILED"]);
        assert_eq!(report.outcomes[0].error.as_deref(), Some("enough; the next pass resumes it"));
    });
    let recorded = fleet.world.catalog().outcomes(10).unwrap();
    assert!(recorded.iter().any(|o| !o.success && o.to.is_some()), "{recorded:?}");
}

/// Hosts that are down would otherwise hold all turns for a minute.
#[test]
fn host_that_answers_does_not_wait_for_many_that_do_not() {
    const MUTE: usize = 70;
    let mut fleet = Fleet::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = silent.local_addr().unwrap().to_string();
    let names: Vec<&'static str> = (0..MUTE).map(|n| &*format!("mute{n:02}").leak()).collect();
    names.iter().for_each(|name| drop(fleet.addresses.insert(name, (mute.clone(), mute.clone()))));
    let zulu = Fake::new(9);
    ["tank", "tank/data"].iter().for_each(|name| zulu.create(&ds(name)));
    let permitted = local(r#"{ "local_datasets": [ { "name": "tank/data" } ] }"#);
    let agent = listen(Agent::new("zulu".parse().unwrap(), Arc::new(zulu.clone()), permitted), None);
    fleet.addresses.insert("zulu", (agent.clone(), agent));
    fleet.pools.insert("zulu", zulu);
    let entry = |host: &str| {
        format!(
            r#"{{ "hostname": "{host}", "dataset": "tank/data", "sync": {{ "prefix": "S", "creation": "* * * * *",
                 "sync_on": ["mute00"], "sync_dataset": "pool/{host}" }} }}"#
        )
    };
    let all = names.iter().copied().chain(["alpha", "zulu"]);
    let policy = fleet.policy(&all.map(entry).collect::<Vec<_>>().join(","));
    fleet.pools.values().for_each(|fake| fake.set_now(fleet.now));
    let pass = Pass::new(Arc::clone(&policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), fleet.now);
    let pass = runtime::spawn(pass.run());
    // Both wait for a while for mute00, to which they are sent.
    common::wait_until("the hosts that answer have their snapshots", || {
        ["alpha", "zulu"].iter().all(|host| !fleet.names(host, "tank/data").is_empty())
    });
    drop(silent);
    let report = runtime::block_on(pass).unwrap();
    assert_eq!(report.unseen.len(), MUTE, "{:?}", report.unseen);
}

/// A snapshot is named by the slot that is due when it is taken, not when the pass began.
#[test]
fn snapshot_of_long_pass_bears_the_slot_of_its_own_time() {
    let mut fleet = Fleet::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let slave = fleet.addresses["gamma"].1.clone();
    fleet.addresses.insert("gamma", (silent.local_addr().unwrap().to_string(), slave));
    // Half a second before a minute.
    fleet.now = DateTime::from_timestamp(1_795_429_799, 500_000_000).unwrap();
    let policy = fleet.policy(
        r#"{ "hostname": "alpha", "dataset": "tank/other",
             "sync": { "prefix": "S", "creation": "* * * * *", "sync_on": "gamma", "sync_dataset": "pool/copy" } }"#,
    );
    fleet.pools.values().for_each(|fake| fake.set_now(fleet.now));
    let pass = Pass::new(Arc::clone(&policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), fleet.now);
    runtime::block_on(async {
        let pass = runtime::spawn(pass.run());
        runtime::sleep(std::time::Duration::from_secs(1)).await;
        drop(silent);
        pass.await.unwrap()
    });
    let slot = DateTime::from_timestamp(1_795_429_800, 0).unwrap();
    assert_eq!(fleet.names("alpha", "tank/other"), [slot.format("S_%F_%T").to_string()]);
}

/// A clock that leaps ahead makes all snapshots look old.
#[test]
fn leap_of_the_clock_destroys_nothing_until_a_saved_plan_does() {
    let mut fleet = Fleet::new();
    let policy = fleet.policy(
        r#"{ "hostname": "alpha", "dataset": "tank/other",
             "sync": { "prefix": "S", "creation": "* * * * *", "retention": ["all in last day"] } }"#,
    );
    for _ in 0..20 {
        assert!(fleet.later(1, &policy).is_success());
    }
    for count in 21..23 {
        let report = fleet.later(60 * 24 * 60, &policy);
        let failed: Vec<String> = report.notices.iter().map(ToString::to_string).collect();
        assert!(!report.is_success() && failed[0].contains("max_destroys"), "{failed:?}");
        assert_eq!(fleet.names("alpha", "tank/other").len(), count);
    }
    let inventory = fleet.world.inventory().clone();
    let orders = zsync::actions::decide(&policy, &inventory, fleet.now).approved_orders(&policy);
    let pass = Pass::new(Arc::clone(&policy), Arc::clone(&fleet.dispatcher), fleet.world.clone(), fleet.now);
    let report = runtime::block_on(pass.run_saved(orders)).unwrap();
    assert!(report.is_success(), "{report:?}");
    assert_eq!(fleet.names("alpha", "tank/other").len(), 1);
}

/// Each of two policies alone would destroy less than half of the snapshots.
#[test]
fn policies_of_one_dataset_together_destroy_no_more_than_permitted() {
    let mut fleet = Fleet::new();
    let policy = fleet.policy(
        r#"{ "hostname": "alpha", "dataset": "tank/other",
             "sync": { "prefix": "S", "creation": "* * * * *", "retention": ["all in last day"] } },
           { "hostname": "alpha", "dataset": "tank/other",
             "backup": { "prefix": "B", "creation": "* * * * *", "retention": ["all in last day"] } }"#,
    );
    for _ in 0..14 {
        assert!(fleet.later(1, &policy).is_success());
    }
    let report = fleet.later(60 * 24 * 60, &policy);
    assert!(report.notices.iter().any(|notice| notice.to_string().contains("max_destroys")), "{report:?}");
    let names = fleet.names("alpha", "tank/other");
    let of = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
    assert_eq!((of("S_"), of("B_")), (1, 15));
}

#[test]
fn failing_dataset_stops_no_other() {
    let mut fleet = Fleet::new();
    let policy = fleet.policy(SYNC);
    assert!(fleet.pass(&policy).is_success());
    // The first of the two transfers fails. Both copies exist, so neither transfer waits for the other.
    fleet.pools["beta"].fail_next("receive -s -u pool/copy", ErrorKind::NoSpace, "cannot receive: out of space");
    let report = fleet.later(1, &policy);
    let failed: Vec<_> = report.outcomes.iter().filter(|o| !o.success).collect();
    assert_eq!(failed.len(), 1, "{:?}", outcomes(&report));
    assert!(failed[0].error.as_ref().unwrap().contains("out of space"));
    let lags = |fleet: &Fleet, copy: &str, source: &str| {
        usize::from(fleet.names("beta", copy).last() != fleet.names("alpha", source).last())
    };
    let all = [("pool/copy", "tank/data"), ("pool/copy/child", "tank/data/child")];
    let lagging = |fleet: &Fleet| all.iter().map(|(copy, source)| lags(fleet, copy, source)).sum::<usize>();
    assert_eq!(lagging(&fleet), 1);
    assert!(fleet.later(1, &policy).is_success());
    assert_eq!(lagging(&fleet), 0);
}

/// If takes and transfers share a schedule, the newest snapshot is always too new to be sent.
#[test]
fn scheduled_transfer_is_not_starved_by_takes() {
    let mut fleet = Fleet::new();
    let policy = fleet.policy(
        r#"{ "hostname": "alpha", "dataset": "tank/other",
             "backup": { "prefix": "B", "creation": "*/2 * * * *", "sync_policy": "*/2 * * * *",
                         "sync_on": "beta", "sync_dataset": "pool/copy" } }"#,
    );
    for _ in 0..3 {
        assert!(fleet.later(2, &policy).is_success());
    }
    assert_eq!(fleet.names("alpha", "tank/other").len(), 3);
    assert_eq!(fleet.names("beta", "pool/copy"), fleet.names("alpha", "tank/other")[..2]);
}

/// A snapshot of one policy does not replace a snapshot of another policy of the same dataset.
#[test]
fn snapshot_of_one_policy_does_not_make_dataset_idle_for_another() {
    let mut fleet = Fleet::new();
    let policy = fleet.policy(
        r#"{ "hostname": "alpha", "dataset": "tank/other",
             "backup": { "prefix": "B", "creation": "*/2 * * * *" },
             "sync":   { "prefix": "S", "creation": "* * * * *" } }"#,
    );
    for _ in 0..4 {
        assert!(fleet.later(1, &policy).is_success());
    }
    let names = fleet.names("alpha", "tank/other");
    assert_eq!(names.iter().filter(|n| n.starts_with("S_")).count(), 4, "{names:?}");
    assert_eq!(names.iter().filter(|n| n.starts_with("B_")).count(), 3, "{names:?}");
}

#[test]
fn idle_dataset_is_asked_once_per_slot() {
    let mut fleet = Fleet::new();
    let policy = fleet.policy(
        r#"{ "hostname": "alpha", "dataset": "tank/other", "sync": { "prefix": "S", "creation": "* * * * *" } }"#,
    );
    assert_eq!(fleet.pass(&policy).outcomes.len(), 1);
    fleet.now += TimeDelta::minutes(1);
    assert_eq!(fleet.pass(&policy).outcomes.len(), 1, "due, but nothing was written");
    assert_eq!(fleet.pass(&policy).outcomes.len(), 0, "the slot is remembered");
    assert_eq!(fleet.names("alpha", "tank/other").len(), 1);
}

#[test]
fn local_copy_needs_no_other_process() {
    let fleet = Fleet::new();
    let policy = fleet.policy(
        r#"{ "hostname": "alpha", "dataset": "tank/other",
             "backup": { "prefix": "B", "creation": "@hourly", "sync_on": "alpha", "sync_dataset": "spare/other" } }"#,
    );
    let report = fleet.pass(&policy);
    assert!(report.is_success(), "{report:?}");
    assert_eq!(fleet.names("alpha", "spare/other"), fleet.names("alpha", "tank/other"));
}

#[test]
fn pass_records_every_outcome_in_catalog() {
    let fleet = Fleet::new();
    let policy = fleet.policy(SYNC);
    let report = fleet.pass(&policy);
    let recorded = fleet.world.catalog().outcomes(100).unwrap();
    assert_eq!(recorded.len(), report.outcomes.len());
    assert!(recorded.iter().any(|o| o.action == Action::SendSnapshot && o.bytes > 0));
    let known = fleet.world.catalog().inventory().unwrap();
    assert_eq!(known.hosts.len(), 3);
}

#[test]
fn dataset_far_behind_takes_one_stream() {
    const DATASETS: usize = 20;
    const BEHIND: usize = 300;
    let mut fleet = Fleet::new();
    let names: Vec<DatasetName> = (0..DATASETS).map(|n| ds(&format!("tank/data/{n}"))).collect();
    names.iter().for_each(|name| fleet.pools["alpha"].create(name));
    let policy = fleet.policy(
        r#"{ "hostname": "alpha", "dataset": "tank/data", "recursive": true,
             "sync": { "prefix": "S", "creation": "@hourly", "sync_on": ["beta"], "sync_dataset": "pool/copy" } }"#,
    );
    assert!(fleet.pass(&policy).is_success());
    for _ in 0..BEHIND {
        fleet.now += TimeDelta::hours(1);
        let alpha = &fleet.pools["alpha"];
        alpha.set_now(fleet.now);
        names.iter().for_each(|name| alpha.write(name, 1000));
        let snapshot = fleet.now.format("S_%F_%T").to_string().parse().unwrap();
        runtime::block_on(alpha.snapshot(&names, &snapshot)).unwrap();
    }
    let before = fleet.pools["beta"].calls().len();
    let report = fleet.pass(&policy);
    assert!(report.is_success(), "{report:?}");
    let received = |call: &&String| call.starts_with("receive") && call.contains("pool/copy/");
    assert_eq!(fleet.pools["beta"].calls()[before..].iter().filter(received).count(), DATASETS);
    for name in &names {
        let copy = ds(&format!("pool/copy/{}", name.as_str().rsplit('/').next().unwrap()));
        let guids = |host, of| {
            let found = fleet.pools[host].dataset(of).unwrap();
            found.snapshots.iter().map(|s| s.guid).collect::<Vec<_>>()
        };
        assert_eq!(guids("beta", &copy), guids("alpha", name));
        assert_eq!(guids("beta", &copy).len(), BEHIND + 1);
    }
}
