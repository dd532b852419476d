//! Writing: hosts and datasets in the order of their names, snapshots in the order of their creation.

use std::io::{self, Write};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use crate::model::{
    Bookmark, DatasetInventory, DatasetKind, DatasetName, Guid, HostName, Inventory, Marks, NotWritten, Snapshot,
};

#[derive(Serialize)]
struct HostRecord<'a> {
    host: &'a HostName,
    observed: Option<String>,
}

#[derive(Serialize)]
struct DatasetRecord<'a> {
    host: &'a HostName,
    dataset: &'a DatasetName,
    kind: DatasetKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    guid: Option<Guid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<u64>,
    encrypted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume_token: Option<&'a str>,
}

#[derive(Serialize)]
struct SnapshotRecord<'a> {
    host: &'a HostName,
    dataset: &'a DatasetName,
    name: &'a str,
    guid: Guid,
    createtxg: Guid,
    creation: String,
    flags: Vec<&'static str>,
    userrefs: u32,
    clones: bool,
    used: u64,
}

#[derive(Serialize)]
struct BookmarkRecord<'a> {
    host: &'a HostName,
    dataset: &'a DatasetName,
    name: String,
    guid: Guid,
    createtxg: Guid,
    creation: String,
}

#[derive(Serialize)]
struct NotWrittenRecord<'a> {
    host: &'a HostName,
    dataset: &'a DatasetName,
    name: &'a str,
    creation: String,
    flags: [&'static str; 1],
}

/// Writes a catalog.
pub fn write(inventory: &Inventory, mut out: impl Write) -> io::Result<()> {
    for (host, known) in &inventory.hosts {
        line(&mut out, &HostRecord { host, observed: known.observed.map(time) })?;
        for (dataset, held) in &known.datasets {
            of_dataset(&mut out, host, dataset, held)?;
        }
    }
    out.flush()
}

fn of_dataset(out: &mut impl Write, host: &HostName, dataset: &DatasetName, held: &DatasetInventory) -> io::Result<()> {
    let DatasetInventory { kind, guid, written, encrypted, resume_token, snapshots, bookmarks, not_written } = held;
    let resume_token = resume_token.as_deref();
    let (kind, guid, written, encrypted) = (*kind, *guid, *written, *encrypted);
    line(out, &DatasetRecord { host, dataset, kind, guid, written, encrypted, resume_token })?;
    for Snapshot { name, guid, createtxg, creation, userrefs, has_clones, used, marks } in snapshots {
        let Marks { sent, sync, deleted } = *marks;
        let flags = [(sent, "#sent"), (sync, "#sync"), (deleted, "#deleted")];
        let record = SnapshotRecord {
            host,
            dataset,
            name: name.as_str(),
            guid: *guid,
            createtxg: Guid(*createtxg),
            creation: time(*creation),
            flags: flags.into_iter().filter_map(|(set, flag)| set.then_some(flag)).collect(),
            userrefs: *userrefs,
            clones: *has_clones,
            used: *used,
        };
        line(out, &record)?;
    }
    for Bookmark { name, guid, createtxg, creation } in bookmarks {
        let (guid, createtxg, creation) = (*guid, Guid(*createtxg), time(*creation));
        line(out, &BookmarkRecord { host, dataset, name: format!("#{name}"), guid, createtxg, creation })?;
    }
    for NotWritten { name, at } in not_written {
        let (name, creation, flags) = (name.as_str(), time(*at), ["#NotWritten"]);
        line(out, &NotWrittenRecord { host, dataset, name, creation, flags })?;
    }
    Ok(())
}

fn line(out: &mut impl Write, record: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, record)?;
    out.write_all(b"\n")
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
