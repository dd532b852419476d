//! The plan of one transfer: the streams that bring a destination up to a given snapshot, or the conflict
//! that prevents it.
//!
//! Snapshots are compared only by guid: names may differ on the two sides, and createtxg orders snapshots within one
//! pool only.

use std::collections::HashMap;

use serde::Serialize;
use thiserror::Error;

use crate::model::{Bookmark, DatasetName, Guid, Origin, SnapName, Snapshot};

/// One step of a transfer: usually one `zfs send`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Step {
    /// Resume an interrupted receive (`send -t`). The rest is planned again afterwards from a fresh listing, because
    /// the token may turn out to be stale.
    Resume {
        /// The resume token.
        token: String,
    },
    /// Discard an interrupted receive that cannot be resumed (`receive -A`), because it would block all other streams.
    Discard {
        /// Its token.
        token: String,
    },
    /// Send one snapshot in full.
    Full {
        /// The snapshot.
        to: Point,
    },
    /// Send the changes from a base to a snapshot.
    Incremental {
        /// The base.
        from: Base,
        /// The snapshot.
        to: Point,
        /// Whether to include all snapshots between the two (`-I`). It is false (`-i`) if there are none, and if the
        /// base is a bookmark, from which ZFS cannot send them.
        intermediates: bool,
    },
}

/// A snapshot of the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Point {
    /// Its name.
    pub name: SnapName,
    /// Its identity.
    pub guid: Guid,
}

/// The base of an increment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// A snapshot of the source.
    Snapshot(Point),
    /// A bookmark of the source, with the guid of the snapshot that it was made from.
    Bookmark(Point),
    /// The snapshot that the source is a clone of.
    Origin(Origin, Guid),
}

/// The outcome of planning a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Transfer {
    /// The destination has the snapshot, and no newer one of the source.
    NothingToDo,
    /// The destination has a newer snapshot of the source, whether or not it has the one wanted.
    MostActual {
        /// The newest snapshot of the source there.
        newest: Point,
    },
    /// The destination has the snapshot under another name, and no newer one of the source.
    WasRenamed {
        /// Its name there.
        there: SnapName,
    },
    /// Steps to carry out in order.
    Steps {
        /// At least one.
        steps: Vec<Step>,
    },
}

/// An interrupted receive at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The destination's `receive_resume_token`.
    pub token: String,
    /// The guid of the snapshot that was being received (`toguid` in the token), if it could be read.
    pub to: Option<Guid>,
}

/// Why a snapshot cannot be sent in the current state of the two sides.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Conflict {
    /// The source does not have the snapshot, perhaps no longer.
    #[error("the source has no snapshot with the guid {guid}")]
    NoSuchSnapshot {
        /// The snapshot that was to be sent.
        guid: Guid,
    },
    /// The destination has snapshots of its own after the newest common one.
    #[error(
        "{}: since {}, the newest common snapshot, the destination has {} of its own, and the source {}",
        if *received {
            "apparently the source was rolled back, or another dataset has taken its name"
        } else {
            "the destination has diverged"
        },
        common.name, theirs.len(), ours.len()
    )]
    Diverged {
        /// The newest common point, by its name on the source.
        common: Point,
        /// The snapshots that only the source has after it, oldest first, up to the one wanted.
        ours: Vec<Point>,
        /// The snapshots that only the destination has after it, oldest first.
        theirs: Vec<Point>,
        /// Whether one of `theirs` is held on the destination, as received snapshots are. If so, the source once had
        /// it.
        received: bool,
    },
    /// The destination has a different snapshot with the name of the one wanted.
    #[error(
        "the destination has a different snapshot named {name}{}",
        here.as_ref().map(|here| format!(", which is {here} on the source")).unwrap_or_default()
    )]
    NameTaken {
        /// The name.
        name: SnapName,
        /// The name that the destination's snapshot has on the source, if the source has it.
        here: Option<SnapName>,
    },
    /// The full name of the snapshot wanted would be longer at the destination than ZFS permits.
    #[error("the name of the snapshot {name} would be longer there than ZFS permits")]
    NameTooLong {
        /// The name.
        name: SnapName,
    },
    /// The destination has snapshots, but none in common with the source.
    #[error("the destination is not empty, and has no snapshot in common with the source")]
    NotEmpty {
        /// The snapshots of the source, oldest first, up to the one wanted.
        ours: Vec<Point>,
        /// The snapshots of the destination, oldest first.
        theirs: Vec<Point>,
    },
}

fn point(snapshot: &Snapshot) -> Point {
    Point { name: snapshot.name.clone(), guid: snapshot.guid }
}

/// Plans how to bring the snapshot `target` to the destination `to`. All lists are sorted by createtxg, oldest first, and
/// contain only snapshots and bookmarks that exist.
///
/// - An increment runs from the newest common guid to the target and includes all snapshots between, so that the
///   destination's history is complete.
/// - A destination without snapshots first receives the oldest snapshot of the source in full, then the rest as one
///   increment. In this way it receives the history as well, and each part can be verified and resumed by itself.
/// - A clone whose origin the destination has (`origin`) starts from the origin instead, and becomes a clone there,
///   too.
/// - A snapshot cannot be received if a different snapshot on the destination has its name, or if its full name would be
///   too long there. The streams leave it out; if it is the target itself, nothing can be sent.
/// - An increment from a bookmark cannot include the snapshots between. It runs only to the next snapshot; a second one
///   continues from there.
/// - An interrupted receive is resumed first if the snapshot that it receives still exists on the source, is not on the
///   destination yet and is not newer than the target. Otherwise it is discarded first.
pub fn steps(
    to: &DatasetName,
    source: &[Snapshot],
    bookmarks: &[Bookmark],
    destination: &[Snapshot],
    resume: Option<&Resume>,
    origin: Option<&(Origin, Guid)>,
    target: Guid,
) -> Result<Transfer, Conflict> {
    let Some(goal) = source.iter().position(|s| s.guid == target) else {
        return Err(Conflict::NoSuchSnapshot { guid: target });
    };
    let positions: HashMap<Guid, usize> = destination.iter().map(|d| d.guid).zip(0..).collect();
    let there = |guid: Guid| positions.get(&guid).copied();

    // The newest snapshot of the source that the destination has.
    let newest_there = source.iter().rposition(|s| there(s.guid).is_some());
    // A bookmark counts only if it is newer than all common snapshots.
    let bookmark = bookmarks.iter().rfind(|b| there(b.guid).is_some());
    let bookmark = bookmark.filter(|b| newest_there.is_none_or(|i| b.createtxg > source[i].createtxg));

    let name_there = there(target).map(|at| &destination[at].name);
    if let Some(done) = already_there(source, goal, name_there, newest_there, bookmark) {
        return Ok(done);
    }

    let name = &source[goal].name;
    if !to.has_room_for(name) {
        return Err(Conflict::NameTooLong { name: name.clone() });
    }
    let fits = |at: &usize| to.has_room_for(&source[*at].name);
    let leads_on = |to: Guid| there(to).is_none() && source[..=goal].iter().any(|s| s.guid == to);
    let mut steps = Vec::with_capacity(2);
    if let Some(Resume { token, to }) = resume {
        let token = token.clone();
        steps.push(if to.is_none_or(leads_on) { Step::Resume { token } } else { Step::Discard { token } });
    }
    let resumes = matches!(steps.first(), Some(Step::Resume { .. }));

    let (common, after, common_at) = match (newest_there, bookmark) {
        (_, Some(b)) => {
            let after = source.partition_point(|s| s.createtxg <= b.createtxg);
            (Point { name: b.name.clone(), guid: b.guid }, after, there(b.guid))
        }
        (Some(i), None) => (point(&source[i]), i + 1, there(source[i].guid)),
        (None, None) if destination.is_empty() => {
            if !resumes {
                let first = (0..goal).find(fits).unwrap_or(goal);
                steps.push(first_step(point(&source[first]), origin));
                steps.extend(onward(source, first, goal, fits));
            }
            return Ok(Transfer::Steps { steps });
        }
        (None, None) => {
            let ours = source[..=goal].iter().map(point).collect();
            return Err(Conflict::NotEmpty { ours, theirs: destination.iter().map(point).collect() });
        }
    };
    let theirs = &destination[common_at.map_or(0, |at| at + 1)..];
    if !theirs.is_empty() {
        let ours = source[after.min(goal + 1)..=goal].iter().map(point).collect();
        let received = theirs.iter().any(|s| s.userrefs > 0);
        return Err(Conflict::Diverged { common, ours, theirs: theirs.iter().map(point).collect(), received });
    }
    if resumes {
        return Ok(Transfer::Steps { steps });
    }
    let names: HashMap<&SnapName, Guid> = destination.iter().map(|d| (&d.name, d.guid)).collect();
    let is_free = |at: &usize| fits(at) && !names.contains_key(&source[*at].name);
    if let Some(guid) = names.get(&source[goal].name) {
        let here = source.iter().find(|s| s.guid == *guid).map(|s| s.name.clone());
        let here = here.filter(|here| !names.contains_key(here));
        return Err(Conflict::NameTaken { name: source[goal].name.clone(), here });
    }
    let mut at = after - usize::from(bookmark.is_none());
    if bookmark.is_some() {
        at = (at..=goal).find(is_free).unwrap_or(goal);
        let (from, to) = (Base::Bookmark(common), point(&source[at]));
        steps.push(Step::Incremental { from, to, intermediates: false });
    }
    steps.extend(onward(source, at, goal, is_free));
    Ok(Transfer::Steps { steps })
}

/// The outcome if the destination has the snapshot `source[goal]` (under the name `name_there`) or a newer one of the
/// source: `newest_there` is the index of the newest one there, and `bookmark` a bookmark of a still newer one.
fn already_there(
    source: &[Snapshot],
    goal: usize,
    name_there: Option<&SnapName>,
    newest_there: Option<usize>,
    bookmark: Option<&Bookmark>,
) -> Option<Transfer> {
    let wanted = &source[goal];
    if let Some(ahead) = bookmark.filter(|b| b.createtxg > wanted.createtxg) {
        return Some(Transfer::MostActual { newest: Point { name: ahead.name.clone(), guid: ahead.guid } });
    }
    let newest = newest_there.filter(|newest| *newest >= goal)?;
    Some(match name_there {
        _ if newest != goal => Transfer::MostActual { newest: point(&source[newest]) },
        Some(there) if *there != wanted.name => Transfer::WasRenamed { there: there.clone() },
        _ => Transfer::NothingToDo,
    })
}

/// The first stream into an empty destination.
fn first_step(to: Point, origin: Option<&(Origin, Guid)>) -> Step {
    match origin.cloned() {
        Some((of, guid)) => Step::Incremental { from: Base::Origin(of, guid), to, intermediates: false },
        None => Step::Full { to },
    }
}

/// The increments from one of the snapshots to another. Snapshots between these two are left out if the destination
/// cannot have their names.
fn onward(source: &[Snapshot], from: usize, to: usize, is_free: impl Fn(&usize) -> bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut at = from;
    while at < to {
        let next = (at + 1..=to).find(&is_free).unwrap_or(to);
        // An increment includes all snapshots up to the next one that is not free. If it leaves out snapshots, it
        // brings only one.
        let run = (next..=to).take_while(|i| *i == to || is_free(i)).last().unwrap_or(next);
        let end = if next == at + 1 { run } else { next };
        let from = Base::Snapshot(point(&source[at]));
        steps.push(Step::Incremental { from, to: point(&source[end]), intermediates: next == at + 1 && end > next });
        at = end;
    }
    steps
}

#[cfg(test)]
mod tests;
