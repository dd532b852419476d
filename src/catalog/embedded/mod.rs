//! The embedded catalog, for a director that has no Consul: a SQLite file with one writer and any number of readers.
//!
//! With SQLite's write-ahead log and `synchronous = NORMAL`, every call survives `kill -9`. After a power failure, each
//! call has taken effect completely or not at all, but the last calls may be lost, unless [`CatalogWrite::flush`]
//! followed them. The director then asks the hosts again. In return, a pass over a thousand hosts waits for the disk
//! less often. The index of the log is shared memory, so the catalog needs a local filesystem.
//!
//! `schema` has the tables and their migrations, `rows` converts rows to values, `read` and `write` have the
//! statements, `lock` keeps a second writer away, and `error` turns SQLite's errors into a [`CatalogError`].

mod error;
mod lock;
mod read;
mod rows;
mod schema;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use uuid::Uuid;

use crate::catalog::embedded::error::DbError;
use crate::catalog::embedded::lock::Lock;
use crate::catalog::embedded::schema::FileKind;
use crate::catalog::{CatalogError, CatalogRead, CatalogWrite, Change, Destroyed, Estimated, Holder, Outcome};
use crate::model::{DatasetName, HostInventory, HostListing, HostName, Inventory};

const FILE: &str = "catalog.sqlite";
/// How long to wait while another process has the file locked. Readers and the writer never block each other for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The catalog, open for writing. Meanwhile other processes can open it only for reading.
#[derive(Debug)]
pub struct EmbeddedCatalog {
    file: PathBuf,
    connection: Mutex<Connection>,
    /// The lock is released after the connection is closed, because fields are dropped in order.
    _lock: Lock,
}

/// The catalog, open for reading, even while a director writes it. A catalog that does not exist yet is empty.
#[derive(Clone, Debug)]
pub struct EmbeddedReader {
    file: PathBuf,
}

impl EmbeddedReader {
    /// A reader of the catalog in this folder. Each call opens the file, and none creates it.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { file: folder.join(FILE) }
    }

    fn read<T: Default>(&self, read: impl FnOnce(&Connection) -> Result<T, DbError>) -> Result<T, CatalogError> {
        self.read_since(1, read)
    }

    /// Reads something that catalogs have contained since version `since`. For an older catalog, the result is empty.
    fn read_since<T: Default>(
        &self,
        since: i64,
        read: impl FnOnce(&Connection) -> Result<T, DbError>,
    ) -> Result<T, CatalogError> {
        match fs::metadata(&self.file) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
            Err(cause) => {
                let path = self.file.parent().unwrap_or(&self.file).to_owned();
                return Err(CatalogError::Folder { path, cause });
            }
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let in_file = |error: DbError| error.in_file(&self.file);
        let connection = Connection::open_with_flags(&self.file, flags).map_err(|error| in_file(error.into()))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(|error| in_file(error.into()))?;
        let kind = schema::identify(&connection).map_err(in_file)?;
        match usable_version(kind, &self.file)? {
            Some(version) if version >= since => read(&connection).map_err(in_file),
            _ => Ok(T::default()),
        }
    }
}

/// Returns the version of a catalog that can be used, or `None` for an empty file.
fn usable_version(kind: FileKind, file: &Path) -> Result<Option<i64>, CatalogError> {
    let path = file.to_owned();
    match kind {
        FileKind::Empty => Ok(None),
        FileKind::Catalog(version) => Ok(Some(version)),
        FileKind::Newer(found) => Err(CatalogError::Newer { path, found, known: schema::version() }),
        FileKind::Foreign => Err(CatalogError::Foreign { path }),
    }
}

impl CatalogRead for EmbeddedReader {
    fn inventory(&self) -> Result<Inventory, CatalogError> {
        // The next pass migrates an older catalog, and fills it from the hosts.
        self.read_since(schema::WITH_ALL_COLUMNS, |connection| read::inventory(connection, None))
    }

    fn host(&self, host: &HostName) -> Result<Option<HostInventory>, CatalogError> {
        let found = self.read_since(schema::WITH_ALL_COLUMNS, |connection| read::inventory(connection, Some(host)));
        Ok(found?.hosts.remove(host))
    }

    fn outcomes(&self, limit: usize) -> Result<Vec<Outcome>, CatalogError> {
        self.read_since(schema::WITH_ALL_COLUMNS, |connection| read::outcomes(connection, limit))
    }

    fn destroyed(&self, limit: usize) -> Result<Vec<Destroyed>, CatalogError> {
        self.read(|connection| read::destroyed(connection, limit))
    }

    fn estimates(&self) -> Result<BTreeMap<Uuid, Estimated>, CatalogError> {
        self.read_since(schema::WITH_ESTIMATES, read::estimates)
    }
}

impl EmbeddedCatalog {
    /// Opens the catalog in this folder for writing, as a director. Creates folder and catalog if they do not exist.
    pub fn open(folder: &Path) -> Result<Self, CatalogError> {
        Self::open_as(folder, Holder::Director)
    }

    /// Opens the catalog as [`Self::open`] does. Other programs that try to do so get an error that names this
    /// `holder`.
    pub fn open_as(folder: &Path, holder: Holder) -> Result<Self, CatalogError> {
        let file = folder.join(FILE);
        let lock = Lock::take(folder, holder)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let in_file = |error: DbError| error.in_file(&file);
        let mut connection = Connection::open_with_flags(&file, flags).map_err(|error| in_file(error.into()))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(|error| in_file(error.into()))?;
        let kind = schema::identify(&connection).map_err(in_file)?;
        let version = usable_version(kind, &file)?.unwrap_or(0);
        schema::prepare(&mut connection, version).map_err(in_file)?;
        Ok(Self { file, connection: Mutex::new(connection), _lock: lock })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A thread that panicked during a transaction has rolled it back while it unwound.
        self.connection.lock()
    }

    /// Simulates a full disk.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: u32) {
        self.connection().execute_batch(&format!("PRAGMA max_page_count = {pages}")).unwrap();
    }

    /// Duplicates the lock file, as starting a child process does.
    #[cfg(test)]
    pub(super) fn inherited_lock(&self) -> fs::File {
        self._lock.0.try_clone().unwrap()
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T, DbError>) -> Result<T, CatalogError> {
        read(&self.connection()).map_err(|error| error.in_file(&self.file))
    }

    fn write<T>(&self, write: impl FnOnce(&Transaction<'_>) -> Result<T, DbError>) -> Result<T, CatalogError> {
        let mut connection = self.connection();
        let work = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = write(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        work().map_err(|error: DbError| error.in_file(&self.file))
    }
}

impl CatalogRead for EmbeddedCatalog {
    fn inventory(&self) -> Result<Inventory, CatalogError> {
        self.read(|connection| read::inventory(connection, None))
    }

    fn host(&self, host: &HostName) -> Result<Option<HostInventory>, CatalogError> {
        Ok(self.read(|connection| read::inventory(connection, Some(host)))?.hosts.remove(host))
    }

    fn outcomes(&self, limit: usize) -> Result<Vec<Outcome>, CatalogError> {
        self.read(|connection| read::outcomes(connection, limit))
    }

    fn destroyed(&self, limit: usize) -> Result<Vec<Destroyed>, CatalogError> {
        self.read(|connection| read::destroyed(connection, limit))
    }

    fn estimates(&self) -> Result<BTreeMap<Uuid, Estimated>, CatalogError> {
        self.read(read::estimates)
    }
}

impl CatalogWrite for EmbeddedCatalog {
    fn replace_pools(
        &self,
        host: &HostName,
        observed: DateTime<Utc>,
        listing: HostListing,
    ) -> Result<(), CatalogError> {
        self.write(|tx| write::replace_pools(tx, host, observed, listing))
    }

    fn update(&self, host: &HostName, changes: Vec<(DatasetName, Change)>) -> Result<(), CatalogError> {
        self.write(|tx| changes.into_iter().try_for_each(|(dataset, change)| write::change(tx, host, &dataset, change)))
    }

    fn forget_marks(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError> {
        self.write(|tx| write::forget(tx, older_than))
    }

    fn record_outcome(&self, outcome: &Outcome) -> Result<(), CatalogError> {
        self.write(|tx| write::record_outcome(tx, outcome))
    }

    fn flush(&self) -> Result<(), CatalogError> {
        // A checkpoint syncs the log to disk before it copies anything into the file itself.
        let checkpoint = self.connection().query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        checkpoint.map_err(|error| DbError::from(error).in_file(&self.file))
    }

    fn replace_estimates(&self, estimates: &BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        self.write(|tx| write::replace_estimates(tx, estimates))
    }
}
