//! Compares a report with thresholds: those that the policy configures, or else those that follow from its schedules.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use crate::actions::health::finding::{Finding, Severity};
use crate::actions::health::report::Row;
use crate::model::{Place, Snapshot};
use crate::policy::{Policy, Schedule, SnapshotPolicy, SyncPolicy};

/// How long after a slot its snapshot or transfer may still be missing, because a pass takes time.
const GRACE: TimeDelta = TimeDelta::minutes(5);
/// The limits for replicas if no schedule determines how often there is something to send.
const WITHOUT_SCHEDULE: Limits = Limits { warn: Some(TimeDelta::days(1)), crit: Some(TimeDelta::days(3)) };

/// The ages above which something is worth a warning, or critical.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Limits {
    warn: Option<TimeDelta>,
    crit: Option<TimeDelta>,
}

impl Limits {
    /// The configured limits; `None` if the policy configures neither.
    fn configured(warn: Option<std::time::Duration>, crit: Option<std::time::Duration>) -> Option<Self> {
        let delta = |limit: std::time::Duration| TimeDelta::from_std(limit).unwrap_or(TimeDelta::MAX);
        let limits = Self { warn: warn.map(delta), crit: crit.map(delta) };
        (limits != Self::default()).then_some(limits)
    }

    /// The limit that an age exceeds, and how severe that is.
    fn over(self, age: TimeDelta) -> Option<(TimeDelta, Severity)> {
        let crit = self.crit.filter(|limit| age > *limit).map(|limit| (limit, Severity::Critical));
        crit.or_else(|| self.warn.filter(|limit| age > *limit).map(|limit| (limit, Severity::Warning)))
    }
}

/// Compares what was found with the thresholds.
pub(super) struct Judge<'a> {
    policy: &'a Policy,
    now: DateTime<Utc>,
    /// The limits of each schedule, computed once: thousands of datasets share a few schedules.
    limits: HashMap<&'a Schedule, Limits>,
}

impl<'a> Judge<'a> {
    pub fn new(policy: &'a Policy, now: DateTime<Utc>) -> Self {
        Self { policy, now, limits: HashMap::new() }
    }

    /// The moment for which it judges.
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// The limits that follow from a schedule: two slots without a snapshot are worth a warning, four are critical.
    fn by_schedule(&mut self, schedule: &'a Schedule) -> Limits {
        let (tz, now) = (self.policy.timezone, self.now);
        *self.limits.entry(schedule).or_insert_with(|| {
            let before = |slot: DateTime<Utc>| schedule.last_slot(tz, slot - TimeDelta::seconds(1));
            let second = schedule.last_slot(tz, now - GRACE).and_then(before);
            let fourth = second.and_then(before).and_then(before);
            Limits { warn: second.map(|slot| now - slot), crit: fourth.map(|slot| now - slot) }
        })
    }

    fn snapshot_limits(&mut self, of: &'a SnapshotPolicy) -> Option<Limits> {
        let by_schedule = of.creation.as_ref().map(|schedule| self.by_schedule(schedule));
        Limits::configured(of.check.warn_age, of.check.crit_age).or(by_schedule)
    }

    /// The limits for the age of the newest replica; `None` if the policy configures none. Whoever exceeds `lag` breaks
    /// the policy, which is critical.
    fn replica_age_limits(of: &SnapshotPolicy) -> Option<Limits> {
        let crit = [of.check.sync_crit_age, of.lag].into_iter().flatten().min();
        Limits::configured(of.check.sync_warn_age, crit)
    }

    /// The limits for how long a snapshot may be unsent. If `lag` determines what is critical, a schedule still
    /// determines what is worth a warning.
    fn unsent_limits(&mut self, of: &'a SnapshotPolicy) -> Limits {
        let schedule = match &of.sync_policy {
            SyncPolicy::Cron(schedule) => Some(schedule),
            SyncPolicy::Asap => of.creation.as_ref(),
        };
        match (of.check.sync_warn_age, of.check.sync_crit_age, of.lag) {
            (None, None, None) => schedule.map_or(WITHOUT_SCHEDULE, |schedule| self.by_schedule(schedule)),
            (None, None, Some(_)) => {
                let by_schedule = schedule.map(|schedule| self.by_schedule(schedule)).unwrap_or_default();
                Limits { crit: None, ..by_schedule }
            }
            _ => Limits::default(),
        }
    }

    /// Whether the newest snapshot is too old. `last` is when the source was last up to date.
    pub fn snapshot_age(&mut self, of: &'a SnapshotPolicy, last: Option<DateTime<Utc>>) -> Option<Finding> {
        let limits = self.snapshot_limits(of)?;
        let Some(last) = last else { return Some(Finding::NoSnapshot) };
        let age = self.now - last;
        limits.over(age).map(|(limit, severity)| Finding::SnapshotOld { age, limit, severity })
    }

    /// Whether a destination lags too far behind.
    pub fn replica_age(&mut self, of: &'a SnapshotPolicy, row: &Row) -> Option<Finding> {
        let behind = row.behind?;
        let now = self.now;
        let over = |limits: Limits, since: DateTime<Utc>| {
            let age = now - since;
            limits.over(age).map(|(limit, severity)| Finding::ReplicaOld { age, limit, behind, severity })
        };
        // The configured limits are about the age of the newest replica.
        let configured =
            Self::replica_age_limits(of).zip(row.fresh_since).and_then(|(limits, since)| over(limits, since));
        if configured.is_some() {
            return configured;
        }
        let unsent = row.unsent_since?;
        over(self.unsent_limits(of), unsent)
    }

    /// Whether there are too many snapshots.
    pub fn too_many(&self, of: &SnapshotPolicy, count: usize, at: Option<Place>) -> Option<Finding> {
        let limit = of.check.max_snapshots?;
        (count > limit).then_some(Finding::TooMany { count, limit, at })
    }

    /// Whether one of the held snapshots is older than the policy allows.
    pub fn held<'s>(&self, of: &SnapshotPolicy, held: impl Iterator<Item = &'s Snapshot>) -> Option<Finding> {
        let limit = TimeDelta::from_std(of.check.max_held?).unwrap_or(TimeDelta::MAX);
        let oldest = held.min_by_key(|s| s.creation)?;
        let age = self.now - oldest.creation;
        (age > limit).then(|| Finding::HeldLong { snapshot: oldest.name.clone(), age, limit, tags: Vec::new() })
    }
}
