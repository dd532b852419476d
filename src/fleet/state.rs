//! What a director knows about its fleet: the inventory in memory, and the catalog beside it.
//!
//! An embedded catalog is written by the director alone, which records what hosts report. A shared catalog is written
//! by the hosts themselves: the inventory in memory follows what they publish, and what orders report in the meantime.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_lock::MutexGuardArc;
use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::catalog::{CatalogError, CatalogRead, CatalogWrite, Change, Estimated, Generations, apply, differences};
use crate::fleet::certificates::SeenCertificates;
use crate::fleet::durations::KnownDurations;
use crate::fleet::facts;
use crate::fleet::silent::SilentHosts;
use crate::fleet::touched::{self, Moment, Touched};
use crate::model::{DatasetInventory, DatasetName, HostListing, HostName, Inventory};
use crate::sys::{clock, runtime};
use crate::wire::Facts;

/// The inventory of a fleet with its catalog. Clones share one state.
pub struct FleetState<C: ?Sized> {
    inventory: Arc<Mutex<Inventory>>,
    catalog: Arc<C>,
    writer: CatalogWriter,
    /// Hosts that did not answer when they were polled last.
    silent: Arc<Mutex<SilentHosts>>,
    /// Which datasets orders have changed, and when. It is changed only while the inventory is locked.
    touched: Arc<Mutex<Touched>>,
    /// Whether the inventory was read from the catalog.
    is_loaded: Arc<AtomicBool>,
    certificates: SeenCertificates,
    pub(super) durations: KnownDurations,
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
        let (silent, touched) = (Arc::clone(&self.silent), Arc::clone(&self.touched));
        let is_loaded = Arc::clone(&self.is_loaded);
        let (certificates, writer, token) = (self.certificates.clone(), self.writer.clone(), self.token.clone());
        let durations = self.durations.clone();
        Self { inventory, catalog, writer, silent, touched, is_loaded, certificates, durations, token }
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
            touched: Arc::default(),
            is_loaded: Arc::default(),
            certificates: SeenCertificates::default(),
            durations: KnownDurations::default(),
            token: None,
        }
    }

    /// The state of a fleet whose catalog is written by the hosts. The inventory is empty until
    /// [`FleetState::catch_up`].
    #[must_use]
    pub fn shared(catalog: Arc<C>) -> Self {
        Self { writer: CatalogWriter::Hosts(Arc::default()), ..Self::embedded(catalog) }
    }

    /// This state, which holds a token as long as there is work on it.
    #[must_use]
    pub fn tracked(self, token: Option<runtime::channel::Sender<()>>) -> Self {
        Self { token, ..self }
    }

    /// When the certificates of the hosts expire.
    #[must_use]
    pub fn certificates(&self) -> &SeenCertificates {
        &self.certificates
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
        let began = self.moment();
        // If reading fails, everything is read again the next time.
        let mut read = std::mem::take(&mut followed.lock().read);
        let wanted = hosts.clone();
        let reading = self.with_catalog(move |catalog| Ok((catalog.published(&wanted, &mut read)?, read)));
        let (published, read) = reading.await?;
        let published = published.unwrap_or_default();
        {
            let mut inventory = self.inventory();
            for (host, mut now) in published.changed {
                // An order has told this since.
                for (name, later) in self.touched.lock().since(began, &host, inventory.hosts.get(&host)) {
                    put(&mut now.datasets, name, later);
                }
                inventory.hosts.insert(host, now);
            }
        }
        let mut followed = followed.lock();
        followed.read = read;
        Ok(&published.whole - &followed.unpublished)
    }

    /// Begins a poll. The first one reads what the catalog remembers; after that, the inventory has everything that the
    /// catalog has, and also what running orders tell meanwhile. Hosts that are not `current` count as not listed until
    /// they have been listed once. Those that are `polled` keep their last listing until [`FleetState::not_listed`].
    pub async fn begin(&self, current: &BTreeSet<HostName>, polled: &BTreeSet<HostName>) -> Result<(), CatalogError> {
        let mut is_first = false;
        if !self.is_shared() && !self.is_loaded.load(Ordering::Relaxed) {
            let remembered = self.with_catalog(CatalogRead::inventory).await?;
            *self.inventory() = remembered;
            self.is_loaded.store(true, Ordering::Relaxed);
            is_first = true;
        }
        let mut inventory = self.inventory();
        for (host, known) in &mut inventory.hosts {
            let is_polled = polled.contains(host);
            if !is_polled || is_first {
                known.clock_behind = None;
            }
            if current.contains(host) {
                continue;
            }
            if !is_polled || is_first {
                known.observed = None;
            }
            if let CatalogWriter::Hosts(followed) = &self.writer {
                // The host's records are read again once it can be reached.
                followed.lock().read.remove(host);
            }
        }
        Ok(())
    }

    /// Records that a host could not be listed.
    pub fn not_listed(&self, host: &HostName) {
        if let Some(known) = self.inventory().hosts.get_mut(host) {
            (known.observed, known.clock_behind) = (None, None);
        }
    }

    /// The present moment. Whoever asks a host for a listing notes it before.
    pub fn moment(&self) -> Moment {
        self.touched.lock().next()
    }

    /// Whether an order has changed a dataset since a moment.
    pub fn is_touched_since(&self, began: Moment, host: &HostName, dataset: &DatasetName) -> bool {
        self.touched.lock().is_touched_since(began, host, dataset)
    }

    /// Holds the locks of these hosts, for writing what they have reported.
    async fn writing<'h>(&self, hosts: impl IntoIterator<Item = &'h HostName>) -> Vec<MutexGuardArc<()>> {
        let locks = self.touched.lock().locks(hosts);
        touched::lock(locks).await
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

    pub(super) async fn with_catalog<T: Send + 'static>(
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

    /// How often a host has answered a poll after it had not answered the one before.
    pub(crate) fn returns(&self, host: &HostName) -> u64 {
        self.silent().returns(host)
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

    /// Stores a complete listing of a host, for which the host was asked at the moment `began`. What orders have told
    /// since stays. If `compare` is set, returns where the listing differs from what was known.
    pub async fn store_listing(
        &self,
        host: &HostName,
        (at, began): (DateTime<Utc>, Moment),
        facts: Vec<Facts>,
        compare: bool,
    ) -> Result<Vec<String>, CatalogError> {
        let of_host = |((h, dataset), listed): ((HostName, _), _)| (h == *host).then_some((dataset, listed));
        let unlisted = facts::unlisted(&facts);
        let listings = facts::assemble(facts.into_iter().filter_map(|fact| fact.listing));
        let mut datasets: BTreeMap<_, _> = listings.into_iter().filter_map(of_host).collect();
        let _writing = self.writing([host]).await;
        {
            let inventory = self.inventory();
            for (name, later) in self.touched.lock().since(began, host, inventory.hosts.get(host)) {
                put(&mut datasets, name, later);
            }
        }
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

    /// Stores the facts that were reported while one order was carried out.
    pub async fn apply_facts(&self, host: &HostName, facts: Vec<Facts>) -> Result<(), CatalogError> {
        self.apply_changes(facts::changes(host, facts, clock::now())).await
    }

    /// Stores the listings of some datasets of a host, for which the host was asked at the moment `began`. What orders
    /// have told since stays.
    pub async fn apply_listings(
        &self,
        host: &HostName,
        began: Moment,
        mut changes: Vec<(DatasetName, Change)>,
    ) -> Result<(), CatalogError> {
        let _writing = self.writing([host]).await;
        changes.retain(|(name, _)| !self.touched.lock().is_touched_since(began, host, name));
        self.write_changes([(host.clone(), changes)].into()).await
    }

    /// Stores changes of hosts' datasets that an order has told.
    pub async fn apply_changes(
        &self,
        changes: BTreeMap<HostName, Vec<(DatasetName, Change)>>,
    ) -> Result<(), CatalogError> {
        let _writing = self.writing(changes.keys()).await;
        self.write_changes(changes).await
    }

    async fn write_changes(&self, changes: BTreeMap<HostName, Vec<(DatasetName, Change)>>) -> Result<(), CatalogError> {
        {
            let mut inventory = self.inventory();
            let mut touched = self.touched.lock();
            for (host, changes) in &changes {
                let known = inventory.hosts.entry(host.clone()).or_default();
                for (name, change) in changes {
                    touched.touch(host, name);
                    apply(known, name, change.clone());
                }
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

/// Replaces what is known of a dataset; `None` if it does not exist.
fn put(datasets: &mut BTreeMap<DatasetName, DatasetInventory>, name: DatasetName, now: Option<DatasetInventory>) {
    match now {
        Some(now) => drop(datasets.insert(name, now)),
        None => drop(datasets.remove(&name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::MemoryCatalog;
    use crate::model::{Guid, Snapshot};
    use crate::wire::Listing;

    fn listing(host: &str, datasets: &[(&str, &[u64])]) -> Vec<Facts> {
        let facts = |(name, guids): &(&str, &[u64])| {
            let snapshot = |guid: &u64| Snapshot {
                name: format!("S_{guid}").parse().unwrap(),
                guid: Guid(*guid),
                createtxg: *guid,
                creation: DateTime::UNIX_EPOCH,
                userrefs: 0,
                has_clones: false,
                used: 0,
                marks: crate::model::Marks::default(),
            };
            let snapshots = guids.iter().map(snapshot).collect();
            let inventory = DatasetInventory { snapshots, ..DatasetInventory::default() };
            let (host, dataset) = (host.parse().unwrap(), name.parse().unwrap());
            Facts { listing: Some(Listing { host, dataset, continued: false, inventory }), ..Facts::default() }
        };
        datasets.iter().map(facts).collect()
    }

    fn known(inventory: &Inventory) -> Vec<(String, Vec<u64>)> {
        let of = |known: &crate::model::HostInventory| {
            let guids = |d: &DatasetInventory| d.snapshots.iter().map(|s| s.guid.0).collect();
            known.datasets.iter().map(|(name, d)| (name.to_string(), guids(d))).collect::<Vec<_>>()
        };
        inventory.hosts.values().flat_map(of).collect()
    }

    /// An order ends while a host lists its snapshots: what it told is not undone, neither in memory nor in the catalog.
    #[test]
    fn listing_does_not_undo_what_an_order_told_after_it_began() {
        let host: HostName = "alpha".parse().unwrap();
        let catalog = Arc::new(MemoryCatalog::new());
        for state in [FleetState::embedded(Arc::clone(&catalog)), FleetState::shared(Arc::new(MemoryCatalog::new()))] {
            runtime::block_on(async {
                let before = listing("alpha", &[("tank/a", &[1]), ("tank/b", &[2]), ("tank/gone", &[9])]);
                state.begin(&BTreeSet::new(), &BTreeSet::new()).await.unwrap();
                state.store_listing(&host, (clock::now(), state.moment()), before.clone(), false).await.unwrap();
                let began = state.moment();
                state.apply_facts(&host, listing("alpha", &[("tank/a", &[1, 3]), ("tank/new", &[4])])).await.unwrap();
                let gone = [(host.clone(), vec![("tank/gone".parse().unwrap(), Change::Gone)])];
                state.apply_changes(gone.into()).await.unwrap();
                let since = listing("alpha", &[("tank/a", &[1]), ("tank/b", &[2, 5]), ("tank/gone", &[9])]);
                state.store_listing(&host, (clock::now(), began), since.clone(), false).await.unwrap();
                let expected = [("tank/a", vec![1, 3]), ("tank/b", vec![2, 5]), ("tank/new", vec![4])]
                    .map(|(n, g)| (n.to_owned(), g));
                assert_eq!(known(&state.inventory()), expected);
                if !state.is_shared() {
                    assert_eq!(known(&state.remembered().await.unwrap()), expected);
                }
                // A part of a listing that began before does not undo it either.
                let old: DatasetName = "tank/a".parse().unwrap();
                state.apply_listings(&host, began, vec![(old, Change::Gone)]).await.unwrap();
                assert_eq!(known(&state.inventory()), expected);
                // The next poll does not begin with less than was known, and its listing counts again.
                state.begin(&BTreeSet::new(), &[host.clone()].into()).await.unwrap();
                assert_eq!(known(&state.inventory()), expected);
                assert!(state.last_listed(&host).is_some());
                state.store_listing(&host, (clock::now(), state.moment()), before, false).await.unwrap();
                let (a, gone) = (("tank/a".to_owned(), vec![1]), ("tank/gone".to_owned(), vec![9]));
                assert_eq!(known(&state.inventory()), [a, ("tank/b".to_owned(), vec![2]), gone]);
                state.not_listed(&host);
                assert!(state.last_listed(&host).is_none());
            });
        }
    }

    /// After a restart, what the catalog remembers is not taken for a listing.
    #[test]
    fn remembered_hosts_count_as_not_listed() {
        let host: HostName = "alpha".parse().unwrap();
        let catalog = Arc::new(MemoryCatalog::new());
        runtime::block_on(async {
            let state = FleetState::embedded(Arc::clone(&catalog));
            let all = listing("alpha", &[("tank/a", &[1])]);
            state.store_listing(&host, (clock::now(), state.moment()), all, false).await.unwrap();
            let state = FleetState::embedded(catalog);
            state.begin(&BTreeSet::new(), &[host.clone()].into()).await.unwrap();
            assert_eq!(known(&state.inventory()).len(), 1);
            assert!(state.last_listed(&host).is_none());
        });
    }
}
