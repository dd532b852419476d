//! How long the transfers of a fleet took, which tells by when the next ones have to begin.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use crate::actions::{Durations, Order};
use crate::catalog::{CatalogError, Outcome, open};
use crate::model::Action;
use crate::policy::Policy;
use crate::sys::runtime;

/// How many of the latest outcomes are read from the catalog.
pub(super) const LEARNED_FROM: usize = 10_000;

/// How long transfers took; nothing is known until it was read from the catalog. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct KnownDurations(Arc<Mutex<Option<Durations>>>);

impl KnownDurations {
    pub(super) fn are_known(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Learns from earlier outcomes, which are given newest first.
    pub(super) fn learn(&self, outcomes: &[Outcome]) {
        self.0.lock().get_or_insert(learned(outcomes));
    }

    /// How long transfers took, as far as it is known.
    #[must_use]
    pub fn known(&self) -> Durations {
        self.0.lock().clone().unwrap_or_default()
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

/// Reads from the catalog how long transfers took, if a policy has a limit for which that matters.
pub async fn read(policy: &Policy) -> Result<Durations, CatalogError> {
    if !matters(policy) {
        return Ok(Durations::default());
    }
    let config = policy.catalog.clone();
    let outcomes = runtime::blocking(move || open::reader(&config)?.outcomes(LEARNED_FROM)).await?;
    Ok(learned(&outcomes))
}

/// Whether a policy has a limit for which it matters how long transfers take.
#[must_use]
pub fn matters(policy: &Policy) -> bool {
    policy.datasets.iter().flat_map(|entry| &entry.policies).any(|policy| policy.lag.is_some())
}

/// How long transfers took, by their outcomes, which are given newest first.
#[must_use]
pub fn learned(outcomes: &[Outcome]) -> Durations {
    let mut durations = Durations::default();
    outcomes.iter().rev().for_each(|outcome| add(&mut durations, outcome));
    durations
}

/// A transfer that failed, or that found nothing to send, says nothing about the next one.
fn add(durations: &mut Durations, outcome: &Outcome) {
    let has_sent = outcome.success && outcome.bytes > 0;
    if let (Action::SendSnapshot, true, Some(dataset), Some(to)) =
        (outcome.action, has_sent, &outcome.dataset, &outcome.to)
    {
        durations.add(outcome.host.clone(), dataset.clone(), to.clone(), outcome.seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{OrderId, Place};

    #[test]
    fn only_transfers_that_sent_something_count() {
        let outcome = |success: bool, bytes: u64, seconds: f64| Outcome {
            order_id: OrderId(uuid::Uuid::nil()),
            at: DateTime::UNIX_EPOCH,
            host: "alpha".parse().unwrap(),
            action: Action::SendSnapshot,
            dataset: Some("tank/a".parse().unwrap()),
            snapshot: None,
            to: Some(Place { host: "beta".parse().unwrap(), dataset: "pool/a".parse().unwrap() }),
            success,
            status: None,
            bytes,
            seconds,
            error: None,
            hint: None,
        };
        // The newest comes first.
        let outcomes =
            [outcome(true, 9, 60.0), outcome(false, 9, 7000.0), outcome(true, 0, 0.1), outcome(true, 9, 80.0)];
        let durations = learned(&outcomes);
        let (host, dataset, to) =
            ("alpha".parse().unwrap(), "tank/a".parse().unwrap(), outcomes[0].to.clone().unwrap());
        assert_eq!(durations.expected(&host, &dataset, &to), Some(std::time::Duration::from_secs(60)));
    }
}
