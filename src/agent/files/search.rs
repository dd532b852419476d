//! Finds the versions of files in snapshots.

use std::collections::HashSet;
use std::collections::hash_map::{Entry as Slot, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};

use crate::agent::files::{Open, start, unreadable};
use crate::model::path_pattern::{Matched, PathPattern};
use crate::model::{DatasetName, SnapName};
use crate::sys::tree::{Entry, Folder, Visit, walk};
use crate::wire::files::{FileFound, FoundKind};
use crate::zfs::ErrorKind;

/// How many versions are found at most.
pub const MOST: usize = 200_000;
/// How many problems are kept at most.
pub const MOST_PROBLEMS: usize = 100;

/// What was found.
#[derive(Debug, Default)]
pub struct Searched {
    /// The versions. The numbers of their snapshots are those in the list that was searched.
    pub found: Vec<FileFound>,
    /// How many snapshots were searched.
    pub searched: usize,
    /// What could not be read.
    pub problems: Vec<String>,
}

/// What tells the versions of files apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VersionKey {
    path: PathBuf,
    inode: u64,
    size: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl From<&FileFound> for VersionKey {
    fn from(found: &FileFound) -> Self {
        let FileFound { path, inode, size, written, changed, .. } = found;
        Self { path: path.clone(), inode: *inode, size: *size, written: *written, changed: *changed }
    }
}

/// Says that too many versions match.
#[must_use]
pub fn too_many() -> String {
    format!("more than {MOST} versions match; hint: narrow the pattern, or the time with --since and --until")
}

/// Searches snapshots, the newest first, for files that match. The snapshots are of `root` or of datasets below it.
/// `searched` is told of each snapshot that was searched.
pub fn search(
    open: &Open,
    root: &DatasetName,
    snapshots: &[(DatasetName, SnapName)],
    pattern: &PathPattern,
    mut searched: impl FnMut(),
) -> Searched {
    let mut collector = Collector { pattern, at: 0, name: String::new(), found: HashMap::new(), problems: Vec::new() };
    let mut count = 0;
    let mut unusable: HashSet<&DatasetName> = HashSet::new();
    for (at, (dataset, name)) in snapshots.iter().enumerate() {
        let below = dataset.below(root).unwrap_or_default();
        let of = start(pattern, below);
        if of.is_over() || unusable.contains(dataset) {
            continue;
        }
        let folder = match open(dataset, name) {
            Ok(folder) => folder,
            // It was destroyed since it was listed.
            Err(error) if error.kind == ErrorKind::NotFound => continue,
            Err(error) => {
                unusable.insert(dataset);
                collector.add_problem(unreadable(dataset, &error));
                continue;
            }
        };
        count += 1;
        (collector.at, collector.name) = (at, dataset.at(name));
        if let Err(error) = walk(&folder, PathBuf::from(below), &of, &mut collector) {
            collector.add_problem(format!("cannot search {}: {error}", dataset.at(name)));
            break;
        }
        searched();
    }
    let Collector { found, problems, .. } = collector;
    Searched { found: found.into_values().collect(), searched: count, problems }
}

/// The part of a time below a second, whose type differs between systems.
fn nanoseconds(of: impl TryInto<i64>) -> i64 {
    of.try_into().unwrap_or_default()
}

struct Collector<'a> {
    pattern: &'a PathPattern,
    /// The snapshot that is searched.
    at: usize,
    name: String,
    found: HashMap<VersionKey, FileFound>,
    problems: Vec<String>,
}

impl Collector<'_> {
    fn add_problem(&mut self, problem: String) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// A version that was seen in no newer snapshot.
    fn new_version(&self, path: PathBuf, stat: &Stat) -> FileFound {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FoundKind::File,
            FileType::Symlink => FoundKind::Link,
            _ => FoundKind::Other,
        };
        FileFound {
            path,
            kind,
            inode: stat.st_ino,
            size: stat.st_size.unsigned_abs(),
            written: (stat.st_mtime, nanoseconds(stat.st_mtime_nsec)),
            changed: (stat.st_ctime, nanoseconds(stat.st_ctime_nsec)),
            snapshots: 1,
            newest: self.at,
            oldest: self.at,
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
        if !of.is_match() {
            return Ok(());
        }
        let version = self.new_version(entry.path(), &entry.stat);
        let count = self.found.len();
        match self.found.entry(VersionKey::from(&version)) {
            Slot::Occupied(mut known) => {
                let known = known.get_mut();
                known.snapshots += 1;
                known.oldest = version.oldest;
            }
            Slot::Vacant(_) if count >= MOST => return Err(io::Error::other(too_many())),
            Slot::Vacant(new) => drop(new.insert(version)),
        }
        Ok(())
    }

    fn leave(&mut self, _: &Folder) -> io::Result<()> {
        Ok(())
    }

    fn problem(&mut self, path: &Path, error: io::Error) -> io::Result<()> {
        let at = &self.name;
        let problem = format!("cannot read {path:?} in {at}: {error}");
        self.add_problem(problem);
        Ok(())
    }
}
