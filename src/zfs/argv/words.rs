//! Builds lists of arguments.

use crate::model::{DatasetName, SnapName};

pub(super) fn words(fixed: &[&str]) -> Vec<String> {
    fixed.iter().map(|&w| w.to_owned()).collect()
}

pub(super) fn full_names<'a>(dataset: &'a DatasetName, snapshots: &'a [SnapName]) -> impl Iterator<Item = String> + 'a {
    snapshots.iter().map(|name| dataset.at(name))
}
