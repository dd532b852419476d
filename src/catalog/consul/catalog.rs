//! [`ConsulCatalog`], through which directors and hosts read and write the catalog in Consul.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::catalog::consul::keys::Keys;
use crate::catalog::consul::record::{Generation, HostRecord};
use crate::catalog::consul::write::{HostWriter, WriteError};
use crate::catalog::consul::{codec, history};
use crate::catalog::{
    CatalogError, CatalogRead, CatalogWrite, Change, Destroyed, Estimated, Generations, Outcome, Published,
};
use crate::consul::{Committed, Consul, ConsulSettings, MOST_BYTES, Op};
use crate::model::{DatasetInventory, DatasetName, HostInventory, HostListing, HostName, Inventory, UnlistedPools};
use crate::sys::runtime;

/// How many hosts are read in parallel.
const PARALLEL_READS: usize = 8;
/// How many outcomes are buffered before they are written.
const BUFFERED_OUTCOMES: usize = 256;

/// The catalog in Consul.
#[derive(Debug)]
pub struct ConsulCatalog {
    consul: Consul,
    root: String,
    /// Outcomes that are not written yet.
    buffered: Mutex<Vec<Outcome>>,
}

/// Converts the result of a conditional write: `false` after a conflict.
fn unless_conflict(result: Result<(), WriteError>) -> Result<bool, CatalogError> {
    match result {
        Ok(()) => Ok(true),
        Err(WriteError::Conflict) => Ok(false),
        Err(WriteError::Failed(error)) => Err(error),
    }
}

impl ConsulCatalog {
    /// The catalog whose keys begin with `root` (without a slash). Does not connect yet.
    #[must_use]
    pub fn new(consul: Consul, root: &str) -> Self {
        Self { consul, root: root.to_owned(), buffered: Mutex::default() }
    }

    /// The catalog that the settings describe. Does not connect yet.
    pub fn open(settings: &ConsulSettings) -> Result<Self, CatalogError> {
        Ok(Self::new(Consul::new(settings)?, &settings.prefix))
    }

    /// The client of the Consul that stores the catalog.
    #[must_use]
    pub fn consul(&self) -> &Consul {
        &self.consul
    }

    /// The prefix of all keys, without the slash that follows it.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    fn estimates_key(&self) -> String {
        format!("{}/estimates", self.root)
    }

    fn keys(&self, host: &HostName) -> Keys {
        Keys::new(&self.root, host)
    }

    fn writer<'a>(&'a self, host: &'a HostName) -> HostWriter<'a> {
        HostWriter::new(&self.consul, &self.root, host)
    }

    /// Reads every host's generation, with the index of its pair. Pairs that cannot be decoded are left out, so that
    /// their hosts do not count as published.
    async fn generations(&self) -> Result<BTreeMap<HostName, (Generation, u64)>, CatalogError> {
        let prefix = format!("{}/generation/", self.root);
        let mut all = BTreeMap::new();
        for pair in self.consul.list(&prefix).await? {
            let host = pair.key.strip_prefix(&prefix).and_then(|name| name.parse::<HostName>().ok());
            match host.zip(Generation::decode(&pair.value)) {
                Some((host, generation)) => drop(all.insert(host, (generation, pair.modify_index))),
                None => log::warn!("ignoring {} in Consul: zsync did not write it, or a newer version did", pair.key),
            }
        }
        Ok(all)
    }

    async fn record(&self, host: &HostName) -> Result<HostRecord, CatalogError> {
        Ok(HostRecord::read(&self.consul, self.keys(host)).await?)
    }

    async fn records(&self, hosts: Vec<HostName>) -> Result<Vec<(HostName, HostRecord)>, CatalogError> {
        let reads = hosts.into_iter().map(|host| {
            let catalog = Self::new(self.consul.clone(), &self.root);
            async move {
                let record = catalog.record(&host).await?;
                Ok((host, record))
            }
        });
        let reads: Vec<_> = reads.collect();
        runtime::side_by_side(PARALLEL_READS, reads).await.into_iter().collect()
    }

    async fn whole_inventory(&self) -> Result<Inventory, CatalogError> {
        let hosts = self.generations().await?.into_keys().collect();
        let records = self.records(hosts).await?;
        let is_known = |host: &HostInventory| host.observed.is_some() || !host.datasets.is_empty();
        let hosts = records.into_iter().map(|(host, record)| (host, record.into_inventory()));
        Ok(Inventory { hosts: hosts.filter(|(_, host)| is_known(host)).collect() })
    }

    /// See [`CatalogRead::published`].
    pub async fn read_published(
        &self,
        wanted: &BTreeSet<HostName>,
        since: &mut Generations,
    ) -> Result<Published, CatalogError> {
        let generations = self.generations().await?;
        let (mut published, mut stale) = (Published::default(), Vec::new());
        for host in wanted {
            match generations.get(host) {
                Some((_, index)) if since.get(host) == Some(index) => drop(published.whole.insert(host.clone())),
                Some(_) => stale.push(host.clone()),
                None => drop(since.remove(host)),
            }
        }
        for (host, record) in self.records(stale).await? {
            match (record.observed(), &record.generation) {
                (Some(_), Some((_, index))) => {
                    since.insert(host.clone(), *index);
                    published.whole.insert(host.clone());
                }
                _ => {
                    since.remove(&host);
                    let doubts = record.doubts.join("; ");
                    log::info!(
                        "the record of {host} in Consul is incomplete{}{doubts}",
                        if doubts.is_empty() { "" } else { ": " }
                    );
                }
            }
            published.changed.insert(host, record.into_inventory());
        }
        Ok(published)
    }

    /// Reads the index of a host's generation; 0 if there is none yet. It has to be read before the host is listed.
    /// Then, if two processes list the host at the same time, the older listing does not overwrite the newer one.
    pub async fn generation(&self, host: &HostName) -> Result<u64, CatalogError> {
        let found = self.consul.get(&self.keys(host).generation).await?.0;
        Ok(found.map_or(0, |pair| pair.modify_index))
    }

    /// Does the same as [`CatalogWrite::update`], unless the generation has changed. Returns `false` if it has: then
    /// the caller has to list the datasets again.
    pub async fn update_if(
        &self,
        host: &HostName,
        generation: u64,
        changes: &[(DatasetName, Change)],
    ) -> Result<bool, CatalogError> {
        unless_conflict(self.writer(host).try_update(changes, Some(generation)).await)
    }

    /// Does the same as [`CatalogWrite::replace_host`], unless the generation has changed. Returns `false` if it has:
    /// then the caller has to list the host again.
    pub async fn replace_if(
        &self,
        host: &HostName,
        generation: u64,
        observed: DateTime<Utc>,
        datasets: &BTreeMap<DatasetName, DatasetInventory>,
        unlisted: &UnlistedPools,
    ) -> Result<bool, CatalogError> {
        unless_conflict(self.writer(host).try_replace(observed, datasets, unlisted, Some(generation)).await)
    }

    pub(super) fn buffered(&self) -> MutexGuard<'_, Vec<Outcome>> {
        self.buffered.lock()
    }

    /// Writes the buffered outcomes. Those of a host for which this fails stay buffered; the others are written.
    async fn write_outcomes(&self) -> Result<(), CatalogError> {
        let mut by_host: BTreeMap<HostName, Vec<Outcome>> = BTreeMap::new();
        for outcome in std::mem::take(&mut *self.buffered()) {
            by_host.entry(outcome.host.clone()).or_default().push(outcome);
        }
        let mut result = Ok(());
        for (host, mut outcomes) in by_host {
            let (keys, more) = (&self.keys(&host), &outcomes);
            let attempt = || async move {
                let op = history::with_outcomes(&self.consul, keys, more).await?;
                match self.consul.commit(&[op]).await? {
                    Committed::At(_) => Ok(()),
                    Committed::Conflict(_) => Err(WriteError::Conflict),
                }
            };
            if let Err(error) = self.writer(&host).retry_on_conflict(attempt).await {
                // They are written together with the next outcomes. No more are kept than the pair would have.
                outcomes.drain(..outcomes.len().saturating_sub(history::MOST_OUTCOMES));
                self.buffered().splice(0..0, outcomes);
                result = result.and(Err(error));
            }
        }
        result
    }
}

impl CatalogRead for ConsulCatalog {
    fn inventory(&self) -> Result<Inventory, CatalogError> {
        runtime::block_on(self.whole_inventory())
    }

    fn host(&self, host: &HostName) -> Result<Option<HostInventory>, CatalogError> {
        let record = runtime::block_on(self.record(host))?;
        Ok((record.generation.is_some() || !record.datasets.is_empty()).then(|| record.into_inventory()))
    }

    fn published(
        &self,
        wanted: &BTreeSet<HostName>,
        since: &mut Generations,
    ) -> Result<Option<Published>, CatalogError> {
        runtime::block_on(self.read_published(wanted, since)).map(Some)
    }

    fn outcomes(&self, limit: usize) -> Result<Vec<Outcome>, CatalogError> {
        self.flush()?;
        runtime::block_on(history::outcomes(&self.consul, &self.root, limit))
    }

    fn destroyed(&self, limit: usize) -> Result<Vec<Destroyed>, CatalogError> {
        runtime::block_on(history::destroyed(&self.consul, &self.root, limit))
    }

    fn estimates(&self) -> Result<BTreeMap<Uuid, Estimated>, CatalogError> {
        let pair = runtime::block_on(self.consul.get(&self.estimates_key()))?.0;
        Ok(pair.and_then(|pair| codec::unpack(&pair.value).ok()).unwrap_or_default())
    }
}

impl CatalogWrite for ConsulCatalog {
    fn replace_pools(
        &self,
        host: &HostName,
        observed: DateTime<Utc>,
        HostListing { datasets, unlisted }: HostListing,
    ) -> Result<(), CatalogError> {
        let listed = datasets.into_iter().collect();
        let writer = self.writer(host);
        runtime::block_on(writer.retry_on_conflict(|| writer.try_replace(observed, &listed, &unlisted, None)))
    }

    fn update(&self, host: &HostName, changes: Vec<(DatasetName, Change)>) -> Result<(), CatalogError> {
        if changes.is_empty() {
            return Ok(());
        }
        let writer = self.writer(host);
        runtime::block_on(writer.retry_on_conflict(|| writer.try_update(&changes, None)))
    }

    fn forget_marks(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError> {
        runtime::block_on(async {
            let mut forgotten = 0;
            for host in self.generations().await?.into_keys() {
                let writer = self.writer(&host);
                forgotten += writer.retry_on_conflict(|| writer.try_forget(older_than)).await?;
            }
            Ok(forgotten)
        })
    }

    fn forget_hosts(
        &self,
        named: &BTreeSet<HostName>,
        older_than: DateTime<Utc>,
    ) -> Result<BTreeSet<HostName>, CatalogError> {
        self.flush()?;
        runtime::block_on(async {
            let mut hosts: BTreeSet<HostName> = self.generations().await?.into_keys().collect();
            hosts.extend(history::hosts(&self.consul, &self.root).await?);
            let mut forgotten = BTreeSet::new();
            for host in hosts.into_iter().filter(|host| !named.contains(host)) {
                let writer = self.writer(&host);
                if writer.retry_on_conflict(|| writer.try_forget_host(older_than)).await? {
                    forgotten.insert(host);
                }
            }
            Ok(forgotten)
        })
    }

    fn record_outcome(&self, outcome: &Outcome) -> Result<(), CatalogError> {
        let are_many = {
            let mut buffered = self.buffered();
            buffered.push(outcome.clone());
            buffered.len().is_multiple_of(BUFFERED_OUTCOMES)
        };
        // A pass does not end because its history cannot be written. The end of the pass writes it, or reports why not.
        if are_many && let Err(error) = self.flush() {
            log::debug!("cannot write outcomes to Consul, and will write them later: {error}");
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), CatalogError> {
        runtime::block_on(self.write_outcomes())
    }

    fn replace_estimates(&self, estimates: &BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        let value = codec::pack(estimates);
        if value.len() > MOST_BYTES {
            // Agents can be asked for them again.
            log::debug!("discarded the estimates of {} orders: they do not fit into one pair", estimates.len());
            return Ok(());
        }
        runtime::block_on(self.consul.commit(&[Op::Set { key: self.estimates_key(), value }]))?;
        Ok(())
    }
}
