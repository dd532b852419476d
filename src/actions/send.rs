//! The second question: is a transfer to a destination due?

use chrono::{DateTime, Utc};

use crate::actions::common::{KnownDataset, NewestCommon, PolicySnapshot, Slots, SnapshotsByGuid, policy_snapshots};
use crate::actions::reason::SendReason;
use crate::actions::verdict::DueSend;
use crate::model::DatasetInventory;
use crate::policy::{SnapshotPolicy, SyncPolicy, Zone};

/// Whether a transfer to a destination is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendDecision {
    /// What to send if a transfer is due.
    pub due: Option<DueSend>,
    /// Why it is due or not.
    pub reason: SendReason,
}

impl SendDecision {
    pub(super) fn not_due(reason: SendReason) -> Self {
        Self { due: None, reason }
    }
}

/// Decides whether the newest snapshot of a policy is due at a destination.
///
/// Snapshots that only the destination has are not considered here: the agent finds out whether it has diverged when it
/// compares the current state of both sides.
#[must_use]
pub fn send(
    source: &DatasetInventory,
    destination: KnownDataset<'_>,
    policy: &SnapshotPolicy,
    tz: Zone,
    now: DateTime<Utc>,
) -> SendDecision {
    let mut snapshots = Vec::new();
    policy_snapshots(source, &policy.prefix, &mut snapshots);
    let slots = match &policy.sync_policy {
        SyncPolicy::Asap => None,
        SyncPolicy::Cron(s) => Some(Slots { last: s.last_slot(tz, now), next: s.next_slot(tz, now) }),
    };
    let there = match destination {
        KnownDataset::Present(dataset) => Some(SnapshotsByGuid::of(dataset)),
        KnownDataset::Absent | KnownDataset::Unlisted => None,
    };
    decide(source, &snapshots, destination, there.as_ref(), slots)
}

/// Like [`send`], but with inputs that the caller has prepared: `slots` are those of the sync policy, `None` for
/// `asap`; `there` are the snapshots of the destination, if they are known.
pub(super) fn decide(
    source: &DatasetInventory,
    snapshots: &[PolicySnapshot],
    destination: KnownDataset<'_>,
    there: Option<&SnapshotsByGuid<'_>>,
    slots: Option<Slots>,
) -> SendDecision {
    let (Some(oldest), Some(newest)) = (snapshots.first(), snapshots.last()) else {
        return SendDecision::not_due(SendReason::NothingToSend);
    };
    let Some(snapshot) = source.snapshots.get(newest.index as usize).map(|s| s.name.clone()) else {
        return SendDecision::not_due(SendReason::NothingToSend);
    };
    if there.is_some_and(|there| there.has(newest.guid)) {
        return SendDecision::not_due(SendReason::UpToDate { newest: snapshot });
    }
    let slot = slots.and_then(|s| s.last).filter(|slot| *slot >= newest.creation);
    if let (Some(Slots { next, .. }), None) = (slots, slot) {
        return SendDecision::not_due(SendReason::WaitsForSlot { next });
    }
    let (reason, oldest_unsent) = match (destination, there) {
        (KnownDataset::Present(_), Some(there)) => {
            let base = NewestCommon::of(source, there).any;
            let unsent = snapshots.iter().find(|s| base.is_none_or(|b| s.createtxg > b.createtxg));
            (SendReason::NotThere { base: base.map(|b| b.name.clone()) }, unsent.unwrap_or(newest).creation)
        }
        (KnownDataset::Absent, _) => (SendReason::DestinationAbsent, oldest.creation),
        // Nothing is known about the destination: assume that only the newest snapshot is missing.
        (KnownDataset::Unlisted | KnownDataset::Present(_), _) => (SendReason::DestinationUnknown, newest.creation),
    };
    let newest_there = there.and_then(|there| snapshots.iter().rfind(|s| there.has(s.guid))).map(|s| s.creation);
    let due = DueSend { snapshot, guid: newest.guid, oldest_unsent, newest_there, slot };
    SendDecision { due: Some(due), reason }
}
