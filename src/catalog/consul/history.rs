//! What was: destroyed snapshots and the outcomes of orders, a pair per host for each. No pass reads them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::catalog::consul::codec;
use crate::catalog::consul::record::Keys;
use crate::catalog::dataset::Gone;
use crate::catalog::{CatalogError, Destroyed, Outcome};
use crate::consul::{Consul, Op};
use crate::model::{DatasetName, Guid, HostName, Marks, Record, SnapName};

/// How many destroyed snapshots are remembered of each host.
const MOST_DESTROYED: usize = 1000;
/// How many outcomes are remembered of each host.
const MOST_OUTCOMES: usize = 200;

/// The destroyed snapshots of one host, newest first.
#[derive(Default)]
pub(super) struct History {
    rows: Vec<Row>,
    index: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Row {
    at: i64,
    dataset: DatasetName,
    name: SnapName,
    guid: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    marks: Marks,
}

fn is_default(marks: &Marks) -> bool {
    *marks == Marks::default()
}

impl History {
    /// As it is now. What is not understood is written over.
    pub async fn read(consul: &Consul, keys: &Keys) -> Result<Self, CatalogError> {
        let Some(pair) = consul.get(&keys.destroyed).await?.0 else { return Ok(Self::default()) };
        Ok(Self { rows: codec::unpack(&pair.value).unwrap_or_default(), index: pair.modify_index })
    }

    /// With more, in the order in which they were destroyed.
    pub fn with(mut self, gone: Vec<(DatasetName, Gone)>) -> Self {
        let row = |(dataset, Gone { name, guid, marks, at }): (DatasetName, Gone)| Row {
            at: at.timestamp_micros(),
            dataset,
            name,
            guid: guid.0,
            marks: Marks { deleted: false, ..marks },
        };
        self.rows.splice(0..0, gone.into_iter().rev().map(row));
        self.rows.truncate(MOST_DESTROYED);
        self
    }

    /// Without what is older, and how many those were.
    pub fn without(mut self, older_than: DateTime<Utc>) -> (Self, usize) {
        let before = self.rows.len();
        self.rows.retain(|row| row.at >= older_than.timestamp_micros());
        let forgotten = before - self.rows.len();
        (self, forgotten)
    }

    /// The step that writes it.
    pub fn op(&self, keys: &Keys) -> Op {
        Op::Cas { key: keys.destroyed.clone(), value: codec::pack(&self.rows), index: self.index }
    }
}

/// All pairs below a prefix that are understood, by host.
async fn all<T: serde::de::DeserializeOwned>(
    consul: &Consul,
    prefix: &str,
) -> Result<Vec<(HostName, Vec<T>)>, CatalogError> {
    let pairs = consul.list(prefix).await?;
    let read = pairs.into_iter().filter_map(|pair| {
        let host = pair.key.strip_prefix(prefix)?.parse().ok()?;
        Some((host, codec::unpack(&pair.value).ok()?))
    });
    Ok(read.collect())
}

/// The newest destroyed snapshots of all hosts.
pub(super) async fn destroyed(consul: &Consul, root: &str, limit: usize) -> Result<Vec<Destroyed>, CatalogError> {
    let mut found = Vec::new();
    for (host, rows) in all::<Row>(consul, &format!("{root}/destroyed/")).await? {
        found.extend(rows.into_iter().filter_map(|row| {
            let marks = Marks { deleted: true, ..row.marks };
            let record = Record { uuid: Guid(row.guid).uuid(), dataset: row.dataset, name: row.name, marks };
            Some(Destroyed { host: host.clone(), record, at: DateTime::from_timestamp_micros(row.at)? })
        }));
    }
    found.sort_by_key(|one| std::cmp::Reverse(one.at));
    found.truncate(limit);
    Ok(found)
}

/// The newest outcomes of all hosts.
pub(super) async fn outcomes(consul: &Consul, root: &str, limit: usize) -> Result<Vec<Outcome>, CatalogError> {
    let all = all::<Outcome>(consul, &format!("{root}/outcomes/")).await?;
    let mut found: Vec<Outcome> = all.into_iter().flat_map(|(_, outcomes)| outcomes).collect();
    found.sort_by_key(|one| std::cmp::Reverse(one.at));
    found.truncate(limit);
    Ok(found)
}

/// The step that adds outcomes of one host, given in the order in which they came.
pub(super) async fn with_outcomes(consul: &Consul, keys: &Keys, more: &[Outcome]) -> Result<Op, CatalogError> {
    let pair = consul.get(&keys.outcomes).await?.0.unwrap_or_default();
    let mut outcomes: Vec<Outcome> = codec::unpack(&pair.value).unwrap_or_default();
    outcomes.splice(0..0, more.iter().rev().cloned());
    outcomes.truncate(MOST_OUTCOMES);
    Ok(Op::Cas { key: keys.outcomes.clone(), value: codec::pack(&outcomes), index: pair.modify_index })
}
