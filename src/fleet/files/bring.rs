//! Restores files from the newest snapshot that was taken until a moment.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use crate::fleet::files::{Open, Tree, has_files, start, unreadable};
use crate::model::path_pattern::{Matched, PathPattern};
use crate::model::{DatasetName, Snapshot, in_utc};
use crate::sys::tree::{Copied, Copier, Entry, Folder, Visit, walk};

/// Which files are wanted.
#[derive(Clone, Debug)]
pub struct WantedFiles {
    /// The patterns of their paths; one has to match.
    pub patterns: Vec<PathPattern>,
    /// The newest snapshot is used that was taken until this moment; `None`: the newest of all.
    pub at: Option<DateTime<Utc>>,
}

/// What was restored.
#[derive(Debug, Default)]
pub struct Brought {
    /// From each snapshot, what was restored.
    pub from: Vec<(String, Copied)>,
    /// What went wrong.
    pub problems: Vec<String>,
}

/// Restores files into a folder. Nothing that exists there is changed. For each dataset below the one whose files are
/// wanted, the place is used that has the newest snapshot.
pub fn bring(open: &Open, trees: &[Tree], wanted: &WantedFiles, into: &OwnedFd) -> Brought {
    let mut brought = Brought::default();
    let candidates = candidates(trees, wanted.at);
    if candidates.is_empty() {
        let until = wanted.at.map(|at| format!(" that was taken until {}", in_utc(at))).unwrap_or_default();
        brought.problems.push(format!("there is no snapshot with files{until}"));
    }
    let into = match into.try_clone() {
        Ok(into) => into,
        Err(error) => {
            brought.problems.push(format!("cannot restore files: {error}"));
            return brought;
        }
    };
    let mut copier = Copier::new(into);
    for (below, snapshots) in candidates {
        let of: Vec<Matched> = wanted.patterns.iter().map(|pattern| start(pattern, below)).collect();
        if of.iter().all(Matched::is_over) {
            continue;
        }
        for (dataset, snapshot) in snapshots {
            let root = match open(dataset, &snapshot.name) {
                Ok(root) => root,
                Err(error) => {
                    // Another place may have the same files.
                    brought.problems.push(unreadable(dataset, &error));
                    continue;
                }
            };
            let name = dataset.at(&snapshot.name);
            copier.next_source();
            let done = copy(&mut copier, &root, below, &of, &wanted.patterns);
            let mut copied = std::mem::take(&mut copier.copied);
            brought.problems.append(&mut copied.problems);
            if copied.files > 0 {
                brought.from.push((name.clone(), copied));
            }
            if let Err(error) = done {
                brought.problems.push(format!("cannot restore more files from {name}: {error}"));
                return brought;
            }
            break;
        }
    }
    if brought.from.is_empty() && brought.problems.is_empty() {
        let patterns: String = wanted.patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        brought.problems.push(format!(
            "nothing was restored: no file matches {patterns}; hint: zsync find shows in which snapshots there are such \
             files"
        ));
    }
    brought
}

/// The datasets by their names below the wanted one, each with the newest snapshot of every place, the newest first.
fn candidates(trees: &[Tree], at: Option<DateTime<Utc>>) -> BTreeMap<&str, Vec<(&DatasetName, &Snapshot)>> {
    let mut candidates: BTreeMap<&str, Vec<(&DatasetName, &Snapshot)>> = BTreeMap::new();
    for tree in trees {
        for (dataset, found) in tree.datasets.iter().filter(has_files) {
            let newest = found.snapshots.iter().rev().find(|s| at.is_none_or(|at| s.creation <= at));
            let below = dataset.below(&tree.root).unwrap_or_default();
            candidates.entry(below).or_default().extend(newest.map(|snapshot| (dataset, snapshot)));
        }
    }
    candidates.retain(|_, snapshots| !snapshots.is_empty());
    // The places come in the order of preference, which the sort keeps.
    candidates.values_mut().for_each(|snapshots| snapshots.sort_by_key(|(_, s)| std::cmp::Reverse(s.creation)));
    candidates
}

/// Copies the files of one snapshot.
fn copy(
    copier: &mut Copier,
    root: &OwnedFd,
    below: &str,
    of: &Vec<Matched>,
    patterns: &[PathPattern],
) -> io::Result<()> {
    let names: Vec<&str> = below.split('/').filter(|name| !name.is_empty()).collect();
    let above = names.len().saturating_sub(1);
    names[..above].iter().for_each(|name| copier.enter(OsStr::new(name)));
    let path = PathBuf::from(below);
    let mut visitor = Visitor { copier, patterns, root: path.clone() };
    let walked = walk(root, path, of, &mut visitor);
    for _ in 0..above {
        copier.leave(None)?;
    }
    walked
}

struct Visitor<'a> {
    copier: &'a mut Copier,
    patterns: &'a [PathPattern],
    /// The path of the snapshot's own folder.
    root: PathBuf,
}

impl Visitor<'_> {
    /// Whether a folder is the one into which everything is restored.
    fn is_target(&self, folder: &Folder) -> bool {
        folder.path == self.root && self.root.as_os_str().is_empty()
    }
}

impl Visit for Visitor<'_> {
    type Selection = Vec<Matched>;

    fn names(&self, of: &Vec<Matched>) -> Option<Vec<OsString>> {
        let named = self.patterns.iter().zip(of).map(|(pattern, matched)| pattern.names(matched));
        let named: Vec<Vec<&str>> = named.collect::<Option<_>>()?;
        let mut names: Vec<OsString> = named.into_iter().flatten().map(OsString::from).collect();
        names.sort();
        names.dedup();
        Some(names)
    }

    fn select(&self, of: &Vec<Matched>, name: &OsStr) -> Option<Vec<Matched>> {
        let steps = self.patterns.iter().zip(of).map(|(pattern, matched)| pattern.step(matched, name));
        Some(steps.collect()).filter(|matched: &Vec<Matched>| !matched.iter().all(Matched::is_over))
    }

    fn enter(&mut self, folder: &Folder, of: &Vec<Matched>) -> io::Result<()> {
        if self.is_target(folder) {
            return Ok(());
        }
        self.copier.enter(folder.path.file_name().unwrap_or_default());
        if of.iter().any(Matched::is_match) {
            self.copier.need_folder()?;
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>, of: &Vec<Matched>) -> io::Result<()> {
        if of.iter().any(Matched::is_match) { self.copier.file(entry) } else { Ok(()) }
    }

    fn leave(&mut self, folder: &Folder) -> io::Result<()> {
        if self.is_target(folder) { Ok(()) } else { self.copier.leave(Some(folder)) }
    }

    fn problem(&mut self, path: &Path, error: io::Error) {
        self.copier.problem(path, &error.to_string());
    }
}
