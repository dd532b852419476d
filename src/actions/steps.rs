//! How a destination gets to a snapshot: the next stream, planned by guid.

use std::collections::BTreeSet;
use std::fmt;

use crate::model::{DatasetInventory, Guid, SnapName};

/// What the destination's newest snapshot is on the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// A snapshot.
    Snapshot(SnapName),
    /// A bookmark of one that is gone.
    Bookmark(SnapName),
}

/// One stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where the destination stands; `None`: it has nothing yet.
    pub base: Option<Base>,
    /// The snapshot that it arrives at, on the source.
    pub to: SnapName,
    /// That snapshot's identity.
    pub guid: Guid,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The destination has the target, or a newer snapshot of the source's.
    Arrived,
    /// This stream.
    Next(Step),
}

/// Why there is no way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The destination's newest snapshot is not the source's.
    Diverged {
        /// The newest common snapshot's name on the source.
        common: SnapName,
        /// What only the source has since.
        ours: Vec<SnapName>,
        /// What only the destination has since.
        theirs: Vec<SnapName>,
    },
    /// The destination has snapshots, none of them the source's.
    NothingInCommon {
        /// What the destination has.
        theirs: Vec<SnapName>,
    },
    /// The source does not have the target.
    TargetGone,
}

fn listed(names: &[SnapName]) -> String {
    let shown: Vec<&str> = names.iter().take(5).map(SnapName::as_str).collect();
    match names.len() {
        0 => "nothing".into(),
        n if n > shown.len() => format!("{} and {} more", shown.join(", "), n - shown.len()),
        _ => shown.join(", "),
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Diverged { common, ours, theirs } => {
                write!(f, "both have {common}; since then only there: {}; only here: {}", listed(theirs), listed(ours))
            }
            Self::NothingInCommon { theirs } => write!(f, "it has {}", listed(theirs)),
            Self::TargetGone => f.write_str("the snapshot to send is gone"),
        }
    }
}

/// The newest of `theirs` that `ours` has as a snapshot or as a bookmark.
#[must_use]
pub fn newest_common(ours: &DatasetInventory, theirs: &DatasetInventory) -> Option<Guid> {
    let known: BTreeSet<Guid> =
        ours.snapshots.iter().map(|s| s.guid).chain(ours.bookmarks.iter().map(|b| b.guid)).collect();
    theirs.snapshots.iter().rev().map(|s| s.guid).find(|guid| known.contains(guid))
}

/// Plans the next stream. A new destination first gets the oldest snapshot, so that the history travels too;
/// `zfs send -I` cannot start from a bookmark, so that one goes to the next snapshot first.
pub fn route(ours: &DatasetInventory, theirs: Option<&DatasetInventory>, target: Guid) -> Result<Route, Conflict> {
    let to = ours.by_guid(target).ok_or(Conflict::TargetGone)?;
    let Some(theirs) = theirs.filter(|t| !t.snapshots.is_empty()) else {
        let first = ours.snapshots.first().unwrap_or(to);
        return Ok(Route::Next(Step { base: None, to: first.name.clone(), guid: first.guid }));
    };
    let names = |of: &DatasetInventory| of.snapshots.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
    let Some(common) = newest_common(ours, theirs) else {
        return Err(Conflict::NothingInCommon { theirs: names(theirs) });
    };
    if theirs.newest().is_some_and(|newest| newest.guid != common) {
        let base = ours.snapshots.iter().find(|s| s.guid == common).map(|s| (&s.name, s.createtxg));
        let base = base.or_else(|| ours.bookmarks.iter().find(|b| b.guid == common).map(|b| (&b.name, b.createtxg)));
        let Some((name, txg)) = base else { return Err(Conflict::NothingInCommon { theirs: names(theirs) }) };
        let since = theirs.snapshots.iter().skip_while(|s| s.guid != common).skip(1);
        return Err(Conflict::Diverged {
            common: name.clone(),
            ours: ours.snapshots.iter().filter(|s| s.createtxg > txg).map(|s| s.name.clone()).collect(),
            theirs: since.map(|s| s.name.clone()).collect(),
        });
    }
    if let Some(base) = ours.by_guid(common) {
        if base.createtxg >= to.createtxg {
            return Ok(Route::Arrived);
        }
        let base = Some(Base::Snapshot(base.name.clone()));
        return Ok(Route::Next(Step { base, to: to.name.clone(), guid: to.guid }));
    }
    let Some(mark) = ours.bookmarks.iter().find(|b| b.guid == common) else { return Err(Conflict::TargetGone) };
    let Some(next) = ours.snapshots.iter().find(|s| s.createtxg > mark.createtxg) else { return Ok(Route::Arrived) };
    if next.createtxg > to.createtxg {
        return Ok(Route::Arrived);
    }
    let base = Some(Base::Bookmark(mark.name.clone()));
    Ok(Route::Next(Step { base, to: next.name.clone(), guid: next.guid }))
}
