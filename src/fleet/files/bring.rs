//! Restores files from the newest snapshot that was taken until a moment.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::agent::files::{Open, select, unreadable};
use crate::fleet::files::remote::Fetched;
use crate::fleet::files::{Tree, has_files};
use crate::model::path_pattern::PathPattern;
use crate::model::{Counter, DatasetName, Snapshot, in_utc};
use crate::sys::runtime;
use crate::sys::tree::{Copied, Copier};

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

/// A snapshot that may be used.
struct Candidate<'a> {
    tree: &'a Tree,
    dataset: &'a DatasetName,
    snapshot: &'a Snapshot,
}

/// Restores files into a folder. Nothing that exists there is changed. For each dataset below the one whose files are
/// wanted, the place is used that has the newest snapshot. `counter` counts what arrives from other hosts.
pub async fn bring(open: &Open, trees: &[Tree], wanted: &WantedFiles, into: OwnedFd, counter: &Counter) -> Brought {
    let mut brought = Brought::default();
    let candidates = candidates(trees, wanted.at);
    if candidates.is_empty() {
        let until = wanted.at.map(|at| format!(" that was taken until {}", in_utc(at))).unwrap_or_default();
        brought.problems.push(format!("there is no snapshot with files{until}"));
    }
    let patterns = Arc::new(wanted.patterns.clone());
    let mut copier = Copier::new(into);
    for (below, snapshots) in candidates {
        if select::selection(&patterns, below).is_none() {
            continue;
        }
        for candidate in snapshots {
            let (name, done);
            (copier, name, done) = copy(copier, open, &candidate, below, &patterns, counter).await;
            let mut copied = std::mem::take(&mut copier.copied).summed_up();
            brought.problems.append(&mut copied.problems);
            if copied.files > 0 || copied.present > 0 {
                brought.from.push((name.clone(), copied));
            }
            match done {
                Ok(()) => break,
                // Another place may have the same files.
                Err(Stopped::Nothing(reason)) => brought.problems.push(reason),
                Err(Stopped::Part(reason)) => {
                    brought.problems.push(format!(
                        "cannot restore more files from {name}: {reason}; hint: give the same command again: what was \
                         restored is left as it is"
                    ));
                    return brought;
                }
            }
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
fn candidates(trees: &[Tree], at: Option<DateTime<Utc>>) -> BTreeMap<&str, Vec<Candidate<'_>>> {
    let mut candidates: BTreeMap<&str, Vec<Candidate<'_>>> = BTreeMap::new();
    for tree in trees {
        for (dataset, found) in tree.datasets.iter().filter(has_files) {
            let newest = found.snapshots.iter().rev().find(|s| at.is_none_or(|at| s.creation <= at));
            let below = dataset.below(&tree.root).unwrap_or_default();
            let newest = newest.map(|snapshot| Candidate { tree, dataset, snapshot });
            candidates.entry(below).or_default().extend(newest);
        }
    }
    candidates.retain(|_, snapshots| !snapshots.is_empty());
    // The places come in the order of preference, which the sort keeps.
    let by_age = |of: &mut Vec<Candidate<'_>>| of.sort_by_key(|of| std::cmp::Reverse(of.snapshot.creation));
    candidates.values_mut().for_each(by_age);
    candidates
}

/// Why not everything was copied from a snapshot.
enum Stopped {
    /// Nothing could be read.
    Nothing(String),
    /// A part of it was copied.
    Part(String),
}

/// Copies the files of one snapshot. Returns its name.
async fn copy(
    mut copier: Copier,
    open: &Open,
    Candidate { tree, dataset, snapshot }: &Candidate<'_>,
    below: &str,
    patterns: &Arc<Vec<PathPattern>>,
    counter: &Counter,
) -> (Copier, String, Result<(), Stopped>) {
    let name = dataset.at(&snapshot.name);
    copier.next_source(tree.remote.is_some());
    if let Some(remote) = &tree.remote {
        let of = (*dataset, &snapshot.name, snapshot.guid);
        let (copier, fetched) = remote.fetch(copier, patterns, of, counter).await;
        let host = &remote.root.host;
        let done = fetched.map_err(|error| match error {
            Fetched::Nothing(refusal) => {
                Stopped::Nothing(format!("cannot read the files of {host}:{name}: {}", refusal.reason))
            }
            Fetched::Part(reason) => Stopped::Part(reason),
        });
        return (copier, format!("{host}:{name}"), done);
    }
    let (open, dataset, snapshot) = (Arc::clone(open), (*dataset).clone(), snapshot.name.clone());
    let (below, patterns) = (below.to_owned(), Arc::clone(patterns));
    let copying = runtime::blocking(move || {
        let done = match open(&dataset, &snapshot) {
            Ok(root) => select::read(&root, &below, &patterns, &mut copier).map_err(|e| Stopped::Part(e.to_string())),
            Err(error) => Err(Stopped::Nothing(unreadable(&dataset, &error))),
        };
        (copier, done)
    });
    let (copier, done) = copying.await;
    (copier, name, done)
}
