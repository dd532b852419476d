//! The first question: is a snapshot due, and under which name?

use chrono::{DateTime, TimeDelta, Timelike, Utc};

use crate::actions::common::{PolicySnapshot, Slots, policy_snapshots};
use crate::actions::reason::TakeReason;
use crate::model::{DatasetInventory, SnapName};
use crate::policy::retention::CLOCK_TOLERANCE;
use crate::policy::{SnapshotPolicy, Zone};

/// Whether a snapshot of a dataset is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakeDecision {
    /// The snapshot's name if one is due.
    pub due: Option<SnapName>,
    /// Why it is due or not.
    pub reason: TakeReason,
}

/// Decides whether a snapshot of a dataset is due at `now`.
#[must_use]
pub fn new_snapshot(dataset: &DatasetInventory, policy: &SnapshotPolicy, tz: Zone, now: DateTime<Utc>) -> TakeDecision {
    let mut snapshots = Vec::new();
    policy_snapshots(dataset, &policy.prefix, &mut snapshots);
    let schedule = policy.creation.as_ref();
    let slots = schedule.map(|s| Slots { last: s.last_slot(tz, now), next: s.next_slot(tz, now) });
    decide(dataset, &snapshots, policy, slots, now)
}

pub(super) fn decide(
    dataset: &DatasetInventory,
    snapshots: &[PolicySnapshot],
    policy: &SnapshotPolicy,
    slots: Option<Slots>,
    now: DateTime<Utc>,
) -> TakeDecision {
    let not_due = |reason| TakeDecision { due: None, reason };
    let Some(Slots { last: slot, next }) = slots else { return not_due(TakeReason::NoSchedule) };
    let catch_up = TimeDelta::from_std(policy.catch_up).unwrap_or(TimeDelta::MAX);
    let in_time = slot.filter(|slot| now - *slot <= catch_up);

    let Some(last) = last_taken(dataset, snapshots, policy, now) else {
        // Without a recent slot, the name has the current minute, because the time of an old slot would be misleading.
        let stamp = in_time.or_else(|| now.with_second(0)).unwrap_or(now);
        return TakeDecision { due: Some(policy.prefix.stamp(stamp)), reason: TakeReason::First };
    };
    if last > now {
        return not_due(TakeReason::ClockBehind { last });
    }
    let Some(slot) = slot.filter(|slot| *slot > last) else { return not_due(TakeReason::UpToDate { last, next }) };
    if snapshots.iter().rev().any(|s| s.stamp == slot) {
        return not_due(TakeReason::SlotTaken { slot, next });
    }
    if in_time.is_none() {
        return not_due(TakeReason::TooLate { slot, catch_up: policy.catch_up.as_secs(), next });
    }
    TakeDecision { due: Some(policy.prefix.stamp(slot)), reason: TakeReason::SlotPassed { slot, last } }
}

/// When the newest snapshot was taken, or was skipped because nothing had been written.
///
/// The creation time counts. If it is implausible, the time in the name is used instead. If that lies in the future as
/// well, the next older snapshot decides.
fn last_taken(
    dataset: &DatasetInventory,
    snapshots: &[PolicySnapshot],
    policy: &SnapshotPolicy,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    // An implausible one does not delay the next snapshots, which would otherwise wait until that time.
    let plausible = |t: DateTime<Utc>| t.signed_duration_since(now) <= CLOCK_TOLERANCE;
    let taken = snapshots.iter().rev().find_map(|s| {
        if plausible(s.creation) { Some(s.creation) } else { Some(s.stamp).filter(|stamp| *stamp <= now) }
    });
    let marks = dataset.not_written.iter().filter_map(|mark| policy.prefix.time_in(&mark.name));
    taken.max(marks.filter(|t| plausible(*t)).max())
}
