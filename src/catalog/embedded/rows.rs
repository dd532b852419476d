//! Converts between the rows of the embedded catalog and the values of the model.

use chrono::{DateTime, Utc};
use rusqlite::Row;
use rusqlite::types::ValueRef;
use uuid::Uuid;

use crate::catalog::embedded::error::DbError;
use crate::catalog::{Destroyed, Estimated, Outcome, Place};
use crate::model::{
    Action, Bookmark, DatasetInventory, DatasetKind, Guid, Marks, NotWritten, OrderId, Origin, Record, ResponseStatus,
    Snapshot, Trashed, Unchanged, UnlistedPools,
};

/// A time as it is stored.
pub(super) fn micros(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros()
}

/// Encodes the marks that are stored. `#deleted` is not among them.
pub(super) fn flags(marks: Marks) -> i64 {
    i64::from(marks.sent) | i64::from(marks.sync) << 1
}

/// Decodes what [`flags`] encoded.
pub(super) fn marks(flags: i64) -> Marks {
    Marks { sent: flags & 1 != 0, sync: flags & 2 != 0, deleted: false }
}

fn damaged(column: usize, reason: impl std::fmt::Display) -> DbError {
    DbError::Damaged(format!("column {column}: {reason}"))
}

pub(super) fn integer(row: &Row<'_>, column: usize) -> Result<i64, DbError> {
    row.get_ref(column)?.as_i64().map_err(|error| damaged(column, error))
}

fn unsigned(row: &Row<'_>, column: usize) -> Result<u64, DbError> {
    Ok(integer(row, column)?.cast_unsigned())
}

fn boolean(row: &Row<'_>, column: usize) -> Result<bool, DbError> {
    Ok(integer(row, column)? != 0)
}

pub(super) fn time(row: &Row<'_>, column: usize) -> Result<DateTime<Utc>, DbError> {
    let micros = integer(row, column)?;
    DateTime::from_timestamp_micros(micros).ok_or_else(|| damaged(column, format_args!("{micros} is not a valid time")))
}

fn time_in_seconds(row: &Row<'_>, column: usize) -> Result<DateTime<Utc>, DbError> {
    let seconds = integer(row, column)?;
    DateTime::from_timestamp(seconds, 0).ok_or_else(|| damaged(column, format_args!("{seconds} is not a valid time")))
}

/// A name of any kind, checked as if it came from another program.
pub(super) fn name<T>(row: &Row<'_>, column: usize) -> Result<T, DbError>
where
    T: for<'t> TryFrom<&'t str, Error = crate::model::NameError>,
{
    let text = row.get_ref(column)?.as_str().map_err(|error| damaged(column, error))?;
    T::try_from(text).map_err(|error| damaged(column, error))
}

/// A value that may be NULL.
pub(super) fn nullable<T>(
    row: &Row<'_>,
    column: usize,
    read: impl FnOnce(&Row<'_>, usize) -> Result<T, DbError>,
) -> Result<Option<T>, DbError> {
    if matches!(row.get_ref(column)?, ValueRef::Null) { Ok(None) } else { read(row, column).map(Some) }
}

fn text(row: &Row<'_>, column: usize) -> Result<String, DbError> {
    row.get_ref(column)?.as_str().map(str::to_owned).map_err(|error| damaged(column, error))
}

pub(super) const DATASET: &str = "volume, guid, written, encrypted, resume_token, origin_dataset, origin_name, excluded, \
                                  flags, unchanged_from, unchanged_to, listed, append_only, transfer_holds, destroy_after, trashed";

/// A dataset without its snapshots, bookmarks and marks, from the columns [`DATASET`] beginning at `first`.
pub(super) fn dataset(row: &Row<'_>, first: usize) -> Result<DatasetInventory, DbError> {
    Ok(DatasetInventory {
        kind: if boolean(row, first)? { DatasetKind::Volume } else { DatasetKind::Filesystem },
        guid: nullable(row, first + 1, unsigned)?.map(Guid),
        written: nullable(row, first + 2, unsigned)?,
        encrypted: boolean(row, first + 3)?,
        resume_token: nullable(row, first + 4, text)?,
        origin: nullable(row, first + 5, name)?
            .zip(nullable(row, first + 6, name)?)
            .map(|(dataset, name)| Origin { dataset, name }),
        excluded: boolean(row, first + 7)?,
        flags: nullable(row, first + 8, name)?,
        unchanged: match (
            nullable(row, first + 9, integer)?,
            nullable(row, first + 10, integer)?,
            nullable(row, first + 11, integer)?,
        ) {
            (Some(from), Some(to), Some(listed)) => Some(Unchanged { from, to, listed }),
            _ => None,
        },
        append_only: nullable(row, first + 12, boolean)?,
        transfer_holds: nullable(row, first + 13, text)?
            .iter()
            .flat_map(|tags| tags.lines())
            .map(str::to_owned)
            .collect(),
        destroy_after: nullable(row, first + 14, unsigned)?,
        trashed: nullable(row, first + 15, trashed)?,
        ..DatasetInventory::default()
    })
}

pub(super) const SNAPSHOT: &str = "createtxg, guid, name, creation, userrefs, has_clones, used";

/// A snapshot without its marks, from the columns [`SNAPSHOT`] beginning at `first`.
pub(super) fn snapshot(row: &Row<'_>, first: usize) -> Result<Snapshot, DbError> {
    Ok(Snapshot {
        createtxg: unsigned(row, first)?,
        guid: Guid(unsigned(row, first + 1)?),
        name: name(row, first + 2)?,
        creation: time_in_seconds(row, first + 3)?,
        userrefs: u32::try_from(integer(row, first + 4)?).map_err(|error| damaged(first + 4, error))?,
        has_clones: boolean(row, first + 5)?,
        used: unsigned(row, first + 6)?,
        marks: Marks::default(),
    })
}

pub(super) const BOOKMARK: &str = "createtxg, guid, name, creation";

/// A bookmark, from the columns [`BOOKMARK`] beginning at `first`.
pub(super) fn bookmark(row: &Row<'_>, first: usize) -> Result<Bookmark, DbError> {
    Ok(Bookmark {
        createtxg: unsigned(row, first)?,
        guid: Guid(unsigned(row, first + 1)?),
        name: name(row, first + 2)?,
        creation: time_in_seconds(row, first + 3)?,
    })
}

/// A `#NotWritten` mark, from the columns `name, at` beginning at `first`.
pub(super) fn not_written(row: &Row<'_>, first: usize) -> Result<NotWritten, DbError> {
    Ok(NotWritten { name: name(row, first)?, at: time(row, first + 1)? })
}

pub(super) const DESTROYED: &str = "at, host, dataset, guid, name, flags";

/// A `#deleted` record, from the columns [`DESTROYED`].
pub(super) fn destroyed(row: &Row<'_>) -> Result<Destroyed, DbError> {
    let record = Record {
        uuid: Guid(unsigned(row, 3)?).uuid(),
        dataset: name(row, 2)?,
        name: name(row, 4)?,
        marks: Marks { deleted: true, ..marks(integer(row, 5)?) },
    };
    Ok(Destroyed { at: time(row, 0)?, host: name(row, 1)?, record })
}

pub(super) const OUTCOME: &str =
    "order_id, at, host, action, dataset, snapshot, to_host, to_dataset, success, status, bytes, seconds, error, hint";

/// An outcome, from the columns [`OUTCOME`].
pub(super) fn outcome(row: &Row<'_>) -> Result<Outcome, DbError> {
    let id = row.get_ref(0)?.as_blob().map_err(|error| damaged(0, error))?;
    let to = nullable(row, 6, name)?.zip(nullable(row, 7, name)?);
    Ok(Outcome {
        order_id: OrderId(Uuid::from_slice(id).map_err(|error| damaged(0, error))?),
        at: time(row, 1)?,
        host: name(row, 2)?,
        action: action(row, 3)?,
        dataset: nullable(row, 4, name)?,
        snapshot: nullable(row, 5, name)?,
        to: to.map(|(host, dataset)| Place { host, dataset }),
        success: boolean(row, 8)?,
        status: nullable(row, 9, status)?,
        bytes: unsigned(row, 10)?,
        seconds: row.get_ref(11)?.as_f64().map_err(|error| damaged(11, error))?,
        error: nullable(row, 12, text)?,
        hint: nullable(row, 13, text)?,
    })
}

/// An estimate and the UUID of its question, from the columns `question, at, bytes, remark`.
pub(super) fn estimate(row: &Row<'_>) -> Result<(Uuid, Estimated), DbError> {
    let question = row.get_ref(0)?.as_blob().map_err(|error| damaged(0, error))?;
    let question = Uuid::from_slice(question).map_err(|error| damaged(0, error))?;
    Ok((question, Estimated { at: time(row, 1)?, bytes: nullable(row, 2, unsigned)?, remark: text(row, 3)? }))
}

/// The pools of a host that could not be listed.
pub(super) fn unlisted_pools(row: &Row<'_>, column: usize) -> Result<UnlistedPools, DbError> {
    serde_json::from_str(&text(row, column)?).map_err(|error| damaged(column, error))
}

/// What is in the trash of a dataset.
fn trashed(row: &Row<'_>, column: usize) -> Result<Vec<Trashed>, DbError> {
    serde_json::from_str(&text(row, column)?).map_err(|error| damaged(column, error))
}

fn action(row: &Row<'_>, column: usize) -> Result<Action, DbError> {
    let text = text(row, column)?;
    [Action::TakeSnapshot, Action::SendSnapshot, Action::DestroySnapshot, Action::KvResync]
        .into_iter()
        .find(|action| action.to_string() == text)
        .ok_or_else(|| damaged(column, format_args!("{text:?} is not an action")))
}

fn status(row: &Row<'_>, column: usize) -> Result<ResponseStatus, DbError> {
    let number = integer(row, column)?;
    let status = ResponseStatus::ALL.iter().copied().find(|status| i64::from(status.number()) == number);
    status.ok_or_else(|| damaged(column, format_args!("{number} is not a status")))
}
