//! A hostile source and a hostile director send thousands of random orders and streams to a host with `keep` in its
//! `local.json`, on pools in memory. Nothing that is kept is ever missing. The lab's scenario `keep_storm` does the same on
//! real ZFS.
//!
//! `ZSYNC_HOSTILE_ORDERS` sets the number of orders and conversations, `ZSYNC_HOSTILE_SEED` the seed of the random
//! numbers. 10,000 take 20 seconds without optimisation.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use common::ds;
use common::storm::{Administrator, Pool, Source, World, prepare};
use zsync::model::{DatasetName, SnapName};
use zsync::sys::runtime;
use zsync::zfs::fake::Fake;
use zsync::zfs::{ErrorKind, Zfs};

/// The pools are replaced by new ones after this many orders, because they grow.
const LIFE: u64 = 100;

impl Administrator for Fake {
    fn create(&self, dataset: &DatasetName) {
        Fake::create(self, dataset);
    }

    fn snapshot_at(&self, datasets: &[DatasetName], name: &SnapName, at: DateTime<Utc>, bytes: u64) {
        self.set_now(at);
        datasets.iter().for_each(|dataset| self.write(dataset, bytes));
        runtime::block_on(self.snapshot(datasets, name)).unwrap();
        self.set_now(Utc::now());
    }

    fn fail_rename(&self, dataset: &DatasetName) {
        // Also that of the name in between, which a copy has while it exchanges names with another one.
        for name in [dataset.to_string(), format!("{dataset}_zsync_exchange")] {
            self.fail_next(&format!("rename {name} "), ErrorKind::Busy, "cannot unmount: pool or dataset is busy");
        }
    }
}

fn pool(name: &str, number: u64) -> Pool<Fake> {
    let (zfs, name) = (Fake::new(number), ds(name));
    Fake::create(&zfs, &name);
    Pool { zfs: Arc::new(zfs), name }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[test]
fn nothing_that_keep_keeps_is_ever_missing() {
    let (orders, seed) = (number("ZSYNC_HOSTILE_ORDERS", 10_000), number("ZSYNC_HOSTILE_SEED", 1));
    let began = std::time::Instant::now();
    let (mut arrived, mut destroyed, mut exchanged) = (0, 0, 0);
    for life in 0..orders.div_ceil(LIFE) {
        let (seed, beta) = (seed.wrapping_mul(1_000_003) + life, pool("pool", 2));
        prepare(&*beta.zfs, std::slice::from_ref(&beta));
        let mut world = World::new(seed, Arc::new(Source::new(seed, pool("tank", 1), 20)), beta);
        for _ in 0..LIFE.min(orders - life * LIFE) {
            world.step();
        }
        arrived += world.arrived;
        destroyed += world.destroyed;
        exchanged += world.exchanged;
    }
    println!(
        "{orders} orders in {:.1?}: {arrived} snapshots arrived, {destroyed} were destroyed, {exchanged} exchanges",
        began.elapsed()
    );
    // The attackers can do something, so the checks above mean something.
    assert!(arrived as u64 > orders / 10 && destroyed as u64 > orders / 20, "{arrived} {destroyed}");
}
