//! Applies the `keep` of `local.json`: finds the snapshots of a dataset that no order may destroy, and records when
//! snapshots arrive on this host.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::model::{DatasetInventory, DatasetName, Guid, SnapName};
use crate::policy::retention::{Arrival, Dated, arrival_from_text, arrival_to_text};
use crate::policy::{Local, LocalDataset};
use crate::zfs::{Zfs, ZfsError, ZfsRead};

/// What `keep` keeps in one dataset now.
#[derive(Debug, Default)]
pub struct Floor {
    /// For each snapshot that no order may destroy, why.
    pub kept: BTreeMap<Guid, String>,
    /// The snapshots of which nothing tells when they arrived.
    unrecorded: Vec<SnapName>,
}

impl Floor {
    /// Decides about the snapshots of a dataset as it was just listed.
    pub async fn of<Z: ZfsRead>(
        zfs: &Z,
        local: &Local,
        dataset: &DatasetName,
        found: &DatasetInventory,
        now: DateTime<Utc>,
    ) -> Result<Self, ZfsError> {
        let Some((entry, keep)) = entry_with_keep(local, dataset) else { return Ok(Self::default()) };
        let keep = keep.clone();
        let mut arrivals = zfs.arrivals(dataset).await?;
        let mut floor = Self::default();
        let mut dated = Vec::with_capacity(found.snapshots.len());
        for snapshot in &found.snapshots {
            let recorded = arrivals.remove(&snapshot.name).and_then(|text| arrival_from_text(&text));
            let arrival = match recorded {
                Some(arrival) => arrival,
                // Nothing can be received here, so the snapshot was created by this host.
                None if !entry.slave => Arrival::At(snapshot.creation),
                None => {
                    floor.unrecorded.push(snapshot.name.clone());
                    Arrival::Before(now)
                }
            };
            dated.push(Dated { creation: snapshot.creation, arrival });
        }
        let kept = keep.floor(&dated, local.timezone, now);
        let kept = found.snapshots.iter().zip(kept).filter_map(|(s, why)| Some((s.guid, why?.to_string())));
        floor.kept = kept.collect();
        Ok(floor)
    }

    /// Records the snapshots of which nothing tells when they arrived as found now. They stay until the longest window
    /// of the rules has passed.
    pub async fn record<Z: Zfs>(&self, zfs: &Z, dataset: &DatasetName, now: DateTime<Utc>) -> Result<(), ZfsError> {
        if self.unrecorded.is_empty() {
            return Ok(());
        }
        log::info!(
            "{dataset}: recording that {} snapshots were found, as it is not known when they arrived",
            self.unrecorded.len()
        );
        zfs.set_arrivals(dataset, &self.unrecorded, &arrival_to_text(Arrival::Before(now))).await
    }
}

fn entry_with_keep<'a>(
    local: &'a Local,
    dataset: &DatasetName,
) -> Option<(&'a LocalDataset, &'a crate::policy::Retention)> {
    let entry = local.entry_for(dataset)?;
    Some((entry, entry.keep.as_ref()?))
}

/// Records that snapshots of a dataset have just arrived, if `keep` needs to know: those that are newer than `known`, or
/// all that have no record.
pub async fn record_arrivals<Z: Zfs>(
    zfs: &Z,
    local: &Local,
    dataset: &DatasetName,
    found: &DatasetInventory,
    known: Option<u64>,
    now: DateTime<Utc>,
) -> Result<(), ZfsError> {
    if entry_with_keep(local, dataset).is_none_or(|(entry, _)| !entry.slave) {
        return Ok(());
    }
    let recorded = match known {
        Some(_) => BTreeMap::new(),
        None => zfs.arrivals(dataset).await?,
    };
    let is_new = |createtxg: u64| known.is_none_or(|known| createtxg > known);
    let new = found.snapshots.iter().filter(|s| is_new(s.createtxg) && !recorded.contains_key(&s.name));
    let new: Vec<SnapName> = new.map(|s| s.name.clone()).collect();
    if new.is_empty() {
        return Ok(());
    }
    zfs.set_arrivals(dataset, &new, &arrival_to_text(Arrival::At(now))).await
}
