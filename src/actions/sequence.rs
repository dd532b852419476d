//! Determines which entries of a policy are worked on after which others in a pass: those that share datasets. All
//! others are worked on side by side.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{DatasetName, HostName};
use crate::policy::Policy;

/// The entries of one dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The host of the dataset.
    pub host: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// The entries, in the sequence of the policy.
    pub entries: Vec<usize>,
    /// Earlier groups that this one has to come after, and whose own predecessors are therefore earlier, too.
    pub after: Vec<usize>,
    /// Later groups that share datasets with this one. They decide what to take, and what was due before, from the state
    /// that this group has not changed yet.
    pub decided_by: Vec<usize>,
    /// Groups with the same number have datasets in common, directly or through others.
    pub cluster: usize,
}

/// Divides the entries of a policy into groups, in the sequence in which groups that share a dataset are worked on: a
/// copy that is itself sent on comes after its source, and otherwise the sequence of the policy decides.
#[must_use]
pub fn groups(policy: &Policy) -> Vec<Group> {
    let mut by_dataset: BTreeMap<(&HostName, &DatasetName), Vec<usize>> = BTreeMap::new();
    for (index, entry) in policy.datasets.iter().enumerate() {
        by_dataset.entry((&entry.hostname, &entry.dataset)).or_default().push(index);
    }
    let mut all: Vec<_> = by_dataset.into_iter().collect();
    all.sort_by_key(|(_, entries)| entries.first().copied());
    let targets = |entries: &[usize]| -> BTreeSet<(&HostName, &DatasetName)> {
        let policies = entries.iter().filter_map(|entry| policy.datasets.get(*entry)).flat_map(|entry| &entry.policies);
        policies.flat_map(|policy| &policy.sync_on).map(|target| (&target.host, &target.dataset)).collect()
    };
    let targets: Vec<_> = all.iter().map(|(_, entries)| targets(entries)).collect();
    let mut sources = Roots::default();
    all.iter().enumerate().for_each(|(group, (source, _))| sources.add(*source, group));
    let into: Vec<BTreeSet<usize>> = targets
        .iter()
        .enumerate()
        .map(|(group, targets)| {
            targets.iter().flat_map(|target| sources.sharing(*target)).filter(|other| *other != group).collect()
        })
        .collect();
    let mut earlier = Roots::default();
    let mut groups: Vec<Group> = Vec::with_capacity(all.len());
    let mut clusters = Clusters::default();
    let order = upstream_first(&into);
    for number in order.iter().copied() {
        let ((host, dataset), entries) = &all[number];
        let places = || std::iter::once((*host, *dataset)).chain(targets[number].iter().copied());
        let after: BTreeSet<usize> = places().flat_map(|place| earlier.sharing_last(place)).collect();
        let here = groups.len();
        places().for_each(|place| earlier.add(place, here));
        clusters.add(&after);
        let after = after.into_iter().collect();
        let (host, dataset, entries) = ((*host).clone(), (*dataset).clone(), entries.clone());
        groups.push(Group { host, dataset, entries, after, decided_by: Vec::new(), cluster: here });
    }
    for (here, number) in order.iter().enumerate() {
        let places = std::iter::once(all[*number].0).chain(targets[*number].iter().copied());
        let sharing: BTreeSet<usize> = places.flat_map(|place| earlier.sharing(place)).collect();
        groups[here].decided_by = sharing.into_iter().filter(|other| *other > here).collect();
        groups[here].cluster = clusters.of(here);
    }
    groups
}

/// Sorts groups so that each comes before those `into` whose datasets it sends. Groups that send to each other in a
/// circle, and all others, stay in their sequence.
fn upstream_first(into: &[BTreeSet<usize>]) -> Vec<usize> {
    let mut waits_for = vec![0_usize; into.len()];
    into.iter().flatten().for_each(|group| waits_for[*group] += 1);
    let mut left: BTreeSet<usize> = (0..into.len()).collect();
    let mut ready: BTreeSet<usize> = left.iter().copied().filter(|group| waits_for[*group] == 0).collect();
    let mut sorted = Vec::with_capacity(into.len());
    while let Some(next) = ready.pop_first().or_else(|| left.first().copied()) {
        left.remove(&next);
        sorted.push(next);
        for group in &into[next] {
            waits_for[*group] = waits_for[*group].saturating_sub(1);
            if waits_for[*group] == 0 && left.contains(group) {
                ready.insert(*group);
            }
        }
    }
    sorted
}

/// Groups by the datasets at which they begin, of each host.
#[derive(Default)]
struct Roots<'p>(BTreeMap<&'p HostName, BTreeMap<&'p str, Vec<usize>>>);

impl<'p> Roots<'p> {
    fn add(&mut self, (host, dataset): (&'p HostName, &'p DatasetName), group: usize) {
        self.0.entry(host).or_default().entry(dataset.as_str()).or_default().push(group);
    }

    /// The groups at each dataset that is this one, or above or below it.
    fn near(&self, (host, dataset): (&HostName, &DatasetName)) -> impl Iterator<Item = &Vec<usize>> {
        let name = dataset.as_str();
        let roots = self.0.get(host);
        let above = std::iter::successors(Some(name), |name| name.rsplit_once('/').map(|(parent, _)| parent));
        let above = above.filter_map(move |name| roots?.get(name)).collect::<Vec<_>>();
        let below = format!("{name}/");
        let below = roots.map(|roots| {
            let from = roots.range::<str, _>((std::ops::Bound::Excluded(below.as_str()), std::ops::Bound::Unbounded));
            from.take_while(|(name, _)| name.starts_with(&below)).map(|(_, groups)| groups).collect::<Vec<_>>()
        });
        above.into_iter().chain(below.unwrap_or_default())
    }

    fn sharing(&self, place: (&HostName, &DatasetName)) -> Vec<usize> {
        self.near(place).flatten().copied().collect()
    }

    /// The group that was added last for each dataset that is this one, or above or below it.
    fn sharing_last(&self, place: (&HostName, &DatasetName)) -> Vec<usize> {
        self.near(place).filter_map(|groups| groups.last().copied()).collect()
    }
}

/// Which groups are connected: for each one, a group to which it is connected, or itself.
#[derive(Default)]
struct Clusters(Vec<usize>);

impl Clusters {
    /// Adds the next group, which is connected to these.
    fn add(&mut self, others: &BTreeSet<usize>) {
        let here = self.0.len();
        self.0.push(here);
        for other in others {
            let (of_other, of_here) = (self.of(*other), self.of(here));
            let (first, second) = (of_other.min(of_here), of_other.max(of_here));
            self.0[second] = first;
        }
    }

    /// The first group to which a group is connected.
    fn of(&mut self, group: usize) -> usize {
        let mut first = group;
        while self.0[first] != first {
            self.0[first] = self.0[self.0[first]];
            first = self.0[first];
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_policy;

    /// The groups of a policy whose entries are written as `alpha:tank/a>beta:pool/a,gamma:pool/a`.
    fn sequence(entries: &str) -> String {
        let entries = entries.split_whitespace().map(|entry| {
            let (source, targets) = entry.split_once('>').unwrap();
            let (host, dataset) = source.split_once(':').unwrap();
            let targets: Vec<String> = targets.split(',').map(|target| format!("{target:?}")).collect();
            format!(
                r#"{{ "hostname": "{host}", "dataset": "{dataset}", "recursive": true,
                    "sync": {{ "prefix": "P", "sync_on": [{}] }} }}"#,
                targets.join(", ")
            )
        });
        let entries: Vec<String> = entries.collect();
        let policy = parse_policy("server.json", &format!(r#"{{ "datasets": [ {} ] }}"#, entries.join(", "))).unwrap();
        let groups = groups(&policy);
        let shown = groups.iter().map(|group| {
            let after: Vec<String> = group.after.iter().map(|other| groups[*other].dataset.to_string()).collect();
            let decided_by =
                group.decided_by.iter().map(|other| format!(" {}!", groups[*other].dataset)).collect::<String>();
            format!("{}<{}{decided_by} #{}", group.dataset, after.join(","), group.cluster)
        });
        shown.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn groups_that_share_a_dataset_follow_each_other() {
        assert_eq!(sequence("a:t/x>b:p/x a:t/y>b:p/y c:t/x>b:p/xy"), "t/x< #0; t/y< #1; t/x< #2");
        // A copy that is sent on comes after its source, whatever comes first in the policy.
        assert_eq!(sequence("b:p/x>c:q/x a:t/x>b:p/x"), "t/x< p/x! #0; p/x<t/x #0");
        assert_eq!(sequence("c:q/x>d:r/x b:p>c:q a:t/x>b:p/x"), "t/x< p! #0; p<t/x q/x! #0; q/x<p #0");
        // Other entries with a dataset in common follow the policy.
        assert_eq!(sequence("a:t/x>b:p/x a:t>b:p a:t/y>b:q"), "t/x< t! #0; t<t/x t/y! #0; t/y<t #0");
        assert_eq!(sequence("a:t/x>b:p a:t/y>b:p/y a:t/z>c:p"), "t/x< t/y! #0; t/y<t/x #0; t/z< #2");
        // Entries that send to each other.
        assert_eq!(sequence("a:t>b:u/t b:u>a:t/u"), "t< u! #0; u<t #0");
    }
}
