//! The third question: which snapshots of a policy stay in a dataset, and why?

use chrono::{DateTime, Utc};

use crate::actions::common::{KnownDataset, NewestCommon, PolicySnapshot, SnapshotsByGuid, policy_snapshots};
use crate::actions::prune::{Protection, SnapVerdict};
use crate::model::{DatasetInventory, Guid, Place, Prefix, tags};
use crate::policy::Zone;
use crate::policy::retention::{Rule, Tally, in_order};

/// The rules for the snapshots with one prefix in one dataset.
#[derive(Clone, Debug)]
pub struct DeleteTerms<'a> {
    /// The prefix; snapshots with other names are never destroyed.
    pub prefix: &'a Prefix,
    /// The retention rules. A snapshot stays if any of them keeps it.
    pub rules: Vec<&'a Rule>,
    /// Whether a policy without rules applies, which keeps everything.
    pub keep_all: bool,
    /// Whether a snapshot may be destroyed before it is on every destination.
    pub prune_unsent: bool,
    /// Whether a snapshot with a different name on another side stays.
    pub skip_if_renamed: bool,
    /// Whether the policy keeps snapshots that have clones. They stay even if this is false.
    pub skip_if_cloned: bool,
}

/// A dataset that this one is sent to or receives from.
#[derive(Clone, Debug)]
pub struct Peer<'a> {
    /// Its host and name.
    pub place: Place,
    /// How it is related to this one.
    pub relation: Relation,
    /// What is known about it.
    pub known: KnownDataset<'a>,
}

/// How a peer is related to a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relation {
    /// A destination of the policy in question: it is to receive every snapshot.
    Destination,
    /// A destination of another policy of the same dataset: it needs only the base.
    OtherDestination,
    /// The dataset that this one receives from.
    Source,
}

/// Decides about every snapshot with the prefix; the verdicts are sorted oldest first.
///
/// A snapshot counts as unsent if it is newer than the newest common point. Everything up to that point has been sent:
/// if the destination lacks an older snapshot, it was pruned there.
#[must_use]
pub fn delete(
    dataset: &DatasetInventory,
    terms: &DeleteTerms<'_>,
    peers: &[Peer<'_>],
    tz: Zone,
    now: DateTime<Utc>,
) -> Vec<SnapVerdict> {
    let mut own = Vec::new();
    policy_snapshots(dataset, terms.prefix, &mut own);
    decide(dataset, &own, terms, peers, &mut Tally::new(tz, now))
}

/// What one peer still needs of a dataset.
struct PeerNeeds<'a> {
    relation: Relation,
    /// Its snapshots, if they are known.
    snapshots: Option<SnapshotsByGuid<'a>>,
    /// The newest common snapshot, and the newest common point, which may be a bookmark.
    bases: [Option<Guid>; 2],
    /// The createtxg here of the newest common point; everything after it is unsent.
    unsent_after: Option<u64>,
    /// The protections, as bits, that this peer gives to every snapshot.
    for_all: u16,
}

impl<'a> PeerNeeds<'a> {
    fn of(dataset: &'a DatasetInventory, peer: &Peer<'a>, prune_unsent: bool) -> Self {
        let nothing =
            Self { relation: peer.relation, snapshots: None, bases: [None; 2], unsent_after: None, for_all: 0 };
        let unknown = match peer.relation {
            Relation::Source => Protection::SourceUnknown,
            Relation::Destination | Relation::OtherDestination => Protection::DestinationUnknown,
        };
        match peer.known {
            KnownDataset::Unlisted => match tags::newest_sent(dataset, &peer.place) {
                // The policy permits pruning what a destination lacks. So while the destination cannot be listed, it is
                // enough to keep the newest snapshot that it is known to have, according to the cursors.
                Some(sent) if prune_unsent && peer.relation != Relation::Source => {
                    Self { bases: [Some(sent), None], ..nothing }
                }
                _ => Self { for_all: unknown.bit(), ..nothing },
            },
            KnownDataset::Absent => nothing,
            KnownDataset::Present(there) => {
                let snapshots = SnapshotsByGuid::of(there);
                let common = match peer.relation {
                    Relation::Source => NewestCommon::of(there, &SnapshotsByGuid::of(dataset)),
                    Relation::Destination | Relation::OtherDestination => NewestCommon::of(dataset, &snapshots),
                };
                let nothing_in_common = peer.relation == Relation::Source && common.any.is_none();
                Self {
                    snapshots: Some(snapshots),
                    bases: [common.snapshot.map(|b| b.guid), common.any.map(|b| b.guid)],
                    unsent_after: common.any.map(|b| b.createtxg),
                    for_all: if nothing_in_common { Protection::NothingInCommon.bit() } else { 0 },
                    ..nothing
                }
            }
        }
    }

    fn is_unsent(&self, snapshot: &PolicySnapshot) -> bool {
        self.relation == Relation::Destination && self.unsent_after.is_none_or(|txg| snapshot.createtxg > txg)
    }
}

/// Like [`delete`], but with inputs that the caller has prepared.
pub(super) fn decide<'a>(
    dataset: &'a DatasetInventory,
    own: &[PolicySnapshot],
    terms: &DeleteTerms<'a>,
    peers: &[Peer<'a>],
    tally: &mut Tally<'a>,
) -> Vec<SnapVerdict> {
    let needs: Vec<PeerNeeds> = peers.iter().map(|peer| PeerNeeds::of(dataset, peer, terms.prune_unsent)).collect();
    let for_all =
        needs.iter().fold(if terms.keep_all { Protection::NoRules.bit() } else { 0 }, |all, n| all | n.for_all);
    tally.restart(terms.rules.iter().copied());
    let now = tally.now();
    let in_order = in_order(own.iter().map(|snapshot| snapshot.creation), tally.now());
    let mut verdicts: Vec<SnapVerdict> = own
        .iter()
        .zip(in_order)
        .rev()
        .filter_map(|(snapshot, in_order)| {
            let found = dataset.snapshots.get(snapshot.index as usize)?;
            let mut protections = for_all;
            let mut protect = |by: Protection, if_so: bool| protections |= if if_so { by.bit() } else { 0 };
            let trashed = dataset.trashed(found.guid);
            let has_expired =
                trashed.and_then(|trashed| dataset.trashed_until(trashed)).is_some_and(|until| until <= now);
            protect(Protection::Held, dataset.other_holds(found) > 0);
            protect(Protection::Trashed, trashed.is_some() && !has_expired);
            protect(Protection::AppendOnly, dataset.append_only == Some(true));
            protect(Protection::Cloned, found.has_clones);
            let (mut base_with, mut unsent_to) = (0, 0);
            for (i, need) in needs.iter().enumerate() {
                let bit = 1u32 << i.min(31);
                if need.bases.contains(&Some(snapshot.guid)) {
                    base_with |= bit;
                }
                if !terms.prune_unsent && need.is_unsent(snapshot) {
                    unsent_to |= bit;
                }
                if terms.skip_if_renamed
                    && let Some(name) = need.snapshots.as_ref().and_then(|s| s.name_of(snapshot.guid))
                {
                    protect(Protection::Renamed, *name != found.name);
                }
            }
            // What is in the trash takes no other one's place in a rule. But it stays there as long as a rule asks for it:
            // perhaps the order that moved it was not the policy's.
            let rules = tally.keep(snapshot.creation, in_order && trashed.is_none());
            let out_of_order = !in_order;
            Some(SnapVerdict { index: snapshot.index, out_of_order, protections, rules, base_with, unsent_to })
        })
        .collect();
    let is_outside = |verdict: &&mut SnapVerdict| {
        let found = dataset.snapshots.get(verdict.index as usize);
        found.is_some_and(|found| dataset.trashed(found.guid).is_none())
    };
    if let Some(newest) = verdicts.iter_mut().find(is_outside) {
        newest.protections |= Protection::Newest.bit();
    }
    verdicts.reverse();
    verdicts
}
