//! Tells when the next slot of a policy comes, and for which entries.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};

use crate::policy::{Policy, Schedule, SyncPolicy, Zone};

/// The slots of a policy: those at which snapshots are taken, and those at which they are sent.
pub(super) struct SlotClock {
    zone: Zone,
    /// Thousands of entries share a few schedules.
    schedules: Vec<(Schedule, BTreeSet<usize>)>,
    /// The slots up to then are over.
    from: DateTime<Utc>,
}

impl SlotClock {
    /// The slots of a policy after `from`.
    pub(super) fn new(policy: &Policy, from: DateTime<Utc>) -> Self {
        let mut entries: HashMap<&Schedule, BTreeSet<usize>> = HashMap::new();
        for (index, entry) in policy.datasets.iter().enumerate() {
            for policy in &entry.policies {
                let sync = match &policy.sync_policy {
                    SyncPolicy::Cron(schedule) if !policy.sync_on.is_empty() => Some(schedule),
                    SyncPolicy::Cron(_) | SyncPolicy::Asap => None,
                };
                for schedule in policy.creation.iter().chain(sync) {
                    entries.entry(schedule).or_default().insert(index);
                }
            }
        }
        let schedules = entries.into_iter().map(|(schedule, entries)| (schedule.clone(), entries)).collect();
        Self { zone: policy.timezone, schedules, from }
    }

    /// The next slot.
    pub(super) fn next(&self) -> Option<DateTime<Utc>> {
        self.schedules.iter().filter_map(|(schedule, _)| schedule.next_slot(self.zone, self.from)).min()
    }

    /// The entries that have had a slot since the last call.
    pub(super) fn due(&mut self, now: DateTime<Utc>) -> BTreeSet<usize> {
        let has_passed = |schedule: &Schedule| schedule.next_slot(self.zone, self.from).is_some_and(|slot| slot <= now);
        let due = self.schedules.iter().filter(|(schedule, _)| has_passed(schedule));
        let due = due.flat_map(|(_, entries)| entries.iter().copied()).collect();
        self.from = now;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_due_at_their_own_slots_once() {
        let policy = r#"{ "datasets": [
            { "hostname": "a", "dataset": "tank/a", "sync": { "prefix": "S", "creation": "* * * * *" } },
            { "hostname": "a", "dataset": "tank/b", "sync": { "prefix": "S", "creation": "@hourly", "sync_on": "b",
              "sync_dataset": "pool/b", "sync_policy": "*/5 * * * *" } } ] }"#;
        let policy = crate::config::parse_policy("server.json", policy).unwrap();
        let at = |minute: i64, second: i64| DateTime::from_timestamp(1_795_428_000 + minute * 60 + second, 0).unwrap();
        let mut clock = SlotClock::new(&policy, at(3, 10));
        assert_eq!(clock.next(), Some(at(4, 0)));
        assert_eq!(clock.due(at(3, 59)), [].into());
        assert_eq!(clock.due(at(4, 0)), [0].into());
        assert_eq!(clock.due(at(4, 1)), [].into());
        assert_eq!(clock.next(), Some(at(5, 0)));
        assert_eq!(clock.due(at(5, 0)), [0, 1].into());
    }
}
