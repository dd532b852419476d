//! Carries out destroy_snapshot. Whatever the order says, each snapshot is first checked against ZFS as it is now, and
//! is destroyed only if that is safe.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::agent::context::{OrderContext, Success};
use crate::agent::request::{DestroyRequest, SnapshotToDestroy};
use crate::agent::service::Agent;
use crate::host::error::OrderError;
use crate::host::floor::Floor;
use crate::model::tags::{held_by, is_received, is_sending};
use crate::model::{DatasetInventory, DatasetName, Guid, ResponseStatus, SnapName, Snapshot};
use crate::policy::Local;
use crate::sys::clock;
use crate::wire::{ExpectedSnapshot, Facts, PER_LINE};
use crate::zfs::{Depth, Fate, Named, Zfs, ZfsRead};

/// The snapshots of one dataset that an order names, divided into those that may be destroyed now and the others.
pub(crate) struct Judged {
    /// The snapshots that may be destroyed.
    pub(crate) victims: Vec<Named>,
    /// The snapshots that must still exist when the victims are destroyed.
    pub(crate) guards: Vec<Named>,
    /// For each of the other snapshots, why it is kept.
    pub(crate) kept: Vec<String>,
    /// What `keep` of local.json keeps in the dataset.
    floor: Floor,
}

/// Decides which of an order's snapshots of one dataset may be destroyed. Snapshots that no longer exist are left out.
/// Snapshots with clones are not excluded here, because ZFS itself refuses to destroy them.
pub(crate) async fn judge(
    zfs: &impl ZfsRead,
    local: &Local,
    dataset: &DatasetName,
    wanted: &[SnapshotToDestroy],
    request: &DestroyRequest,
    now: DateTime<Utc>,
) -> Result<Judged, OrderError> {
    let listed = zfs.list(std::slice::from_ref(dataset), Depth::Only).await?;
    let Some((_, inventory)) = listed.into_iter().find(|(name, _)| name == dataset) else {
        return Err(OrderError::refused(format!("{dataset} does not exist")));
    };
    let floor = Floor::of(zfs, local, dataset, &inventory, now).await?;
    let mut judged = Judged { victims: Vec::new(), guards: guards(&inventory, request), kept: Vec::new(), floor };
    let is_wanted = |snapshot: &Snapshot| wanted.iter().any(|wanted| snapshot.guid.uuid() == wanted.id);
    let held = inventory.snapshots.iter().filter(|s| s.userrefs > 0 && is_wanted(s));
    let tags = tags_of(zfs, dataset, held.map(|s| s.name.clone()).collect()).await;
    for SnapshotToDestroy { id, name, expected } in wanted {
        // If the snapshot no longer exists, nothing is left to do for it.
        let Some(snapshot) = inventory.snapshots.iter().find(|s| s.guid.uuid() == *id) else { continue };
        let renamed = name.as_ref().filter(|name| request.skip_if_renamed && **name != snapshot.name);
        let objection = renamed
            .map(|name| format!("it was renamed from @{name}"))
            .or_else(|| mismatch(snapshot, expected.as_ref()))
            .or_else(|| judged.floor.kept.get(&snapshot.guid).cloned())
            .or_else(|| objection(snapshot, &inventory, request, &tags));
        match objection {
            Some(reason) => judged.kept.push(format!("{} stays: {reason}", dataset.at(&snapshot.name))),
            None => judged.victims.push(Named { name: snapshot.name.clone(), guid: snapshot.guid }),
        }
    }
    Ok(judged)
}

/// What the director knows wrongly about a snapshot. It has then decided on something else than this host has.
fn mismatch(snapshot: &Snapshot, expected: Option<&ExpectedSnapshot>) -> Option<String> {
    let ExpectedSnapshot { guid: _, createtxg, creation } = expected?;
    let differs = snapshot.createtxg != *createtxg || snapshot.creation != *creation;
    differs.then(|| {
        format!(
            "it was created at {} (createtxg {}), but according to the director at {creation} (createtxg {createtxg})",
            snapshot.creation, snapshot.createtxg
        )
    })
}

/// The tags of the holds on snapshots of one dataset.
type Tags = BTreeMap<SnapName, Vec<String>>;

/// The tags of the holds on these snapshots, for messages: if ZFS cannot list them, they are left out.
async fn tags_of(zfs: &impl ZfsRead, dataset: &DatasetName, names: Vec<SnapName>) -> Tags {
    let mut tags = Tags::new();
    if names.is_empty() {
        return tags;
    }
    match zfs.holds(dataset, &names).await {
        Ok(holds) => holds.into_iter().for_each(|(name, tag)| tags.entry(name).or_default().push(tag)),
        Err(error) => log::debug!("{dataset}: cannot list the holds: {error}"),
    }
    tags
}

/// Says that a snapshot is held, with the tags of its holds.
fn held(snapshot: &SnapName, tags: &Tags) -> String {
    held_by(tags.get(snapshot).map(Vec::as_slice).unwrap_or_default())
}

/// Why a snapshot may not be destroyed; `None` if it may.
fn objection(snapshot: &Snapshot, of: &DatasetInventory, request: &DestroyRequest, tags: &Tags) -> Option<String> {
    if snapshot.userrefs > 0 {
        let found = tags.get(&snapshot.name).map(Vec::as_slice).unwrap_or_default();
        let may_go =
            request.follows && !found.is_empty() && found.iter().all(|tag| is_sending(tag) || is_received(tag));
        if !may_go {
            return Some(held_by(found));
        }
    }
    if request.follows {
        return None;
    }
    if of.newest().is_some_and(|newest| newest.guid == snapshot.guid) {
        return Some("it is the newest of its dataset".into());
    }
    for base in &request.keep_common_with {
        let txg = of.by_guid(base.guid).map(|s| s.createtxg);
        let bookmark = of.bookmarks.iter().find(|b| b.guid == base.guid).map(|b| b.createtxg);
        match (txg, bookmark) {
            (None, None) => return Some(format!("the snapshot in common with {} no longer exists here", base.host)),
            (Some(_), None) if base.guid == snapshot.guid => {
                return Some(format!("it is the newest in common with {}", base.host));
            }
            (Some(txg), _) | (None, Some(txg)) if snapshot.createtxg > txg && base.awaits => {
                return Some(format!("{} does not have it yet", base.host));
            }
            _ => {}
        }
    }
    None
}

/// The snapshots in common with other hosts. They must still exist when the victims are destroyed.
fn guards(of: &DatasetInventory, request: &DestroyRequest) -> Vec<Named> {
    let common = request.keep_common_with.iter().filter_map(|base| of.by_guid(base.guid));
    common.map(|s| Named { name: s.name.clone(), guid: s.guid }).collect()
}

/// Counts what happened to an order's snapshots.
#[derive(Default)]
struct Tally {
    destroyed: usize,
    kept: Vec<String>,
    failed: Vec<String>,
}

impl Tally {
    /// Counts the fates of one dataset's victims; returns the guids of those that no longer exist.
    fn count(&mut self, dataset: &DatasetName, victims: Vec<Named>, fates: Vec<Fate>, tags: &Tags) -> Vec<Guid> {
        let mut gone = Vec::new();
        for (Named { name, guid }, fate) in victims.into_iter().zip(fates) {
            let reason = match fate {
                Fate::Destroyed | Fate::Gone => {
                    gone.push(guid);
                    continue;
                }
                Fate::Another => "the name now belongs to another snapshot".to_owned(),
                Fate::Held => held(&name, tags),
                Fate::Cloned => "it has clones".to_owned(),
                Fate::Busy => "it is in use (mounted below .zfs/snapshot, or open as a volume)".to_owned(),
                Fate::Spared => "a snapshot in common with another host was destroyed or renamed just now".to_owned(),
                Fate::Failed(reason) => {
                    self.failed.push(format!("{} ({reason})", dataset.at(&name)));
                    continue;
                }
            };
            self.kept.push(format!("{} stays: {reason}", dataset.at(&name)));
        }
        self.destroyed += gone.len();
        gone
    }

    fn finish(self) -> Result<Success, OrderError> {
        if !self.failed.is_empty() {
            let reason = format!("cannot destroy {}", self.failed.join(", "));
            return Err(OrderError::new(ResponseStatus::Zerror, reason));
        }
        let status = if self.destroyed == 0 { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
        let mut remark = format!("destroyed {}", self.destroyed);
        if !self.kept.is_empty() {
            remark = format!("{remark}; {}", self.kept.join("; "));
        }
        Ok(Success::new(status, remark))
    }
}

impl<Z: Zfs> Agent<Z> {
    /// Destroys those of the order's snapshots that may be destroyed, and reports why the others are kept.
    pub(crate) async fn destroy(
        &self,
        request: &DestroyRequest,
        context: &OrderContext,
    ) -> Result<Success, OrderError> {
        let mut tally = Tally::default();
        for (dataset, wanted) in &request.snapshots {
            self.local.permission_to_destroy(dataset)?;
            self.cache.invalidate(dataset);
            let now = clock::now();
            let judged = judge(&*self.zfs, &self.local, dataset, wanted, request, now).await?;
            let Judged { victims, guards, kept, floor } = judged;
            floor.record(&*self.zfs, dataset, now).await?;
            tally.kept.extend(kept);
            if victims.is_empty() {
                continue;
            }
            let fates = self.zfs.destroy(dataset, &victims, &guards, false).await?;
            let held = victims.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Held);
            let tags = tags_of(&*self.zfs, dataset, held.map(|(victim, _)| victim.name.clone()).collect()).await;
            for part in tally.count(dataset, victims, fates, &tags).chunks(PER_LINE) {
                let destroyed = part.iter().map(|guid| (dataset.clone(), *guid)).collect();
                context.report(Facts { destroyed, ..Facts::default() }).await;
            }
        }
        tally.finish()
    }
}
