//! The index of a policy by dataset: which entry governs a dataset, where it is sent, and what it receives from.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::model::{DatasetName, HostName, Place, Prefix};
use crate::policy::{Policy, SnapshotPolicy};

/// One policy of one entry, by their indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Claim {
    pub entry: usize,
    pub policy: usize,
}

/// A dataset from which another one receives according to the policy. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IncomingSend {
    pub claim: Claim,
    pub source: Place,
}

/// A dataset to which another one is sent according to the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OutgoingSend {
    pub claim: Claim,
    pub to: Place,
}

type ByRoot<T> = HashMap<String, HashMap<String, Vec<T>>>;

/// The entries and targets of a policy by host and dataset. It is valid only for the policy that it was built from.
#[derive(Debug)]
pub struct PolicyIndex {
    /// By host and by the entry's dataset.
    entries: ByRoot<usize>,
    /// By host and by the target's dataset.
    targets: ByRoot<Claim>,
    /// By host and by each dataset above: the entries that have their source or a target below it.
    below: ByRoot<usize>,
}

/// A policy together with its index.
#[derive(Clone, Copy)]
pub(super) struct IndexedPolicy<'a> {
    policy: &'a Policy,
    index: &'a PolicyIndex,
}

/// A dataset's name, its parent's, and so on, up to the pool's.
fn upwards(dataset: &DatasetName) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(dataset.as_str()), |name| name.rsplit_once('/').map(|(parent, _)| parent))
}

impl PolicyIndex {
    /// Builds the index. This takes time in proportion to the policy's size.
    #[must_use]
    pub fn new(policy: &Policy) -> Self {
        let (mut entries, mut targets): (ByRoot<usize>, ByRoot<Claim>) = (HashMap::new(), HashMap::new());
        let mut below = ByRoot::new();
        for (entry, e) in policy.datasets.iter().enumerate() {
            values_mut(&mut entries, &e.hostname, &e.dataset).push(entry);
            note_above(&mut below, &e.hostname, &e.dataset, entry);
            for (policy, p) in e.policies.iter().enumerate() {
                for target in &p.sync_on {
                    values_mut(&mut targets, &target.host, &target.dataset).push(Claim { entry, policy });
                    note_above(&mut below, &target.host, &target.dataset, entry);
                }
            }
        }
        Self { entries, targets, below }
    }

    /// The hosts whose state matters to decisions about these entries: the entries' own hosts, all hosts that their
    /// datasets reach directly or through others, and all hosts that send to any of these. `policy` is the one that the
    /// index was built from.
    #[must_use]
    pub fn hosts_of(&self, policy: &Policy, entries: &[usize]) -> BTreeSet<HostName> {
        let (mut hosts, mut seen) = (BTreeSet::new(), HashSet::new());
        let source = |entry: &usize| policy.datasets.get(*entry).map(|e| (&e.hostname, &e.dataset));
        let mut next: Vec<(&HostName, &DatasetName)> = entries.iter().filter_map(source).collect();
        while let Some((host, dataset)) = next.pop() {
            if !seen.insert((host, dataset)) {
                continue;
            }
            hosts.insert(host.clone());
            for claim in overlapping(&self.targets, host, dataset) {
                hosts.extend(policy.datasets.get(claim.entry).map(|e| e.hostname.clone()));
            }
            for entry in overlapping(&self.entries, host, dataset) {
                let policies = policy.datasets.get(*entry).into_iter().flat_map(|e| &e.policies);
                next.extend(policies.flat_map(|p| &p.sync_on).map(|target| (&target.host, &target.dataset)));
            }
        }
        hosts
    }
}

/// Notes an entry for each dataset above this one, once.
fn note_above(below: &mut ByRoot<usize>, host: &HostName, dataset: &DatasetName, entry: usize) {
    for above in dataset.ancestors() {
        let entries = values_mut(below, host, &above);
        if entries.last() != Some(&entry) {
            entries.push(entry);
        }
    }
}

/// The values in an index for a dataset of a host, and for all datasets above and below it.
fn overlapping<'i, T>(
    index: &'i ByRoot<T>,
    host: &HostName,
    dataset: &'i DatasetName,
) -> impl Iterator<Item = &'i T> + 'i {
    let contains = |outer: &str, inner: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let roots = index.get(host.as_str()).into_iter().flatten();
    let near = roots.filter(move |(root, _)| contains(root, dataset.as_str()) || contains(dataset.as_str(), root));
    near.flat_map(|(_, all)| all)
}

fn values_mut<'i, T>(index: &'i mut ByRoot<T>, host: &HostName, dataset: &DatasetName) -> &'i mut Vec<T> {
    index.entry(host.to_string()).or_default().entry(dataset.to_string()).or_default()
}

impl<'a> IndexedPolicy<'a> {
    pub fn new(policy: &'a Policy, index: &'a PolicyIndex) -> Self {
        Self { policy, index }
    }

    pub fn snapshot_policy(&self, claim: Claim) -> &'a SnapshotPolicy {
        &self.policy.datasets[claim.entry].policies[claim.policy]
    }

    /// All policies of all entries that cover a dataset, nearest entry first.
    fn covering<'s>(&'s self, host: &HostName, dataset: &'s DatasetName) -> impl Iterator<Item = Claim> + 's {
        let roots = self.index.entries.get(host.as_str());
        let near = upwards(dataset).filter_map(move |root| roots?.get(root)).flatten().copied();
        near.filter(|entry| self.covers(*entry, dataset)).flat_map(|entry| {
            let policies = 0..self.policy.datasets[entry].policies.len();
            policies.map(move |policy| Claim { entry, policy })
        })
    }

    /// Whether an entry covers `dataset`, which is the entry's own dataset or lies below it. A copy of the entry's
    /// datasets that was sent back below it, directly or through other hosts, is not covered: otherwise, copies would
    /// nest ever deeper.
    fn covers(&self, entry: usize, dataset: &DatasetName) -> bool {
        let e = &self.policy.datasets[entry];
        *dataset == e.dataset || e.recursive && !self.is_copy_of(entry, dataset)
    }

    /// Whether, according to the policy, a dataset on the entry's host is a copy of another dataset of the entry.
    fn is_copy_of(&self, entry: usize, dataset: &DatasetName) -> bool {
        let e = &self.policy.datasets[entry];
        let mut next = self.origins(&e.hostname, dataset);
        let mut seen = HashSet::new();
        while let Some((host, origin)) = next.pop() {
            if *host == e.hostname && origin != *dataset && origin.is_within(&e.dataset) {
                return true;
            }
            // A host is the target of few entries, so this loop ends soon. The bound guards against malicious policies.
            if seen.len() < 1000 && seen.insert((host, origin.clone())) {
                next.extend(self.origins(host, &origin));
            }
        }
        false
    }

    /// The datasets that would be sent to this one if all datasets named by the entries existed.
    fn origins(&self, host: &HostName, dataset: &DatasetName) -> Vec<(&'a HostName, DatasetName)> {
        let Some(roots) = self.index.targets.get(host.as_str()) else { return Vec::new() };
        let near = upwards(dataset).filter_map(|root| Some((root, roots.get(root)?)));
        let origins = near.flat_map(|(root, claims)| claims.iter().map(move |claim| (root, claim.entry)));
        origins
            .filter_map(|(root, entry)| {
                let e = &self.policy.datasets[entry];
                let below = dataset.as_str()[root.len()..].trim_start_matches('/');
                (e.recursive || below.is_empty()).then_some((&e.hostname, e.dataset.join(below).ok()?))
            })
            .collect()
    }

    /// The policy that governs a dataset's snapshots of one prefix: that of the nearest entry at or above the dataset,
    /// or of the first one if two entries name the same dataset. `None` if that entry excludes the dataset: then no
    /// other entry governs it either.
    pub fn governing(&self, host: &HostName, dataset: &DatasetName, prefix: &Prefix) -> Option<Claim> {
        let nearest = self.covering(host, dataset).find(|claim| self.snapshot_policy(*claim).prefix == *prefix);
        nearest.filter(|claim| !self.excludes(claim.entry, dataset))
    }

    /// Whether any policy governs snapshots of a dataset, whatever their prefix.
    pub fn governs_any(&self, host: &HostName, dataset: &DatasetName) -> bool {
        let governs = |claim| self.governing(host, dataset, &self.snapshot_policy(claim).prefix) == Some(claim);
        self.covering(host, dataset).any(governs)
    }

    fn excludes(&self, entry: usize, dataset: &DatasetName) -> bool {
        let e = &self.policy.datasets[entry];
        dataset.below(&e.dataset).is_some_and(|below| e.exclude.covers(below))
    }

    /// All datasets that this one is sent to, for any prefix.
    pub fn outgoing(&self, host: &HostName, dataset: &DatasetName) -> Vec<OutgoingSend> {
        let mut all = Vec::new();
        for claim in self.covering(host, dataset) {
            let policy = self.snapshot_policy(claim);
            if policy.sync_on.is_empty() || self.governing(host, dataset, &policy.prefix) != Some(claim) {
                continue;
            }
            for target in &policy.sync_on {
                if let Some(to) = self.destination(claim, target, dataset)
                    && (to.host != *host || to.dataset != *dataset)
                {
                    all.push(OutgoingSend { claim, to });
                }
            }
        }
        all
    }

    /// The destination of a dataset at a target; `None` if its name would be too long.
    pub fn destination(&self, claim: Claim, target: &Place, dataset: &DatasetName) -> Option<Place> {
        let below = dataset.below(&self.policy.datasets[claim.entry].dataset)?;
        Some(Place { host: target.host.clone(), dataset: target.dataset.join(below).ok()? })
    }

    /// All datasets from which this one receives according to the policy, in the order of the policy.
    pub fn incoming(&self, host: &HostName, dataset: &DatasetName) -> Vec<IncomingSend> {
        let Some(roots) = self.index.targets.get(host.as_str()) else { return Vec::new() };
        let mut all = Vec::new();
        for root in upwards(dataset) {
            for claim in roots.get(root).into_iter().flatten().copied() {
                let entry = &self.policy.datasets[claim.entry];
                let below = dataset.as_str()[root.len()..].trim_start_matches('/');
                let Ok(source) = entry.dataset.join(below) else { continue };
                let source = Place { host: entry.hostname.clone(), dataset: source };
                let itself = source.host == *host && source.dataset == *dataset;
                let prefix = &self.snapshot_policy(claim).prefix;
                if !itself && self.governing(&source.host, &source.dataset, prefix) == Some(claim) {
                    all.push(IncomingSend { claim, source });
                }
            }
        }
        all.sort_by(|a, b| (a.claim, &a.source).cmp(&(b.claim, &b.source)));
        all.dedup();
        all
    }

    /// Whether another entry has its source or a target below a dataset. Such a dataset is never renamed: the others
    /// would be renamed with it.
    pub fn others_are_below(&self, entry: usize, place: &Place) -> bool {
        let below = self.index.below.get(place.host.as_str()).and_then(|host| host.get(place.dataset.as_str()));
        below.into_iter().flatten().any(|other| *other != entry)
    }

    /// Whether snapshots of `from` reach `to`, directly or through other hosts.
    pub fn reaches(&self, from: &Place, to: &Place) -> bool {
        let (mut seen, mut next) = (HashSet::new(), vec![from.clone()]);
        while let Some(place) = next.pop() {
            if place == *to {
                return true;
            }
            if seen.insert((place.host.clone(), place.dataset.clone())) {
                next.extend(self.outgoing(&place.host, &place.dataset).into_iter().map(|o| o.to));
            }
        }
        false
    }
}
