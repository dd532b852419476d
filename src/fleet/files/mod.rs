//! Finds and restores single files from the snapshots of a dataset and of its copies, as far as they are on this host.

mod bring;
mod places;
mod versions;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use bring::{Brought, WantedFiles, bring};
pub use places::{Tree, reachable};
pub use versions::{FileVersion, InSnapshot, Period, Versions, find};

use crate::model::path_pattern::{Matched, PathPattern};
use crate::model::{DatasetKind, DatasetName, SnapName, hint};
use crate::zfs::{ErrorKind, Listed, ZfsError};

/// Opens the uppermost folder of a snapshot.
pub type Open = Arc<dyn Fn(&DatasetName, &SnapName) -> Result<OwnedFd, ZfsError> + Send + Sync>;

/// What a dataset's folder has matched, by the dataset's name below the one whose files are wanted.
fn start(pattern: &PathPattern, below: &str) -> Matched {
    let names = below.split('/').filter(|name| !name.is_empty());
    names.fold(pattern.start(), |matched, name| pattern.step(&matched, OsStr::new(name)))
}

/// Says that the files of a dataset cannot be read.
fn unreadable(dataset: &DatasetName, error: &ZfsError) -> String {
    let word = hint::word(dataset);
    match error.kind {
        ErrorKind::KeyNotLoaded => format!(
            "cannot read the files of {dataset}: it is encrypted, and its key is not loaded; hint: load it with zfs \
             load-key {word}"
        ),
        ErrorKind::Permission => {
            format!("cannot read the files of {dataset}: {}; hint: run zsync as root", error.stderr)
        }
        _ => format!("cannot read the files of {dataset}: {error}"),
    }
}

/// Whether a dataset has files.
fn has_files((_, found): &&Listed) -> bool {
    found.kind == DatasetKind::Filesystem
}
