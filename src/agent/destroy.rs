//! destroy_snapshot: every destroy is proven safe here and now, whatever the order says.

use std::collections::BTreeMap;

use crate::agent::{Agent, Failure, OrderContext, Success};
use crate::model::{DatasetInventory, DatasetName, Guid, Record, ResponseStatus, SnapName, Snapshot, SnapshotId};
use crate::wire::{DirectorsOrder, Facts, PER_LINE};
use crate::zfs::{Depth, Fate, Named, Zfs, ZfsRead};

/// What an order names.
pub(crate) struct Wanted {
    id: SnapshotId,
    /// The name that the director knows, if the order told it.
    name: Option<SnapName>,
}

pub(crate) fn wanted(order: &DirectorsOrder) -> Result<BTreeMap<DatasetName, Vec<Wanted>>, Failure> {
    let mut all: BTreeMap<DatasetName, Vec<Wanted>> = BTreeMap::new();
    for text in &order.snapshot_uuid {
        let (dataset, wanted) = match text.parse::<Record>() {
            Ok(record) => (record.dataset, Wanted { id: record.uuid, name: Some(record.name) }),
            Err(error) => match (text.parse(), order.dest_dataset.parse()) {
                (Ok(uuid), Ok(dataset)) => (dataset, Wanted { id: SnapshotId(uuid), name: None }),
                (Ok(_), Err(error)) => {
                    return Err(Failure::refused(format!("a UUID alone needs DestDataset: {error}")));
                }
                (Err(_), _) => return Err(Failure::refused(format!("SnapshotUUID: {error}"))),
            },
        };
        all.entry(dataset).or_default().push(wanted);
    }
    Ok(all)
}

/// Why one snapshot may not go, if so; `None` if it may.
fn objection(snapshot: &Snapshot, of: &DatasetInventory, order: &DirectorsOrder) -> Option<String> {
    if snapshot.userrefs > 0 {
        return Some("it is held".into());
    }
    if of.newest().is_some_and(|newest| newest.guid == snapshot.guid) {
        return Some("it is the newest of its dataset".into());
    }
    for base in &order.keep_common_with {
        let txg = of.by_guid(base.guid).map(|s| s.createtxg);
        let bookmark = of.bookmarks.iter().find(|b| b.guid == base.guid).map(|b| b.createtxg);
        match (txg, bookmark) {
            (None, None) => return Some(format!("what it has in common with {} is no longer here", base.host)),
            (Some(_), None) if base.guid == snapshot.guid => {
                return Some(format!("it is the newest that {} has too", base.host));
            }
            (Some(txg), _) | (None, Some(txg)) if snapshot.createtxg > txg && base.awaits => {
                return Some(format!("{} does not have it yet", base.host));
            }
            _ => {}
        }
    }
    None
}

/// The snapshots that must still be there when the others go: what the dataset has in common with other hosts.
fn guards(of: &DatasetInventory, order: &DirectorsOrder) -> Vec<Named> {
    let common = order.keep_common_with.iter().filter_map(|base| of.by_guid(base.guid));
    common.map(|s| Named { name: s.name.clone(), guid: s.guid }).collect()
}

/// The snapshots of one dataset that an order names, judged here and now.
pub(crate) struct Judged {
    /// What may go.
    pub(crate) going: Vec<Named>,
    /// What must still be there when it goes.
    pub(crate) guards: Vec<Named>,
    /// Why the others stay.
    pub(crate) stayed: Vec<String>,
}

/// Judges what an order names of one dataset. What is gone already is neither going nor staying; what has clones, ZFS
/// itself leaves out.
pub(crate) async fn judge(
    zfs: &impl ZfsRead,
    dataset: &DatasetName,
    wanted: &[Wanted],
    order: &DirectorsOrder,
) -> Result<Judged, Failure> {
    let listed = zfs.list(std::slice::from_ref(dataset), Depth::Only).await?;
    let Some((_, inventory)) = listed.into_iter().find(|(name, _)| name == dataset) else {
        return Err(Failure::refused(format!("{dataset} does not exist")));
    };
    let mut judged = Judged { going: Vec::new(), guards: guards(&inventory, order), stayed: Vec::new() };
    for Wanted { id, name } in wanted {
        let Some(snapshot) = inventory.snapshots.iter().find(|s| s.guid.uuid() == *id) else {
            // It is gone already, which is what was wanted.
            continue;
        };
        let renamed = name.as_ref().filter(|name| order.skip_if_renamed && **name != snapshot.name);
        let objection = renamed
            .map(|name| format!("it was renamed from @{name}"))
            .or_else(|| objection(snapshot, &inventory, order));
        match objection {
            Some(reason) => judged.stayed.push(format!("{} stays: {reason}", dataset.at(&snapshot.name))),
            None => judged.going.push(Named { name: snapshot.name.clone(), guid: snapshot.guid }),
        }
    }
    Ok(judged)
}

impl<Z: Zfs> Agent<Z> {
    /// Destroys the snapshots of the order that may go, and says why the others stay.
    pub(crate) async fn destroy(&self, order: &DirectorsOrder, desk: &OrderContext) -> Result<Success, Failure> {
        let mut destroyed = 0;
        let (mut stayed, mut failed) = (Vec::new(), Vec::new());
        for (dataset, wanted) in wanted(order)? {
            self.local.permission_to_destroy(&dataset).map_err(|denied| Failure::refused(denied.to_string()))?;
            self.held.changed(&dataset, None);
            let judged = judge(&*self.zfs, &dataset, &wanted, order).await?;
            stayed.extend(judged.stayed);
            if judged.going.is_empty() {
                continue;
            }
            let fates = self.zfs.destroy(&dataset, &judged.going, &judged.guards, false).await?;
            let mut gone: Vec<Guid> = Vec::new();
            for (Named { name, guid }, fate) in judged.going.into_iter().zip(fates) {
                let reason = match fate {
                    Fate::Destroyed | Fate::Gone => {
                        gone.push(guid);
                        continue;
                    }
                    Fate::Another => "the name is another snapshot's by now",
                    Fate::Held => "it is held",
                    Fate::Cloned => "it has clones",
                    Fate::Spared => "what it has in common with another host has just changed",
                    Fate::Failed(number) => {
                        failed.push(format!("{} (error {number})", dataset.at(&name)));
                        continue;
                    }
                };
                stayed.push(format!("{} stays: {reason}", dataset.at(&name)));
            }
            destroyed += gone.len();
            for part in gone.chunks(PER_LINE) {
                let destroyed = part.iter().map(|guid| (dataset.clone(), *guid)).collect();
                desk.tell(Facts { destroyed, ..Facts::default() }).await;
            }
        }
        if !failed.is_empty() {
            let reason = format!("zfs could not destroy {}", failed.join(", "));
            return Err(Failure { status: ResponseStatus::Zerror, reason, temporary: false });
        }
        let status = if destroyed == 0 { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
        let mut remark = format!("destroyed {destroyed}");
        if !stayed.is_empty() {
            remark = format!("{remark}; {}", stayed.join("; "));
        }
        Ok(Success::new(status, remark))
    }
}
