//! Writes a catalog file: hosts and datasets ordered by name, snapshots by creation.

use std::io::{self, Write};

use serde::Serialize;

use crate::model::{
    Bookmark, DatasetInventory, DatasetKind, DatasetName, Guid, HostName, Inventory, Marks, NotWritten, SendFlags,
    Snapshot, Trashed, in_utc,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    excluded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    append_only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    send_flags: Option<SendFlags>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    transfer_holds: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    destroy_after: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trashed: Option<&'a [Trashed]>,
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

/// Writes all of a catalog.
pub fn write(inventory: &Inventory, mut out: impl Write) -> io::Result<()> {
    for (host, known) in &inventory.hosts {
        write_line(&mut out, &HostRecord { host, observed: known.observed.map(in_utc) })?;
        for (dataset, listed) in &known.datasets {
            write_dataset(&mut out, host, dataset, listed)?;
        }
    }
    out.flush()
}

fn write_dataset(
    out: &mut impl Write,
    host: &HostName,
    dataset: &DatasetName,
    listed: &DatasetInventory,
) -> io::Result<()> {
    let DatasetInventory { kind, guid, written, encrypted, origin, excluded, flags, .. } = listed;
    let DatasetInventory { resume_token, append_only, transfer_holds, destroy_after, trashed, .. } = listed;
    let DatasetInventory { snapshots, bookmarks, not_written, .. } = listed;
    let record = DatasetRecord {
        host,
        dataset,
        kind: *kind,
        guid: *guid,
        written: *written,
        encrypted: *encrypted,
        resume_token: resume_token.as_deref(),
        origin: origin.as_ref().map(|origin| origin.dataset.at(&origin.name)),
        excluded: *excluded,
        append_only: *append_only,
        send_flags: *flags,
        transfer_holds,
        destroy_after: *destroy_after,
        trashed: trashed.as_deref(),
    };
    write_line(out, &record)?;
    for Snapshot { name, guid, createtxg, creation, userrefs, has_clones, used, marks } in snapshots {
        let Marks { sent, sync, deleted } = *marks;
        let flags = [(sent, "#sent"), (sync, "#sync"), (deleted, "#deleted")];
        let record = SnapshotRecord {
            host,
            dataset,
            name: name.as_str(),
            guid: *guid,
            createtxg: Guid(*createtxg),
            creation: in_utc(*creation),
            flags: flags.into_iter().filter_map(|(set, flag)| set.then_some(flag)).collect(),
            userrefs: *userrefs,
            clones: *has_clones,
            used: *used,
        };
        write_line(out, &record)?;
    }
    for Bookmark { name, guid, createtxg, creation } in bookmarks {
        let (guid, createtxg, creation) = (*guid, Guid(*createtxg), in_utc(*creation));
        write_line(out, &BookmarkRecord { host, dataset, name: format!("#{name}"), guid, createtxg, creation })?;
    }
    for NotWritten { name, at } in not_written {
        let (name, creation, flags) = (name.as_str(), in_utc(*at), ["#NotWritten"]);
        write_line(out, &NotWrittenRecord { host, dataset, name, creation, flags })?;
    }
    Ok(())
}

fn write_line(out: &mut impl Write, record: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, record)?;
    out.write_all(b"\n")
}
