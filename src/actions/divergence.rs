//! A destination that cannot take the next stream as it is: what is wrong, and what the policy lets be done about it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::actions::lineage::Flip;
use crate::actions::steps::{Conflict, Point};
use crate::model::{DatasetInventory, Guid, OnDivergence};

/// Why a destination cannot take the next stream.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Trouble {
    /// The two histories do not fit.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// It was written to since its newest snapshot, which is the newest common one.
    #[error("it has been modified since its newest snapshot, {}: {}", newest.name, bytes_or_unknown(*bytes))]
    Written {
        /// Its newest snapshot.
        newest: Point,
        /// How much was written, where that is known.
        bytes: Option<u64>,
    },
    /// It exists without any snapshot.
    #[error("it exists without a snapshot, and may hold data")]
    Bare,
    /// Its history was made with other flags.
    #[error(transparent)]
    Flags(#[from] Flip),
}

fn bytes_or_unknown(bytes: Option<u64>) -> String {
    match bytes {
        Some(bytes) if bytes > 0 => format!("{bytes} bytes were written there"),
        // A change of a moment ago is not counted before it is on disk.
        _ => "something was written there".to_owned(),
    }
}

impl Trouble {
    /// A destination that ZFS says was written to.
    #[must_use]
    pub fn written(destination: &DatasetInventory) -> Option<Self> {
        let newest = destination.newest()?;
        let newest = Point { name: newest.name.clone(), guid: newest.guid };
        Some(Self::Written { newest, bytes: destination.written })
    }
}

/// What a policy lets be done about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// Going back to the newest common snapshot, if no snapshot is lost by that; replacing what has none.
    #[serde(rename = "rollback_if_needed")]
    pub rollback: bool,
    /// Also if snapshots are lost that only the destination has.
    #[serde(default, rename = "rollback_may_destroy", skip_serializing_if = "std::ops::Not::not")]
    pub may_destroy: bool,
    /// What else.
    #[serde(default, skip_serializing_if = "OnDivergence::is_stop")]
    pub on_divergence: OnDivergence,
}

/// What is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: an administrator is to decide.
    Stop,
    /// Go back to this snapshot of the destination's; these are lost, and no others may be.
    Rollback {
        /// The newest common one.
        to: Guid,
        /// Oldest first.
        destroys: Vec<Guid>,
    },
    /// Receive over it: it holds no snapshot.
    Replace,
    /// Rename it, and begin anew.
    SetAside,
}

/// Decides what is to be done.
///
/// A rollback keeps the history on both sides and costs least, so it comes first where it is allowed. A dataset without
/// snapshots is rather set aside than replaced: what it holds is nowhere else.
#[must_use]
pub fn remedy(trouble: &Trouble, allowed: Allowed) -> Remedy {
    let otherwise = match allowed.on_divergence {
        OnDivergence::Stop => Remedy::Stop,
        OnDivergence::SetAside => Remedy::SetAside,
    };
    match trouble {
        Trouble::Conflict(Conflict::NoSuchSnapshot { .. }) => Remedy::Stop,
        Trouble::Conflict(Conflict::Diverged { common, theirs, .. }) if allowed.rollback && allowed.may_destroy => {
            Remedy::Rollback { to: common.guid, destroys: theirs.iter().map(|p| p.guid).collect() }
        }
        Trouble::Written { newest, .. } if allowed.rollback => {
            Remedy::Rollback { to: newest.guid, destroys: Vec::new() }
        }
        Trouble::Bare if allowed.rollback && otherwise == Remedy::Stop => Remedy::Replace,
        Trouble::Conflict(_) | Trouble::Written { .. } | Trouble::Bare | Trouble::Flags(_) => otherwise,
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
    fn a_table_of_remedies() {
        let diverged = || {
            let (ours, theirs) = (vec![point(4)], vec![point(2), point(3)]);
            Trouble::from(Conflict::Diverged { common: point(1), ours, theirs, received: false })
        };
        let not_empty = || Trouble::from(Conflict::NotEmpty { ours: vec![point(4)], theirs: vec![point(2)] });
        let written = || Trouble::Written { newest: point(1), bytes: Some(7) };
        let flip = || Trouble::from(Flip { made: SendFlags::Raw, needs: SendFlags::PLAIN });
        let back =
            |destroys: &[u64]| Remedy::Rollback { to: Guid(1), destroys: destroys.iter().map(|g| Guid(*g)).collect() };
        let aside = OnDivergence::SetAside;
        let allow = |rollback, may_destroy, on_divergence| Allowed { rollback, may_destroy, on_divergence };
        let stop = OnDivergence::Stop;
        for (trouble, allowed, expected) in [
            // Nothing is done unasked.
            (diverged(), allow(false, false, stop), Remedy::Stop),
            (not_empty(), allow(false, false, stop), Remedy::Stop),
            (written(), allow(false, false, stop), Remedy::Stop),
            (Trouble::Bare, allow(false, false, stop), Remedy::Stop),
            (flip(), allow(false, false, stop), Remedy::Stop),
            // A rollback alone loses no snapshot.
            (diverged(), allow(true, false, stop), Remedy::Stop),
            (not_empty(), allow(true, true, stop), Remedy::Stop),
            (written(), allow(true, false, stop), back(&[])),
            (Trouble::Bare, allow(true, false, stop), Remedy::Replace),
            (flip(), allow(true, true, stop), Remedy::Stop),
            // Unless that is allowed as well.
            (diverged(), allow(true, true, stop), back(&[2, 3])),
            (diverged(), allow(false, true, stop), Remedy::Stop),
            // Setting aside loses nothing, and is what is left.
            (diverged(), allow(false, false, aside), Remedy::SetAside),
            (diverged(), allow(true, false, aside), Remedy::SetAside),
            (diverged(), allow(true, true, aside), back(&[2, 3])),
            (not_empty(), allow(true, true, aside), Remedy::SetAside),
            (written(), allow(false, false, aside), Remedy::SetAside),
            (written(), allow(true, false, aside), back(&[])),
            (Trouble::Bare, allow(true, false, aside), Remedy::SetAside),
            (flip(), allow(false, false, aside), Remedy::SetAside),
            (Trouble::from(Conflict::NoSuchSnapshot { guid: Guid(9) }), allow(true, true, aside), Remedy::Stop),
        ] {
            assert_eq!(remedy(&trouble, allowed), expected, "{trouble} with {allowed:?}");
        }
    }
}
