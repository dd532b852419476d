//! From verdicts to orders: what an agent is asked to do.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::actions::divergence::Allowed;
use crate::actions::plan::{Plan, PruneVerdict, Side};
use crate::actions::route::Route;
use crate::model::{DatasetName, Guid, HostName, SnapName};
use crate::policy::{Policy, Target};

/// One thing to carry out on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Order {
    /// Take a snapshot of all these datasets.
    Take {
        /// The index of the entry in `policy.datasets`.
        entry: usize,
        /// Where.
        host: HostName,
        /// The name after `@`.
        name: SnapName,
        /// Parents first, all of one pool: one atomic step.
        datasets: Vec<DatasetName>,
        /// The policy's name.
        policy: String,
        /// Whether a dataset without changes since its last snapshot is left out.
        skip_if_not_written: bool,
        /// Why, as a sentence.
        reason: String,
    },
    /// Send everything up to a snapshot.
    Send {
        /// The index of the entry in `policy.datasets`.
        entry: usize,
        /// The sending host.
        host: HostName,
        /// The dataset there.
        dataset: DatasetName,
        /// The snapshot's name there.
        snapshot: SnapName,
        /// The snapshot's identity.
        guid: Guid,
        /// The receiving host and its dataset.
        to: Target,
        /// What may be done about a destination that cannot take the next stream.
        #[serde(flatten)]
        allowed: Allowed,
        /// What the transfer has to know of other datasets.
        #[serde(flatten)]
        route: Route,
        /// The policy's name.
        policy: String,
        /// Why, as a sentence.
        reason: String,
        /// When the oldest snapshot that the destination lacks was taken.
        oldest_unsent: DateTime<Utc>,
    },
    /// Destroy these snapshots of one dataset.
    Destroy {
        /// The index of the entry in `policy.datasets`.
        entry: usize,
        /// Where.
        host: HostName,
        /// The dataset there.
        dataset: DatasetName,
        /// Whether the dataset is the policy's source or a destination.
        side: Side,
        /// What, oldest first.
        #[serde(with = "named")]
        snapshots: Vec<(Guid, SnapName)>,
        /// The datasets with which a common snapshot must remain (destinations of this one, and what it receives from).
        keep_common_with: Vec<Target>,
        /// Whether a snapshot that has another name now is left alone.
        skip_if_renamed: bool,
        /// Whether a snapshot that has clones is left alone.
        skip_if_cloned: bool,
        /// The policy's name.
        policy: String,
        /// Why, as a sentence.
        reason: String,
        /// Bytes that only these snapshots hold, as far as known.
        bytes: u64,
    },
}

/// Snapshots in JSON: `{ "guid": ..., "name": ... }`, which says what is what.
mod named {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::model::{Guid, SnapName};

    #[derive(Serialize)]
    struct Named<'a> {
        guid: Guid,
        name: &'a SnapName,
    }

    #[derive(Deserialize)]
    struct Owned {
        guid: Guid,
        name: SnapName,
    }

    pub fn serialize<S: Serializer>(all: &[(Guid, SnapName)], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(all.iter().map(|(guid, name)| Named { guid: *guid, name }))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<(Guid, SnapName)>, D::Error> {
        let all = Vec::<Owned>::deserialize(d)?;
        Ok(all.into_iter().map(|Owned { guid, name }| (guid, name)).collect())
    }
}

impl Order {
    /// The host that carries it out.
    #[must_use]
    pub fn host(&self) -> &HostName {
        match self {
            Self::Take { host, .. } | Self::Send { host, .. } | Self::Destroy { host, .. } => host,
        }
    }

    /// The index of the entry in `policy.datasets`.
    #[must_use]
    pub fn entry(&self) -> usize {
        match self {
            Self::Take { entry, .. } | Self::Send { entry, .. } | Self::Destroy { entry, .. } => *entry,
        }
    }
}

/// See [`Plan::orders`].
pub(super) fn orders(plan: &Plan, policy: &Policy) -> Vec<Order> {
    let mut orders = takes(plan, policy);
    orders.extend(plan.sends.iter().filter_map(|verdict| {
        let due = verdict.due.clone()?;
        let subject = verdict.subject.clone();
        Some(Order::Send {
            entry: subject.entry,
            host: subject.host,
            dataset: subject.dataset,
            snapshot: due.snapshot,
            guid: due.guid,
            to: verdict.to.clone(),
            allowed: verdict.allowed,
            route: verdict.route.clone(),
            policy: subject.policy,
            reason: verdict.why(plan.at),
            oldest_unsent: due.oldest_unsent,
        })
    }));
    orders.extend(plan.prunes.iter().filter(|p| !p.destroy.is_empty()).map(destroy));
    orders
}

/// One order for all datasets of one pool that are due under one name: `zfs snapshot` takes them in one step.
fn takes(plan: &Plan, policy: &Policy) -> Vec<Order> {
    let mut orders: Vec<Order> = Vec::new();
    let mut places = HashMap::new();
    for verdict in &plan.takes {
        let (Some(name), Some(entry)) = (&verdict.due, policy.datasets.get(verdict.subject.entry)) else { continue };
        let subject = &verdict.subject;
        let key = (subject.entry, subject.policy_index, &subject.host, subject.dataset.pool(), name);
        let place = *places.entry(key).or_insert(orders.len());
        if let Some(Order::Take { datasets, .. }) = orders.get_mut(place) {
            datasets.push(subject.dataset.clone());
            continue;
        }
        orders.push(Order::Take {
            entry: subject.entry,
            host: subject.host.clone(),
            name: name.clone(),
            datasets: vec![subject.dataset.clone()],
            policy: subject.policy.clone(),
            skip_if_not_written: entry.skip_if_not_written,
            reason: verdict.reason.to_string(),
        });
    }
    for order in &mut orders {
        if let Order::Take { datasets, .. } = order {
            // A parent's name is the beginning of its children's, so it sorts before them.
            datasets.sort();
        }
    }
    orders
}

fn destroy(verdict: &PruneVerdict) -> Order {
    let subject = verdict.subject.clone();
    Order::Destroy {
        entry: subject.entry,
        host: subject.host,
        dataset: subject.dataset,
        side: verdict.side,
        snapshots: verdict.destroy.iter().map(|d| (d.guid, d.name.clone())).collect(),
        keep_common_with: verdict.peers.clone(),
        skip_if_renamed: verdict.skip_if_renamed,
        skip_if_cloned: verdict.skip_if_cloned,
        policy: subject.policy,
        reason: format!("no rule keeps them ({})", verdict.rules.join("; ")),
        bytes: verdict.destroy.iter().fold(0, |sum, d| sum.saturating_add(d.used)),
    }
}
