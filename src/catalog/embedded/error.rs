//! Converts errors of SQLite, and of values stored in it, to a [`CatalogError`].

use std::io;
use std::path::Path;

use rusqlite::ErrorCode;

use crate::catalog::CatalogError;

/// An error of the database, without the name of its file.
#[derive(Debug)]
pub(super) enum DbError {
    /// SQLite reported an error.
    Sqlite(rusqlite::Error),
    /// A stored value is one that zsync never writes.
    Damaged(String),
    /// The filesystem does not support a write-ahead log.
    NoLog,
}

impl From<rusqlite::Error> for DbError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl DbError {
    /// Converts into the error that users see, for the database `file`.
    pub fn in_file(self, file: &Path) -> CatalogError {
        let path = file.to_owned();
        let cause = match self {
            Self::Damaged(detail) => return CatalogError::Damaged { path, detail },
            Self::NoLog => {
                let reason = "the catalog's write-ahead log needs shared memory, which only local filesystems have";
                let cause = io::Error::new(io::ErrorKind::Unsupported, reason);
                return CatalogError::Folder { path: file.parent().unwrap_or(file).to_owned(), cause };
            }
            Self::Sqlite(cause) => cause,
        };
        match cause.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                CatalogError::Damaged { path, detail: cause.to_string() }
            }
            Some(ErrorCode::DiskFull) => CatalogError::Full { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => CatalogError::Busy { path },
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                CatalogError::Access { path, cause }
            }
            // A missing table or column, or a value of the wrong type: the file is not what its version promises.
            Some(ErrorCode::Unknown | ErrorCode::TypeMismatch) => {
                CatalogError::Damaged { path, detail: cause.to_string() }
            }
            Some(_) => CatalogError::Sqlite { path, cause },
            None => CatalogError::Damaged { path, detail: cause.to_string() },
        }
    }
}
