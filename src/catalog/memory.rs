//! A catalog in memory, for one process: it forgets everything at its end, and can be told to fail.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::catalog::dataset::{Dataset, Gone};
use crate::catalog::{
    CatalogError, CatalogRead, CatalogWrite, Change, Destroyed, Estimated, MAX_DESTROYED, MAX_OUTCOMES, Outcome,
};
use crate::model::{DatasetInventory, DatasetName, HostInventory, HostName, Inventory, Record};

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
        self.state.lock()
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

    fn host(&self, host: &HostName) -> Result<Option<HostInventory>, CatalogError> {
        Ok(self.inventory()?.hosts.remove(host))
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

    fn update(&self, host: &HostName, changes: Vec<(DatasetName, Change)>) -> Result<(), CatalogError> {
        let mut state = self.writable()?;
        for (dataset, change) in changes {
            for Gone { name, guid, marks, at } in state.dataset(host, &dataset).change(change) {
                let record = Record { uuid: guid.uuid(), dataset: dataset.clone(), name, marks };
                push(&mut state.destroyed, Destroyed { host: host.clone(), record, at }, MAX_DESTROYED);
            }
        }
        Ok(())
    }

    fn forget_marks(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError> {
        let mut state = self.writable()?;
        let before = state.destroyed.len();
        state.destroyed.retain(|destroyed| destroyed.at >= older_than);
        let mut forgotten = before - state.destroyed.len();
        for dataset in state.hosts.values_mut().flat_map(|host| host.datasets.values_mut()) {
            forgotten += dataset.forget(older_than);
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
