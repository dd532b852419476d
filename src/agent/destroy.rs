//! Carries out destroy_snapshot. Whatever the order says, each snapshot is first checked against ZFS as it is now, and
//! is destroyed only if that is safe.

use std::collections::BTreeMap;

use chrono::{DateTime, Timelike, Utc};

use crate::agent::context::{OrderContext, Success};
use crate::agent::request::{DestroyRequest, SnapshotToDestroy};
use crate::agent::service::Agent;
use crate::host::error::OrderError;
use crate::host::floor::Floor;
use crate::host::trash;
use crate::model::tags::{self, doomed_since, held_by, is_received, is_sending, set_holds};
use crate::model::{DatasetInventory, DatasetName, Guid, ResponseStatus, SnapName, Snapshot, Trashed, counted};
use crate::policy::Local;
use crate::sys::clock;
use crate::wire::{ExpectedSnapshot, Facts, Listing, PER_LINE};
use crate::zfs::{Depth, Fate, Named, Zfs, ZfsRead};

/// The snapshots of one dataset that an order names, divided into those that may be destroyed now and the others.
pub(crate) struct Judged {
    /// The snapshots that may be destroyed.
    pub(crate) victims: Vec<Named>,
    /// The snapshots that would be destroyed now, but that `destroy_after` of local.json keeps in the trash first.
    pub(crate) doomed: Vec<Named>,
    /// The snapshots that must still exist when the victims are destroyed.
    pub(crate) guards: Vec<Named>,
    /// For each of the other snapshots, why it is kept.
    pub(crate) kept: Vec<String>,
    /// What `keep` of local.json keeps in the dataset.
    floor: Floor,
    /// The dataset, with what is in its trash.
    inventory: DatasetInventory,
    /// The holds on its snapshots, as far as they could be listed.
    holds: Vec<(SnapName, String)>,
}

/// Decides which of an order's snapshots of one dataset may be destroyed, and which go to the trash. Snapshots that no longer exist are left out.
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
    let Some((_, mut inventory)) = listed.into_iter().find(|(name, _)| name == dataset) else {
        return Err(OrderError::refused(format!("{dataset} does not exist")));
    };
    let floor = Floor::of(zfs, local, dataset, &inventory, now).await?;
    // A snapshot whose holds are unknown is held, and stays.
    let holds = zfs.holds(dataset, &inventory.held()).await.unwrap_or_else(|error| {
        log::debug!("{dataset}: cannot list the holds: {error}");
        Vec::new()
    });
    set_holds(&mut inventory, holds.clone());
    let after = local.destroy_after(dataset);
    inventory.destroy_after = Some(after.map_or(0, |after| after.as_secs()));
    let mut tags = Tags::new();
    let others = holds.iter().filter(|(_, tag)| doomed_since(tag).is_none());
    others.for_each(|(name, tag)| tags.entry(name.clone()).or_default().push(tag.clone()));
    let guards = guards(&inventory, request);
    let (mut victims, mut doomed, mut all_kept) = (Vec::new(), Vec::new(), Vec::new());
    for SnapshotToDestroy { id, name, expected } in wanted {
        // If the snapshot no longer exists, nothing is left to do for it.
        let Some(snapshot) = inventory.snapshots.iter().find(|s| s.guid.uuid() == *id) else { continue };
        let renamed = name.as_ref().filter(|name| request.skip_if_renamed && **name != snapshot.name);
        let objection = renamed
            .map(|name| format!("it was renamed from @{name}"))
            .or_else(|| mismatch(snapshot, expected.as_ref()))
            .or_else(|| floor.kept.get(&snapshot.guid).cloned())
            .or_else(|| not_yet(snapshot, &inventory, now))
            .or_else(|| objection(snapshot, &inventory, request, &tags));
        let named = Named { name: snapshot.name.clone(), guid: snapshot.guid };
        match objection {
            Some(reason) => all_kept.push(format!("{} stays: {reason}", dataset.at(&snapshot.name))),
            None if after.is_some() && inventory.trashed(snapshot.guid).is_none() => {
                // A snapshot with clones could not be destroyed later.
                match snapshot.has_clones {
                    true => all_kept.push(format!("{} stays: it has clones", dataset.at(&snapshot.name))),
                    false => doomed.push(named),
                }
            }
            None => victims.push(named),
        }
    }
    Ok(Judged { victims, doomed, guards, kept: all_kept, floor, inventory, holds })
}

/// Why a snapshot that is in the trash stays there for now; `None` if it may be destroyed, or is not there.
fn not_yet(snapshot: &Snapshot, of: &DatasetInventory, now: DateTime<Utc>) -> Option<String> {
    match of.trashed_until(of.trashed(snapshot.guid)?) {
        None => Some("it is in the trash, and local.json has no \"destroy_after\" that says for how long".to_owned()),
        Some(until) => (now < until).then(|| format!("it is in the trash until {}", time(until))),
    }
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

fn time(t: DateTime<Utc>) -> String {
    t.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The tags of the holds on snapshots of one dataset.
pub(super) type Tags = BTreeMap<SnapName, Vec<String>>;

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
    if of.other_holds(snapshot) > 0 {
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
    // What is in the trash does not count: otherwise, the newest of the others could go there, too.
    let newest_outside = of.snapshots.iter().rev().find(|other| of.trashed(other.guid).is_none());
    if of.newest().into_iter().chain(newest_outside).any(|newest| newest.guid == snapshot.guid) {
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
pub(super) struct Tally {
    destroyed: usize,
    trashed: usize,
    /// Until when they stay in the trash.
    until: Option<DateTime<Utc>>,
    pub(super) kept: Vec<String>,
    failed: Vec<String>,
}

impl Tally {
    /// Counts the fates of one dataset's victims; returns the guids of those that no longer exist.
    pub(super) fn count(
        &mut self,
        dataset: &DatasetName,
        victims: Vec<Named>,
        fates: Vec<Fate>,
        tags: &Tags,
    ) -> Vec<Guid> {
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

    pub(super) fn finish(self) -> Result<Success, OrderError> {
        if !self.failed.is_empty() {
            let reason = format!("cannot destroy {}", self.failed.join(", "));
            return Err(OrderError::new(ResponseStatus::Zerror, reason));
        }
        let is_nothing = self.destroyed + self.trashed == 0;
        let status = if is_nothing { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
        let mut remark = match self.until {
            Some(until) => format!("moved {} to the trash until {}", self.trashed, time(until)),
            None => format!("destroyed {}", self.destroyed),
        };
        if self.until.is_some() && self.destroyed > 0 {
            remark = format!("destroyed {}; {remark}", self.destroyed);
        }
        if !self.kept.is_empty() {
            remark = format!("{remark}; {}", self.kept.join("; "));
        }
        Ok(Success::new(status, remark))
    }
}

impl<Z: Zfs> Agent<Z> {
    /// Destroys those of the order's snapshots that may be destroyed, or moves them to the trash, and reports why the
    /// others are kept.
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
            let Judged { victims, doomed, guards, kept, floor, mut inventory, holds } = judged;
            floor.record(&*self.zfs, dataset, now).await?;
            tally.kept.extend(kept);
            // On a full pool, ZFS still destroys, but may refuse holds. So what frees space comes first.
            if !victims.is_empty() {
                let fates = self.destroy_trashed(dataset, &victims, &guards, &holds).await?;
                let held = victims.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Held);
                let tags = tags_of(&*self.zfs, dataset, held.map(|(victim, _)| victim.name.clone()).collect()).await;
                let gone = tally.count(dataset, victims, fates, &tags);
                for part in gone.chunks(PER_LINE) {
                    let destroyed = part.iter().map(|guid| (dataset.clone(), *guid)).collect();
                    context.report(Facts { destroyed, ..Facts::default() }).await;
                }
                inventory.snapshots.retain(|snapshot| !gone.contains(&snapshot.guid));
            }
            if doomed.is_empty() {
                continue;
            }
            if let Err(error) = self.doom(dataset, &doomed, now, &mut inventory).await {
                tally.failed.push(format!("{} of {dataset} ({error})", counted(doomed.len(), "snapshot")));
                continue;
            }
            tally.trashed += doomed.len();
            let until = inventory.trashed(doomed[0].guid).and_then(|trashed| inventory.trashed_until(trashed));
            tally.until = tally.until.max(until);
            self.report_trash(dataset, inventory, context).await;
        }
        tally.finish()
    }

    /// Moves snapshots to the trash. `inventory` is the dataset as listed, and is updated.
    async fn doom(
        &self,
        dataset: &DatasetName,
        doomed: &[Named],
        now: DateTime<Utc>,
        inventory: &mut DatasetInventory,
    ) -> Result<(), OrderError> {
        let names: Vec<SnapName> = doomed.iter().map(|doomed| doomed.name.clone()).collect();
        trash::hold(&*self.zfs, &tags::doomed(now), dataset, &names).await?;
        self.cache.list_again(dataset);
        let since = now.with_nanosecond(0).unwrap_or(now);
        let mut trashed = inventory.trashed.take().unwrap_or_default();
        for Named { guid, .. } in doomed {
            let snapshot = inventory.snapshots.iter_mut().find(|snapshot| snapshot.guid == *guid);
            snapshot.into_iter().for_each(|snapshot| snapshot.userrefs += 1);
            trashed.push(Trashed { guid: *guid, since, used: 0 });
        }
        inventory.set_trashed(trashed);
        Ok(())
    }

    /// Destroys snapshots, of which those in the trash are taken out of it at the last moment. One that cannot be
    /// destroyed goes back there, with the time that it had. If this is interrupted, it is outside, and the next order
    /// moves it to the trash again, for the whole time.
    pub(super) async fn destroy_trashed(
        &self,
        dataset: &DatasetName,
        victims: &[Named],
        guards: &[Named],
        holds: &[(SnapName, String)],
    ) -> Result<Vec<Fate>, OrderError> {
        let released = trash::by_tag(holds, |name| victims.iter().any(|victim| victim.name == *name));
        trash::release(&*self.zfs, dataset, &released).await?;
        let fates = self.zfs.destroy(dataset, victims, guards, false).await;
        // One that somebody else holds by now was perhaps taken back from the trash in the meantime, and a name that
        // belongs to another snapshot is not looked at either.
        let stays_out = |name: &SnapName| {
            let mut known = victims.iter().zip(fates.iter().flatten());
            let is_out = |fate: &Fate| matches!(fate, Fate::Destroyed | Fate::Gone | Fate::Held | Fate::Another);
            known.any(|(victim, fate)| victim.name == *name && is_out(fate))
        };
        for (tag, mut names) in released {
            names.retain(|name| !stays_out(name));
            if let Err(error) = trash::hold(&*self.zfs, &tag, dataset, &names).await {
                log::warn!("{dataset}: cannot put back into the trash what could not be destroyed: {error}");
            }
        }
        Ok(fates?)
    }

    /// Reports a dataset of which snapshots were moved to the trash.
    async fn report_trash(&self, dataset: &DatasetName, inventory: DatasetInventory, context: &OrderContext) {
        let mut listed = vec![(dataset.clone(), inventory)];
        self.local.restrict(&mut listed);
        for (dataset, inventory) in listed {
            for listing in Listing::parts(&self.host, &dataset, inventory) {
                context.report(Facts { listing: Some(listing), ..Facts::default() }).await;
            }
        }
    }
}
