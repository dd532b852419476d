//! What a director knows of its fleet: the inventory in memory, and the catalog beside it.
//!
//! An embedded catalog is written by the director alone, which records what hosts report. A shared catalog is written by
//! the hosts themselves: the inventory in memory follows what they publish, and what orders report in the meantime.

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

/// The inventory of a fleet with its catalog. Clones share one state.
pub struct FleetState<C: ?Sized> {
    inventory: Arc<Mutex<Inventory>>,
    catalog: Arc<C>,
    keeping: Keeping,
    /// See [`FleetState::tracked`].
    token: Option<runtime::channel::Sender<()>>,
}

/// Who writes the catalog.
#[derive(Clone)]
enum Keeping {
    /// The director: an embedded catalog.
    Embedded,
    /// Every host its own part: a shared catalog.
    Shared(Arc<Mutex<Followed>>),
}

/// How far the inventory follows a shared catalog.
#[derive(Default)]
struct Followed {
    /// What was read last.
    read: Generations,
    /// Hosts that did something which they could not publish.
    doubted: BTreeSet<HostName>,
}

impl<C: ?Sized> Clone for FleetState<C> {
    fn clone(&self) -> Self {
        let (inventory, catalog) = (Arc::clone(&self.inventory), Arc::clone(&self.catalog));
        Self { inventory, catalog, keeping: self.keeping.clone(), token: self.token.clone() }
    }
}

impl<C: CatalogWrite + ?Sized + 'static> FleetState<C> {
    /// The state of a fleet whose catalog is written by the director. The inventory is empty until [`FleetState::begin`].
    #[must_use]
    pub fn embedded(catalog: Arc<C>) -> Self {
        Self { inventory: Arc::default(), catalog, keeping: Keeping::Embedded, token: None }
    }

    /// The state of a fleet whose catalog is written by the hosts. The inventory is empty until [`FleetState::catch_up`].
    #[must_use]
    pub fn shared(catalog: Arc<C>) -> Self {
        Self { keeping: Keeping::Shared(Arc::default()), ..Self::embedded(catalog) }
    }

    /// This state with a channel that closes when the last clone of the tracked state is dropped: all work on it has ended
    /// then.
    #[must_use]
    pub fn tracked(self) -> (Self, runtime::channel::Receiver<()>) {
        let (token, gone) = runtime::channel::bounded(1);
        (Self { token: Some(token), ..self }, gone)
    }

    /// A clone that is not tracked.
    #[must_use]
    pub fn untracked(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// Reads what hosts have published since the last time. Returns the hosts whose records are complete, which need not be
    /// asked; with an embedded catalog there are none.
    pub async fn catch_up(&self, hosts: &BTreeSet<HostName>) -> Result<BTreeSet<HostName>, CatalogError> {
        let Keeping::Shared(followed) = &self.keeping else { return Ok(BTreeSet::new()) };
        // If this fails, everything is read the next time.
        let mut read = std::mem::take(&mut followed.lock().read);
        let wanted = hosts.clone();
        let reading = self.with_catalog(move |catalog| Ok((catalog.published(&wanted, &mut read)?, read)));
        let (published, read) = reading.await?;
        let published = published.unwrap_or_default();
        self.inventory().hosts.extend(published.changed);
        let mut followed = followed.lock();
        followed.read = read;
        Ok(&published.whole - &followed.doubted)
    }

    /// Begins a poll. Until they are listed, all hosts but the `current` ones count as not listed.
    pub async fn begin(&self, current: &BTreeSet<HostName>) -> Result<(), CatalogError> {
        if !self.is_shared() {
            let remembered = self.with_catalog(CatalogRead::inventory).await?;
            *self.inventory() = remembered;
        }
        let mut inventory = self.inventory();
        for (host, known) in inventory.hosts.iter_mut().filter(|(host, _)| !current.contains(*host)) {
            known.observed = None;
            if let Keeping::Shared(followed) = &self.keeping {
                // Its records are read again when it is back.
                followed.lock().read.remove(host);
            }
        }
        Ok(())
    }

    /// Everything that is known, including hosts that were not listed in this pass.
    pub async fn remembered(&self) -> Result<Inventory, CatalogError> {
        if !self.is_shared() {
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

    /// Whether hosts write the catalog themselves.
    pub fn is_shared(&self) -> bool {
        matches!(self.keeping, Keeping::Shared(_))
    }

    async fn with_catalog<T: Send + 'static>(
        &self,
        work: impl FnOnce(&C) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let catalog = Arc::clone(&self.catalog);
        runtime::blocking(move || work(&catalog)).await
    }

    /// When a host was last listed completely, if that is known.
    pub fn observed(&self, host: &HostName) -> Option<DateTime<Utc>> {
        self.inventory().hosts.get(host)?.observed
    }

    /// Notes that a host did something which it could not publish: it is asked until it has published it.
    pub fn doubt(&self, host: &HostName) {
        if let Keeping::Shared(followed) = &self.keeping {
            followed.lock().doubted.insert(host.clone());
        }
    }

    /// Stores a complete listing of a host. With `compared`, returns how it differs from what was known.
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
        if !self.is_shared() {
            let of = host.clone();
            let (differences_found, now) = self
                .with_catalog(move |catalog| {
                    let known = if compared { catalog.host(&of)? } else { None };
                    let found = if compared { differences(known.as_ref(), &datasets) } else { Vec::new() };
                    catalog.replace_host(&of, at, datasets.into_iter().collect())?;
                    // Read back with the marks, which only the catalog knows.
                    Ok((found, catalog.host(&of)?))
                })
                .await?;
            self.inventory().hosts.extend(now.map(|now| (host, now)));
            return Ok(differences_found);
        }
        let mut inventory = self.inventory();
        let found = if compared { differences(inventory.hosts.get(&host), &datasets) } else { Vec::new() };
        let known = inventory.hosts.entry(host.clone()).or_default();
        known.datasets.retain(|name, _| datasets.contains_key(name));
        for (name, listed) in datasets {
            apply(known, &name, Change::Listed(listed));
        }
        known.observed = Some(at);
        if let Keeping::Shared(followed) = &self.keeping {
            followed.lock().doubted.remove(&host);
        }
        Ok(found)
    }

    /// Stores what one order reported.
    pub async fn learn(&self, host: &HostName, facts: Vec<Facts>) -> Result<(), CatalogError> {
        let changes = facts::changes(host, facts, clock::now());
        {
            let mut inventory = self.inventory();
            for (host, changes) in &changes {
                let known = inventory.hosts.entry(host.clone()).or_default();
                changes.iter().for_each(|(name, change)| apply(known, name, change.clone()));
            }
        }
        if self.is_shared() {
            return Ok(());
        }
        self.with_catalog(move |catalog| {
            changes.into_iter().try_for_each(|(host, changes)| catalog.update(&host, changes))
        })
        .await
    }

    /// Stores what agents estimated for a plan.
    pub async fn estimated(&self, estimates: BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        self.with_catalog(move |catalog| catalog.replace_estimates(&estimates)).await
    }

    /// Records how an order ended.
    pub async fn record(&self, outcome: Outcome) -> Result<(), CatalogError> {
        self.with_catalog(move |catalog| catalog.record_outcome(&outcome)).await
    }

    /// Writes outcomes that the catalog has collected.
    pub async fn flush(&self) -> Result<(), CatalogError> {
        self.with_catalog(CatalogWrite::flush).await
    }

    /// Deletes marks made before `older_than`.
    pub async fn forget(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError> {
        self.with_catalog(move |catalog| catalog.forget_marks(older_than)).await
    }
}
