//! A catalog in memory, for a single process. It is lost when the process ends. Tests can make its writes fail.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::catalog::dataset::{CatalogDataset, DestroyedSnapshot};
use crate::catalog::{
    CatalogError, CatalogRead, CatalogWrite, Change, Destroyed, Estimated, MAX_DESTROYED, MAX_OUTCOMES, Outcome,
};
use crate::model::{DatasetName, HostInventory, HostListing, HostName, Inventory, Record, UnlistedPools};

/// A catalog that keeps everything in memory, and otherwise behaves like the embedded one.
#[derive(Debug, Default)]
pub struct MemoryCatalog {
    contents: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    hosts: BTreeMap<HostName, MemoryHost>,
    outcomes: VecDeque<Outcome>,
    destroyed: VecDeque<Destroyed>,
    estimates: BTreeMap<Uuid, Estimated>,
    refuses_writes: bool,
}

#[derive(Debug, Default)]
struct MemoryHost {
    observed: Option<DateTime<Utc>>,
    datasets: BTreeMap<DatasetName, CatalogDataset>,
    unlisted: UnlistedPools,
}

impl MemoryCatalog {
    /// Creates an empty catalog.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes every write fail as if the disk were full, or succeed again.
    pub fn refuse_writes(&self, refuse: bool) {
        self.contents().refuses_writes = refuse;
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock()
    }

    fn writable(&self) -> Result<MutexGuard<'_, Contents>, CatalogError> {
        let contents = self.contents();
        if contents.refuses_writes {
            return Err(CatalogError::Full { path: PathBuf::from("in memory") });
        }
        Ok(contents)
    }
}

impl Contents {
    /// When something was recorded, and about which host.
    fn times(&self) -> impl Iterator<Item = (&HostName, DateTime<Utc>)> {
        let listed = self.hosts.iter().flat_map(|(name, host)| {
            let datasets = host.datasets.values().filter_map(CatalogDataset::last_recorded);
            host.observed.into_iter().chain(datasets).map(move |at| (name, at))
        });
        let outcomes = self.outcomes.iter().map(|outcome| (&outcome.host, outcome.at));
        listed.chain(outcomes).chain(self.destroyed.iter().map(|destroyed| (&destroyed.host, destroyed.at)))
    }

    fn dataset(&mut self, host: &HostName, dataset: &DatasetName) -> &mut CatalogDataset {
        self.hosts.entry(host.clone()).or_default().datasets.entry(dataset.clone()).or_default()
    }
}

fn push_newest<T>(history: &mut VecDeque<T>, value: T, most: usize) {
    history.push_front(value);
    history.truncate(most);
}

impl CatalogRead for MemoryCatalog {
    fn inventory(&self) -> Result<Inventory, CatalogError> {
        let contents = self.contents();
        let hosts = contents.hosts.iter().map(|(name, host)| {
            let datasets =
                host.datasets.iter().filter_map(|(name, dataset)| Some((name.clone(), dataset.inventory()?)));
            (
                name.clone(),
                HostInventory {
                    observed: host.observed,
                    datasets: datasets.collect(),
                    unlisted: host.unlisted.clone(),
                    clock_behind: None,
                },
            )
        });
        let is_known = |host: &HostInventory| host.observed.is_some() || !host.datasets.is_empty();
        Ok(Inventory { hosts: hosts.filter(|(_, host)| is_known(host)).collect() })
    }

    fn host(&self, host: &HostName) -> Result<Option<HostInventory>, CatalogError> {
        Ok(self.inventory()?.hosts.remove(host))
    }

    fn outcomes(&self, limit: usize) -> Result<Vec<Outcome>, CatalogError> {
        Ok(self.contents().outcomes.iter().take(limit).cloned().collect())
    }

    fn destroyed(&self, limit: usize) -> Result<Vec<Destroyed>, CatalogError> {
        Ok(self.contents().destroyed.iter().take(limit).cloned().collect())
    }

    fn estimates(&self) -> Result<BTreeMap<Uuid, Estimated>, CatalogError> {
        Ok(self.contents().estimates.clone())
    }
}

impl CatalogWrite for MemoryCatalog {
    fn replace_pools(
        &self,
        host: &HostName,
        observed: DateTime<Utc>,
        HostListing { datasets, unlisted }: HostListing,
    ) -> Result<(), CatalogError> {
        let mut contents = self.writable()?;
        let host = contents.hosts.entry(host.clone()).or_default();
        host.observed = Some(observed);
        let listed: BTreeSet<_> = datasets.iter().map(|(name, _)| name.clone()).collect();
        for (name, inventory) in datasets {
            host.datasets.entry(name).or_default().set_listed(inventory);
        }
        let is_gone = |name: &DatasetName| !listed.contains(name) && !unlisted.contains_key(name.pool());
        for (_, dataset) in host.datasets.iter_mut().filter(|(name, _)| is_gone(name)) {
            dataset.clear_listed();
        }
        host.unlisted = unlisted;
        Ok(())
    }

    fn update(&self, host: &HostName, changes: Vec<(DatasetName, Change)>) -> Result<(), CatalogError> {
        let mut contents = self.writable()?;
        for (dataset, change) in changes {
            for gone in contents.dataset(host, &dataset).apply(change) {
                let DestroyedSnapshot { name, guid, marks, at } = gone;
                let record = Record { uuid: guid.uuid(), dataset: dataset.clone(), name, marks };
                push_newest(&mut contents.destroyed, Destroyed { host: host.clone(), record, at }, MAX_DESTROYED);
            }
        }
        Ok(())
    }

    fn forget_marks(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError> {
        let mut contents = self.writable()?;
        let before = contents.destroyed.len();
        contents.destroyed.retain(|destroyed| destroyed.at >= older_than);
        let mut forgotten = before - contents.destroyed.len();
        for dataset in contents.hosts.values_mut().flat_map(|host| host.datasets.values_mut()) {
            forgotten += dataset.forget(older_than);
        }
        Ok(forgotten)
    }

    fn forget_hosts(
        &self,
        named: &BTreeSet<HostName>,
        older_than: DateTime<Utc>,
    ) -> Result<BTreeSet<HostName>, CatalogError> {
        let mut contents = self.writable()?;
        let mut recorded: BTreeMap<HostName, DateTime<Utc>> = BTreeMap::new();
        for (host, at) in contents.times() {
            let last = recorded.entry(host.clone()).or_insert(at);
            *last = at.max(*last);
        }
        let old = recorded.into_iter().filter(|(host, last)| !named.contains(host) && *last < older_than);
        let old: BTreeSet<HostName> = old.map(|(host, _)| host).collect();
        contents.hosts.retain(|host, _| !old.contains(host));
        contents.outcomes.retain(|outcome| !old.contains(&outcome.host));
        contents.destroyed.retain(|destroyed| !old.contains(&destroyed.host));
        Ok(old)
    }

    fn record_outcome(&self, outcome: &Outcome) -> Result<(), CatalogError> {
        push_newest(&mut self.writable()?.outcomes, outcome.clone(), MAX_OUTCOMES);
        Ok(())
    }

    fn replace_estimates(&self, estimates: &BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        self.writable()?.estimates.clone_from(estimates);
        Ok(())
    }
}
