//! A copy of the catalog in memory, for as long as there is no room for the catalog on the disk. If the catalog lies on
//! a pool that is full, a pass is what makes room: it must not need any.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::backup::Backup;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::catalog::CatalogError;
use crate::catalog::embedded::error::DbError;
use crate::catalog::embedded::{BUSY_TIMEOUT, open_to_write, schema, usable_version, writing_failed};

/// The catalog in memory.
#[derive(Debug)]
pub(super) struct Spare {
    /// The database.
    pub connection: Connection,
    /// Why it is not in its file.
    pub reason: String,
}

impl Spare {
    /// Copies the file to memory. If the file cannot be read, the copy is empty, and the pass asks the hosts.
    pub fn of(file: &Path, reason: String) -> Result<Self, CatalogError> {
        let copied = open_to_read(file).and_then(|source| {
            let mut copy = Connection::open_in_memory()?;
            copy_all(&source, &mut copy)?;
            Ok((schema::identify(&copy)?, copy))
        });
        let in_file = |error: DbError| error.in_file(file);
        let (version, mut connection) = match copied {
            Ok((kind, copy)) => (usable_version(kind, file)?.unwrap_or(0), copy),
            Err(error) => {
                log::debug!("cannot copy the catalog to memory: {}", in_file(error));
                (0, Connection::open_in_memory().map_err(|error| in_file(error.into()))?)
            }
        };
        schema::migrate(&mut connection, version).map_err(in_file)?;
        Ok(Self { connection, reason })
    }

    /// Writes the catalog to its file, and opens the file.
    pub fn save(&self, file: &Path) -> Result<Connection, CatalogError> {
        let mut connection = open_to_write(file)?;
        copy_all(&self.connection, &mut connection).map_err(|error| writing_failed(error, file))?;
        Ok(connection)
    }
}

fn copy_all(from: &Connection, to: &mut Connection) -> Result<(), DbError> {
    // All pages are copied in one step, and therefore in one transaction.
    Ok(Backup::new(from, to)?.run_to_completion(i32::MAX, Duration::ZERO, None)?)
}

/// Opens the file for reading.
pub(super) fn open_to_read(file: &Path) -> Result<Connection, DbError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let lacks_index = match schema::identify(&connection) {
        Err(DbError::Sqlite(error)) => matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::CannotOpen | ErrorCode::SystemIoFailure | ErrorCode::DiskFull | ErrorCode::ReadOnly)
        ),
        _ => false,
    };
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    if lacks_index && !Path::new(&log).exists() {
        // Even a reader creates the index of the log, for which a full disk has no room. Without a log, nobody is
        // writing, and no index is needed.
        return Ok(Connection::open_with_flags(unchanging(file), flags | OpenFlags::SQLITE_OPEN_URI)?);
    }
    Ok(connection)
}

/// The URI of a file that does not change while it is read.
fn unchanging(file: &Path) -> String {
    let mut uri = "file:".to_owned();
    for byte in file.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    uri
}
