//! Destroys snapshots by name: for a user who may not run scripts, and where a snapshot is mounted, because `zfs
//! destroy` unmounts it and a script cannot.

use crate::model::{DatasetName, SnapName};
use crate::zfs::system::grouped::Grouped;
use crate::zfs::system::runner::Runner;
use crate::zfs::{Depth, ErrorKind, Fate, Named, ZfsError, argv};

/// Lists the dataset, then at once destroys by name the snapshots that have the right guids. Unlike with a script, a
/// snapshot could be replaced in between.
pub(super) async fn destroy(
    (runner, grouped): (&Runner, &Grouped),
    dataset: &DatasetName,
    victims: &[Named],
    guards: &[Named],
    all: bool,
) -> Result<Vec<Fate>, ZfsError> {
    let listed = grouped.list(std::slice::from_ref(dataset), Depth::Only).await?;
    let existing = listed.into_iter().next().map(|(_, inventory)| inventory.snapshots).unwrap_or_default();
    let exists = |n: &Named| existing.iter().any(|s| s.name == n.name && s.guid == n.guid);
    if !guards.iter().all(exists) {
        return Ok(vec![Fate::Spared; victims.len()]);
    }
    let names: Vec<SnapName> = victims.iter().filter(|n| exists(n)).map(|n| n.name.clone()).collect();
    let cloned = runner.cloned(dataset, &names).await?;
    let fate = |victim: &Named| match existing.iter().find(|s| s.name == victim.name) {
        None => Fate::Gone,
        Some(found) if found.guid != victim.guid => Fate::Another,
        Some(found) if found.userrefs > 0 => Fate::Held,
        Some(_) if cloned.contains(&victim.name) => Fate::Cloned,
        Some(_) => Fate::Spared,
    };
    let mut fates: Vec<Fate> = victims.iter().map(fate).collect();
    if all && fates.iter().any(|fate| !matches!(fate, Fate::Spared | Fate::Gone)) {
        return Ok(fates);
    }
    let doomed: Vec<SnapName> = victims
        .iter()
        .zip(&fates)
        .filter(|(_, fate)| **fate == Fate::Spared)
        .map(|(victim, _)| victim.name.clone())
        .collect();
    let mut busy = Vec::new();
    for batch in argv::comma_lists(&doomed) {
        match runner.run(&argv::destroy(dataset, batch)).await {
            Ok(_) => {}
            Err(error) if error.kind != ErrorKind::Busy => return Err(error),
            // ZFS destroys all snapshots of a command or none.
            Err(_) if all => busy.extend(batch),
            Err(_) => {
                for name in batch {
                    match runner.run(&argv::destroy(dataset, std::slice::from_ref(name))).await {
                        Err(error) if error.kind == ErrorKind::Busy => busy.push(name),
                        destroyed => drop(destroyed?),
                    }
                }
            }
        }
    }
    for (victim, fate) in victims.iter().zip(&mut fates).filter(|(_, fate)| **fate == Fate::Spared) {
        *fate = if busy.contains(&&victim.name) { Fate::Busy } else { Fate::Destroyed };
    }
    Ok(fates)
}
