//! Finds the versions of files in all snapshots.

use std::collections::hash_map::{Entry as Slot, HashMap};
use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustix::fs::FileType;
use serde::Serialize;

use crate::fleet::files::{Open, Tree, has_files, start, unreadable};
use crate::model::path_pattern::{Matched, PathPattern};
use crate::model::{DatasetName, Guid, SnapName, Snapshot};
use crate::sys::tree::{Entry, Folder, Visit, walk};
use crate::zfs::ErrorKind;

/// How many versions are found at most.
const MOST: usize = 200_000;
/// How many problems are kept at most.
const MOST_PROBLEMS: usize = 100;

/// When the snapshots were taken that are searched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Period {
    /// At this moment or later.
    pub since: Option<DateTime<Utc>>,
    /// Until this moment.
    pub until: Option<DateTime<Utc>>,
}

/// A snapshot on this host that has a version of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InSnapshot {
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
}

/// What stays the same as long as nobody writes to a file, on its source as on all copies.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Version {
    path: PathBuf,
    inode: u64,
    size: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

/// Searches the snapshots for files that match. The same snapshot of several copies is searched once.
pub fn find(open: &Open, trees: &[Tree], pattern: &PathPattern, period: Period) -> Versions {
    let mut collector = Collector { pattern, here: None, found: HashMap::new(), problems: Vec::new() };
    let mut searched = 0;
    let mut unusable: HashSet<&DatasetName> = HashSet::new();
    for (dataset, below, snapshot) in snapshots(trees, period) {
        let of = start(pattern, below);
        if of.is_over() || unusable.contains(dataset) {
            continue;
        }
        let root = match open(dataset, &snapshot.name) {
            Ok(root) => root,
            // It was destroyed since it was listed.
            Err(error) if error.kind == ErrorKind::NotFound => continue,
            Err(error) => {
                unusable.insert(dataset);
                collector.add_problem(unreadable(dataset, &error));
                continue;
            }
        };
        searched += 1;
        let place = InSnapshot { dataset: dataset.clone(), snapshot: snapshot.name.clone(), taken: snapshot.creation };
        collector.here = Some(place);
        if let Err(error) = walk(&root, PathBuf::from(below), &of, &mut collector) {
            collector.add_problem(format!("cannot search {}: {error}", dataset.at(&snapshot.name)));
            break;
        }
    }
    let Collector { found, problems, .. } = collector;
    let mut versions: Vec<FileVersion> = found.into_values().collect();
    versions.sort_by(|a, b| (&a.path, b.newest.taken, b.modified).cmp(&(&b.path, a.newest.taken, a.modified)));
    Versions { versions, searched, problems }
}

/// The snapshots to search, newest first, each once.
fn snapshots(trees: &[Tree], period: Period) -> Vec<(&DatasetName, &str, &Snapshot)> {
    let mut all: BTreeMap<(DateTime<Utc>, Guid), (&DatasetName, &str, &Snapshot)> = BTreeMap::new();
    for tree in trees {
        for (dataset, found) in tree.datasets.iter().filter(has_files) {
            let below = dataset.below(&tree.root).unwrap_or_default();
            for snapshot in &found.snapshots {
                let is_late = period.since.is_none_or(|since| snapshot.creation >= since);
                if is_late && period.until.is_none_or(|until| snapshot.creation <= until) {
                    all.entry((snapshot.creation, snapshot.guid)).or_insert((dataset, below, snapshot));
                }
            }
        }
    }
    all.into_values().rev().collect()
}

/// The part of a time below a second, whose type differs between systems.
fn nanoseconds(of: impl TryInto<i64>) -> i64 {
    of.try_into().unwrap_or_default()
}

struct Collector<'a> {
    pattern: &'a PathPattern,
    /// The snapshot that is searched.
    here: Option<InSnapshot>,
    found: HashMap<Version, FileVersion>,
    problems: Vec<String>,
}

impl Collector<'_> {
    fn add_problem(&mut self, problem: String) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(problem);
        }
    }
}

impl Visit for Collector<'_> {
    type Selection = Matched;

    fn names(&self, of: &Matched) -> Option<Vec<OsString>> {
        self.pattern.names(of).map(|names| names.into_iter().map(OsString::from).collect())
    }

    fn select(&self, of: &Matched, name: &OsStr) -> Option<Matched> {
        Some(self.pattern.step(of, name)).filter(|matched| !matched.is_over())
    }

    fn enter(&mut self, _: &Folder, _: &Matched) -> io::Result<()> {
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>, of: &Matched) -> io::Result<()> {
        let (true, Some(here)) = (of.is_match(), self.here.clone()) else { return Ok(()) };
        let stat = &entry.stat;
        let version = Version {
            path: entry.path(),
            inode: stat.st_ino,
            size: stat.st_size.unsigned_abs(),
            written: (stat.st_mtime, nanoseconds(stat.st_mtime_nsec)),
            changed: (stat.st_ctime, nanoseconds(stat.st_ctime_nsec)),
        };
        let count = self.found.len();
        match self.found.entry(version) {
            Slot::Occupied(mut known) => {
                let known = known.get_mut();
                known.snapshots += 1;
                known.oldest = here;
            }
            Slot::Vacant(_) if count >= MOST => {
                return Err(io::Error::other(format!(
                    "more than {MOST} versions match; hint: narrow the pattern, or the time with --since and --until"
                )));
            }
            Slot::Vacant(new) => {
                let version = new.key();
                let kind = match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile => "file",
                    FileType::Symlink => "link",
                    _ => "other",
                };
                let (path, size) = (version.path.clone(), version.size);
                let modified = DateTime::from_timestamp(version.written.0, 0).unwrap_or_default();
                let oldest = here.clone();
                new.insert(FileVersion { path, kind, size, modified, snapshots: 1, oldest, newest: here });
            }
        }
        Ok(())
    }

    fn leave(&mut self, _: &Folder) -> io::Result<()> {
        Ok(())
    }

    fn problem(&mut self, path: &Path, error: io::Error) {
        let at = self.here.as_ref().map(|here| here.dataset.at(&here.snapshot)).unwrap_or_default();
        self.add_problem(format!("cannot read {path:?} in {at}: {error}"));
    }
}
