//! What the pairs of one host say together, and whether they are whole.
//!
//! `ROOT/generation/HOST` tells when the host was last listed as a whole and how many datasets it has pairs of. Every
//! transaction that writes pairs of the host writes it too: a pair that is newer is a stranger's, and with fewer or
//! more pairs than it says something is missing.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::catalog::consul::codec;
use crate::catalog::consul::codec::{Parts, Value};
use crate::catalog::dataset::Dataset;
use crate::consul::Pair;
use crate::model::{DatasetName, HostInventory, HostName};

/// Where the pairs of one host are.
pub(super) struct Keys {
    /// The generation pair.
    pub generation: String,
    /// What the pairs of its datasets begin with; ends with a slash.
    pub inventory: String,
    /// The history of its destroyed snapshots.
    pub destroyed: String,
    /// How its orders ended.
    pub outcomes: String,
}

impl Keys {
    pub fn new(root: &str, host: &HostName) -> Self {
        Self {
            generation: format!("{root}/generation/{host}"),
            inventory: format!("{root}/inventory/{host}/"),
            destroyed: format!("{root}/destroyed/{host}"),
            outcomes: format!("{root}/outcomes/{host}"),
        }
    }

    /// A dataset's pair. Every name that ZFS takes can be part of a key as it is.
    pub fn dataset(&self, dataset: &DatasetName) -> String {
        format!("{}{dataset}", self.inventory)
    }

    /// A part of a dataset too large for one pair. No dataset's name has an `@`.
    pub fn part(&self, dataset: &DatasetName, parts: &Parts, number: usize) -> String {
        format!("{}{dataset}@{}/{number:04}", self.inventory, parts.set)
    }
}

/// The generation pair's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Generation {
    /// Another one at each writing: Consul leaves a pair that is written with the value that it has as it was, and its
    /// index too.
    pub number: u64,
    /// When the host was last listed as a whole, in seconds; missing while its pairs are incomplete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<i64>,
    /// How many datasets have a pair.
    pub datasets: usize,
}

impl Generation {
    pub fn read(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }

    pub fn value(self) -> Vec<u8> {
        serde_json::to_vec(&self).unwrap_or_default()
    }

    pub fn observed(self) -> Option<DateTime<Utc>> {
        self.observed.and_then(|seconds| DateTime::from_timestamp(seconds, 0))
    }
}

/// A dataset's pair.
#[derive(Debug)]
pub(super) struct Kept {
    pub index: u64,
    /// Other pairs that it lies in, with their indices.
    pub parts: Vec<(String, u64)>,
    /// `None`: it is not understood.
    pub dataset: Option<Dataset>,
}

/// All pairs of one host.
#[derive(Debug, Default)]
pub(super) struct HostRecord {
    /// With its index.
    pub generation: Option<(Generation, u64)>,
    pub datasets: BTreeMap<DatasetName, Kept>,
    /// Pairs that belong to nothing, with their indices.
    pub strays: Vec<(String, u64)>,
    /// Why what is here cannot be relied on.
    pub doubts: Vec<String>,
}

impl HostRecord {
    /// Puts the pairs together.
    pub fn new(keys: &Keys, pairs: Vec<Pair>) -> Self {
        let mut record = Self::default();
        let mut parts: BTreeMap<String, BTreeMap<String, Pair>> = BTreeMap::new();
        let mut heads: Vec<(DatasetName, Pair)> = Vec::new();
        for pair in pairs {
            if pair.key == keys.generation {
                match Generation::read(&pair.value) {
                    Some(generation) => record.generation = Some((generation, pair.modify_index)),
                    None => record.doubts.push(format!("{} is not understood", pair.key)),
                }
                continue;
            }
            // Another host's generation, whose name begins like this one's.
            let Some(name) = pair.key.strip_prefix(&keys.inventory) else { continue };
            if let Some((dataset, _)) = name.split_once('@') {
                parts.entry(dataset.to_owned()).or_default().insert(pair.key.clone(), pair);
            } else if let Ok(dataset) = name.parse::<DatasetName>() {
                heads.push((dataset, pair));
            } else {
                record.doubts.push(format!("{} is no dataset", pair.key));
                record.strays.push((pair.key, pair.modify_index));
            }
        }
        let newest = record.generation.map_or(0, |(_, index)| index);
        for (name, pair) in heads {
            if pair.modify_index > newest {
                record.doubts.push(format!("{} was written by a stranger", pair.key));
            }
            let kept = kept(keys, &name, &pair, parts.get_mut(name.as_str()).unwrap_or(&mut BTreeMap::new()));
            match kept {
                Ok(kept) => drop(record.datasets.insert(name, kept)),
                Err(reason) => {
                    record.doubts.push(format!("{}: {reason}", pair.key));
                    let kept = Kept { index: pair.modify_index, parts: Vec::new(), dataset: None };
                    record.datasets.insert(name, kept);
                }
            }
        }
        // What no pair refers to was left behind by a writer that died, or is being written.
        record.strays.extend(parts.into_values().flatten().map(|(key, pair)| (key, pair.modify_index)));
        if let Some((generation, _)) = record.generation
            && generation.datasets != record.datasets.len()
        {
            let found = record.datasets.len();
            record.doubts.push(format!("{} datasets have pairs, and {} should have", found, generation.datasets));
        }
        record
    }

    /// When the host was last listed as a whole; `None` if what is here cannot be relied on.
    pub fn observed(&self) -> Option<DateTime<Utc>> {
        let (generation, _) = self.generation?;
        if self.doubts.is_empty() { generation.observed() } else { None }
    }

    /// What the pairs say of the host.
    pub fn into_inventory(self) -> HostInventory {
        let observed = self.observed();
        let present = |(name, kept): (DatasetName, Kept)| Some((name, kept.dataset?.into_inventory()?));
        HostInventory { observed, datasets: self.datasets.into_iter().filter_map(present).collect() }
    }
}

/// Understands a dataset's pair; parts that it lies in are taken from `parts`.
pub(super) fn kept(
    keys: &Keys,
    name: &DatasetName,
    pair: &Pair,
    parts: &mut BTreeMap<String, Pair>,
) -> Result<Kept, String> {
    let index = pair.modify_index;
    let head = match codec::decode(&pair.value)? {
        Value::Whole(dataset) => return Ok(Kept { index, parts: Vec::new(), dataset: Some(*dataset) }),
        Value::Parts(head) => head,
    };
    let mut value = Vec::new();
    let mut found = Vec::new();
    for number in 0..head.count.min(crate::catalog::consul::MOST_PARTS) {
        let key = keys.part(name, &head, number);
        let part = parts.get(&key).ok_or_else(|| format!("its part {number} is missing"))?;
        value.extend_from_slice(&part.value);
        found.push((key, part.modify_index));
    }
    if value.len() != head.bytes {
        return Err("its parts do not belong together".to_owned());
    }
    match codec::decode(&value)? {
        Value::Whole(dataset) => {
            found.iter().for_each(|(key, _)| drop(parts.remove(key)));
            Ok(Kept { index, parts: found, dataset: Some(*dataset) })
        }
        Value::Parts(_) => Err("its parts lie in parts".to_owned()),
    }
}
