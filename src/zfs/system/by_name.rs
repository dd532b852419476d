//! Destroys snapshots by name, for a user who may not run scripts.

use crate::model::{DatasetName, SnapName};
use crate::zfs::system::grouped::Grouped;
use crate::zfs::system::runner::Runner;
use crate::zfs::{Depth, Fate, Named, ZfsError, argv};

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
    for batch in argv::comma_lists(&doomed) {
        runner.run(&argv::destroy(dataset, batch)).await?;
    }
    for fate in fates.iter_mut().filter(|fate| **fate == Fate::Spared) {
        *fate = Fate::Destroyed;
    }
    Ok(fates)
}
