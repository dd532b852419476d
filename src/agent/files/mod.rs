//! Finds and reads single files in snapshots of this host, for this host itself or for another one that asks.

pub mod search;
pub mod select;
mod serve;

use std::ffi::OsStr;

use crate::model::path_pattern::{Matched, PathPattern};
use crate::model::{DatasetName, hint};
use crate::zfs::{ErrorKind, ZfsError};

pub use crate::zfs::Open;

/// What a dataset's folder has matched, by the dataset's name below the one whose files are wanted.
#[must_use]
pub fn start(pattern: &PathPattern, below: &str) -> Matched {
    let names = below.split('/').filter(|name| !name.is_empty());
    names.fold(pattern.start(), |matched, name| pattern.step(&matched, OsStr::new(name)))
}

/// Says that the files of a dataset cannot be read.
#[must_use]
pub fn unreadable(dataset: &DatasetName, error: &ZfsError) -> String {
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
