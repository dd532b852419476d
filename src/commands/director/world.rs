//! What a pass knows: the inventory in memory and the catalog beside it, kept in step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::catalog::{CatalogError, CatalogRead, CatalogWrite, Estimated, Outcome};
use crate::clock;
use crate::model::{DatasetInventory, DatasetName, HostName, Inventory, Marks};
use crate::runtime;
use crate::wire::{Facts, Listing};

/// The inventory of a pass and the catalog that it is written to.
pub struct World<C> {
    inventory: Arc<Mutex<Inventory>>,
    catalog: Arc<C>,
    /// See [`World::followed`].
    token: Option<runtime::channel::Sender<()>>,
}

impl<C> Clone for World<C> {
    fn clone(&self) -> Self {
        Self { inventory: Arc::clone(&self.inventory), catalog: Arc::clone(&self.catalog), token: self.token.clone() }
    }
}

/// Puts the parts of listings together.
pub fn assemble(facts: Vec<Facts>) -> BTreeMap<(HostName, DatasetName), DatasetInventory> {
    let mut all = BTreeMap::new();
    for Listing { host, dataset, continued, inventory } in facts.into_iter().filter_map(|f| f.listing) {
        let whole: &mut DatasetInventory = all.entry((host, dataset)).or_default();
        if continued {
            whole.snapshots.extend(inventory.snapshots);
            whole.bookmarks.extend(inventory.bookmarks);
        } else {
            *whole = inventory;
        }
    }
    all
}

impl<C: CatalogWrite + 'static> World<C> {
    /// Begins with an empty inventory: see [`World::reload`].
    #[must_use]
    pub fn new(catalog: C) -> Self {
        Self { inventory: Arc::default(), catalog: Arc::new(catalog), token: None }
    }

    /// The same with a channel that closes when the last clone of it is gone: whoever uses it has ended then.
    #[must_use]
    pub fn followed(self) -> (Self, runtime::channel::Receiver<()>) {
        let (token, gone) = runtime::channel::bounded(1);
        (Self { token: Some(token), ..self }, gone)
    }

    /// The same, not followed.
    #[must_use]
    pub fn aside(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// Reads the catalog. What it remembers of a host that was not listed in this pass counts as not seen.
    pub async fn reload(&self, seen: BTreeSet<HostName>) -> Result<(), CatalogError> {
        let mut remembered = self.with_catalog(CatalogRead::inventory).await?;
        for (_, known) in remembered.hosts.iter_mut().filter(|(host, _)| !seen.contains(*host)) {
            known.observed = None;
        }
        *self.inventory() = remembered;
        Ok(())
    }

    /// The catalog, for reading.
    pub fn catalog(&self) -> &impl CatalogRead {
        &*self.catalog
    }

    /// The inventory, locked: for deciding, never across a wait.
    pub fn inventory(&self) -> MutexGuard<'_, Inventory> {
        self.inventory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn with_catalog<T: Send + 'static>(
        &self,
        work: impl FnOnce(&C) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let catalog = Arc::clone(&self.catalog);
        runtime::blocking(move || work(&catalog)).await
    }

    /// Writes a whole listing of a host to the catalog.
    pub async fn listed(
        &self,
        host: &HostName,
        at: chrono::DateTime<chrono::Utc>,
        facts: Vec<Facts>,
    ) -> Result<(), CatalogError> {
        let of_host = |((h, dataset), listed): ((HostName, _), _)| (h == *host).then_some((dataset, listed));
        let datasets: Vec<_> = assemble(facts).into_iter().filter_map(of_host).collect();
        let host = host.clone();
        self.with_catalog(move |catalog| catalog.replace_host(&host, at, datasets)).await
    }

    /// Takes over what one order told.
    pub async fn learn(&self, host: &HostName, facts: Vec<Facts>) -> Result<(), CatalogError> {
        for fact in &facts {
            let mut inventory = self.inventory();
            let known = inventory.hosts.entry(host.clone()).or_default();
            for (dataset, snapshot) in &fact.taken {
                let of = known.datasets.entry(dataset.clone()).or_default();
                if of.by_guid(snapshot.guid).is_none() {
                    of.snapshots.push(snapshot.clone());
                    of.sort();
                }
                of.written = Some(0);
            }
            for (dataset, mark) in &fact.not_written {
                let of = known.datasets.entry(dataset.clone()).or_default();
                of.not_written.push(mark.clone());
            }
            for (dataset, guid) in &fact.destroyed {
                if let Some(of) = known.datasets.get_mut(dataset) {
                    of.snapshots.retain(|s| s.guid != *guid);
                }
            }
        }
        let listings = assemble(facts.clone());
        let touched: BTreeSet<(HostName, DatasetName)> = {
            let own = facts.iter().flat_map(|fact| {
                let taken = fact.taken.iter().map(|(dataset, _)| dataset);
                let marked = fact.not_written.iter().map(|(dataset, _)| dataset);
                taken.chain(marked).chain(fact.destroyed.iter().map(|(dataset, _)| dataset))
            });
            let mut inventory = self.inventory();
            let touched = own.map(|dataset| (host.clone(), dataset.clone())).chain(listings.keys().cloned()).collect();
            for ((host, dataset), listed) in listings {
                inventory.hosts.entry(host).or_default().datasets.insert(dataset, listed);
            }
            touched
        };
        let now: Vec<_> = {
            let inventory = self.inventory();
            let known = |(host, dataset): (HostName, DatasetName)| {
                let known = inventory.dataset(&host, &dataset).cloned()?;
                Some((host, dataset, known))
            };
            touched.into_iter().filter_map(known).collect()
        };
        let (here, at) = (host.clone(), clock::now());
        self.with_catalog(move |catalog| {
            let deleted = Marks { deleted: true, ..Marks::default() };
            for (dataset, guid) in facts.into_iter().flat_map(|fact| fact.destroyed) {
                catalog.mark(&here, &dataset, guid, deleted, at)?;
            }
            for (host, dataset, known) in now {
                for mark in &known.not_written {
                    catalog.add_not_written(&host, &dataset, mark.clone())?;
                }
                catalog.put_dataset(&host, &dataset, known)?;
            }
            Ok(())
        })
        .await
    }

    /// Remembers what agents estimated for a plan.
    pub async fn estimated(&self, estimates: BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        self.with_catalog(move |catalog| catalog.replace_estimates(&estimates)).await
    }

    /// Records how an order ended.
    pub async fn record(&self, outcome: Outcome) -> Result<(), CatalogError> {
        self.with_catalog(move |catalog| catalog.record_outcome(&outcome)).await
    }
}
