//! Destroying where no script may be run.

use crate::model::{DatasetName, SnapName};
use crate::zfs::system::{System, batches};
use crate::zfs::{Depth, Fate, Named, ZfsError, ZfsRead, argv};

impl System {
    /// Destroys without a script, for a user who may not run one: looks, then destroys by name at once.
    pub(super) async fn destroy_by_name(
        &self,
        dataset: &DatasetName,
        victims: &[Named],
        guards: &[Named],
        all: bool,
    ) -> Result<Vec<Fate>, ZfsError> {
        let listed = self.list(std::slice::from_ref(dataset), Depth::Only).await?;
        let there = listed.into_iter().next().map(|(_, inventory)| inventory.snapshots).unwrap_or_default();
        let is_there = |n: &Named| there.iter().any(|s| s.name == n.name && s.guid == n.guid);
        if !guards.iter().all(is_there) {
            return Ok(vec![Fate::Spared; victims.len()]);
        }
        let names: Vec<SnapName> = victims.iter().filter(|n| is_there(n)).map(|n| n.name.clone()).collect();
        let cloned = self.cloned(dataset, &names).await?;
        let fate = |victim: &Named| match there.iter().find(|s| s.name == victim.name) {
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
            .map(|(v, _)| v.name.clone())
            .collect();
        for batch in batches(&doomed) {
            self.run(&argv::destroy(dataset, batch)).await?;
        }
        for fate in fates.iter_mut().filter(|fate| **fate == Fate::Spared) {
            *fate = Fate::Destroyed;
        }
        Ok(fates)
    }
}
