//! Measures how long the passes of a director over a thousand hosts take, and its memory. Agents and slaves run in this
//! process, on pools in memory; the director reaches them over TCP on loopback. Run it with `cargo bench --bench
//! fleet`.
//!
//! Half of the hosts send to the others. The first pass takes a snapshot of each dataset and sends everything, which
//! leaves snapshots to prune; the second finds nothing to do. In the last ones, some hosts refuse connections, respond
//! late or never respond. Each of these passes takes longer by one delay, not by one per host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

#[path = "../tests/common/mod.rs"]
mod common;
mod watched;

use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io, thread};

use chrono::{TimeDelta, Utc};
use common::loopback::listen;
use serde_json::json;
use zsync::agent::Agent;
use zsync::config::parse_local;
use zsync::model::DatasetName;
use zsync::slave::Slave;
use zsync::sys::runtime;
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

/// The delay of late hosts.
const LATE: Duration = Duration::from_secs(3);

/// A relay to an agent. It begins to forward after a delay.
fn late(to: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, to) = (listener.local_addr().unwrap().to_string(), to.to_owned());
    thread::spawn(move || {
        for here in listener.incoming() {
            let to = to.clone();
            thread::spawn(move || {
                thread::sleep(LATE);
                let (here, there) = (here.unwrap(), TcpStream::connect(to).unwrap());
                let pass = |mut from: TcpStream, mut to: TcpStream| {
                    // Either side may close first.
                    let _: io::Result<u64> = io::copy(&mut from, &mut to);
                    let _: io::Result<()> = to.shutdown(Shutdown::Write);
                };
                let (back, forth) = (there.try_clone().unwrap(), here.try_clone().unwrap());
                thread::spawn(move || pass(back, forth));
                pass(here, there);
            });
        }
    });
    address
}

/// Runs one pass, which must end with this status; gives its duration, and its peak memory in MB.
fn pass(folder: &Path, policy: &Path, status: i32) -> (Duration, u64) {
    let mut director = Command::new(env!("CARGO_BIN_EXE_zsync"));
    let director = director
        .args(["director", "--once", "--format", "ndjson", "--config"])
        .arg(policy)
        .env("ZSYNC_HOSTNAME", "ruler")
        .env("ZSYNC_STATE", folder.join("state"))
        .stdout(fs::File::create(folder.join("said")).unwrap())
        .stderr(fs::File::create(folder.join("errors")).unwrap());
    let (ended, took, peak) = watched::run(director);
    let errors = fs::read_to_string(folder.join("errors")).unwrap();
    assert_eq!(ended.code(), Some(status), "{}", errors.lines().take(20).collect::<Vec<_>>().join("\n"));
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
        datasets.push(json!({ "hostname": from, "dataset": "tank", "recursive": true, "policies": { "daily": {
            "prefix": "S", "creation": "@daily", "sync_on": to, "sync_dataset": "pool/copy",
            "retention": ["10 in last month"], "sync_retention": ["10 in last month"] } } }));
    }
    let write = |name: &str, hosts: &serde_json::Map<_, _>| {
        let policy = json!({ "catalog": { "embedded": { "path": folder.path().join("catalog") } }, "hosts": hosts,
            "datasets": datasets, "retry_for": "1s" });
        fs::write(folder.path().join(name), policy.to_string()).unwrap();
        folder.path().join(name)
    };
    let policy = write("server.json", &hosts);
    let name = |n: usize| format!("source{n:03}");
    let with = |file: &str, count: usize, address: &dyn Fn(usize) -> String| {
        let mut hosts = hosts.clone();
        hosts.extend((0..count).map(|n| (name(n), json!({ "address": address(n) }))));
        write(file, &hosts)
    };
    let refusing = with("refusing.json", 50, &|_| "127.0.0.1:1".to_owned());
    let later = with("late.json", 50, &|n| late(hosts[&name(n)]["address"].as_str().unwrap()));
    // The kernel accepts connections, and nobody reads them.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = with("silent.json", 50, &|_| deaf.local_addr().unwrap().to_string());
    println!("{} hosts, {} datasets, {} snapshots", PAIRS * 2, PAIRS * DATASETS, PAIRS * DATASETS * SNAPSHOTS);
    println!("{:<44} {:>8} {:>8} {:>8}  target: < 5 s, < 200 MB", "pass", "seconds", "peak MB", "lines");
    for (name, policy, status) in [
        ("everything is taken, sent and pruned", &policy, 0),
        ("nothing to do", &policy, 0),
        ("nothing to do", &policy, 0),
        ("nothing to do", &policy, 0),
        ("50 hosts refuse, tried for 1 s", &refusing, 1),
        ("50 hosts answer 3 s late", &later, 0),
        ("50 hosts say nothing, given up after 60 s", &silent, 1),
    ] {
        let (took, peak) = pass(folder.path(), policy, status);
        let said = fs::read_to_string(folder.path().join("said")).unwrap();
        println!("{name:<44} {:>8.2} {peak:>8} {:>8}", took.as_secs_f64(), said.lines().count());
    }
}
