//! What must hold between the entries of `server.json`; each problem names both places.

use std::collections::{BTreeMap, HashMap};

use crate::config::json::Node;
use crate::model::{DatasetName, HostName, Place, Prefix};

/// One entry of `datasets`, as far as it could be read.
pub(super) struct Entry<'d> {
    /// The entry's place.
    pub node: Node<'d>,
    /// The host whose dataset it is.
    pub hostname: Option<HostName>,
    /// The dataset.
    pub dataset: Option<DatasetName>,
    /// What its policies lay claim to.
    pub policies: Vec<Claims<'d>>,
}

/// What one policy lays claim to.
pub(super) struct Claims<'d> {
    /// The policy's name.
    pub name: String,
    /// The prefix that is its own on the dataset.
    pub prefix: Option<Prefixed<'d>>,
    /// Where it sends.
    pub targets: Vec<Place>,
    /// Where the targets are written.
    pub place: Node<'d>,
}

/// A prefix and where it is written.
pub(super) struct Prefixed<'d> {
    /// The prefix.
    pub prefix: Prefix,
    /// Its place.
    pub node: Node<'d>,
}

impl<'d> Entry<'d> {
    fn prefixes(&self) -> impl Iterator<Item = &Prefixed<'d>> {
        self.policies.iter().filter_map(|policy| policy.prefix.as_ref())
    }

    fn source(&self) -> Option<(&HostName, &DatasetName)> {
        self.hostname.as_ref().zip(self.dataset.as_ref())
    }
}

/// Checks one entry by itself.
pub(super) fn within(entry: &Entry<'_>) {
    let mut seen: HashMap<&Prefix, (&str, usize)> = HashMap::new();
    for policy in &entry.policies {
        let Some(Prefixed { prefix, node }) = &policy.prefix else { continue };
        if let Some((name, line)) = seen.get(prefix) {
            node.problem(format!(
                "{prefix:?} is the prefix of the policy {name:?} too (line {line}); each policy needs its own"
            ));
        } else {
            seen.insert(prefix, (&policy.name, node.line()));
        }
    }
    let Some((host, source)) = entry.source() else { return };
    for policy in &entry.policies {
        for target in policy.targets.iter().filter(|target| target.host == *host) {
            let how = if target.dataset == *source {
                "is the dataset itself"
            } else if target.dataset.is_within(source) {
                "lies inside of the dataset itself"
            } else if source.is_within(&target.dataset) {
                "contains the dataset itself"
            } else {
                continue;
            };
            let line = entry.node.line();
            policy.place.problem(format!(
                "{} on {host} {how}, {source} on {host} (line {line}); a copy on the same host needs a place outside of it",
                target.dataset
            ));
        }
    }
}

/// Checks the entries against each other.
pub(super) fn across(entries: &[Entry<'_>]) {
    prefixes_have_one_owner(entries);
    targets_have_one_source(entries);
}

fn prefixes_have_one_owner(entries: &[Entry<'_>]) {
    let mut owners: HashMap<(&HostName, &DatasetName, &Prefix), (usize, &Prefixed<'_>)> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let Some((host, dataset)) = entry.source() else { continue };
        for claim in entry.prefixes() {
            let (owner, first) = *owners.entry((host, dataset, &claim.prefix)).or_insert((index, claim));
            if owner != index {
                claim.node.problem(format!(
                    "{:?} on {dataset} of {host} belongs to {} (line {}) already; a dataset's prefix has one policy",
                    claim.prefix,
                    first.node.path(),
                    first.node.line(),
                ));
            }
        }
    }
}

fn targets_have_one_source(entries: &[Entry<'_>]) {
    let mut sources: BTreeMap<&Place, (&HostName, &DatasetName, &Node<'_>)> = BTreeMap::new();
    for entry in entries {
        let Some((host, dataset)) = entry.source() else { continue };
        for policy in &entry.policies {
            for target in &policy.targets {
                let (first_host, first, place) = *sources.entry(target).or_insert((host, dataset, &policy.place));
                if (first_host, first) != (host, dataset) {
                    policy.place.problem(format!(
                        "{} on {} receives {first} of {first_host} ({}, line {}) already; a dataset can be the copy of one other only",
                        target.dataset,
                        target.host,
                        place.path(),
                        place.line(),
                    ));
                }
            }
        }
    }
}
