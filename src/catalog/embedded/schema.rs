//! The tables of the embedded catalog, and the migrations that create them.

use rusqlite::{Connection, TransactionBehavior};

use crate::catalog::embedded::error::DbError;
#[cfg(doc)]
use crate::catalog::embedded::rows;

/// Identifies a file as a catalog of zsync ("zsyn"), in SQLite's `application_id`.
const APPLICATION_ID: i64 = 0x7a73_796e;

/// The SQL that brings a catalog from each version to the next. An empty file has version 0.
/// Released migrations never change; a change of the tables is a new migration.
const MIGRATIONS: &[&str] = &[
    // Version 1. Guids and transaction groups are unsigned, and stored as the signed number with the same bits.
    // Times are in microseconds, except the creation of a snapshot, which ZFS stores in seconds.
    // A dataset that no longer exists, or has only been marked so far, has present = 0: its marks may be needed again.
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
    // Version 2: how much the orders of the latest plan would send or free, by the UUID of the question to an agent.
    "CREATE TABLE estimate (
        question BLOB PRIMARY KEY,
        at INTEGER NOT NULL,
        bytes INTEGER,
        remark TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;",
    // Version 3: the origin of a clone, whether a dataset is excluded, and the flags of the stream that it received.
    "ALTER TABLE dataset ADD COLUMN origin_dataset TEXT;
    ALTER TABLE dataset ADD COLUMN origin_name TEXT;
    ALTER TABLE dataset ADD COLUMN excluded INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE dataset ADD COLUMN flags TEXT;",
    // Version 4: the times, in seconds, that show whether a dataset's snapshots have changed since they were listed.
    "ALTER TABLE dataset ADD COLUMN unchanged_from INTEGER;
    ALTER TABLE dataset ADD COLUMN unchanged_to INTEGER;
    ALTER TABLE dataset ADD COLUMN listed INTEGER;",
    // Version 5: what an administrator can do about the error of an order, and the pools of a host that could not be
    // listed, as a JSON object with a reason for each; whether local.json forbids destroying a dataset's snapshots.
    "ALTER TABLE outcome ADD COLUMN hint TEXT;
    ALTER TABLE host ADD COLUMN unlisted TEXT;
    ALTER TABLE dataset ADD COLUMN append_only INTEGER;",
    // Version 6: the tags of the holds that transfers have left on a dataset's snapshots, one per line.
    "ALTER TABLE dataset ADD COLUMN transfer_holds TEXT;",
    // Version 7: for how many seconds what orders destroy stays in the trash, and what is there, as a JSON list.
    "ALTER TABLE dataset ADD COLUMN destroy_after INTEGER;
    ALTER TABLE dataset ADD COLUMN trashed TEXT;",
];

/// The first version that has estimates.
pub(super) const WITH_ESTIMATES: i64 = 2;
/// The first version whose hosts, datasets and outcomes have all columns that are read.
pub(super) const WITH_ALL_COLUMNS: i64 = 7;

/// The version of the catalogs that this program writes.
pub(super) fn version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// What kind of database a file is.
#[derive(Clone, Copy)]
pub(super) enum FileKind {
    /// A new or empty file.
    Empty,
    /// A catalog of this version or an older one.
    Catalog(i64),
    /// A catalog of a newer version.
    Newer(i64),
    /// The database of another program.
    Foreign,
}

/// Determines the kind of a file without changing it.
pub(super) fn identify(connection: &Connection) -> Result<FileKind, DbError> {
    // The queries are in one transaction, because another process may be creating the catalog.
    let _transaction = connection.unchecked_transaction()?;
    let number = |pragma| connection.pragma_query_value::<i64, _>(None, pragma, |row| row.get(0));
    let (application, found) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(match application {
        APPLICATION_ID if found > version() => FileKind::Newer(found),
        APPLICATION_ID if found > 0 => FileKind::Catalog(found),
        0 if found == 0 && tables == 0 => FileKind::Empty,
        _ => FileKind::Foreign,
    })
}

/// Makes a connection that is going to write use a write-ahead log.
pub(super) fn use_log(connection: &Connection) -> Result<(), DbError> {
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Err(DbError::NoLog);
    }
    connection.pragma_update(None, "synchronous", "normal")?;
    // After a large listing, the log is truncated to this size.
    connection.execute_batch("PRAGMA journal_size_limit = 16777216")?;
    Ok(())
}

/// Migrates a catalog of version `from_version` (0 for an empty one) that is going to be written.
pub(super) fn migrate(connection: &mut Connection, from_version: i64) -> Result<(), DbError> {
    connection.set_prepared_statement_cache_capacity(64);
    let applied = usize::try_from(from_version).unwrap_or(usize::MAX);
    let migrations = MIGRATIONS.get(applied..).unwrap_or_default();
    if !migrations.is_empty() {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for migration in migrations {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", version())?;
        transaction.commit()?;
    }
    Ok(())
}
