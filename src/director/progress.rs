//! The progress of a pass. Observers read it, and through it a pass is interrupted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use crate::catalog::Outcome;
use crate::fleet::certificates::SeenCertificates;
use crate::fleet::live_status::RestingOrder;
use crate::model::{Action, CertificateExpiry, Counter, DatasetName, HostName, OrderId, Place, Prefix};
use crate::sys::runtime::channel;

/// An order that is being carried out.
#[derive(Clone, Debug)]
pub struct RunningOrder {
    /// Its outcome if it were interrupted now.
    pub outcome: Outcome,
    /// When it was given.
    pub since: Instant,
    /// The bytes that it has moved.
    pub counter: Counter,
}

/// Where an order stands in a report: by dataset of the policy, takes first, then entry by entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// The host and the dataset of the entry.
    pub group: Option<(HostName, DatasetName)>,
    /// 0 for a take, otherwise 1.
    pub step: u8,
    /// The entry.
    pub entry: usize,
    /// Whether it is a destroy.
    pub is_destroy: bool,
}

/// What a transfer is about: the entry, the source, the prefix of the policy, and the destination.
type Subject = (usize, HostName, Option<DatasetName>, Option<Prefix>, Option<Place>);

/// What a transfer is about, for which a later transfer makes up if it failed. Other orders have no such subject: a
/// snapshot that was not taken at its time is missing.
fn subject(rank: &Rank, outcome: &Outcome) -> Option<Subject> {
    let Outcome { action: Action::SendSnapshot, host, dataset, snapshot, to, .. } = outcome else { return None };
    Some((rank.entry, host.clone(), dataset.clone(), snapshot.as_ref().and_then(Prefix::of), to.clone()))
}

/// How many outcomes are kept for a report. A single pass may run for days, and meanwhile carries out what becomes due.
const MOST: usize = 20_000;

/// Removes transfers that failed and for which a later one has made up.
fn without_made_up(mut finished: Vec<(Rank, Outcome)>) -> Vec<(Rank, Outcome)> {
    let mut later = BTreeSet::new();
    let mut kept: Vec<(Rank, Outcome)> = Vec::new();
    while let Some((rank, outcome)) = finished.pop() {
        let is_last = subject(&rank, &outcome).is_none_or(|subject| later.insert(subject));
        if is_last || outcome.success {
            kept.push((rank, outcome));
        }
    }
    kept.reverse();
    kept
}

/// Leaves out the oldest of too many outcomes, those of orders that succeeded first. Returns what is left, and how many
/// are left out.
fn shortened(finished: Vec<(Rank, Outcome)>) -> (Vec<(Rank, Outcome)>, usize) {
    let mut finished = without_made_up(finished);
    let before = finished.len();
    let mut surplus = before.saturating_sub(MOST / 2);
    finished.retain(|(_, outcome)| {
        let goes = outcome.success && surplus > 0;
        surplus -= usize::from(goes);
        !goes
    });
    finished.drain(..surplus.min(finished.len()));
    let left_out = before - finished.len();
    (finished, left_out)
}

#[derive(Default)]
struct ProgressState {
    unseen: BTreeMap<HostName, String>,
    clocks_behind: BTreeMap<HostName, u64>,
    certificates: SeenCertificates,
    running: BTreeMap<OrderId, RunningOrder>,
    resting: Vec<RestingOrder>,
    /// Orders that have ended since the last report.
    finished: Vec<(Rank, Outcome)>,
    /// How many of these are left out of the report, because there are too many.
    left_out: usize,
    /// The bytes that finished orders have moved.
    moved: u64,
    /// How often something has begun or ended.
    steps: u64,
}

/// What a pass is doing. Clones share one state.
#[derive(Clone)]
pub struct PassProgress {
    stopped: Arc<AtomicBool>,
    state: Arc<Mutex<ProgressState>>,
    /// Has a message after an order has begun.
    begun: (channel::Sender<()>, channel::Receiver<()>),
}

impl Default for PassProgress {
    fn default() -> Self {
        Self { stopped: Arc::default(), state: Arc::default(), begun: channel::bounded(1) }
    }
}

impl PassProgress {
    fn state(&self) -> MutexGuard<'_, ProgressState> {
        self.state.lock()
    }

    /// Shows when the certificates of hosts expire, as they are seen there.
    pub(crate) fn note_certificates(&self, certificates: &SeenCertificates) {
        self.state().certificates = certificates.clone();
    }

    /// When the certificates of the hosts expire.
    #[must_use]
    pub fn certificates(&self) -> Vec<CertificateExpiry> {
        self.state().certificates.all()
    }

    /// Makes the pass end with the orders that it has already given.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether no more orders are to be given.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Replaces the hosts that could not be listed.
    pub(crate) fn unseen(&self, unseen: &BTreeMap<HostName, String>) {
        let mut state = self.state();
        state.steps += 1;
        state.unseen.clone_from(unseen);
    }

    /// Hosts that could not be listed, with the reason.
    #[must_use]
    pub fn hosts_unseen(&self) -> BTreeMap<HostName, String> {
        self.state().unseen.clone()
    }

    /// Notes by how many seconds the clocks of hosts are behind the director's.
    pub(crate) fn note_clocks(&self, behind: BTreeMap<HostName, u64>) {
        self.state().clocks_behind = behind;
    }

    /// By how many seconds the clocks of hosts are behind the director's, for those that are.
    #[must_use]
    pub fn clocks_behind(&self) -> BTreeMap<HostName, u64> {
        self.state().clocks_behind.clone()
    }

    /// Adds an order that is being given.
    pub(crate) fn begin(&self, running: RunningOrder) {
        let mut state = self.state();
        state.steps += 1;
        state.running.insert(running.outcome.order_id, running);
        drop(state);
        // If the channel is full, there is a message already.
        let _ = self.begun.0.try_send(());
    }

    /// Replaces the orders that have failed and are not given again yet.
    pub(crate) fn note_resting(&self, resting: Vec<RestingOrder>) {
        self.state().resting = resting;
    }

    /// The orders that have failed and are not given again yet.
    #[must_use]
    pub fn resting(&self) -> Vec<RestingOrder> {
        self.state().resting.clone()
    }

    /// Waits until an order begins.
    pub(crate) async fn begun(&self) {
        // This value has a sender.
        let _ = self.begun.1.recv().await;
    }

    /// Moves an order from the running to the finished ones.
    pub(crate) fn end(&self, rank: Rank, outcome: &Outcome) {
        let mut state = self.state();
        state.steps += 1;
        state.moved += outcome.bytes;
        state.running.remove(&outcome.order_id);
        state.finished.push((rank, outcome.clone()));
        if state.finished.len() > MOST {
            let (finished, left_out) = shortened(std::mem::take(&mut state.finished));
            state.finished = finished;
            state.left_out += left_out;
        }
    }

    /// The outcomes of the orders that have ended since the last call, in the sequence of a report. If a later
    /// transfer has made up for one that failed, only the later one is left.
    pub(crate) fn take_finished(&self) -> Vec<Outcome> {
        let (finished, left_out) = {
            let mut state = self.state();
            (std::mem::take(&mut state.finished), std::mem::take(&mut state.left_out))
        };
        if left_out > 0 {
            log::warn!("the report leaves out its {left_out} oldest orders");
        }
        let mut kept = without_made_up(finished);
        let to = |outcome: &Outcome| (outcome.dataset.clone(), outcome.to.clone());
        kept.sort_by(|(a, one), (b, other)| (a, to(one)).cmp(&(b, to(other))));
        kept.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Whether an order has ended since the last report.
    pub(crate) fn has_finished(&self) -> bool {
        !self.state().finished.is_empty()
    }

    /// The running orders.
    #[must_use]
    pub fn running(&self) -> Vec<RunningOrder> {
        self.state().running.values().cloned().collect()
    }

    /// The bytes that finished orders have moved.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.state().moved
    }

    /// Changes whenever something begins or ends, or a running order has moved more bytes.
    pub(crate) fn activity(&self) -> (u64, u64) {
        let state = self.state();
        (state.steps, state.running.values().map(|order| order.counter.get()).sum())
    }

    /// Ends the progress of an interrupted pass. Returns the hosts that could not be listed and the outcomes of all
    /// orders: first those that finished, then those that were running, which failed with this `error`.
    pub(crate) fn interrupt(&self, error: &str) -> (BTreeMap<HostName, String>, Vec<Outcome>) {
        let finished = self.take_finished();
        let mut state = self.state();
        let ProgressState { unseen, running, .. } = std::mem::take(&mut *state);
        let interrupted = running.into_values().map(|RunningOrder { mut outcome, since, counter }| {
            outcome.bytes = counter.get();
            outcome.seconds = since.elapsed().as_secs_f64();
            outcome.error = Some(error.to_owned());
            outcome
        });
        (unseen, finished.into_iter().chain(interrupted).collect())
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn outcome(action: Action, number: usize, success: bool) -> Outcome {
        Outcome {
            order_id: OrderId(uuid::Uuid::nil()),
            at: DateTime::from_timestamp(number as i64, 0).unwrap(),
            host: "alpha".parse().unwrap(),
            action,
            dataset: Some("tank/a".parse().unwrap()),
            snapshot: None,
            to: Some(Place { host: "beta".parse().unwrap(), dataset: "pool/a".parse().unwrap() }),
            success,
            status: None,
            bytes: 1,
            seconds: 1.0,
            error: None,
            hint: None,
        }
    }

    #[test]
    fn report_of_a_long_pass_keeps_failures_and_the_latest_orders() {
        let progress = PassProgress::default();
        // One transfer fails and is made up for, and a take fails.
        progress.end(Rank::default(), &outcome(Action::SendSnapshot, 1, false));
        progress.end(Rank::default(), &outcome(Action::SendSnapshot, 2, true));
        progress.end(Rank::default(), &outcome(Action::TakeSnapshot, 3, false));
        for number in 4..MOST * 3 {
            progress.end(Rank::default(), &outcome(Action::TakeSnapshot, number, true));
            assert!(progress.state().finished.len() <= MOST);
        }
        let report = progress.take_finished();
        assert!((MOST / 2..=MOST).contains(&report.len()), "{}", report.len());
        let failed: Vec<i64> = report.iter().filter(|o| !o.success).map(|o| o.at.timestamp()).collect();
        assert_eq!(failed, [3], "what was made up for is no failure");
        assert_eq!(report.iter().map(|o| o.at.timestamp()).max(), Some(MOST as i64 * 3 - 1));
        // If all fail, the oldest failures go, too.
        for number in 0..=MOST {
            progress.end(Rank::default(), &outcome(Action::TakeSnapshot, number, false));
        }
        assert_eq!(progress.take_finished().len(), MOST / 2);
        assert!(!progress.has_finished());
    }
}
