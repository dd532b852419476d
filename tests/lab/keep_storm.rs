//! Lets a hostile source and a hostile director send random orders and streams to a host with `keep` in its `local.json`,
//! on real ZFS. Used by the scenario of the same name.
//!
//! Usage: `keep_storm SOURCE_POOL POOL SEED ORDERS SECONDS FOLDER`. Both pools must exist, be empty, and be mounted below
//! their names in the folder. It ends after so many orders or seconds, and prints how many orders there were, how many snapshots arrived, and
//! how many were destroyed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

#[path = "../common/basics.rs"]
mod basics;
#[path = "../common/storm.rs"]
mod storm;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use storm::{Administrator, Pool, World};
use zsync::model::{DatasetName, SnapName};
use zsync::zfs::system::System;

/// Runs a program that must succeed, and returns its output.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Administrator for System {
    fn create(&self, dataset: &DatasetName) {
        drop(run("zfs", &["create", dataset.as_str()]));
    }

    fn snapshot_at(&self, dataset: &DatasetName, name: &SnapName, at: DateTime<Utc>, bytes: u64) {
        let folder: PathBuf = std::env::args().nth(6).unwrap().into();
        let bytes = vec![b'x'; usize::try_from(bytes).unwrap()];
        std::fs::write(folder.join(dataset.as_str()).join("file"), bytes).unwrap();
        // ZFS dates a snapshot by the clock of its machine, which is set in the virtual machine only.
        if std::env::var("LAB_PREFIX").is_ok_and(|prefix| !prefix.is_empty()) {
            drop(run("zfs", &["snapshot", dataset.at(name).as_str()]));
            return;
        }
        let (before, since) = (Utc::now(), Instant::now());
        let set = |to: DateTime<Utc>| run("date", &["-s", &to.format("@%s.%9f").to_string()]);
        drop(set(at));
        drop(run("zfs", &["snapshot", dataset.at(name).as_str()]));
        drop(set(before + since.elapsed()));
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

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, source, vault, seed, orders, seconds, _] = &args[..] else { panic!("wrong arguments") };
    let zfs = Arc::new(System::new(Path::new("zfs")));
    let pool = |name: &str| Pool { zfs: Arc::clone(&zfs), name: name.to_owned() };
    let mut world = World::new(seed.parse().unwrap(), pool(source), pool(vault));
    let (began, limit) = (Instant::now(), Duration::from_secs(seconds.parse().unwrap()));
    let mut given = 0;
    while given < orders.parse::<u64>().unwrap() && began.elapsed() < limit {
        world.step();
        given += 1;
    }
    let destroyed = destroyed(vault);
    // In these places, only snapshots that arrived days ago may be destroyed, and append-only ones never.
    let is_below = |dataset: &str, top: &str| dataset == top || dataset.starts_with(&format!("{top}/"));
    for (dataset, name) in &destroyed {
        let is_old = world.old.iter().any(|old| old.as_str() == name);
        assert!(!is_below(dataset, "/safe"), "{dataset}@{name} is append-only, and was destroyed");
        assert!(is_old || !is_below(dataset, "/all"), "{dataset}@{name} was kept, and was destroyed");
    }
    assert!(destroyed.len() >= world.destroyed, "the history has {destroyed:?}, but {} are gone", world.destroyed);
    println!("{given} {} {}", world.arrived, destroyed.len());
}
