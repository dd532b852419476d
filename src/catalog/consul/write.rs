//! Writing: from a fresh read to transactions that Consul carries out whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::catalog::consul::codec::Parts;
use crate::catalog::consul::history::History;
use crate::catalog::consul::record::{Generation, Kept, Keys};
use crate::catalog::consul::{ConsulCatalog, MOST_PARTS, PART, Stop};
use crate::catalog::consul::{codec, record};
use crate::catalog::dataset::{Dataset, Gone};
use crate::catalog::{CatalogError, Change};
use crate::consul::{Committed, MOST_BYTES, MOST_OPS, Op};
use crate::model::{DatasetInventory, DatasetName, HostName};
use crate::sys::runtime;

/// Steps that belong together, and by how much they change the number of datasets.
#[derive(Debug, Default)]
struct Group {
    ops: Vec<Op>,
    datasets: i64,
}

impl ConsulCatalog {
    /// One dataset's pair as it is now.
    async fn kept(&self, keys: &Keys, name: &DatasetName) -> Result<Option<Kept>, Stop> {
        let key = keys.dataset(name);
        let Some(pair) = self.consul.get(&key).await?.0 else { return Ok(None) };
        if let Ok(kept) = record::kept(keys, name, &pair, &mut BTreeMap::new()) {
            return Ok(Some(kept));
        }
        let parts = self.consul.list(&format!("{key}@")).await?;
        let mut parts = parts.into_iter().map(|part| (part.key.clone(), part)).collect();
        let not_understood = Kept { index: pair.modify_index, parts: Vec::new(), dataset: None };
        Ok(Some(record::kept(keys, name, &pair, &mut parts).unwrap_or(not_understood)))
    }

    /// The steps from what is kept to what is to be; `None` if it is so already. Parts are written before.
    async fn group(
        &self,
        host: &HostName,
        name: &DatasetName,
        kept: Option<&Kept>,
        now: &Dataset,
    ) -> Result<Option<Group>, Stop> {
        if kept.and_then(|kept| kept.dataset.as_ref()) == Some(now) {
            return Ok(None);
        }
        let keys = self.keys(host);
        let (key, index) = (keys.dataset(name), kept.map_or(0, |kept| kept.index));
        let mut ops: Vec<Op> = Vec::new();
        if now.is_forgotten() {
            let Some(_) = kept else { return Ok(None) };
            ops.push(Op::DeleteCas { key, index });
        } else {
            let dataset = now.clone();
            let value = runtime::blocking(move || codec::encode(&dataset)).await;
            if value.len() <= PART {
                ops.push(Op::Cas { key, value, index });
            } else {
                let parts = Parts { set: Uuid::now_v7(), count: value.len().div_ceil(PART), bytes: value.len() };
                if parts.count > MOST_PARTS {
                    let (host, dataset) = (host.clone(), name.clone());
                    let (bytes, most) = (value.len(), MOST_PARTS * PART);
                    return Err(Stop::Failed(CatalogError::TooLarge { host, dataset, bytes, most }));
                }
                for (number, part) in value.chunks(PART).enumerate() {
                    let key = keys.part(name, &parts, number);
                    match self.consul.commit(&[Op::Cas { key: key.clone(), value: part.to_vec(), index: 0 }]).await? {
                        Committed::At(index) => ops.push(Op::Check { key, index }),
                        Committed::Conflict(_) => return Err(Stop::Conflict),
                    }
                }
                ops.push(Op::Cas { key, value: codec::encode_parts(parts), index });
            }
        }
        let old = kept.iter().flat_map(|kept| &kept.parts);
        ops.extend(old.map(|(key, index)| Op::DeleteCas { key: key.clone(), index: *index }));
        let datasets = i64::from(!now.is_forgotten()) - i64::from(kept.is_some());
        Ok(Some(Group { ops, datasets }))
    }

    /// Writes groups of steps, each whole; the generation goes with every transaction, and says in the last one when
    /// the host was `observed`.
    async fn write(
        &self,
        keys: &Keys,
        groups: Vec<Group>,
        (mut generation, mut index): (Generation, u64),
        observed: Option<i64>,
    ) -> Result<(), Stop> {
        let mut waiting = groups.into_iter().peekable();
        loop {
            let (mut ops, mut bytes) = (Vec::new(), 0);
            while let Some(group) = waiting.peek() {
                let more: usize = group.ops.iter().map(Op::bytes).sum();
                if !ops.is_empty() && (ops.len() + group.ops.len() >= MOST_OPS || bytes + more > MOST_BYTES) {
                    break;
                }
                let Some(group) = waiting.next() else { break };
                bytes += more;
                ops.extend(group.ops);
                generation.datasets =
                    generation.datasets.saturating_add_signed(isize::try_from(group.datasets).unwrap_or(0));
            }
            let last = waiting.peek().is_none();
            if last {
                generation.observed = observed;
            }
            generation.number = generation.number.wrapping_add(1);
            ops.push(Op::Cas { key: keys.generation.clone(), value: generation.value(), index });
            match self.consul.commit(&ops).await? {
                Committed::At(written) => index = written,
                Committed::Conflict(what) => {
                    log::debug!("{}: {what}", keys.generation);
                    return Err(Stop::Conflict);
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    pub(super) async fn try_update(
        &self,
        host: &HostName,
        changes: &[(DatasetName, Change)],
        expected: Option<u64>,
    ) -> Result<(), Stop> {
        let keys = self.keys(host);
        let pair = self.consul.get(&keys.generation).await?.0;
        let index = pair.as_ref().map_or(0, |pair| pair.modify_index);
        if expected.is_some_and(|expected| expected != index) {
            return Err(Stop::Conflict);
        }
        let generation = pair.as_ref().and_then(|pair| Generation::read(&pair.value)).unwrap_or_default();
        let mut observed = generation.observed;
        let mut touched: BTreeMap<&DatasetName, Vec<&Change>> = BTreeMap::new();
        for (name, change) in changes {
            touched.entry(name).or_default().push(change);
        }
        let (mut groups, mut destroyed) = (Vec::new(), Vec::new());
        for (name, changes) in touched {
            let kept = self.kept(&keys, name).await?;
            if kept.as_ref().is_some_and(|kept| kept.dataset.is_none() || kept.index > index) {
                // A stranger wrote it: it is written over, and the host is listed as a whole before it is relied on.
                observed = None;
            }
            let mut now = kept.as_ref().and_then(|kept| kept.dataset.clone()).unwrap_or_default();
            for change in changes {
                let gone = now.change(change.clone());
                destroyed.extend(gone.into_iter().map(|gone: Gone| (name.clone(), gone)));
            }
            groups.extend(self.group(host, name, kept.as_ref(), &now).await?);
        }
        if !destroyed.is_empty() {
            let history = History::read(&self.consul, &keys).await?;
            let op = history.with(destroyed).op(&keys);
            // With the first dataset of which something was destroyed, so that both are told or none.
            match groups.first_mut() {
                Some(group) => group.ops.push(op),
                None => groups.push(Group { ops: vec![op], datasets: 0 }),
            }
        }
        if groups.is_empty() && pair.is_some() {
            return Ok(());
        }
        self.write(&keys, groups, (generation, index), observed).await
    }

    pub(super) async fn try_replace(
        &self,
        host: &HostName,
        observed: DateTime<Utc>,
        listed: &BTreeMap<DatasetName, DatasetInventory>,
        expected: Option<u64>,
    ) -> Result<(), Stop> {
        let keys = self.keys(host);
        let record = self.record(host).await?;
        let names: BTreeSet<&DatasetName> = record.datasets.keys().chain(listed.keys()).collect();
        let mut groups = Vec::new();
        for name in names {
            let kept = record.datasets.get(name);
            let mut now = kept.and_then(|kept| kept.dataset.clone()).unwrap_or_default();
            match listed.get(name) {
                Some(inventory) => now.put(inventory.clone()),
                None => now.empty(),
            }
            groups.extend(self.group(host, name, kept, &now).await?);
        }
        let strays = record.strays.iter().map(|(key, index)| {
            log::warn!("{key} in Consul belongs to nothing and is deleted");
            Group { ops: vec![Op::DeleteCas { key: key.clone(), index: *index }], datasets: 0 }
        });
        groups.extend(strays);
        let pair = self.consul.get(&keys.generation).await?.0;
        let index = pair.as_ref().map_or(0, |pair| pair.modify_index);
        // One that is not understood has an index all the same.
        let understood = pair.and_then(|pair| Some((Generation::read(&pair.value)?, index)));
        if record.generation != understood || expected.is_some_and(|expected| expected != index) {
            return Err(Stop::Conflict);
        }
        // Counted anew: who knows what was deleted by hand.
        let before = record.generation.map(|(generation, _)| generation).unwrap_or_default();
        let generation = Generation { datasets: record.datasets.len(), ..before };
        self.write(&keys, groups, (generation, index), Some(observed.timestamp())).await
    }

    pub(super) async fn try_forget(&self, host: &HostName, older_than: DateTime<Utc>) -> Result<usize, Stop> {
        let keys = self.keys(host);
        let record = self.record(host).await?;
        let (mut forgotten, mut groups) = (0, Vec::new());
        for (name, kept) in &record.datasets {
            let Some(mut now) = kept.dataset.clone() else { continue };
            forgotten += now.forget(older_than);
            groups.extend(self.group(host, name, Some(kept), &now).await?);
        }
        let history = History::read(&self.consul, &keys).await?;
        let (history, old) = history.without(older_than);
        if old > 0 {
            forgotten += old;
            groups.push(Group { ops: vec![history.op(&keys)], datasets: 0 });
        }
        if let (false, Some((generation, index))) = (groups.is_empty(), record.generation) {
            let observed = generation.observed;
            self.write(&keys, groups, (generation, index), observed).await?;
        }
        Ok(forgotten)
    }
}
