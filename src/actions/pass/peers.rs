//! Questions of a pass that concern several datasets: the sources of a destination, and the names on the destinations of
//! a source.

use chrono::TimeDelta;

use crate::actions::common::{KnownDataset, NewestCommon, SnapshotsByGuid};
use crate::actions::index::IncomingSend;
use crate::actions::pass::{GovernedDataset, Pass};
use crate::model::{DatasetInventory, HostName, Place, SnapName};

impl<'a> Pass<'a> {
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
        let rank = |i: &&IncomingSend| {
            let is_named = self.policy.datasets[i.claim.entry].dataset == i.source.dataset;
            (!self.have_common(&i.source, to), !is_named)
        };
        std::iter::once(first).chain(others).min_by_key(rank)
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
}
