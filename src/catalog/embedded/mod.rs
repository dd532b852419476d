//! The embedded catalog, for a director that has no Consul: a SQLite file with one writer and any number of readers.
//!
//! With SQLite's write-ahead log and `synchronous = NORMAL`, every call survives `kill -9`. After a power failure, each
//! call has taken effect completely or not at all, but the last calls may be lost, unless [`CatalogWrite::flush`]
//! followed them. The director then asks the hosts again. In return, a pass over a thousand hosts waits for the disk
//! less often. The index of the log is shared memory, so the catalog needs a local filesystem.
//!
//! `schema` has the tables and their migrations, `rows` converts rows to values, `read` and `write` have the
//! statements, `open` opens the file, `lock` keeps a second writer away, `spare` keeps the catalog in memory while the disk is full, and
//! `error` turns SQLite's errors into a [`CatalogError`].

mod error;
mod lock;
mod open;
mod read;
mod rows;
mod schema;
mod spare;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use uuid::Uuid;

use crate::catalog::embedded::error::DbError;
use crate::catalog::embedded::lock::Lock;
use crate::catalog::embedded::open::{open_to_write, usable_version, writing_failed};
use crate::catalog::embedded::spare::Spare;
use crate::catalog::{CatalogError, CatalogRead, CatalogWrite, Change, Destroyed, Estimated, Holder, Outcome};
use crate::model::{DatasetName, HostInventory, HostListing, HostName, Inventory};

const FILE: &str = "catalog.sqlite";
/// The catalog, open for writing. Meanwhile other processes can open it only for reading.
#[derive(Debug)]
pub struct EmbeddedCatalog {
    file: PathBuf,
    store: Mutex<Store>,
    /// Whether the catalog may be kept in memory while there is no room for it on the disk.
    has_spare: bool,
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
        let in_file = |error: DbError| error.in_file(&self.file);
        let connection = open::open_to_read(&self.file).map_err(in_file)?;
        let kind = schema::identify(&connection).map_err(in_file)?;
        match usable_version(kind, &self.file)? {
            Some(version) if version >= since => read(&connection).map_err(in_file),
            _ => Ok(T::default()),
        }
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
        let store = Store::File(open_to_write(&file)?);
        Ok(Self { file, store: Mutex::new(store), has_spare: false, _lock: lock })
    }

    /// Opens the catalog as [`Self::open_as`] does. While there is no room for it on the disk, it is kept in memory,
    /// because a pass may be what makes room; [`CatalogWrite::unsaved`] then returns the reason.
    pub fn open_with_spare(folder: &Path, holder: Holder) -> Result<Self, CatalogError> {
        let file = folder.join(FILE);
        let lock = Lock::take(folder, holder)?;
        let store = match open_to_write(&file) {
            Ok(connection) => Store::File(connection),
            Err(error @ CatalogError::Full { .. }) => Store::Memory(Spare::of(&file, error.to_string())?),
            Err(error) => return Err(error),
        };
        Ok(Self { file, store: Mutex::new(store), has_spare: true, _lock: lock })
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        // A thread that panicked during a transaction has rolled it back while it unwound.
        self.store.lock()
    }

    /// Simulates a full disk.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: u32) {
        self.store().connection().execute_batch(&format!("PRAGMA max_page_count = {pages}")).unwrap();
    }

    /// Duplicates the locked files, as starting a child process does.
    #[cfg(test)]
    pub(super) fn inherited_lock(&self) -> Vec<fs::File> {
        self._lock.0.iter().map(|file| file.try_clone().unwrap()).collect()
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T, DbError>) -> Result<T, CatalogError> {
        read(self.store().connection()).map_err(|error| error.in_file(&self.file))
    }

    /// Writes in one transaction. If the disk is full, the catalog moves to memory, where the write is repeated.
    fn write<T>(&self, write: impl Fn(&Transaction<'_>) -> Result<T, DbError>) -> Result<T, CatalogError> {
        let mut store = self.store();
        let work = |store: &mut Store| {
            let transaction = store.connection().transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = write(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        let error = match work(&mut store) {
            Ok(value) => return Ok(value),
            Err(error) => writing_failed(error, &self.file),
        };
        if !self.has_spare || !matches!((&error, &*store), (CatalogError::Full { .. }, Store::File(_))) {
            return Err(error);
        }
        *store = Store::Memory(Spare::of(&self.file, error.to_string())?);
        work(&mut store).map_err(|error| error.in_file(&self.file))
    }
}

/// Where the catalog is.
#[derive(Debug)]
enum Store {
    /// In its file.
    File(Connection),
    /// In memory, until there is room for the file.
    Memory(Spare),
}

impl Store {
    fn connection(&mut self) -> &mut Connection {
        match self {
            Self::File(connection) => connection,
            Self::Memory(spare) => &mut spare.connection,
        }
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
        self.write(|tx| write::replace_pools(tx, host, observed, &listing))
    }

    fn update(&self, host: &HostName, changes: Vec<(DatasetName, Change)>) -> Result<(), CatalogError> {
        self.write(|tx| {
            changes.iter().try_for_each(|(dataset, change)| write::change(tx, host, dataset, change.clone()))
        })
    }

    fn forget_marks(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError> {
        self.write(|tx| write::forget(tx, older_than))
    }

    fn forget_hosts(
        &self,
        named: &BTreeSet<HostName>,
        older_than: DateTime<Utc>,
    ) -> Result<BTreeSet<HostName>, CatalogError> {
        self.write(|tx| write::forget_hosts(tx, named, older_than))
    }

    fn record_outcome(&self, outcome: &Outcome) -> Result<(), CatalogError> {
        self.write(|tx| write::record_outcome(tx, outcome))
    }

    fn flush(&self) -> Result<(), CatalogError> {
        let mut store = self.store();
        if let Store::Memory(spare) = &*store {
            match spare.save(&self.file) {
                Ok(connection) => *store = Store::File(connection),
                Err(CatalogError::Full { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // A checkpoint syncs the log to disk before it copies anything into the file itself.
        let checkpoint = store.connection().query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        checkpoint.map_err(|error| DbError::from(error).in_file(&self.file))
    }

    fn unsaved(&self) -> Option<String> {
        match &*self.store() {
            Store::File(_) => None,
            Store::Memory(spare) => Some(spare.reason.clone()),
        }
    }

    fn replace_estimates(&self, estimates: &BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        self.write(|tx| write::replace_estimates(tx, estimates))
    }
}
