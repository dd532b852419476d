//! The history of each host: its destroyed snapshots in one pair, and the outcomes of its orders in another. No pass
//! reads it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::catalog::consul::codec;
use crate::catalog::consul::keys::Keys;
use crate::catalog::dataset::DestroyedSnapshot;
use crate::catalog::{CatalogError, Destroyed, Outcome};
use crate::consul::{Consul, MOST_BYTES, Op};
use crate::model::{DatasetName, Guid, HostName, Marks, Record, SnapName};

/// How many destroyed snapshots of each host are kept.
const MOST_DESTROYED: usize = 1000;
/// How many outcomes of each host are kept. If they do not fit into a transaction, fewer are kept.
pub(super) const MOST_OUTCOMES: usize = 200;

/// The destroyed snapshots of one host, newest first.
#[derive(Default)]
pub(super) struct DestroyedHistory {
    rows: Vec<DestroyedRow>,
    index: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct DestroyedRow {
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

impl DestroyedHistory {
    /// Reads the pair. A value that cannot be decoded counts as empty, and is overwritten.
    pub async fn read(consul: &Consul, keys: &Keys) -> Result<Self, CatalogError> {
        let Some(pair) = consul.get(&keys.destroyed).await?.0 else { return Ok(Self::default()) };
        Ok(Self { rows: codec::unpack(&pair.value).unwrap_or_default(), index: pair.modify_index })
    }

    /// Adds snapshots, given in the order in which they were destroyed.
    pub fn with(mut self, destroyed: Vec<(DatasetName, DestroyedSnapshot)>) -> Self {
        let row = |(dataset, snapshot): (DatasetName, DestroyedSnapshot)| DestroyedRow {
            at: snapshot.at.timestamp_micros(),
            dataset,
            name: snapshot.name,
            guid: snapshot.guid.0,
            marks: Marks { deleted: false, ..snapshot.marks },
        };
        self.rows.splice(0..0, destroyed.into_iter().rev().map(row));
        self.rows.truncate(MOST_DESTROYED);
        self
    }

    /// Removes the snapshots destroyed before `older_than`, and counts them.
    pub fn without(mut self, older_than: DateTime<Utc>) -> (Self, usize) {
        let before = self.rows.len();
        self.rows.retain(|row| row.at >= older_than.timestamp_micros());
        let forgotten = before - self.rows.len();
        (self, forgotten)
    }

    /// Returns the operation that writes the pair.
    pub fn op(&self, keys: &Keys) -> Op {
        Op::Cas { key: keys.destroyed.clone(), value: codec::pack(&self.rows), index: self.index }
    }
}

/// Reads the pairs of all hosts below a prefix, except those that cannot be decoded.
async fn read_all<T: serde::de::DeserializeOwned>(
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

/// The pairs of one host's history, and the time of the newest record in them.
pub(super) struct HostHistory {
    /// The keys and indices of the pairs.
    pub pairs: Vec<(String, u64)>,
    /// `None` if there is no record that can be decoded.
    pub last_recorded: Option<DateTime<Utc>>,
}

impl HostHistory {
    pub async fn read(consul: &Consul, keys: &Keys) -> Result<Self, CatalogError> {
        let destroyed = consul.get(&keys.destroyed).await?.0;
        let outcomes = consul.get(&keys.outcomes).await?.0;
        let rows: Vec<DestroyedRow> = destroyed.iter().flat_map(|pair| unpack_rows(&pair.value)).collect();
        let ended: Vec<Outcome> = outcomes.iter().flat_map(|pair| unpack_rows(&pair.value)).collect();
        let times = rows.iter().filter_map(|row| DateTime::from_timestamp_micros(row.at));
        let last_recorded = times.chain(ended.iter().map(|outcome| outcome.at)).max();
        let pairs = destroyed.into_iter().chain(outcomes).map(|pair| (pair.key, pair.modify_index)).collect();
        Ok(Self { pairs, last_recorded })
    }
}

fn unpack_rows<T: serde::de::DeserializeOwned>(value: &[u8]) -> Vec<T> {
    codec::unpack(value).unwrap_or_default()
}

/// Returns the hosts that have a history.
pub(super) async fn hosts(consul: &Consul, root: &str) -> Result<Vec<HostName>, CatalogError> {
    let mut hosts = Vec::new();
    for prefix in [format!("{root}/destroyed/"), format!("{root}/outcomes/")] {
        let pairs = consul.list(&prefix).await?;
        hosts.extend(pairs.iter().filter_map(|pair| pair.key.strip_prefix(&prefix)?.parse::<HostName>().ok()));
    }
    Ok(hosts)
}

/// Returns the latest destroyed snapshots of all hosts, newest first.
pub(super) async fn destroyed(consul: &Consul, root: &str, limit: usize) -> Result<Vec<Destroyed>, CatalogError> {
    let mut found = Vec::new();
    for (host, rows) in read_all::<DestroyedRow>(consul, &format!("{root}/destroyed/")).await? {
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

/// Returns the latest outcomes of all hosts, newest first.
pub(super) async fn outcomes(consul: &Consul, root: &str, limit: usize) -> Result<Vec<Outcome>, CatalogError> {
    let all = read_all::<Outcome>(consul, &format!("{root}/outcomes/")).await?;
    let mut found: Vec<Outcome> = all.into_iter().flat_map(|(_, outcomes)| outcomes).collect();
    found.sort_by_key(|one| std::cmp::Reverse(one.at));
    found.truncate(limit);
    Ok(found)
}

/// Returns the operation that adds outcomes to the pair of one host, given oldest first. The oldest are dropped if the
/// pair would become too large.
pub(super) async fn with_outcomes(consul: &Consul, keys: &Keys, more: &[Outcome]) -> Result<Op, CatalogError> {
    let pair = consul.get(&keys.outcomes).await?.0.unwrap_or_default();
    let mut outcomes: Vec<Outcome> = codec::unpack(&pair.value).unwrap_or_default();
    outcomes.splice(0..0, more.iter().rev().cloned());
    outcomes.truncate(MOST_OUTCOMES);
    loop {
        let op = Op::Cas { key: keys.outcomes.clone(), value: codec::pack(&outcomes), index: pair.modify_index };
        if op.bytes() <= MOST_BYTES || outcomes.is_empty() {
            return Ok(op);
        }
        outcomes.truncate(outcomes.len() / 2);
    }
}
