//! A hostile source and a hostile director, which send random orders and streams to a host with `keep` in its
//! `local.json`. After each of them, everything that `keep` kept before is still there, and so is everything that is
//! append-only. What is kept is judged here, by when a snapshot was first seen.
//!
//! The host is one on pools in memory, or one on real ZFS.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use chrono::{DateTime, TimeDelta, Utc};
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
use zsync::zfs::{Depth, SendFrom, SendSpec, Zfs};

use super::basics::{carry_out, ds, host, local, order, snap};

/// What an administrator does by hand.
pub trait Administrator: Zfs {
    fn create(&self, dataset: &DatasetName);

    /// Writes some bytes into datasets, and takes a snapshot of each that is dated `at`.
    fn snapshot_at(&self, datasets: &[DatasetName], name: &SnapName, at: DateTime<Utc>, bytes: u64);

    /// Makes the next rename of this dataset fail, where that is possible.
    fn fail_rename(&self, _dataset: &DatasetName) {}
}

/// All ways to protect a dataset, beside places without any protection.
const LOCAL: &str = r#"{ "local_datasets": [
    { "name": "pool", "slave": true, "append_only": false, "rollback": true },
    { "name": "pool/all", "slave": true, "append_only": false, "rollback": true, "keep": ["all in last day"] },
    { "name": "pool/few", "slave": true, "append_only": false, "rollback": true,
      "keep": ["2 in last hour", "1/day in last month"] },
    { "name": "pool/twin", "slave": true, "append_only": false, "rollback": true, "keep": ["all in last day"] },
    { "name": "pool/few/below", "slave": true, "append_only": false, "rollback": true },
    { "name": "pool/safe", "slave": true },
    { "name": "pool/own", "keep": ["3 in last day"] } ] }"#;
/// Where the hosts' orders and streams go, in the pool `pool`. Renames and copies within the host add more.
const PLACES: &[&str] = &[
    "pool/all",
    "pool/all/a",
    "pool/all/b",
    "pool/twin",
    "pool/twin/a",
    "pool/few",
    "pool/few/a",
    "pool/few/below",
    "pool/safe",
    "pool/safe/a",
    "pool/safe/b",
    "pool/loose",
    "pool/loose/a",
    "pool/loose/b",
    "pool/own",
    "pool/new",
    "pool/few/below/x",
];
type Listing = BTreeMap<DatasetName, DatasetInventory>;

/// A snapshot in a dataset, by their guids: neither changes when something is renamed.
type Id = (Guid, Guid);

/// A pool of a host, or a dataset in the place of a pool.
#[derive(Clone)]
pub struct Pool<Z> {
    pub zfs: Arc<Z>,
    pub name: DatasetName,
}

/// The bytes of streams, by dataset, base and target.
type Streams = BTreeMap<(DatasetName, Option<SnapName>, SnapName), Arc<Vec<u8>>>;

/// The pool of the hostile source. It has all snapshots that it will ever send, so several worlds can share it.
pub struct Source<Z> {
    pool: Pool<Z>,
    /// The snapshots of each dataset, oldest first.
    snapshots: [(DatasetName, Vec<Snapshot>); 2],
    streams: Mutex<Streams>,
}

impl<Z: Administrator> Pool<Z> {
    /// A dataset, by its name in a pool that is called `tank` or `pool`.
    fn ds(&self, dataset: &str) -> DatasetName {
        match dataset.split_once('/') {
            Some((_, below)) => ds(&format!("{}/{below}", self.name)),
            None => self.name.clone(),
        }
    }

    fn dataset(&self, dataset: &DatasetName) -> Option<DatasetInventory> {
        let listed = runtime::block_on(self.zfs.list(std::slice::from_ref(dataset), Depth::Only)).unwrap();
        listed.into_iter().find(|(name, _)| name == dataset).map(|(_, found)| found)
    }

    fn listing(&self) -> Listing {
        runtime::block_on(self.zfs.list(std::slice::from_ref(&self.name), Depth::Recursive))
            .unwrap()
            .into_iter()
            .collect()
    }
}

impl<Z: Administrator> Source<Z> {
    /// Fills an empty pool with `count` snapshots of each of two datasets, dated at random. In a pool that was filled
    /// before, it finds them.
    pub fn new(seed: u64, pool: Pool<Z>, count: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let datasets = ["tank/data", "tank/other"].map(|dataset| pool.ds(dataset));
        let snapshots = datasets.map(|dataset| {
            if pool.dataset(&dataset).is_none() {
                pool.zfs.create(&dataset);
                for _ in 0..count {
                    let at = Utc::now() - TimeDelta::minutes(rng.i64(-600..100_000));
                    let name = snap(&format!("S_{}", rng.u32(..)));
                    pool.zfs.snapshot_at(std::slice::from_ref(&dataset), &name, at, rng.u64(1..2000));
                }
            }
            let found = pool.dataset(&dataset).unwrap();
            (dataset, found.snapshots)
        });
        Self { pool, snapshots, streams: Mutex::default() }
    }

    /// The bytes of a stream.
    fn stream(&self, dataset: &DatasetName, from: Option<&SnapName>, to: &SnapName) -> Arc<Vec<u8>> {
        let key = (dataset.clone(), from.cloned(), to.clone());
        if let Some(bytes) = self.streams.lock().unwrap().get(&key) {
            return Arc::clone(bytes);
        }
        let spec = SendSpec::Snapshot {
            dataset: dataset.clone(),
            to: to.clone(),
            from: from.map_or(SendFrom::Nothing, |from| SendFrom::since(from.clone(), true)),
            flags: SendFlags::PLAIN,
        };
        let mut bytes = Vec::new();
        runtime::block_on(async {
            self.pool.zfs.send(&spec).await.unwrap().data.read_to_end(&mut bytes).await.unwrap();
        });
        let bytes = Arc::new(bytes);
        self.streams.lock().unwrap().insert(key, Arc::clone(&bytes));
        bytes
    }
}

/// The host that is attacked, and its attackers.
pub struct World<Z> {
    rng: Rng,
    local: Arc<Local>,
    source: Arc<Source<Z>>,
    /// Whether the source sends what it announces, as it did before it was taken over.
    is_honest: bool,
    /// How many snapshots of each of its datasets the source has taken by now.
    taken: [usize; 2],
    /// The pool of the host that must lose nothing.
    beta: Pool<Z>,
    agent: Arc<Agent<Z>>,
    slave: Arc<Slave<Z>>,
    /// What beta has.
    now: Listing,
    arrivals: BTreeMap<Id, Arrival>,
    /// The names of the snapshots that arrived days ago.
    pub old: BTreeSet<SnapName>,
    /// How many snapshots arrived, and how many were destroyed where that is permitted.
    pub arrived: usize,
    pub destroyed: usize,
    /// How many times two datasets have exchanged their names.
    pub exchanged: usize,
}

fn ids(listing: &Listing) -> BTreeSet<Id> {
    listing.values().flat_map(|of| of.snapshots.iter().map(|s| (of.guid.unwrap(), s.guid))).collect()
}

/// Takes snapshots of the dataset `pool/own` in each of these pools, as an administrator did in the last days.
pub fn prepare<Z: Administrator>(zfs: &Z, pools: &[Pool<Z>]) {
    let own: Vec<DatasetName> = pools.iter().map(|pool| pool.ds("pool/own")).collect();
    own.iter().for_each(|dataset| zfs.create(dataset));
    for n in 0..5 {
        zfs.snapshot_at(&own, &snap(&format!("O_{n}")), Utc::now() - TimeDelta::hours(30 - 6 * n), 100);
    }
}

impl<Z: Administrator> World<Z> {
    /// The pool has nothing but snapshots of `pool/own`, see [`prepare`].
    pub fn new(seed: u64, source: Arc<Source<Z>>, beta: Pool<Z>) -> Self {
        let local = local(&LOCAL.replace("\"pool", &format!("\"{}", beta.name)));
        let agent = Arc::new(Agent::new(host("beta"), Arc::clone(&beta.zfs), Arc::clone(&local)));
        let slave = Arc::new(Slave::new(Arc::clone(&beta.zfs), Arc::clone(&local)));
        let (rng, arrivals, now) = (Rng::with_seed(seed), BTreeMap::new(), Listing::new());
        let mut world = Self {
            rng,
            local,
            source,
            is_honest: true,
            taken: [4, 4],
            beta,
            agent,
            slave,
            now,
            arrivals,
            old: BTreeSet::new(),
            arrived: 0,
            destroyed: 0,
            exchanged: 0,
        };
        // Copies that arrived days ago.
        for place in ["pool/all", "pool/few", "pool/safe", "pool/twin", "pool/loose"] {
            let guid = world.source.snapshots[0].1[3].guid;
            let place = world.beta.ds(place);
            world.now = world.beta.listing();
            let conversation = world.conversation(&place, guid, vec![0, 1, 2, 3]);
            world.converse(&conversation);
            let Some(copy) = world.beta.dataset(&place) else { panic!("the first copy in {place} failed") };
            for (days, snapshot) in copy.snapshots.iter().take(3).enumerate() {
                let arrival = Arrival::At(Utc::now() - TimeDelta::days(5 - i64::try_from(days).unwrap()));
                let names = [snapshot.name.clone()];
                world.old.insert(snapshot.name.clone());
                let text = arrival_to_text(arrival);
                runtime::block_on(world.beta.zfs.set_arrivals(&place, &names, &text)).unwrap();
                world.arrivals.insert((copy.guid.unwrap(), snapshot.guid), arrival);
            }
        }
        world.now = world.beta.listing();
        world.is_honest = false;
        world
    }

    /// True once in `n` times, if the source is hostile.
    fn rarely(&mut self, n: u8) -> bool {
        self.rng.u8(0..n) == 0 && !self.is_honest
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
    pub fn step(&mut self) {
        let before = std::mem::take(&mut self.now);
        // What arrived together has one time, in whole seconds as a host records it: guids are in no order.
        let now = DateTime::from_timestamp(Utc::now().timestamp(), 0).unwrap();
        for id in ids(&before) {
            self.arrivals.entry(id).or_insert(Arrival::At(now));
        }
        let kept = self.kept(&before);
        self.now = before.clone();
        if self.rng.u8(0..4) == 0 {
            let place = self.place(&before);
            self.beta.zfs.fail_rename(&place);
        }
        let what = if self.rng.u8(0..3) == 0 { self.director(&before) } else { self.source(&before) };
        self.now = self.beta.listing();
        let after = ids(&self.now);
        let missing: Vec<&Id> = kept.difference(&after).collect();
        if !missing.is_empty() {
            let lines = |listing: &Listing| {
                let line = |name: &DatasetName, of: &DatasetInventory| {
                    let snapshot = |s: &Snapshot| {
                        let id = (of.guid.unwrap(), s.guid);
                        format!(
                            " {} {} arrived {:?} kept {}",
                            s.name,
                            s.guid,
                            self.arrivals.get(&id),
                            kept.contains(&id)
                        )
                    };
                    format!("{name}:{}", of.snapshots.iter().map(snapshot).collect::<Vec<_>>().join(";"))
                };
                listing.iter().map(|(name, of)| line(name, of)).collect::<Vec<_>>().join("\n")
            };
            let (before, after) = (lines(&before), lines(&self.now));
            panic!("before:\n{before}\nafter:\n{after}\n{missing:?} are missing after {what}");
        }
        let name_of =
            |of: &Listing, guid| of.iter().find(|(_, found)| found.guid == guid).map(|(name, _)| name.clone());
        let moved = before.iter().filter_map(|(name, of)| {
            let to = name_of(&self.now, of.guid).filter(|to| to > name)?;
            let other = before.get(&to)?;
            (name_of(&self.now, other.guid).as_ref() == Some(name)).then_some(())
        });
        self.exchanged += moved.count();
        for (name, of) in &before {
            let Some(to) = name_of(&self.now, of.guid) else { continue };
            let (was, is) = (self.local.entry_for(name).unwrap(), self.local.entry_for(&to).unwrap());
            let is_safe = is.append_only || !was.append_only && (was.keep.is_none() || was.keep == is.keep);
            assert!(is_safe, "{name} is less protected as {to} after {what}");
        }
        let before = ids(&before);
        self.arrived += after.difference(&before).count();
        self.destroyed += before.difference(&after).count();
    }

    fn any<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        let index = self.rng.usize(0..all.len().max(1));
        all.get(index)
    }

    fn place(&mut self, listing: &Listing) -> DatasetName {
        let mut all: Vec<DatasetName> = PLACES.iter().map(|place| self.beta.ds(place)).collect();
        all.extend(listing.keys().filter(|name| **name != self.beta.name).cloned());
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
                    order.renamed_from = Some(RenamedFrom {
                        dataset,
                        source_dataset,
                        guid: s.guid,
                        exchange: self.rng.bool(),
                        displace: self.rng.bool(),
                    });
                }
            }
            Action::ForgetDestination => order.datasets = listing.keys().cloned().collect(),
            _ => order.snapshot_name = format!("X_{}", self.rng.u32(..)),
        }
        if order.snapshot_uuid.is_empty() && matches!(action, Action::DestroySnapshot) {
            return String::new();
        }
        let (facts, _heard) = runtime::channel::unbounded();
        let response = runtime::block_on(carry_out(&self.agent, &order, facts, Counter::default()));
        format!("{order:?}, answered with {response:?}")
    }

    /// A conversation with beta's slave.
    fn source(&mut self, listing: &Listing) -> String {
        if self.rng.u8(0..4) == 0 {
            let dataset = usize::from(self.rng.bool());
            self.taken[dataset] = self.source.snapshots[dataset].1.len().min(self.taken[dataset] + 1);
        }
        let (mut place, guid) = (self.place(listing), Guid(self.rng.u64(..)));
        let mut steps: Vec<u8> = (0..self.rng.usize(1..4)).map(|_| self.rng.u8(0..8)).collect();
        // A copy is renamed, perhaps to a name that another copy has.
        if self.rng.u8(0..3) == 0 {
            steps.insert(0, 7);
            let copies: Vec<&DatasetName> = listing.keys().filter(|name| name.parent().is_some()).collect();
            place = self.any(&copies).map_or(place, |copy| (*copy).clone());
        }
        let conversation = self.conversation(&place, guid, steps);
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
    fn conversation(&mut self, place: &DatasetName, guid: Guid, steps: Vec<u8>) -> Vec<u8> {
        let all = self.now.clone();
        let here = all.get(place).cloned().unwrap_or_default();
        let others: Vec<(&DatasetName, &DatasetInventory)> =
            all.iter().filter(|(_, of)| !of.snapshots.is_empty()).collect();
        let other = self.any(&others).copied();
        let newest = |of: &DatasetInventory| of.newest().map_or(guid, |s| s.guid);
        let order = OrderToSlave {
            source: host(if self.rarely(8) { "gamma" } else { "alpha" }),
            order_uuid: order(Action::SendSnapshot).order_uuid,
            snapshot_uuid: String::new(),
            snapshot_name: snap("S_1"),
            dest_dataset: place.clone(),
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
                exchange: self.rng.bool(),
                displace: self.rng.bool(),
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
                0..=3 => self.stream(&mut bytes, &mut has, all.contains_key(place)),
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
            say(&mut bytes, &Step::Finish { status, guid: has.last().copied(), recorded: None });
        }
        bytes
    }

    /// A step with a stream of the source, which fits what the dataset has, mostly.
    fn stream(&mut self, bytes: &mut Vec<u8>, has: &mut Vec<Guid>, exists: bool) {
        let dataset = usize::from(self.rarely(6));
        let source = Arc::clone(&self.source);
        let (dataset, ours) = (&source.snapshots[dataset].0, &source.snapshots[dataset].1[..self.taken[dataset]]);
        let base = has.last().and_then(|last| ours.iter().position(|s| s.guid == *last));
        let from = if self.rarely(8) { None } else { base };
        let next = from.map_or(0, |base| base + 1);
        if next >= ours.len() {
            return;
        }
        let target = &ours[self.rng.usize(next..ours.len())];
        let creates = from.is_none();
        say(
            bytes,
            &Step::Receive {
                status: zsync::model::ResponseStatus::Incremental,
                guid: Some(target.guid),
                snapshot_name: target.name.clone(),
                create: creates.then(Default::default),
                overwrite: creates && exists && self.rng.u8(0..4) != 0,
                cloned: self.rarely(16),
                flags: Some(SendFlags::PLAIN),
                is_unresumable: self.rng.bool(),
                properties: BTreeMap::new(),
            },
        );
        let mut stream = source.stream(dataset, from.map(|at| &ours[at].name), &target.name).to_vec();
        match self.rng.u8(0..12) {
            _ if self.is_honest => has.push(target.guid),
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
