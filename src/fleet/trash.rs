//! Asks a host what is in its trash, and has it take snapshots back.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::agent::{Agent, CheckedOrder};
use crate::fleet::dispatch::{Contact, Dispatcher, answered, blank};
use crate::fleet::facts;
use crate::model::{Action, Counter, DatasetInventory, DatasetName, Guid, HostName, Marks, Record, SnapName, hint};
use crate::policy::Policy;
use crate::wire::{DirectorsOrder, Facts, PER_LINE, Response};
use crate::zfs::Zfs;

/// A snapshot in the trash of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrashEntry {
    /// The host.
    pub host: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// The name after `@`.
    pub snapshot: SnapName,
    /// The snapshot's identity.
    pub guid: Guid,
    /// Since when it has been in the trash.
    pub since: DateTime<Utc>,
    /// Until when it stays there at least; `None` if local.json of the host has no `destroy_after` for the dataset, so
    /// that it stays until the trash is emptied.
    pub until: Option<DateTime<Utc>>,
    /// Bytes that only this snapshot references; 0 if unknown.
    pub used: u64,
}

/// What is in the trash of these datasets of a host.
pub fn entries<'a>(
    host: &HostName,
    datasets: impl IntoIterator<Item = (&'a DatasetName, &'a DatasetInventory)>,
) -> Vec<TrashEntry> {
    let mut entries = Vec::new();
    for (dataset, found) in datasets {
        let of = found.snapshots.iter().filter_map(|snapshot| Some((snapshot, found.trashed(snapshot.guid)?)));
        entries.extend(of.map(|(snapshot, trashed)| TrashEntry {
            host: host.clone(),
            dataset: dataset.clone(),
            snapshot: snapshot.name.clone(),
            guid: snapshot.guid,
            since: trashed.since,
            until: found.trashed_until(trashed),
            used: trashed.used,
        }));
    }
    entries
}

/// The way to a host.
pub enum Way<Z> {
    /// It is this host: its own agent, in this process.
    Own(Arc<Agent<Z>>),
    /// It is reached as a director reaches it.
    Fleet(Arc<Policy>, Box<Dispatcher<Z>>),
}

impl<Z: Zfs> Way<Z> {
    /// Lists what is in the trash of a host, or says why that is impossible. Pools that could not be listed are
    /// reported beside it.
    pub async fn list(&self, host: &HostName) -> Result<(Vec<TrashEntry>, Vec<String>), String> {
        let order = DirectorsOrder { from_scratch: true, read_only: true, ..blank(Action::KvResync) };
        let (response, facts) = match self {
            Self::Own(_) => self.ask(host, &order).await,
            Self::Fleet(policy, agents) => agents.list(policy, host, order, &Contact::default()).await,
        };
        if !response.is_success {
            return Err(hint::join(
                format!("cannot list the trash of {host}: {}", response.error),
                response.hint.as_deref(),
            ));
        }
        let unlisted = facts::unlisted(&facts).into_iter();
        let problems = unlisted.map(|(pool, reason)| format!("cannot list the pool {pool} of {host}: {reason}"));
        let problems = problems.collect();
        let listings = facts::assemble(facts.into_iter().filter_map(|fact| fact.listing));
        let of_host = listings.iter().filter(|((of, _), _)| of == host);
        Ok((entries(host, of_host.map(|((_, dataset), found)| (dataset, found))), problems))
    }

    /// Has a host take snapshots back from its trash. Returns what was done, and what went wrong.
    pub async fn undelete(&self, host: &HostName, snapshots: &[TrashEntry]) -> (Vec<String>, Vec<String>) {
        let (mut lines, mut problems) = (Vec::new(), Vec::new());
        for part in snapshots.chunks(PER_LINE) {
            let snapshot_uuid = part.iter().map(record).collect();
            let order = DirectorsOrder { snapshot_uuid, ..blank(Action::UndeleteSnapshot) };
            let (response, _) = self.ask(host, &order).await;
            if response.is_success {
                lines.push(format!("{host}: {}", response.error));
            } else {
                let error = format!("cannot take everything back on {host}: {}", response.error);
                problems.push(hint::join(error, response.hint.as_deref()));
            }
        }
        (lines, problems)
    }

    /// Destroys what is in the trash of this host now. Returns what was done in words, and what went wrong; `None` if
    /// the host is another one.
    pub async fn empty(&self, snapshots: &[TrashEntry]) -> Option<(String, Vec<String>)> {
        let Self::Own(agent) = self else { return None };
        let mut by_dataset: BTreeMap<DatasetName, Vec<Guid>> = BTreeMap::new();
        for entry in snapshots {
            by_dataset.entry(entry.dataset.clone()).or_default().push(entry.guid);
        }
        Some(agent.empty_trash(&by_dataset).await)
    }

    async fn ask(&self, host: &HostName, order: &DirectorsOrder) -> (Response, Vec<Facts>) {
        match self {
            Self::Fleet(policy, agents) => agents.ask(policy, host, order, Counter::default()).await,
            Self::Own(agent) => {
                answered(order, |facts| async move {
                    match CheckedOrder::try_from(order.clone()) {
                        Ok(checked) => agent.carry_out(checked, facts, Counter::default()).await,
                        Err(error) => error.response(order.order_uuid),
                    }
                })
                .await
            }
        }
    }
}

/// How an order names the snapshot.
fn record(entry: &TrashEntry) -> String {
    let TrashEntry { dataset, snapshot, guid, .. } = entry;
    let record =
        Record { uuid: guid.uuid(), dataset: dataset.clone(), name: snapshot.clone(), marks: Marks::default() };
    record.to_string()
}
