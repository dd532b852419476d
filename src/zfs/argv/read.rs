//! Commands that only read.

use crate::model::{DatasetName, SnapName};
use crate::zfs::Depth;
use crate::zfs::argv::words::{full_names, words};

/// The columns of a listing of datasets, in the order in which `parse::datasets` reads them.
///
/// The properties of zsync come last, because anybody who may set them can write anything into them.
const DATASET_COLUMNS: &str = "name,type,guid,written,encryption,receive_resume_token,origin,zsync:exclude,zsync:flags";
/// The columns of a listing of snapshots and bookmarks. With further columns, or with `-o clones`, ZFS leaves its fast
/// path and is slower by one to three orders of magnitude.
const SNAPSHOT_COLUMNS: &str = "name,guid,createtxg,creation,userrefs";

pub(crate) fn version() -> Vec<String> {
    words(&["version"])
}

/// Lists filesystems and volumes.
pub(crate) fn list_datasets(roots: &[DatasetName], depth: Depth) -> Vec<String> {
    let mut argv = words(&["list", "-Hp", "-t", "filesystem,volume", "-o", DATASET_COLUMNS]);
    argv.extend(words(match depth {
        Depth::Only | Depth::Bare | Depth::Around => &["-d", "0"],
        Depth::Recursive => &["-r"],
    }));
    argv.extend(roots.iter().map(ToString::to_string));
    argv
}

/// Lists datasets with everything below them, each with the time when its snapshots last changed. OpenZFS has that
/// property from 2.2 on.
pub(crate) fn list_changes(roots: &[DatasetName]) -> Vec<String> {
    let columns = format!("{DATASET_COLUMNS},snapshots_changed");
    let mut argv = words(&["list", "-Hp", "-t", "filesystem,volume", "-o", &columns, "-r"]);
    argv.extend(roots.iter().map(ToString::to_string));
    argv
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
pub(crate) fn holds(dataset: &DatasetName, snapshots: &[SnapName]) -> Vec<String> {
    let mut argv = words(&["holds", "-H"]);
    argv.extend(full_names(dataset, snapshots));
    argv
}

/// Gets how much was written to datasets since a snapshot.
pub(crate) fn written_since(datasets: &[DatasetName], name: &SnapName) -> Vec<String> {
    let mut argv = words(&["get", "-Hp", "-o", "name,value"]);
    argv.push(format!("written@{name}"));
    argv.extend(datasets.iter().map(ToString::to_string));
    argv
}

/// Gets the properties that were set on a dataset itself, or received with it.
pub(crate) fn properties(dataset: &DatasetName) -> Vec<String> {
    let mut argv = words(&["get", "-Hp", "-s", "local,received", "-o", "property,value", "all"]);
    argv.push(dataset.to_string());
    argv
}
