//! Lets a hostile source and a hostile director send random orders and streams to a host with `keep` in its `local.json`,
//! on real ZFS. Used by the scenario of the same name.
//!
//! Usage: `keep_storm SOURCE_POOL POOL SEED ATTACKERS ORDERS SECONDS FOLDER`. Both pools must exist and be mounted below
//! their names in the folder. The second one must be empty. The attackers work side by side, each in a dataset of its
//! own, as if that were the pool of a host. Each ends after so many orders or seconds. The program prints how many orders
//! there were, how many snapshots arrived, and how many were destroyed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

#[path = "../common/basics.rs"]
mod basics;
mod remembering;
#[path = "../common/storm.rs"]
mod storm;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use remembering::Remembering;
use storm::{Administrator, Pool, Source, World, prepare};
use zsync::model::{DatasetName, SnapName};
use zsync::sys::runtime;
use zsync::zfs::system::System;

/// Runs a program that must succeed, and returns its output.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// After so many orders, what an attacker's datasets are remembered to be is compared with a listing.
const VERIFY_EVERY: u64 = 25;

impl Administrator for Remembering {
    fn create(&self, dataset: &DatasetName) {
        drop(run("zfs", &["create", "-p", dataset.as_str()]));
        self.all_changed();
    }

    fn snapshot_at(&self, datasets: &[DatasetName], name: &SnapName, at: DateTime<Utc>, bytes: u64) {
        let folder: PathBuf = std::env::args().nth(7).unwrap().into();
        for dataset in datasets {
            let bytes = vec![b'x'; usize::try_from(bytes).unwrap()];
            std::fs::write(folder.join(dataset.as_str()).join("file"), bytes).unwrap();
        }
        let names: Vec<String> = datasets.iter().map(|dataset| dataset.at(name).to_string()).collect();
        let snapshot: Vec<&str> = ["snapshot"].into_iter().chain(names.iter().map(String::as_str)).collect();
        // ZFS dates a snapshot by the clock of its machine, which is set in the virtual machine only.
        let may_set = std::env::var("LAB_PREFIX").is_ok_and(|prefix| prefix.is_empty());
        let (before, since) = (Utc::now(), Instant::now());
        let set = |to: DateTime<Utc>| may_set.then(|| run("date", &["-s", &to.format("@%s.%9f").to_string()]));
        drop(set(at));
        drop(run("zfs", &snapshot));
        drop(set(before + since.elapsed()));
        self.all_changed();
    }
}

/// The snapshots that were destroyed, by the pool's own history: the dataset below the pool, and the name.
///
/// A line of the history is, for example: `2026-11-29.09:33:02 [txg:1234] destroy vault/all@S_1 (98)`.
fn destroyed(pool: &str) -> Vec<(String, String)> {
    let history = run("zpool", &["history", "-i", pool]);
    let events = history.lines().filter_map(|line| line.split_once("txg:")?.1.split_once("] "));
    let destroys = events.filter_map(|(_, event)| {
        let what = event.strip_prefix("destroy ").or_else(|| event.strip_prefix("defer_destroy "))?;
        what.split(' ').next()?.strip_prefix(pool)?.split_once('@')
    });
    // A receive destroys what it has made, if it fails.
    let destroys = destroys.filter(|(dataset, name)| !dataset.ends_with("/%recv") && !name.starts_with('%'));
    destroys.map(|(dataset, name)| (dataset.to_owned(), name.to_owned())).collect()
}

/// Lets one attacker work, and returns its world with the number of its orders.
fn attack(
    seed: u64,
    source: Arc<Source<Remembering>>,
    beta: Pool<Remembering>,
    orders: u64,
    limit: Duration,
) -> (World<Remembering>, u64) {
    let zfs = Arc::clone(&beta.zfs);
    let mut world = World::new(seed, source, beta);
    let end = Instant::now() + limit;
    let mut given = 0;
    while given < orders && Instant::now() < end {
        world.step();
        given += 1;
        if given % VERIFY_EVERY == 0 {
            runtime::block_on(zfs.verify());
        }
    }
    (world, given)
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, source, vault, seed, attackers, orders, seconds, _] = &args[..] else { panic!("wrong arguments") };
    let number = |text: &String| -> u64 { text.parse().unwrap() };
    let (orders, limit) = (number(orders), Duration::from_secs(number(seconds)));
    let zfs = System::new(Path::new("zfs"));
    let pool = |name: String| -> Pool<Remembering> {
        let name: DatasetName = name.parse().unwrap();
        Pool { zfs: Arc::new(Remembering::new(zfs.clone(), name.clone())), name }
    };
    let source = Arc::new(Source::new(number(seed), pool(source.clone()), 20));
    let pools: Vec<_> = (0..number(attackers)).map(|n| pool(format!("{vault}/w{n}"))).collect();
    prepare(&*pools[0].zfs, &pools);
    pools.iter().for_each(|pool| pool.zfs.all_changed());
    let started = pools.into_iter().zip(number(seed) * number(attackers)..).map(|(beta, seed)| {
        let source = Arc::clone(&source);
        std::thread::spawn(move || attack(seed, source, beta, orders, limit))
    });
    let started: Vec<_> = started.collect();
    let worlds: Vec<_> = started.into_iter().map(|thread| thread.join().unwrap()).collect();
    let destroyed = destroyed(vault);
    // In these places, only snapshots that arrived days ago may be destroyed, and append-only ones never.
    let old: BTreeSet<&SnapName> = worlds.iter().flat_map(|(world, _)| &world.old).collect();
    for (dataset, name) in &destroyed {
        let place = dataset.split('/').nth(2).unwrap_or_default();
        let is_old = old.iter().any(|old| old.as_str() == name);
        assert!(place != "safe", "{dataset}@{name} is append-only, and was destroyed");
        assert!(is_old || place != "all", "{dataset}@{name} was kept, and was destroyed");
    }
    let gone: usize = worlds.iter().map(|(world, _)| world.destroyed).sum();
    assert!(destroyed.len() >= gone, "the history has {destroyed:?}, but {gone} are gone");
    let (given, arrived) =
        worlds.iter().fold((0, 0), |(given, arrived), (world, of)| (given + of, arrived + world.arrived));
    println!("{given} {arrived} {}", destroyed.len());
}
