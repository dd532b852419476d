//! Holds the pools of a machine, and lets tests prepare and inspect them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};

use crate::model::{
    DatasetInventory, DatasetKind, DatasetName, Guid, KeyState, Origin, SendFlags, SnapName, Snapshot, tags,
};
use crate::zfs::fake::fault::Fault;
use crate::zfs::fake::stream::LONGEST;
use crate::zfs::fake::token::Token;
use crate::zfs::{ErrorKind, ZfsError, parse};

/// The pools of one machine. All clones of this value share them.
#[derive(Clone, Default)]
pub struct Fake {
    pools: Arc<Mutex<Pools>>,
}

/// Everything that the machine holds, and the failures that the test wants.
#[derive(Default)]
pub(super) struct Pools {
    pub datasets: BTreeMap<DatasetName, DatasetInventory>,
    pub holds: BTreeSet<(DatasetName, SnapName, String)>,
    /// The snapshots that have clones.
    pub clones: BTreeSet<(DatasetName, SnapName)>,
    /// Interrupted and running receives.
    pub partials: BTreeMap<DatasetName, PartialReceive>,
    /// Bytes written between a snapshot and the one before it.
    pub written_before: BTreeMap<Guid, u64>,
    pub properties: BTreeMap<DatasetName, BTreeMap<String, String>>,
    /// When snapshots arrived (`zsync:arrived`).
    pub arrived: BTreeMap<(DatasetName, Guid), String>,
    pub txg: u64,
    pub guids: u64,
    /// Pools that cannot be listed, each with the reason.
    pub away: BTreeMap<String, String>,
    /// Pools without the feature `extensible_dataset`.
    pub without_extensible: BTreeSet<String>,
    /// Datasets that another command creates to contain others just before the next receive into them begins.
    pub rivals: BTreeSet<DatasetName>,
    /// Datasets of which no snapshot can be taken, each with the words of ZFS.
    pub refused: BTreeMap<DatasetName, String>,
    /// Encryption roots whose keys are not loaded.
    pub locked: BTreeSet<DatasetName>,
    pub now: DateTime<Utc>,
    calls: Vec<String>,
    failures: Vec<(String, ZfsError)>,
    faults: Vec<(String, Fault)>,
}

/// What a receive has saved so far (`zfs receive -s`).
pub(super) struct PartialReceive {
    /// The snapshot that is being received, by its full name on the sender.
    pub toname: String,
    pub snapshot: Snapshot,
    pub kind: DatasetKind,
    /// The guid of the snapshot that the stream starts from.
    pub from: Option<Guid>,
    /// How much data the snapshot has in all, and how much of it has arrived.
    pub length: u64,
    pub arrived: u64,
    pub flags: SendFlags,
    pub raw: bool,
    /// Whether the receive created the dataset, which is destroyed if the receive is aborted.
    pub creates: bool,
    /// Whether `zfs receive` is still running.
    pub is_running: bool,
}

impl PartialReceive {
    /// The `receive_resume_token`.
    pub fn token(&self) -> String {
        let token = Token {
            toname: self.toname.clone(),
            toguid: self.snapshot.guid,
            fromguid: self.from,
            object: if self.arrived == 0 { 1 } else { 2 },
            offset: self.arrived,
            bytes: self.arrived,
            largeblockok: false,
            embedok: false,
            compressok: false,
            rawok: false,
        };
        token.with_flags(self.flags, self.raw).encode()
    }
}

/// How the system describes the end of a process that was killed, and of one whose reader is gone.
pub(super) const SIGKILL: &str = "signal 9 (SIGKILL)";
pub(super) const SIGPIPE: &str = "signal 13 (SIGPIPE)";

/// The error of a failed command. Its kind is derived from its words, as for the real command.
pub(super) fn failed(call: &str, words: impl Into<String>) -> ZfsError {
    let stderr = words.into();
    let kind = parse::error_kind(&stderr);
    ZfsError { kind, command: format!("zfs {call}"), status: "exit status 1".into(), stderr }
}

/// A command that a signal has ended.
pub(super) fn killed(call: &str, signal: &str) -> ZfsError {
    let status = signal.into();
    ZfsError { kind: ErrorKind::Killed, command: format!("zfs {call}"), status, stderr: String::new() }
}

/// Prepares and inspects the pools.
impl Fake {
    /// Creates a machine without datasets. The guids of its datasets and snapshots are numbered from one million times
    /// `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let fake = Self::default();
        fake.pools().guids = seed.wrapping_mul(1_000_000);
        fake
    }

    pub(super) fn pools(&self) -> MutexGuard<'_, Pools> {
        self.pools.lock()
    }

    /// Creates a dataset (and nothing above it) with some data in it.
    pub fn create(&self, dataset: &DatasetName) {
        self.pools().create(dataset);
    }

    /// From now on a pool cannot be listed, for this reason; as if it were exported or suspended. `None` brings it
    /// back.
    pub fn set_away(&self, pool: &str, reason: Option<&str>) {
        let mut pools = self.pools();
        match reason {
            Some(reason) => drop(pools.away.insert(pool.to_owned(), reason.to_owned())),
            None => drop(pools.away.remove(pool)),
        }
    }

    /// Takes the feature `extensible_dataset` from a pool, without which nothing can be received that could be resumed.
    pub fn without_extensible_dataset(&self, pool: &str) {
        self.pools().without_extensible.insert(pool.to_owned());
    }

    /// Just before the next receive into this dataset begins, another command creates it to contain others.
    pub fn create_before_receive(&self, dataset: &DatasetName) {
        self.pools().rivals.insert(dataset.clone());
    }

    /// From now on, no snapshot can be taken of a dataset, for this reason in the words of ZFS.
    pub fn refuse_snapshots(&self, dataset: &DatasetName, words: &str) {
        self.pools().refused.insert(dataset.clone(), words.to_owned());
    }

    /// Writes to a dataset.
    pub fn write(&self, dataset: &DatasetName, bytes: u64) {
        if let Some(inventory) = self.pools().datasets.get_mut(dataset) {
            inventory.written = Some(inventory.written.unwrap_or(0) + bytes);
        }
    }

    /// Sets the time at which the next snapshots are taken.
    pub fn set_now(&self, now: DateTime<Utc>) {
        self.pools().now = now;
    }

    /// Destroys snapshots as an administrator would by hand, who first releases them and destroys their clones.
    pub fn destroy_by_hand(&self, dataset: &DatasetName, names: &[SnapName]) {
        let mut pools = self.pools();
        if let Some(inventory) = pools.datasets.get_mut(dataset) {
            inventory.snapshots.retain(|s| !names.contains(&s.name));
        }
        pools.holds.retain(|(of, name, _)| of != dataset || !names.contains(name));
        pools.clones.retain(|(of, name)| of != dataset || !names.contains(name));
    }

    /// Gives a snapshot a clone.
    pub fn clone_of(&self, dataset: &DatasetName, name: &SnapName) {
        self.pools().clones.insert((dataset.clone(), name.clone()));
    }

    /// Makes a clone.
    pub fn clone_as(&self, of: &DatasetName, name: &SnapName, clone: &DatasetName) {
        self.create(clone);
        let mut pools = self.pools();
        pools.clones.insert((of.clone(), name.clone()));
        if let Some(inventory) = pools.datasets.get_mut(clone) {
            inventory.origin = Some(Origin { dataset: of.clone(), name: name.clone() });
        }
    }

    /// Makes a dataset encrypted, as if its snapshots had been restored into an encrypted dataset.
    pub fn encrypt(&self, dataset: &DatasetName) {
        if let Some(inventory) = self.pools().datasets.get_mut(dataset) {
            inventory.encrypted = true;
        }
    }

    /// Unloads the key of an encryption root (`zfs unload-key`), or loads it.
    pub fn set_loaded(&self, root: &DatasetName, is_loaded: bool) {
        match is_loaded {
            true => self.pools().locked.remove(root),
            false => self.pools().locked.insert(root.clone()),
        };
    }

    /// Makes a dataset use the key of a dataset above it.
    pub fn use_key_of(&self, dataset: &DatasetName, root: &DatasetName) {
        if let Some(inventory) = self.pools().datasets.get_mut(dataset) {
            inventory.key_from = Some(root.clone());
        }
    }

    /// Makes the next call that begins with `call` ("destroy", "receive -s -u tank/a", ...) fail.
    pub fn fail_next(&self, call: &str, kind: ErrorKind, words: &str) {
        let error = ZfsError { kind, ..failed(call, words) };
        self.pools().failures.push((call.to_owned(), error));
    }

    /// Makes something go wrong with the next stream whose call begins with `call` ("send", "receive", ...).
    pub fn disturb_next(&self, call: &str, fault: Fault) {
        self.pools().faults.push((call.to_owned(), fault));
    }

    /// The calls so far that change something, written like command lines.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.pools().calls.clone()
    }

    /// A dataset as it is now.
    #[must_use]
    pub fn dataset(&self, dataset: &DatasetName) -> Option<DatasetInventory> {
        self.pools().inventory(dataset)
    }

    /// How many bytes of data an interrupted or running receive has saved.
    #[must_use]
    pub fn arrived(&self, dataset: &DatasetName) -> Option<u64> {
        self.pools().partials.get(dataset).map(|partial| partial.arrived)
    }

    /// The tags on a snapshot.
    #[must_use]
    pub fn tags(&self, dataset: &DatasetName, name: &SnapName) -> Vec<String> {
        let pools = self.pools();
        pools.holds.iter().filter(|(d, n, _)| d == dataset && n == name).map(|(_, _, tag)| tag.clone()).collect()
    }

    /// Logs a call, and makes it fail if the test wants that.
    pub(super) fn call(&self, call: &str) -> Result<MutexGuard<'_, Pools>, ZfsError> {
        let mut pools = self.pools();
        pools.calls.push(call.to_owned());
        pools.fail(call).map_or(Ok(pools), Err)
    }
}

impl Pools {
    /// The failure that the test wants for this call.
    pub(super) fn fail(&mut self, call: &str) -> Option<ZfsError> {
        let at = self.failures.iter().position(|(begin, _)| call.starts_with(begin.as_str()))?;
        Some(self.failures.remove(at).1)
    }

    /// The fault that the test wants for this stream.
    pub(super) fn fault(&mut self, call: &str) -> Option<Fault> {
        let at = self.faults.iter().position(|(begin, _)| call.starts_with(begin.as_str()))?;
        Some(self.faults.remove(at).1)
    }

    /// Creates a dataset with some data in it.
    pub(super) fn create(&mut self, dataset: &DatasetName) {
        let guid = Some(self.next_guid());
        let created = DatasetInventory { guid, written: Some(1 << 20), ..DatasetInventory::default() };
        self.datasets.insert(dataset.clone(), created);
    }

    /// Creates a dataset that zsync makes only to contain others.
    pub(super) fn create_placeholder(&mut self, dataset: &DatasetName) {
        self.create(dataset);
        let made = [("canmount", "off"), ("mountpoint", "none"), (tags::PARENT, dataset.as_str())];
        let made = made.map(|(property, value)| (property.to_owned(), value.to_owned()));
        self.properties.entry(dataset.clone()).or_default().extend(made);
    }

    pub(super) fn next_guid(&mut self) -> Guid {
        self.guids += 1;
        Guid(self.guids)
    }

    pub(super) fn dataset(&self, call: &str, name: &DatasetName) -> Result<&DatasetInventory, ZfsError> {
        self.datasets.get(name).ok_or_else(|| failed(call, format!("cannot open '{name}': dataset does not exist")))
    }

    pub(super) fn dataset_mut(&mut self, call: &str, name: &DatasetName) -> Result<&mut DatasetInventory, ZfsError> {
        self.datasets.get_mut(name).ok_or_else(|| failed(call, format!("cannot open '{name}': dataset does not exist")))
    }

    /// A snapshot, which a command opens by its full name.
    pub(super) fn snapshot(&self, call: &str, dataset: &DatasetName, name: &SnapName) -> Result<&Snapshot, ZfsError> {
        let found = self.datasets.get(dataset).and_then(|found| found.snapshots.iter().find(|s| s.name == *name));
        found.ok_or_else(|| failed(call, format!("cannot open '{}': dataset does not exist", dataset.at(name))))
    }

    /// Checks that a new dataset has a pool and a parent.
    pub(super) fn parent_of_new(&self, call: &str, new: &DatasetName) -> Result<(), ZfsError> {
        let pool = new.pool();
        let why = if !self.datasets.keys().any(|name| name.pool() == pool) {
            format!("no such pool '{pool}'")
        } else if new.parent().is_some_and(|parent| !self.datasets.contains_key(&parent)) {
            "parent does not exist".to_owned()
        } else {
            return Ok(());
        };
        Err(failed(call, format!("cannot create '{new}': {why}")))
    }

    /// The key of a dataset, if it is encrypted.
    pub(super) fn key(&self, name: &DatasetName) -> Option<KeyState> {
        let found = self.datasets.get(name).filter(|found| found.encrypted)?;
        let root = found.key_from.clone().unwrap_or_else(|| name.clone());
        Some(KeyState { is_loaded: !self.locked.contains(&root), root })
    }

    /// A dataset as `zfs list` shows it.
    pub(super) fn inventory(&self, dataset: &DatasetName) -> Option<DatasetInventory> {
        let mut inventory = self.datasets.get(dataset)?.clone();
        if let Some(partial) = self.partials.get(dataset) {
            inventory.resume_token = Some(partial.token());
            if partial.creates {
                inventory.written = Some(partial.arrived);
            }
        }
        for snapshot in &mut inventory.snapshots {
            let held = self.holds.iter().filter(|(d, n, _)| d == dataset && *n == snapshot.name).count();
            snapshot.userrefs = u32::try_from(held).unwrap_or(u32::MAX);
            snapshot.has_clones = self.has_clones(dataset, &snapshot.name);
        }
        Some(inventory)
    }

    /// Removes a dataset with everything that was set on it.
    pub(super) fn remove(&mut self, dataset: &DatasetName) {
        self.properties.remove(dataset);
        if let Some(Origin { dataset, name }) = self.datasets.remove(dataset).and_then(|removed| removed.origin) {
            self.clones.remove(&(dataset, name));
        }
    }

    /// Renames a dataset with everything below it.
    pub(super) fn rename(&mut self, from: &DatasetName, to: &DatasetName) {
        let renamed = |name: DatasetName| match name.below(from) {
            Some(below) => to.join(below).unwrap_or_else(|_| to.clone()),
            None => name,
        };
        fn keys<T>(of: &mut BTreeMap<DatasetName, T>, renamed: impl Fn(DatasetName) -> DatasetName) {
            *of = std::mem::take(of).into_iter().map(|(name, value)| (renamed(name), value)).collect();
        }
        keys(&mut self.datasets, renamed);
        keys(&mut self.properties, renamed);
        keys(&mut self.partials, renamed);
        self.holds = std::mem::take(&mut self.holds).into_iter().map(|(d, n, tag)| (renamed(d), n, tag)).collect();
        self.arrived =
            std::mem::take(&mut self.arrived).into_iter().map(|((d, guid), at)| ((renamed(d), guid), at)).collect();
        self.clones = std::mem::take(&mut self.clones).into_iter().map(|(d, n)| (renamed(d), n)).collect();
        for origin in self.datasets.values_mut().filter_map(|inventory| inventory.origin.as_mut()) {
            origin.dataset = renamed(origin.dataset.clone());
        }
    }

    /// Whether a snapshot has clones. The partial state of an incremental receive is one of them (`DATASET/%recv`).
    pub(super) fn has_clones(&self, dataset: &DatasetName, name: &SnapName) -> bool {
        let is_base = || {
            let guid = self.datasets.get(dataset)?.snapshots.iter().find(|s| s.name == *name)?.guid;
            self.partials.get(dataset).filter(|partial| !partial.creates && partial.from == Some(guid))
        };
        self.clones.contains(&(dataset.clone(), name.clone())) || is_base().is_some()
    }

    /// The name of the snapshot with this guid, or of the bookmark if `bookmarks` is set, in the pool of `near`. The
    /// dataset `near` is searched first.
    pub(super) fn by_guid(&self, near: &str, guid: Guid, bookmarks: bool) -> Option<(DatasetName, SnapName)> {
        let pool = near.split(['/', '@']).next().unwrap_or_default();
        let all = || self.datasets.iter().filter(|(name, _)| name.pool() == pool);
        let first = all().filter(|(name, _)| near.split('@').next() == Some(name.as_str()));
        let of = |(name, inventory): (&DatasetName, &DatasetInventory)| {
            let snapshot = inventory.snapshots.iter().find(|s| s.guid == guid).map(|s| s.name.clone());
            let bookmark = || inventory.bookmarks.iter().find(|b| b.guid == guid).map(|b| b.name.clone());
            Some((name.clone(), snapshot.or_else(|| bookmarks.then(bookmark).flatten())?))
        };
        first.chain(all()).find_map(of)
    }

    /// How much data a stream has for a snapshot: what was written since the snapshot that the stream starts from.
    pub(super) fn length(&self, dataset: &DatasetInventory, from: Option<Guid>, to: &Snapshot) -> u64 {
        let snapshot = dataset.snapshots.iter().find(|s| Some(s.guid) == from).map(|s| s.createtxg);
        let bookmark = || dataset.bookmarks.iter().find(|b| Some(b.guid) == from).map(|b| b.createtxg);
        let after = snapshot.or_else(bookmark).unwrap_or(0);
        let newer = dataset.snapshots.iter().filter(|s| (after + 1..=to.createtxg).contains(&s.createtxg));
        newer.filter_map(|s| self.written_before.get(&s.guid)).sum::<u64>().min(LONGEST)
    }
}
