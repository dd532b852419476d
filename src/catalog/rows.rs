//! The embedded catalog's tables: their shape, and the way of values in and out.

use chrono::{DateTime, Utc};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use uuid::Uuid;

use crate::catalog::error::Fault;
use crate::catalog::{Destroyed, Estimated, Outcome};
use crate::model::{
    Action, Bookmark, DatasetInventory, DatasetKind, Guid, Marks, NotWritten, OrderId, Origin, Place, Record,
    ResponseStatus, Snapshot, Unchanged,
};

/// Marks a file as a catalog of zsync ("zsyn"), in SQLite's `application_id`.
pub(super) const APPLICATION_ID: i64 = 0x7a73_796e;

/// What brings a catalog from each version to the next; a fresh file has version 0.
/// Released steps never change: a new shape is a new step.
pub(super) const MIGRATIONS: &[&str] = &[
    // 1: the first. Guids and transaction groups are unsigned and stored as the signed number of the same bits;
    // moments are microseconds, a snapshot's creation (which ZFS has to the second) is seconds.
    // Datasets that are gone, or only marked so far, have present = 0: their marks may be needed again.
    "CREATE TABLE host (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        observed INTEGER
    ) STRICT;
    CREATE TABLE dataset (
        id INTEGER PRIMARY KEY,
        host INTEGER NOT NULL,
        name TEXT NOT NULL,
        present INTEGER NOT NULL DEFAULT 0,
        volume INTEGER NOT NULL DEFAULT 0,
        guid INTEGER,
        written INTEGER,
        encrypted INTEGER NOT NULL DEFAULT 0,
        resume_token TEXT,
        UNIQUE (host, name)
    ) STRICT;
    CREATE TABLE snapshot (
        dataset INTEGER NOT NULL,
        createtxg INTEGER NOT NULL,
        guid INTEGER NOT NULL,
        name TEXT NOT NULL,
        creation INTEGER NOT NULL,
        userrefs INTEGER NOT NULL,
        has_clones INTEGER NOT NULL,
        used INTEGER NOT NULL,
        PRIMARY KEY (dataset, createtxg, guid)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE bookmark (
        dataset INTEGER NOT NULL,
        createtxg INTEGER NOT NULL,
        guid INTEGER NOT NULL,
        name TEXT NOT NULL,
        creation INTEGER NOT NULL,
        PRIMARY KEY (dataset, createtxg, guid, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE mark (
        dataset INTEGER NOT NULL,
        guid INTEGER NOT NULL,
        flags INTEGER NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (dataset, guid)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE not_written (
        dataset INTEGER NOT NULL,
        name TEXT NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (dataset, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE destroyed (
        id INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        host TEXT NOT NULL,
        dataset TEXT NOT NULL,
        guid INTEGER NOT NULL,
        name TEXT NOT NULL,
        flags INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE outcome (
        id INTEGER PRIMARY KEY,
        order_id BLOB NOT NULL,
        at INTEGER NOT NULL,
        host TEXT NOT NULL,
        action TEXT NOT NULL,
        dataset TEXT,
        snapshot TEXT,
        to_host TEXT,
        to_dataset TEXT,
        success INTEGER NOT NULL,
        status INTEGER,
        bytes INTEGER NOT NULL,
        seconds REAL NOT NULL,
        error TEXT
    ) STRICT;",
    // 2: what the orders of the latest plan were estimated to send or free, by the UUID of the question.
    "CREATE TABLE estimate (
        question BLOB PRIMARY KEY,
        at INTEGER NOT NULL,
        bytes INTEGER,
        remark TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;",
    // 3: what a dataset is a clone of, whether it is excluded, and how what it received was sent.
    "ALTER TABLE dataset ADD COLUMN origin_dataset TEXT;
    ALTER TABLE dataset ADD COLUMN origin_name TEXT;
    ALTER TABLE dataset ADD COLUMN excluded INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE dataset ADD COLUMN flags TEXT;",
    // 4: by what it is told whether a dataset's snapshots have changed since they were listed; in seconds.
    "ALTER TABLE dataset ADD COLUMN unchanged_from INTEGER;
    ALTER TABLE dataset ADD COLUMN unchanged_to INTEGER;
    ALTER TABLE dataset ADD COLUMN listed INTEGER;",
];

/// The version from which on there are estimates.
pub(super) const WITH_ESTIMATES: i64 = 2;
/// The version from which on datasets have all of [`DATASET`].
pub(super) const WITH_DATASETS: i64 = 4;

/// The version of a catalog that this program writes.
pub(super) fn version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// What kind of file a connection has before it.
#[derive(Clone, Copy)]
pub(super) enum Found {
    /// A new or empty file.
    Fresh,
    /// A catalog of this version or an older one.
    Catalog(i64),
    /// A catalog of a newer version.
    Newer(i64),
    /// Another program's database.
    Foreign,
}

/// Looks at a file without changing it.
pub(super) fn identify(connection: &Connection) -> Result<Found, Fault> {
    // As of one moment: somebody may be creating it.
    let _moment = connection.unchecked_transaction()?;
    let number = |pragma| connection.pragma_query_value::<i64, _>(None, pragma, |row| row.get(0));
    let (application, found) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(match application {
        APPLICATION_ID if found > version() => Found::Newer(found),
        APPLICATION_ID if found > 0 => Found::Catalog(found),
        0 if found == 0 && tables == 0 => Found::Fresh,
        _ => Found::Foreign,
    })
}

/// A moment as it is stored.
pub(super) fn micros(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros()
}

/// The marks that are stored, `#deleted` not being among them.
pub(super) fn flags(marks: Marks) -> i64 {
    i64::from(marks.sent) | i64::from(marks.sync) << 1
}

/// The other way round.
pub(super) fn marks(flags: i64) -> Marks {
    Marks { sent: flags & 1 != 0, sync: flags & 2 != 0, deleted: false }
}

fn damaged(column: usize, what: impl std::fmt::Display) -> Fault {
    Fault::Damaged(format!("column {column}: {what}"))
}

pub(super) fn integer(row: &Row<'_>, column: usize) -> Result<i64, Fault> {
    row.get_ref(column)?.as_i64().map_err(|error| damaged(column, error))
}

fn unsigned(row: &Row<'_>, column: usize) -> Result<u64, Fault> {
    Ok(integer(row, column)?.cast_unsigned())
}

fn boolean(row: &Row<'_>, column: usize) -> Result<bool, Fault> {
    Ok(integer(row, column)? != 0)
}

pub(super) fn moment(row: &Row<'_>, column: usize) -> Result<DateTime<Utc>, Fault> {
    let micros = integer(row, column)?;
    DateTime::from_timestamp_micros(micros).ok_or_else(|| damaged(column, format_args!("{micros} is no moment")))
}

fn second(row: &Row<'_>, column: usize) -> Result<DateTime<Utc>, Fault> {
    let seconds = integer(row, column)?;
    DateTime::from_timestamp(seconds, 0).ok_or_else(|| damaged(column, format_args!("{seconds} is no moment")))
}

/// A name of any kind, checked as if it came from outside.
pub(super) fn name<T>(row: &Row<'_>, column: usize) -> Result<T, Fault>
where
    T: for<'t> TryFrom<&'t str, Error = crate::model::NameError>,
{
    let text = row.get_ref(column)?.as_str().map_err(|error| damaged(column, error))?;
    T::try_from(text).map_err(|error| damaged(column, error))
}

/// A value that may be NULL.
pub(super) fn maybe<T>(
    row: &Row<'_>,
    column: usize,
    read: impl FnOnce(&Row<'_>, usize) -> Result<T, Fault>,
) -> Result<Option<T>, Fault> {
    if matches!(row.get_ref(column)?, ValueRef::Null) { Ok(None) } else { read(row, column).map(Some) }
}

fn text(row: &Row<'_>, column: usize) -> Result<String, Fault> {
    row.get_ref(column)?.as_str().map(str::to_owned).map_err(|error| damaged(column, error))
}

pub(super) const DATASET: &str = "volume, guid, written, encrypted, resume_token, origin_dataset, origin_name, excluded, \
                                  flags, unchanged_from, unchanged_to, listed";

/// A dataset without what it holds, from the columns [`DATASET`] beginning at `first`.
pub(super) fn dataset(row: &Row<'_>, first: usize) -> Result<DatasetInventory, Fault> {
    Ok(DatasetInventory {
        kind: if boolean(row, first)? { DatasetKind::Volume } else { DatasetKind::Filesystem },
        guid: maybe(row, first + 1, unsigned)?.map(Guid),
        written: maybe(row, first + 2, unsigned)?,
        encrypted: boolean(row, first + 3)?,
        resume_token: maybe(row, first + 4, text)?,
        origin: maybe(row, first + 5, name)?
            .zip(maybe(row, first + 6, name)?)
            .map(|(dataset, name)| Origin { dataset, name }),
        excluded: boolean(row, first + 7)?,
        flags: maybe(row, first + 8, name)?,
        unchanged: match (
            maybe(row, first + 9, integer)?,
            maybe(row, first + 10, integer)?,
            maybe(row, first + 11, integer)?,
        ) {
            (Some(from), Some(to), Some(listed)) => Some(Unchanged { from, to, listed }),
            _ => None,
        },
        ..DatasetInventory::default()
    })
}

pub(super) const SNAPSHOT: &str = "createtxg, guid, name, creation, userrefs, has_clones, used";

/// A snapshot without marks, from the columns [`SNAPSHOT`] beginning at `first`.
pub(super) fn snapshot(row: &Row<'_>, first: usize) -> Result<Snapshot, Fault> {
    Ok(Snapshot {
        createtxg: unsigned(row, first)?,
        guid: Guid(unsigned(row, first + 1)?),
        name: name(row, first + 2)?,
        creation: second(row, first + 3)?,
        userrefs: u32::try_from(integer(row, first + 4)?).map_err(|error| damaged(first + 4, error))?,
        has_clones: boolean(row, first + 5)?,
        used: unsigned(row, first + 6)?,
        marks: Marks::default(),
    })
}

pub(super) const BOOKMARK: &str = "createtxg, guid, name, creation";

/// A bookmark, from the columns [`BOOKMARK`] beginning at `first`.
pub(super) fn bookmark(row: &Row<'_>, first: usize) -> Result<Bookmark, Fault> {
    Ok(Bookmark {
        createtxg: unsigned(row, first)?,
        guid: Guid(unsigned(row, first + 1)?),
        name: name(row, first + 2)?,
        creation: second(row, first + 3)?,
    })
}

/// A `#NotWritten` mark, from the columns `name, at` beginning at `first`.
pub(super) fn not_written(row: &Row<'_>, first: usize) -> Result<NotWritten, Fault> {
    Ok(NotWritten { name: name(row, first)?, at: moment(row, first + 1)? })
}

pub(super) const DESTROYED: &str = "at, host, dataset, guid, name, flags";

/// A `#deleted` record, from the columns [`DESTROYED`].
pub(super) fn destroyed(row: &Row<'_>) -> Result<Destroyed, Fault> {
    let record = Record {
        uuid: Guid(unsigned(row, 3)?).uuid(),
        dataset: name(row, 2)?,
        name: name(row, 4)?,
        marks: Marks { deleted: true, ..marks(integer(row, 5)?) },
    };
    Ok(Destroyed { at: moment(row, 0)?, host: name(row, 1)?, record })
}

pub(super) const OUTCOME: &str =
    "order_id, at, host, action, dataset, snapshot, to_host, to_dataset, success, status, bytes, seconds, error";

/// An outcome, from the columns [`OUTCOME`].
pub(super) fn outcome(row: &Row<'_>) -> Result<Outcome, Fault> {
    let id = row.get_ref(0)?.as_blob().map_err(|error| damaged(0, error))?;
    let to = maybe(row, 6, name)?.zip(maybe(row, 7, name)?);
    Ok(Outcome {
        order_id: OrderId(Uuid::from_slice(id).map_err(|error| damaged(0, error))?),
        at: moment(row, 1)?,
        host: name(row, 2)?,
        action: action(row, 3)?,
        dataset: maybe(row, 4, name)?,
        snapshot: maybe(row, 5, name)?,
        to: to.map(|(host, dataset)| Place { host, dataset }),
        success: boolean(row, 8)?,
        status: maybe(row, 9, status)?,
        bytes: unsigned(row, 10)?,
        seconds: row.get_ref(11)?.as_f64().map_err(|error| damaged(11, error))?,
        error: maybe(row, 12, text)?,
    })
}

/// An estimate and its question, from the columns `question, at, bytes, remark`.
pub(super) fn estimate(row: &Row<'_>) -> Result<(Uuid, Estimated), Fault> {
    let question = row.get_ref(0)?.as_blob().map_err(|error| damaged(0, error))?;
    let question = Uuid::from_slice(question).map_err(|error| damaged(0, error))?;
    Ok((question, Estimated { at: moment(row, 1)?, bytes: maybe(row, 2, unsigned)?, remark: text(row, 3)? }))
}

fn action(row: &Row<'_>, column: usize) -> Result<Action, Fault> {
    let text = text(row, column)?;
    [Action::TakeSnapshot, Action::SendSnapshot, Action::DestroySnapshot, Action::KvResync]
        .into_iter()
        .find(|action| action.to_string() == text)
        .ok_or_else(|| damaged(column, format_args!("{text:?} is no action")))
}

fn status(row: &Row<'_>, column: usize) -> Result<ResponseStatus, Fault> {
    let number = integer(row, column)?;
    let status = ResponseStatus::ALL.iter().copied().find(|status| i64::from(status.number()) == number);
    status.ok_or_else(|| damaged(column, format_args!("{number} is no status")))
}
