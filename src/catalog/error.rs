//! What can be wrong with a catalog, and the way out.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use thiserror::Error;

use crate::consul::ConsulError;
use crate::model::{DatasetName, HostName};

/// Why a catalog cannot be read or written.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// Another process has the catalog open for writing.
    #[error(
        "another director{} is using the catalog {}; only one may run at a time: wait until it ends, or stop it",
        .pid.map_or_else(String::new, |pid| format!(" (process {pid})")), .path.display()
    )]
    Locked {
        /// The catalog's folder.
        path: PathBuf,
        /// The process that has it, where it said so.
        pid: Option<u32>,
        /// What that process is, where it said so.
        holder: Option<crate::catalog::Holder>,
    },
    /// The folder cannot be created, entered, or written to.
    #[error(
        "cannot use the folder {} for the catalog; run as a user who may, or set another catalog.embedded.path in server.json",
        .path.display()
    )]
    Folder {
        /// The catalog's folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file cannot be opened, or not for writing.
    #[error("cannot open the catalog {}; run as the user whom the director runs as, who may write its folder", .path.display())]
    Access {
        /// The catalog's file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The file is not what a catalog has to be.
    #[error(
        "the catalog {} is damaged ({detail}); it holds nothing that the hosts do not know: stop the director and delete the folder {}, \
         the next pass rebuilds it",
        .path.display(), folder(.path).display()
    )]
    Damaged {
        /// The catalog's file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The file is a SQLite database of some other program.
    #[error(
        "{} belongs to another program and is left alone; set another catalog.embedded.path in server.json", .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a newer version of zsync.
    #[error(
        "the catalog {} has version {found}, this zsync knows versions up to {known}; use the newer zsync, or delete the folder {}: \
         the next pass rebuilds it",
        .path.display(), folder(.path).display()
    )]
    Newer {
        /// The catalog's file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// There is no space left where the catalog is.
    #[error("no space is left for the catalog {}; what was being recorded is not, and is found again by the next pass", .path.display())]
    Full {
        /// The catalog's file.
        path: PathBuf,
    },
    /// Somebody else keeps the file locked, though not as a director.
    #[error("the catalog {} has been locked by another program for too long", .path.display())]
    Busy {
        /// The catalog's file.
        path: PathBuf,
    },
    /// Consul cannot be asked, or says no.
    #[error(transparent)]
    Consul(#[from] ConsulError),
    /// Others changed the same pairs again and again.
    #[error(
        "{key} in Consul was changed by others {tries} times in a row while it was being written; it is tried again later"
    )]
    Contended {
        /// The pair.
        key: String,
        /// How often it was tried.
        tries: usize,
    },
    /// More snapshots than Consul takes.
    #[error(
        "{host}:{dataset} has too many snapshots for Consul ({bytes} bytes when compressed, {most} at the most); prune it, \
         or use the embedded catalog"
    )]
    TooLarge {
        /// The host.
        host: HostName,
        /// The dataset.
        dataset: DatasetName,
        /// Compressed.
        bytes: usize,
        /// The most.
        most: usize,
    },
    /// The director's lock in Consul is somebody else's by now.
    #[error("the director's lock in Consul was lost ({0}); no more orders are given")]
    LockLost(String),
    /// Anything else that SQLite says.
    #[error("cannot work with the catalog {}", .path.display())]
    Sqlite {
        /// The catalog's file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
}

fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or(file)
}

/// What went wrong inside, before it is known to which file.
#[derive(Debug)]
pub(super) enum Fault {
    /// SQLite says so.
    Sqlite(rusqlite::Error),
    /// A stored value that nothing here wrote.
    Damaged(String),
    /// The filesystem cannot carry a write-ahead log.
    NoLog,
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Fault {
    /// The error for users.
    pub fn of(self, file: &Path) -> CatalogError {
        let path = file.to_owned();
        let source = match self {
            Self::Damaged(detail) => return CatalogError::Damaged { path, detail },
            Self::NoLog => {
                let why = "the catalog's write-ahead log needs shared memory, as local filesystems have it";
                let source = io::Error::new(io::ErrorKind::Unsupported, why);
                return CatalogError::Folder { path: folder(file).to_owned(), source };
            }
            Self::Sqlite(source) => source,
        };
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                CatalogError::Damaged { path, detail: source.to_string() }
            }
            Some(ErrorCode::DiskFull) => CatalogError::Full { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => CatalogError::Busy { path },
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                CatalogError::Access { path, source }
            }
            // A table or column that is not there, or a value of the wrong kind: the version promised otherwise.
            Some(ErrorCode::Unknown | ErrorCode::TypeMismatch) => {
                CatalogError::Damaged { path, detail: source.to_string() }
            }
            Some(_) => CatalogError::Sqlite { path, source },
            None => CatalogError::Damaged { path, detail: source.to_string() },
        }
    }
}
