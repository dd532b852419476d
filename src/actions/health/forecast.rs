//! Forecasts which destinations will exceed the `lag` of their policy.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::actions::durations::Durations;
use crate::actions::health::finding::Finding;
use crate::actions::health::report::{Health, Row};
use crate::policy::{Policy, SnapshotPolicy, SyncPolicy, Zone};

/// A transfer that is running.
#[derive(Clone, Copy, Debug)]
pub struct Underway {
    /// How long it has been running.
    pub elapsed: Duration,
    /// How long it still takes at its present rate; `None` if its size is unknown.
    pub left: Option<Duration>,
}

impl Health {
    /// Adds to each destination with a limit how old its newest snapshot is expected to be when the next one arrives, and
    /// a finding if that is more than the limit. `underway` tells whether a transfer to the destination is running.
    ///
    /// Nothing is expected where too little is known: of a transfer of which there were no others, or whose source was
    /// not listed.
    pub fn forecast(&mut self, policy: &Policy, durations: &Durations, underway: impl Fn(&Row) -> Option<Underway>) {
        let now = self.at;
        for row in &mut self.rows {
            let Some((arrives, since)) = arrival(policy, durations, row, underway(row), now) else { continue };
            row.forecast_seconds = Some((arrives - since).num_seconds());
            let Some(limit) = row.limit_seconds.map(TimeDelta::seconds) else { continue };
            // What exceeds the limit already is reported as such.
            let at = since.checked_add_signed(limit).filter(|at| arrives > *at && *at >= now);
            row.findings.extend(at.map(|at| Finding::ReplicaLate { at, arrives, limit }));
        }
        self.update_severity();
    }
}

/// When the next snapshot is expected to arrive at a destination with a limit, and since when the newest one there ages.
fn arrival(
    policy: &Policy,
    durations: &Durations,
    row: &Row,
    underway: Option<Underway>,
    now: DateTime<Utc>,
) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
    let (since, to) = (row.fresh_since.filter(|_| row.limit_seconds.is_some())?, row.to.as_ref()?);
    // No snapshot arrives at a copy that has diverged.
    if row.findings.iter().any(|finding| matches!(finding, Finding::Diverged { .. })) {
        return None;
    }
    let of = policy.datasets.get(row.entry)?.policies.iter().find(|of| of.name == row.policy)?;
    let expected = durations.expected(&row.host, &row.dataset, to);
    let after = |start: DateTime<Utc>, time: Duration| start.checked_add_signed(TimeDelta::from_std(time).ok()?);
    let arrives = match underway {
        Some(Underway { elapsed, left }) => after(now, left.or(Some(expected?.saturating_sub(elapsed)))?)?,
        None => after(next_start(of, policy.timezone, row, now)?, expected?)?,
    };
    Some((arrives, since))
}

/// When the next transfer begins, if something is written until then.
fn next_start(of: &SnapshotPolicy, tz: Zone, row: &Row, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let newest = match row.unsent_since {
        Some(_) => row.newest.as_ref()?.creation,
        None => of.creation.as_ref()?.next_slot(tz, now)?,
    };
    match &of.sync_policy {
        SyncPolicy::Asap => Some(newest.max(now)),
        // A slot that has come since then is due now.
        SyncPolicy::Cron(schedule) => schedule.next_slot(tz, newest - TimeDelta::seconds(1)).map(|slot| slot.max(now)),
    }
}
