//! Checks the entries of `server.json` against each other. Each problem names the positions of both entries.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::config::json::Node;
use crate::model::{DatasetName, HostName, Place, Prefix};
use crate::policy::Schedule;

/// The parts of one entry of `datasets` that could be read.
pub(super) struct Entry<'d> {
    /// The entry itself.
    pub node: Node<'d>,
    /// The host whose dataset it is.
    pub hostname: Option<HostName>,
    /// The dataset.
    pub dataset: Option<DatasetName>,
    /// The prefixes and targets of its policies.
    pub policies: Vec<PolicyClaims<'d>>,
}

/// The prefix and the targets of one policy, which no other policy may use.
pub(super) struct PolicyClaims<'d> {
    /// The policy's name.
    pub name: String,
    /// The prefix of its snapshots.
    pub prefix: Option<PrefixNode<'d>>,
    /// The datasets to which it sends.
    pub targets: Vec<Place>,
    /// The value that names the targets.
    pub target_node: Node<'d>,
    /// How old the newest snapshot on a target may be.
    pub lag: Option<LagNode<'d>>,
}

/// A limit for the age of the newest snapshot on a target, and the schedules that determine when it gets another one.
pub(super) struct LagNode<'d> {
    /// The limit.
    pub lag: Duration,
    /// The schedules, each with its key.
    pub schedules: Vec<(&'static str, Schedule)>,
    /// The value of the limit.
    pub node: Node<'d>,
}

/// A prefix, and the value that it was read from.
pub(super) struct PrefixNode<'d> {
    /// The prefix.
    pub prefix: Prefix,
    /// The value.
    pub node: Node<'d>,
}

impl<'d> Entry<'d> {
    fn prefixes(&self) -> impl Iterator<Item = &PrefixNode<'d>> {
        self.policies.iter().filter_map(|policy| policy.prefix.as_ref())
    }

    fn source(&self) -> Option<(&HostName, &DatasetName)> {
        self.hostname.as_ref().zip(self.dataset.as_ref())
    }
}

/// Checks the policies of one entry.
pub(super) fn check_entry(entry: &Entry<'_>) {
    let mut seen: HashMap<&Prefix, (&str, usize)> = HashMap::new();
    for policy in &entry.policies {
        let Some(PrefixNode { prefix, node }) = &policy.prefix else { continue };
        if let Some((name, line)) = seen.get(prefix) {
            node.problem(format!(
                "{prefix:?} is also the prefix of the policy {name:?} (line {line}); hint: give each policy its own prefix"
            ));
        } else {
            seen.insert(prefix, (&policy.name, node.line()));
        }
    }
    let Some((host, source)) = entry.source() else { return };
    for policy in &entry.policies {
        for target in policy.targets.iter().filter(|target| target.host == *host) {
            let relation = if target.dataset == *source {
                "is the dataset itself"
            } else if target.dataset.is_within(source) {
                "is inside the dataset itself"
            } else if source.is_within(&target.dataset) {
                "contains the dataset itself"
            } else {
                continue;
            };
            let line = entry.node.line();
            policy.target_node.problem(format!(
                "the destination {} on {host} {relation}, {source} on {host} (line {line}); hint: name a destination outside of it",
                target.dataset
            ));
        }
    }
}

/// Checks all entries against each other.
pub(super) fn check_all(entries: &[Entry<'_>]) {
    check_prefixes(entries);
    check_targets(entries);
    check_lags(entries);
}

/// Checks that no target exceeds its limit between two slots of a schedule, however fast its transfers are.
fn check_lags(entries: &[Entry<'_>]) {
    // Thousands of entries share a few schedules.
    let mut gaps: HashMap<&Schedule, Duration> = HashMap::new();
    for LagNode { lag, schedules, node } in entries.iter().flat_map(|e| &e.policies).filter_map(|p| p.lag.as_ref()) {
        for (key, schedule) in schedules {
            let gap = *gaps.entry(schedule).or_insert_with(|| schedule.longest_gap());
            if *lag < gap {
                let gap = humantime::format_duration(gap);
                node.problem(format!(
                    "the newest snapshot on a destination is older than this at times, because {key:?} has up to {gap} between two slots; hint: choose more than that plus the time that a transfer takes"
                ));
            }
        }
    }
}

/// Checks that on each dataset, a prefix belongs to a single entry.
fn check_prefixes(entries: &[Entry<'_>]) {
    let mut owners: HashMap<(&HostName, &DatasetName, &Prefix), (usize, &PrefixNode<'_>)> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let Some((host, dataset)) = entry.source() else { continue };
        for claim in entry.prefixes() {
            let (owner, first) = *owners.entry((host, dataset, &claim.prefix)).or_insert((index, claim));
            if owner != index {
                claim.node.problem(format!(
                    "the prefix {:?} of {dataset} on {host} already belongs to {} (line {}); hint: use another prefix, or combine the policies",
                    claim.prefix,
                    first.node.path(),
                    first.node.line(),
                ));
            }
        }
    }
}

/// Checks that each target has a single source.
fn check_targets(entries: &[Entry<'_>]) {
    let mut sources: BTreeMap<&Place, (&HostName, &DatasetName, &Node<'_>)> = BTreeMap::new();
    for entry in entries {
        let Some((host, dataset)) = entry.source() else { continue };
        for policy in &entry.policies {
            for target in &policy.targets {
                let (first_host, first, node) = *sources.entry(target).or_insert((host, dataset, &policy.target_node));
                if (first_host, first) != (host, dataset) {
                    policy.target_node.problem(format!(
                        "{} on {} already receives {first} of {first_host} ({}, line {}); a dataset can be the copy of only one other dataset; hint: name another destination",
                        target.dataset,
                        target.host,
                        node.path(),
                        node.line(),
                    ));
                }
            }
        }
    }
}
