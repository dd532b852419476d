//! Parses listings of snapshots, bookmarks, clones and holds.

use std::collections::BTreeMap;

use chrono::DateTime;

use crate::model::{Bookmark, DatasetInventory, DatasetName, Guid, Marks, NameError, SnapName, Snapshot};
use crate::zfs::parse::lines::{ParseError, columns, lines, number};
use crate::zfs::{History, Listed};

/// The snapshots and bookmarks of datasets, put together from a listing (`argv::list_snapshots`) that is read line by
/// line.
///
/// A snapshot whose name begins with `%` belongs to a receive in progress, and is left out.
#[derive(Clone, Debug, Default)]
pub struct Histories {
    by_dataset: BTreeMap<DatasetName, History>,
    /// What the latest lines say. The snapshots of a dataset follow each other, so its name is parsed once.
    latest: Option<(DatasetName, History)>,
}

impl Histories {
    /// Parses a whole listing.
    pub fn parse(output: &[u8]) -> Result<Self, ParseError> {
        let mut histories = Self::default();
        for line in lines(output)? {
            histories.read(line)?;
        }
        Ok(histories)
    }

    /// Reads one line of a listing.
    pub fn read(&mut self, line: &str) -> Result<(), ParseError> {
        let [full, guid, createtxg, creation, userrefs, numclones] = columns(line)?;
        let Some(split) = full.find(['@', '#']) else { return Err(format!("no @ or # in {line:?}")) };
        let (dataset, name) = (&full[..split], &full[split + 1..]);
        if name.starts_with('%') || dataset.contains('%') {
            return Ok(());
        }
        let name: SnapName = name.parse().map_err(|e| format!("{e} in {line:?}"))?;
        let guid = Guid(number(line, "guid", guid)?);
        let createtxg = number(line, "createtxg", createtxg)?;
        let creation = i64::try_from(number(line, "creation", creation)?)
            .ok()
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
            .ok_or_else(|| format!("creation {creation:?} is out of range in {line:?}"))?;
        let (snapshots, bookmarks) = self.of(dataset).map_err(|e| format!("{e} in {line:?}"))?;
        if full.as_bytes()[split] == b'#' {
            bookmarks.push(Bookmark { name, guid, createtxg, creation });
        } else {
            snapshots.push(Snapshot {
                name,
                guid,
                createtxg,
                creation,
                userrefs: u32::try_from(number(line, "userrefs", userrefs)?).unwrap_or(u32::MAX),
                has_clones: number(line, "numclones", numclones)? > 0,
                used: 0,
                marks: Marks::default(),
            });
        }
        Ok(())
    }

    /// The history that this line belongs to.
    fn of(&mut self, dataset: &str) -> Result<&mut History, NameError> {
        let latest = match self.latest.take_if(|(name, _)| name.as_str() == dataset) {
            Some(same) => same,
            None => {
                self.file_latest();
                (dataset.parse()?, History::default())
            }
        };
        Ok(&mut self.latest.insert(latest).1)
    }

    fn file_latest(&mut self) {
        if let Some((name, history)) = self.latest.take() {
            add(&mut self.by_dataset, name, history);
        }
    }

    /// All histories by dataset.
    #[must_use]
    pub fn by_dataset(mut self) -> BTreeMap<DatasetName, History> {
        self.file_latest();
        self.by_dataset
    }

    /// Adds the histories of another listing.
    pub fn append(&mut self, other: Self) {
        for (name, history) in other.by_dataset() {
            add(&mut self.by_dataset, name, history);
        }
    }

    /// Adds the histories to their datasets. One whose dataset is not listed, because it was created or destroyed
    /// between the two commands, is left out. The next listing will have it.
    #[must_use]
    pub fn join(self, datasets: Vec<Listed>) -> Vec<Listed> {
        let mut histories = self.by_dataset();
        let mut joined: BTreeMap<DatasetName, DatasetInventory> = datasets.into_iter().collect();
        for (name, inventory) in &mut joined {
            if let Some((snapshots, bookmarks)) = histories.remove(name) {
                inventory.snapshots.extend(snapshots);
                inventory.bookmarks.extend(bookmarks);
            }
            inventory.sort();
        }
        joined.into_iter().collect()
    }
}

fn add(histories: &mut BTreeMap<DatasetName, History>, name: DatasetName, (snapshots, bookmarks): History) {
    let known = histories.entry(name).or_default();
    known.0.extend(snapshots);
    known.1.extend(bookmarks);
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
    fn histories_leave_out_receives_in_progress() {
        let output = b"t/x @s\t1\t1\t1\t0\t0\nt/x@%recv\t1\t1\t1\t0\t0\n";
        let found = Histories::parse(output).unwrap().by_dataset();
        let counts: Vec<_> = found.iter().map(|(name, (snapshots, _))| (name.as_str(), snapshots.len())).collect();
        assert_eq!(counts, [("t/x ", 1)]);
        assert!(Histories::parse(b"t/x@s\t1\t1\t1\n").unwrap_err().contains("4 columns instead of 6"));
    }

    #[test]
    fn histories_of_datasets_that_take_turns_are_put_together() {
        let lines = b"t/a@1\t1\t1\t1\t0\t0\nt/b@1\t2\t1\t1\t0\t0\nt/a@2\t3\t2\t1\t0\t0\nt/a#m\t1\t1\t1\t-\t-\n";
        let found = Histories::parse(lines).unwrap().by_dataset();
        let names = |of: &str| found[&of.parse().unwrap()].0.iter().map(|s| s.name.to_string()).collect::<Vec<_>>();
        assert_eq!((names("t/a"), names("t/b")), (vec!["1".into(), "2".into()], vec!["1".into()]));
        assert_eq!(found[&"t/a".parse().unwrap()].1.len(), 1);
    }
}
