//! Measures how long `zsync plan --catalog FILE` takes with 10 thousand to a million records, including reading and
//! printing, and its memory; and a simulation of each example. Run it with `cargo bench --bench plan`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod watched;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::json;

const NOW: &str = "2026-11-23T10:00:05Z";
const DATASETS: u64 = 10;
const SNAPSHOTS: u64 = 100;

/// Half of the hosts are sources with ten datasets, the others receive from them.
fn write_policy(path: &Path, pairs: u64) {
    let entry = |i: u64| {
        json!({ "hostname": format!("source{i:04}"), "dataset": "tank/data", "recursive": true, "backup": {
            "prefix": "BACKUP", "creation": "0 * * * *", "sync_on": format!("vault{i:04}"), "sync_dataset": "tank/copy",
            "retention": ["24 in last day", "1/day in last week", "1/week in last month", "1/month in last year"],
            "sync_retention": ["1/day in last month", "1/month in last 5 years"] } })
    };
    let policy = json!({ "timezone": "Europe/Berlin", "datasets": (0..pairs).map(entry).collect::<Vec<_>>() });
    fs::write(path, policy.to_string()).unwrap();
}

/// Hourly snapshots of the last days, then daily ones; the destinations lack the newest.
fn write_catalog(path: &Path, pairs: u64) -> u64 {
    let now: DateTime<Utc> = NOW.parse().unwrap();
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut records = 0;
    for (pair, received) in (0..pairs).flat_map(|pair| [(pair, false), (pair, true)]) {
        let (host, root) =
            if received { (format!("vault{pair:04}"), "tank/copy") } else { (format!("source{pair:04}"), "tank/data") };
        for set in 0..DATASETS {
            let dataset = if set == 0 { root.to_owned() } else { format!("{root}/set{set}") };
            for (i, createtxg) in (u64::from(received)..SNAPSHOTS + u64::from(received)).rev().zip(1u64..) {
                let hours = if i < 48 { i } else { (i - 45) * 24 };
                let creation = now - TimeDelta::hours(i64::try_from(hours).unwrap()) - TimeDelta::minutes(30);
                let guid = (((pair * DATASETS + set) << 16) | i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let record = json!({ "host": host, "dataset": dataset,
                    "name": creation.format("BACKUP_%Y-%m-%d_%H:%M:%S").to_string(), "guid": guid.to_string(),
                    "createtxg": createtxg, "creation": creation.to_rfc3339_opts(SecondsFormat::Secs, true),
                    "used": 1 << 20 });
                writeln!(file, "{record}").unwrap();
                records += 1;
            }
        }
    }
    file.flush().unwrap();
    records
}

/// Runs a plan; gives its duration, and its peak memory in MB.
fn plan(args: &[&str]) -> (Duration, u64) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zsync"));
    let (ended, took, peak) = watched::run(command.arg("plan").args(["--at", NOW]).args(args).stdout(Stdio::null()));
    assert!(ended.success());
    (took, peak)
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let (policy, catalog) = (folder.path().join("server.json"), folder.path().join("catalog.ndjson"));
    let files = ["--config", policy.to_str().unwrap(), "--catalog", catalog.to_str().unwrap()];
    println!("{:>10} {:>10} {:>10} {:>12} {:>8}", "records", "table s", "ndjson s", "ns/record", "peak MB");
    for pairs in [5, 16, 50, 158, 500] {
        write_policy(&policy, pairs);
        let records = write_catalog(&catalog, pairs);
        let (table, peak) = plan(&files);
        let (lines, other_peak) = plan(&[&files[..], &["--format", "ndjson"]].concat());
        let each = table.as_nanos() / u128::from(records.max(1));
        println!(
            "{records:>10} {:>10.2} {:>10.2} {each:>12} {:>8}",
            table.as_secs_f64(),
            lines.as_secs_f64(),
            peak.max(other_peak)
        );
    }
    for example in ["one-host", "two-hosts", "fleet", "full"] {
        let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example).join("server.json");
        let known: serde_json::Value = serde_json::from_str(&fs::read_to_string(&policy).unwrap()).unwrap();
        let sources = known["datasets"].as_array().unwrap();
        let sources = sources.iter().map(|entry| json!({ "host": entry["hostname"], "dataset": entry["dataset"] }));
        let text: String = sources.map(|source| format!("{source}\n")).collect();
        fs::write(&catalog, text).unwrap();
        let (took, _) = plan(&["--config", policy.to_str().unwrap(), files[2], files[3], "--simulate", "90d"]);
        println!("90 days of examples/{example}: {:.2} s", took.as_secs_f64());
    }
}
