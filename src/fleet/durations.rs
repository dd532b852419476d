//! How long the transfers of a fleet took, which tells by when the next ones have to begin.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use crate::actions::{Durations, Order};
use crate::catalog::Outcome;
use crate::model::Action;

/// How many of the latest outcomes are read from the catalog.
pub(super) const LEARNED_FROM: usize = 10_000;

/// How long transfers took; nothing is known until it was read from the catalog. Clones share one state.
#[derive(Clone, Default)]
pub struct KnownDurations(Arc<Mutex<Option<Durations>>>);

impl KnownDurations {
    pub(super) fn are_known(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Learns from earlier outcomes, which are given newest first.
    pub(super) fn learn(&self, outcomes: &[Outcome]) {
        let mut durations = Durations::default();
        outcomes.iter().rev().for_each(|outcome| add(&mut durations, outcome));
        self.0.lock().get_or_insert(durations);
    }

    /// Adds the outcome of an order that has just ended.
    pub(super) fn add(&self, outcome: &Outcome) {
        if let Some(durations) = &mut *self.0.lock() {
            add(durations, outcome);
        }
    }

    /// By when a transfer has to begin to meet its deadline; `None` if it has none.
    #[must_use]
    pub fn start_by(&self, order: &Order) -> Option<DateTime<Utc>> {
        let Order::Send { host, dataset, to, deadline: Some(deadline), .. } = order else { return None };
        let expected = self.0.lock().as_ref().and_then(|durations| durations.expected(host, dataset, to));
        let expected = TimeDelta::from_std(expected.unwrap_or_default()).unwrap_or_default();
        Some(deadline.checked_sub_signed(expected).unwrap_or(*deadline))
    }
}

fn add(durations: &mut Durations, outcome: &Outcome) {
    if let (Action::SendSnapshot, true, Some(dataset), Some(to)) =
        (outcome.action, outcome.success, &outcome.dataset, &outcome.to)
    {
        durations.add(outcome.host.clone(), dataset.clone(), to.clone(), outcome.seconds);
    }
}
