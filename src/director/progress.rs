//! What a pass has in hand: for those who look at it from outside, and for breaking it off.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use crate::catalog::Outcome;
use crate::model::{Counter, HostName, OrderId};

/// An order that is being carried out.
#[derive(Clone, Debug)]
pub struct RunningOrder {
    /// What it would come to if it were broken off now.
    pub outcome: Outcome,
    /// Since when it is under way.
    pub since: Instant,
    /// The bytes that it has moved.
    pub counter: Counter,
}

#[derive(Default)]
struct State {
    unseen: BTreeMap<HostName, String>,
    running: BTreeMap<OrderId, RunningOrder>,
    done: Vec<Outcome>,
}

/// What a pass has in hand.
#[derive(Clone, Default)]
pub struct PassProgress {
    stopped: Arc<AtomicBool>,
    state: Arc<Mutex<State>>,
}

impl PassProgress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Has the pass end with the orders that it has given.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether no more orders are to be given.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Hosts that could not be looked at.
    pub(crate) fn unseen(&self, unseen: &BTreeMap<HostName, String>) {
        self.state().unseen.clone_from(unseen);
    }

    /// Hosts that could not be looked at, with the reason.
    #[must_use]
    pub fn hosts_unseen(&self) -> BTreeMap<HostName, String> {
        self.state().unseen.clone()
    }

    /// An order is given.
    pub(crate) fn begin(&self, running: RunningOrder) {
        self.state().running.insert(running.outcome.order_id, running);
    }

    /// An order has ended.
    pub(crate) fn end(&self, outcome: &Outcome) {
        let mut state = self.state();
        state.running.remove(&outcome.order_id);
        state.done.push(outcome.clone());
    }

    /// The orders under way.
    #[must_use]
    pub fn running(&self) -> Vec<RunningOrder> {
        self.state().running.values().cloned().collect()
    }

    /// The bytes that orders moved that have ended.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.state().done.iter().map(|outcome| outcome.bytes).sum()
    }

    /// What there is to report of a pass that was broken off: hosts not seen, and how orders ended; last those that
    /// were under way, as failed for this reason.
    pub(crate) fn interrupt(&self, reason: &str) -> (BTreeMap<HostName, String>, Vec<Outcome>) {
        let mut state = self.state();
        let State { unseen, running, done } = std::mem::take(&mut *state);
        let cut = running.into_values().map(|RunningOrder { mut outcome, since, counter }| {
            outcome.bytes = counter.get();
            outcome.seconds = since.elapsed().as_secs_f64();
            outcome.error = Some(reason.to_owned());
            outcome
        });
        (unseen, done.into_iter().chain(cut).collect())
    }
}
