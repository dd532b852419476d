//! Reads a catalog file line by line, so that it is never in memory as a whole, and collects every invalid line.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use chrono::{DateTime, Utc};

use crate::catalog::file::line::{Clones, Flags, Line, Number, Timestamp};
use crate::catalog::file::{FileError, InvalidLines, MAX_LINE};
use crate::model::name::MAX_FULL_NAME;
use crate::model::{
    Bookmark, DatasetInventory, DatasetName, Guid, HostInventory, HostName, Inventory, Marks, NotWritten, SnapName,
    Snapshot,
};

/// Reads a catalog. `file` is its name in messages. Hosts without an `observed` record count as listed at `listed`.
pub fn read(mut input: impl BufRead, file: &str, listed: DateTime<Utc>) -> Result<Inventory, FileError> {
    let invalid = InvalidLines { file: file.to_owned(), ..InvalidLines::default() };
    let mut builder = Builder { invalid, ..Builder::default() };
    let mut line = Vec::with_capacity(512);
    let mut number = 0u32;
    let unreadable = |source| FileError::Unreadable { file: file.to_owned(), source };
    loop {
        line.clear();
        number = number.saturating_add(1);
        let mut limited = input.by_ref().take(MAX_LINE as u64 + 1);
        if limited.read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
            break;
        }
        if line.len() > MAX_LINE && !line.ends_with(b"\n") {
            builder.invalid.add(number, format!("longer than {MAX_LINE} bytes"));
            skip_line(&mut input).map_err(unreadable)?;
            continue;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        if let Err(reason) = parse(&line).and_then(|parsed| builder.add(number, parsed)) {
            builder.invalid.add(number, reason);
        }
    }
    builder.finish(listed).map_err(FileError::Invalid)
}

fn skip_line(input: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let found = input.fill_buf()?;
        if found.is_empty() {
            return Ok(());
        }
        let (length, end) = match found.iter().position(|b| *b == b'\n') {
            Some(at) => (at + 1, true),
            None => (found.len(), false),
        };
        input.consume(length);
        if end {
            return Ok(());
        }
    }
}

fn parse(line: &[u8]) -> Result<Line<'_>, String> {
    let line = line.trim_ascii();
    // serde would accept a list as the values of the keys in order.
    if !line.starts_with(b"{") {
        return Err("not a JSON object { ... }".to_owned());
    }
    serde_json::from_slice(line).map_err(|error| {
        // serde counts lines within this one line; the caller adds the line of the file.
        let text = error.to_string();
        let (reason, _) = text.rsplit_once(" at line ").unwrap_or((&text, ""));
        if error.column() == 0 { reason.to_owned() } else { format!("{reason} (at column {})", error.column()) }
    })
}

#[derive(Default)]
struct Builder {
    invalid: InvalidLines,
    hosts: HashMap<HostName, FileHost>,
    datasets: Vec<FileDataset>,
    /// The index of each dataset in `datasets`, by host and name.
    indices: HashMap<(String, String), usize>,
    /// The dataset of the line before: consecutive lines are nearly always about the same one.
    last: Option<(String, String, usize)>,
}

#[derive(Default)]
struct FileHost {
    /// The line of its `observed` record, and the time in it.
    observed: Option<(u32, Option<DateTime<Utc>>)>,
}

struct FileDataset {
    host: HostName,
    name: DatasetName,
    inventory: DatasetInventory,
    /// The line of the dataset's own record.
    line: Option<u32>,
    /// The line of each snapshot.
    snapshot_lines: Vec<u32>,
}

impl Builder {
    fn add(&mut self, number: u32, line: Line<'_>) -> Result<(), String> {
        let Some(dataset) = &line.dataset else { return self.host(number, &line) };
        if line.observed.is_some() {
            return Err("\"observed\" belongs to a host; it needs a record without \"dataset\"".to_owned());
        }
        let index = self.index_of(&line.host.0, &dataset.0)?;
        let dataset = &mut self.datasets[index];
        match line.name.as_ref().map(|name| (name.0.strip_prefix('#'), &*name.0)) {
            None => dataset.own_record(number, line),
            Some((Some(bookmark), _)) => dataset.bookmark(&line, bookmark),
            Some((None, name)) if line.flags.not_written => dataset.not_written(&line, name),
            Some((None, name)) => dataset.snapshot(number, &line, name),
        }
    }

    fn host(&mut self, number: u32, line: &Line<'_>) -> Result<(), String> {
        let Line { host, dataset: _, name, guid, createtxg, creation, flags, userrefs, clones, used, .. } = line;
        let has_snapshot_keys = name.is_some() || creation.is_some() || !flags.is_empty() || clones.is_some();
        let has_numbers = [guid, createtxg, userrefs, used, &line.written].iter().any(|n| n.is_some());
        let has_dataset_keys = dataset_keys(line).iter().any(|(_, given)| *given);
        if has_snapshot_keys || has_numbers || has_dataset_keys {
            return Err("\"dataset\" is missing".to_owned());
        }
        let host: HostName = host.0.parse().map_err(|e| format!("host: {e}"))?;
        let known = self.hosts.entry(host).or_default();
        let Some(observed) = line.observed else { return Ok(()) };
        if let Some((before, _)) = known.observed {
            return Err(format!("line {before} already has \"observed\" of this host"));
        }
        known.observed = Some((number, observed.map(|Timestamp(at)| at)));
        Ok(())
    }

    fn index_of(&mut self, host: &str, dataset: &str) -> Result<usize, String> {
        if let Some((h, d, index)) = &self.last
            && h == host
            && d == dataset
        {
            return Ok(*index);
        }
        let key = (host.to_owned(), dataset.to_owned());
        let index = match self.indices.get(&key) {
            Some(index) => *index,
            None => {
                let host: HostName = host.parse().map_err(|e| format!("host: {e}"))?;
                let name: DatasetName = dataset.parse().map_err(|e| format!("dataset: {e}"))?;
                self.hosts.entry(host.clone()).or_default();
                let inventory = DatasetInventory::default();
                self.datasets.push(FileDataset { host, name, inventory, line: None, snapshot_lines: Vec::new() });
                self.indices.insert(key.clone(), self.datasets.len() - 1);
                self.datasets.len() - 1
            }
        };
        self.last = Some((key.0, key.1, index));
        Ok(index)
    }

    fn finish(mut self, listed: DateTime<Utc>) -> Result<Inventory, InvalidLines> {
        for dataset in &mut self.datasets {
            dataset.check(&mut self.invalid);
        }
        if !self.invalid.lines.is_empty() {
            self.invalid.lines.sort();
            return Err(self.invalid);
        }
        let mut inventory = Inventory::default();
        for (name, host) in self.hosts {
            let observed = host.observed.map_or(Some(listed), |(_, observed)| observed);
            inventory.hosts.insert(name, HostInventory { observed, ..HostInventory::default() });
        }
        for FileDataset { host, name, inventory: mut dataset, .. } in self.datasets {
            dataset.snapshots.shrink_to_fit();
            dataset.sort();
            inventory.hosts.entry(host).or_default().datasets.insert(name, dataset);
        }
        Ok(inventory)
    }
}

fn missing(key: &str) -> String {
    format!("{key:?} is missing")
}

/// Guid, createtxg and creation, which every snapshot and bookmark must have.
fn identity(line: &Line<'_>) -> Result<(Guid, u64, DateTime<Utc>), String> {
    let Number(guid) = line.guid.ok_or_else(|| missing("guid"))?;
    let Number(createtxg) = line.createtxg.ok_or_else(|| missing("createtxg"))?;
    let Timestamp(creation) = line.creation.ok_or_else(|| missing("creation"))?;
    Ok((Guid(guid), createtxg, creation))
}

/// Refuses keys that a record of this kind cannot have.
fn refuse_keys(kind: &str, foreign: &[(&str, bool)]) -> Result<(), String> {
    match foreign.iter().find(|(_, given)| *given) {
        Some((key, _)) => Err(format!("{kind} has no {key:?}")),
        None => Ok(()),
    }
}

fn dataset_keys<'l>(line: &Line<'_>) -> [(&'l str, bool); 11] {
    [
        ("kind", line.kind.is_some()),
        ("written", line.written.is_some()),
        ("encrypted", line.encrypted.is_some()),
        ("resume_token", line.resume_token.is_some()),
        ("origin", line.origin.is_some()),
        ("excluded", line.excluded.is_some()),
        ("append_only", line.append_only.is_some()),
        ("send_flags", line.send_flags.is_some()),
        ("transfer_holds", line.transfer_holds.is_some()),
        ("destroy_after", line.destroy_after.is_some()),
        ("trashed", line.trashed.is_some()),
    ]
}

fn snapshot_keys<'l>(line: &Line<'_>) -> [(&'l str, bool); 4] {
    [
        ("flags", !line.flags.is_empty()),
        ("userrefs", line.userrefs.is_some()),
        ("clones", line.clones.is_some()),
        ("used", line.used.is_some()),
    ]
}

impl FileDataset {
    fn snap_name(&self, name: &str) -> Result<SnapName, String> {
        if self.name.as_str().len() + 1 + name.len() > MAX_FULL_NAME {
            return Err(format!("name: {}@{name} is longer than {MAX_FULL_NAME} bytes", self.name));
        }
        name.parse().map_err(|e| format!("name: {e}"))
    }

    fn own_record(&mut self, number: u32, line: Line<'_>) -> Result<(), String> {
        refuse_keys("a dataset's record (one without \"name\")", &snapshot_keys(&line))?;
        let own = [("createtxg", line.createtxg.is_some()), ("creation", line.creation.is_some())];
        refuse_keys("a dataset's record (one without \"name\")", &own)?;
        if let Some(before) = self.line {
            return Err(format!("line {before} already describes {}:{}", self.host, self.name));
        }
        self.line = Some(number);
        self.inventory.kind = line.kind.unwrap_or_default();
        self.inventory.guid = line.guid.map(|Number(guid)| Guid(guid));
        self.inventory.written = line.written.map(|Number(bytes)| bytes);
        self.inventory.encrypted = line.encrypted.unwrap_or_default();
        self.inventory.resume_token = line.resume_token;
        self.inventory.origin = line.origin.map(|text| text.parse().map_err(|e| format!("origin: {e}"))).transpose()?;
        self.inventory.excluded = line.excluded.unwrap_or_default();
        self.inventory.append_only = line.append_only;
        self.inventory.flags = line.send_flags;
        self.inventory.transfer_holds = line.transfer_holds.unwrap_or_default();
        self.inventory.destroy_after = line.destroy_after.map(|Number(seconds)| seconds);
        if let Some(trashed) = line.trashed {
            self.inventory.set_trashed(trashed);
        }
        Ok(())
    }

    fn bookmark(&mut self, line: &Line<'_>, name: &str) -> Result<(), String> {
        refuse_keys("a bookmark", &snapshot_keys(line))?;
        refuse_keys("a bookmark", &dataset_keys(line))?;
        let (guid, createtxg, creation) = identity(line)?;
        let name = self.snap_name(name)?;
        self.inventory.bookmarks.push(Bookmark { name, guid, createtxg, creation });
        Ok(())
    }

    fn not_written(&mut self, line: &Line<'_>, name: &str) -> Result<(), String> {
        const KIND: &str = "a #NotWritten mark";
        let others = Flags { not_written: false, ..line.flags };
        let numbers = [("guid", line.guid.is_some()), ("createtxg", line.createtxg.is_some())];
        refuse_keys(KIND, &numbers)?;
        refuse_keys(KIND, &dataset_keys(line))?;
        if !others.is_empty() {
            return Err(format!("{KIND} has no other flags"));
        }
        let Timestamp(at) = line.creation.ok_or_else(|| missing("creation"))?;
        let name = self.snap_name(name)?;
        self.inventory.not_written.push(NotWritten { name, at });
        Ok(())
    }

    fn snapshot(&mut self, number: u32, line: &Line<'_>, name: &str) -> Result<(), String> {
        refuse_keys("a snapshot", &dataset_keys(line))?;
        let (guid, createtxg, creation) = identity(line)?;
        let name = self.snap_name(name)?;
        let userrefs = line.userrefs.map_or(Ok(0), |Number(n)| u32::try_from(n));
        let userrefs = userrefs.map_err(|_| "\"userrefs\" is larger than ZFS allows".to_owned())?;
        let Flags { sent, sync, deleted, .. } = line.flags;
        self.snapshot_lines.push(number);
        self.inventory.snapshots.push(Snapshot {
            name,
            guid,
            createtxg,
            creation,
            userrefs,
            has_clones: line.clones.is_some_and(|Clones(any)| any),
            used: line.used.map_or(0, |Number(bytes)| bytes),
            marks: Marks { sent, sync, deleted },
        });
        Ok(())
    }

    /// Checks that names and guids of snapshots are unique within the dataset. The same guid in another dataset is a
    /// copy of the snapshot. A destroyed snapshot, which is only history, may have any name.
    fn check(&mut self, invalid: &mut InvalidLines) {
        let mut order: Vec<usize> = (0..self.snapshot_lines.len()).collect();
        let (snapshots, lines) = (&self.inventory.snapshots, &self.snapshot_lines);
        order.sort_by_key(|i| (snapshots[*i].guid, lines[*i]));
        for pair in order.windows(2).filter(|p| snapshots[p[0]].guid == snapshots[p[1]].guid) {
            let reason = format!(
                "line {} already has the guid {}, for {}:{}",
                lines[pair[0]],
                snapshots[pair[1]].guid,
                self.host,
                self.name.at(&snapshots[pair[0]].name),
            );
            invalid.add(lines[pair[1]], reason);
        }
        order.retain(|i| !snapshots[*i].marks.deleted);
        order.sort_by(|a, b| (&snapshots[*a].name, lines[*a]).cmp(&(&snapshots[*b].name, lines[*b])));
        for pair in order.windows(2).filter(|p| snapshots[p[0]].name == snapshots[p[1]].name) {
            if snapshots[pair[0]].guid != snapshots[pair[1]].guid {
                let name = self.name.at(&snapshots[pair[1]].name);
                invalid.add(lines[pair[1]], format!("line {} already has {}:{name}", lines[pair[0]], self.host));
            }
        }
        self.snapshot_lines = Vec::new();
    }
}
