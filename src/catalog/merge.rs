//! How facts go into the embedded catalog's tables: inside of one transaction, and writing only what changed.
//!
//! A director lists every host at the start of each pass, and most of what it hears it knows already.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use rusqlite::{OptionalExtension, Transaction, params};
use uuid::Uuid;

use crate::catalog::error::Fault;
use crate::catalog::rows;
use crate::catalog::rows::micros;
use crate::catalog::{Change, Estimated, MAX_DESTROYED, MAX_OUTCOMES, Outcome};
use crate::model::{Bookmark, DatasetInventory, DatasetKind, DatasetName, Guid, HostName, Marks, NotWritten, Snapshot};

/// The number of a host, which is made known if it is not.
pub(super) fn host_id(tx: &Transaction<'_>, host: &HostName) -> Result<i64, Fault> {
    let known = "SELECT id FROM host WHERE name = ?1";
    if let Some(id) = tx.prepare_cached(known)?.query_row([host.as_str()], |row| row.get(0)).optional()? {
        return Ok(id);
    }
    tx.prepare_cached("INSERT INTO host (name) VALUES (?1)")?.execute([host.as_str()])?;
    Ok(tx.last_insert_rowid())
}

fn known_dataset(tx: &Transaction<'_>, host: i64, dataset: &DatasetName) -> Result<Option<i64>, Fault> {
    let mut statement = tx.prepare_cached("SELECT id FROM dataset WHERE host = ?1 AND name = ?2")?;
    Ok(statement.query_row(params![host, dataset.as_str()], |row| row.get(0)).optional()?)
}

/// The number of a dataset, which is made known, though not present, if it is not.
fn dataset_id(tx: &Transaction<'_>, host: i64, dataset: &DatasetName) -> Result<i64, Fault> {
    if let Some(id) = known_dataset(tx, host, dataset)? {
        return Ok(id);
    }
    tx.prepare_cached("INSERT INTO dataset (host, name) VALUES (?1, ?2)")?.execute(params![host, dataset.as_str()])?;
    Ok(tx.last_insert_rowid())
}

/// Replaces all that is known of a host.
pub(super) fn replace_host(
    tx: &Transaction<'_>,
    host: &HostName,
    observed: DateTime<Utc>,
    datasets: Vec<(DatasetName, DatasetInventory)>,
) -> Result<(), Fault> {
    let host = host_id(tx, host)?;
    tx.prepare_cached("UPDATE host SET observed = ?2 WHERE id = ?1")?.execute([host, micros(observed)])?;
    let mut gone: HashSet<i64> = HashSet::new();
    {
        let mut statement = tx.prepare_cached("SELECT id FROM dataset WHERE host = ?1 AND present")?;
        let mut found = statement.query([host])?;
        while let Some(row) = found.next()? {
            gone.insert(rows::integer(row, 0)?);
        }
    }
    for (name, inventory) in datasets {
        let id = dataset_id(tx, host, &name)?;
        gone.remove(&id);
        put(tx, id, inventory)?;
    }
    for id in gone {
        empty(tx, id)?;
    }
    // #NotWritten marks of datasets that the host never had, or has no more, mean nothing any longer.
    let unlisted = "DELETE FROM not_written WHERE dataset IN (SELECT id FROM dataset WHERE host = ?1 AND NOT present)";
    tx.prepare_cached(unlisted)?.execute([host])?;
    Ok(())
}

/// Makes one change.
pub(super) fn change(
    tx: &Transaction<'_>,
    host: &HostName,
    dataset: &DatasetName,
    change: Change,
) -> Result<(), Fault> {
    let id = || dataset_id(tx, host_id(tx, host)?, dataset);
    match change {
        Change::Listed(inventory) => put(tx, id()?, inventory),
        Change::Gone => remove_dataset(tx, host, dataset),
        Change::Taken(snapshot) => taken(tx, id()?, snapshot),
        Change::Mark { guid, marks, at } => mark(tx, host, dataset, guid, marks, at),
        Change::NotWritten(slot) => add_not_written(tx, id()?, &slot),
    }
}

/// Adds a snapshot to what a dataset holds.
fn taken(tx: &Transaction<'_>, id: i64, mut snapshot: Snapshot) -> Result<(), Fault> {
    let marks = Marks { deleted: false, ..std::mem::take(&mut snapshot.marks) };
    add_marks(tx, id, snapshot.guid, marks, snapshot.creation)?;
    let known = "SELECT 1 FROM snapshot WHERE dataset = ?1 AND guid = ?2";
    if !tx.prepare_cached(known)?.exists([id, snapshot.guid.0.cast_signed()])? {
        insert_snapshot(tx, id, &snapshot)?;
    }
    let anew = "UPDATE dataset SET present = 1, volume = 0, guid = NULL, encrypted = 0, resume_token = NULL
                WHERE id = ?1 AND NOT present";
    tx.prepare_cached(anew)?.execute([id])?;
    tx.prepare_cached("UPDATE dataset SET written = 0 WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// Forgets a dataset of a host, if it is known.
fn remove_dataset(tx: &Transaction<'_>, host: &HostName, dataset: &DatasetName) -> Result<(), Fault> {
    let host = host_id(tx, host)?;
    known_dataset(tx, host, dataset)?.map_or(Ok(()), |id| empty(tx, id))
}

/// Takes a dataset from the inventory. Its marks wait for it to come back, as after the import of its pool.
fn empty(tx: &Transaction<'_>, id: i64) -> Result<(), Fault> {
    tx.prepare_cached("UPDATE dataset SET present = 0 WHERE id = ?1")?.execute([id])?;
    for table in ["snapshot", "bookmark", "not_written"] {
        tx.prepare_cached(&format!("DELETE FROM {table} WHERE dataset = ?1"))?.execute([id])?;
    }
    Ok(())
}

/// Replaces what a dataset holds.
fn put(tx: &Transaction<'_>, id: i64, inventory: DatasetInventory) -> Result<(), Fault> {
    let mut told = inventory;
    let snapshots = std::mem::take(&mut told.snapshots);
    let bookmarks = std::mem::take(&mut told.bookmarks);
    let not_written = std::mem::take(&mut told.not_written);
    let select = format!("SELECT present, {} FROM dataset WHERE id = ?1", rows::DATASET);
    let known = {
        let mut statement = tx.prepare_cached(&select)?;
        let mut found = statement.query([id])?;
        let row = found.next()?.ok_or_else(|| Fault::Damaged(format!("dataset {id} is not there")))?;
        (rows::integer(row, 0)? != 0).then(|| rows::dataset(row, 1)).transpose()?
    };
    if known.as_ref() != Some(&told) {
        let update = "UPDATE dataset SET present = 1, volume = ?2, guid = ?3, written = ?4, encrypted = ?5,
                      resume_token = ?6, origin_dataset = ?7, origin_name = ?8, excluded = ?9, flags = ?10,
                      unchanged_from = ?11, unchanged_to = ?12, listed = ?13
                      WHERE id = ?1";
        let origin = told.origin.as_ref();
        tx.prepare_cached(update)?.execute(params![
            id,
            told.kind == DatasetKind::Volume,
            told.guid.map(|guid| guid.0.cast_signed()),
            told.written.map(u64::cast_signed),
            told.encrypted,
            told.resume_token,
            origin.map(|origin| origin.dataset.as_str()),
            origin.map(|origin| origin.name.as_str()),
            told.excluded,
            told.flags.map(|flags| flags.to_string()),
            told.unchanged.map(|unchanged| unchanged.from),
            told.unchanged.map(|unchanged| unchanged.to),
            told.unchanged.map(|unchanged| unchanged.listed),
        ])?;
    }
    put_snapshots(tx, id, snapshots)?;
    put_bookmarks(tx, id, bookmarks)?;
    for mark in not_written {
        add_not_written(tx, id, &mark)?;
    }
    Ok(())
}

fn put_snapshots(tx: &Transaction<'_>, id: i64, snapshots: Vec<Snapshot>) -> Result<(), Fault> {
    let key = |snapshot: &Snapshot| (snapshot.createtxg, snapshot.guid);
    let mut told = BTreeMap::new();
    for mut snapshot in snapshots {
        let marks = Marks { deleted: false, ..std::mem::take(&mut snapshot.marks) };
        // The listing does not say since when; for forgetting, the snapshot's own age is near enough.
        add_marks(tx, id, snapshot.guid, marks, snapshot.creation)?;
        told.insert(key(&snapshot), snapshot);
    }
    let sql = format!("SELECT {} FROM snapshot WHERE dataset = ?1", rows::SNAPSHOT);
    let (gone, changed) = difference(stored(tx, &sql, id, rows::snapshot)?, told, key);
    let mut delete = tx.prepare_cached("DELETE FROM snapshot WHERE dataset = ?1 AND createtxg = ?2 AND guid = ?3")?;
    for (createtxg, guid) in gone {
        delete.execute([id, createtxg.cast_signed(), guid.0.cast_signed()])?;
    }
    changed.iter().try_for_each(|snapshot| insert_snapshot(tx, id, snapshot))
}

fn insert_snapshot(tx: &Transaction<'_>, id: i64, snapshot: &Snapshot) -> Result<(), Fault> {
    let mut insert = tx.prepare_cached("INSERT OR REPLACE INTO snapshot VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
    insert.execute(params![
        id,
        snapshot.createtxg.cast_signed(),
        snapshot.guid.0.cast_signed(),
        snapshot.name.as_str(),
        snapshot.creation.timestamp(),
        snapshot.userrefs,
        snapshot.has_clones,
        snapshot.used.cast_signed(),
    ])?;
    Ok(())
}

fn put_bookmarks(tx: &Transaction<'_>, id: i64, bookmarks: Vec<Bookmark>) -> Result<(), Fault> {
    let key = |bookmark: &Bookmark| (bookmark.createtxg, bookmark.guid, bookmark.name.clone());
    let told = bookmarks.into_iter().map(|bookmark| (key(&bookmark), bookmark)).collect();
    let sql = format!("SELECT {} FROM bookmark WHERE dataset = ?1", rows::BOOKMARK);
    let (gone, changed) = difference(stored(tx, &sql, id, rows::bookmark)?, told, key);
    let delete = "DELETE FROM bookmark WHERE dataset = ?1 AND createtxg = ?2 AND guid = ?3 AND name = ?4";
    let mut delete = tx.prepare_cached(delete)?;
    for (createtxg, guid, name) in gone {
        delete.execute(params![id, createtxg.cast_signed(), guid.0.cast_signed(), name.as_str()])?;
    }
    let mut insert = tx.prepare_cached("INSERT OR REPLACE INTO bookmark VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for Bookmark { name, guid, createtxg, creation } in changed {
        let (createtxg, guid) = (createtxg.cast_signed(), guid.0.cast_signed());
        insert.execute(params![id, createtxg, guid, name.as_str(), creation.timestamp()])?;
    }
    Ok(())
}

fn stored<T>(
    tx: &Transaction<'_>,
    sql: &str,
    id: i64,
    read: impl Fn(&rusqlite::Row<'_>, usize) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut found = statement.query([id])?;
    let mut values = Vec::new();
    while let Some(row) = found.next()? {
        values.push(read(row, 0)?);
    }
    Ok(values)
}

/// What has to be deleted, by key, and what has to be written.
fn difference<K: Ord, T: PartialEq>(
    stored: Vec<T>,
    mut told: BTreeMap<K, T>,
    key: impl Fn(&T) -> K,
) -> (Vec<K>, Vec<T>) {
    let mut gone = Vec::new();
    for value in stored {
        let key = key(&value);
        match told.get(&key) {
            None => gone.push(key),
            Some(same) if *same == value => {
                told.remove(&key);
            }
            Some(_) => {}
        }
    }
    (gone, told.into_values().collect())
}

/// Adds `#sent` and `#sync`; what is marked so already is not written again.
fn add_marks(tx: &Transaction<'_>, id: i64, guid: Guid, marks: Marks, at: DateTime<Utc>) -> Result<(), Fault> {
    let flags = rows::flags(marks);
    if flags != 0 {
        let upsert = "INSERT INTO mark VALUES (?1, ?2, ?3, ?4)
                      ON CONFLICT DO UPDATE SET flags = flags | excluded.flags WHERE flags | excluded.flags != flags";
        tx.prepare_cached(upsert)?.execute([id, guid.0.cast_signed(), flags, micros(at)])?;
    }
    Ok(())
}

/// Adds marks; `deleted` moves the snapshot to the history.
fn mark(
    tx: &Transaction<'_>,
    host: &HostName,
    dataset: &DatasetName,
    guid: Guid,
    marks: Marks,
    at: DateTime<Utc>,
) -> Result<(), Fault> {
    let id = dataset_id(tx, host_id(tx, host)?, dataset)?;
    add_marks(tx, id, guid, marks, at)?;
    if !marks.deleted {
        return Ok(());
    }
    let guid = guid.0.cast_signed();
    let record = "INSERT INTO destroyed (at, host, dataset, guid, name, flags)
                  SELECT ?3, ?4, ?5, ?2, name, ifnull((SELECT flags FROM mark WHERE dataset = ?1 AND guid = ?2), 0)
                  FROM snapshot WHERE dataset = ?1 AND guid = ?2";
    tx.prepare_cached(record)?.execute(params![id, guid, micros(at), host.as_str(), dataset.as_str()])?;
    for table in ["snapshot", "mark"] {
        let delete = format!("DELETE FROM {table} WHERE dataset = ?1 AND guid = ?2");
        tx.prepare_cached(&delete)?.execute([id, guid])?;
    }
    keep_newest(tx, "destroyed", MAX_DESTROYED)
}

/// Remembers a slot in which nothing had been written.
fn add_not_written(tx: &Transaction<'_>, id: i64, mark: &NotWritten) -> Result<(), Fault> {
    let upsert = "INSERT INTO not_written VALUES (?1, ?2, ?3)
                  ON CONFLICT DO UPDATE SET at = excluded.at WHERE at < excluded.at";
    tx.prepare_cached(upsert)?.execute(params![id, mark.name.as_str(), micros(mark.at)])?;
    Ok(())
}

/// Forgets by age; marks of snapshots that are there have none.
pub(super) fn forget(tx: &Transaction<'_>, older_than: DateTime<Utc>) -> Result<usize, Fault> {
    let before = micros(older_than);
    let mut forgotten = tx.execute("DELETE FROM destroyed WHERE at < ?1", [before])?;
    forgotten += tx.execute("DELETE FROM not_written WHERE at < ?1", [before])?;
    let mut datasets = Vec::new();
    {
        let mut statement = tx.prepare("SELECT DISTINCT dataset FROM mark WHERE at < ?1")?;
        let mut found = statement.query([before])?;
        while let Some(row) = found.next()? {
            datasets.push(rows::integer(row, 0)?);
        }
    }
    // One dataset at a time: so the inner query is worked out once for each, not once for each mark.
    let orphans = "DELETE FROM mark WHERE dataset = ?1 AND at < ?2
                   AND guid NOT IN (SELECT guid FROM snapshot WHERE dataset = ?1)";
    for id in datasets {
        forgotten += tx.prepare_cached(orphans)?.execute([id, before])?;
    }
    let nameless = "DELETE FROM dataset WHERE NOT present
                    AND id NOT IN (SELECT dataset FROM mark) AND id NOT IN (SELECT dataset FROM not_written)";
    tx.execute(nameless, [])?;
    Ok(forgotten)
}

/// Remembers how an order ended.
pub(super) fn record_outcome(tx: &Transaction<'_>, outcome: &Outcome) -> Result<(), Fault> {
    let Outcome { order_id, at, host, action, dataset, snapshot, to, success, status, bytes, seconds, error } = outcome;
    let insert = format!(
        "INSERT INTO outcome ({}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        rows::OUTCOME
    );
    tx.prepare_cached(&insert)?.execute(params![
        order_id.0.as_bytes().as_slice(),
        micros(*at),
        host.as_str(),
        action.to_string(),
        dataset.as_ref().map(DatasetName::as_str),
        snapshot.as_ref().map(crate::model::SnapName::as_str),
        to.as_ref().map(|to| to.host.as_str()),
        to.as_ref().map(|to| to.dataset.as_str()),
        success,
        status.map(|status| i64::from(status.number())),
        bytes.cast_signed(),
        // SQLite stores what is not a number as NULL.
        if seconds.is_finite() { *seconds } else { 0.0 },
        error,
    ])?;
    keep_newest(tx, "outcome", MAX_OUTCOMES)
}

fn keep_newest(tx: &Transaction<'_>, table: &str, most: usize) -> Result<(), Fault> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let delete = format!("DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?1");
    tx.prepare_cached(&delete)?.execute([most])?;
    Ok(())
}

/// Keeps the estimates of one plan, and nothing of the one before.
pub(super) fn replace_estimates(tx: &Transaction<'_>, estimates: &BTreeMap<Uuid, Estimated>) -> Result<(), Fault> {
    tx.execute("DELETE FROM estimate", [])?;
    let mut insert = tx.prepare_cached("INSERT INTO estimate (question, at, bytes, remark) VALUES (?1, ?2, ?3, ?4)")?;
    for (question, Estimated { at, bytes, remark }) in estimates {
        let bytes = bytes.map(u64::cast_signed);
        insert.execute(params![question.as_bytes().as_slice(), micros(*at), bytes, remark])?;
    }
    Ok(())
}
