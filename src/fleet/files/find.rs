//! Finds the versions of files in the snapshots of several places.

use std::collections::HashSet;
use std::collections::hash_map::{Entry as Slot, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::agent::files::search::{MOST, Searched, VersionKey, search, too_many};
use crate::agent::files::{Open, start};
use crate::fleet::files::{Tree, has_files};
use crate::model::path_pattern::PathPattern;
use crate::model::{Counter, DatasetName, Guid, HostName, SnapName, Snapshot};
use crate::sys::runtime;
use crate::wire::files::{FileFound, FoundKind};

/// When the snapshots were taken that are searched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Period {
    /// At this moment or later.
    pub since: Option<DateTime<Utc>>,
    /// Until this moment.
    pub until: Option<DateTime<Utc>>,
}

/// A snapshot that has a version of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InSnapshot {
    /// The host.
    pub host: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// The name after `@`.
    pub snapshot: SnapName,
    /// When it was taken.
    pub taken: DateTime<Utc>,
}

/// A version of a file: its content did not change between these snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileVersion {
    /// The path below the dataset whose files are wanted. Bytes that are not UTF-8 are replaced.
    pub path: PathBuf,
    /// `file`, `link` or `other`.
    pub kind: &'static str,
    /// The size in bytes.
    pub size: u64,
    /// When it was last written to.
    pub modified: DateTime<Utc>,
    /// In how many of the snapshots it is.
    pub snapshots: usize,
    /// The oldest of them.
    pub oldest: InSnapshot,
    /// The newest of them.
    pub newest: InSnapshot,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Versions {
    /// The versions, by path, the newest first.
    pub versions: Vec<FileVersion>,
    /// How many snapshots were searched.
    pub searched: usize,
    /// What could not be read.
    pub problems: Vec<String>,
    /// Which places let this host read nothing.
    pub notes: Vec<String>,
}

/// Searches the snapshots for files that match. The same snapshot of several copies is searched once. `counter` counts
/// the snapshots.
pub async fn find(
    open: &Open,
    (here, trees): (&HostName, &[Tree]),
    pattern: &PathPattern,
    period: Period,
    counter: &Counter,
) -> Versions {
    let chosen = snapshots(trees, pattern, period);
    counter.expect(chosen.iter().map(|of| of.len() as u64).sum());
    let (mut versions, mut found) = (Versions::default(), HashMap::new());
    for (tree, snapshots) in trees.iter().zip(chosen).filter(|(_, snapshots)| !snapshots.is_empty()) {
        let names: Vec<(DatasetName, SnapName)> =
            snapshots.iter().map(|(dataset, of)| ((*dataset).clone(), of.name.clone())).collect();
        let result = match &tree.remote {
            None => Ok(search_here(open, tree, names, pattern, counter).await),
            Some(remote) => remote
                .search(pattern, &names, counter)
                .await
                .map_err(|refusal| format!("cannot search the snapshots of {}: {}", remote.root, refusal.reason)),
        };
        let Searched { found: of_tree, searched, problems } = match result {
            Ok(searched) => searched,
            Err(problem) => {
                versions.problems.push(problem);
                continue;
            }
        };
        versions.searched += searched;
        versions.problems.extend(problems);
        let host = tree.remote.as_ref().map_or(here, |remote| &remote.root.host);
        let place = |at: usize| {
            let (dataset, of) = snapshots.get(at)?;
            let (host, dataset, snapshot) = (host.clone(), (*dataset).clone(), of.name.clone());
            Some(InSnapshot { host, dataset, snapshot, taken: of.creation })
        };
        for version in of_tree {
            let (Some(newest), Some(oldest)) = (place(version.newest), place(version.oldest)) else { continue };
            add(&mut found, version, newest, oldest);
        }
        if found.len() > MOST {
            versions.problems.push(too_many());
            break;
        }
    }
    versions.versions = found.into_values().collect();
    versions.versions.sort_by(|a, b| (&a.path, b.newest.taken, b.modified).cmp(&(&b.path, a.newest.taken, a.modified)));
    versions
}

async fn search_here(
    open: &Open,
    tree: &Tree,
    snapshots: Vec<(DatasetName, SnapName)>,
    pattern: &PathPattern,
    counter: &Counter,
) -> Searched {
    let (open, root, pattern, counter) = (Arc::clone(open), tree.root.clone(), pattern.clone(), counter.clone());
    runtime::blocking(move || search(&open, &root, &snapshots, &pattern, || counter.add(1))).await
}

/// Adds a version of one place to those of others. The snapshots of the places are different ones.
fn add(found: &mut HashMap<VersionKey, FileVersion>, version: FileFound, newest: InSnapshot, oldest: InSnapshot) {
    match found.entry(VersionKey::from(&version)) {
        Slot::Occupied(mut known) => {
            let known = known.get_mut();
            known.snapshots += version.snapshots;
            if newest.taken > known.newest.taken {
                known.newest = newest;
            }
            if oldest.taken < known.oldest.taken {
                known.oldest = oldest;
            }
        }
        Slot::Vacant(new) => {
            let FileFound { path, kind, size, written, snapshots, .. } = version;
            let kind = match kind {
                FoundKind::File => "file",
                FoundKind::Link => "link",
                FoundKind::Other => "other",
            };
            let modified = DateTime::from_timestamp(written.0, 0).unwrap_or_default();
            new.insert(FileVersion { path, kind, size, modified, snapshots, oldest, newest });
        }
    }
}

/// The snapshots to search in each tree, newest first, each once.
fn snapshots<'a>(
    trees: &'a [Tree],
    pattern: &PathPattern,
    period: Period,
) -> Vec<Vec<(&'a DatasetName, &'a Snapshot)>> {
    let mut all: Vec<(usize, &DatasetName, &Snapshot)> = Vec::new();
    let mut seen: HashSet<Guid> = HashSet::new();
    for (at, tree) in trees.iter().enumerate() {
        for (dataset, found) in tree.datasets.iter().filter(has_files) {
            if start(pattern, dataset.below(&tree.root).unwrap_or_default()).is_over() {
                continue;
            }
            for snapshot in &found.snapshots {
                let is_late = period.since.is_none_or(|since| snapshot.creation >= since);
                let is_early = period.until.is_none_or(|until| snapshot.creation <= until);
                if is_late && is_early && seen.insert(snapshot.guid) {
                    all.push((at, dataset, snapshot));
                }
            }
        }
    }
    all.sort_by_key(|(_, _, snapshot)| std::cmp::Reverse((snapshot.creation, snapshot.guid)));
    let mut chosen = vec![Vec::new(); trees.len()];
    for (at, dataset, snapshot) in all {
        if let Some(of_tree) = chosen.get_mut(at) {
            of_tree.push((dataset, snapshot));
        }
    }
    chosen
}
