//! The trash: snapshots that an order would have destroyed, and that `destroy_after` of `local.json` keeps for a time.
//!
//! ZFS is the trash's only memory. A snapshot is in it as long as it has the hold `zsync:doomed:TIME`, whose time is
//! that of this host's clock. So the trash survives a restart, a rename and an export, and everybody can see it and
//! release the hold.
//!
//! What has been there long enough is destroyed by an order of the director like any other, and not by a timer of the
//! agent: only the director knows what other hosts still need, and a host whose agent runs for the orders of a pass
//! alone (`zsync director --once`) has no timer. The order cannot hurry anything: the agent proves by the hold and by
//! its own clock that the time has passed.

use std::collections::BTreeMap;

use crate::model::tags::{doomed_since, set_holds};
use crate::model::{DatasetName, SnapName};
use crate::zfs::{Listed, Zfs, ZfsError, ZfsRead};

/// How many snapshots one command names at most.
const PER_COMMAND: usize = 1000;

/// Adds to a listing what is in the trash. Where the holds cannot be listed, it is unknown.
pub async fn add<Z: ZfsRead>(zfs: &Z, listed: &mut [Listed]) {
    for (dataset, found) in listed {
        let held: Vec<SnapName> = found.held_by_unknown().map(|snapshot| snapshot.name.clone()).collect();
        match zfs.holds(dataset, &held).await {
            Ok(holds) => set_holds(found, holds),
            Err(error) => log::debug!("{dataset}: cannot list the holds: {error}"),
        }
    }
}

/// Adds a hold to snapshots of one dataset, however many they are.
pub async fn hold<Z: Zfs>(zfs: &Z, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
    for part in names.chunks(PER_COMMAND) {
        zfs.hold(tag, dataset, part).await?;
    }
    Ok(())
}

/// The snapshots in the trash by the tags of their holds there. Usually each snapshot has one.
#[must_use]
pub fn by_tag(holds: &[(SnapName, String)], is_wanted: impl Fn(&SnapName) -> bool) -> BTreeMap<String, Vec<SnapName>> {
    let mut by_tag: BTreeMap<String, Vec<SnapName>> = BTreeMap::new();
    for (name, tag) in holds.iter().filter(|(name, tag)| doomed_since(tag).is_some() && is_wanted(name)) {
        by_tag.entry(tag.clone()).or_default().push(name.clone());
    }
    by_tag
}

/// Releases what [`by_tag`] has found.
pub async fn release<Z: Zfs>(
    zfs: &Z,
    dataset: &DatasetName,
    by_tag: &BTreeMap<String, Vec<SnapName>>,
) -> Result<(), ZfsError> {
    for (tag, names) in by_tag {
        for part in names.chunks(PER_COMMAND) {
            zfs.release(tag, dataset, part).await?;
        }
    }
    Ok(())
}
