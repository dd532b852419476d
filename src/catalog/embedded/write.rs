//! Writes the embedded catalog's tables, each call within the caller's transaction.
//!
//! A director lists every host at the start of each pass, and most of each listing is known already. Therefore only
//! rows that changed are written.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::{DateTime, Utc};
use rusqlite::{OptionalExtension, Transaction, params};
use uuid::Uuid;

use crate::catalog::dataset::newest_of_prefix;
use crate::catalog::embedded::error::DbError;
use crate::catalog::embedded::rows;
use crate::catalog::embedded::rows::micros;
use crate::catalog::{Change, Estimated, MAX_DESTROYED, MAX_OUTCOMES, Outcome};
use crate::model::{
    Bookmark, DatasetInventory, DatasetKind, DatasetName, Guid, HostListing, HostName, Marks, NotWritten, SnapName,
    Snapshot,
};

/// Returns the id of a host, which is inserted if it is not known.
fn host_id(tx: &Transaction<'_>, host: &HostName) -> Result<i64, DbError> {
    let known = "SELECT id FROM host WHERE name = ?1";
    if let Some(id) = tx.prepare_cached(known)?.query_row([host.as_str()], |row| row.get(0)).optional()? {
        return Ok(id);
    }
    tx.prepare_cached("INSERT INTO host (name) VALUES (?1)")?.execute([host.as_str()])?;
    Ok(tx.last_insert_rowid())
}

fn find_dataset(tx: &Transaction<'_>, host: i64, dataset: &DatasetName) -> Result<Option<i64>, DbError> {
    let mut statement = tx.prepare_cached("SELECT id FROM dataset WHERE host = ?1 AND name = ?2")?;
    Ok(statement.query_row(params![host, dataset.as_str()], |row| row.get(0)).optional()?)
}

/// Returns the id of a dataset, which is inserted as not present if it is not known.
fn dataset_id(tx: &Transaction<'_>, host: i64, dataset: &DatasetName) -> Result<i64, DbError> {
    if let Some(id) = find_dataset(tx, host, dataset)? {
        return Ok(id);
    }
    tx.prepare_cached("INSERT INTO dataset (host, name) VALUES (?1, ?2)")?.execute(params![host, dataset.as_str()])?;
    Ok(tx.last_insert_rowid())
}

/// See [`CatalogWrite::replace_pools`](crate::catalog::CatalogWrite::replace_pools).
pub(super) fn replace_pools(
    tx: &Transaction<'_>,
    host: &HostName,
    observed: DateTime<Utc>,
    HostListing { datasets, unlisted }: &HostListing,
) -> Result<(), DbError> {
    let host = host_id(tx, host)?;
    let pools = serde_json::to_string(unlisted).ok().filter(|_| !unlisted.is_empty());
    let update = "UPDATE host SET observed = ?2, unlisted = ?3 WHERE id = ?1";
    tx.prepare_cached(update)?.execute(params![host, micros(observed), pools])?;
    let mut missing: HashSet<i64> = HashSet::new();
    {
        let mut statement = tx.prepare_cached("SELECT id, name FROM dataset WHERE host = ?1 AND present")?;
        let mut found = statement.query([host])?;
        while let Some(row) = found.next()? {
            if unlisted.is_empty() || !unlisted.contains_key(rows::name::<DatasetName>(row, 1)?.pool()) {
                missing.insert(rows::integer(row, 0)?);
            }
        }
    }
    for (name, inventory) in datasets {
        let id = dataset_id(tx, host, name)?;
        missing.remove(&id);
        set_listed(tx, id, inventory.clone())?;
    }
    for id in missing {
        clear_listed(tx, id)?;
    }
    // The #NotWritten marks of datasets that the host does not have are obsolete.
    let unlisted = "DELETE FROM not_written WHERE dataset IN (SELECT id FROM dataset WHERE host = ?1 AND NOT present)";
    tx.prepare_cached(unlisted)?.execute([host])?;
    Ok(())
}

/// Applies one change.
pub(super) fn change(
    tx: &Transaction<'_>,
    host: &HostName,
    dataset: &DatasetName,
    change: Change,
) -> Result<(), DbError> {
    let id = || dataset_id(tx, host_id(tx, host)?, dataset);
    match change {
        Change::Listed(inventory) => set_listed(tx, id()?, inventory),
        Change::Gone => remove_dataset(tx, host, dataset),
        Change::Taken(snapshot) => add_snapshot(tx, id()?, snapshot),
        Change::Mark { guid, marks, at } => mark(tx, host, dataset, guid, marks, at),
        Change::NotWritten(slot) => add_not_written(tx, id()?, &slot),
    }
}

/// Adds a snapshot to a dataset, to which nothing has been written since.
fn add_snapshot(tx: &Transaction<'_>, id: i64, mut snapshot: Snapshot) -> Result<(), DbError> {
    let marks = Marks { deleted: false, ..std::mem::take(&mut snapshot.marks) };
    add_marks(tx, id, snapshot.guid, marks, snapshot.creation)?;
    let known = "SELECT 1 FROM snapshot WHERE dataset = ?1 AND guid = ?2";
    if !tx.prepare_cached(known)?.exists([id, snapshot.guid.0.cast_signed()])? {
        insert_snapshot(tx, id, &snapshot)?;
    }
    let reappears = "UPDATE dataset SET present = 1, volume = 0, guid = NULL, encrypted = 0, resume_token = NULL
                WHERE id = ?1 AND NOT present";
    tx.prepare_cached(reappears)?.execute([id])?;
    tx.prepare_cached("UPDATE dataset SET written = 0 WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// Removes a dataset from the inventory, if it is known.
fn remove_dataset(tx: &Transaction<'_>, host: &HostName, dataset: &DatasetName) -> Result<(), DbError> {
    let host = host_id(tx, host)?;
    find_dataset(tx, host, dataset)?.map_or(Ok(()), |id| clear_listed(tx, id))
}

/// Removes a dataset from the inventory. Its marks are kept in case it comes back, as after an import of its pool.
fn clear_listed(tx: &Transaction<'_>, id: i64) -> Result<(), DbError> {
    tx.prepare_cached("UPDATE dataset SET present = 0 WHERE id = ?1")?.execute([id])?;
    for table in ["snapshot", "bookmark", "not_written"] {
        tx.prepare_cached(&format!("DELETE FROM {table} WHERE dataset = ?1"))?.execute([id])?;
    }
    Ok(())
}

/// Replaces the listing of a dataset.
fn set_listed(tx: &Transaction<'_>, id: i64, mut listed: DatasetInventory) -> Result<(), DbError> {
    let snapshots = std::mem::take(&mut listed.snapshots);
    let bookmarks = std::mem::take(&mut listed.bookmarks);
    let not_written = std::mem::take(&mut listed.not_written);
    // What remains is the dataset's own row.
    let select = format!("SELECT present, {} FROM dataset WHERE id = ?1", rows::DATASET);
    let known = {
        let mut statement = tx.prepare_cached(&select)?;
        let mut found = statement.query([id])?;
        let row = found.next()?.ok_or_else(|| DbError::Damaged(format!("dataset {id} does not exist")))?;
        (rows::integer(row, 0)? != 0).then(|| rows::dataset(row, 1)).transpose()?
    };
    // The listing that follows an order does not say what local.json forbids, and what is in the trash.
    listed.snapshots = snapshots;
    listed.complete_from(known.as_ref());
    let snapshots = std::mem::take(&mut listed.snapshots);
    if known.as_ref() != Some(&listed) {
        let update = "UPDATE dataset SET present = 1, volume = ?2, guid = ?3, written = ?4, encrypted = ?5,
                      resume_token = ?6, origin_dataset = ?7, origin_name = ?8, excluded = ?9, flags = ?10,
                      unchanged_from = ?11, unchanged_to = ?12, listed = ?13, append_only = ?14,
                      transfer_holds = ?15, destroy_after = ?16, trashed = ?17
                      WHERE id = ?1";
        let origin = listed.origin.as_ref();
        tx.prepare_cached(update)?.execute(params![
            id,
            listed.kind == DatasetKind::Volume,
            listed.guid.map(|guid| guid.0.cast_signed()),
            listed.written.map(u64::cast_signed),
            listed.encrypted,
            listed.resume_token,
            origin.map(|origin| origin.dataset.as_str()),
            origin.map(|origin| origin.name.as_str()),
            listed.excluded,
            listed.flags.map(|flags| flags.to_string()),
            listed.unchanged.map(|unchanged| unchanged.from),
            listed.unchanged.map(|unchanged| unchanged.to),
            listed.unchanged.map(|unchanged| unchanged.listed),
            listed.append_only,
            (!listed.transfer_holds.is_empty()).then(|| listed.transfer_holds.join("\n")),
            listed.destroy_after.map(u64::cast_signed),
            listed.trashed.as_ref().and_then(|trashed| serde_json::to_string(trashed).ok()),
        ])?;
    }
    set_snapshots(tx, id, snapshots)?;
    set_bookmarks(tx, id, bookmarks)?;
    for mark in not_written {
        add_not_written(tx, id, &mark)?;
    }
    Ok(())
}

fn set_snapshots(tx: &Transaction<'_>, id: i64, snapshots: Vec<Snapshot>) -> Result<(), DbError> {
    let key = |snapshot: &Snapshot| (snapshot.createtxg, snapshot.guid);
    let mut listed = BTreeMap::new();
    for mut snapshot in snapshots {
        let marks = Marks { deleted: false, ..std::mem::take(&mut snapshot.marks) };
        // A listing does not say when a mark was made. The creation of the snapshot is close enough for forgetting it.
        add_marks(tx, id, snapshot.guid, marks, snapshot.creation)?;
        listed.insert(key(&snapshot), snapshot);
    }
    let sql = format!("SELECT {} FROM snapshot WHERE dataset = ?1", rows::SNAPSHOT);
    let (removed, changed) = difference(stored(tx, &sql, id, rows::snapshot)?, listed, key);
    let mut delete = tx.prepare_cached("DELETE FROM snapshot WHERE dataset = ?1 AND createtxg = ?2 AND guid = ?3")?;
    for (createtxg, guid) in removed {
        delete.execute([id, createtxg.cast_signed(), guid.0.cast_signed()])?;
    }
    changed.iter().try_for_each(|snapshot| insert_snapshot(tx, id, snapshot))
}

fn insert_snapshot(tx: &Transaction<'_>, id: i64, snapshot: &Snapshot) -> Result<(), DbError> {
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

fn set_bookmarks(tx: &Transaction<'_>, id: i64, bookmarks: Vec<Bookmark>) -> Result<(), DbError> {
    let key = |bookmark: &Bookmark| (bookmark.createtxg, bookmark.guid, bookmark.name.clone());
    let listed = bookmarks.into_iter().map(|bookmark| (key(&bookmark), bookmark)).collect();
    let sql = format!("SELECT {} FROM bookmark WHERE dataset = ?1", rows::BOOKMARK);
    let (removed, changed) = difference(stored(tx, &sql, id, rows::bookmark)?, listed, key);
    let delete = "DELETE FROM bookmark WHERE dataset = ?1 AND createtxg = ?2 AND guid = ?3 AND name = ?4";
    let mut delete = tx.prepare_cached(delete)?;
    for (createtxg, guid, name) in removed {
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
    read: impl Fn(&rusqlite::Row<'_>, usize) -> Result<T, DbError>,
) -> Result<Vec<T>, DbError> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut found = statement.query([id])?;
    let mut values = Vec::new();
    while let Some(row) = found.next()? {
        values.push(read(row, 0)?);
    }
    Ok(values)
}

/// Compares stored rows with the new listing: returns the keys of the rows to delete, and the values to write.
fn difference<K: Ord, T: PartialEq>(
    stored: Vec<T>,
    mut listed: BTreeMap<K, T>,
    key: impl Fn(&T) -> K,
) -> (Vec<K>, Vec<T>) {
    let mut removed = Vec::new();
    for value in stored {
        let key = key(&value);
        match listed.get(&key) {
            None => removed.push(key),
            Some(same) if *same == value => {
                listed.remove(&key);
            }
            Some(_) => {}
        }
    }
    (removed, listed.into_values().collect())
}

/// Adds `#sent` and `#sync`. Marks that are set already are not written again.
fn add_marks(tx: &Transaction<'_>, id: i64, guid: Guid, marks: Marks, at: DateTime<Utc>) -> Result<(), DbError> {
    let flags = rows::flags(marks);
    if flags != 0 {
        let upsert = "INSERT INTO mark VALUES (?1, ?2, ?3, ?4)
                      ON CONFLICT DO UPDATE SET flags = flags | excluded.flags WHERE flags | excluded.flags != flags";
        tx.prepare_cached(upsert)?.execute([id, guid.0.cast_signed(), flags, micros(at)])?;
    }
    Ok(())
}

/// Adds marks. `deleted` moves the snapshot to the history.
fn mark(
    tx: &Transaction<'_>,
    host: &HostName,
    dataset: &DatasetName,
    guid: Guid,
    marks: Marks,
    at: DateTime<Utc>,
) -> Result<(), DbError> {
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

/// Records a slot in which no snapshot was taken, because nothing had been written.
fn add_not_written(tx: &Transaction<'_>, id: i64, mark: &NotWritten) -> Result<(), DbError> {
    let upsert = "INSERT INTO not_written VALUES (?1, ?2, ?3)
                  ON CONFLICT DO UPDATE SET at = excluded.at WHERE at < excluded.at";
    tx.prepare_cached(upsert)?.execute(params![id, mark.name.as_str(), micros(mark.at)])?;
    Ok(())
}

/// See [`CatalogWrite::forget_marks`](crate::catalog::CatalogWrite::forget_marks).
pub(super) fn forget(tx: &Transaction<'_>, older_than: DateTime<Utc>) -> Result<usize, DbError> {
    let before = micros(older_than);
    let mut forgotten = tx.execute("DELETE FROM destroyed WHERE at < ?1", [before])?;
    forgotten += forget_not_written(tx, older_than)?;
    let mut datasets = Vec::new();
    {
        let mut statement = tx.prepare("SELECT DISTINCT dataset FROM mark WHERE at < ?1")?;
        let mut found = statement.query([before])?;
        while let Some(row) = found.next()? {
            datasets.push(rows::integer(row, 0)?);
        }
    }
    // One dataset at a time, so that the inner query runs once per dataset, not once per mark.
    let orphans = "DELETE FROM mark WHERE dataset = ?1 AND at < ?2
                   AND guid NOT IN (SELECT guid FROM snapshot WHERE dataset = ?1)";
    for id in datasets {
        forgotten += tx.prepare_cached(orphans)?.execute([id, before])?;
    }
    let unused = "DELETE FROM dataset WHERE NOT present
                    AND id NOT IN (SELECT dataset FROM mark) AND id NOT IN (SELECT dataset FROM not_written)";
    tx.execute(unused, [])?;
    Ok(forgotten)
}

/// Deletes old `#NotWritten` marks, except the newest of each dataset and prefix.
fn forget_not_written(tx: &Transaction<'_>, older_than: DateTime<Utc>) -> Result<usize, DbError> {
    let mut by_dataset: BTreeMap<i64, BTreeMap<SnapName, DateTime<Utc>>> = BTreeMap::new();
    {
        let old = "SELECT dataset, name, at FROM not_written
                   WHERE dataset IN (SELECT dataset FROM not_written WHERE at < ?1)";
        let mut statement = tx.prepare(old)?;
        let mut found = statement.query([micros(older_than)])?;
        while let Some(row) = found.next()? {
            let marks = by_dataset.entry(rows::integer(row, 0)?).or_default();
            marks.insert(rows::name(row, 1)?, rows::time(row, 2)?);
        }
    }
    let mut forgotten = 0;
    let mut delete = tx.prepare_cached("DELETE FROM not_written WHERE dataset = ?1 AND name = ?2")?;
    for (dataset, marks) in by_dataset {
        let newest = newest_of_prefix(&marks);
        for (name, _) in marks.iter().filter(|(name, at)| **at < older_than && !newest.contains(*name)) {
            forgotten += delete.execute(params![dataset, name.as_str()])?;
        }
    }
    Ok(forgotten)
}

/// See [`CatalogWrite::forget_hosts`](crate::catalog::CatalogWrite::forget_hosts).
pub(super) fn forget_hosts(
    tx: &Transaction<'_>,
    named: &BTreeSet<HostName>,
    older_than: DateTime<Utc>,
) -> Result<BTreeSet<HostName>, DbError> {
    let old = "WITH of_dataset(host, dataset) AS
                   (SELECT host.name, dataset.id FROM host JOIN dataset ON dataset.host = host.id),
               recorded(host, at) AS (
                   SELECT name, observed FROM host WHERE observed IS NOT NULL
                   UNION ALL SELECT host.name, listed * 1000000 FROM host JOIN dataset ON dataset.host = host.id
                       WHERE present AND listed IS NOT NULL
                   UNION ALL SELECT host, at FROM mark JOIN of_dataset USING (dataset)
                   UNION ALL SELECT host, at FROM not_written JOIN of_dataset USING (dataset)
                   UNION ALL SELECT host, at FROM destroyed
                   UNION ALL SELECT host, at FROM outcome)
               SELECT host FROM recorded GROUP BY host HAVING max(at) < ?1";
    let mut hosts: BTreeSet<HostName> = BTreeSet::new();
    {
        let mut statement = tx.prepare(old)?;
        let mut found = statement.query([micros(older_than)])?;
        while let Some(row) = found.next()? {
            hosts.insert(rows::name(row, 0)?);
        }
    }
    hosts.retain(|host| !named.contains(host));
    for host in &hosts {
        let datasets = "SELECT dataset.id FROM dataset JOIN host ON dataset.host = host.id WHERE host.name = ?1";
        for table in ["snapshot", "bookmark", "mark", "not_written"] {
            tx.execute(&format!("DELETE FROM {table} WHERE dataset IN ({datasets})"), [host.as_str()])?;
        }
        tx.execute("DELETE FROM dataset WHERE host IN (SELECT id FROM host WHERE name = ?1)", [host.as_str()])?;
        for (table, column) in [("host", "name"), ("destroyed", "host"), ("outcome", "host")] {
            tx.execute(&format!("DELETE FROM {table} WHERE {column} = ?1"), [host.as_str()])?;
        }
    }
    Ok(hosts)
}

/// Records how an order ended.
pub(super) fn record_outcome(tx: &Transaction<'_>, outcome: &Outcome) -> Result<(), DbError> {
    let Outcome { order_id, at, host, action, dataset, snapshot, to, success, status, bytes, seconds, error, hint } =
        outcome;
    let insert = format!(
        "INSERT INTO outcome ({}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        rows::OUTCOME
    );
    tx.prepare_cached(&insert)?.execute(params![
        order_id.0.as_bytes().as_slice(),
        micros(*at),
        host.as_str(),
        action.to_string(),
        dataset.as_ref().map(DatasetName::as_str),
        snapshot.as_ref().map(SnapName::as_str),
        to.as_ref().map(|to| to.host.as_str()),
        to.as_ref().map(|to| to.dataset.as_str()),
        success,
        status.map(|status| i64::from(status.number())),
        bytes.cast_signed(),
        // SQLite would store NaN as NULL.
        if seconds.is_finite() { *seconds } else { 0.0 },
        error,
        hint,
    ])?;
    keep_newest(tx, "outcome", MAX_OUTCOMES)
}

fn keep_newest(tx: &Transaction<'_>, table: &str, most: usize) -> Result<(), DbError> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let delete = format!("DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?1");
    tx.prepare_cached(&delete)?.execute([most])?;
    Ok(())
}

/// Replaces the stored estimates with those of a new plan.
pub(super) fn replace_estimates(tx: &Transaction<'_>, estimates: &BTreeMap<Uuid, Estimated>) -> Result<(), DbError> {
    tx.execute("DELETE FROM estimate", [])?;
    let mut insert = tx.prepare_cached("INSERT INTO estimate (question, at, bytes, remark) VALUES (?1, ?2, ?3, ?4)")?;
    for (question, Estimated { at, bytes, remark }) in estimates {
        let bytes = bytes.map(u64::cast_signed);
        insert.execute(params![question.as_bytes().as_slice(), micros(*at), bytes, remark])?;
    }
    Ok(())
}
