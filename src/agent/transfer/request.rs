//! What an order to send asks for, and what both sides have of it.

use crate::agent::Failure;
use crate::model::{DatasetInventory, DatasetName, Guid, HostName, Place, Snapshot, SnapshotId};
use crate::wire::DirectorsOrder;

/// Which snapshot an order sends, and where to.
pub(crate) fn errand(order: &DirectorsOrder) -> Result<(SnapshotId, Place), Failure> {
    let host: HostName = order.destination.parse().map_err(|e| Failure::refused(format!("Destination: {e}")))?;
    let dataset: DatasetName = order.dest_dataset.parse().map_err(|e| Failure::refused(format!("DestDataset: {e}")))?;
    let id = match order.snapshot_uuid.as_slice() {
        [one] => one.split(':').next().unwrap_or(one).parse().map(SnapshotId),
        _ => return Err(Failure::refused("SnapshotUUID names not exactly one snapshot")),
    };
    let id = id.map_err(|e| Failure::refused(format!("SnapshotUUID: {e}")))?;
    Ok((id, Place { host, dataset }))
}

/// The snapshot that an order names, as it is now.
pub(crate) fn named<'a>(
    source: &DatasetName,
    ours: &'a DatasetInventory,
    id: SnapshotId,
) -> Result<&'a Snapshot, Failure> {
    ours.snapshots.iter().find(|s| s.guid.uuid() == id).ok_or_else(|| {
        Failure::refused(format!(
            "{source} has no snapshot with the UUID {id} any more; the next pass sends the newest that it has"
        ))
    })
}

/// The newest of `theirs` that `ours` has as a snapshot or as a bookmark.
pub(crate) fn newest_common(ours: &DatasetInventory, theirs: &DatasetInventory) -> Option<Guid> {
    let has = |guid: Guid| ours.by_guid(guid).is_some() || ours.bookmarks.iter().any(|b| b.guid == guid);
    theirs.snapshots.iter().rev().map(|s| s.guid).find(|guid| has(*guid))
}
