//! Assembles the pairs of one host, and determines whether they are complete.
//!
//! `ROOT/generation/HOST` records when the host was last listed as a whole, and how many datasets have a pair. Every
//! transaction that writes pairs of the host also writes this pair. If a dataset's pair has a higher index than
//! this pair, something other than zsync wrote it. If the number of pairs differs, some are missing or foreign.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::catalog::consul::codec;
use crate::catalog::consul::codec::Value;
use crate::catalog::consul::keys::{Keys, MOST_PARTS};
use crate::catalog::dataset::CatalogDataset;
use crate::consul::{Consul, ConsulError, Pair};
use crate::model::{DatasetName, HostInventory, UnlistedPools};
use crate::sys::runtime;

/// The value of the generation pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Generation {
    /// A number that changes with every write, because Consul does not raise the index of a pair that is written with
    /// the same value.
    pub number: u64,
    /// When the host was last listed as a whole, in seconds. Missing while its pairs are incomplete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<i64>,
    /// The number of datasets that have a pair.
    pub datasets: usize,
    /// The pools that could not be listed.
    #[serde(skip_serializing_if = "UnlistedPools::is_empty")]
    pub unlisted: UnlistedPools,
}

impl Generation {
    pub fn decode(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }

    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub fn observed(&self) -> Option<DateTime<Utc>> {
        self.observed.and_then(|seconds| DateTime::from_timestamp(seconds, 0))
    }
}

/// The pair of one dataset.
#[derive(Debug)]
pub(super) struct DatasetPair {
    /// The index of the pair's last change.
    pub index: u64,
    /// The keys and indices of the other pairs that store parts of the dataset.
    pub parts: Vec<(String, u64)>,
    /// `None` if the value cannot be decoded.
    pub dataset: Option<CatalogDataset>,
}

/// All pairs of one host.
#[derive(Debug, Default)]
pub(super) struct HostRecord {
    /// The generation and the index of its pair.
    pub generation: Option<(Generation, u64)>,
    pub datasets: BTreeMap<DatasetName, DatasetPair>,
    /// The keys and indices of pairs that nothing refers to.
    pub strays: Vec<(String, u64)>,
    /// Why the record is not reliable; empty if it is.
    pub doubts: Vec<String>,
}

impl HostRecord {
    /// Reads the host's pairs, as of one instant.
    pub async fn read(consul: &Consul, keys: Keys) -> Result<Self, ConsulError> {
        let pairs = consul.read_trees(&[&keys.generation, &keys.inventory]).await?;
        // Decompressing a large host takes time.
        Ok(runtime::blocking(move || Self::assemble(&keys, pairs)).await)
    }

    fn assemble(keys: &Keys, pairs: Vec<Pair>) -> Self {
        let mut record = Self::default();
        let mut parts: BTreeMap<String, BTreeMap<String, Pair>> = BTreeMap::new();
        let mut heads: Vec<(DatasetName, Pair)> = Vec::new();
        for pair in pairs {
            if pair.key == keys.generation {
                match Generation::decode(&pair.value) {
                    Some(generation) => record.generation = Some((generation, pair.modify_index)),
                    None => record.doubts.push(format!("{} cannot be decoded", pair.key)),
                }
                continue;
            }
            // The prefix also matches the generation of a host whose name begins with this host's name.
            let Some(name) = pair.key.strip_prefix(&keys.inventory) else { continue };
            if let Some((dataset, _)) = name.split_once('@') {
                parts.entry(dataset.to_owned()).or_default().insert(pair.key.clone(), pair);
            } else if let Ok(dataset) = name.parse::<DatasetName>() {
                heads.push((dataset, pair));
            } else {
                record.doubts.push(format!("{} is not the name of a dataset", pair.key));
                record.strays.push((pair.key, pair.modify_index));
            }
        }
        let newest = record.generation.as_ref().map_or(0, |(_, index)| *index);
        for (name, pair) in heads {
            if pair.modify_index > newest {
                record.doubts.push(format!("{} was not written by zsync", pair.key));
            }
            let parts = parts.get_mut(name.as_str());
            let read = DatasetPair::read(keys, &name, &pair, parts.unwrap_or(&mut BTreeMap::new()));
            let dataset = read.unwrap_or_else(|reason| {
                record.doubts.push(format!("{}: {reason}", pair.key));
                DatasetPair::undecodable(&pair)
            });
            record.datasets.insert(name, dataset);
        }
        // Parts that no pair refers to were left behind by a writer that died, or are just being written.
        record.strays.extend(parts.into_values().flatten().map(|(key, pair)| (key, pair.modify_index)));
        if let Some((generation, _)) = &record.generation
            && generation.datasets != record.datasets.len()
        {
            let found = record.datasets.len();
            record.doubts.push(format!("{found} datasets have pairs, but there should be {}", generation.datasets));
        }
        record
    }

    /// When the host was last listed as a whole; `None` if the record is not reliable.
    pub fn observed(&self) -> Option<DateTime<Utc>> {
        let (generation, _) = self.generation.as_ref()?;
        if self.doubts.is_empty() { generation.observed() } else { None }
    }

    /// Converts into the host's inventory.
    pub fn into_inventory(self) -> HostInventory {
        let observed = self.observed();
        let present = |(name, pair): (DatasetName, DatasetPair)| Some((name, pair.dataset?.into_inventory()?));
        let unlisted = self.generation.map(|(generation, _)| generation.unlisted).unwrap_or_default();
        let datasets = self.datasets.into_iter().filter_map(present).collect();
        HostInventory { observed, datasets, unlisted, clock_behind: None }
    }
}

impl DatasetPair {
    /// Decodes a dataset's pair. If it refers to parts, they are taken from `parts`.
    pub fn read(
        keys: &Keys,
        name: &DatasetName,
        pair: &Pair,
        parts: &mut BTreeMap<String, Pair>,
    ) -> Result<Self, String> {
        let index = pair.modify_index;
        let head = match codec::decode(&pair.value)? {
            Value::Whole(dataset) => return Ok(Self { index, parts: Vec::new(), dataset: Some(*dataset) }),
            Value::Parts(head) => head,
        };
        let mut value = Vec::new();
        let mut found = Vec::new();
        for number in 0..head.count.min(MOST_PARTS) {
            let key = keys.part(name, &head, number);
            let part = parts.get(&key).ok_or_else(|| format!("its part {number} is missing"))?;
            value.extend_from_slice(&part.value);
            found.push((key, part.modify_index));
        }
        if value.len() != head.bytes {
            return Err("its parts do not have the size that it names".to_owned());
        }
        match codec::decode(&value)? {
            Value::Whole(dataset) => {
                found.iter().for_each(|(key, _)| drop(parts.remove(key)));
                Ok(Self { index, parts: found, dataset: Some(*dataset) })
            }
            Value::Parts(_) => Err("its parts refer to other parts".to_owned()),
        }
    }

    /// A pair whose value cannot be decoded.
    pub fn undecodable(pair: &Pair) -> Self {
        Self { index: pair.modify_index, parts: Vec::new(), dataset: None }
    }
}
