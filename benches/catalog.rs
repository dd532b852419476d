//! Measures how long the embedded catalog takes to store listings of a million snapshots and to load them. Run it with
//! `cargo bench --bench catalog`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::time::Instant;

use chrono::DateTime;
use zsync::catalog::{CatalogRead, CatalogWrite, EmbeddedCatalog, EmbeddedReader};
use zsync::model::{DatasetInventory, DatasetName, Guid, HostName, Marks, Snapshot};

const DATASETS: u64 = 1000;
const SNAPSHOTS: u64 = 1000;

fn listing(used: u64) -> Vec<(DatasetName, DatasetInventory)> {
    let snapshot = |n: u64| Snapshot {
        name: format!("SYNC_2026-11-23_{:02}:{:02}:{:02}", n / 3600 % 24, n / 60 % 60, n % 60).parse().unwrap(),
        guid: Guid(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        createtxg: n,
        creation: DateTime::from_timestamp(i64::try_from(n).unwrap(), 0).unwrap(),
        userrefs: 0,
        has_clones: false,
        used: if n.is_multiple_of(SNAPSHOTS) { used } else { 0 },
        marks: Marks { sent: true, ..Marks::default() },
    };
    let inventory = |d: u64| DatasetInventory {
        snapshots: (d * SNAPSHOTS..(d + 1) * SNAPSHOTS).map(snapshot).collect(),
        ..DatasetInventory::default()
    };
    (0..DATASETS).map(|d| (format!("tank/home/user{d}").parse().unwrap(), inventory(d))).collect()
}

fn timed(what: &str, work: impl FnOnce()) {
    let began = Instant::now();
    work();
    println!("{what:<40} {:>8.3} s", began.elapsed().as_secs_f64());
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let host: HostName = "alpha".parse().unwrap();
    let catalog = EmbeddedCatalog::open(folder.path()).unwrap();
    println!("{DATASETS} datasets with {SNAPSHOTS} snapshots each");
    for (what, used) in [("first listing", 0), ("the same again", 0), ("with a change in each dataset", 1)] {
        let listing = listing(used);
        timed(what, || catalog.replace_host(&host, DateTime::UNIX_EPOCH, listing).unwrap());
    }
    timed("loading", || {
        let inventory = EmbeddedReader::new(folder.path()).inventory().unwrap();
        let snapshots: usize = inventory.hosts[&host].datasets.values().map(|d| d.snapshots.len()).sum();
        assert_eq!(snapshots as u64, DATASETS * SNAPSHOTS);
    });
}
