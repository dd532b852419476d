//! Measures the catalog in a real Consul on disk, as in production: 1000 hosts with 10,000 datasets and a million
//! snapshots. For comparison it measures zeplic's layout, one key per snapshot, at a hundred thousand snapshots. Run it
//! with `cargo bench --bench consul`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use zsync::catalog::{CatalogRead, CatalogWrite, Change, ConsulCatalog, Generations};
use zsync::consul::{MOST_OPS, Op};
use zsync::model::{DatasetInventory, DatasetName, Guid, HostName, Marks, Prefix, Snapshot};
use zsync::sys::runtime::block_on;

#[path = "../tests/common/mod.rs"]
mod common;

use common::{consul, consul_at, resident};

const HOSTS: u64 = 1000;
const DATASETS: u64 = 10;
const SNAPSHOTS: u64 = 100;
/// The number of snapshots for which zeplic's layout, one key per snapshot, is measured.
const PAIRS: u64 = 100_000;

fn host(n: u64) -> HostName {
    format!("host{n:04}").parse().unwrap()
}

fn dataset(n: u64) -> DatasetName {
    format!("tank/home/user{n}").parse().unwrap()
}

fn random(n: u64) -> u64 {
    let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (mixed >> 32)
}

fn snapshot(prefix: &Prefix, seed: u64, n: u64) -> Snapshot {
    let creation = DateTime::<Utc>::from_timestamp(1_795_000_000, 0).unwrap() + TimeDelta::hours(n.cast_signed());
    let seed = seed * 1_000_000 + n;
    Snapshot {
        name: prefix.stamp(creation),
        guid: Guid(random(seed)),
        createtxg: 5_000_000 + n * 720 + random(seed) % 20,
        creation: creation + TimeDelta::seconds((random(seed) % 3).cast_signed()),
        userrefs: 0,
        has_clones: false,
        used: random(seed + 7) % 100_000 * 1024,
        marks: Marks::default(),
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let value = work();
    (began.elapsed(), value)
}

fn print(what: &str, took: Duration, bytes: u64) {
    println!("{what:<58} {:>9.1} ms {:>10.2} MB", took.as_secs_f64() * 1e3, bytes as f64 / 1e6);
}

fn compact() -> bool {
    let Some(server) = consul::Agent::start_server() else { return false };
    let (consul, prefix) = (consul_at(&server.address), "BACKUP".parse::<Prefix>().unwrap());
    let catalog = ConsulCatalog::new(consul.clone(), "zsync");
    let empty = resident(server.pid()) >> 20;
    let (took, ()) = timed(|| {
        std::thread::scope(|scope| {
            for part in 0..4 {
                let (catalog, prefix) = (&catalog, &prefix);
                scope.spawn(move || {
                    for h in (part..HOSTS).step_by(4) {
                        let listed = (0..DATASETS).map(|d| {
                            let snapshots = (0..SNAPSHOTS).map(|n| snapshot(prefix, h * DATASETS + d, n)).collect();
                            (dataset(d), DatasetInventory { snapshots, ..DatasetInventory::default() })
                        });
                        catalog.replace_host(&host(h), DateTime::UNIX_EPOCH, listed.collect()).unwrap();
                    }
                });
            }
        });
    });
    println!("{HOSTS} hosts, {} datasets, {} snapshots", HOSTS * DATASETS, HOSTS * DATASETS * SNAPSHOTS);
    print("every host publishes all it holds, 4 at once", took, 0);
    let stored = block_on(consul.list("zsync/inventory/")).unwrap();
    let bytes: usize = stored.iter().map(|pair| pair.value.len()).sum();
    println!(
        "in Consul: {} pairs, {:.2} MB of values, {:.1} bytes a snapshot; resident {} MB ({empty} MB when empty)",
        stored.len(),
        bytes as f64 / 1e6,
        bytes as f64 / (HOSTS * DATASETS * SNAPSHOTS) as f64,
        resident(server.pid()) >> 20
    );
    drop(stored);
    let (wanted, mut since): (BTreeSet<HostName>, _) = ((0..HOSTS).map(host).collect(), Generations::new());
    let mut read = |what: &str, expected: u64| {
        let before = consul.received();
        let (took, published) = timed(|| catalog.published(&wanted, &mut since).unwrap().unwrap());
        let bytes = consul.received() - before;
        print(what, took, bytes);
        assert_eq!((published.changed.len() as u64, published.whole.len() as u64), (expected, HOSTS), "{what}");
        bytes
    };
    let first = read("first read of everything", HOSTS);
    read("a pass in which nothing changed", 0);
    let mut publishing = Duration::ZERO;
    for h in (0..HOSTS).step_by(100) {
        let taken = (0..DATASETS).map(|d| {
            let new = snapshot(&prefix, h * DATASETS + d, SNAPSHOTS);
            (dataset(d), Change::Taken(new))
        });
        publishing += timed(|| catalog.update(&host(h), taken.collect()).unwrap()).0;
    }
    print("one host publishes a new snapshot of each of 10 datasets", publishing / 10, 0);
    let pass = read("a pass in which 1 % of the hosts changed", HOSTS / 100);
    println!("that is {:.2} % of the bytes of the first read", pass as f64 / first as f64 * 100.0);
    assert!(pass * 50 < first, "such a pass must read less than 2 %");
    true
}

/// zeplic's layout: a key `zeplic/HOST/UUID` with the value `dataset@name#sent` for each snapshot, all read in each
/// pass.
fn pair_per_snapshot() {
    let Some(server) = consul::Agent::start_server() else { return };
    let (consul, prefix) = (consul_at(&server.address), "BACKUP".parse::<Prefix>().unwrap());
    let (took, ()) = timed(|| {
        for first in (0..PAIRS).step_by(MOST_OPS) {
            let op = |n: u64| {
                let (h, d) = (n / (DATASETS * SNAPSHOTS), n / SNAPSHOTS % DATASETS);
                let of = snapshot(&prefix, h * DATASETS + d, n % SNAPSHOTS);
                let value = format!("{}@{}#sent", dataset(d), of.name).into_bytes();
                Op::Set { key: format!("zeplic/{}/{}", host(h), of.guid.uuid()), value }
            };
            let ops: Vec<Op> = (first..PAIRS.min(first + MOST_OPS as u64)).map(op).collect();
            block_on(consul.commit(&ops)).unwrap();
        }
    });
    println!("\na pair per snapshot, {PAIRS} snapshots");
    print("writing them, 64 at once", took, 0);
    println!("resident {} MB", resident(server.pid()) >> 20);
    let before = consul.received();
    let (took, pairs) = timed(|| block_on(consul.list("zeplic/")).unwrap());
    assert_eq!(pairs.len() as u64, PAIRS);
    print("every pass reads all of it", took, consul.received() - before);
}

fn main() {
    // cargo passes --bench.
    if compact() {
        pair_per_snapshot();
    }
}
