//! The catalog in Consul: one compact pair per dataset, and a small generation pair per host that says whether
//! anything changed.
//!
//! Every host writes its own records, after each order and when it is listed as a whole; the director reads the
//! generations, and of the hosts only those whose generation is another than before. Writing is check-and-set on the
//! generation and on every pair, in transactions that Consul carries out whole or not at all; on a conflict it begins
//! again from a fresh read. Reading is done in Consul's `consistent` mode, one host at one instant.

mod codec;
mod history;
mod record;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::catalog::consul::record::{Generation, HostRecord, Keys};
use crate::catalog::{CatalogError, CatalogRead, CatalogWrite, Change, Destroyed, Estimated, Outcome};
use crate::consul::{Committed, Consul, MOST_BYTES, Op, Settings};
use crate::model::{DatasetInventory, DatasetName, HostInventory, HostName, Inventory};
use crate::sys::runtime;

/// The largest value of one pair; in a transaction's JSON it grows by a third, and Consul takes 512 KiB of that.
const PART: usize = 256 << 10;
/// In how many parts a dataset may lie: old and new ones fit into one transaction.
const MOST_PARTS: usize = 30;
/// How often a write is begun again.
const TRIES: usize = 12;
/// How many hosts are read at once.
const READS_AT_ONCE: usize = 8;
/// After how many outcomes they are written.
const OUTCOMES_AT_ONCE: usize = 256;

/// The generation of each host that was read, as the index of its pair.
pub type Generations = BTreeMap<HostName, u64>;

/// What hosts have published.
#[derive(Debug, Default)]
pub struct Published {
    /// Hosts that changed since, as they are now. One that cannot be relied on has not been observed.
    pub changed: BTreeMap<HostName, HostInventory>,
    /// Hosts whose records are whole, changed or not.
    pub whole: BTreeSet<HostName>,
}

/// The catalog in Consul.
#[derive(Debug)]
pub struct ConsulCatalog {
    consul: Consul,
    root: String,
    outcomes: Mutex<Vec<Outcome>>,
}

/// Something had changed meanwhile.
enum Stop {
    Conflict,
    Failed(CatalogError),
}

impl<E: Into<CatalogError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn happened(result: Result<(), Stop>) -> Result<bool, CatalogError> {
    match result {
        Ok(()) => Ok(true),
        Err(Stop::Conflict) => Ok(false),
        Err(Stop::Failed(error)) => Err(error),
    }
}

impl ConsulCatalog {
    /// The catalog below `root` (without a slash). Nothing is asked yet.
    #[must_use]
    pub fn new(consul: Consul, root: &str) -> Self {
        Self { consul, root: root.to_owned(), outcomes: Mutex::default() }
    }

    /// The catalog of a configuration.
    pub fn open(config: &Settings) -> Result<Self, CatalogError> {
        Ok(Self::new(Consul::new(config)?, &config.prefix))
    }

    /// The Consul that it is in.
    #[must_use]
    pub fn consul(&self) -> &Consul {
        &self.consul
    }

    /// What all its keys begin with.
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

    /// Every host's generation with its index. What is not understood is left out: its host is in doubt.
    async fn generations(&self) -> Result<BTreeMap<HostName, (Generation, u64)>, CatalogError> {
        let prefix = format!("{}/generation/", self.root);
        let mut all = BTreeMap::new();
        for pair in self.consul.list(&prefix).await? {
            let host = pair.key.strip_prefix(&prefix).and_then(|name| name.parse::<HostName>().ok());
            match host.zip(Generation::read(&pair.value)) {
                Some((host, generation)) => drop(all.insert(host, (generation, pair.modify_index))),
                None => log::warn!("{} in Consul is none of zsync's, or of a newer version", pair.key),
            }
        }
        Ok(all)
    }

    async fn record(&self, host: &HostName) -> Result<HostRecord, CatalogError> {
        let keys = self.keys(host);
        let pairs = self.consul.read_trees(&[&keys.generation, &keys.inventory]).await?;
        // Uncompressing a large host takes its time.
        Ok(runtime::blocking(move || HostRecord::new(&keys, pairs)).await)
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
        runtime::side_by_side(READS_AT_ONCE, reads).await.into_iter().collect()
    }

    async fn whole_inventory(&self) -> Result<Inventory, CatalogError> {
        let hosts = self.generations().await?.into_keys().collect();
        let records = self.records(hosts).await?;
        let seen = |host: &HostInventory| host.observed.is_some() || !host.datasets.is_empty();
        let hosts = records.into_iter().map(|(host, record)| (host, record.into_inventory()));
        Ok(Inventory { hosts: hosts.filter(|(_, host)| seen(host)).collect() })
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
            match (record.observed(), record.generation) {
                (Some(_), Some((_, index))) => {
                    since.insert(host.clone(), index);
                    published.whole.insert(host.clone());
                }
                _ => {
                    since.remove(&host);
                    let doubts = record.doubts.join("; ");
                    log::info!("{host} in Consul is incomplete{}{doubts}", if doubts.is_empty() { "" } else { ": " });
                }
            }
            published.changed.insert(host, record.into_inventory());
        }
        Ok(published)
    }

    /// A host's generation, 0 before there is one: to be read before the host is listed, so that of two who list it
    /// at once the later one does not write what is older.
    pub async fn generation(&self, host: &HostName) -> Result<u64, CatalogError> {
        let found = self.consul.get(&self.keys(host).generation).await?.0;
        Ok(found.map_or(0, |pair| pair.modify_index))
    }

    /// [`CatalogWrite::update`] if the generation is still this one; `false`: it is not, look again.
    pub async fn update_if(
        &self,
        host: &HostName,
        generation: u64,
        changes: &[(DatasetName, Change)],
    ) -> Result<bool, CatalogError> {
        happened(self.try_update(host, changes, Some(generation)).await)
    }

    /// [`CatalogWrite::replace_host`] if the generation is still this one; `false`: it is not, look again.
    pub async fn replace_if(
        &self,
        host: &HostName,
        generation: u64,
        observed: DateTime<Utc>,
        datasets: &BTreeMap<DatasetName, DatasetInventory>,
    ) -> Result<bool, CatalogError> {
        happened(self.try_replace(host, observed, datasets, Some(generation)).await)
    }

    /// Tries a write until nobody else writes the same.
    async fn retried<T, F: Future<Output = Result<T, Stop>>>(
        &self,
        host: &HostName,
        attempt: impl Fn() -> F,
    ) -> Result<T, CatalogError> {
        for tried in 1..=TRIES {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Conflict) => {
                    log::debug!("{host} in Consul changed while it was being written, for the {tried}. time");
                    // Two writers that keep step would meet again.
                    let apart = u64::from(Uuid::now_v7().as_bytes()[15]) % 16;
                    runtime::sleep(Duration::from_millis(tried as u64 * (5 + apart))).await;
                }
            }
        }
        Err(CatalogError::Contended { key: self.keys(host).generation, tries: TRIES })
    }

    fn collected(&self) -> parking_lot::MutexGuard<'_, Vec<Outcome>> {
        self.outcomes.lock()
    }

    async fn write_outcomes(&self) -> Result<(), CatalogError> {
        let mut by_host: BTreeMap<HostName, Vec<Outcome>> = BTreeMap::new();
        for outcome in std::mem::take(&mut *self.collected()) {
            by_host.entry(outcome.host.clone()).or_default().push(outcome);
        }
        for (host, outcomes) in by_host {
            let keys = self.keys(&host);
            let keys = &keys;
            let outcomes = &outcomes;
            let attempt = || async move {
                let op = history::with_outcomes(&self.consul, keys, outcomes).await?;
                match self.consul.commit(&[op]).await? {
                    Committed::At(_) => Ok(()),
                    Committed::Conflict(_) => Err(Stop::Conflict),
                }
            };
            if let Err(error) = self.retried(&host, attempt).await {
                // They are written with the next ones.
                self.collected().extend(outcomes.iter().cloned());
                return Err(error);
            }
        }
        Ok(())
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
    fn replace_host(
        &self,
        host: &HostName,
        observed: DateTime<Utc>,
        datasets: Vec<(DatasetName, DatasetInventory)>,
    ) -> Result<(), CatalogError> {
        let listed = datasets.into_iter().collect();
        runtime::block_on(self.retried(host, || self.try_replace(host, observed, &listed, None)))
    }

    fn update(&self, host: &HostName, changes: Vec<(DatasetName, Change)>) -> Result<(), CatalogError> {
        if changes.is_empty() {
            return Ok(());
        }
        runtime::block_on(self.retried(host, || self.try_update(host, &changes, None)))
    }

    fn forget_marks(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError> {
        runtime::block_on(async {
            let mut forgotten = 0;
            for host in self.generations().await?.into_keys() {
                forgotten += self.retried(&host, || self.try_forget(&host, older_than)).await?;
            }
            Ok(forgotten)
        })
    }

    fn record_outcome(&self, outcome: &Outcome) -> Result<(), CatalogError> {
        let many = {
            let mut collected = self.collected();
            collected.push(outcome.clone());
            collected.len() >= OUTCOMES_AT_ONCE
        };
        if many { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), CatalogError> {
        runtime::block_on(self.write_outcomes())
    }

    fn replace_estimates(&self, estimates: &BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        let value = codec::pack(estimates);
        if value.len() > MOST_BYTES {
            // They can be asked for again.
            log::debug!("the estimates of {} orders are not kept: they are too many for one pair", estimates.len());
            return Ok(());
        }
        runtime::block_on(self.consul.commit(&[Op::Set { key: self.estimates_key(), value }]))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
