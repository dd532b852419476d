//! How a destination gets from what it has to the snapshot wanted: the steps of one transfer, or why there are none.
//!
//! Only guids are compared: names may differ on the two sides, and createtxg orders snapshots within one pool only.

use std::collections::HashMap;

use serde::Serialize;
use thiserror::Error;

use crate::model::{Bookmark, Guid, Origin, SnapName, Snapshot};

/// One `zfs send`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Step {
    /// Go on with an interrupted receive (`send -t`). What follows is planned anew from a fresh listing: the
    /// token may turn out stale.
    Resume {
        /// The token.
        token: String,
    },
    /// Throw away an interrupted receive that leads nowhere (`receive -A`): it would block every other one.
    Discard {
        /// Its token.
        token: String,
    },
    /// Send one snapshot whole.
    Full {
        /// The snapshot.
        to: Point,
    },
    /// Send what changed from a base to a snapshot.
    Incremental {
        /// Where it starts.
        from: Base,
        /// Where it ends.
        to: Point,
        /// Whether everything between travels too (`-I`); false (`-i`) where there is nothing between or, from a
        /// bookmark, cannot be.
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

/// Where an increment starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// A snapshot of the source.
    Snapshot(Point),
    /// A bookmark of the source; the guid is that of the snapshot that it was made from.
    Bookmark(Point),
    /// The snapshot that the source is a clone of.
    Origin(Origin, Guid),
}

/// What a transfer comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Transfer {
    /// The destination has the snapshot, and none of ours that is newer.
    NothingToDo,
    /// The destination has the snapshot, or has not, but has a newer one of ours.
    MostActual {
        /// The newest of ours there.
        newest: Point,
    },
    /// The destination has the snapshot, as its newest, under another name.
    WasRenamed {
        /// Its name there.
        there: SnapName,
    },
    /// These steps, in this order.
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
    /// The guid of the snapshot that was being received (`toguid` in the token), where it could be read.
    pub to: Option<Guid>,
}

/// Why a snapshot cannot be sent as things are.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Conflict {
    /// The source does not have the snapshot (any more).
    #[error("the source does not have the snapshot with the guid {guid}")]
    NoSuchSnapshot {
        /// What was to be sent.
        guid: Guid,
    },
    /// The destination has snapshots of its own after the newest common one.
    #[error(
        "{} after {}, the newest in common, it has {} of its own, and the source {}",
        if *received { "it seems that the source was rolled back:" } else { "the destination has diverged:" },
        common.name, theirs.len(), ours.len()
    )]
    Diverged {
        /// The newest common point, by its name on the source.
        common: Point,
        /// What only the source has after it, oldest first, up to the snapshot wanted.
        ours: Vec<Point>,
        /// What only the destination has after it, oldest first.
        theirs: Vec<Point>,
        /// Whether one of those is held there, as what was received is: then the source had it once.
        received: bool,
    },
    /// The destination has snapshots, but none in common with the source.
    #[error("the destination is not empty, and none of its {} snapshots is common with the source", theirs.len())]
    NotEmpty {
        /// What the source has, oldest first, up to the snapshot wanted.
        ours: Vec<Point>,
        /// What the destination has, oldest first.
        theirs: Vec<Point>,
    },
}

fn point(snapshot: &Snapshot) -> Point {
    Point { name: snapshot.name.clone(), guid: snapshot.guid }
}

/// Plans how `target` gets to a destination. All lists are sorted by createtxg, oldest first, and what is in them exists.
///
/// - From the newest common guid to the target, with everything between, so that the destination's history is whole.
/// - A destination without snapshots first gets the oldest snapshot of the source whole, then the rest as one
///   increment: history travels too, and each part can be verified and resumed by itself.
/// - A clone whose origin the destination has too (`origin`) begins there instead, and is a clone there as well.
/// - An increment from a bookmark cannot carry what is between; it goes to the next snapshot only, then on from there.
/// - An interrupted receive goes on first, if what it receives still exists, is not there yet and is not newer than the
///   target; otherwise it is thrown away first.
pub fn steps(
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
    let places: HashMap<Guid, usize> = destination.iter().map(|d| d.guid).zip(0..).collect();
    let there = |guid: Guid| places.get(&guid).copied();

    // Where the destination stands in the source's history: the newest snapshot of the source that it has.
    let newest_there = source.iter().rposition(|s| there(s.guid).is_some());
    // A bookmark counts only where it is newer than every common snapshot.
    let bookmark = bookmarks.iter().rfind(|b| there(b.guid).is_some());
    let bookmark = bookmark.filter(|b| newest_there.is_none_or(|i| b.createtxg > source[i].createtxg));

    if let Some(ahead) = bookmark.filter(|b| b.createtxg > source[goal].createtxg) {
        return Ok(Transfer::MostActual { newest: Point { name: ahead.name.clone(), guid: ahead.guid } });
    }
    if let Some(newest) = newest_there.filter(|newest| *newest >= goal) {
        return Ok(match there(target) {
            Some(at) if newest == goal && destination[at].name != source[goal].name => {
                Transfer::WasRenamed { there: destination[at].name.clone() }
            }
            _ if newest == goal => Transfer::NothingToDo,
            _ => Transfer::MostActual { newest: point(&source[newest]) },
        });
    }

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
                let to = point(&source[0]);
                steps.push(match origin.cloned() {
                    Some((of, guid)) => Step::Incremental { from: Base::Origin(of, guid), to, intermediates: false },
                    None => Step::Full { to },
                });
                steps.extend(onward(&source[..=goal], 0));
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
    match bookmark {
        _ if resumes => {}
        None => steps.extend(onward(&source[..=goal], after - 1)),
        Some(_) => {
            let next = after.min(goal);
            steps.push(Step::Incremental {
                from: Base::Bookmark(common),
                to: point(&source[next]),
                intermediates: false,
            });
            steps.extend(onward(&source[..=goal], next));
        }
    }
    Ok(Transfer::Steps { steps })
}

/// The increment from one of the snapshots to the last of them, if that is another one.
fn onward(source: &[Snapshot], from: usize) -> Option<Step> {
    let (first, rest) = source.get(from..)?.split_first()?;
    let intermediates = rest.len() > 1;
    let from = Base::Snapshot(point(first));
    rest.last().map(|last| Step::Incremental { from, to: point(last), intermediates })
}

#[cfg(test)]
mod tests;
