//! A hostile source and a hostile director send thousands of random orders and streams to a host with `keep` in its
//! `local.json`. After each of them, everything that `keep` kept before is still there, and so is everything that is
//! append-only. What is kept is judged by this program, which sees by itself when a snapshot arrives.
//!
//! `ZSYNC_HOSTILE_ORDERS` sets the number of orders and conversations, `ZSYNC_HOSTILE_SEED` the seed of the random
//! numbers. 10,000 take 20 seconds without optimisation.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{TimeDelta, Utc};
use common::{ds, host, local, order, snap};
use fastrand::Rng;
use futures_lite::io::{AsyncReadExt, Cursor};
use zsync::agent::Agent;
use zsync::model::{Action, Counter, DatasetInventory, DatasetName, Guid, OnDivergence, SendFlags, SnapName, Snapshot};
use zsync::policy::Local;
use zsync::policy::retention::{Arrival, Dated, arrival_to_text};
use zsync::server::acceptor::Role;
use zsync::slave::Slave;
use zsync::sys::runtime;
use zsync::wire::codec::{Conn, StreamEnd};
use zsync::wire::{CloneOf, CommonBase, DirectorsOrder, OrderToSlave, RenamedFrom, Step};
use zsync::zfs::fake::Fake;
use zsync::zfs::{Depth, SendFrom, SendSpec, Zfs, ZfsRead};

/// All ways to protect a dataset, beside places without any protection.
const LOCAL: &str = r#"{ "local_datasets": [
    { "name": "pool", "slave": true, "append_only": false, "rollback": true },
    { "name": "pool/all", "slave": true, "append_only": false, "rollback": true, "keep": ["all in last day"] },
    { "name": "pool/few", "slave": true, "append_only": false, "rollback": true,
      "keep": ["2 in last hour", "1/day in last month"] },
    { "name": "pool/few/below", "slave": true, "append_only": false, "rollback": true },
    { "name": "pool/safe", "slave": true },
    { "name": "pool/own", "keep": ["3 in last day"] } ] }"#;
/// Where the hosts' orders and streams go. Renames and copies within the host add more.
const PLACES: &[&str] = &[
    "pool/all",
    "pool/all/a",
    "pool/few",
    "pool/few/a",
    "pool/few/below",
    "pool/safe",
    "pool/safe/a",
    "pool/loose",
    "pool/loose/a",
    "pool/own",
    "pool/new",
    "pool/few/below/x",
];
/// The pools are replaced by new ones after this many orders, because they grow.
const LIFE: u64 = 100;

type Listing = BTreeMap<DatasetName, DatasetInventory>;

/// A snapshot in a dataset, by their guids: neither changes when something is renamed.
type Id = (Guid, Guid);

struct World {
    rng: Rng,
    local: Arc<Local>,
    /// The pools of the hostile source.
    alpha: Fake,
    /// The host that must lose nothing.
    beta: Fake,
    agent: Arc<Agent<Fake>>,
    slave: Arc<Slave<Fake>>,
    arrivals: BTreeMap<Id, Arrival>,
    /// How many snapshots arrived, and how many were destroyed where that is permitted.
    arrived: usize,
    destroyed: usize,
}

fn listing(fake: &Fake, root: &str) -> Listing {
    runtime::block_on(fake.list(&[ds(root)], Depth::Recursive)).unwrap().into_iter().collect()
}

fn ids(listing: &Listing) -> BTreeSet<Id> {
    listing.values().flat_map(|of| of.snapshots.iter().map(|s| (of.guid.unwrap(), s.guid))).collect()
}

impl World {
    fn new(seed: u64) -> Self {
        let (alpha, beta, local) = (Fake::new(1), Fake::new(2), local(LOCAL));
        for dataset in ["tank", "tank/data", "tank/other"] {
            alpha.create(&ds(dataset));
        }
        beta.create(&ds("pool"));
        beta.create(&ds("pool/own"));
        let shared = Arc::new(beta.clone());
        let agent = Arc::new(Agent::new(host("beta"), Arc::clone(&shared), Arc::clone(&local)));
        let slave = Arc::new(Slave::new(shared, Arc::clone(&local)));
        let (rng, arrivals) = (Rng::with_seed(seed), BTreeMap::new());
        let mut world = Self { rng, local, alpha, beta, agent, slave, arrivals, arrived: 0, destroyed: 0 };
        for _ in 0..4 {
            world.snapshot("tank/data");
            world.snapshot("tank/other");
        }
        // Copies that arrived days ago, and snapshots of beta's own.
        for place in ["pool/all", "pool/few", "pool/safe", "pool/loose"] {
            let guid = world.alpha.dataset(&ds("tank/data")).unwrap().snapshots[3].guid;
            let conversation = world.conversation(place, guid, vec![0, 1, 2, 3]);
            world.converse(&conversation);
            let Some(copy) = world.beta.dataset(&ds(place)) else { panic!("the first copy in {place} failed") };
            for (days, snapshot) in copy.snapshots.iter().take(3).enumerate() {
                let arrival = Arrival::At(Utc::now() - TimeDelta::days(5 - i64::try_from(days).unwrap()));
                let names = [snapshot.name.clone()];
                runtime::block_on(world.beta.set_arrivals(&ds(place), &names, &arrival_to_text(arrival))).unwrap();
                world.arrivals.insert((copy.guid.unwrap(), snapshot.guid), arrival);
            }
        }
        for n in 0..5 {
            world.beta.set_now(Utc::now() - TimeDelta::hours(30 - 6 * n));
            world.beta.write(&ds("pool/own"), 100);
            runtime::block_on(world.beta.snapshot(&[ds("pool/own")], &snap(&format!("O_{n}")))).unwrap();
        }
        world.beta.set_now(Utc::now());
        world
    }

    /// Takes a snapshot on the source, dated at random.
    fn snapshot(&mut self, dataset: &str) {
        let dataset = ds(dataset);
        self.alpha.set_now(Utc::now() - TimeDelta::minutes(self.rng.i64(-600..100_000)));
        self.alpha.write(&dataset, self.rng.u64(1..2000));
        let name = snap(&format!("S_{}", self.rng.u32(..)));
        runtime::block_on(self.alpha.snapshot(&[dataset], &name)).unwrap();
    }

    /// What no order may destroy now.
    fn kept(&mut self, listing: &Listing) -> BTreeSet<Id> {
        let (mut kept, now) = (BTreeSet::new(), Utc::now());
        for (name, of) in listing {
            let id = |s: &Snapshot| (of.guid.unwrap(), s.guid);
            let entry = self.local.entry_for(name).unwrap();
            if entry.append_only {
                kept.extend(of.snapshots.iter().map(id));
            }
            let Some(keep) = &entry.keep else { continue };
            let dated = of.snapshots.iter().map(|s| {
                let arrival = if entry.slave { self.arrivals[&id(s)] } else { Arrival::At(s.creation) };
                Dated { creation: s.creation, arrival }
            });
            let floor = keep.floor(&dated.collect::<Vec<_>>(), self.local.timezone, now);
            kept.extend(of.snapshots.iter().zip(floor).filter(|(_, why)| why.is_some()).map(|(s, _)| id(s)));
        }
        kept
    }

    /// Lets the attackers do one thing, and checks what is left.
    fn step(&mut self) {
        let before = listing(&self.beta, "pool");
        for id in ids(&before) {
            self.arrivals.entry(id).or_insert(Arrival::At(Utc::now()));
        }
        let kept = self.kept(&before);
        let what = if self.rng.u8(0..3) == 0 { self.director(&before) } else { self.source(&before) };
        let after = ids(&listing(&self.beta, "pool"));
        let missing: Vec<&Id> = kept.difference(&after).collect();
        assert!(missing.is_empty(), "{missing:?} are missing after {what}\nbefore: {before:#?}");
        let before = ids(&before);
        self.arrived += after.difference(&before).count();
        self.destroyed += before.difference(&after).count();
    }

    fn any<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        let index = self.rng.usize(0..all.len().max(1));
        all.get(index)
    }

    fn place(&mut self, listing: &Listing) -> DatasetName {
        let mut all: Vec<DatasetName> = PLACES.iter().map(|place| ds(place)).collect();
        all.extend(listing.keys().filter(|name| name.as_str() != "pool").cloned());
        self.any(&all).unwrap().clone()
    }

    /// An order to beta's agent.
    fn director(&mut self, listing: &Listing) -> String {
        let action = match self.rng.u8(0..10) {
            0..=4 => Action::DestroySnapshot,
            5..=7 => Action::SendSnapshot,
            8 => Action::ForgetDestination,
            _ => Action::TakeSnapshot,
        };
        let dataset = self.place(listing);
        let snapshots: Vec<(DatasetName, Snapshot)> = listing
            .iter()
            .filter(|(name, _)| action != Action::DestroySnapshot || **name == dataset || name.is_within(&dataset))
            .flat_map(|(name, of)| of.snapshots.iter().map(|s| (name.clone(), s.clone())))
            .collect();
        let record = |(of, s): &(DatasetName, Snapshot)| format!("{}:{}", s.guid.uuid(), of.at(&s.name));
        let (few, flags) = (self.rng.bool(), self.rng.u8(..));
        let mut order = DirectorsOrder { retry_for: Some(0), dest_dataset: dataset.to_string(), ..order(action) };
        match action {
            Action::DestroySnapshot => {
                let wanted: Vec<_> = snapshots.iter().filter(|_| !few || self.rng.bool()).map(record).collect();
                order.snapshot_uuid = wanted;
                if let Some((dataset, s)) = self.any(&snapshots).filter(|_| flags & 1 == 0) {
                    let (host, dataset) = (host("alpha"), dataset.clone());
                    order.keep_common_with = vec![CommonBase { host, dataset, guid: s.guid, awaits: false }];
                }
            }
            Action::SendSnapshot => {
                let Some((of, s)) = self.any(&snapshots) else { return String::new() };
                order.snapshot_uuid = vec![s.guid.uuid().to_string()];
                order.dataset = Some(of.clone());
                order.destination = "beta".into();
                order.rollback_if_needed = flags & 3 != 0;
                order.rollback_may_destroy = flags & 12 != 0;
                order.on_divergence = if flags & 16 == 0 { OnDivergence::SetAside } else { OnDivergence::Stop };
                if let Some((dataset, s)) = self.any(&snapshots).filter(|_| flags & 32 == 0) {
                    let (dataset, source_dataset) = (dataset.clone(), of.clone());
                    order.renamed_from = Some(RenamedFrom { dataset, source_dataset, guid: s.guid });
                }
            }
            Action::ForgetDestination => order.datasets = listing.keys().cloned().collect(),
            _ => order.snapshot_name = format!("X_{}", self.rng.u32(..)),
        }
        if order.snapshot_uuid.is_empty() && matches!(action, Action::DestroySnapshot) {
            return String::new();
        }
        let (facts, _heard) = runtime::channel::unbounded();
        let response = runtime::block_on(common::carry_out(&self.agent, &order, facts, Counter::default()));
        format!("{order:?}, answered with {response:?}")
    }

    /// A conversation with beta's slave.
    fn source(&mut self, listing: &Listing) -> String {
        if self.rng.u8(0..4) == 0 {
            let dataset = if self.rng.bool() { "tank/data" } else { "tank/other" };
            self.snapshot(dataset);
        }
        let place = self.place(listing);
        let guid = Guid(self.rng.u64(..));
        let steps = (0..self.rng.usize(1..4)).map(|_| self.rng.u8(0..8)).collect();
        let conversation = self.conversation(place.as_str(), guid, steps);
        self.converse(&conversation);
        String::from_utf8_lossy(&conversation).into_owned()
    }

    fn converse(&self, bytes: &[u8]) {
        runtime::block_on(async {
            let out = Box::new(futures_lite::io::sink());
            let mut conn = Conn::new(Box::new(Cursor::new(bytes.to_vec())), out, "alpha".into());
            if let Ok(Some(line)) = conn.recv_line(conn.patience).await {
                drop(Arc::clone(&self.slave).converse(&mut conn, line).await);
            }
        });
    }

    /// The bytes of a conversation: an order with all permissions, and these steps. The numbers 0 to 3 are streams that
    /// lead to the source's snapshots, most of them with an announcement that fits.
    fn conversation(&mut self, place: &str, guid: Guid, steps: Vec<u8>) -> Vec<u8> {
        let all = listing(&self.beta, "pool");
        let here = all.get(&ds(place)).cloned().unwrap_or_default();
        let others: Vec<(&DatasetName, &DatasetInventory)> =
            all.iter().filter(|(_, of)| !of.snapshots.is_empty()).collect();
        let other = self.any(&others).copied();
        let newest = |of: &DatasetInventory| of.newest().map_or(guid, |s| s.guid);
        let order = OrderToSlave {
            source: host(if self.rng.u8(0..8) == 0 { "gamma" } else { "alpha" }),
            order_uuid: common::order(Action::SendSnapshot).order_uuid,
            snapshot_uuid: String::new(),
            snapshot_name: snap("S_1"),
            dest_dataset: ds(place),
            protocol: 1,
            source_dataset: None,
            rollback_if_needed: true,
            rollback_may_destroy: true,
            on_divergence: OnDivergence::SetAside,
            clone_of: other.map(|(name, of)| CloneOf { dataset: name.clone(), guid: newest(of) }),
            renamed_from: other.map(|(name, of)| RenamedFrom {
                dataset: name.clone(),
                source_dataset: ds("tank/was"),
                guid: newest(of),
            }),
            oldest_unsent: None,
            start_by: None,
        };
        let mut bytes = Vec::new();
        say(&mut bytes, &order);
        // What the source believes the dataset to have by now.
        let mut has: Vec<Guid> = here.snapshots.iter().map(|s| s.guid).collect();
        for step in steps {
            match step {
                0..=3 => self.stream(&mut bytes, &mut has, all.contains_key(&ds(place))),
                4 | 5 if !has.is_empty() => {
                    let at = self.rng.usize(0..has.len());
                    say(&mut bytes, &Step::Rollback { guid: has[at], destroys: has[at + 1..].to_vec() });
                    has.truncate(at + 1);
                }
                6 => say(&mut bytes, &Step::SetAside { guid: has.last().copied() }),
                7 => say(&mut bytes, &Step::Follow),
                _ => say(&mut bytes, &Step::Abort),
            }
        }
        if self.rng.u8(0..4) != 0 {
            let status = zsync::model::ResponseStatus::Incremental;
            say(&mut bytes, &Step::Finish { status, guid: has.last().copied() });
        }
        bytes
    }

    /// A step with a stream of the source, which fits what the dataset has, mostly.
    fn stream(&mut self, bytes: &mut Vec<u8>, has: &mut Vec<Guid>, exists: bool) {
        let dataset = ds(if self.rng.u8(0..6) == 0 { "tank/other" } else { "tank/data" });
        let ours = self.alpha.dataset(&dataset).unwrap().snapshots;
        let base = has.last().and_then(|last| ours.iter().position(|s| s.guid == *last));
        let from = if self.rng.u8(0..8) == 0 { None } else { base };
        let next = from.map_or(0, |base| base + 1);
        if next >= ours.len() {
            return;
        }
        let target = &ours[self.rng.usize(next..ours.len())];
        let name = |at: usize| -> SnapName { ours[at].name.clone() };
        let spec = SendSpec::Snapshot {
            dataset,
            to: target.name.clone(),
            from: from.map_or(SendFrom::Nothing, |at| SendFrom::since(name(at), true)),
            flags: SendFlags::PLAIN,
        };
        let creates = from.is_none();
        say(
            bytes,
            &Step::Receive {
                status: zsync::model::ResponseStatus::Incremental,
                guid: Some(target.guid),
                snapshot_name: target.name.clone(),
                create: creates.then(Default::default),
                overwrite: creates && exists && self.rng.u8(0..4) != 0,
                cloned: self.rng.u8(0..16) == 0,
                flags: Some(SendFlags::PLAIN),
                is_unresumable: self.rng.bool(),
                properties: BTreeMap::new(),
            },
        );
        let mut stream = Vec::new();
        runtime::block_on(async {
            self.alpha.send(&spec).await.unwrap().data.read_to_end(&mut stream).await.unwrap();
        });
        match self.rng.u8(0..12) {
            0 => stream.truncate(self.rng.usize(0..stream.len())),
            1 => {
                let at = self.rng.usize(0..stream.len());
                stream[at] ^= 1;
            }
            _ => match from {
                None => *has = vec![target.guid],
                Some(_) => has.extend(
                    ours.iter().skip(next).take_while(|s| s.guid != target.guid).map(|s| s.guid).chain([target.guid]),
                ),
            },
        }
        if !stream.is_empty() {
            bytes.extend(u32::try_from(stream.len()).unwrap().to_be_bytes());
            bytes.extend(stream);
        }
        bytes.extend([0; 4]);
        say(bytes, &StreamEnd { is_success: true, error: String::new() });
    }
}

fn say(bytes: &mut Vec<u8>, message: &impl serde::Serialize) {
    bytes.extend(serde_json::to_vec(message).unwrap());
    bytes.push(b'\n');
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[test]
fn nothing_that_keep_keeps_is_ever_missing() {
    let (orders, seed) = (number("ZSYNC_HOSTILE_ORDERS", 10_000), number("ZSYNC_HOSTILE_SEED", 1));
    let began = std::time::Instant::now();
    let (mut arrived, mut destroyed) = (0, 0);
    for life in 0..orders.div_ceil(LIFE) {
        let mut world = World::new(seed.wrapping_mul(1_000_003) + life);
        for _ in 0..LIFE.min(orders - life * LIFE) {
            world.step();
        }
        arrived += world.arrived;
        destroyed += world.destroyed;
    }
    println!("{orders} orders in {:.1?}: {arrived} snapshots arrived, {destroyed} were destroyed", began.elapsed());
    // The attackers can do something, so the checks above mean something.
    assert!(arrived as u64 > orders / 10 && destroyed as u64 > orders / 20, "{arrived} {destroyed}");
}
