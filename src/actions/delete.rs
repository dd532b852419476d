//! Delete: a verdict and its reasons for every snapshot of a policy.

use chrono::{DateTime, Utc};

use crate::actions::common::{ByGuid, Common, Known, Own, own_snapshots};
use crate::actions::verdict::{Protection, SnapVerdict};
use crate::model::{DatasetInventory, Guid, Prefix};
use crate::policy::retention::{Rule, Tally};
use crate::policy::{Target, Zone};

/// What decides about the snapshots of one prefix in one dataset.
#[derive(Clone, Debug)]
pub struct DeleteTerms<'a> {
    /// The prefix; snapshots with other names are no candidates.
    pub prefix: &'a Prefix,
    /// A snapshot stays if any of these keeps it.
    pub rules: Vec<&'a Rule>,
    /// Whether a policy without rules has a say, which keeps everything.
    pub keep_all: bool,
    /// Whether a snapshot may go before it is on every destination.
    pub prune_unsent: bool,
    /// Whether a snapshot with another name on another side stays.
    pub skip_if_renamed: bool,
    /// Whether a snapshot with clones stays.
    pub skip_if_cloned: bool,
}

/// A dataset that this one is sent to or receives from.
#[derive(Clone, Debug)]
pub struct Peer<'a> {
    /// Where it is.
    pub place: Target,
    /// What it is to this one.
    pub role: Role,
    /// What is known of it.
    pub known: Known<'a>,
}

/// What a peer is to a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A destination of the very policy: every snapshot is to come there.
    Destination,
    /// A destination of another policy of the same dataset: only the base is needed.
    OtherDestination,
    /// What the dataset receives from.
    Source,
}

/// Decides about every snapshot of a prefix, oldest first.
///
/// "Not yet there" means newer than the newest common point: everything up to that has travelled, and what a
/// destination lacks of it, it has pruned itself.
#[must_use]
pub fn delete(
    dataset: &DatasetInventory,
    terms: &DeleteTerms<'_>,
    peers: &[Peer<'_>],
    tz: Zone,
    now: DateTime<Utc>,
) -> Vec<SnapVerdict> {
    let mut own = Vec::new();
    own_snapshots(dataset, terms.prefix, &mut own);
    decide(dataset, &own, terms, peers, &mut Tally::new(tz, now))
}

/// What one peer protects.
struct Needs<'a> {
    role: Role,
    /// Its snapshots, if it is known.
    held: Option<ByGuid<'a>>,
    bases: [Option<Guid>; 2],
    /// The createtxg here from which on everything is unsent.
    unsent_after: Option<u64>,
    /// What it protects of everything.
    all: u16,
}

impl<'a> Needs<'a> {
    fn of(dataset: &'a DatasetInventory, peer: &Peer<'a>) -> Self {
        let nothing = Self { role: peer.role, held: None, bases: [None; 2], unsent_after: None, all: 0 };
        let unknown = match peer.role {
            Role::Source => Protection::SourceUnknown,
            Role::Destination | Role::OtherDestination => Protection::DestinationUnknown,
        };
        match peer.known {
            Known::Unlisted => Self { all: unknown.bit(), ..nothing },
            Known::Absent => nothing,
            Known::There(there) => {
                let held = ByGuid::of(there);
                let common = match peer.role {
                    Role::Source => Common::of(there, &ByGuid::of(dataset)),
                    Role::Destination | Role::OtherDestination => Common::of(dataset, &held),
                };
                let nothing_in_common = peer.role == Role::Source && common.any.is_none();
                Self {
                    held: Some(held),
                    bases: [common.snapshot.map(|b| b.guid), common.any.map(|b| b.guid)],
                    unsent_after: common.any.map(|b| b.createtxg),
                    all: if nothing_in_common { Protection::NothingInCommon.bit() } else { 0 },
                    ..nothing
                }
            }
        }
    }

    fn is_unsent(&self, snapshot: &Own) -> bool {
        self.role == Role::Destination && self.unsent_after.is_none_or(|txg| snapshot.createtxg > txg)
    }
}

pub(super) fn decide<'a>(
    dataset: &'a DatasetInventory,
    own: &[Own],
    terms: &DeleteTerms<'a>,
    peers: &[Peer<'a>],
    tally: &mut Tally<'a>,
) -> Vec<SnapVerdict> {
    let needs: Vec<Needs> = peers.iter().map(|peer| Needs::of(dataset, peer)).collect();
    let for_all = needs.iter().fold(if terms.keep_all { Protection::NoRules.bit() } else { 0 }, |all, n| all | n.all);
    tally.restart(terms.rules.iter().copied());
    let mut verdicts: Vec<SnapVerdict> = own
        .iter()
        .rev()
        .filter_map(|snapshot| {
            let found = dataset.snapshots.get(snapshot.index as usize)?;
            let mut protections = for_all;
            let mut protect = |by: Protection, if_so: bool| protections |= if if_so { by.bit() } else { 0 };
            protect(Protection::Held, found.userrefs > 0);
            protect(Protection::Cloned, terms.skip_if_cloned && found.has_clones);
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
                    && let Some(name) = need.held.as_ref().and_then(|h| h.name_of(snapshot.guid))
                {
                    protect(Protection::Renamed, *name != found.name);
                }
            }
            let rules = tally.keep(snapshot.creation);
            Some(SnapVerdict { index: snapshot.index, protections, rules, base_with, unsent_to })
        })
        .collect();
    if let Some(newest) = verdicts.first_mut() {
        newest.protections |= Protection::Newest.bit();
    }
    verdicts.reverse();
    verdicts
}
