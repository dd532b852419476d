//! Checks the names with which somebody limits what is shown.

use thiserror::Error;

use crate::model::{DatasetName, HostName, Inventory};
use crate::policy::Policy;

/// A name that occurs nowhere, and is almost certainly a typo.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UnknownName {
    /// The policy does not name the host.
    #[error("--host: the policy does not name {host}; it names {}", words(.known))]
    Host {
        /// The name.
        host: HostName,
        /// The hosts that the policy names.
        known: Vec<HostName>,
    },
    /// No host has the dataset.
    #[error("--dataset: neither the policy nor any host has {dataset}")]
    Dataset {
        /// The name.
        dataset: DatasetName,
    },
    /// The policy covers the dataset, but its hosts, which were all listed, do not have it.
    #[error("--dataset: {dataset} does not exist on {}", words(.hosts))]
    Missing {
        /// The name.
        dataset: DatasetName,
        /// The hosts on which the policy would cover it.
        hosts: Vec<HostName>,
    },
}

fn words(hosts: &[HostName]) -> String {
    hosts.iter().map(HostName::as_str).collect::<Vec<_>>().join(", ")
}

/// Rejects a host or a dataset that occurs neither in the policy nor in the inventory.
pub fn check_names(
    policy: &Policy,
    inventory: &Inventory,
    host: Option<&HostName>,
    dataset: Option<&DatasetName>,
) -> Result<(), UnknownName> {
    let hosts = policy.hosts_named();
    if let Some(host) = host.filter(|h| !hosts.contains(*h) && !inventory.hosts.contains_key(*h)) {
        return Err(UnknownName::Host { host: host.clone(), known: hosts.into_iter().collect() });
    }
    let Some(root) = dataset else { return Ok(()) };
    let targets = policy.datasets.iter().flat_map(|e| &e.policies).flat_map(|p| &p.sync_on);
    let named = policy.datasets.iter().map(|e| (&e.hostname, &e.dataset)).chain(targets.map(|t| (&t.host, &t.dataset)));
    let named: Vec<(&HostName, &DatasetName)> = named.collect();
    let exists = inventory.hosts.values().any(|host| host.within(root).next().is_some());
    if exists || named.iter().any(|(_, dataset)| dataset.is_within(root)) {
        return Ok(());
    }
    let mut covering: Vec<&HostName> =
        named.iter().filter(|(_, dataset)| root.is_within(dataset)).map(|(host, _)| *host).collect();
    covering.sort();
    covering.dedup();
    let is_listed = |host: &&HostName| inventory.hosts.get(*host).is_some_and(|known| known.covers(root));
    match covering.as_slice() {
        [] => Err(UnknownName::Dataset { dataset: root.clone() }),
        hosts if hosts.iter().all(is_listed) => Err(UnknownName::Missing {
            dataset: root.clone(),
            hosts: hosts.iter().map(|host| (*host).clone()).collect(),
        }),
        // A host that was not listed may have it.
        _ => Ok(()),
    }
}
