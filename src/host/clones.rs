//! Maintains the clone of a dataset's newest snapshot, if `local.json` of this host asks for one.
//!
//! Clones are the only thing that zsync destroys besides snapshots and its own bookmarks. A clone is destroyed only if
//! two conditions identify it: according to ZFS, its origin is a snapshot of this dataset, and the property that zsync
//! sets when it makes a clone holds the guid of this dataset. It is destroyed without `-r`, so a clone that has
//! snapshots or datasets below it is never destroyed.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::model::tags::{CLONE, EXCLUDE};
use crate::model::{DatasetInventory, DatasetName, SnapName};
use crate::policy::Local;
use crate::zfs::{Depth, Zfs, ZfsError};

/// Why a clone cannot be updated.
#[derive(Debug, Error)]
pub enum CloneError {
    /// Another dataset has the name of the clone.
    #[error(
        "cannot update {clone}: it is not the clone of {dataset} that zsync made; hint: rename it, or change \
         \"clone\" of {dataset} in {file}"
    )]
    Foreign {
        /// The name of the clone.
        clone: DatasetName,
        /// The dataset that it should be a clone of.
        dataset: DatasetName,
        /// The path of local.json.
        file: String,
    },
    /// The clone has snapshots.
    #[error("cannot update the clone {clone}: it has snapshots, such as @{snapshot}; hint: destroy them")]
    HasSnapshots {
        /// The clone.
        clone: DatasetName,
        /// One of its snapshots.
        snapshot: SnapName,
    },
    /// A command of ZFS failed.
    #[error("cannot update the clone {clone}: {source}")]
    Zfs {
        /// The clone.
        clone: DatasetName,
        /// The error of ZFS.
        source: ZfsError,
    },
}

/// How to update a clone, and from which snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
enum CloneUpdate {
    Nothing,
    Make(SnapName),
    Replace(SnapName),
}

/// Decides how to update the clone of a dataset; `existing` is the dataset that has the name of the clone, with its
/// properties.
fn decide(
    (name, clone): (&DatasetName, &DatasetName),
    file: &str,
    dataset: &DatasetInventory,
    existing: Option<(&DatasetInventory, &BTreeMap<String, String>)>,
    delete: bool,
) -> Result<CloneUpdate, CloneError> {
    let (Some(newest), Some(guid)) = (dataset.newest(), dataset.guid) else { return Ok(CloneUpdate::Nothing) };
    let Some((found, properties)) = existing else { return Ok(CloneUpdate::Make(newest.name.clone())) };
    let origin = found.origin.as_ref().filter(|origin| origin.dataset == *name);
    let is_ours = properties.get(CLONE).is_some_and(|of| *of == guid.to_string());
    match (origin, found.snapshots.first()) {
        (Some(origin), _) if is_ours && (origin.name == newest.name || !delete) => Ok(CloneUpdate::Nothing),
        (Some(_), None) if is_ours => Ok(CloneUpdate::Replace(newest.name.clone())),
        (Some(_), Some(snapshot)) if is_ours => {
            Err(CloneError::HasSnapshots { clone: clone.clone(), snapshot: snapshot.name.clone() })
        }
        _ => Err(CloneError::Foreign { clone: clone.clone(), dataset: name.clone(), file: file.to_owned() }),
    }
}

/// Makes or replaces the clone of a dataset's newest snapshot, if local.json asks for one. Fails if the clone cannot be
/// replaced, because it is another dataset or has snapshots.
pub async fn follow<Z: Zfs>(zfs: &Z, local: &Local, dataset: &DatasetName) -> Result<(), CloneError> {
    let wanted = local.datasets.get(dataset).and_then(|entry| entry.clone.as_ref()).filter(|clone| clone.enable);
    let Some((clone, delete)) = wanted.and_then(|wanted| Some((wanted.name.as_ref()?, wanted.delete))) else {
        return Ok(());
    };
    let failed = |source| CloneError::Zfs { clone: clone.clone(), source };
    let listed: BTreeMap<DatasetName, DatasetInventory> =
        zfs.list(&[dataset.clone(), clone.clone()], Depth::Only).await.map_err(failed)?.into_iter().collect();
    let Some(inventory) = listed.get(dataset) else { return Ok(()) };
    let existing = match listed.get(clone) {
        Some(found) => Some((found, zfs.properties(clone).await.map_err(failed)?)),
        None => None,
    };
    let existing = existing.as_ref().map(|(found, properties)| (*found, properties));
    let newest = match decide((dataset, clone), &local.file, inventory, existing, delete)? {
        CloneUpdate::Nothing => return Ok(()),
        CloneUpdate::Make(newest) => newest,
        CloneUpdate::Replace(newest) => {
            zfs.destroy_clone(clone).await.map_err(failed)?;
            newest
        }
    };
    let guid = inventory.guid.map(|guid| guid.to_string()).unwrap_or_default();
    // A snapshot of the clone would keep it from being replaced.
    let properties = [(CLONE, guid.as_str()), (EXCLUDE, "on")];
    zfs.make_clone(dataset, &newest, clone, &properties).await.map_err(failed)?;
    log::info!("made {clone}, a clone of {dataset}@{newest}");
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
    fn follow_replaces_the_clone_after_each_snapshot() {
        let fake = fake();
        run(&fake, true).unwrap();
        assert_eq!(origin(&fake), None, "no snapshot to clone");
        for name in ["S_1", "S_2"] {
            take(&fake, "tank/db", name);
            run(&fake, true).unwrap();
            assert_eq!(origin(&fake), Some(format!("tank/db@{name}")));
        }
        let calls = fake.calls().len();
        run(&fake, true).unwrap();
        assert_eq!(fake.calls().len(), calls, "it is up to date already");
        let cloned = runtime::block_on(fake.cloned(&ds("tank/db"), &["S_1".parse().unwrap()])).unwrap();
        assert!(cloned.is_empty(), "the older snapshot can be pruned");
        assert!(fake.dataset(&ds("tank/db_now")).unwrap().excluded);
    }

    #[test]
    fn follow_keeps_the_clone_without_delete() {
        let fake = fake();
        take(&fake, "tank/db", "S_1");
        run(&fake, false).unwrap();
        take(&fake, "tank/db", "S_2");
        run(&fake, false).unwrap();
        assert_eq!(origin(&fake).as_deref(), Some("tank/db@S_1"));
    }

    #[test]
    fn follow_never_destroys_anything_else() {
        let is_left_alone = |fake: &Fake, why: &str| {
            let before = fake.dataset(&ds("tank/db_now"));
            take(fake, "tank/db", "S_9");
            let error = run(fake, true).unwrap_err();
            assert!(error.contains(why), "{error}");
            assert_eq!(fake.dataset(&ds("tank/db_now")), before);
            assert!(!fake.calls().iter().any(|call| call.starts_with("destroy")), "{:?}", fake.calls());
        };
        // Another dataset.
        let other = fake();
        other.create(&ds("tank/db_now"));
        is_left_alone(&other, "is not the clone of tank/db");
        // A clone of this dataset that zsync did not make.
        let by_hand = fake();
        take(&by_hand, "tank/db", "S_1");
        by_hand.clone_as(&ds("tank/db"), &"S_1".parse().unwrap(), &ds("tank/db_now"));
        is_left_alone(&by_hand, "is not the clone of tank/db");
        // A dataset that has the property, but is not a clone, because it was promoted.
        let promoted = fake();
        promoted.create(&ds("tank/db_now"));
        let guid = promoted.dataset(&ds("tank/db")).unwrap().guid.unwrap().to_string();
        runtime::block_on(promoted.set(&ds("tank/db_now"), CLONE, &guid)).unwrap();
        is_left_alone(&promoted, "is not the clone of tank/db");
        // The right clone, but with a snapshot.
        let used = fake();
        take(&used, "tank/db", "S_1");
        run(&used, true).unwrap();
        take(&used, "tank/db_now", "by-hand");
        is_left_alone(&used, "has snapshots, such as @by-hand");
    }
}
