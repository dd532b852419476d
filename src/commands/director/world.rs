//! What a pass knows: the inventory in memory and the catalog beside it, kept in step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::catalog::{CatalogError, CatalogRead, CatalogWrite, Estimated, Outcome, apply};
use crate::clock;
use crate::commands::facts;
use crate::model::{HostName, Inventory};
use crate::runtime;
use crate::wire::Facts;

/// The inventory of a pass and the catalog that it is written to.
pub struct World<C> {
    inventory: Arc<Mutex<Inventory>>,
    catalog: Arc<C>,
}

impl<C> Clone for World<C> {
    fn clone(&self) -> Self {
        Self { inventory: Arc::clone(&self.inventory), catalog: Arc::clone(&self.catalog) }
    }
}

impl<C: CatalogWrite + 'static> World<C> {
    /// Begins with an empty inventory: see [`World::reload`].
    #[must_use]
    pub fn new(catalog: C) -> Self {
        Self { inventory: Arc::default(), catalog: Arc::new(catalog) }
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
        let datasets: Vec<_> =
            facts::assemble(facts.into_iter().filter_map(|f| f.listing)).into_iter().filter_map(of_host).collect();
        let host = host.clone();
        self.with_catalog(move |catalog| catalog.replace_host(&host, at, datasets)).await
    }

    /// Takes over what one order told.
    pub async fn learn(&self, host: &HostName, facts: Vec<Facts>) -> Result<(), CatalogError> {
        let changes = facts::changes(host, facts, clock::now());
        {
            let mut inventory = self.inventory();
            for (host, changes) in &changes {
                let known = inventory.hosts.entry(host.clone()).or_default();
                changes.iter().for_each(|(name, change)| apply(known, name, change.clone()));
            }
        }
        self.with_catalog(move |catalog| {
            changes.into_iter().try_for_each(|(host, changes)| catalog.update(&host, changes))
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
