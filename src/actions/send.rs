//! Send: is a transfer to a destination due?

use chrono::{DateTime, Utc};

use crate::actions::common::{ByGuid, Common, Known, Own, own_snapshots};
use crate::actions::new_snapshot::Slots;
use crate::actions::plan::DueSend;
use crate::actions::reason::SendReason;
use crate::model::DatasetInventory;
use crate::policy::{SnapshotPolicy, SyncPolicy, Zone};

/// Whether a transfer to a destination is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendDecision {
    /// What to send if it is.
    pub due: Option<DueSend>,
    /// Why.
    pub reason: SendReason,
}

impl SendDecision {
    pub(super) fn not_due(reason: SendReason) -> Self {
        Self { due: None, reason }
    }
}

/// Decides whether the newest snapshot of a policy is due at a destination.
///
/// What a destination has beyond the common base is not asked here: whether it has diverged shows when the agent
/// compares the two as they are.
#[must_use]
pub fn send(
    source: &DatasetInventory,
    destination: Known<'_>,
    policy: &SnapshotPolicy,
    tz: Zone,
    now: DateTime<Utc>,
) -> SendDecision {
    let mut own = Vec::new();
    own_snapshots(source, &policy.prefix, &mut own);
    let slots = match &policy.sync_policy {
        SyncPolicy::Asap => None,
        SyncPolicy::Cron(s) => Some(Slots { last: s.last_slot(tz, now), next: s.next_slot(tz, now) }),
    };
    let held = match destination {
        Known::There(there) => Some(ByGuid::of(there)),
        Known::Absent | Known::Unlisted => None,
    };
    decide(source, &own, destination, held.as_ref(), slots)
}

/// `slots` are those of the sync policy, `None` for `asap`; `held` is what the destination has, if it is known.
pub(super) fn decide(
    source: &DatasetInventory,
    own: &[Own],
    destination: Known<'_>,
    held: Option<&ByGuid<'_>>,
    slots: Option<Slots>,
) -> SendDecision {
    let (Some(oldest), Some(newest)) = (own.first(), own.last()) else {
        return SendDecision::not_due(SendReason::NothingToSend);
    };
    let Some(snapshot) = source.snapshots.get(newest.index as usize).map(|s| s.name.clone()) else {
        return SendDecision::not_due(SendReason::NothingToSend);
    };
    if held.is_some_and(|h| h.has(newest.guid)) {
        return SendDecision::not_due(SendReason::UpToDate { newest: snapshot });
    }
    let slot = slots.and_then(|s| s.last).filter(|slot| *slot >= newest.creation);
    if let (Some(Slots { next, .. }), None) = (slots, slot) {
        return SendDecision::not_due(SendReason::WaitsForSlot { next });
    }
    let (reason, oldest_unsent) = match (destination, held) {
        (Known::There(_), Some(held)) => {
            let base = Common::of(source, held).any;
            let unsent = own.iter().find(|s| base.is_none_or(|b| s.createtxg > b.createtxg));
            (SendReason::NotThere { base: base.map(|b| b.name.clone()) }, unsent.unwrap_or(newest).creation)
        }
        (Known::Absent, _) => (SendReason::DestinationAbsent, oldest.creation),
        // Only the newest may be supposed to be missing.
        (Known::Unlisted | Known::There(_), _) => (SendReason::DestinationUnknown, newest.creation),
    };
    SendDecision { due: Some(DueSend { snapshot, guid: newest.guid, oldest_unsent, slot }), reason }
}
