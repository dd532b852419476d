//! Decides what to do about a destination that cannot receive the next stream: what is wrong with it, and which remedy
//! the policy permits.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::actions::lineage::FlagMismatch;
use crate::actions::steps::{Conflict, Point};
use crate::model::{DatasetInventory, Guid, KeyConflict, OnDivergence};

/// Why a destination cannot receive the next stream.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Trouble {
    /// The two histories conflict.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The destination was written to since its newest snapshot, which is the newest common one.
    #[error("the destination has been modified since its newest snapshot, {}: {}", newest.name, bytes_or_unknown(*bytes))]
    Written {
        /// Its newest snapshot.
        newest: Point,
        /// How many bytes were written, if known.
        bytes: Option<u64>,
    },
    /// The destination exists without any snapshot.
    #[error("the destination exists without a snapshot, and may hold data")]
    Bare,
    /// The copy was made with send flags that the source can no longer use.
    #[error(transparent)]
    Flags(#[from] FlagMismatch),
    /// A raw increment would make datasets unreadable.
    #[error(transparent)]
    Key(#[from] KeyConflict),
}

fn bytes_or_unknown(bytes: Option<u64>) -> String {
    match bytes {
        Some(bytes) if bytes > 0 => format!("{bytes} bytes were written there"),
        // ZFS does not count a recent change before it is on disk.
        _ => "something was written there".to_owned(),
    }
}

impl Trouble {
    /// Returns [`Trouble::Written`] for a destination to which, according to ZFS, something was written. `None` if it
    /// has no snapshot.
    #[must_use]
    pub fn written(destination: &DatasetInventory) -> Option<Self> {
        let newest = destination.newest()?;
        let newest = Point { name: newest.name.clone(), guid: newest.guid };
        Some(Self::Written { newest, bytes: destination.written })
    }

    /// Whether this is [`Trouble::Written`], and the source has the destination's newest snapshot.
    #[must_use]
    pub fn is_after_common(&self, source: &DatasetInventory) -> bool {
        matches!(self, Self::Written { newest, .. } if source.by_guid(newest.guid).is_some())
    }
}

/// What a policy permits zsync to do about a [`Trouble`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// Whether to roll back to the newest common snapshot if that destroys no snapshot, and whether to replace a
    /// dataset without snapshots.
    #[serde(rename = "rollback_if_needed")]
    pub rollback: bool,
    /// Whether a permitted rollback may also destroy snapshots that only the destination has.
    #[serde(default, rename = "rollback_may_destroy", skip_serializing_if = "std::ops::Not::not")]
    pub may_destroy: bool,
    /// What to do if no rollback is possible or permitted. Setting aside also takes precedence over replacing a dataset
    /// without snapshots.
    #[serde(default, skip_serializing_if = "OnDivergence::is_stop")]
    pub on_divergence: OnDivergence,
}

/// What to do about a [`Trouble`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: an administrator must decide.
    Stop,
    /// Roll the destination back to a snapshot. This destroys the snapshots listed, and must destroy no others.
    Rollback {
        /// The newest common snapshot.
        to: Guid,
        /// The snapshots to destroy, oldest first.
        destroys: Vec<Guid>,
    },
    /// Overwrite the destination, which has no snapshot, by a receive.
    Replace,
    /// Rename the destination, and start the copy from scratch.
    SetAside,
}

/// Chooses the remedy for a destination that cannot receive the next stream.
///
/// A rollback keeps the history on both sides and costs least, so it is preferred where it is permitted. A dataset
/// without snapshots is set aside rather than replaced if both are permitted: its data exists nowhere else.
#[must_use]
pub fn remedy(trouble: &Trouble, allowed: Allowed) -> Remedy {
    let otherwise = match allowed.on_divergence {
        OnDivergence::Stop => Remedy::Stop,
        OnDivergence::SetAside => Remedy::SetAside,
    };
    match trouble {
        Trouble::Conflict(
            Conflict::NoSuchSnapshot { .. } | Conflict::NameTaken { .. } | Conflict::NameTooLong { .. },
        ) => Remedy::Stop,
        Trouble::Conflict(Conflict::Diverged { common, theirs, .. }) if allowed.rollback && allowed.may_destroy => {
            Remedy::Rollback { to: common.guid, destroys: theirs.iter().map(|p| p.guid).collect() }
        }
        Trouble::Written { newest, .. } if allowed.rollback => {
            Remedy::Rollback { to: newest.guid, destroys: Vec::new() }
        }
        Trouble::Bare if allowed.rollback && otherwise == Remedy::Stop => Remedy::Replace,
        Trouble::Conflict(_) | Trouble::Written { .. } | Trouble::Bare | Trouble::Flags(_) | Trouble::Key(_) => {
            otherwise
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SendFlags;

    fn point(guid: u64) -> Point {
        Point { name: format!("s{guid}").parse().unwrap(), guid: Guid(guid) }
    }

    #[test]
    fn remedy_follows_permissions() {
        let diverged = || {
            let (ours, theirs) = (vec![point(4)], vec![point(2), point(3)]);
            Trouble::from(Conflict::Diverged { common: point(1), ours, theirs, received: false })
        };
        let not_empty = || Trouble::from(Conflict::NotEmpty { ours: vec![point(4)], theirs: vec![point(2)] });
        let written = || Trouble::Written { newest: point(1), bytes: Some(7) };
        let mismatch = || Trouble::from(FlagMismatch { made: SendFlags::Raw, needs: SendFlags::PLAIN });
        let back =
            |destroys: &[u64]| Remedy::Rollback { to: Guid(1), destroys: destroys.iter().map(|g| Guid(*g)).collect() };
        let aside = OnDivergence::SetAside;
        let allow = |rollback, may_destroy, on_divergence| Allowed { rollback, may_destroy, on_divergence };
        let stop = OnDivergence::Stop;
        for (trouble, allowed, expected) in [
            // Without permission nothing is done.
            (diverged(), allow(false, false, stop), Remedy::Stop),
            (not_empty(), allow(false, false, stop), Remedy::Stop),
            (written(), allow(false, false, stop), Remedy::Stop),
            (Trouble::Bare, allow(false, false, stop), Remedy::Stop),
            (mismatch(), allow(false, false, stop), Remedy::Stop),
            // A rollback alone must destroy no snapshot.
            (diverged(), allow(true, false, stop), Remedy::Stop),
            (not_empty(), allow(true, true, stop), Remedy::Stop),
            (written(), allow(true, false, stop), back(&[])),
            (Trouble::Bare, allow(true, false, stop), Remedy::Replace),
            (mismatch(), allow(true, true, stop), Remedy::Stop),
            // A rollback may destroy snapshots if that is permitted as well.
            (diverged(), allow(true, true, stop), back(&[2, 3])),
            (diverged(), allow(false, true, stop), Remedy::Stop),
            // Setting aside destroys nothing. It applies wherever no rollback is possible or permitted.
            (diverged(), allow(false, false, aside), Remedy::SetAside),
            (diverged(), allow(true, false, aside), Remedy::SetAside),
            (diverged(), allow(true, true, aside), back(&[2, 3])),
            (not_empty(), allow(true, true, aside), Remedy::SetAside),
            (written(), allow(false, false, aside), Remedy::SetAside),
            (written(), allow(true, false, aside), back(&[])),
            (Trouble::Bare, allow(true, false, aside), Remedy::SetAside),
            (mismatch(), allow(false, false, aside), Remedy::SetAside),
            (Trouble::from(Conflict::NoSuchSnapshot { guid: Guid(9) }), allow(true, true, aside), Remedy::Stop),
        ] {
            assert_eq!(remedy(&trouble, allowed), expected, "{trouble} with {allowed:?}");
        }
    }
}
