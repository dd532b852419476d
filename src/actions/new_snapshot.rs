//! NewSnapshot: is a snapshot due, and under which name?

use chrono::{DateTime, TimeDelta, Timelike, Utc};

use crate::actions::common::{Own, own_snapshots};
use crate::actions::reason::TakeReason;
use crate::model::{DatasetInventory, SnapName};
use crate::policy::{SnapshotPolicy, Zone};

/// A creation time further ahead than this is not waited for: a clock that was wrong by years would stop snapshots
/// for years. A host whose zone or hardware clock is set wrongly stays within it.
pub const PLAUSIBLE_FUTURE: TimeDelta = TimeDelta::days(1);

/// Whether a snapshot of a dataset is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakeDecision {
    /// Its name if one is due.
    pub due: Option<SnapName>,
    /// Why.
    pub reason: TakeReason,
}

/// The slots around now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slots {
    pub last: Option<DateTime<Utc>>,
    pub next: Option<DateTime<Utc>>,
}

/// Decides whether a snapshot of a dataset is due at `now`.
#[must_use]
pub fn new_snapshot(dataset: &DatasetInventory, policy: &SnapshotPolicy, tz: Zone, now: DateTime<Utc>) -> TakeDecision {
    let mut own = Vec::new();
    own_snapshots(dataset, &policy.prefix, &mut own);
    let schedule = policy.creation.as_ref();
    let slots = schedule.map(|s| Slots { last: s.last_slot(tz, now), next: s.next_slot(tz, now) });
    decide(dataset, &own, policy, slots, now)
}

pub(super) fn decide(
    dataset: &DatasetInventory,
    own: &[Own],
    policy: &SnapshotPolicy,
    slots: Option<Slots>,
    now: DateTime<Utc>,
) -> TakeDecision {
    let not_due = |reason| TakeDecision { due: None, reason };
    let Some(Slots { last: slot, next }) = slots else { return not_due(TakeReason::NoSchedule) };
    let catch_up = TimeDelta::from_std(policy.catch_up).unwrap_or(TimeDelta::MAX);
    let in_time = slot.filter(|slot| now - *slot <= catch_up);

    let Some(last) = last_taken(dataset, own, policy, now) else {
        // An old slot would be an odd name for a snapshot of today.
        let stamp = in_time.or_else(|| now.with_second(0)).unwrap_or(now);
        return TakeDecision { due: Some(policy.prefix.stamp(stamp)), reason: TakeReason::First };
    };
    if last > now {
        return not_due(TakeReason::ClockBehind { last });
    }
    let Some(slot) = slot.filter(|slot| *slot > last) else { return not_due(TakeReason::UpToDate { last, next }) };
    if own.iter().rev().any(|s| s.stamp == slot) {
        return not_due(TakeReason::SlotTaken { slot, next });
    }
    if in_time.is_none() {
        return not_due(TakeReason::TooLate { slot, catch_up: policy.catch_up.as_secs(), next });
    }
    TakeDecision { due: Some(policy.prefix.stamp(slot)), reason: TakeReason::SlotPassed { slot, last } }
}

/// When the newest snapshot was taken or found unnecessary.
///
/// It is the creation time that counts. Where that cannot be right, the time in the name is the best there is; where
/// neither can, the snapshot before it is asked.
fn last_taken(
    dataset: &DatasetInventory,
    own: &[Own],
    policy: &SnapshotPolicy,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let plausible = |t: DateTime<Utc>| t.signed_duration_since(now) <= PLAUSIBLE_FUTURE;
    let taken = own.iter().rev().find_map(|s| {
        if plausible(s.creation) { Some(s.creation) } else { Some(s.stamp).filter(|stamp| *stamp <= now) }
    });
    let marks = dataset.not_written.iter().filter_map(|mark| policy.prefix.time_in(&mark.name));
    taken.max(marks.filter(|t| plausible(*t)).max())
}
