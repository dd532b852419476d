//! A catalog in memory, for one process: it forgets everything at its end, and can be told to fail.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{CatalogError, CatalogRead, CatalogWrite, Destroyed, Estimated, MAX_DESTROYED, MAX_OUTCOMES, Outcome};
use crate::model::{
    DatasetInventory, DatasetName, Guid, HostInventory, HostName, Inventory, Marks, NotWritten, Record, SnapName,
};

/// A catalog that keeps everything in memory; it means the same as the embedded one.
#[derive(Debug, Default)]
pub struct MemoryCatalog {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hosts: BTreeMap<HostName, Host>,
    outcomes: VecDeque<Outcome>,
    destroyed: VecDeque<Destroyed>,
    estimates: BTreeMap<Uuid, Estimated>,
    refuses: bool,
}

#[derive(Debug, Default)]
struct Host {
    observed: Option<DateTime<Utc>>,
    datasets: BTreeMap<DatasetName, Dataset>,
}

#[derive(Debug, Default)]
struct Dataset {
    /// Without marks of any kind; `None` while the dataset is not there.
    held: Option<DatasetInventory>,
    marks: BTreeMap<Guid, (Marks, DateTime<Utc>)>,
    not_written: BTreeMap<SnapName, DateTime<Utc>>,
}

impl MemoryCatalog {
    /// An empty catalog.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes every write fail as on a full disk, or succeed again.
    pub fn refuse_writes(&self, refuse: bool) {
        self.state().refuses = refuse;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writable(&self) -> Result<MutexGuard<'_, State>, CatalogError> {
        let state = self.state();
        if state.refuses { Err(CatalogError::Full { path: PathBuf::from("in memory") }) } else { Ok(state) }
    }
}

impl State {
    fn dataset(&mut self, host: &HostName, dataset: &DatasetName) -> &mut Dataset {
        self.hosts.entry(host.clone()).or_default().datasets.entry(dataset.clone()).or_default()
    }
}

impl Dataset {
    fn add(&mut self, guid: Guid, marks: Marks, at: DateTime<Utc>) {
        if marks.sent || marks.sync {
            let (known, _) = self.marks.entry(guid).or_insert((Marks::default(), at));
            known.sent |= marks.sent;
            known.sync |= marks.sync;
        }
    }

    fn put(&mut self, mut inventory: DatasetInventory) {
        for snapshot in &mut inventory.snapshots {
            let marks = std::mem::take(&mut snapshot.marks);
            self.add(snapshot.guid, marks, snapshot.creation);
        }
        for mark in std::mem::take(&mut inventory.not_written) {
            self.add_not_written(mark);
        }
        inventory.sort();
        self.held = Some(inventory);
    }

    fn empty(&mut self) {
        self.held = None;
        self.not_written.clear();
    }

    fn add_not_written(&mut self, mark: NotWritten) {
        let at = self.not_written.entry(mark.name).or_insert(mark.at);
        *at = mark.at.max(*at);
    }

    fn inventory(&self) -> Option<DatasetInventory> {
        let mut inventory = self.held.clone()?;
        for snapshot in &mut inventory.snapshots {
            snapshot.marks = self.marks.get(&snapshot.guid).map(|(marks, _)| *marks).unwrap_or_default();
        }
        inventory.not_written =
            self.not_written.iter().map(|(name, at)| NotWritten { name: name.clone(), at: *at }).collect();
        Some(inventory)
    }
}

fn push<T>(history: &mut VecDeque<T>, value: T, most: usize) {
    history.push_front(value);
    history.truncate(most);
}

impl CatalogRead for MemoryCatalog {
    fn inventory(&self) -> Result<Inventory, CatalogError> {
        let state = self.state();
        let hosts = state.hosts.iter().map(|(name, host)| {
            let datasets =
                host.datasets.iter().filter_map(|(name, dataset)| Some((name.clone(), dataset.inventory()?)));
            (name.clone(), HostInventory { observed: host.observed, datasets: datasets.collect() })
        });
        let seen = |host: &HostInventory| host.observed.is_some() || !host.datasets.is_empty();
        Ok(Inventory { hosts: hosts.filter(|(_, host)| seen(host)).collect() })
    }

    fn outcomes(&self, limit: usize) -> Result<Vec<Outcome>, CatalogError> {
        Ok(self.state().outcomes.iter().take(limit).cloned().collect())
    }

    fn destroyed(&self, limit: usize) -> Result<Vec<Destroyed>, CatalogError> {
        Ok(self.state().destroyed.iter().take(limit).cloned().collect())
    }

    fn estimates(&self) -> Result<BTreeMap<Uuid, Estimated>, CatalogError> {
        Ok(self.state().estimates.clone())
    }
}

impl CatalogWrite for MemoryCatalog {
    fn replace_host(
        &self,
        host: &HostName,
        observed: DateTime<Utc>,
        datasets: Vec<(DatasetName, DatasetInventory)>,
    ) -> Result<(), CatalogError> {
        let mut state = self.writable()?;
        let host = state.hosts.entry(host.clone()).or_default();
        host.observed = Some(observed);
        let listed: BTreeSet<_> = datasets.iter().map(|(name, _)| name.clone()).collect();
        for (name, inventory) in datasets {
            host.datasets.entry(name).or_default().put(inventory);
        }
        for (_, dataset) in host.datasets.iter_mut().filter(|(name, _)| !listed.contains(*name)) {
            dataset.empty();
        }
        Ok(())
    }

    fn put_dataset(
        &self,
        host: &HostName,
        dataset: &DatasetName,
        inventory: DatasetInventory,
    ) -> Result<(), CatalogError> {
        self.writable()?.dataset(host, dataset).put(inventory);
        Ok(())
    }

    fn remove_dataset(&self, host: &HostName, dataset: &DatasetName) -> Result<(), CatalogError> {
        self.writable()?.dataset(host, dataset).empty();
        Ok(())
    }

    fn mark(
        &self,
        host: &HostName,
        dataset: &DatasetName,
        guid: Guid,
        marks: Marks,
        at: DateTime<Utc>,
    ) -> Result<(), CatalogError> {
        let mut state = self.writable()?;
        let known = state.dataset(host, dataset);
        known.add(guid, marks, at);
        if !marks.deleted {
            return Ok(());
        }
        let (last, _) = known.marks.remove(&guid).unwrap_or_default();
        let snapshots = known.held.as_mut().map(|held| &mut held.snapshots);
        let gone: Vec<_> =
            snapshots.map(|all| all.extract_if(.., |one| one.guid == guid).collect()).unwrap_or_default();
        for snapshot in gone {
            let marks = Marks { deleted: true, ..last };
            let record = Record { uuid: guid.uuid(), dataset: dataset.clone(), name: snapshot.name, marks };
            push(&mut state.destroyed, Destroyed { host: host.clone(), record, at }, MAX_DESTROYED);
        }
        Ok(())
    }

    fn add_not_written(&self, host: &HostName, dataset: &DatasetName, mark: NotWritten) -> Result<(), CatalogError> {
        self.writable()?.dataset(host, dataset).add_not_written(mark);
        Ok(())
    }

    fn forget_marks(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError> {
        let mut state = self.writable()?;
        let before = state.destroyed.len();
        state.destroyed.retain(|destroyed| destroyed.at >= older_than);
        let mut forgotten = before - state.destroyed.len();
        for dataset in state.hosts.values_mut().flat_map(|host| host.datasets.values_mut()) {
            let held: BTreeSet<Guid> =
                dataset.held.iter().flat_map(|held| &held.snapshots).map(|snapshot| snapshot.guid).collect();
            let before = dataset.marks.len() + dataset.not_written.len();
            dataset.marks.retain(|guid, (_, at)| held.contains(guid) || *at >= older_than);
            dataset.not_written.retain(|_, at| *at >= older_than);
            forgotten += before - dataset.marks.len() - dataset.not_written.len();
        }
        Ok(forgotten)
    }

    fn record_outcome(&self, outcome: &Outcome) -> Result<(), CatalogError> {
        push(&mut self.writable()?.outcomes, outcome.clone(), MAX_OUTCOMES);
        Ok(())
    }

    fn replace_estimates(&self, estimates: &BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        self.writable()?.estimates.clone_from(estimates);
        Ok(())
    }
}
