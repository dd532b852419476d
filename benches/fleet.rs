//! How long a director takes over a fleet of a thousand hosts, and how much memory: real TCP on loopback, agents and
//! slaves on the in-memory stand-in for ZFS, all in this process. Run it with `cargo bench --bench fleet`.
//!
//! Half of the hosts send to the others. The first pass takes a snapshot of each dataset and sends everything, the second
//! prunes, the third finds nothing to do; the last one meets a hundred hosts that are dead.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

#[path = "../tests/loopback/mod.rs"]
mod loopback;
mod watched;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use loopback::listen;
use serde_json::json;
use zsync::commands::agent::Agent;
use zsync::commands::slave::Slave;
use zsync::config::parse_local;
use zsync::model::DatasetName;
use zsync::runtime;
use zsync::zfs::Zfs;
use zsync::zfs::fake::Fake;

const PAIRS: usize = 500;
const DATASETS: usize = 10;
const SNAPSHOTS: usize = 19;

fn ds(text: &str) -> DatasetName {
    text.parse().unwrap()
}

fn source(seed: u64) -> Fake {
    let fake = Fake::new(seed);
    let names: Vec<DatasetName> =
        (0..DATASETS).map(|n| ds(&if n == 0 { "tank".to_owned() } else { format!("tank/{n}") })).collect();
    for name in &names {
        fake.create(name);
    }
    for day in (1..=SNAPSHOTS).rev() {
        let at = Utc::now() - TimeDelta::days(i64::try_from(day).unwrap());
        fake.set_now(at);
        for name in &names {
            fake.write(name, 1000);
        }
        let name = at.format("S_%Y-%m-%d_%H:%M:%S").to_string();
        runtime::block_on(fake.snapshot(&names, &name.parse().unwrap())).unwrap();
    }
    fake.set_now(Utc::now());
    fake
}

/// One pass; how long it took, and the most memory that it was seen to have, in MB.
fn pass(folder: &Path, policy: &Path) -> (Duration, u64) {
    let mut director = Command::new(env!("CARGO_BIN_EXE_zsync"));
    let director = director
        .args(["director", "--once", "--config"])
        .arg(policy)
        .env("ZSYNC_HOSTNAME", "ruler")
        .env("ZSYNC_STATE", folder.join("state"))
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.join("errors")).unwrap());
    let (_, took, peak) = watched::run(director);
    (took, peak)
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let (mut hosts, mut datasets) = (serde_json::Map::new(), Vec::new());
    for pair in 0..PAIRS {
        let (from, to) = (format!("source{pair:03}"), format!("vault{pair:03}"));
        let local = Arc::new(parse_local("local.json", r#"{ "local_datasets": [ { "name": "tank" } ] }"#).unwrap());
        let agent = listen(Agent::new(from.parse().unwrap(), Arc::new(source(pair as u64)), local), None);
        let vault = Arc::new(Fake::new(10_000 + pair as u64));
        vault.create(&ds("pool"));
        let local = r#"{ "local_datasets": [ { "name": "pool", "slave": true, "append_only": false } ] }"#;
        let local = Arc::new(parse_local("local.json", local).unwrap());
        let other = listen(Agent::new(to.parse().unwrap(), vault.clone(), local.clone()), None);
        let slave = listen(Slave::new(vault, local), None);
        hosts.insert(from.clone(), json!({ "address": agent }));
        hosts.insert(to.clone(), json!({ "address": other, "receive_address": slave }));
        datasets.push(json!({ "hostname": from, "dataset": "tank", "recursive": true, "daily": {
            "prefix": "S", "creation": "@daily", "sync_on": to, "sync_dataset": "pool/copy",
            "retention": ["10 in last month"], "sync_retention": ["10 in last month"] } }));
    }
    let write = |name: &str, hosts: &serde_json::Map<_, _>| {
        let policy = json!({ "catalog": { "embedded": { "path": folder.path().join("catalog") } }, "hosts": hosts,
            "datasets": datasets, "retry_for": "1s" });
        fs::write(folder.path().join(name), policy.to_string()).unwrap();
        folder.path().join(name)
    };
    let policy = write("server.json", &hosts);
    for n in 0..100 {
        // Nobody listens there.
        hosts.insert(format!("source{n:03}"), json!({ "address": "127.0.0.1:1" }));
    }
    let with_dead = write("dead.json", &hosts);
    println!("{} hosts, {} datasets, {} snapshots", PAIRS * 2, PAIRS * DATASETS, PAIRS * DATASETS * SNAPSHOTS);
    println!("{:<44} {:>8} {:>8}", "pass", "seconds", "peak MB");
    for (name, policy) in [
        ("everything is taken and sent", &policy),
        ("sources and destinations are pruned", &policy),
        ("nothing to do", &policy),
        ("nothing to do, 100 hosts are dead", &with_dead),
    ] {
        let (took, peak) = pass(folder.path(), policy);
        println!("{name:<44} {:>8.2} {peak:>8}", took.as_secs_f64());
        let errors = fs::read_to_string(folder.path().join("errors")).unwrap();
        if let Some(first) = errors.lines().next() {
            println!("  {} lines on stderr, such as: {first}", errors.lines().count());
        }
    }
}
