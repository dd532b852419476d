//! Handles a destination that cannot take the next stream: applies a remedy that the order allows, or reports the
//! snapshots of both sides with a way out.

use crate::actions::divergence::{Remedy, Trouble, remedy};
use crate::actions::steps::{Conflict, Point};
use crate::agent::transfer::peer::{Destination, StepOutcome};
use crate::agent::transfer::state::{SendPlan, Transfer};
use crate::host::error::OrderError;
use crate::model::{DatasetInventory, Guid, KeyConflict, ResponseStatus};
use crate::model::{Place, hint, some_of, tags};
use crate::wire::RenamedFrom;
use crate::zfs::{Depth, Zfs};

impl<Z: Zfs> Transfer<'_, Z> {
    /// Whether a receive may replace a destination without snapshots.
    pub(super) fn may_replace(&self) -> bool {
        self.peer.place().is_placeholder || remedy(&Trouble::Bare, self.plan.allowed) == Remedy::Replace
    }

    /// Applies a remedy that the order allows, each remedy at most once. The next step is then planned from the result.
    pub(super) async fn resolve(&mut self, trouble: &Trouble) -> Result<StepOutcome, OrderError> {
        // A rename or a rollback may also affect other datasets.
        self.agent.cache.invalidate_all();
        let outcome = match remedy(trouble, self.plan.allowed) {
            Remedy::Rollback { to, destroys } if !self.progress.rolled_back => self.roll_back(to, destroys).await?,
            Remedy::SetAside if !self.progress.set_aside => self.set_aside(trouble).await?,
            Remedy::Stop | Remedy::Replace | Remedy::Rollback { .. } | Remedy::SetAside => {
                return Err(self.plan.explain(trouble));
            }
        };
        // The error names the problem first, then the failure of the remedy, which determines the status.
        Ok(outcome.map_err(|error| {
            let (status, temporary) = (error.status, error.temporary);
            let mut both = self.plan.explain(trouble).followed_by(error);
            (both.status, both.temporary) = (status, temporary);
            both
        }))
    }

    async fn roll_back(&mut self, to: Guid, destroys: Vec<Guid>) -> Result<StepOutcome, OrderError> {
        self.progress.rolled_back = true;
        let lost = destroys.len();
        let outcome = self.peer.rollback(to, destroys).await?;
        if outcome.result.is_ok() {
            self.progress.remarks.push(match lost {
                0 => "the destination was rolled back first".to_owned(),
                _ => format!("the destination was rolled back first, which destroyed {lost} snapshots there"),
            });
        }
        Ok(outcome)
    }

    async fn set_aside(&mut self, trouble: &Trouble) -> Result<StepOutcome, OrderError> {
        self.progress.set_aside = true;
        let newest = self.theirs.as_ref().and_then(DatasetInventory::newest).map(|s| s.guid);
        let mut outcome = self.peer.set_aside(newest).await?;
        if let (true, Some(from)) = (outcome.result.is_ok(), self.plan.renamed_from.clone()) {
            // It was in the way of the copy that has the former name.
            outcome.destination = self.follow_rename(&from).await?;
        }
        let host = &self.plan.to.host;
        let remarks = &mut self.progress.remarks;
        Ok(outcome.map(|name| remarks.push(format!("the previous copy was renamed to {host}:{name} ({trouble})"))))
    }

    /// Renames the copy as its source was renamed, if that has to be done first. While the destination is the copy of
    /// another dataset that another order renames (`awaits_rename`), the transfer fails.
    pub(super) async fn follow_renames(&mut self, awaits_rename: bool) -> Result<(), OrderError> {
        let from = self.plan.renamed_from.clone();
        match (&self.theirs, from) {
            (None, Some(from)) => self.theirs = self.follow_rename(&from).await?,
            (Some(there), Some(from)) if (from.exchange || from.displace) && there.by_guid(from.guid).is_none() => {
                self.theirs = self.follow_rename(&from).await?;
            }
            (Some(there), _) if awaits_rename && there.newest().is_some_and(|newest| !has(&self.ours, newest.guid)) => {
                let SendPlan { source, to, .. } = &self.plan;
                let what = format!("{}:{} is still the copy of another dataset", to.host, to.dataset);
                let reason = format!("cannot send {source}: {what}, whose source was renamed");
                return Err(OrderError::temporary(ResponseStatus::NotEmpty, reason)
                    .with_hint("the next pass renames that copy first, unless something prevents it"));
            }
            _ => {}
        }
        Ok(())
    }

    /// Renames the copy as its source was renamed, if both datasets confirm the rename.
    async fn follow_rename(&mut self, from: &RenamedFrom) -> Result<Destination, OrderError> {
        let SendPlan { source, to, .. } = &self.plan;
        let there = self.theirs.clone();
        let listed = self.agent.zfs.list(std::slice::from_ref(&from.source_dataset), Depth::Only).await?;
        if !has(&self.ours, from.guid) || listed.iter().any(|(_, inventory)| has(inventory, from.guid)) {
            log::info!("{source}: not renaming its copy, as the source was not renamed from {}", from.source_dataset);
            return Ok(there);
        }
        let old = Place { host: to.host.clone(), dataset: from.dataset.clone() };
        if !tags::was_sent(&self.ours, &old) {
            let why = format!("no bookmark proves that the source was sent to {}:{}", old.host, old.dataset);
            self.progress.remarks.push(format!("a new copy was made: {why}"));
            return Ok(there);
        }
        self.agent.cache.invalidate_all();
        let StepOutcome { result, destination } = self.peer.follow_rename().await?;
        let is_taken = from.exchange || from.displace;
        self.progress.remarks.push(match result {
            Ok(()) if from.exchange => {
                format!("{}:{} and {} have exchanged their names", old.host, old.dataset, to.dataset)
            }
            Ok(()) => format!("{}:{} was renamed as its source was", old.host, old.dataset),
            // What the host does not permit now, it will not permit later either.
            Err(error) if error.status == ResponseStatus::Refused && !error.temporary && !is_taken => {
                format!("a new copy was made: {}", error.message())
            }
            Err(error) => {
                let why = format!("cannot rename {}:{} as {} was renamed", old.host, old.dataset, from.source_dataset);
                return Err(error.context(why));
            }
        });
        Ok(destination)
    }
}

impl SendPlan {
    /// The error for a destination that cannot take the next stream: the problem, the snapshots of both sides, and a
    /// way out.
    fn explain(&self, trouble: &Trouble) -> OrderError {
        let Self { source, to, .. } = self;
        let (status, cause) = match trouble {
            Trouble::Conflict(conflict @ Conflict::NoSuchSnapshot { .. }) => {
                return OrderError::refused(format!("cannot send {source}: {conflict}"));
            }
            Trouble::Conflict(conflict @ Conflict::Diverged { ours, theirs, .. }) => {
                let sides = format!("only on the destination: {}; only on the source: {}", names(theirs), names(ours));
                (ResponseStatus::WasWritten, format!("{conflict} ({sides})"))
            }
            Trouble::Conflict(conflict @ Conflict::NotEmpty { ours, theirs }) => {
                let sides = format!("on the destination: {}; on the source: {}", names(theirs), names(ours));
                (ResponseStatus::NotEmpty, format!("{conflict} ({sides})"))
            }
            Trouble::Conflict(Conflict::NameTaken { .. }) => (ResponseStatus::NotEmpty, trouble.to_string()),
            Trouble::Conflict(Conflict::NameTooLong { .. }) => (ResponseStatus::Refused, trouble.to_string()),
            Trouble::Written { .. } => (ResponseStatus::WasWritten, trouble.to_string()),
            Trouble::Bare | Trouble::Flags(_) | Trouble::Key(_) => (ResponseStatus::NotEmpty, trouble.to_string()),
        };
        OrderError::new(status, cause)
            .context(format!("cannot send {source} to {}:{}", to.host, to.dataset))
            .with_hint(self.way_out(trouble))
    }

    fn way_out(&self, trouble: &Trouble) -> String {
        let Self { source, to, .. } = self;
        let needs_new_copy = !matches!(
            trouble,
            Trouble::Written { .. }
                | Trouble::Conflict(
                    Conflict::Diverged { .. } | Conflict::NameTaken { .. } | Conflict::NameTooLong { .. }
                )
        );
        if needs_new_copy && to.dataset.parent().is_none() {
            return format!(
                "name a dataset below {} as the destination in server.json: the dataset of a pool cannot be renamed",
                to.dataset
            );
        }
        let rename = format!(
            "rename {} on {} (zfs rename), or set on_divergence \"set_aside\", which does that: then a new copy of \
             {source} is made",
            to.dataset, to.host
        );
        match trouble {
            Trouble::Conflict(Conflict::Diverged { common, .. })
                if !self.allowed.rollback || !self.allowed.may_destroy =>
            {
                format!(
                    "{rename}; or set rollback_if_needed and rollback_may_destroy, and \"rollback\": true with \
                     \"append_only\": false in local.json on {}, which roll the destination back to {} and destroy the snapshots that only the destination \
                     has: there may be no other copy of them",
                    to.host, common.name
                )
            }
            Trouble::Conflict(Conflict::NameTaken { name, here }) => {
                let other = match here {
                    Some(here) => to.dataset.at(here),
                    None => format!("{}_other", to.dataset.at(name)),
                };
                let (from, other) = (hint::word(&to.dataset.at(name)), hint::word(&other));
                format!("rename that snapshot on {}: zfs rename {from} {other}", to.host)
            }
            Trouble::Conflict(Conflict::NameTooLong { name }) => format!(
                "give the snapshot a shorter name (zfs rename {} SHORTER), or choose a destination with a shorter name \
                 (sync_dataset)",
                hint::word(&source.at(name))
            ),
            Trouble::Written { newest, .. } => format!(
                "save the data that was written to the destination, then roll the destination back (zfs rollback {}), or \
                 set rollback_if_needed, and \"rollback\": true with \"append_only\": false in local.json on {}, which do \
                 that; to keep the data there, {rename}",
                hint::word(&to.dataset.at(&newest.name)),
                to.host
            ),
            Trouble::Bare => {
                format!(
                    "{rename}; if it holds nothing and is not encrypted, set rollback_if_needed, and \"rollback\": true \
                     with \"append_only\": false in local.json on {}, which replace it",
                    to.host
                )
            }
            Trouble::Key(KeyConflict::Foreign { .. }) => format!(
                "{rename}; if its key was replaced, zfs change-key -o keyformat=passphrase -o keylocation=prompt {} gives \
                 the copy a key of its own again, so that it can take increments: the next one brings the source's key",
                hint::word(&to.dataset)
            ),
            Trouble::Key(KeyConflict::Shared { users }) => {
                let own = users.iter().map(|user| {
                    format!("zfs change-key -o keyformat=passphrase -o keylocation=prompt {}", hint::word(user))
                });
                format!(
                    "load the key of {}, and give each dataset that uses it a key of its own: {}",
                    to.dataset,
                    own.collect::<Vec<_>>().join("; ")
                )
            }
            Trouble::Conflict(_) | Trouble::Flags(_) => rename,
        }
    }
}

/// Whether a dataset has a snapshot or a bookmark with this guid.
fn has(of: &DatasetInventory, guid: Guid) -> bool {
    of.by_guid(guid).is_some() || of.bookmarks.iter().any(|bookmark| bookmark.guid == guid)
}

/// The names of some snapshots, at most five of them.
fn names(points: &[Point]) -> String {
    let names: Vec<&str> = points.iter().map(|point| point.name.as_str()).collect();
    if names.is_empty() { "nothing".into() } else { some_of(&names, 5) }
}
