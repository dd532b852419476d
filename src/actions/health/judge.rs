//! The thresholds: the policy's own, else what its schedules promise.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use crate::actions::health::{Finding, Row, Severity};
use crate::model::Snapshot;
use crate::policy::{Policy, Schedule, SnapshotPolicy, SyncPolicy, Target};

/// How long after a slot a snapshot or a transfer is not missed yet: a pass takes its time.
const UNREMARKABLE: TimeDelta = TimeDelta::minutes(5);
/// What holds for replicas where no schedule says how often there is something to send.
const WITHOUT_SCHEDULE: Limits = Limits { warn: Some(TimeDelta::days(1)), crit: Some(TimeDelta::days(3)) };

/// From which age on it is worth a warning, and from which on critical.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Limits {
    warn: Option<TimeDelta>,
    crit: Option<TimeDelta>,
}

impl Limits {
    /// As the policy says, if it says anything.
    fn configured(warn: Option<std::time::Duration>, crit: Option<std::time::Duration>) -> Option<Self> {
        let delta = |limit: std::time::Duration| TimeDelta::from_std(limit).unwrap_or(TimeDelta::MAX);
        let limits = Self { warn: warn.map(delta), crit: crit.map(delta) };
        (limits != Self::default()).then_some(limits)
    }

    /// The limit that an age is over, and how bad that is.
    fn over(self, age: TimeDelta) -> Option<(TimeDelta, Severity)> {
        let crit = self.crit.filter(|limit| age > *limit).map(|limit| (limit, Severity::Critical));
        crit.or_else(|| self.warn.filter(|limit| age > *limit).map(|limit| (limit, Severity::Warning)))
    }
}

pub(super) struct Judge<'a> {
    policy: &'a Policy,
    now: DateTime<Utc>,
    /// Thousands of datasets share a few schedules.
    limits: HashMap<&'a Schedule, Limits>,
}

impl<'a> Judge<'a> {
    pub fn new(policy: &'a Policy, now: DateTime<Utc>) -> Self {
        Self { policy, now, limits: HashMap::new() }
    }

    /// The moment that it judges for.
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// By a schedule: nothing for two slots is worth a warning, for four it is critical.
    fn by_schedule(&mut self, schedule: &'a Schedule) -> Limits {
        let (tz, now) = (self.policy.timezone, self.now);
        *self.limits.entry(schedule).or_insert_with(|| {
            let before = |slot: DateTime<Utc>| schedule.last_slot(tz, slot - TimeDelta::seconds(1));
            let second = schedule.last_slot(tz, now - UNREMARKABLE).and_then(before);
            let fourth = second.and_then(before).and_then(before);
            Limits { warn: second.map(|slot| now - slot), crit: fourth.map(|slot| now - slot) }
        })
    }

    fn snapshot_limits(&mut self, of: &'a SnapshotPolicy) -> Option<Limits> {
        let by_schedule = of.creation.as_ref().map(|schedule| self.by_schedule(schedule));
        Limits::configured(of.check.warn_age, of.check.crit_age).or(by_schedule)
    }

    fn replica_limits(&mut self, of: &'a SnapshotPolicy) -> Limits {
        let schedule = match &of.sync_policy {
            SyncPolicy::Cron(schedule) => Some(schedule),
            SyncPolicy::Asap => of.creation.as_ref(),
        };
        let by_schedule = schedule.map_or(WITHOUT_SCHEDULE, |schedule| self.by_schedule(schedule));
        Limits::configured(of.check.sync_warn_age, of.check.sync_crit_age).unwrap_or(by_schedule)
    }

    /// Whether the newest snapshot is too old; `last` is when all was well last.
    pub fn snapshot_age(&mut self, of: &'a SnapshotPolicy, last: Option<DateTime<Utc>>) -> Option<Finding> {
        let limits = self.snapshot_limits(of)?;
        let Some(last) = last else { return Some(Finding::NoSnapshot) };
        let age = self.now - last;
        limits.over(age).map(|(limit, severity)| Finding::SnapshotOld { age, limit, severity })
    }

    /// Whether a destination lags too far behind. Where all is there it is as old as the source, which was found to be
    /// as it should at `fresh_until`.
    pub fn replica_age(
        &mut self,
        of: &'a SnapshotPolicy,
        row: &Row,
        fresh_until: Option<DateTime<Utc>>,
    ) -> Option<Finding> {
        let limits = self.replica_limits(of);
        let configured = Limits::configured(of.check.sync_warn_age, of.check.sync_crit_age).is_some();
        let behind = row.behind?;
        let since = match row.unsent_since {
            // An age was asked for: that of the newest replica.
            Some(unsent) if configured => row.replica.as_ref().map_or(unsent, |replica| replica.creation),
            Some(unsent) => unsent,
            None if configured => fresh_until?,
            None => return None,
        };
        let age = self.now - since;
        limits.over(age).map(|(limit, severity)| Finding::ReplicaOld { age, limit, behind, severity })
    }

    /// Whether there are too many snapshots.
    pub fn too_many(&self, of: &SnapshotPolicy, count: usize, at: Option<Target>) -> Option<Finding> {
        let limit = of.check.max_snapshots?;
        (count > limit).then_some(Finding::TooMany { count, limit, at })
    }

    /// Whether one of these, which are held, is too old for that.
    pub fn held<'s>(&self, of: &SnapshotPolicy, held: impl Iterator<Item = &'s Snapshot>) -> Option<Finding> {
        let limit = TimeDelta::from_std(of.check.max_held?).unwrap_or(TimeDelta::MAX);
        let oldest = held.min_by_key(|s| s.creation)?;
        let age = self.now - oldest.creation;
        (age > limit).then(|| Finding::HeldLong { snapshot: oldest.name.clone(), age, limit })
    }
}
