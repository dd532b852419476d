//! Decides what a transfer does next from what both sides have.

use crate::actions::divergence::Trouble;
use crate::actions::steps as engine;
use crate::actions::steps::{Base, Point, Resume, Step, steps};
use crate::agent::transfer::state::Transfer;
use crate::host::error::OrderError;
use crate::model::SnapName;
use crate::zfs::{ErrorKind, SendFrom, Zfs};

/// What a transfer does next.
pub(super) enum NextStep {
    Send(NextStream),
    /// Resume an interrupted stream.
    Resume {
        token: String,
    },
    /// Discard what an interrupted stream left at the destination.
    Discard {
        why: String,
    },
    /// Apply a remedy to a destination that cannot take the next stream.
    Resolve(Trouble),
    Arrived,
}

/// The next stream.
pub(super) struct NextStream {
    pub(super) from: SendFrom,
    pub(super) to: Point,
    /// The snapshot that it is based on.
    pub(super) base: Option<SnapName>,
}

/// An interrupted receive at the destination.
enum Resumable {
    Yes(Resume),
    No { why: String },
}

impl<Z: Zfs> Transfer<'_, Z> {
    /// Compares both sides, and decides on the next step.
    pub(super) async fn next_step(&mut self) -> Result<NextStep, OrderError> {
        let resume = match self.theirs.as_ref().and_then(|theirs| theirs.resume_token.clone()) {
            None => None,
            Some(token) => match self.resumable(token).await? {
                Resumable::Yes(resume) => Some(resume),
                Resumable::No { why } => return Ok(NextStep::Discard { why }),
            },
        };
        let there = self.theirs.as_ref().map(|theirs| theirs.snapshots.as_slice()).unwrap_or_default();
        let origin = self.plan.origin.as_ref().filter(|_| self.peer.place().has_origin);
        let (ours, target) = (&self.ours, self.plan.target.guid);
        let to = &self.plan.to.dataset;
        let first = match steps(to, &ours.snapshots, &ours.bookmarks, there, resume.as_ref(), origin, target) {
            Ok(engine::Transfer::Steps { steps }) => steps.into_iter().next(),
            Ok(arrived) => {
                self.progress.arrived(&arrived);
                None
            }
            Err(conflict) => return Ok(NextStep::Resolve(conflict.into())),
        };
        Ok(first.map_or(NextStep::Arrived, |step| self.prepared(step)))
    }

    /// Converts a step of the decision engine into a step of this transfer.
    fn prepared(&self, step: Step) -> NextStep {
        let (from, to, base) = match step {
            Step::Resume { token } => return NextStep::Resume { token },
            Step::Discard { .. } => {
                return NextStep::Discard { why: "it does not lead to the snapshot to be sent".to_owned() };
            }
            Step::Full { to } => (SendFrom::Nothing, to, None),
            Step::Incremental { from: Base::Snapshot(base), to, intermediates } => {
                // If the listing may lack snapshots in between, ZFS finds them.
                let from = SendFrom::since(base.name.clone(), intermediates || !self.sees_all);
                (from, to, Some(base.name))
            }
            Step::Incremental { from: Base::Bookmark(base), to, .. } => (SendFrom::Bookmark(base.name), to, None),
            Step::Incremental { from: Base::Origin(of, _), to, .. } => {
                (SendFrom::Origin(of.dataset, of.name), to, None)
            }
        };
        NextStep::Send(NextStream { from, to, base })
    }

    /// Whether an interrupted receive at the destination can be resumed.
    async fn resumable(&mut self, token: String) -> Result<Resumable, OrderError> {
        let no = |why: &str| Ok(Resumable::No { why: why.to_owned() });
        if self.progress.resumed {
            return no("it could not be resumed");
        }
        let is_raw = self.ours.encrypted;
        match self.agent.zfs.resumable(&token).await {
            // The token comes from the destination. It must not make this host send another dataset.
            Ok(of) if of.dataset != self.plan.source => no(&format!("it belongs to {}", of.dataset)),
            Ok(of) if of.raw != is_raw => {
                no(if is_raw { "it is not raw, as the dataset requires" } else { "it is raw, unlike the dataset" })
            }
            // Another tool began it without encryption=off. The copy would need the key of the source above it.
            Ok(_) if !is_raw && self.peer.place().has_foreign_partial => {
                no("it would be encrypted with the key of the copy above it")
            }
            Ok(_) if is_raw && self.peer.place().key_conflict.is_some() => no("the key of the copy is in the way"),
            Ok(of) => Ok(Resumable::Yes(Resume { token, to: Some(of.guid) })),
            Err(error) if error.kind == ErrorKind::StaleToken => no(&error.to_string()),
            Err(error) => Err(error.into()),
        }
    }
}
