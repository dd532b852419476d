//! What a pass knows: the inventory in memory and the catalog beside it, kept in step.
//!
//! An embedded catalog is the director's to write: it writes what hosts tell. A shared one is written by the hosts
//! themselves: the inventory in memory follows what they publish, and what orders tell meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::catalog::{
    CatalogError, CatalogRead, CatalogWrite, Change, Estimated, Generations, Outcome, apply, differences,
};
use crate::fleet::facts;
use crate::model::{HostName, Inventory};
use crate::sys::{clock, runtime};
use crate::wire::Facts;

/// The inventory of a pass and the catalog that it is written to.
pub struct FleetState<C: ?Sized> {
    inventory: Arc<Mutex<Inventory>>,
    shared: Arc<Mutex<Shared>>,
    catalog: Arc<C>,
    /// See [`FleetState::followed`].
    token: Option<runtime::channel::Sender<()>>,
}

/// How far the inventory follows a catalog that hosts write themselves.
#[derive(Default)]
struct Shared {
    /// Whether they do.
    is: bool,
    /// What was read last.
    read: Generations,
    /// Hosts that did something which they could not publish.
    doubted: BTreeSet<HostName>,
}

impl<C: ?Sized> Clone for FleetState<C> {
    fn clone(&self) -> Self {
        let (inventory, shared) = (Arc::clone(&self.inventory), Arc::clone(&self.shared));
        Self { inventory, shared, catalog: Arc::clone(&self.catalog), token: self.token.clone() }
    }
}

impl<C: CatalogWrite + 'static> FleetState<C> {
    /// Begins with an empty inventory: see [`FleetState::begin`].
    #[must_use]
    pub fn new(catalog: C) -> Self {
        Self::over(Arc::new(catalog))
    }
}

impl<C: CatalogWrite + ?Sized + 'static> FleetState<C> {
    /// The same over a catalog of any kind.
    #[must_use]
    pub fn over(catalog: Arc<C>) -> Self {
        Self { inventory: Arc::default(), shared: Arc::default(), catalog, token: None }
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

    /// Catches up with what hosts published themselves. What comes back are the hosts whose records are whole, and
    /// which need not be asked; with an embedded catalog none.
    pub async fn catch_up(&self, hosts: &BTreeSet<HostName>) -> Result<BTreeSet<HostName>, CatalogError> {
        // If this fails, everything is read the next time.
        let mut read = std::mem::take(&mut self.shared().read);
        let wanted = hosts.clone();
        let caught = self.with_catalog(move |catalog| Ok((catalog.published(&wanted, &mut read)?, read)));
        let (Some(published), read) = caught.await? else {
            self.shared().is = false;
            return Ok(BTreeSet::new());
        };
        self.inventory().hosts.extend(published.changed);
        let mut shared = self.shared();
        (shared.is, shared.read) = (true, read);
        Ok(&published.whole - &shared.doubted)
    }

    /// Begins a look at the hosts. What is known of others than the `seen` ones counts for nothing until they are listed.
    pub async fn begin(&self, seen: &BTreeSet<HostName>) -> Result<(), CatalogError> {
        let shared = self.shared().is;
        if !shared {
            let remembered = self.with_catalog(CatalogRead::inventory).await?;
            *self.inventory() = remembered;
        }
        let mut inventory = self.inventory();
        for (host, known) in inventory.hosts.iter_mut().filter(|(host, _)| !seen.contains(*host)) {
            known.observed = None;
            if shared {
                // To be read again when it is back.
                self.shared().read.remove(host);
            }
        }
        Ok(())
    }

    /// Everything that is known, of hosts that were not seen in this pass as well.
    pub async fn remembered(&self) -> Result<Inventory, CatalogError> {
        if !self.shared().is {
            return self.with_catalog(CatalogRead::inventory).await;
        }
        let mut inventory = self.inventory().clone();
        let unseen = inventory.hosts.iter().filter(|(_, known)| known.observed.is_none());
        let unseen: Vec<HostName> = unseen.map(|(host, _)| host.clone()).collect();
        for host in unseen {
            let of = host.clone();
            if let Some(known) = self.with_catalog(move |catalog| catalog.host(&of)).await? {
                inventory.hosts.insert(host, known);
            }
        }
        Ok(inventory)
    }

    /// The catalog, for reading.
    pub fn catalog(&self) -> &C {
        &self.catalog
    }

    /// The inventory, locked: for deciding, never across a wait.
    pub fn inventory(&self) -> MutexGuard<'_, Inventory> {
        self.inventory.lock()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock()
    }

    /// Whether hosts write the catalog themselves.
    pub fn is_shared(&self) -> bool {
        self.shared().is
    }

    async fn with_catalog<T: Send + 'static>(
        &self,
        work: impl FnOnce(&C) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let catalog = Arc::clone(&self.catalog);
        runtime::blocking(move || work(&catalog)).await
    }

    /// When a host was last listed as a whole, as far as is known.
    pub fn observed(&self, host: &HostName) -> Option<DateTime<Utc>> {
        self.inventory().hosts.get(host)?.observed
    }

    /// A host did something that it could not publish: it is asked until it has.
    pub fn doubt(&self, host: &HostName) {
        self.shared().doubted.insert(host.clone());
    }

    /// Takes over a whole listing of a host. With `compared`, what comes back is how it differs from what was known.
    pub async fn listed(
        &self,
        host: &HostName,
        at: DateTime<Utc>,
        facts: Vec<Facts>,
        compared: bool,
    ) -> Result<Vec<String>, CatalogError> {
        let of_host = |((h, dataset), listed): ((HostName, _), _)| (h == *host).then_some((dataset, listed));
        let listings = facts::assemble(facts.into_iter().filter_map(|fact| fact.listing));
        let datasets: BTreeMap<_, _> = listings.into_iter().filter_map(of_host).collect();
        let host = host.clone();
        if !self.shared().is {
            let of = host.clone();
            let (told, now) = self
                .with_catalog(move |catalog| {
                    let known = if compared { catalog.host(&of)? } else { None };
                    let told = if compared { differences(known.as_ref(), &datasets) } else { Vec::new() };
                    catalog.replace_host(&of, at, datasets.into_iter().collect())?;
                    // With what only the catalog knows: marks.
                    Ok((told, catalog.host(&of)?))
                })
                .await?;
            self.inventory().hosts.extend(now.map(|now| (host, now)));
            return Ok(told);
        }
        let mut inventory = self.inventory();
        let told = if compared { differences(inventory.hosts.get(&host), &datasets) } else { Vec::new() };
        let known = inventory.hosts.entry(host.clone()).or_default();
        known.datasets.retain(|name, _| datasets.contains_key(name));
        for (name, listed) in datasets {
            apply(known, &name, Change::Listed(listed));
        }
        known.observed = Some(at);
        self.shared().doubted.remove(&host);
        Ok(told)
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
        if self.shared().is {
            return Ok(());
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

    /// Writes what was only noted down.
    pub async fn flush(&self) -> Result<(), CatalogError> {
        self.with_catalog(CatalogWrite::flush).await
    }

    /// Forgets marks made before `older_than`.
    pub async fn forget(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError> {
        self.with_catalog(move |catalog| catalog.forget_marks(older_than)).await
    }
}
