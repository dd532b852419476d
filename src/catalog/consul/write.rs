//! Changes the pairs of one host: from a fresh read to transactions that Consul applies completely or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::catalog::consul::codec;
use crate::catalog::consul::codec::Parts;
use crate::catalog::consul::history::{DestroyedHistory, HostHistory};
use crate::catalog::consul::keys::{Keys, MOST_PARTS, PART};
use crate::catalog::consul::record::{DatasetPair, Generation, HostRecord};
use crate::catalog::dataset::CatalogDataset;
use crate::catalog::{CatalogError, Change};
use crate::consul::{Committed, Consul, MOST_BYTES, MOST_OPS, Op};
use crate::model::{DatasetInventory, DatasetName, HostName, UnlistedPools};
use crate::sys::runtime;

/// How many times a write is attempted at most.
const ATTEMPTS: usize = 12;

/// Why a write was not made.
pub(super) enum WriteError {
    /// Another writer changed a pair meanwhile.
    Conflict,
    /// The write failed.
    Failed(CatalogError),
}

impl<E: Into<CatalogError>> From<E> for WriteError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Operations that have to be in the same transaction, and by how much they change the number of datasets.
#[derive(Debug, Default)]
struct OpGroup {
    ops: Vec<Op>,
    datasets: i64,
}

/// Writes the pairs of one host.
pub(super) struct HostWriter<'a> {
    consul: &'a Consul,
    host: &'a HostName,
    keys: Keys,
}

impl<'a> HostWriter<'a> {
    /// A writer for the pairs of `host` below `root`.
    pub fn new(consul: &'a Consul, root: &str, host: &'a HostName) -> Self {
        Self { consul, host, keys: Keys::new(root, host) }
    }

    /// Makes up to [`ATTEMPTS`] attempts at a write, until one meets no conflict with another writer.
    pub async fn retry_on_conflict<T, F: Future<Output = Result<T, WriteError>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, CatalogError> {
        for number in 1..=ATTEMPTS {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(WriteError::Failed(error)) => return Err(error),
                Err(WriteError::Conflict) => {
                    log::debug!("{} in Consul changed during attempt {number} to write it", self.host);
                    // The pause has a random length, because two writers in step would conflict again.
                    let jitter = u64::from(Uuid::now_v7().as_bytes()[15]) % 16;
                    runtime::sleep(Duration::from_millis(number as u64 * (5 + jitter))).await;
                }
            }
        }
        Err(CatalogError::Contended { key: self.keys.generation.clone(), tries: ATTEMPTS })
    }

    /// Reads the pair of one dataset.
    async fn read_dataset(&self, name: &DatasetName) -> Result<Option<DatasetPair>, WriteError> {
        let key = self.keys.dataset(name);
        let Some(pair) = self.consul.get(&key).await?.0 else { return Ok(None) };
        if let Ok(whole) = DatasetPair::read(&self.keys, name, &pair, &mut BTreeMap::new()) {
            return Ok(Some(whole));
        }
        let parts = self.consul.list(&format!("{key}@")).await?;
        let mut parts = parts.into_iter().map(|part| (part.key.clone(), part)).collect();
        let read = DatasetPair::read(&self.keys, name, &pair, &mut parts);
        Ok(Some(read.unwrap_or_else(|_| DatasetPair::undecodable(&pair))))
    }

    /// Returns the operations that change a dataset's pair from `stored` to `now`, or `None` if they are equal. If the
    /// dataset needs parts, they are written here, and the operations check that they are still the same.
    async fn dataset_ops(
        &self,
        name: &DatasetName,
        stored: Option<&DatasetPair>,
        now: &CatalogDataset,
    ) -> Result<Option<OpGroup>, WriteError> {
        if stored.and_then(|pair| pair.dataset.as_ref()) == Some(now) {
            return Ok(None);
        }
        let (key, index) = (self.keys.dataset(name), stored.map_or(0, |pair| pair.index));
        let mut ops: Vec<Op> = Vec::new();
        if now.is_empty() {
            let Some(_) = stored else { return Ok(None) };
            ops.push(Op::DeleteCas { key, index });
        } else {
            let dataset = now.clone();
            let value = runtime::blocking(move || codec::encode(&dataset)).await;
            if value.len() <= PART {
                ops.push(Op::Cas { key, value, index });
            } else {
                let (parts, checks) = self.write_parts(name, &value).await?;
                ops = checks;
                ops.push(Op::Cas { key, value: codec::encode_parts(parts), index });
            }
        }
        let old_parts = stored.iter().flat_map(|pair| &pair.parts);
        ops.extend(old_parts.map(|(key, index)| Op::DeleteCas { key: key.clone(), index: *index }));
        let datasets = i64::from(!now.is_empty()) - i64::from(stored.is_some());
        Ok(Some(OpGroup { ops, datasets }))
    }

    /// Writes a value that is too large for one pair as parts. Returns the operations that check that nobody changed
    /// them.
    async fn write_parts(&self, name: &DatasetName, value: &[u8]) -> Result<(Parts, Vec<Op>), WriteError> {
        let parts = Parts { set: Uuid::now_v7(), count: value.len().div_ceil(PART), bytes: value.len() };
        if parts.count > MOST_PARTS {
            let (host, dataset) = (self.host.clone(), name.clone());
            let (bytes, most) = (value.len(), MOST_PARTS * PART);
            return Err(WriteError::Failed(CatalogError::TooLarge { host, dataset, bytes, most }));
        }
        let mut checks = Vec::new();
        for (number, part) in value.chunks(PART).enumerate() {
            let key = self.keys.part(name, &parts, number);
            match self.consul.commit(&[Op::Cas { key: key.clone(), value: part.to_vec(), index: 0 }]).await? {
                Committed::At(index) => checks.push(Op::Check { key, index }),
                Committed::Conflict(_) => return Err(WriteError::Conflict),
            }
        }
        Ok((parts, checks))
    }

    /// Commits groups of operations in as few transactions as possible. Every transaction also writes the generation,
    /// and the last one sets when the host was `observed`.
    async fn commit_groups(
        &self,
        groups: Vec<OpGroup>,
        (mut generation, mut index): (Generation, u64),
        observed: Option<i64>,
    ) -> Result<(), WriteError> {
        let mut pending = groups.into_iter().peekable();
        loop {
            let (mut ops, mut bytes) = (Vec::new(), 0);
            while let Some(group) = pending.peek() {
                let more: usize = group.ops.iter().map(Op::bytes).sum();
                if !ops.is_empty() && (ops.len() + group.ops.len() >= MOST_OPS || bytes + more > MOST_BYTES) {
                    break;
                }
                let Some(group) = pending.next() else { break };
                bytes += more;
                ops.extend(group.ops);
                generation.datasets =
                    generation.datasets.saturating_add_signed(isize::try_from(group.datasets).unwrap_or(0));
            }
            let last = pending.peek().is_none();
            if last {
                generation.observed = observed;
            }
            generation.number = generation.number.wrapping_add(1);
            ops.push(Op::Cas { key: self.keys.generation.clone(), value: generation.encode(), index });
            index = self.commit(&ops).await?;
            if last {
                return Ok(());
            }
        }
    }

    /// Applies changes to datasets, unless the index of the generation differs from `expected`.
    pub async fn try_update(&self, changes: &[(DatasetName, Change)], expected: Option<u64>) -> Result<(), WriteError> {
        let pair = self.consul.get(&self.keys.generation).await?.0;
        let index = pair.as_ref().map_or(0, |pair| pair.modify_index);
        if expected.is_some_and(|expected| expected != index) {
            return Err(WriteError::Conflict);
        }
        let generation = pair.as_ref().and_then(|pair| Generation::decode(&pair.value)).unwrap_or_default();
        let mut observed = generation.observed;
        let mut touched: BTreeMap<&DatasetName, Vec<&Change>> = BTreeMap::new();
        for (name, change) in changes {
            touched.entry(name).or_default().push(change);
        }
        let (mut groups, mut destroyed) = (Vec::new(), Vec::new());
        for (name, changes) in touched {
            let stored = self.read_dataset(name).await?;
            if stored.as_ref().is_some_and(|pair| pair.dataset.is_none() || pair.index > index) {
                // Something other than zsync wrote this pair. It is overwritten, and the host counts as incomplete
                // until it is listed as a whole.
                observed = None;
            }
            let mut now = stored.as_ref().and_then(|pair| pair.dataset.clone()).unwrap_or_default();
            for change in changes {
                destroyed.extend(now.apply(change.clone()).into_iter().map(|snapshot| (name.clone(), snapshot)));
            }
            groups.extend(self.dataset_ops(name, stored.as_ref(), &now).await?);
        }
        if !destroyed.is_empty() {
            let history = DestroyedHistory::read(self.consul, &self.keys).await?;
            let op = history.with(destroyed).op(&self.keys);
            // These are in the transaction of the first changed dataset, so that either both are written or neither is.
            match groups.first_mut() {
                Some(group) => group.ops.push(op),
                None => groups.push(OpGroup { ops: vec![op], datasets: 0 }),
            }
        }
        if groups.is_empty() && pair.is_some() {
            return Ok(());
        }
        self.commit_groups(groups, (generation, index), observed).await
    }

    /// Replaces all datasets of the host, unless the index of the generation differs from `expected`.
    pub async fn try_replace(
        &self,
        observed: DateTime<Utc>,
        listed: &BTreeMap<DatasetName, DatasetInventory>,
        unlisted: &UnlistedPools,
        expected: Option<u64>,
    ) -> Result<(), WriteError> {
        let record = HostRecord::read(self.consul, self.keys.clone()).await?;
        let names: BTreeSet<&DatasetName> = record.datasets.keys().chain(listed.keys()).collect();
        let mut groups = Vec::new();
        for name in names {
            let stored = record.datasets.get(name);
            let mut now = stored.and_then(|pair| pair.dataset.clone()).unwrap_or_default();
            match listed.get(name) {
                Some(inventory) => now.set_listed(inventory.clone()),
                None if unlisted.contains_key(name.pool()) => continue,
                None => now.clear_listed(),
            }
            groups.extend(self.dataset_ops(name, stored, &now).await?);
        }
        let strays = record.strays.iter().map(|(key, index)| {
            log::warn!("deleting {key} from Consul, because nothing refers to it");
            OpGroup { ops: vec![Op::DeleteCas { key: key.clone(), index: *index }], datasets: 0 }
        });
        groups.extend(strays);
        let pair = self.consul.get(&self.keys.generation).await?.0;
        let index = pair.as_ref().map_or(0, |pair| pair.modify_index);
        // A generation that cannot be decoded still has an index.
        let decoded = pair.and_then(|pair| Some((Generation::decode(&pair.value)?, index)));
        if record.generation != decoded || expected.is_some_and(|expected| expected != index) {
            return Err(WriteError::Conflict);
        }
        // The pairs are counted again, because some may have been deleted by hand.
        let before = record.generation.map(|(generation, _)| generation).unwrap_or_default();
        let generation = Generation { datasets: record.datasets.len(), unlisted: unlisted.clone(), ..before };
        self.commit_groups(groups, (generation, index), Some(observed.timestamp())).await
    }

    /// Deletes marks and records of destroyed snapshots that are older than `older_than`, and counts them.
    pub async fn try_forget(&self, older_than: DateTime<Utc>) -> Result<usize, WriteError> {
        let record = HostRecord::read(self.consul, self.keys.clone()).await?;
        let (mut forgotten, mut groups) = (0, Vec::new());
        for (name, stored) in &record.datasets {
            let Some(mut now) = stored.dataset.clone() else { continue };
            forgotten += now.forget(older_than);
            groups.extend(self.dataset_ops(name, Some(stored), &now).await?);
        }
        let history = DestroyedHistory::read(self.consul, &self.keys).await?;
        let (history, old) = history.without(older_than);
        if old > 0 {
            forgotten += old;
            groups.push(OpGroup { ops: vec![history.op(&self.keys)], datasets: 0 });
        }
        if let (false, Some((generation, index))) = (groups.is_empty(), record.generation.clone()) {
            let observed = generation.observed;
            self.commit_groups(groups, (generation, index), observed).await?;
        }
        Ok(forgotten)
    }

    /// Deletes all pairs of the host if the newest of what they record is older than `older_than`. Returns whether it
    /// did. If nothing in them has a time, or a newer version of zsync wrote the generation, they are kept.
    pub async fn try_forget_host(&self, older_than: DateTime<Utc>) -> Result<bool, WriteError> {
        let record = HostRecord::read(self.consul, self.keys.clone()).await?;
        let history = HostHistory::read(self.consul, &self.keys).await?;
        let listed = record.generation.as_ref().and_then(|(generation, _)| generation.observed());
        let datasets = record.datasets.values().filter_map(|pair| pair.dataset.as_ref()?.last_recorded());
        let last_recorded = datasets.chain(listed).chain(history.last_recorded).max();
        if last_recorded.is_none_or(|last| last >= older_than) {
            return Ok(false);
        }
        let (mut generation, mut index) = match record.generation {
            Some(known) => known,
            None if self.consul.get(&self.keys.generation).await?.0.is_some() => return Ok(false),
            None => (Generation::default(), 0),
        };
        let mut datasets: Vec<(String, u64)> = record.strays;
        for (name, pair) in record.datasets {
            datasets.push((self.keys.dataset(&name), pair.index));
            datasets.extend(pair.parts);
        }
        let delete = |(key, index): &(String, u64)| Op::DeleteCas { key: key.clone(), index: *index };
        // The generation goes last and keeps its number of datasets, so that until then the host counts as incomplete,
        // not as one without datasets. A host that publishes meanwhile changes the generation, which is a conflict.
        for some in datasets.chunks(MOST_OPS - 1) {
            let mut ops: Vec<Op> = some.iter().map(delete).collect();
            generation.number = generation.number.wrapping_add(1);
            ops.push(Op::Cas { key: self.keys.generation.clone(), value: generation.encode(), index });
            index = self.commit(&ops).await?;
        }
        let mut last: Vec<Op> = history.pairs.iter().map(delete).collect();
        if index > 0 {
            last.push(Op::DeleteCas { key: self.keys.generation.clone(), index });
        }
        self.commit(&last).await?;
        Ok(true)
    }

    /// Commits one transaction, and returns its index.
    async fn commit(&self, ops: &[Op]) -> Result<u64, WriteError> {
        match self.consul.commit(ops).await? {
            Committed::At(index) => Ok(index),
            Committed::Conflict(reason) => {
                log::debug!("conflict at {}: {reason}", self.keys.generation);
                Err(WriteError::Conflict)
            }
        }
    }
}
