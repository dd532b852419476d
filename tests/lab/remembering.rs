//! A ZFS that remembers the last listing, and lists again only what may have changed since. This is possible because
//! nobody else changes these datasets. Listings are most of the work of a storm, and processes start slowly in emulation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use zsync::model::{Counter, DatasetInventory, DatasetName, HostListing, KeyState, SnapName};
use zsync::zfs::inspect::{ExpectedStream, Inspect};
use zsync::zfs::system::System;
use zsync::zfs::{
    Depth, Fate, History, Known, Listed, Named, ReceiveSpec, ReceiveStream, Resumable, SendSpec, SendStream, Zfs,
    ZfsError, ZfsRead,
};

/// For how long a receive that was killed may still change its dataset.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub struct Remembering {
    zfs: System,
    /// Everything that is listed is within this dataset.
    root: DatasetName,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// What was listed last.
    known: BTreeMap<DatasetName, DatasetInventory>,
    /// The datasets above the root.
    above: Vec<Listed>,
    /// Counts the changes.
    change: u64,
    /// The last change of each dataset that has not been listed since.
    changed: BTreeMap<DatasetName, u64>,
    /// The last change after which everything has to be listed.
    all_changed: Option<u64>,
    /// Datasets whose receive was killed.
    unsettled: BTreeMap<DatasetName, Instant>,
}

/// A receive that is running.
struct Receiving {
    memory: Remembering,
    spec: ReceiveSpec,
    has_ended: bool,
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.memory.received(&self.spec);
        if !self.has_ended {
            self.memory.state().unsettled.insert(self.spec.dataset.clone(), Instant::now());
        }
    }
}

impl Remembering {
    pub fn new(zfs: System, root: DatasetName) -> Self {
        let state = State { all_changed: Some(0), ..State::default() };
        Self { zfs, root, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The dataset, and everything below it, may have changed.
    pub fn changed(&self, dataset: &DatasetName) {
        let state = &mut *self.state();
        state.change += 1;
        let below = state.known.keys().filter(|name| name.is_within(dataset)).cloned();
        let change = state.change;
        state.changed.extend(below.chain([dataset.clone()]).map(|name| (name, change)));
    }

    /// Anything may have changed.
    pub fn all_changed(&self) {
        let mut state = self.state();
        state.change += 1;
        state.all_changed = Some(state.change);
    }

    fn received(&self, spec: &ReceiveSpec) {
        self.changed(&spec.dataset);
        if spec.origin.is_some() || spec.overwrite {
            self.all_changed();
        }
    }

    /// Lists what may have changed.
    async fn refresh(&self) -> Result<(), ZfsError> {
        let (at, all, changed) = {
            let state = &mut *self.state();
            state.unsettled.retain(|_, since| since.elapsed() < SETTLES_WITHIN);
            let (change, unsettled) = (state.change, state.unsettled.keys().cloned());
            state.changed.extend(unsettled.map(|name| (name, change)));
            (state.change, state.all_changed.is_some(), state.changed.keys().cloned().collect::<Vec<_>>())
        };
        if all {
            let above: Vec<DatasetName> = self.root.ancestors().collect();
            let listed = self.zfs.list(std::slice::from_ref(&self.root), Depth::Recursive).await?;
            let above = self.zfs.list(&above, Depth::Bare).await?;
            let state = &mut *self.state();
            // Otherwise, somebody else has listed a later state meanwhile, or it has to be listed again.
            if state.all_changed.is_some_and(|change| change <= at) {
                (state.known, state.above, state.all_changed) = (listed.into_iter().collect(), above, None);
                state.changed.retain(|_, change| *change > at);
            }
        } else if !changed.is_empty() {
            let listed = self.zfs.list(&changed, Depth::Around).await?;
            let mut listed: BTreeMap<DatasetName, DatasetInventory> = listed.into_iter().collect();
            let state = &mut *self.state();
            for name in changed {
                if state.changed.get(&name).is_some_and(|change| *change <= at) {
                    state.changed.remove(&name);
                    match listed.remove(&name) {
                        Some(found) => state.known.insert(name, found),
                        None => state.known.remove(&name),
                    };
                }
            }
        }
        Ok(())
    }

    /// Compares what is remembered with a listing of everything.
    pub async fn verify(&self) {
        self.refresh().await.unwrap();
        let listed = self.zfs.list(std::slice::from_ref(&self.root), Depth::Recursive).await.unwrap();
        let state = self.state();
        if state.unsettled.is_empty() {
            let listed: BTreeMap<DatasetName, DatasetInventory> = listed.into_iter().collect();
            assert_eq!(state.known, listed, "the memory of {} is wrong", self.root);
        }
    }
}

impl ZfsRead for Remembering {
    async fn list(&self, roots: &[DatasetName], depth: Depth) -> Result<Vec<Listed>, ZfsError> {
        if roots.iter().any(|root| !root.is_within(&self.root) && *root != self.root && depth != Depth::Bare) {
            return self.zfs.list(roots, depth).await;
        }
        self.refresh().await?;
        let state = self.state();
        let bare = |found: &DatasetInventory| DatasetInventory {
            snapshots: Vec::new(),
            bookmarks: Vec::new(),
            ..found.clone()
        };
        let above = state.above.iter().map(|(name, found)| (name, found));
        let listed = above.chain(&state.known).filter_map(|(name, found)| {
            let is_root = roots.contains(name);
            let found = match depth {
                Depth::Recursive if is_root || roots.iter().any(|root| name.is_within(root)) => found.clone(),
                Depth::Only | Depth::Around if is_root => found.clone(),
                Depth::Around if roots.iter().any(|root| root.is_within(name)) => bare(found),
                Depth::Bare if is_root => bare(found),
                _ => return None,
            };
            Some((name.clone(), found))
        });
        Ok(listed.collect())
    }

    async fn list_pools(&self, roots: &[DatasetName], known: &Known) -> Result<HostListing, ZfsError> {
        self.zfs.list_pools(roots, known).await
    }

    async fn snapshots(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        let listed = self.list(std::slice::from_ref(dataset), Depth::Only).await?;
        Ok(listed.into_iter().next().map(|(_, found)| (found.snapshots, found.bookmarks)))
    }

    async fn cloned(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<SnapName>, ZfsError> {
        self.zfs.cloned(dataset, names).await
    }

    async fn holds(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<(SnapName, String)>, ZfsError> {
        self.zfs.holds(dataset, names).await
    }

    async fn written_since(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, u64)>, ZfsError> {
        self.zfs.written_since(datasets, name).await
    }

    async fn resumable(&self, token: &str) -> Result<Resumable, ZfsError> {
        self.zfs.resumable(token).await
    }

    async fn properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, String>, ZfsError> {
        self.zfs.properties(dataset).await
    }

    async fn arrivals(&self, dataset: &DatasetName) -> Result<BTreeMap<SnapName, String>, ZfsError> {
        self.zfs.arrivals(dataset).await
    }

    async fn key_users(&self, root: &DatasetName) -> Result<Vec<DatasetName>, ZfsError> {
        self.zfs.key_users(root).await
    }

    async fn keys(&self, root: &DatasetName) -> Result<BTreeMap<DatasetName, KeyState>, ZfsError> {
        self.zfs.keys(root).await
    }

    async fn size_of_send(&self, spec: &SendSpec) -> Result<Option<u64>, ZfsError> {
        self.zfs.size_of_send(spec).await
    }

    async fn size_of_destroy(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Option<u64>, ZfsError> {
        self.zfs.size_of_destroy(dataset, names).await
    }

    async fn check_version(&self) -> Result<String, ZfsError> {
        self.zfs.check_version().await
    }
}

impl Zfs for Remembering {
    async fn snapshot(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, History)>, ZfsError> {
        let done = self.zfs.snapshot(datasets, name).await;
        datasets.iter().for_each(|dataset| self.changed(dataset));
        done
    }

    async fn sync(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        self.zfs.sync(dataset).await
    }

    async fn destroy(
        &self,
        dataset: &DatasetName,
        victims: &[Named],
        guards: &[Named],
        all: bool,
    ) -> Result<Vec<Fate>, ZfsError> {
        let done = self.zfs.destroy(dataset, victims, guards, all).await;
        self.changed(dataset);
        done
    }

    async fn hold(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        let done = self.zfs.hold(tag, dataset, names).await;
        self.changed(dataset);
        done
    }

    async fn release(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        let done = self.zfs.release(tag, dataset, names).await;
        self.changed(dataset);
        done
    }

    async fn bookmark(&self, dataset: &DatasetName, snapshot: &Named, bookmark: &SnapName) -> Result<(), ZfsError> {
        let done = self.zfs.bookmark(dataset, snapshot, bookmark).await;
        self.changed(dataset);
        done
    }

    async fn destroy_bookmark(&self, dataset: &DatasetName, bookmark: &SnapName) -> Result<(), ZfsError> {
        let done = self.zfs.destroy_bookmark(dataset, bookmark).await;
        self.changed(dataset);
        done
    }

    async fn rollback(&self, dataset: &DatasetName, to: &SnapName) -> Result<(), ZfsError> {
        let done = self.zfs.rollback(dataset, to).await;
        self.changed(dataset);
        done
    }

    async fn abort_receive(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        let done = self.zfs.abort_receive(dataset).await;
        self.all_changed();
        done
    }

    async fn create_ancestors(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        let known = self.list(&dataset.ancestors().collect::<Vec<_>>(), Depth::Bare).await?;
        if known.len() == dataset.ancestors().count() {
            return Ok(());
        }
        let done = self.zfs.create_ancestors(dataset).await;
        self.all_changed();
        done
    }

    async fn rename(&self, dataset: &DatasetName, to: &DatasetName) -> Result<(), ZfsError> {
        let done = self.zfs.rename(dataset, to).await;
        self.all_changed();
        done
    }

    async fn make_clone(
        &self,
        dataset: &DatasetName,
        of: &SnapName,
        clone: &DatasetName,
        properties: &[(&str, &str)],
    ) -> Result<(), ZfsError> {
        let done = self.zfs.make_clone(dataset, of, clone, properties).await;
        self.all_changed();
        done
    }

    async fn destroy_clone(&self, clone: &DatasetName) -> Result<(), ZfsError> {
        let done = self.zfs.destroy_clone(clone).await;
        self.all_changed();
        done
    }

    async fn set(&self, dataset: &DatasetName, property: &str, value: &str) -> Result<(), ZfsError> {
        let done = self.zfs.set(dataset, property, value).await;
        self.changed(dataset);
        done
    }

    async fn inherit(&self, dataset: &DatasetName, property: &str) -> Result<(), ZfsError> {
        let done = self.zfs.inherit(dataset, property).await;
        self.changed(dataset);
        done
    }

    async fn inherit_key(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        let done = self.zfs.inherit_key(dataset).await;
        self.changed(dataset);
        done
    }

    async fn mount(&self, dataset: &DatasetName) -> Result<(), ZfsError> {
        self.zfs.mount(dataset).await
    }

    async fn set_arrivals(&self, dataset: &DatasetName, names: &[SnapName], value: &str) -> Result<(), ZfsError> {
        self.zfs.set_arrivals(dataset, names, value).await
    }

    async fn send(&self, spec: &SendSpec) -> Result<SendStream, ZfsError> {
        self.zfs.send(spec).await
    }

    async fn receive(&self, spec: &ReceiveSpec) -> Result<ReceiveStream, ZfsError> {
        self.received(spec);
        let ReceiveStream { data, end } = self.zfs.receive(spec).await?;
        let mut receiving = Receiving { memory: self.clone(), spec: spec.clone(), has_ended: false };
        let end = Box::pin(async move {
            let done = end.await;
            receiving.has_ended = true;
            drop(receiving);
            done
        });
        Ok(ReceiveStream { data, end })
    }

    fn inspector(&self, expected: ExpectedStream) -> Box<dyn Inspect> {
        self.zfs.inspector(expected)
    }

    async fn copy(
        &self,
        send: &SendSpec,
        receive: &ReceiveSpec,
        counter: &Counter,
        stall: Duration,
    ) -> Result<(), ZfsError> {
        self.received(receive);
        let mut receiving = Receiving { memory: self.clone(), spec: receive.clone(), has_ended: false };
        let done = self.zfs.copy(send, receive, counter, stall).await;
        receiving.has_ended = done.is_ok();
        done
    }
}
