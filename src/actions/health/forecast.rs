//! Forecasts which destinations will exceed the `lag` of their policy.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::actions::durations::Durations;
use crate::actions::health::finding::Finding;
use crate::actions::health::report::{Health, Row};
use crate::model::{DatasetName, HostName, Turn};
use crate::policy::{Policy, SnapshotPolicy, SyncPolicy, Zone};

/// How many transfers of a dataset are followed for each of its destinations. Nothing is expected of a transfer that
/// has to wait for more of them.
const FOLLOWED: usize = 8;

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
    /// A dataset is sent to one destination at a time, to the one with the least slack first. Nothing is expected where
    /// too little is known: of a transfer of which there were no others, or whose source was not listed.
    pub fn forecast(&mut self, policy: &Policy, durations: &Durations, underway: impl Fn(&Row) -> Option<Underway>) {
        let now = self.at;
        let mut lanes: BTreeMap<(&HostName, &DatasetName), Vec<Job<'_>>> = BTreeMap::new();
        for (number, row) in self.rows.iter().enumerate() {
            if let Some(job) = Job::of(number, row, policy, durations, underway(row), now) {
                lanes.entry((&row.host, &row.dataset)).or_default().push(job);
            }
        }
        let arrivals: Vec<(usize, DateTime<Utc>)> = lanes.into_values().flat_map(|jobs| arrivals(jobs, now)).collect();
        for (number, arrives) in arrivals {
            let Some(row) = self.rows.get_mut(number) else { continue };
            let (Some(limit), Some(since)) = (row.limit_seconds.map(TimeDelta::seconds), row.fresh_since) else {
                continue;
            };
            row.forecast_seconds = Some((arrives - since).num_seconds());
            // What exceeds the limit already is reported as such.
            let at = since.checked_add_signed(limit).filter(|at| arrives > *at && *at >= now);
            row.findings.extend(at.map(|at| Finding::ReplicaLate { at, arrives, limit }));
        }
        self.update_severity();
    }
}

/// The transfers of one policy from a dataset to a destination.
struct Job<'p> {
    /// The number of the row.
    row: usize,
    of: &'p SnapshotPolicy,
    tz: Zone,
    limit: Option<TimeDelta>,
    expected: TimeDelta,
    /// When the running transfer began, and when it is expected to end.
    running: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// When the next transfer may begin.
    start: DateTime<Utc>,
    /// Since when the newest snapshot on the destination ages.
    fresh: DateTime<Utc>,
    /// When the next snapshot arrives, once that is known.
    arrives: Option<DateTime<Utc>>,
}

impl<'p> Job<'p> {
    fn of(
        number: usize,
        row: &Row,
        policy: &'p Policy,
        durations: &Durations,
        underway: Option<Underway>,
        now: DateTime<Utc>,
    ) -> Option<Self> {
        let (fresh, to) = (row.fresh_since?, row.to.as_ref()?);
        // No snapshot arrives at a copy that has diverged.
        if row.findings.iter().any(|finding| matches!(finding, Finding::Diverged { .. })) {
            return None;
        }
        let of = policy.datasets.get(row.entry)?.policies.iter().find(|of| of.name == row.policy)?;
        let known = durations.expected(&row.host, &row.dataset, to);
        let delta = |time: Duration| TimeDelta::from_std(time).ok();
        let running = match underway {
            Some(Underway { elapsed, left }) => {
                let left = left.or_else(|| Some(known?.saturating_sub(elapsed)))?;
                Some((now.checked_sub_signed(delta(elapsed)?)?, now.checked_add_signed(delta(left)?)?))
            }
            None => None,
        };
        // A transfer that is running tells enough about its own end.
        let expected = delta(known.or(underway.map(|_| Duration::ZERO))?)?;
        let start = match running {
            Some((_, end)) => end,
            None => next_start(of, policy.timezone, row, now)?,
        };
        let (tz, limit) = (policy.timezone, row.limit_seconds.map(TimeDelta::seconds));
        Some(Self { row: number, of, tz, limit, expected, running, start, fresh, arrives: None })
    }

    /// When its turn comes among those that may begin.
    fn turn(&self) -> Turn {
        let deadline = self.limit.and_then(|limit| self.fresh.checked_add_signed(limit));
        Turn::new(self.fresh, deadline.and_then(|deadline| deadline.checked_sub_signed(self.expected)))
    }

    /// Records that a transfer that began at one moment ends at another. What was taken until it began has arrived.
    /// `None` if no further transfer is expected.
    fn arrived(&mut self, began: DateTime<Utc>, end: DateTime<Utc>) -> Option<()> {
        self.arrives.get_or_insert(end);
        let creation = self.of.creation.as_ref();
        if let Some(slot) = creation.and_then(|creation| creation.last_slot(self.tz, began)) {
            self.fresh = self.fresh.max(slot);
        }
        let next = creation?.next_slot(self.tz, self.fresh.max(began))?;
        self.start = sent_at(self.of, self.tz, next, end)?;
        Some(())
    }
}

/// When the next snapshot arrives, for each job of one dataset for which it can be said.
fn arrivals(mut jobs: Vec<Job<'_>>, now: DateTime<Utc>) -> Vec<(usize, DateTime<Utc>)> {
    let mut free = now;
    let mut known = Vec::new();
    let mut note = |job: &Job<'_>| known.extend(job.arrives.map(|arrives| (job.row, arrives)));
    for mut job in std::mem::take(&mut jobs) {
        let continues = match job.running {
            Some((began, end)) => {
                free = free.max(end);
                job.arrived(began, end).is_some() && !job.expected.is_zero()
            }
            None => true,
        };
        if continues { jobs.push(job) } else { note(&job) }
    }
    for _ in 0..jobs.len() * FOLLOWED {
        if jobs.iter().all(|job| job.arrives.is_some()) {
            break;
        }
        // The first one that may begin; of several, the one with the least slack.
        let earliest = jobs.iter().map(|job| job.start).min().map(|start| start.max(free));
        let Some(begins) = earliest else { break };
        let may_begin = jobs.iter().enumerate().filter(|(_, job)| job.start <= begins);
        let Some(next) = may_begin.min_by_key(|(_, job)| job.turn()).map(|(next, _)| next) else { break };
        let Some(end) = begins.checked_add_signed(jobs[next].expected) else { break };
        free = end;
        if jobs[next].arrived(begins, end).is_none() {
            note(&jobs.swap_remove(next));
        }
    }
    jobs.iter().for_each(note);
    known
}

/// When the next transfer begins, if something is written until then and nothing else is sent.
fn next_start(of: &SnapshotPolicy, tz: Zone, row: &Row, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let newest = match row.unsent_since {
        Some(_) => row.newest.as_ref()?.creation,
        None => next_taken(of, tz, row.fresh_since?, now)?,
    };
    sent_at(of, tz, newest, now)
}

/// When the next snapshot is taken, if the source was last up to date at `last`. A slot that has just come is not over.
fn next_taken(of: &SnapshotPolicy, tz: Zone, last: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let creation = of.creation.as_ref()?;
    let catch_up = TimeDelta::from_std(of.catch_up).unwrap_or(TimeDelta::MAX);
    let is_due = |slot: &DateTime<Utc>| *slot > last && now - *slot <= catch_up;
    creation.last_slot(tz, now).filter(is_due).or_else(|| creation.next_slot(tz, now))
}

/// When a snapshot that was taken at a moment is sent, at `now` at the earliest.
fn sent_at(of: &SnapshotPolicy, tz: Zone, taken: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    match &of.sync_policy {
        SyncPolicy::Asap => Some(taken.max(now)),
        // A slot that has come since then is due now.
        SyncPolicy::Cron(schedule) => schedule.next_slot(tz, taken - TimeDelta::seconds(1)).map(|slot| slot.max(now)),
    }
}
