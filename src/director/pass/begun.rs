//! A pass that has begun, and its end: by itself, because another pass takes over, or because the director is ended.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::catalog::{CatalogError, CatalogWrite, Outcome};
use crate::director::pass::Pass;
use crate::director::report::{Report, subject};
use crate::fleet::poll::{Poll, PollReport};
use crate::model::HostName;
use crate::server::acceptor::ABORT_TIMEOUT;
use crate::sys::runtime;
use crate::sys::runtime::channel;
use crate::zfs::Zfs;

/// A pass that has begun.
pub struct Begun<Z, C: ?Sized> {
    pub(super) pass: Pass<Z, C>,
    pub(super) poll: Poll,
    /// Closed once every host was polled.
    pub(super) polled: channel::Receiver<()>,
    /// Closed once everything that the pass began has ended.
    pub(super) ended: channel::Receiver<()>,
}

impl<Z: Zfs, C: CatalogWrite + ?Sized + 'static> Begun<Z, C> {
    /// Whether everything that the pass began has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.is_closed()
    }

    /// Waits until everything that the pass began has ended.
    pub async fn ended(&self) {
        // The channel is only ever closed.
        let _ = self.ended.recv().await;
    }

    /// Waits until every host was polled.
    pub async fn polled(&self) {
        let _ = self.polled.recv().await;
    }

    /// Ends the pass: from now on, it begins nothing. Its running orders continue. The result tells when they have
    /// ended.
    pub(in crate::director) fn hand_over(&self) -> channel::Receiver<()> {
        self.pass.over.0.close();
        self.ended.clone()
    }

    /// Whether something is due that was due when the single pass began, or that follows from it.
    pub(in crate::director) fn awaits_more(&self) -> bool {
        let pass = &self.pass;
        let unseen: BTreeSet<HostName> = self.poll.report().unseen.keys().cloned().collect();
        let orders = pass.decide(None).orders(&pass.policy);
        let mut orders = orders.iter().filter(|order| !unseen.contains(order.host()));
        orders.any(|order| pass.lanes.initial().awaits(order) && !pass.rests(order))
    }

    /// What the poll has corrected in the catalog since the last call.
    pub(in crate::director) fn take_corrected(&self) -> Vec<(HostName, String)> {
        std::mem::take(&mut self.poll.report().corrected)
    }

    /// The report of the pass, with the outcomes of all orders that have ended since the last report.
    pub async fn report(&self) -> Result<Report, CatalogError> {
        let pass = &self.pass;
        if let Some(error) = pass.lanes.take_error() {
            return Err(error);
        }
        let PollReport { unseen, corrected } = std::mem::take(&mut *self.poll.report());
        let notices = pass.decide(None).notices;
        // A host that could not be listed is reported once, with the reason.
        let notices = notices.into_iter().filter(|n| !unseen.contains_key(&n.host)).collect();
        let unsaved = pass.flush().await;
        let outcomes = pass.lanes.progress().take_finished();
        let (took, resting) = (pass.began.elapsed(), pass.note_resting());
        Ok(Report { at: pass.at, took, unseen, corrected, outcomes, resting, notices, unsaved, interrupted: None })
    }
}

impl<Z: Zfs, C: CatalogWrite + ?Sized + 'static> Pass<Z, C> {
    /// Writes what the catalog has buffered. Returns why there was no room for the catalog during the pass, if so.
    async fn flush(&self) -> Option<String> {
        let unsaved = self.state.unsaved();
        if let Err(error) = self.state.flush().await {
            let error = anyhow::Error::from(error);
            log::warn!("cannot write the outcomes of orders to the catalog, and will write them later: {error:#}");
        }
        unsaved
    }

    /// Ends passes that were dropped before their end; `self` is the last of them. Returns the outcomes of orders that
    /// have ended. The others were running, and are left to the next director, which resumes them.
    pub(in crate::director) async fn left(mut self) -> Vec<Outcome> {
        const LEFT: &str = "it is still running, and is left to the next pass";
        // See below.
        self.state = self.state.untracked();
        let _ = runtime::timeout(ABORT_TIMEOUT, self.lanes.tasks_ended()).await;
        let (_, outcomes) = self.progress().interrupt(LEFT);
        let (left, ended) = outcomes.into_iter().partition(|outcome| outcome.error.as_deref() == Some(LEFT));
        let left: Vec<Outcome> = left;
        left.iter().for_each(|outcome| log::info!("{}: {LEFT}", subject(outcome)));
        ended
    }

    /// The report of passes that were dropped before their end, if there is a `reason` for it; `self` is the last of
    /// them. Orders that were running count as failed, also in the catalog.
    pub(in crate::director) async fn interrupted(
        mut self,
        took: Duration,
        reason: Option<String>,
    ) -> Result<Report, CatalogError> {
        // The tracked state must be dropped here: otherwise this function would wait for itself.
        self.state = self.state.untracked();
        // Each task ends at its next step, and its processes end with it.
        let _ = runtime::timeout(ABORT_TIMEOUT, self.lanes.tasks_ended()).await;
        let error = format!("{}; the next pass resumes it", reason.as_deref().unwrap_or("the director was ended"));
        let (unseen, outcomes) = self.progress().interrupt(&error);
        for outcome in outcomes.iter().filter(|o| o.error.as_deref() == Some(&error)) {
            self.state.record_outcome(outcome.clone()).await?;
        }
        let unsaved = self.flush().await;
        let (corrected, resting, notices, interrupted) = (Vec::new(), Vec::new(), Vec::new(), reason);
        Ok(Report { at: self.at, took, unseen, corrected, outcomes, resting, notices, unsaved, interrupted })
    }
}
