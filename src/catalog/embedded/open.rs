//! Opens the catalog's file.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::catalog::CatalogError;
use crate::catalog::embedded::error::DbError;
use crate::catalog::embedded::schema;
use crate::catalog::embedded::schema::FileKind;
use crate::sys::files;

/// How long to wait while another process has the file locked. Readers and the writer never block each other for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// A disk counts as full if it has no room for this many bytes.
const ROOM: u64 = 1 << 20;

/// Opens the file for writing. It is created if it does not exist, and migrated if it is of an older version.
pub(super) fn open_to_write(file: &Path) -> Result<Connection, CatalogError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |error: DbError| writing_failed(error, file);
    // The log and its index get the permissions of the file.
    files::make_private(file);
    let mut connection = Connection::open_with_flags(file, flags).map_err(|error| failed(error.into()))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(|error| failed(error.into()))?;
    let kind = schema::identify(&connection).map_err(failed)?;
    let version = usable_version(kind, file)?.unwrap_or(0);
    schema::use_log(&connection).map_err(failed)?;
    schema::migrate(&mut connection, version).map_err(failed)?;
    Ok(connection)
}

/// The error of a write. SQLite reports a full disk in several ways, so the folder is tried out.
pub(super) fn writing_failed(error: DbError, file: &Path) -> CatalogError {
    match error.in_file(file) {
        CatalogError::Access { path, .. } | CatalogError::Sqlite { path, .. }
            if path.parent().is_some_and(|folder| files::lacks_room(folder, ROOM)) =>
        {
            CatalogError::Full { path }
        }
        error => error,
    }
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

/// Returns the version of a catalog that can be used, or `None` for an empty file.
pub(super) fn usable_version(kind: FileKind, file: &Path) -> Result<Option<i64>, CatalogError> {
    let path = file.to_owned();
    match kind {
        FileKind::Empty => Ok(None),
        FileKind::Catalog(version) => Ok(Some(version)),
        FileKind::Newer(found) => Err(CatalogError::Newer { path, found, known: schema::version() }),
        FileKind::Foreign => Err(CatalogError::Foreign { path }),
    }
}
