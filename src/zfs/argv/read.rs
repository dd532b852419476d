//! Builds the arguments of commands that only read.

use crate::model::tags::ARRIVED;
use crate::model::{DatasetName, SnapName};
use crate::zfs::argv::words::{full_names, words};
use crate::zfs::{DatasetColumns, Depth};

/// The columns of a listing of datasets, in the order in which `parse::datasets` reads them.
const DATASET_COLUMNS: &str = "name,type,guid,written,encryptionroot,receive_resume_token,origin";
/// The user properties of zsync. Anybody who may set them can write anything into them, even tabs, newlines and whole
/// fake lines. Therefore the name is the last column as well: a fake line ends with the name of the dataset that has
/// the value. It is recognised because it begins with another name, or because that dataset is listed twice.
const USER_COLUMNS: &str = "zsync:exclude,zsync:flags,name";
/// The columns of a listing of snapshots and bookmarks. With further columns, or with `-o clones`, ZFS leaves its fast
/// path and is slower by one to three orders of magnitude.
const SNAPSHOT_COLUMNS: &str = "name,guid,createtxg,creation,userrefs,numclones";

pub(crate) fn version() -> Vec<String> {
    words(&["version"])
}

/// Lists filesystems and volumes.
pub(crate) fn list_datasets(roots: &[DatasetName], depth: Depth, columns: DatasetColumns) -> Vec<String> {
    let mut shown = DATASET_COLUMNS.to_owned();
    if columns.changed {
        shown.push_str(",snapshots_changed");
    }
    if columns.user {
        shown = format!("{shown},{USER_COLUMNS}");
    }
    list_columns(roots, depth, &shown)
}

/// Lists zsync's user properties on filesystems and volumes.
pub(crate) fn list_user_properties(roots: &[DatasetName], depth: Depth) -> Vec<String> {
    list_columns(roots, depth, &format!("name,{USER_COLUMNS}"))
}

fn list_columns(roots: &[DatasetName], depth: Depth, columns: &str) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-t", "filesystem,volume", "-o", columns]);
    argv.extend(words(match depth {
        Depth::Only | Depth::Bare | Depth::Around => &["-d", "0"],
        Depth::Recursive => &["-r"],
    }));
    argv.extend(roots.iter().map(ToString::to_string));
    argv
}

/// Lists the dataset of a pool.
pub(crate) fn list_pool(pool: &DatasetName) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-o", "name"]);
    argv.push(pool.to_string());
    argv
}

/// Gets one user property of a dataset.
pub(crate) fn user_property(dataset: &DatasetName, property: &str) -> Vec<String> {
    let mut argv = words(&["get", "-Hp", "-o", "value", property]);
    argv.push(dataset.to_string());
    argv
}

/// Lists a dataset and everything below it with its encryption root and its origin.
pub(crate) fn list_keys(root: &DatasetName) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-r", "-t", "filesystem,volume", "-o", "name,encryptionroot,origin"]);
    argv.push(root.to_string());
    argv
}

/// Lists datasets with their encryption roots, and whether their keys are loaded.
pub(crate) fn list_key_states(roots: &[DatasetName], depth: Depth) -> Vec<String> {
    list_columns(roots, depth, "name,encryptionroot,keystatus")
}

/// Lists snapshots and bookmarks.
pub(crate) fn list_snapshots(roots: &[DatasetName], depth: Depth) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-t", "snapshot,bookmark", "-o", SNAPSHOT_COLUMNS]);
    argv.extend(words(match depth {
        Depth::Only | Depth::Bare | Depth::Around => &["-d", "1"],
        Depth::Recursive => &["-r"],
    }));
    argv.extend(roots.iter().map(ToString::to_string));
    argv
}

/// Lists one bookmark.
pub(crate) fn list_bookmark(dataset: &DatasetName, bookmark: &SnapName) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-t", "bookmark", "-o", SNAPSHOT_COLUMNS]);
    argv.push(format!("{dataset}#{bookmark}"));
    argv
}

/// Lists the clones of snapshots.
pub(crate) fn list_clones(dataset: &DatasetName, snapshots: &[SnapName]) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-t", "snapshot", "-o", "name,clones"]);
    argv.extend(full_names(dataset, snapshots));
    argv
}

/// Lists the holds on snapshots.
pub(crate) fn holds<'a>(snapshots: impl IntoIterator<Item = (&'a DatasetName, &'a SnapName)>) -> Vec<String> {
    let mut argv = words(&["holds", "-H"]);
    argv.extend(snapshots.into_iter().map(|(dataset, name)| dataset.at(name)));
    argv
}

/// Gets how many bytes each of these snapshots alone references.
pub(crate) fn used<'a>(snapshots: impl IntoIterator<Item = (&'a DatasetName, &'a SnapName)>) -> Vec<String> {
    let mut argv = words(&["get", "-Hp", "-o", "name,value", "used"]);
    argv.extend(snapshots.into_iter().map(|(dataset, name)| dataset.at(name)));
    argv
}

/// Gets when the snapshots of a dataset arrived, where this host itself recorded it.
pub(crate) fn arrivals(dataset: &DatasetName) -> Vec<String> {
    let mut argv = words(&["get", "-Hp", "-d", "1", "-t", "snapshot", "-s", "local", "-o", "name,value", ARRIVED]);
    argv.push(dataset.to_string());
    argv
}

/// Gets how much was written to datasets since a snapshot.
pub(crate) fn written_since(datasets: &[DatasetName], name: &SnapName) -> Vec<String> {
    let mut argv = words(&["get", "-Hp", "-o", "name,value"]);
    argv.push(format!("written@{name}"));
    argv.extend(datasets.iter().map(ToString::to_string));
    argv
}

/// Gets the properties that were set on a dataset itself, or received with it. As with [`USER_COLUMNS`], the name is
/// the first column and the last.
pub(crate) fn properties(dataset: &DatasetName) -> Vec<String> {
    let mut argv = words(&["get", "-Hp", "-s", "local,received", "-o", "property,value,property", "all"]);
    argv.push(dataset.to_string());
    argv
}

/// Gets the properties that were set on these datasets themselves, or received with them. The columns around the value
/// show whether a value has several lines.
pub(crate) fn properties_of(datasets: &[DatasetName]) -> Vec<String> {
    let fields = "name,property,value,property,name";
    let mut argv = words(&["get", "-Hp", "-s", "local,received", "-t", "filesystem,volume", "-o", fields, "all"]);
    argv.extend(datasets.iter().map(ToString::to_string));
    argv
}

/// Gets one property if it was set on the dataset itself, or received with it.
pub(crate) fn own_property(dataset: &DatasetName, property: &str) -> Vec<String> {
    let mut argv = words(&["get", "-Hp", "-s", "local,received", "-o", "value", property]);
    argv.push(dataset.to_string());
    argv
}
