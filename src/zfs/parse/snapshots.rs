//! Parses listings of snapshots, bookmarks, clones and holds.

use std::collections::BTreeMap;

use chrono::DateTime;

use crate::model::{Bookmark, DatasetInventory, DatasetName, Guid, Marks, SnapName, Snapshot};
use crate::zfs::Listed;
use crate::zfs::parse::lines::{ParseError, columns, lines, number, unsupported_name};

/// A line of a listing of snapshots and bookmarks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// A snapshot.
    Snapshot(Snapshot),
    /// A bookmark.
    Bookmark(Bookmark),
}

/// Parses a listing of snapshots and bookmarks (`argv::list_snapshots`).
///
/// A snapshot whose name begins with `%` belongs to a receive in progress, and is left out.
pub fn snapshots(output: &[u8]) -> Result<Vec<(DatasetName, Row)>, ParseError> {
    let mut rows = Vec::new();
    // The snapshots of a dataset follow each other, so its name is parsed once.
    let mut last: Option<DatasetName> = None;
    for line in lines(output)? {
        let [full, guid, createtxg, creation, userrefs, numclones] = columns(line)?;
        let Some(split) = full.find(['@', '#']) else { return Err(format!("no @ or # in {line:?}")) };
        let (dataset, name) = (&full[..split], &full[split + 1..]);
        if name.starts_with('%') || dataset.contains('%') || unsupported_name(dataset).is_some() {
            continue;
        }
        let dataset = match &last {
            Some(known) if known.as_str() == dataset => known.clone(),
            _ => dataset.parse().map_err(|e| format!("{e} in {line:?}"))?,
        };
        last = Some(dataset.clone());
        let name: SnapName = name.parse().map_err(|e| format!("{e} in {line:?}"))?;
        let guid = Guid(number(line, "guid", guid)?);
        let createtxg = number(line, "createtxg", createtxg)?;
        let creation = i64::try_from(number(line, "creation", creation)?)
            .ok()
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
            .ok_or_else(|| format!("creation {creation:?} is out of range in {line:?}"))?;
        rows.push((
            dataset,
            if full.as_bytes()[split] == b'#' {
                Row::Bookmark(Bookmark { name, guid, createtxg, creation })
            } else {
                Row::Snapshot(Snapshot {
                    name,
                    guid,
                    createtxg,
                    creation,
                    userrefs: u32::try_from(number(line, "userrefs", userrefs)?).unwrap_or(u32::MAX),
                    has_clones: number(line, "numclones", numclones)? > 0,
                    used: 0,
                    marks: Marks::default(),
                })
            },
        ));
    }
    Ok(rows)
}

/// Adds snapshots and bookmarks to their datasets. A row whose dataset is not listed, because it was created or
/// destroyed between the two commands, is left out. The next listing will have it.
#[must_use]
pub fn join(datasets: Vec<Listed>, rows: Vec<(DatasetName, Row)>) -> Vec<Listed> {
    let mut all: BTreeMap<DatasetName, DatasetInventory> = datasets.into_iter().collect();
    for (dataset, row) in rows {
        if let Some(inventory) = all.get_mut(&dataset) {
            match row {
                Row::Snapshot(snapshot) => inventory.snapshots.push(snapshot),
                Row::Bookmark(bookmark) => inventory.bookmarks.push(bookmark),
            }
        }
    }
    for inventory in all.values_mut() {
        inventory.sort();
    }
    all.into_iter().collect()
}

/// Parses a listing of `name,clones`; returns the snapshots that have clones.
pub fn cloned(output: &[u8]) -> Result<Vec<SnapName>, ParseError> {
    let mut cloned = Vec::new();
    for line in lines(output)? {
        let [full, clones] = columns(line)?;
        if !matches!(clones, "" | "-") {
            let (_, name) = full.split_once('@').ok_or_else(|| format!("no @ in {line:?}"))?;
            cloned.push(name.parse().map_err(|e| format!("{e} in {line:?}"))?);
        }
    }
    Ok(cloned)
}

/// A hold: the dataset and the name of the snapshot, and the tag.
pub type Hold = (DatasetName, SnapName, String);

/// Parses the output of `zfs holds -H`: name, tag, time. A tag may contain anything but a tab.
pub fn holds(output: &[u8]) -> Result<Vec<Hold>, ParseError> {
    lines(output)?
        .map(|line| {
            let mut found = line.split('\t');
            let (Some(full), Some(tag), Some(_), None) = (found.next(), found.next(), found.next(), found.next())
            else {
                return Err(format!("not 3 columns in {line:?}"));
            };
            let (dataset, name) = full.split_once('@').ok_or_else(|| format!("no @ in {line:?}"))?;
            let wrong = |e| format!("{e} in {line:?}");
            Ok((dataset.parse().map_err(wrong)?, name.parse().map_err(wrong)?, tag.to_owned()))
        })
        .collect()
}

/// Parses the names of snapshots and how many bytes each alone references.
pub fn used(output: &[u8]) -> Result<Vec<(DatasetName, SnapName, u64)>, ParseError> {
    lines(output)?
        .map(|line| {
            let [full, used] = columns(line)?;
            let (dataset, name) = full.split_once('@').ok_or_else(|| format!("no @ in {line:?}"))?;
            let wrong = |e| format!("{e} in {line:?}");
            Ok((dataset.parse().map_err(wrong)?, name.parse().map_err(wrong)?, number(line, "used", used)?))
        })
        .collect()
}

/// Parses the names and the values of a property of snapshots. Lines of other form belong to a value that an
/// administrator set, and are left out.
#[must_use]
pub fn arrivals(output: &[u8]) -> BTreeMap<SnapName, String> {
    let text = String::from_utf8_lossy(output);
    let row = |line: &str| {
        let (full, value) = line.split_once('\t')?;
        Some((full.split_once('@')?.1.parse().ok()?, value.to_owned()))
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_ignores_unsupported_datasets_and_receives_in_progress() {
        assert!(snapshots(b"t/x @s\t1\t1\t1\t0\t0\nt/x@%recv\t1\t1\t1\t0\t0\n").unwrap().is_empty());
        assert!(snapshots(b"t/x@s\t1\t1\t1\n").unwrap_err().contains("4 columns instead of 6"));
    }
}
