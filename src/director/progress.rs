//! The progress of a pass. Observers read it, and through it a pass is interrupted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use crate::catalog::Outcome;
use crate::fleet::certificates::SeenCertificates;
use crate::model::{CertificateExpiry, Counter, HostName, OrderId};

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

#[derive(Default)]
struct ProgressState {
    unseen: BTreeMap<HostName, String>,
    clocks_behind: BTreeMap<HostName, u64>,
    running: BTreeMap<OrderId, RunningOrder>,
    finished: Vec<Outcome>,
    /// How often something has begun or ended.
    steps: u64,
}

/// What a pass is doing. Clones share one state.
#[derive(Clone, Default)]
pub struct PassProgress {
    stopped: Arc<AtomicBool>,
    state: Arc<Mutex<ProgressState>>,
    certificates: SeenCertificates,
}

impl PassProgress {
    fn state(&self) -> MutexGuard<'_, ProgressState> {
        self.state.lock()
    }

    /// The progress of a pass that notes the certificates of hosts here.
    #[must_use]
    pub(crate) fn noting(certificates: SeenCertificates) -> Self {
        Self { certificates, ..Self::default() }
    }

    /// When the certificates of the hosts expire.
    #[must_use]
    pub fn certificates(&self) -> Vec<CertificateExpiry> {
        self.certificates.all()
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
    }

    /// Moves an order from the running to the finished ones.
    pub(crate) fn end(&self, outcome: &Outcome) {
        let mut state = self.state();
        state.steps += 1;
        state.running.remove(&outcome.order_id);
        state.finished.push(outcome.clone());
    }

    /// The running orders.
    #[must_use]
    pub fn running(&self) -> Vec<RunningOrder> {
        self.state().running.values().cloned().collect()
    }

    /// The bytes that finished orders have moved.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.state().finished.iter().map(|outcome| outcome.bytes).sum()
    }

    /// Changes whenever something begins or ends, or a running order has moved more bytes.
    pub(crate) fn activity(&self) -> (u64, u64) {
        let state = self.state();
        (state.steps, state.running.values().map(|order| order.counter.get()).sum())
    }

    /// Ends the progress of an interrupted pass. Returns the hosts that could not be listed and the outcomes of all
    /// orders: first those that finished, then those that were running, which failed with this `error`.
    pub(crate) fn interrupt(&self, error: &str) -> (BTreeMap<HostName, String>, Vec<Outcome>) {
        let mut state = self.state();
        let ProgressState { unseen, running, finished, .. } = std::mem::take(&mut *state);
        let interrupted = running.into_values().map(|RunningOrder { mut outcome, since, counter }| {
            outcome.bytes = counter.get();
            outcome.seconds = since.elapsed().as_secs_f64();
            outcome.error = Some(error.to_owned());
            outcome
        });
        (unseen, finished.into_iter().chain(interrupted).collect())
    }
}
