//! Reading: line by line, never the whole file in memory, and every broken line told at once.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use chrono::{DateTime, Utc};

use crate::catalog::file::line::{Clones, Flags, Line, Moment, Number};
use crate::catalog::file::{Broken, FileError, MAX_LINE};
use crate::model::name::MAX_FULL_NAME;
use crate::model::{
    Bookmark, DatasetInventory, DatasetName, Guid, HostInventory, HostName, Inventory, Marks, NotWritten, SnapName,
    Snapshot,
};

/// Reads a catalog; `file` is its name in messages. Hosts that the file does not say it of were listed at `listed`.
pub fn read(mut input: impl BufRead, file: &str, listed: DateTime<Utc>) -> Result<Inventory, FileError> {
    let mut builder = Builder { broken: Broken { file: file.to_owned(), ..Broken::default() }, ..Builder::default() };
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
            builder.broken.add(number, format!("it is longer than {MAX_LINE} bytes"));
            skip_line(&mut input).map_err(unreadable)?;
            continue;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        if let Err(reason) = parse(&line).and_then(|parsed| builder.add(number, parsed)) {
            builder.broken.add(number, reason);
        }
    }
    builder.finish(listed).map_err(FileError::Broken)
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
    // Serde would take a list for the values of the keys in their order.
    if !line.starts_with(b"{") {
        return Err("it is not a JSON object { ... }".to_owned());
    }
    serde_json::from_slice(line).map_err(|error| {
        // The place within the file is told by us; serde only knows that within the line.
        let text = error.to_string();
        let (reason, _) = text.rsplit_once(" at line ").unwrap_or((&text, ""));
        if error.column() == 0 { reason.to_owned() } else { format!("{reason} (at column {})", error.column()) }
    })
}

#[derive(Default)]
struct Builder {
    broken: Broken,
    hosts: HashMap<HostName, Host>,
    datasets: Vec<Dataset>,
    places: HashMap<(String, String), usize>,
    /// Neighbouring lines are nearly always about the same dataset.
    last: Option<(String, String, usize)>,
}

#[derive(Default)]
struct Host {
    /// The line that told when it was listed, and what it said.
    observed: Option<(u32, Option<DateTime<Utc>>)>,
}

struct Dataset {
    host: HostName,
    name: DatasetName,
    held: DatasetInventory,
    /// The line of the dataset's own record.
    line: Option<u32>,
    /// The line of each snapshot.
    lines: Vec<u32>,
}

impl Builder {
    fn add(&mut self, number: u32, line: Line<'_>) -> Result<(), String> {
        let Some(dataset) = &line.dataset else { return self.host(number, &line) };
        if line.observed.is_some() {
            return Err("\"observed\" is said of a host, in a record without \"dataset\"".to_owned());
        }
        let place = self.place(&line.host.0, &dataset.0)?;
        let dataset = &mut self.datasets[place];
        match line.name.as_ref().map(|name| (name.0.strip_prefix('#'), &*name.0)) {
            None => dataset.tell(number, line),
            Some((Some(bookmark), _)) => dataset.bookmark(&line, bookmark),
            Some((None, name)) if line.flags.not_written => dataset.not_written(&line, name),
            Some((None, name)) => dataset.snapshot(number, &line, name),
        }
    }

    fn host(&mut self, number: u32, line: &Line<'_>) -> Result<(), String> {
        let Line { host, dataset: _, name, guid, createtxg, creation, flags, userrefs, clones, used, .. } = line;
        let of_snapshot = name.is_some() || creation.is_some() || !flags.is_empty() || clones.is_some();
        let numbers = [guid, createtxg, userrefs, used, &line.written].iter().any(|n| n.is_some());
        let of_dataset = of_datasets(line).iter().any(|(_, given)| *given);
        if of_snapshot || numbers || of_dataset {
            return Err("\"dataset\" is missing".to_owned());
        }
        let host: HostName = host.0.parse().map_err(|e| format!("host: {e}"))?;
        let known = self.hosts.entry(host).or_default();
        let Some(observed) = line.observed else { return Ok(()) };
        if let Some((before, _)) = known.observed {
            return Err(format!("\"observed\" of this host is on line {before} already"));
        }
        known.observed = Some((number, observed.map(|Moment(at)| at)));
        Ok(())
    }

    fn place(&mut self, host: &str, dataset: &str) -> Result<usize, String> {
        if let Some((h, d, place)) = &self.last
            && h == host
            && d == dataset
        {
            return Ok(*place);
        }
        let key = (host.to_owned(), dataset.to_owned());
        let place = match self.places.get(&key) {
            Some(place) => *place,
            None => {
                let host: HostName = host.parse().map_err(|e| format!("host: {e}"))?;
                let name: DatasetName = dataset.parse().map_err(|e| format!("dataset: {e}"))?;
                self.hosts.entry(host.clone()).or_default();
                let held = DatasetInventory::default();
                self.datasets.push(Dataset { host, name, held, line: None, lines: Vec::new() });
                self.places.insert(key.clone(), self.datasets.len() - 1);
                self.datasets.len() - 1
            }
        };
        self.last = Some((key.0, key.1, place));
        Ok(place)
    }

    fn finish(mut self, listed: DateTime<Utc>) -> Result<Inventory, Broken> {
        for dataset in &mut self.datasets {
            dataset.check(&mut self.broken);
        }
        if !self.broken.lines.is_empty() {
            self.broken.lines.sort();
            return Err(self.broken);
        }
        let mut inventory = Inventory::default();
        for (name, host) in self.hosts {
            let observed = host.observed.map_or(Some(listed), |(_, observed)| observed);
            inventory.hosts.insert(name, HostInventory { observed, ..HostInventory::default() });
        }
        for Dataset { host, name, mut held, .. } in self.datasets {
            held.snapshots.shrink_to_fit();
            held.sort();
            inventory.hosts.entry(host).or_default().datasets.insert(name, held);
        }
        Ok(inventory)
    }
}

fn missing(key: &str) -> String {
    format!("{key:?} is missing")
}

/// Guid, createtxg and creation: what snapshots and bookmarks must have.
fn identity(line: &Line<'_>) -> Result<(Guid, u64, DateTime<Utc>), String> {
    let Number(guid) = line.guid.ok_or_else(|| missing("guid"))?;
    let Number(createtxg) = line.createtxg.ok_or_else(|| missing("createtxg"))?;
    let Moment(creation) = line.creation.ok_or_else(|| missing("creation"))?;
    Ok((Guid(guid), createtxg, creation))
}

/// Refuses keys that a record of this kind does not have.
fn only(kind: &str, foreign: &[(&str, bool)]) -> Result<(), String> {
    match foreign.iter().find(|(_, given)| *given) {
        Some((key, _)) => Err(format!("{kind} has no {key:?}")),
        None => Ok(()),
    }
}

fn of_datasets<'l>(line: &Line<'_>) -> [(&'l str, bool); 7] {
    [
        ("kind", line.kind.is_some()),
        ("written", line.written.is_some()),
        ("encrypted", line.encrypted.is_some()),
        ("resume_token", line.resume_token.is_some()),
        ("origin", line.origin.is_some()),
        ("excluded", line.excluded.is_some()),
        ("send_flags", line.send_flags.is_some()),
    ]
}

fn of_snapshots<'l>(line: &Line<'_>) -> [(&'l str, bool); 4] {
    [
        ("flags", !line.flags.is_empty()),
        ("userrefs", line.userrefs.is_some()),
        ("clones", line.clones.is_some()),
        ("used", line.used.is_some()),
    ]
}

impl Dataset {
    fn snap_name(&self, name: &str) -> Result<SnapName, String> {
        if self.name.as_str().len() + 1 + name.len() > MAX_FULL_NAME {
            return Err(format!("name: {}@{name} is longer than {MAX_FULL_NAME} bytes", self.name));
        }
        name.parse().map_err(|e| format!("name: {e}"))
    }

    fn tell(&mut self, number: u32, line: Line<'_>) -> Result<(), String> {
        only("a record without \"name\", which tells of a dataset,", &of_snapshots(&line))?;
        let own = [("createtxg", line.createtxg.is_some()), ("creation", line.creation.is_some())];
        only("a record without \"name\", which tells of a dataset,", &own)?;
        if let Some(before) = self.line {
            return Err(format!("{}:{} is told of on line {before} already", self.host, self.name));
        }
        self.line = Some(number);
        self.held.kind = line.kind.unwrap_or_default();
        self.held.guid = line.guid.map(|Number(guid)| Guid(guid));
        self.held.written = line.written.map(|Number(bytes)| bytes);
        self.held.encrypted = line.encrypted.unwrap_or_default();
        self.held.resume_token = line.resume_token;
        self.held.origin = line.origin.map(|text| text.parse().map_err(|e| format!("origin: {e}"))).transpose()?;
        self.held.excluded = line.excluded.unwrap_or_default();
        self.held.flags = line.send_flags;
        Ok(())
    }

    fn bookmark(&mut self, line: &Line<'_>, name: &str) -> Result<(), String> {
        only("a bookmark", &of_snapshots(line))?;
        only("a bookmark", &of_datasets(line))?;
        let (guid, createtxg, creation) = identity(line)?;
        let name = self.snap_name(name)?;
        self.held.bookmarks.push(Bookmark { name, guid, createtxg, creation });
        Ok(())
    }

    fn not_written(&mut self, line: &Line<'_>, name: &str) -> Result<(), String> {
        const KIND: &str = "a #NotWritten mark";
        let others = Flags { not_written: false, ..line.flags };
        let numbers = [("guid", line.guid.is_some()), ("createtxg", line.createtxg.is_some())];
        only(KIND, &numbers)?;
        only(KIND, &of_datasets(line))?;
        if !others.is_empty() {
            return Err(format!("{KIND} has no other flags"));
        }
        let Moment(at) = line.creation.ok_or_else(|| missing("creation"))?;
        let name = self.snap_name(name)?;
        self.held.not_written.push(NotWritten { name, at });
        Ok(())
    }

    fn snapshot(&mut self, number: u32, line: &Line<'_>, name: &str) -> Result<(), String> {
        only("a snapshot", &of_datasets(line))?;
        let (guid, createtxg, creation) = identity(line)?;
        let name = self.snap_name(name)?;
        let userrefs = line.userrefs.map_or(Ok(0), |Number(n)| u32::try_from(n));
        let userrefs = userrefs.map_err(|_| "\"userrefs\" is larger than any number of holds".to_owned())?;
        let Flags { sent, sync, deleted, .. } = line.flags;
        self.lines.push(number);
        self.held.snapshots.push(Snapshot {
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

    /// Within one dataset, names and guids of snapshots are unique; between datasets the same guid is the same
    /// snapshot elsewhere. What was destroyed and is only remembered may have had any name.
    fn check(&mut self, broken: &mut Broken) {
        let mut order: Vec<usize> = (0..self.lines.len()).collect();
        let (held, lines) = (&self.held.snapshots, &self.lines);
        order.sort_by_key(|i| (held[*i].guid, lines[*i]));
        for pair in order.windows(2).filter(|p| held[p[0]].guid == held[p[1]].guid) {
            let reason = format!(
                "the guid {} is that of {}:{} on line {} already",
                held[pair[1]].guid,
                self.host,
                self.name.at(&held[pair[0]].name),
                lines[pair[0]]
            );
            broken.add(lines[pair[1]], reason);
        }
        order.retain(|i| !held[*i].marks.deleted);
        order.sort_by(|a, b| (&held[*a].name, lines[*a]).cmp(&(&held[*b].name, lines[*b])));
        for pair in order.windows(2).filter(|p| held[p[0]].name == held[p[1]].name) {
            if held[pair[0]].guid != held[pair[1]].guid {
                let name = self.name.at(&held[pair[1]].name);
                broken.add(lines[pair[1]], format!("{}:{name} is on line {} already", self.host, lines[pair[0]]));
            }
        }
        self.lines = Vec::new();
    }
}
