//! One snapshot's verdict: stays or goes, and every reason for it.
//!
//! A verdict is 32 bytes, so that a plan over a million snapshots stays small; its reasons are bits that
//! [`PruneVerdict::explain`] turns into typed reasons with sentences.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::actions::plan::PruneVerdict;
use crate::actions::reason::place;
use crate::model::{DatasetInventory, Guid, SnapName};
use crate::policy::Target;

/// A snapshot that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Doomed {
    /// Its identity.
    pub guid: Guid,
    /// Its name where it goes.
    pub name: SnapName,
    /// Bytes that only it holds; 0 when unknown.
    pub used: u64,
}

/// What is decided about one snapshot, compactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapVerdict {
    /// Its index in the dataset's `snapshots` of the inventory that was decided on.
    pub index: u32,
    /// Bit i: protection i of [`Protection::ALL`].
    pub(super) protections: u16,
    /// Bit i: rule i of the verdict's `rules` keeps it. The last bit stands for all rules beyond the 64th.
    pub(super) rules: u64,
    /// Bit i: it is the base with peer i. The last bit stands for all peers beyond the 32nd.
    pub(super) base_with: u32,
    /// Bit i: it is not yet on peer i.
    pub(super) unsent_to: u32,
}

impl SnapVerdict {
    /// Whether the snapshot stays.
    #[must_use]
    pub fn keep(&self) -> bool {
        self.protections != 0 || self.rules != 0 || self.base_with != 0 || self.unsent_to != 0
    }
}

/// Why a snapshot stays though no rule asks for it; those that name no peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// It is the newest of its policy.
    Newest,
    /// It is held (`zfs hold`).
    Held,
    /// It has clones, and the policy leaves such ones alone.
    Cloned,
    /// It has another name on the other side, and the policy leaves such ones alone.
    Renamed,
    /// A policy without retention rules keeps everything here.
    NoRules,
    /// A destination has not been listed, so what it still needs is unknown.
    DestinationUnknown,
    /// The source has not been listed, so what the two have in common is unknown.
    SourceUnknown,
    /// It is on a destination that has nothing in common with its source.
    NothingInCommon,
}

impl Protection {
    /// Every protection, in the order of their bits.
    pub const ALL: &[Self] = &[
        Self::Newest,
        Self::Held,
        Self::Cloned,
        Self::Renamed,
        Self::NoRules,
        Self::DestinationUnknown,
        Self::SourceUnknown,
        Self::NothingInCommon,
    ];

    pub(super) fn bit(self) -> u16 {
        1 << (self as u16)
    }
}

/// One reason of a snapshot's verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PruneReason {
    /// Stays: a rule keeps it.
    Rule {
        /// The rule as the policy has it.
        rule: String,
    },
    /// Stays: it is the newest snapshot common with a peer, from which the next increment starts.
    Base {
        /// The peer.
        with: Target,
    },
    /// Stays: it is not yet on a destination.
    Unsent {
        /// The destination.
        to: Target,
    },
    /// Stays for one of the other reasons.
    Protected {
        /// Which.
        by: Protection,
    },
    /// Goes: no rule keeps it, and nothing protects it.
    NoRule,
}

/// One snapshot's verdict with all its reasons, for people and for JSON.
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
    /// Every reason.
    pub reasons: Vec<PruneReason>,
}

fn bits(mask: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |i| mask >> i & 1 == 1)
}

impl PruneVerdict {
    pub(super) fn kept_for_want_of_common(&self) -> bool {
        self.snapshots.iter().any(|v| v.protections & Protection::NothingInCommon.bit() != 0)
    }

    /// Every snapshot's verdict in full, oldest first. `inventory` is that of the dataset, as it was decided on.
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

    /// Every reason of one of the verdicts in `snapshots`.
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
            Self::Newest => "it is the newest of its policy",
            Self::Held => "it is held",
            Self::Cloned => "it has clones",
            Self::Renamed => "it has another name on the other side",
            Self::NoRules => "a policy without retention rules keeps everything here",
            Self::DestinationUnknown => "a destination has not been listed, and may still need it",
            Self::SourceUnknown => "the source has not been listed, and may still need it",
            Self::NothingInCommon => "nothing here is common with the source",
        })
    }
}

impl fmt::Display for PruneReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { rule } => write!(f, "kept by \"{rule}\""),
            Self::Base { with } => write!(f, "it is the newest snapshot common with {}", place(with)),
            Self::Unsent { to } => write!(f, "it is not yet on {}", place(to)),
            Self::Protected { by } => by.fmt(f),
            Self::NoRule => f.write_str("no rule keeps it"),
        }
    }
}
