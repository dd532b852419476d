//! Measures how long one pass takes to decide, and its memory, with 10 thousand to a million snapshots.
//!
//! Half of the hosts are sources with ten datasets of 100 snapshots each, the others receive from them:
//! at a million snapshots, 1000 hosts with 10,000 datasets. Run it with `cargo bench --bench decide`.

#![allow(clippy::unwrap_used, reason = "it may panic")]

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use zsync::actions::{Engine, Plan};
use zsync::model::{DatasetInventory, Guid, HostInventory, Inventory, Marks, Place, Prefix, Snapshot};
use zsync::policy::{CatalogConfig, DatasetPolicy, Policy, Retention, SnapshotPolicy, SyncPolicy};

const DATASETS: usize = 10;
const SNAPSHOTS: usize = 100;

fn parse<T: std::str::FromStr>(text: &str) -> T {
    match text.parse() {
        Ok(value) => value,
        Err(_) => unreachable!("{text} is valid"),
    }
}

fn retention(rules: &[&str]) -> Option<Retention> {
    Retention::parse(rules).ok()
}

fn policy(pairs: usize) -> Policy {
    let entry = |i: usize| DatasetPolicy {
        hostname: parse(&format!("source{i:04}")),
        dataset: parse("tank/data"),
        recursive: true,
        policies: vec![SnapshotPolicy {
            name: "backup".to_owned(),
            prefix: parse("BACKUP"),
            creation: Some(parse("0 * * * *")),
            catch_up: zsync::policy::DEFAULT_CATCH_UP,
            sync_on: vec![Place { host: parse(&format!("vault{i:04}")), dataset: parse("tank/copy") }],
            sync_policy: SyncPolicy::Asap,
            retention: retention(&[
                "24 in last day",
                "1/day in last week",
                "1/week in last month",
                "1/month in last year",
            ]),
            sync_retention: retention(&["1/day in last month", "1/month in last 5 years"]),
            prune_unsent: false,
            lag: None,
            check: zsync::policy::Thresholds::default(),
        }],
        rollback_if_needed: false,
        skip_if_renamed: true,
        skip_if_not_written: true,
        skip_if_cloned: true,
        exclude: Default::default(),
        rollback_may_destroy: false,
        on_divergence: Default::default(),
    };
    Policy {
        datacenter: None,
        timezone: "Europe/Berlin".parse().unwrap(),
        catalog: CatalogConfig::Embedded { path: "catalog".into() },
        hosts: Default::default(),
        tls: None,
        consul_resync: None,
        retry_for: std::time::Duration::ZERO,
        max_destroys: 100,
        datasets: (0..pairs).map(entry).collect(),
    }
}

/// Hourly snapshots of the last days, then daily ones; the destination lacks the newest.
fn snapshots(prefix: &Prefix, seed: u64, now: DateTime<Utc>, received: bool) -> Vec<Snapshot> {
    let age = |i: usize| if i < 48 { TimeDelta::hours(i as i64) } else { TimeDelta::days(i as i64 - 45) };
    let ages = (usize::from(received)..SNAPSHOTS + usize::from(received)).rev();
    ages.zip(1..)
        .map(|(i, createtxg)| {
            let creation = now - age(i) - TimeDelta::minutes(30);
            Snapshot {
                name: prefix.stamp(creation),
                guid: Guid((seed << 16 | i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                createtxg,
                creation,
                userrefs: 0,
                has_clones: false,
                used: 1 << 20,
                marks: Marks { sync: received, ..Marks::default() },
            }
        })
        .collect()
}

fn inventory(pairs: usize, now: DateTime<Utc>) -> Inventory {
    let prefix: Prefix = parse("BACKUP");
    let mut inventory = Inventory::default();
    for (i, received) in (0..pairs).flat_map(|i| [(i, false), (i, true)]) {
        let (host, root) =
            if received { (format!("vault{i:04}"), "tank/copy") } else { (format!("source{i:04}"), "tank/data") };
        let datasets = (0..DATASETS).map(|d| {
            let name = if d == 0 { root.to_owned() } else { format!("{root}/set{d}") };
            let snapshots = snapshots(&prefix, (i * DATASETS + d) as u64, now, received);
            (parse(&name), DatasetInventory { snapshots, ..DatasetInventory::default() })
        });
        inventory.hosts.insert(
            parse(&host),
            HostInventory { observed: Some(now), datasets: datasets.collect(), ..HostInventory::default() },
        );
    }
    inventory
}

/// The peak memory of this process in MB; 0 if the system does not report it.
fn peak_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM"));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn timed(work: impl Fn() -> Plan) -> (Duration, Plan) {
    let mut best: Option<(Duration, Plan)> = None;
    for _ in 0..3 {
        let start = Instant::now();
        let plan = work();
        let took = start.elapsed();
        if best.as_ref().is_none_or(|(b, _)| took < *b) {
            best = Some((took, plan));
        }
    }
    best.unwrap_or_else(|| (Duration::ZERO, work()))
}

fn main() {
    let now = Utc.with_ymd_and_hms(2026, 11, 23, 10, 0, 5).single().unwrap_or_default();
    println!(
        "{:>10} {:>10} {:>12} {:>8} {:>8} {:>8} {:>9}",
        "snapshots", "decide ms", "ns/snapshot", "takes", "sends", "destroys", "peak MB"
    );
    for pairs in [5, 16, 50, 158, 500] {
        let (policy, inventory) = (policy(pairs), inventory(pairs, now));
        let count: usize = inventory.hosts.values().flat_map(|h| h.datasets.values()).map(|d| d.snapshots.len()).sum();
        let (took, plan) = timed(|| Engine::new(&policy).decide(&inventory, now));
        let takes = plan.takes.iter().filter(|t| t.due.is_some()).count();
        let sends = plan.sends.iter().filter(|s| s.due.is_some()).count();
        let destroys: usize = plan.prunes.iter().map(|p| p.destroy.len()).sum();
        let each = took.as_nanos() / count.max(1) as u128;
        println!(
            "{count:>10} {:>10.1} {each:>12} {takes:>8} {sends:>8} {destroys:>8} {:>9}",
            took.as_secs_f64() * 1e3,
            peak_mb()
        );
    }
}
