//! What a director knows about its fleet: the inventory in memory, and the catalog beside it.
//!
//! An embedded catalog is written by the director alone, which records what hosts report. A shared catalog is written
//! by the hosts themselves: the inventory in memory follows what they publish, and what orders report in the meantime.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::catalog::{
    CatalogError, CatalogRead, CatalogWrite, Change, Estimated, Generations, Outcome, apply, differences,
};
use crate::fleet::facts;
use crate::fleet::silent::SilentHosts;
use crate::model::{DatasetName, HostListing, HostName, Inventory};
use crate::sys::{clock, runtime};
use crate::wire::Facts;

/// The inventory of a fleet with its catalog. Clones share one state.
pub struct FleetState<C: ?Sized> {
    inventory: Arc<Mutex<Inventory>>,
    catalog: Arc<C>,
    writer: CatalogWriter,
    /// Hosts that did not answer when they were polled last.
    silent: Arc<Mutex<SilentHosts>>,
    /// See [`FleetState::tracked`].
    token: Option<runtime::channel::Sender<()>>,
}

/// Who writes the catalog.
#[derive(Clone)]
enum CatalogWriter {
    /// The director writes it: the catalog is embedded.
    Director,
    /// Each host writes its own part: the catalog is shared.
    Hosts(Arc<Mutex<Followed>>),
}

/// Which records of a shared catalog the inventory has.
#[derive(Default)]
struct Followed {
    /// The generations of the records that were read last.
    read: Generations,
    /// Hosts that have changed something without being able to publish it.
    unpublished: BTreeSet<HostName>,
}

impl<C: ?Sized> Clone for FleetState<C> {
    fn clone(&self) -> Self {
        let (inventory, catalog) = (Arc::clone(&self.inventory), Arc::clone(&self.catalog));
        let silent = Arc::clone(&self.silent);
        Self { inventory, catalog, writer: self.writer.clone(), silent, token: self.token.clone() }
    }
}

impl<C: CatalogWrite + ?Sized + 'static> FleetState<C> {
    /// The state of a fleet whose catalog is written by the director. The inventory is empty until
    /// [`FleetState::begin`].
    #[must_use]
    pub fn embedded(catalog: Arc<C>) -> Self {
        Self {
            inventory: Arc::default(),
            catalog,
            writer: CatalogWriter::Director,
            silent: Arc::default(),
            token: None,
        }
    }

    /// The state of a fleet whose catalog is written by the hosts. The inventory is empty until
    /// [`FleetState::catch_up`].
    #[must_use]
    pub fn shared(catalog: Arc<C>) -> Self {
        Self { writer: CatalogWriter::Hosts(Arc::default()), ..Self::embedded(catalog) }
    }

    /// This state, and a channel that closes when the last clone of the tracked state is dropped: then all work on it
    /// has ended.
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

    /// Reads what hosts have published since the last time. Returns the hosts that need not be polled, because their
    /// records are complete. With an embedded catalog there are none.
    pub async fn catch_up(&self, hosts: &BTreeSet<HostName>) -> Result<BTreeSet<HostName>, CatalogError> {
        let CatalogWriter::Hosts(followed) = &self.writer else { return Ok(BTreeSet::new()) };
        // If reading fails, everything is read again the next time.
        let mut read = std::mem::take(&mut followed.lock().read);
        let wanted = hosts.clone();
        let reading = self.with_catalog(move |catalog| Ok((catalog.published(&wanted, &mut read)?, read)));
        let (published, read) = reading.await?;
        let published = published.unwrap_or_default();
        self.inventory().hosts.extend(published.changed);
        let mut followed = followed.lock();
        followed.read = read;
        Ok(&published.whole - &followed.unpublished)
    }

    /// Begins a poll. All hosts but the `current` ones count as not listed until they have been listed.
    pub async fn begin(&self, current: &BTreeSet<HostName>) -> Result<(), CatalogError> {
        if !self.is_shared() {
            let remembered = self.with_catalog(CatalogRead::inventory).await?;
            *self.inventory() = remembered;
        }
        let mut inventory = self.inventory();
        inventory.hosts.values_mut().for_each(|known| known.clock_behind = None);
        for (host, known) in inventory.hosts.iter_mut().filter(|(host, _)| !current.contains(*host)) {
            known.observed = None;
            if let CatalogWriter::Hosts(followed) = &self.writer {
                // The host's records are read again once it can be reached.
                followed.lock().read.remove(host);
            }
        }
        Ok(())
    }

    /// The inventory of all hosts, including the last known one of hosts that were not listed in this pass.
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

    /// The inventory, locked. The lock is for decisions, and must not be held across a wait.
    pub fn inventory(&self) -> MutexGuard<'_, Inventory> {
        self.inventory.lock()
    }

    /// Whether hosts write the catalog themselves.
    pub fn is_shared(&self) -> bool {
        matches!(self.writer, CatalogWriter::Hosts(_))
    }

    async fn with_catalog<T: Send + 'static>(
        &self,
        work: impl FnOnce(&C) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let catalog = Arc::clone(&self.catalog);
        runtime::blocking(move || work(&catalog)).await
    }

    /// Hosts that did not answer when they were polled last.
    pub(super) fn silent(&self) -> MutexGuard<'_, SilentHosts> {
        self.silent.lock()
    }

    /// Adds a host that did not answer another director when that one polled it.
    pub(crate) fn expect_silent(&self, host: &HostName) {
        self.silent().expect(host);
    }

    /// Lets hosts that do not answer be polled in the next pass, however long they have been silent.
    pub(crate) fn wake_silent(&self) {
        self.silent().wake();
    }

    /// When a host was last listed completely, if that is known.
    pub fn last_listed(&self, host: &HostName) -> Option<DateTime<Utc>> {
        self.inventory().hosts.get(host)?.observed
    }

    /// Records that a host has changed something without being able to publish it, so that the host is polled the next
    /// time.
    pub fn mark_unpublished(&self, host: &HostName) {
        if let CatalogWriter::Hosts(followed) = &self.writer {
            followed.lock().unpublished.insert(host.clone());
        }
    }

    /// Stores a complete listing of a host. If `compare` is set, returns where it differs from what was known.
    pub async fn store_listing(
        &self,
        host: &HostName,
        at: DateTime<Utc>,
        facts: Vec<Facts>,
        compare: bool,
    ) -> Result<Vec<String>, CatalogError> {
        let of_host = |((h, dataset), listed): ((HostName, _), _)| (h == *host).then_some((dataset, listed));
        let unlisted = facts::unlisted(&facts);
        let listings = facts::assemble(facts.into_iter().filter_map(|fact| fact.listing));
        let datasets: BTreeMap<_, _> = listings.into_iter().filter_map(of_host).collect();
        let host = host.clone();
        if !self.is_shared() {
            let of = host.clone();
            let (found, now) = self
                .with_catalog(move |catalog| {
                    let known = if compare { catalog.host(&of)? } else { None };
                    let found = if compare { differences(known.as_ref(), &datasets, &unlisted) } else { Vec::new() };
                    let listing = HostListing { datasets: datasets.into_iter().collect(), unlisted };
                    catalog.replace_pools(&of, at, listing)?;
                    // Read it again with the marks, which only the catalog has.
                    Ok((found, catalog.host(&of)?))
                })
                .await?;
            self.inventory().hosts.extend(now.map(|now| (host, now)));
            return Ok(found);
        }
        let mut inventory = self.inventory();
        let found = if compare { differences(inventory.hosts.get(&host), &datasets, &unlisted) } else { Vec::new() };
        let known = inventory.hosts.entry(host.clone()).or_default();
        known.datasets.retain(|name, _| datasets.contains_key(name) || unlisted.contains_key(name.pool()));
        known.unlisted = unlisted;
        for (name, listed) in datasets {
            apply(known, &name, Change::Listed(listed));
        }
        known.observed = Some(at);
        if let CatalogWriter::Hosts(followed) = &self.writer {
            followed.lock().unpublished.remove(&host);
        }
        Ok(found)
    }

    /// Records how far the clock of a host is behind this director's; `None` if the host has not told.
    pub(crate) fn set_clock(&self, host: &HostName, behind: Option<Duration>) {
        if let Some(known) = self.inventory().hosts.get_mut(host) {
            known.clock_behind = behind;
        }
    }

    /// Stores the facts that were reported while one order was carried out.
    pub async fn apply_facts(&self, host: &HostName, facts: Vec<Facts>) -> Result<(), CatalogError> {
        self.apply_changes(facts::changes(host, facts, clock::now())).await
    }

    /// Stores changes of hosts' datasets.
    pub async fn apply_changes(
        &self,
        changes: BTreeMap<HostName, Vec<(DatasetName, Change)>>,
    ) -> Result<(), CatalogError> {
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

    /// Stores the estimates that agents made for a plan.
    pub async fn store_estimates(&self, estimates: BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        self.with_catalog(move |catalog| catalog.replace_estimates(&estimates)).await
    }

    /// Records how an order ended.
    pub async fn record_outcome(&self, outcome: Outcome) -> Result<(), CatalogError> {
        self.with_catalog(move |catalog| catalog.record_outcome(&outcome)).await
    }

    /// Writes the outcomes that the catalog has buffered.
    pub async fn flush(&self) -> Result<(), CatalogError> {
        self.with_catalog(CatalogWrite::flush).await
    }

    /// Why the catalog is kept in memory only, if there is no room for it on the disk.
    pub fn unsaved(&self) -> Option<String> {
        self.catalog.unsaved()
    }

    /// Deletes marks made before `older_than`.
    pub async fn forget_marks(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError> {
        self.with_catalog(move |catalog| catalog.forget_marks(older_than)).await
    }

    /// Deletes what is known of the hosts that are not in `named`, if the newest of it is older than `older_than`.
    pub async fn forget_hosts(
        &self,
        named: BTreeSet<HostName>,
        older_than: DateTime<Utc>,
    ) -> Result<BTreeSet<HostName>, CatalogError> {
        let forgotten = self.with_catalog(move |catalog| catalog.forget_hosts(&named, older_than)).await?;
        self.inventory().hosts.retain(|host, _| !forgotten.contains(host));
        if let CatalogWriter::Hosts(followed) = &self.writer {
            let mut followed = followed.lock();
            followed.read.retain(|host, _| !forgotten.contains(host));
            followed.unpublished.retain(|host| !forgotten.contains(host));
        }
        Ok(forgotten)
    }
}
