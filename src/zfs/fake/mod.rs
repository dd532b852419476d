//! Pools in memory with ZFS' rules, a log of what was asked, and errors on demand: for tests of the roles together.

mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::zfs::fake::stream::Gathered;
use chrono::{DateTime, Utc};
use futures_lite::io::Cursor;
use futures_lite::{AsyncReadExt, AsyncWriteExt};

use crate::model::tags;
use crate::model::{Bookmark, Counter, DatasetInventory, DatasetName, Guid, Marks, Origin, SnapName, Snapshot};
use crate::zfs::{
    Depth, ErrorKind, Fate, History, Listed, Named, ReceiveSpec, ReceiveStream, Resumable, SendFrom, SendSpec,
    SendStream, Zfs, ZfsError, ZfsRead,
};

/// A machine's pools, shared by its clones.
#[derive(Clone, Default)]
pub struct Fake {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    datasets: BTreeMap<DatasetName, DatasetInventory>,
    holds: BTreeSet<(DatasetName, SnapName, String)>,
    clones: BTreeSet<(DatasetName, SnapName)>,
    /// Bytes written between a snapshot and the one before it.
    written_before: BTreeMap<Guid, u64>,
    properties: BTreeMap<DatasetName, BTreeMap<String, String>>,
    txg: u64,
    guids: u64,
    now: DateTime<Utc>,
    calls: Vec<String>,
    failures: Vec<(String, ZfsError)>,
}

fn error(kind: ErrorKind, call: &str, words: impl Into<String>) -> ZfsError {
    ZfsError { kind, command: format!("zfs {call}"), status: "exit status 1".into(), stderr: words.into() }
}

impl Fake {
    /// A machine without datasets, whose snapshots get guids of their own from `seed` on.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let fake = Self::default();
        fake.state().guids = seed.wrapping_mul(1_000_000);
        fake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Creates a dataset (and nothing above it) with some data in it.
    pub fn create(&self, dataset: &DatasetName) {
        let mut state = self.state();
        state.guids += 1;
        let guid = Some(Guid(state.guids));
        state
            .datasets
            .insert(dataset.clone(), DatasetInventory { guid, written: Some(1 << 20), ..DatasetInventory::default() });
    }

    /// Writes to a dataset.
    pub fn write(&self, dataset: &DatasetName, bytes: u64) {
        if let Some(inventory) = self.state().datasets.get_mut(dataset) {
            inventory.written = Some(inventory.written.unwrap_or(0) + bytes);
        }
    }

    /// Sets the time at which the next snapshots are taken.
    pub fn set_now(&self, now: DateTime<Utc>) {
        self.state().now = now;
    }

    /// Destroys snapshots as an administrator does it by hand.
    pub fn destroy_by_hand(&self, dataset: &DatasetName, names: &[SnapName]) {
        if let Some(inventory) = self.state().datasets.get_mut(dataset) {
            inventory.snapshots.retain(|s| !names.contains(&s.name));
        }
    }

    /// Gives a snapshot a clone.
    pub fn clone_of(&self, dataset: &DatasetName, name: &SnapName) {
        self.state().clones.insert((dataset.clone(), name.clone()));
    }

    /// Makes a clone.
    pub fn clone_as(&self, of: &DatasetName, name: &SnapName, clone: &DatasetName) {
        self.create(clone);
        let mut state = self.state();
        state.clones.insert((of.clone(), name.clone()));
        if let Some(inventory) = state.datasets.get_mut(clone) {
            inventory.origin = Some(Origin { dataset: of.clone(), name: name.clone() });
        }
    }

    /// Stands in for a dataset that was restored, with its snapshots, into an encrypted one.
    pub fn encrypt(&self, dataset: &DatasetName) {
        if let Some(inventory) = self.state().datasets.get_mut(dataset) {
            inventory.encrypted = true;
        }
    }

    /// Makes the next call that begins with `call` ("destroy", "receive tank/a", ...) fail.
    pub fn fail_next(&self, call: &str, kind: ErrorKind, words: &str) {
        self.state().failures.push((call.to_owned(), error(kind, call, words)));
    }

    /// What was asked so far, changes only, in words like those of the command.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// A dataset as it is now.
    #[must_use]
    pub fn dataset(&self, dataset: &DatasetName) -> Option<DatasetInventory> {
        self.state().datasets.get(dataset).cloned()
    }

    /// The tags on a snapshot.
    #[must_use]
    pub fn tags(&self, dataset: &DatasetName, name: &SnapName) -> Vec<String> {
        let state = self.state();
        state.holds.iter().filter(|(d, n, _)| d == dataset && n == name).map(|(_, _, tag)| tag.clone()).collect()
    }

    /// Logs a call and fails it if that was asked for.
    fn call(&self, call: &str) -> Result<MutexGuard<'_, State>, ZfsError> {
        let mut state = self.state();
        state.calls.push(call.to_owned());
        match state.failures.iter().position(|(begin, _)| call.starts_with(begin.as_str())) {
            Some(index) => Err(state.failures.remove(index).1),
            None => Ok(state),
        }
    }
}

impl State {
    fn dataset(&self, call: &str, name: &DatasetName) -> Result<&DatasetInventory, ZfsError> {
        self.datasets
            .get(name)
            .ok_or_else(|| error(ErrorKind::NotFound, call, format!("cannot open '{name}': dataset does not exist")))
    }

    fn dataset_mut(&mut self, call: &str, name: &DatasetName) -> Result<&mut DatasetInventory, ZfsError> {
        self.datasets
            .get_mut(name)
            .ok_or_else(|| error(ErrorKind::NotFound, call, format!("cannot open '{name}': dataset does not exist")))
    }
}

impl ZfsRead for Fake {
    async fn list(&self, roots: &[DatasetName], depth: Depth) -> Result<Vec<Listed>, ZfsError> {
        let mut state = self.state();
        if let Some(index) = state.failures.iter().position(|(begin, _)| begin == "list") {
            return Err(state.failures.remove(index).1);
        }
        let wanted = |name: &DatasetName| {
            roots.iter().any(|root| match depth {
                Depth::Recursive => name.is_within(root),
                Depth::Around => root.is_within(name),
                Depth::Only | Depth::Bare => name == root,
            })
        };
        let mut listed = Vec::new();
        for (name, inventory) in state.datasets.iter().filter(|(name, _)| wanted(name)) {
            let mut inventory = inventory.clone();
            for snapshot in &mut inventory.snapshots {
                let held = state.holds.iter().filter(|(d, n, _)| d == name && *n == snapshot.name).count();
                snapshot.userrefs = u32::try_from(held).unwrap_or(u32::MAX);
            }
            if depth == Depth::Bare || !roots.contains(name) && depth == Depth::Around {
                inventory.snapshots.clear();
                inventory.bookmarks.clear();
            }
            listed.push((name.clone(), inventory));
        }
        Ok(listed)
    }

    async fn snapshots(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        let listed = self.list(std::slice::from_ref(dataset), Depth::Only).await?;
        Ok(listed.into_iter().next().map(|(_, found)| (found.snapshots, found.bookmarks)))
    }

    async fn cloned(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<SnapName>, ZfsError> {
        let state = self.state();
        Ok(names.iter().filter(|name| state.clones.contains(&(dataset.clone(), (*name).clone()))).cloned().collect())
    }

    async fn written_since(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, u64)>, ZfsError> {
        let state = self.state();
        let mut all = Vec::new();
        for dataset in datasets {
            let inventory = state.dataset("get written@", dataset)?;
            let newer = inventory.snapshots.iter().skip_while(|s| s.name != *name).skip(1);
            let between: u64 = newer.filter_map(|s| state.written_before.get(&s.guid)).sum();
            all.push((dataset.clone(), between + inventory.written.unwrap_or(0)));
        }
        Ok(all)
    }

    async fn resumable(&self, token: &str) -> Result<Resumable, ZfsError> {
        Err(error(ErrorKind::StaleToken, &format!("send -t {token}"), "cannot resume send: the fake makes no tokens"))
    }

    async fn properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, String>, ZfsError> {
        Ok(self.state().properties.get(dataset).cloned().unwrap_or_default())
    }

    async fn size_of_send(&self, spec: &SendSpec) -> Result<Option<u64>, ZfsError> {
        let SendSpec::Snapshot { dataset, to, from, .. } = spec else { return Ok(None) };
        let call = "send -nP";
        let state = self.state();
        let inventory = state.dataset(call, dataset)?;
        let place = |name: &SnapName| inventory.snapshots.iter().position(|s| s.name == *name);
        let last = place(to).ok_or_else(|| error(ErrorKind::NotFound, call, "snapshot does not exist"))?;
        let first = match from {
            SendFrom::Nothing => 0,
            SendFrom::Snapshot(base) | SendFrom::Before(base) => place(base).map_or(0, |at| at + 1),
            SendFrom::Bookmark(_) | SendFrom::Origin(..) => return Ok(None),
        };
        let written = inventory.snapshots[first..=last].iter().filter_map(|s| state.written_before.get(&s.guid));
        Ok(Some(written.sum()))
    }

    async fn size_of_destroy(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Option<u64>, ZfsError> {
        let state = self.state();
        let inventory = state.dataset("destroy -nvp", dataset)?;
        let going = inventory.snapshots.iter().filter(|s| names.contains(&s.name));
        Ok(Some(going.filter_map(|s| state.written_before.get(&s.guid)).sum()))
    }

    async fn check_version(&self) -> Result<String, ZfsError> {
        Ok("zfs-fake".into())
    }
}

impl Zfs for Fake {
    async fn snapshot(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, History)>, ZfsError> {
        let full: Vec<String> = datasets.iter().map(|d| d.at(name)).collect();
        let call = format!("snapshot {}", full.join(" "));
        let mut state = self.call(&call)?;
        for dataset in datasets {
            if state.dataset(&call, dataset)?.snapshots.iter().any(|s| s.name == *name) {
                return Err(error(ErrorKind::Exists, &call, "dataset already exists"));
            }
        }
        state.txg += 1;
        let mut histories = Vec::new();
        for dataset in datasets {
            state.guids += 1;
            let snapshot = Snapshot {
                name: name.clone(),
                guid: Guid(state.guids),
                createtxg: state.txg,
                creation: state.now,
                userrefs: 0,
                has_clones: false,
                used: 0,
                marks: Marks::default(),
            };
            let inventory = state.dataset_mut(&call, dataset)?;
            let guid = snapshot.guid;
            inventory.snapshots.push(snapshot);
            histories.push((dataset.clone(), (inventory.snapshots.clone(), inventory.bookmarks.clone())));
            let written = inventory.written.replace(0).unwrap_or(0);
            state.written_before.insert(guid, written);
        }
        Ok(histories)
    }

    async fn sync(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        self.call(&format!("sync {}", dataset.pool())).map(drop)
    }

    async fn destroy(
        &self,
        dataset: &DatasetName,
        victims: &[Named],
        guards: &[Named],
        all: bool,
    ) -> Result<Vec<Fate>, ZfsError> {
        let list: Vec<&str> = victims.iter().map(|v| v.name.as_str()).collect();
        let call = format!("destroy {dataset}@{}", list.join(","));
        let mut state = self.call(&call)?;
        let there = state.dataset(&call, dataset)?.snapshots.clone();
        if !guards.iter().all(|g| there.iter().any(|s| s.name == g.name && s.guid == g.guid)) {
            return Ok(vec![Fate::Spared; victims.len()]);
        }
        let fate = |victim: &Named| match there.iter().find(|s| s.name == victim.name) {
            None => Fate::Gone,
            Some(found) if found.guid != victim.guid => Fate::Another,
            Some(_) if state.holds.iter().any(|(d, n, _)| d == dataset && *n == victim.name) => Fate::Held,
            Some(_) if state.clones.contains(&(dataset.clone(), victim.name.clone())) => Fate::Cloned,
            Some(_) => Fate::Destroyed,
        };
        let fates: Vec<Fate> = victims.iter().map(fate).collect();
        if all && fates.iter().any(|fate| !matches!(fate, Fate::Destroyed | Fate::Gone)) {
            let spared = |fate| if fate == Fate::Destroyed { Fate::Spared } else { fate };
            return Ok(fates.into_iter().map(spared).collect());
        }
        let is_doomed =
            |s: &Snapshot| victims.iter().zip(&fates).any(|(v, f)| *f == Fate::Destroyed && v.guid == s.guid);
        state.dataset_mut(&call, dataset)?.snapshots.retain(|s| !is_doomed(s));
        Ok(fates)
    }

    async fn hold(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        for name in names {
            let call = format!("hold {tag} {dataset}@{name}");
            let mut state = self.call(&call)?;
            if !state.dataset(&call, dataset)?.snapshots.iter().any(|s| s.name == *name) {
                return Err(error(ErrorKind::NotFound, &call, "dataset does not exist"));
            }
            state.holds.insert((dataset.clone(), name.clone(), tag.to_owned()));
        }
        Ok(())
    }

    async fn release(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        for name in names {
            self.call(&format!("release {tag} {dataset}@{name}"))?.holds.remove(&(
                dataset.clone(),
                name.clone(),
                tag.to_owned(),
            ));
        }
        Ok(())
    }

    async fn holds(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<(SnapName, String)>, ZfsError> {
        let state = self.state();
        let on = |(d, n, _): &&(DatasetName, SnapName, String)| d == dataset && names.contains(n);
        Ok(state.holds.iter().filter(on).map(|(_, name, tag)| (name.clone(), tag.clone())).collect())
    }

    async fn bookmark(&self, dataset: &DatasetName, snapshot: &Named, bookmark: &SnapName) -> Result<(), ZfsError> {
        let call = format!("bookmark {dataset}@{} {dataset}#{bookmark}", snapshot.name);
        let mut state = self.call(&call)?;
        let inventory = state.dataset_mut(&call, dataset)?;
        match inventory.bookmarks.iter().find(|b| b.name == *bookmark) {
            Some(same) if same.guid == snapshot.guid => return Ok(()),
            Some(_) => return Err(error(ErrorKind::Exists, &call, "bookmark exists")),
            None => {}
        }
        let Some(of) = inventory.snapshots.iter().find(|s| s.name == snapshot.name) else {
            return Err(error(ErrorKind::NotFound, &call, "dataset does not exist"));
        };
        let made = Bookmark { name: bookmark.clone(), guid: of.guid, createtxg: of.createtxg, creation: of.creation };
        inventory.bookmarks.push(made);
        inventory.sort();
        Ok(())
    }

    async fn destroy_bookmark(&self, dataset: &DatasetName, bookmark: &SnapName) -> Result<(), ZfsError> {
        let call = format!("destroy {dataset}#{bookmark}");
        self.call(&call)?.dataset_mut(&call, dataset)?.bookmarks.retain(|b| b.name != *bookmark);
        Ok(())
    }

    async fn rollback(&self, dataset: &DatasetName, to: &SnapName) -> Result<(), ZfsError> {
        let call = format!("rollback {dataset}@{to}");
        let mut state = self.call(&call)?;
        let inventory = state.dataset_mut(&call, dataset)?;
        if inventory.newest().is_none_or(|newest| newest.name != *to) {
            return Err(error(ErrorKind::Exists, &call, "more recent snapshots or bookmarks exist"));
        }
        inventory.written = Some(0);
        Ok(())
    }

    async fn abort_receive(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        if let Some(inventory) = self.call(&format!("receive -A {dataset}"))?.datasets.get_mut(dataset) {
            inventory.resume_token = None;
        }
        Ok(())
    }

    async fn create_ancestors(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        let mut ancestor = dataset.parent();
        while let Some(name) = ancestor {
            if self.dataset(&name).is_none() {
                drop(self.call(&format!("create {name}"))?);
                self.create(&name);
            }
            ancestor = name.parent();
        }
        Ok(())
    }

    async fn rename(&self, dataset: &DatasetName, to: &DatasetName) -> Result<(), ZfsError> {
        let call = format!("rename {dataset} {to}");
        let mut state = self.call(&call)?;
        state.dataset(&call, dataset)?;
        if state.datasets.contains_key(to) {
            return Err(error(ErrorKind::Exists, &call, "dataset already exists"));
        }
        let moved = |name: &DatasetName| name.below(dataset).map(|below| to.join(below).unwrap_or_else(|_| to.clone()));
        state.datasets =
            std::mem::take(&mut state.datasets).into_iter().map(|(n, i)| (moved(&n).unwrap_or(n), i)).collect();
        state.properties =
            std::mem::take(&mut state.properties).into_iter().map(|(n, p)| (moved(&n).unwrap_or(n), p)).collect();
        state.holds =
            std::mem::take(&mut state.holds).into_iter().map(|(d, n, t)| (moved(&d).unwrap_or(d), n, t)).collect();
        Ok(())
    }

    async fn make_clone(
        &self,
        dataset: &DatasetName,
        of: &SnapName,
        clone: &DatasetName,
        properties: &[(&str, &str)],
    ) -> Result<(), ZfsError> {
        let call = format!("clone {} {clone}", dataset.at(of));
        let exists = self.call(&call)?.datasets.contains_key(clone);
        if exists {
            return Err(error(ErrorKind::Exists, &call, "dataset already exists"));
        }
        self.clone_as(dataset, of, clone);
        for (property, value) in properties {
            self.set(clone, property, value).await?;
        }
        Ok(())
    }

    async fn destroy_clone(&self, clone: &DatasetName) -> Result<(), ZfsError> {
        let call = format!("destroy {clone}");
        let mut state = self.call(&call)?;
        if !state.dataset(&call, clone)?.snapshots.is_empty() {
            return Err(error(ErrorKind::Other, &call, "filesystem has children"));
        }
        state.properties.remove(clone);
        if let Some(origin) = state.datasets.remove(clone).and_then(|gone| gone.origin) {
            state.clones.remove(&(origin.dataset, origin.name));
        }
        Ok(())
    }

    async fn set(&self, dataset: &DatasetName, property: &str, value: &str) -> Result<(), ZfsError> {
        let call = format!("set {property}={value} {dataset}");
        let mut state = self.call(&call)?;
        let inventory = state.dataset_mut(&call, dataset)?;
        match property {
            tags::FLAGS => inventory.flags = value.split(' ').next().and_then(|flags| flags.parse().ok()),
            tags::EXCLUDE => inventory.excluded = value == "on",
            _ => {}
        }
        state.properties.entry(dataset.clone()).or_default().insert(property.to_owned(), value.to_owned());
        Ok(())
    }

    async fn send(&self, spec: &SendSpec) -> Result<SendStream, ZfsError> {
        let call = crate::zfs::argv::send(spec).join(" ");
        let stream = self.stream_of(spec, &call)?;
        let bytes = serde_json::to_vec(&stream).map_err(|e| error(ErrorKind::Other, &call, e.to_string()))?;
        Ok(SendStream { data: Box::new(Cursor::new(bytes)), end: Box::pin(async { Ok(()) }) })
    }

    async fn receive(&self, spec: &ReceiveSpec) -> Result<ReceiveStream, ZfsError> {
        let gathered = Gathered::default();
        let (this, spec, data) = (self.clone(), spec.clone(), gathered.clone());
        let end = async move {
            let call = crate::zfs::argv::receive(&spec).join(" ");
            let bytes = data.take();
            let stream = serde_json::from_slice(&bytes)
                .map_err(|_| error(ErrorKind::Stream, &call, "cannot receive: incomplete stream"))?;
            this.apply(&spec, stream, &call)
        };
        Ok(ReceiveStream { data: Box::new(gathered), end: Box::pin(end) })
    }

    async fn copy(
        &self,
        send: &SendSpec,
        receive: &ReceiveSpec,
        counter: &Counter,
        _: Duration,
    ) -> Result<(), ZfsError> {
        let (mut from, mut to) = (self.send(send).await?, self.receive(receive).await?);
        let mut bytes = Vec::new();
        let moved = async {
            from.data.read_to_end(&mut bytes).await?;
            to.data.write_all(&bytes).await
        };
        moved.await.map_err(|e: io::Error| error(ErrorKind::Stream, "send", e.to_string()))?;
        counter.add(bytes.len() as u64);
        from.end.await?;
        to.end.await
    }
}
