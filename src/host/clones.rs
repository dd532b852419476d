//! The clone that follows a dataset's newest snapshot, as this host's `local.json` wants it.
//!
//! The one thing that zsync destroys besides snapshots and its own bookmarks. So a clone is destroyed only if it is
//! known by two things at once: ZFS says that it was made of this dataset, and the property that only zsync sets when
//! it makes one names that dataset's guid. Without `-r`, what has got snapshots or datasets below it stays.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::model::tags::{CLONE, EXCLUDE};
use crate::model::{DatasetInventory, DatasetName, SnapName};
use crate::policy::Local;
use crate::zfs::{Depth, Zfs, ZfsError};

/// Why a clone does not follow.
#[derive(Debug, Error)]
pub enum CloneError {
    /// There is something else of its name.
    #[error(
        "{clone} is not the clone of {dataset} that zsync made, and is left alone: rename it, or change \"clone\" of {dataset} in {file}"
    )]
    Foreign {
        /// The name.
        clone: DatasetName,
        /// What it would be a clone of.
        dataset: DatasetName,
        /// The configuration's file.
        file: String,
    },
    /// Somebody took snapshots of it.
    #[error("the clone {clone} has snapshots, as @{snapshot}, and is left alone: destroy them, and it will follow")]
    HasSnapshots {
        /// The clone.
        clone: DatasetName,
        /// One of them.
        snapshot: SnapName,
    },
    /// ZFS says no.
    #[error("the clone {clone}: {source}")]
    Zfs {
        /// The clone.
        clone: DatasetName,
        /// Why.
        source: ZfsError,
    },
}

/// What is to be done about a clone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Make(SnapName),
    Replace(SnapName),
}

/// Decides; `properties` are those of what has the clone's name.
fn step(
    names: (&DatasetName, &DatasetName),
    file: &str,
    dataset: &DatasetInventory,
    there: Option<(&DatasetInventory, &BTreeMap<String, String>)>,
    delete: bool,
) -> Result<Step, CloneError> {
    let (Some(newest), Some(guid)) = (dataset.newest(), dataset.guid) else { return Ok(Step::Nothing) };
    let Some((found, properties)) = there else { return Ok(Step::Make(newest.name.clone())) };
    let (name, clone) = names;
    let origin = found.origin.as_ref().filter(|origin| origin.dataset == *name);
    let is_ours = properties.get(CLONE).is_some_and(|of| *of == guid.to_string());
    match (origin, found.snapshots.first()) {
        (Some(origin), _) if is_ours && (origin.name == newest.name || !delete) => Ok(Step::Nothing),
        (Some(_), None) if is_ours => Ok(Step::Replace(newest.name.clone())),
        (Some(_), Some(snapshot)) if is_ours => {
            Err(CloneError::HasSnapshots { clone: clone.clone(), snapshot: snapshot.name.clone() })
        }
        _ => Err(CloneError::Foreign { clone: clone.clone(), dataset: name.clone(), file: file.to_owned() }),
    }
}

/// Has the clone of a dataset follow its newest snapshot, if this host's configuration wants one.
pub async fn follow<Z: Zfs>(zfs: &Z, local: &Local, dataset: &DatasetName) -> Result<(), CloneError> {
    let wanted = local.datasets.get(dataset).and_then(|entry| entry.clone.as_ref()).filter(|clone| clone.enable);
    let Some((clone, delete)) = wanted.and_then(|wanted| Some((wanted.name.as_ref()?, wanted.delete))) else {
        return Ok(());
    };
    let failed = |source| CloneError::Zfs { clone: clone.clone(), source };
    let listed: BTreeMap<DatasetName, DatasetInventory> =
        zfs.list(&[dataset.clone(), clone.clone()], Depth::Only).await.map_err(failed)?.into_iter().collect();
    let Some(inventory) = listed.get(dataset) else { return Ok(()) };
    let there = match listed.get(clone) {
        Some(found) => Some((found, zfs.properties(clone).await.map_err(failed)?)),
        None => None,
    };
    let there = there.as_ref().map(|(found, properties)| (*found, properties));
    let newest = match step((dataset, clone), &local.file, inventory, there, delete)? {
        Step::Nothing => return Ok(()),
        Step::Make(newest) => newest,
        Step::Replace(newest) => {
            zfs.destroy_clone(clone).await.map_err(failed)?;
            newest
        }
    };
    let guid = inventory.guid.map(|guid| guid.to_string()).unwrap_or_default();
    // A snapshot of the clone would keep it from being replaced.
    let properties = [(CLONE, guid.as_str()), (EXCLUDE, "on")];
    zfs.make_clone(dataset, &newest, clone, &properties).await.map_err(failed)?;
    log::info!("{clone} is a clone of {dataset}@{newest} now");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_local;
    use crate::sys::runtime;
    use crate::zfs::ZfsRead;
    use crate::zfs::fake::Fake;

    fn ds(text: &str) -> DatasetName {
        text.parse().unwrap()
    }

    fn local(delete: bool) -> Local {
        let text = format!(
            r#"{{ "local_datasets": [ {{ "name": "tank/db",
                "clone": {{ "enable": true, "name": "tank/db_now", "delete": {delete} }} }} ] }}"#
        );
        parse_local("local.json", &text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn fake() -> Fake {
        let fake = Fake::new(1);
        for name in ["tank", "tank/db"] {
            fake.create(&ds(name));
        }
        fake
    }

    fn take(fake: &Fake, dataset: &str, name: &str) {
        runtime::block_on(fake.snapshot(&[ds(dataset)], &name.parse().unwrap())).unwrap();
    }

    fn run(fake: &Fake, delete: bool) -> Result<(), String> {
        runtime::block_on(follow(fake, &local(delete), &ds("tank/db"))).map_err(|error| error.to_string())
    }

    fn origin(fake: &Fake) -> Option<String> {
        let origin = fake.dataset(&ds("tank/db_now"))?.origin?;
        Some(format!("{}@{}", origin.dataset, origin.name))
    }

    #[test]
    fn the_clone_follows_the_newest_snapshot() {
        let fake = fake();
        run(&fake, true).unwrap();
        assert_eq!(origin(&fake), None, "there is nothing to clone");
        for name in ["S_1", "S_2"] {
            take(&fake, "tank/db", name);
            run(&fake, true).unwrap();
            assert_eq!(origin(&fake), Some(format!("tank/db@{name}")));
        }
        let calls = fake.calls().len();
        run(&fake, true).unwrap();
        assert_eq!(fake.calls().len(), calls, "it is the newest one's already");
        let cloned = runtime::block_on(fake.cloned(&ds("tank/db"), &["S_1".parse().unwrap()])).unwrap();
        assert!(cloned.is_empty(), "the older snapshot can be pruned");
        assert!(fake.dataset(&ds("tank/db_now")).unwrap().excluded);
    }

    #[test]
    fn without_delete_it_stays_as_it_is() {
        let fake = fake();
        take(&fake, "tank/db", "S_1");
        run(&fake, false).unwrap();
        take(&fake, "tank/db", "S_2");
        run(&fake, false).unwrap();
        assert_eq!(origin(&fake).as_deref(), Some("tank/db@S_1"));
    }

    #[test]
    fn what_is_not_this_clone_is_never_destroyed() {
        let is_left_alone = |fake: &Fake, why: &str| {
            let before = fake.dataset(&ds("tank/db_now"));
            take(fake, "tank/db", "S_9");
            let error = run(fake, true).unwrap_err();
            assert!(error.contains(why), "{error}");
            assert_eq!(fake.dataset(&ds("tank/db_now")), before);
            assert!(!fake.calls().iter().any(|call| call.starts_with("destroy")), "{:?}", fake.calls());
        };
        // A dataset of somebody's.
        let other = fake();
        other.create(&ds("tank/db_now"));
        is_left_alone(&other, "is not the clone of tank/db");
        // A clone of it that somebody else made.
        let by_hand = fake();
        take(&by_hand, "tank/db", "S_1");
        by_hand.clone_as(&ds("tank/db"), &"S_1".parse().unwrap(), &ds("tank/db_now"));
        is_left_alone(&by_hand, "is not the clone of tank/db");
        // A dataset with the property, but no clone: promoted, or made to look like one.
        let promoted = fake();
        promoted.create(&ds("tank/db_now"));
        let guid = promoted.dataset(&ds("tank/db")).unwrap().guid.unwrap().to_string();
        runtime::block_on(promoted.set(&ds("tank/db_now"), CLONE, &guid)).unwrap();
        is_left_alone(&promoted, "is not the clone of tank/db");
        // Its own, of which somebody took a snapshot.
        let used = fake();
        take(&used, "tank/db", "S_1");
        run(&used, true).unwrap();
        take(&used, "tank/db_now", "by-hand");
        is_left_alone(&used, "has snapshots, as @by-hand");
    }
}
