//! Questions of a pass that concern several datasets: the sources of a destination, and the names on the destinations of
//! a source.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashSet};

use chrono::TimeDelta;

use crate::actions::common::{KnownDataset, NewestCommon, SnapshotsByGuid};
use crate::actions::index::IncomingSend;
use crate::actions::notice::NoticeKind;
use crate::actions::pass::{GovernedDataset, Pass};
use crate::actions::reason::SendReason;
use crate::actions::route::Route;
use crate::model::{
    DatasetInventory, DatasetName, Guid, HostInventory, HostName, Place, Prefix, SnapName, Snapshot, tags,
};
use crate::policy::{DatasetPolicy, SnapshotPolicy};

impl<'a> Pass<'a> {
    /// What is known about a dataset.
    pub(super) fn known(&self, place: &Place) -> KnownDataset<'a> {
        match self.inventory.hosts.get(&place.host).filter(|h| h.covers(&place.dataset)) {
            None => KnownDataset::Unlisted,
            Some(host) => host.datasets.get(&place.dataset).map_or(KnownDataset::Absent, KnownDataset::Present),
        }
    }

    /// The reason for a transfer in more detail: the copy follows its renamed source, or a destination that does not exist
    /// was there before. Other reasons stay as they are.
    pub(super) fn absence(reason: SendReason, source: &DatasetInventory, to: &Place, route: &Route) -> SendReason {
        match (reason, &route.renamed) {
            (_, Some(renamed)) => SendReason::CopyRenamed { from: renamed.dataset.clone() },
            (SendReason::DestinationAbsent, None) if tags::was_sent(source, to) => SendReason::DestinationGone,
            (reason, _) => reason,
        }
    }

    /// Whether an entry would cover an excluded dataset, and no dataset above from which it inherits the exclusion.
    pub(super) fn is_topmost_excluded(&self, index: usize, host: &HostInventory, name: &DatasetName) -> bool {
        let entry = &self.policy.datasets[index];
        let above = name.parent().filter(|_| *name != entry.dataset);
        let inherits = above.and_then(|above| host.datasets.get(&above)).is_some_and(|above| above.excluded);
        let governing = |policy: &SnapshotPolicy| self.index.governing(&entry.hostname, name, &policy.prefix);
        !inherits && entry.policies.iter().any(|p| governing(p).is_some_and(|claim| claim.entry == index))
    }

    /// The destination of a dataset at a target; `None` if its name, or the names of its snapshots, would be too long.
    pub(super) fn destination(&self, governed: &GovernedDataset<'a>, target: &Place) -> Option<Place> {
        // All names of the policy's snapshots have the same length.
        let name = governed.policy.prefix.stamp(self.now);
        let to = self.index.destination(governed.claim, target, governed.name);
        to.filter(|to| to.dataset.has_room_for(&name))
    }

    /// The name for a snapshot that is due. If a destination has a different snapshot of this name, because the source's
    /// was destroyed and its slot is taken again, the destination could not receive it. Then the name has the current
    /// time.
    pub(super) fn name_free_on_destinations(&self, governed: &GovernedDataset<'a>, name: SnapName) -> SnapName {
        let targets = governed.policy.sync_on.iter();
        let places = targets.filter_map(|target| self.index.destination(governed.claim, target, governed.name));
        let known: Vec<KnownDataset<'_>> = places.map(|to| self.known(&to)).collect();
        let is_taken = |name: &SnapName| {
            known.iter().any(|known| match known {
                KnownDataset::Present(there) => there.snapshots.iter().any(|s| s.name == *name),
                KnownDataset::Absent | KnownDataset::Unlisted => false,
            })
        };
        let later = (0..60).map(|seconds| governed.policy.prefix.stamp(self.now + TimeDelta::seconds(seconds)));
        std::iter::once(name.clone()).chain(later).find(|name| !is_taken(name)).unwrap_or(name)
    }

    /// Which of several datasets with the same destination is sent there: one that the destination is a copy of already,
    /// otherwise one that an entry names directly, otherwise the first in the order of the policy. So a new child of a
    /// recursive entry does not take over the copy of another dataset.
    pub(super) fn sender<'i>(
        &self,
        to: &Place,
        incoming: &'i [IncomingSend],
        may_be: impl Fn(&IncomingSend) -> bool,
    ) -> Option<&'i IncomingSend> {
        let mut senders = incoming.iter().filter(|i| may_be(i) && self.exists(i));
        let first = senders.next()?;
        let others: Vec<&IncomingSend> = senders.filter(|i| i.source != first.source).collect();
        if others.is_empty() {
            return Some(first);
        }
        let prefixes: Vec<&Prefix> = incoming.iter().map(|i| &self.index.snapshot_policy(i.claim).prefix).collect();
        let is_own = |s: &Snapshot| prefixes.iter().any(|prefix| prefix.time_in(&s.name).is_some());
        let copy = match self.known(to) {
            KnownDataset::Present(there) => Some(there).filter(|there| there.snapshots.iter().any(is_own)),
            KnownDataset::Absent | KnownDataset::Unlisted => None,
        };
        let rank = |i: &&IncomingSend| {
            let is_named = self.policy.datasets[i.claim.entry].dataset == i.source.dataset;
            (copy.map(|copy| self.kinship(&i.source, copy)), Reverse(is_named))
        };
        std::iter::once(first).chain(others).min_by_key(rank)
    }

    /// How likely a dataset is the copy of a source; smaller is more likely. The source that has the newest snapshot of
    /// the copy, or a bookmark of it, comes first. A source that could not be listed comes before one with nothing in
    /// common, because the copy may be its copy.
    fn kinship(&self, source: &Place, copy: &DatasetInventory) -> (u8, Reverse<u64>) {
        match self.known(source) {
            KnownDataset::Unlisted => (1, Reverse(0)),
            KnownDataset::Absent => (2, Reverse(0)),
            KnownDataset::Present(source) => {
                let bookmarks: HashSet<Guid> = source.bookmarks.iter().map(|b| b.guid).collect();
                let ours = SnapshotsByGuid::of(source);
                let common = copy.snapshots.iter().filter(|s| ours.has(s.guid) || bookmarks.contains(&s.guid));
                common.map(|s| s.createtxg).max().map_or((2, Reverse(0)), |newest| (0, Reverse(newest)))
            }
        }
    }

    /// Whether a destination has a snapshot of a source, or one that a bookmark of the source was made from.
    pub(super) fn have_common(&self, source: &Place, to: &Place) -> bool {
        match (self.known(source), self.known(to)) {
            (KnownDataset::Present(source), KnownDataset::Present(there)) => {
                NewestCommon::of(source, &SnapshotsByGuid::of(there)).any.is_some()
            }
            _ => false,
        }
    }

    /// The dataset of a host from which a copy was made, according to the copy's newest snapshot.
    pub(super) fn source_of_copy(&self, host: &HostName, copy: &DatasetInventory) -> Option<Place> {
        let newest = copy.newest()?.guid;
        let mut datasets = self.inventory.hosts.get(host)?.datasets.iter();
        let has = |of: &DatasetInventory| of.by_guid(newest).is_some() || of.bookmarks.iter().any(|b| b.guid == newest);
        let (name, _) = datasets.find(|(_, of)| !std::ptr::eq(*of, copy) && has(of))?;
        Some(Place { host: host.clone(), dataset: name.clone() })
    }

    /// Adds a notice about the copies of a recursive entry whose sources no longer exist. A copy of a dataset that was
    /// only renamed is not one of them. Other copies on the source's host are no sources.
    pub(super) fn note_gone_sources(&mut self, index: usize) {
        let entry = &self.policy.datasets[index];
        let targets: BTreeSet<&Place> = entry.policies.iter().flat_map(|p| &p.sync_on).collect();
        for target in targets {
            let mut copies = self.without_source(entry, target);
            if copies.is_empty() {
                continue;
            }
            let on_host = self.inventory.hosts.get(&entry.hostname).into_iter().flat_map(|host| &host.datasets);
            let sources = on_host.filter(|(name, _)| self.index.incoming(&entry.hostname, name).is_empty());
            let guids: HashSet<Guid> = sources.flat_map(|(_, of)| of.snapshots.iter().map(|s| s.guid)).collect();
            copies.retain(|(_, copy)| copy.newest().is_none_or(|newest| !guids.contains(&newest.guid)));
            let copies: Vec<DatasetName> = copies.into_iter().map(|(name, _)| name.clone()).collect();
            if !copies.is_empty() {
                self.note(index, &target.host, Some(&target.dataset), NoticeKind::SourcesGone { copies });
            }
        }
    }

    /// The datasets below a target that have snapshots of an entry's policies, but no source. A source that is excluded,
    /// or that another entry sends elsewhere, exists all the same.
    fn without_source(&self, entry: &DatasetPolicy, target: &Place) -> Vec<(&'a DatasetName, &'a DatasetInventory)> {
        let Some(host) = self.inventory.hosts.get(&target.host).filter(|h| h.covers(&target.dataset)) else {
            return Vec::new();
        };
        let is_copy = |copy: &DatasetInventory| {
            let mut prefixes = entry.policies.iter().map(|p| &p.prefix);
            prefixes.any(|prefix| copy.snapshots.iter().any(|s| prefix.time_in(&s.name).is_some()))
        };
        let exists = |name: &DatasetName| {
            let source = entry.dataset.join(name.below(&target.dataset)?).ok()?;
            let known = self.known(&Place { host: entry.hostname.clone(), dataset: source });
            (!matches!(known, KnownDataset::Absent)).then_some(())
        };
        let has_source = |name: &DatasetName| {
            exists(name).is_some() || self.index.incoming(&target.host, name).iter().any(|i| self.exists(i))
        };
        host.within(&target.dataset)
            .filter(|(name, _)| **name != target.dataset)
            .filter(|(name, copy)| !has_source(name) && is_copy(copy))
            .collect()
    }
}
