//! Pools in memory with ZFS' rules, a log of what was asked, and errors on demand: for tests of the roles together.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_lite::io::{AsyncWrite, Cursor};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use serde::{Deserialize, Serialize};

use super::{
    Depth, ErrorKind, Listed, ReceiveSpec, ReceiveStream, Resumable, SendFrom, SendSpec, SendStream, Zfs, ZfsError,
    ZfsRead,
};
use crate::model::{Bookmark, Counter, DatasetInventory, DatasetKind, DatasetName, Guid, Marks, SnapName, Snapshot};

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
    txg: u64,
    guids: u64,
    now: DateTime<Utc>,
    calls: Vec<String>,
    failures: Vec<(String, ZfsError)>,
}

/// What a fake stream says: the snapshots that it brings and what they build on.
#[derive(Serialize, Deserialize)]
struct Stream {
    kind: DatasetKind,
    base: Option<Guid>,
    snapshots: Vec<Snapshot>,
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Gives a snapshot a clone.
    pub fn clone_of(&self, dataset: &DatasetName, name: &SnapName) {
        self.state().clones.insert((dataset.clone(), name.clone()));
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

    fn stream_of(&self, spec: &SendSpec, call: &str) -> Result<Stream, ZfsError> {
        let state = self.call(call)?;
        let SendSpec::Snapshot { dataset, to, from, .. } = spec else {
            return Err(error(ErrorKind::StaleToken, call, "cannot resume send: the fake makes no tokens"));
        };
        let inventory = state.dataset(call, dataset)?;
        let position = |name: &SnapName| inventory.snapshots.iter().position(|s| s.name == *name);
        let missing = || error(ErrorKind::NotFound, call, "snapshot does not exist");
        let to = position(to).ok_or_else(missing)?;
        let (base, first) = match from {
            SendFrom::Nothing => (None, to),
            SendFrom::Snapshot(name) => {
                let base = position(name).ok_or_else(missing)?;
                (Some(inventory.snapshots[base].guid), base + 1)
            }
            SendFrom::Bookmark(name) => {
                let base = inventory.bookmarks.iter().find(|b| b.name == *name).ok_or_else(missing)?;
                (Some(base.guid), to)
            }
        };
        Ok(Stream { kind: inventory.kind, base, snapshots: inventory.snapshots[first..=to].to_vec() })
    }

    fn apply(&self, spec: &ReceiveSpec, stream: Stream, call: &str) -> Result<(), ZfsError> {
        let mut state = self.call(call)?;
        let existing = state.datasets.get(&spec.dataset);
        match (stream.base, existing) {
            (None, Some(existing)) if !(spec.overwrite && existing.snapshots.is_empty()) => {
                return Err(error(ErrorKind::Exists, call, "destination exists, must specify -F to overwrite it"));
            }
            (Some(_), None) => return Err(error(ErrorKind::NotFound, call, "destination does not exist")),
            (Some(base), Some(existing)) => {
                let fits = existing.newest().is_some_and(|newest| newest.guid == base);
                if !fits || existing.written.unwrap_or(0) > 0 {
                    let words = "destination has been modified since most recent snapshot";
                    return Err(error(ErrorKind::Modified, call, words));
                }
            }
            (None, _) => {
                if spec.dataset.parent().is_some_and(|parent| !state.datasets.contains_key(&parent)) {
                    return Err(error(ErrorKind::NotFound, call, "parent does not exist"));
                }
            }
        }
        state.guids += 1;
        let own = Guid(state.guids);
        let mut txg = state.txg;
        let inventory = state.datasets.entry(spec.dataset.clone()).or_default();
        inventory.guid.get_or_insert(own);
        inventory.kind = stream.kind;
        inventory.written = Some(0);
        for mut snapshot in stream.snapshots {
            txg += 1;
            snapshot.createtxg = txg;
            snapshot.userrefs = 0;
            snapshot.marks = Marks::default();
            inventory.snapshots.push(snapshot);
        }
        state.txg = txg;
        Ok(())
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
            roots.iter().any(|root| name == root || depth == Depth::Recursive && name.is_within(root))
        };
        let mut listed = Vec::new();
        for (name, inventory) in state.datasets.iter().filter(|(name, _)| wanted(name)) {
            let mut inventory = inventory.clone();
            for snapshot in &mut inventory.snapshots {
                let held = state.holds.iter().filter(|(d, n, _)| d == name && *n == snapshot.name).count();
                snapshot.userrefs = u32::try_from(held).unwrap_or(u32::MAX);
            }
            listed.push((name.clone(), inventory));
        }
        Ok(listed)
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

    async fn size_of_send(&self, spec: &SendSpec) -> Result<Option<u64>, ZfsError> {
        let SendSpec::Snapshot { dataset, to, from, .. } = spec else { return Ok(None) };
        let call = "send -nP";
        let state = self.state();
        let inventory = state.dataset(call, dataset)?;
        let place = |name: &SnapName| inventory.snapshots.iter().position(|s| s.name == *name);
        let last = place(to).ok_or_else(|| error(ErrorKind::NotFound, call, "snapshot does not exist"))?;
        let first = match from {
            SendFrom::Nothing => 0,
            SendFrom::Snapshot(base) => place(base).map_or(0, |at| at + 1),
            SendFrom::Bookmark(_) => return Ok(None),
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
    ) -> Result<Vec<(DatasetName, Snapshot)>, ZfsError> {
        let full: Vec<String> = datasets.iter().map(|d| d.at(name)).collect();
        let call = format!("snapshot {}", full.join(" "));
        let mut state = self.call(&call)?;
        for dataset in datasets {
            if state.dataset(&call, dataset)?.snapshots.iter().any(|s| s.name == *name) {
                return Err(error(ErrorKind::Exists, &call, "dataset already exists"));
            }
        }
        state.txg += 1;
        let mut taken = Vec::new();
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
            inventory.snapshots.push(snapshot.clone());
            let written = inventory.written.replace(0).unwrap_or(0);
            state.written_before.insert(snapshot.guid, written);
            taken.push((dataset.clone(), snapshot));
        }
        Ok(taken)
    }

    async fn sync(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        self.call(&format!("sync {}", dataset.pool())).map(drop)
    }

    async fn destroy(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        let list: Vec<&str> = names.iter().map(SnapName::as_str).collect();
        let call = format!("destroy {dataset}@{}", list.join(","));
        let mut state = self.call(&call)?;
        for name in names {
            if state.holds.iter().any(|(d, n, _)| d == dataset && n == name) {
                return Err(error(ErrorKind::Busy, &call, "dataset is busy"));
            }
            if state.clones.contains(&(dataset.clone(), name.clone())) {
                return Err(error(ErrorKind::HasClones, &call, "snapshot has dependent clones"));
            }
        }
        state.dataset_mut(&call, dataset)?.snapshots.retain(|s| !names.contains(&s.name));
        Ok(())
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

    async fn bookmark(&self, dataset: &DatasetName, snapshot: &SnapName, bookmark: &SnapName) -> Result<(), ZfsError> {
        let call = format!("bookmark {dataset}@{snapshot} {dataset}#{bookmark}");
        let mut state = self.call(&call)?;
        let inventory = state.dataset_mut(&call, dataset)?;
        if inventory.bookmarks.iter().any(|b| b.name == *bookmark) {
            return Ok(());
        }
        let Some(of) = inventory.snapshots.iter().find(|s| s.name == *snapshot) else {
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

    async fn send(&self, spec: &SendSpec) -> Result<SendStream, ZfsError> {
        let call = super::argv::send(spec).join(" ");
        let stream = self.stream_of(spec, &call)?;
        let bytes = serde_json::to_vec(&stream).map_err(|e| error(ErrorKind::Other, &call, e.to_string()))?;
        Ok(SendStream { data: Box::new(Cursor::new(bytes)), end: Box::pin(async { Ok(()) }) })
    }

    async fn receive(&self, spec: &ReceiveSpec) -> Result<ReceiveStream, ZfsError> {
        let gathered = Gathered::default();
        let (this, spec, data) = (self.clone(), spec.clone(), gathered.clone());
        let end = async move {
            let call = super::argv::receive(&spec).join(" ");
            let bytes = std::mem::take(&mut *data.0.lock().unwrap_or_else(PoisonError::into_inner));
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

/// The input of a fake receive.
#[derive(Clone, Default)]
struct Gathered(Arc<Mutex<Vec<u8>>>);

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
