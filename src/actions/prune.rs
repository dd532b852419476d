//! Verdicts about pruning: which snapshots of a dataset stay and which go, with every reason.
//!
//! The verdict about one snapshot ([`SnapVerdict`]) takes 24 bytes, so that a plan over a million snapshots stays
//! small. Its reasons are bits, which [`PruneVerdict::explain`] turns into typed reasons with sentences.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::actions::notice::NoticeKind;
use crate::actions::verdict::{Side, Subject};
use crate::model::{DatasetInventory, Guid, Place, SnapName};

/// Which snapshots with one prefix stay in one dataset, and which go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PruneVerdict {
    /// The policy, with the host and the dataset that is pruned.
    #[serde(flatten)]
    pub subject: Subject,
    /// Whether the dataset is the policy's source or one of its destinations.
    pub side: Side,
    /// How many snapshots of the prefix stay.
    pub kept: usize,
    /// The snapshots that go, oldest first.
    pub destroy: Vec<Doomed>,
    /// For how many seconds local.json of the host keeps in the trash those that are not there yet; `None` if it
    /// destroys them at once, or did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destroy_after: Option<u64>,
    /// Why a pass does not destroy them; `None` if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_back: Option<HeldBack>,
    /// How many snapshots with other names the dataset has; they are never candidates.
    pub others: usize,
    /// The rules that were applied, in the order in which verdicts number them.
    pub rules: Vec<String>,
    /// The datasets with which common snapshots are protected here, in the order in which verdicts number them.
    pub peers: Vec<Place>,
    /// Whether a snapshot with a different name on another side stays.
    pub skip_if_renamed: bool,
    /// Whether the policy keeps snapshots that have clones. They stay even if this is false.
    pub skip_if_cloned: bool,
    /// One verdict per snapshot of the prefix, oldest first; see [`PruneVerdict::explain`].
    #[serde(skip)]
    pub snapshots: Vec<SnapVerdict>,
}

/// Why a pass does not destroy snapshots that nothing keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldBack {
    /// They are more than `max_destroys` permits in one pass. A saved plan destroys them.
    TooMany,
    /// The director's clock is ahead of others', so they may be younger than they seem.
    ClockAhead,
}

/// A snapshot to destroy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Doomed {
    /// Its identity.
    pub guid: Guid,
    /// Its name in the dataset that is pruned.
    pub name: SnapName,
    /// Bytes that only it references; 0 if unknown.
    pub used: u64,
    /// Whether it is in the trash, and has been there for as long as local.json of its host says.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub in_trash: bool,
}

/// The verdict about one snapshot, in compact form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapVerdict {
    /// The snapshot's index in the `snapshots` of its dataset, in the inventory for which the verdict was decided.
    pub index: u32,
    /// Whether its date is before that of an older snapshot, or in the future: it takes no other one's place in a rule.
    pub(super) out_of_order: bool,
    /// Bit i: protection i of [`Protection::ALL`] applies.
    pub(super) protections: u16,
    /// Bit i: rule i of the verdict's `rules` keeps it. The last bit stands for all rules beyond the 64th.
    pub(super) rules: u64,
    /// Bit i: it is the base for the next increment with peer i. The last bit stands for all peers beyond the 32nd.
    pub(super) base_with: u32,
    /// Bit i: it is not yet on peer i.
    pub(super) unsent_to: u32,
}

impl SnapVerdict {
    /// Whether nothing but `local.json` of its host keeps the snapshot.
    pub(super) fn is_kept_only_by_host(&self) -> bool {
        let without = Self { protections: self.protections & !Protection::AppendOnly.bit(), ..*self };
        self.keep() && !without.keep()
    }

    /// Whether the snapshot stays.
    #[must_use]
    pub fn keep(&self) -> bool {
        self.protections != 0 || self.rules != 0 || self.base_with != 0 || self.unsent_to != 0
    }
}

/// The notice about snapshots that are dated before older ones; `None` if there are none. Those that are dated in the
/// future have a notice of their own.
pub(super) fn out_of_order(
    verdicts: &[SnapVerdict],
    inventory: &DatasetInventory,
    now: DateTime<Utc>,
) -> Option<NoticeKind> {
    let found = verdicts.iter().rev().filter(|verdict| verdict.out_of_order);
    let found = found.filter_map(|verdict| inventory.snapshots.get(verdict.index as usize));
    let mut past = found.filter(|snapshot| snapshot.creation <= now);
    let snapshot = past.next()?.name.clone();
    Some(NoticeKind::OutOfOrder { snapshots: past.count() + 1, snapshot })
}

/// A reason to keep a snapshot, other than a rule or the needs of a particular peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// It is the newest of its policy.
    Newest,
    /// It is held (`zfs hold`).
    Held,
    /// It has clones.
    Cloned,
    /// It has a different name on the other side, and the policy keeps such snapshots.
    Renamed,
    /// A policy without retention rules applies here and keeps everything.
    NoRules,
    /// A destination has not been listed, so it is unknown which snapshots it still needs.
    DestinationUnknown,
    /// The source has not been listed, so it is unknown what the two have in common.
    SourceUnknown,
    /// It is on a destination that has nothing in common with its source.
    NothingInCommon,
    /// `local.json` of its host forbids destroying it.
    AppendOnly,
    /// It is in the trash already, and has to stay there for a time.
    Trashed,
}

impl Protection {
    /// All protections, in the order of their bits.
    pub const ALL: &[Self] = &[
        Self::Newest,
        Self::Held,
        Self::Cloned,
        Self::Renamed,
        Self::NoRules,
        Self::DestinationUnknown,
        Self::SourceUnknown,
        Self::NothingInCommon,
        Self::AppendOnly,
        Self::Trashed,
    ];

    pub(super) fn bit(self) -> u16 {
        1 << (self as u16)
    }
}

/// One reason for the verdict about a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PruneReason {
    /// It stays: a rule keeps it.
    Rule {
        /// The rule as written in the policy.
        rule: String,
    },
    /// It stays: it is the newest snapshot in common with a peer, from which the next increment starts.
    Base {
        /// The peer.
        with: Place,
    },
    /// It stays: it is not yet on a destination.
    Unsent {
        /// The destination.
        to: Place,
    },
    /// It stays: a protection applies.
    Protected {
        /// The protection.
        by: Protection,
    },
    /// It goes: no rule keeps it, and nothing protects it.
    NoRule,
}

/// The verdict about one snapshot with all its reasons, for output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// Its name.
    pub name: SnapName,
    /// Its identity.
    pub guid: Guid,
    /// When it was taken.
    pub creation: DateTime<Utc>,
    /// Whether it stays.
    pub keep: bool,
    /// All reasons.
    pub reasons: Vec<PruneReason>,
}

fn bits(mask: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |i| mask >> i & 1 == 1)
}

impl PruneVerdict {
    /// Whether everything stays because the dataset has nothing in common with its source.
    pub(super) fn has_nothing_in_common(&self) -> bool {
        self.snapshots.iter().any(|v| v.protections & Protection::NothingInCommon.bit() != 0)
    }

    /// The verdicts about all snapshots in full, oldest first. `inventory` is that of the dataset, as it was when the
    /// verdict was decided.
    #[must_use]
    pub fn explain(&self, inventory: &DatasetInventory) -> Vec<Explained> {
        self.snapshots
            .iter()
            .filter_map(|verdict| {
                let snapshot = inventory.snapshots.get(verdict.index as usize)?;
                Some(Explained {
                    name: snapshot.name.clone(),
                    guid: snapshot.guid,
                    creation: snapshot.creation,
                    keep: verdict.keep(),
                    reasons: self.reasons(verdict),
                })
            })
            .collect()
    }

    /// All reasons of one of the verdicts in `snapshots`.
    #[must_use]
    pub fn reasons(&self, verdict: &SnapVerdict) -> Vec<PruneReason> {
        let mut all = Vec::new();
        let rules = bits(verdict.rules).filter_map(|i| self.rules.get(i));
        all.extend(rules.map(|rule| PruneReason::Rule { rule: rule.clone() }));
        let peers = bits(verdict.base_with.into()).filter_map(|i| self.peers.get(i));
        all.extend(peers.map(|with| PruneReason::Base { with: with.clone() }));
        let peers = bits(verdict.unsent_to.into()).filter_map(|i| self.peers.get(i));
        all.extend(peers.map(|to| PruneReason::Unsent { to: to.clone() }));
        let protections = Protection::ALL.iter().filter(|p| verdict.protections & p.bit() != 0);
        all.extend(protections.map(|by| PruneReason::Protected { by: *by }));
        if all.is_empty() {
            all.push(PruneReason::NoRule);
        }
        all
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Newest => "it is the newest snapshot of its policy",
            Self::Held => "it is held",
            Self::AppendOnly => "local.json of its host forbids destroying it",
            Self::Trashed => "it is in the trash already",
            Self::Cloned => "it has clones",
            Self::Renamed => "it has a different name on the other side",
            Self::NoRules => "a policy without retention rules keeps everything here",
            Self::DestinationUnknown => "a destination could not be listed, and may still need it",
            Self::SourceUnknown => "the source could not be listed, and may still need it",
            Self::NothingInCommon => "no snapshot here is in common with the source",
        })
    }
}

impl fmt::Display for PruneReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { rule } => write!(f, "kept by \"{rule}\""),
            Self::Base { with } => write!(f, "it is the newest snapshot in common with {with}"),
            Self::Unsent { to } => write!(f, "it is not yet on {to}"),
            Self::Protected { by } => by.fmt(f),
            Self::NoRule => f.write_str("no rule keeps it"),
        }
    }
}
