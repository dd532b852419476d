//! The catalog of a director that has no Consul: a SQLite file, one writer beside any number of readers.
//!
//! SQLite's write-ahead log with `synchronous = NORMAL` makes every call survive `kill -9`, and a loss of power as a
//! whole or not at all: the last ones before it may be lost, unless [`CatalogWrite::flush`] came after them. What they
//! said is asked of the hosts again, and a pass over a thousand hosts need not wait for the disk as often. It needs a
//! local filesystem: the log's index is shared memory.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use uuid::Uuid;

use crate::catalog::error::{CatalogError, Fault};
use crate::catalog::rows;
use crate::catalog::rows::Found;
use crate::catalog::{CatalogRead, CatalogWrite, Change, Destroyed, Estimated, Outcome, merge};
use crate::model::{DatasetInventory, DatasetName, HostInventory, HostName, Inventory};

const FILE: &str = "catalog.sqlite";
const LOCK: &str = "director.lock";
/// How long to wait for somebody who has the file locked; readers and the writer never lock each other out for long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who has a catalog open for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A director in its loop.
    Director,
    /// One pass.
    Pass,
}

impl Holder {
    fn word(self) -> &'static str {
        match self {
            Self::Director => "director",
            Self::Pass => "pass",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Director, Self::Pass].into_iter().find(|holder| holder.word() == word)
    }
}

/// The catalog open for writing. While it lives no other process can open it so; readers can.
#[derive(Debug)]
pub struct EmbeddedCatalog {
    file: PathBuf,
    connection: Mutex<Connection>,
    /// Let go of once the connection is closed.
    _lock: Lock,
}

/// The lock of the one writer; the system unlocks it however the process ends.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing it is not enough: a child that is being started has it open as well, until it runs its program.
        drop(self.0.unlock());
    }
}

/// The catalog for reading, also while a director writes it. A catalog that does not exist yet is empty.
#[derive(Clone, Debug)]
pub struct EmbeddedReader {
    file: PathBuf,
}

impl EmbeddedReader {
    /// The catalog in this folder. Nothing is opened, and nothing created, before something is asked for.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { file: folder.join(FILE) }
    }

    fn read<T: Default>(&self, read: impl FnOnce(&Connection) -> Result<T, Fault>) -> Result<T, CatalogError> {
        self.read_since(1, read)
    }

    /// Reads what catalogs have since a version; one of an older version has nothing of it.
    fn read_since<T: Default>(
        &self,
        since: i64,
        read: impl FnOnce(&Connection) -> Result<T, Fault>,
    ) -> Result<T, CatalogError> {
        match fs::metadata(&self.file) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
            Err(source) => {
                let path = self.file.parent().unwrap_or(&self.file).to_owned();
                return Err(CatalogError::Folder { path, source });
            }
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let of_file = |fault: Fault| fault.of(&self.file);
        let connection = Connection::open_with_flags(&self.file, flags).map_err(|error| of_file(error.into()))?;
        let looked = connection.busy_timeout(PATIENCE).map_err(Fault::from).and_then(|()| rows::identify(&connection));
        match usable(looked.map_err(of_file)?, &self.file)? {
            Some(version) if version >= since => read(&connection).map_err(of_file),
            _ => Ok(T::default()),
        }
    }
}

/// The version of a catalog that can be used, 0 for a new one shown as `None`.
fn usable(found: Found, file: &Path) -> Result<Option<i64>, CatalogError> {
    let path = file.to_owned();
    match found {
        Found::Fresh => Ok(None),
        Found::Catalog(version) => Ok(Some(version)),
        Found::Newer(found) => Err(CatalogError::Newer { path, found, known: rows::version() }),
        Found::Foreign => Err(CatalogError::Foreign { path }),
    }
}

impl CatalogRead for EmbeddedReader {
    fn inventory(&self) -> Result<Inventory, CatalogError> {
        // An older catalog is brought up to date, and filled from the hosts, by the next pass.
        self.read_since(rows::WITH_DATASETS, |connection| inventory(connection, None))
    }

    fn host(&self, host: &HostName) -> Result<Option<HostInventory>, CatalogError> {
        let found = self.read_since(rows::WITH_DATASETS, |connection| inventory(connection, Some(host)));
        Ok(found?.hosts.remove(host))
    }

    fn outcomes(&self, limit: usize) -> Result<Vec<Outcome>, CatalogError> {
        self.read(|connection| outcomes(connection, limit))
    }

    fn destroyed(&self, limit: usize) -> Result<Vec<Destroyed>, CatalogError> {
        self.read(|connection| destroyed(connection, limit))
    }

    fn estimates(&self) -> Result<BTreeMap<Uuid, Estimated>, CatalogError> {
        self.read_since(rows::WITH_ESTIMATES, estimates)
    }
}

impl EmbeddedCatalog {
    /// Opens the catalog in this folder for writing; folder and catalog are created if they do not exist.
    pub fn open(folder: &Path) -> Result<Self, CatalogError> {
        Self::open_as(folder, Holder::Director)
    }

    /// The same; who holds it is told to those who come meanwhile.
    pub fn open_as(folder: &Path, holder: Holder) -> Result<Self, CatalogError> {
        let file = folder.join(FILE);
        let lock = lock(folder, holder)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let of_file = |error: rusqlite::Error| Fault::from(error).of(&file);
        let mut connection = Connection::open_with_flags(&file, flags).map_err(of_file)?;
        connection.busy_timeout(PATIENCE).map_err(of_file)?;
        let found = rows::identify(&connection).map_err(|fault| fault.of(&file))?;
        let version = usable(found, &file)?.unwrap_or(0);
        prepare(&mut connection, version).map_err(|fault| fault.of(&file))?;
        Ok(Self { file, connection: Mutex::new(connection), _lock: lock })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A thread that panicked amidst a transaction has rolled it back while it unwound.
        self.connection.lock()
    }

    /// Stands in for a full disk.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: u32) {
        self.connection().execute_batch(&format!("PRAGMA max_page_count = {pages}")).unwrap();
    }

    /// What a child has that is being started.
    #[cfg(test)]
    pub(super) fn inherited(&self) -> File {
        self._lock.0.try_clone().unwrap()
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Fault>) -> Result<T, CatalogError> {
        read(&self.connection()).map_err(|fault| fault.of(&self.file))
    }

    fn write<T>(&self, write: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>) -> Result<T, CatalogError> {
        let mut connection = self.connection();
        let work = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = write(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        work().map_err(|fault: Fault| fault.of(&self.file))
    }
}

impl CatalogRead for EmbeddedCatalog {
    fn inventory(&self) -> Result<Inventory, CatalogError> {
        self.read(|connection| inventory(connection, None))
    }

    fn host(&self, host: &HostName) -> Result<Option<HostInventory>, CatalogError> {
        Ok(self.read(|connection| inventory(connection, Some(host)))?.hosts.remove(host))
    }

    fn outcomes(&self, limit: usize) -> Result<Vec<Outcome>, CatalogError> {
        self.read(|connection| outcomes(connection, limit))
    }

    fn destroyed(&self, limit: usize) -> Result<Vec<Destroyed>, CatalogError> {
        self.read(|connection| destroyed(connection, limit))
    }

    fn estimates(&self) -> Result<BTreeMap<Uuid, Estimated>, CatalogError> {
        self.read(estimates)
    }
}

impl CatalogWrite for EmbeddedCatalog {
    fn replace_host(
        &self,
        host: &HostName,
        observed: DateTime<Utc>,
        datasets: Vec<(DatasetName, DatasetInventory)>,
    ) -> Result<(), CatalogError> {
        self.write(|tx| merge::replace_host(tx, host, observed, datasets))
    }

    fn update(&self, host: &HostName, changes: Vec<(DatasetName, Change)>) -> Result<(), CatalogError> {
        self.write(|tx| changes.into_iter().try_for_each(|(dataset, change)| merge::change(tx, host, &dataset, change)))
    }

    fn forget_marks(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError> {
        self.write(|tx| merge::forget(tx, older_than))
    }

    fn record_outcome(&self, outcome: &Outcome) -> Result<(), CatalogError> {
        self.write(|tx| merge::record_outcome(tx, outcome))
    }

    fn flush(&self) -> Result<(), CatalogError> {
        // The log is on disk before anything of it goes over into the file itself.
        let checkpoint = self.connection().query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        checkpoint.map_err(|error| Fault::from(error).of(&self.file))
    }

    fn replace_estimates(&self, estimates: &BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        self.write(|tx| merge::replace_estimates(tx, estimates))
    }
}

/// Creates the folder, open to its owner alone, and takes the lock that only one director can have.
fn lock(folder: &Path, holder: Holder) -> Result<Lock, CatalogError> {
    let cannot = |source| CatalogError::Folder { path: folder.to_owned(), source };
    if !folder.is_dir() {
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).map_err(cannot)?;
        }
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !folder.is_dir() => {
                return Err(cannot(error));
            }
            _ => {}
        }
    }
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(LOCK));
    let mut file = options.map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            drop(file.take(32).read_to_string(&mut text));
            let mut words = text.split_whitespace();
            let pid = words.next().and_then(|word| word.parse().ok());
            let holder = words.next().and_then(Holder::of);
            return Err(CatalogError::Locked { path: folder.to_owned(), pid, holder });
        }
        Err(TryLockError::Error(error)) => return Err(cannot(error)),
    }
    // Who has the lock is said for people only; a full disk is no reason to stop here.
    let (pid, word) = (std::process::id(), holder.word());
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{pid} {word}"));
    Ok(Lock(file))
}

fn prepare(connection: &mut Connection, version: i64) -> Result<(), Fault> {
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Err(Fault::NoLog);
    }
    connection.pragma_update(None, "synchronous", "normal")?;
    // The log is cut back to this after a large listing.
    connection.execute_batch("PRAGMA journal_size_limit = 16777216")?;
    connection.set_prepared_statement_cache_capacity(64);
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    let steps = rows::MIGRATIONS.get(done..).unwrap_or_default();
    if !steps.is_empty() {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for step in steps {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "application_id", rows::APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", rows::version())?;
        transaction.commit()?;
    }
    Ok(())
}

/// Reads everything, or everything of one host, in one pass over each table, in the order of its key.
fn inventory(connection: &Connection, of: Option<&HostName>) -> Result<Inventory, Fault> {
    let (named, of_host, of_dataset) = match of {
        None => ("", "", ""),
        Some(_) => (
            "WHERE name = ?1",
            "AND host = (SELECT id FROM host WHERE name = ?1)",
            "WHERE dataset IN (SELECT dataset.id FROM host JOIN dataset ON dataset.host = host.id WHERE host.name = ?1)",
        ),
    };
    let of = of.map(HostName::as_str);
    let transaction = connection.unchecked_transaction()?;
    let mut hosts: BTreeMap<HostName, HostInventory> = BTreeMap::new();
    let mut host_names: HashMap<i64, HostName> = HashMap::new();
    each(&transaction, &format!("SELECT id, name, observed FROM host {named}"), of, |row| {
        let (id, name) = (rows::integer(row, 0)?, rows::name::<HostName>(row, 1)?);
        if let Some(observed) = rows::maybe(row, 2, rows::moment)? {
            hosts.insert(name.clone(), HostInventory { observed: Some(observed), datasets: BTreeMap::new() });
        }
        host_names.insert(id, name);
        Ok(())
    })?;

    let mut datasets: BTreeMap<i64, (i64, DatasetName, DatasetInventory)> = BTreeMap::new();
    let sql = format!("SELECT id, host, name, {} FROM dataset WHERE present {of_host}", rows::DATASET);
    each(&transaction, &sql, of, |row| {
        let entry = (rows::integer(row, 1)?, rows::name(row, 2)?, rows::dataset(row, 3)?);
        datasets.insert(rows::integer(row, 0)?, entry);
        Ok(())
    })?;

    let columns = rows::SNAPSHOT;
    let sql = format!("SELECT dataset, {columns} FROM snapshot {of_dataset} ORDER BY dataset, createtxg, guid");
    grouped(&transaction, &sql, of, rows::snapshot, |id, snapshots| {
        if let Some((.., dataset)) = datasets.get_mut(&id) {
            dataset.snapshots = snapshots;
        }
    })?;
    let columns = rows::BOOKMARK;
    let sql = format!("SELECT dataset, {columns} FROM bookmark {of_dataset} ORDER BY dataset, createtxg, guid, name");
    grouped(&transaction, &sql, of, rows::bookmark, |id, bookmarks| {
        if let Some((.., dataset)) = datasets.get_mut(&id) {
            dataset.bookmarks = bookmarks;
        }
    })?;
    let sql = format!("SELECT dataset, name, at FROM not_written {of_dataset} ORDER BY dataset, name");
    grouped(&transaction, &sql, of, rows::not_written, |id, marks| {
        if let Some((.., dataset)) = datasets.get_mut(&id) {
            dataset.not_written = marks;
        }
    })?;
    let pair = |row: &rusqlite::Row<'_>, first| Ok((rows::integer(row, first)?, rows::integer(row, first + 1)?));
    let sql = format!("SELECT dataset, guid, flags FROM mark {of_dataset} ORDER BY dataset, guid");
    grouped(&transaction, &sql, of, pair, |id, marks| {
        let Some((.., dataset)) = datasets.get_mut(&id) else { return };
        for snapshot in &mut dataset.snapshots {
            let guid = snapshot.guid.0.cast_signed();
            if let Some((_, flags)) =
                marks.binary_search_by_key(&guid, |(guid, _)| *guid).ok().and_then(|at| marks.get(at))
            {
                snapshot.marks = rows::marks(*flags);
            }
        }
    })?;
    transaction.commit()?;

    for (host, name, mut dataset) in datasets.into_values() {
        let Some(host) = host_names.get(&host) else {
            return Err(Fault::Damaged(format!("dataset {name} belongs to no host")));
        };
        // Already in order, unless a number does not fit into 63 bits.
        dataset.sort();
        hosts.entry(host.clone()).or_default().datasets.insert(name, dataset);
    }
    Ok(Inventory { hosts })
}

/// Reads each row of a statement; `of` is its parameter, if it has one.
fn each(
    connection: &Connection,
    sql: &str,
    of: Option<&str>,
    mut take: impl FnMut(&rusqlite::Row<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut found = statement.query(rusqlite::params_from_iter(of))?;
    while let Some(row) = found.next()? {
        take(row)?;
    }
    Ok(())
}

/// Hands over the rows of each dataset together; the statement's first column is the dataset and its order.
fn grouped<T>(
    connection: &Connection,
    sql: &str,
    of: Option<&str>,
    read: impl Fn(&rusqlite::Row<'_>, usize) -> Result<T, Fault>,
    mut take: impl FnMut(i64, Vec<T>),
) -> Result<(), Fault> {
    let mut current = None;
    let mut group = Vec::new();
    each(connection, sql, of, |row| {
        let id = rows::integer(row, 0)?;
        if let Some(before) = current.replace(id).filter(|before| *before != id) {
            take(before, std::mem::take(&mut group));
        }
        group.push(read(row, 1)?);
        Ok(())
    })?;
    if let Some(last) = current {
        take(last, group);
    }
    Ok(())
}

fn newest<T>(
    connection: &Connection,
    table: &str,
    columns: &str,
    limit: usize,
    read: impl Fn(&rusqlite::Row<'_>) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let mut statement = connection.prepare(&format!("SELECT {columns} FROM {table} ORDER BY id DESC LIMIT ?1"))?;
    let mut found = statement.query([i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let mut values = Vec::new();
    while let Some(row) = found.next()? {
        values.push(read(row)?);
    }
    Ok(values)
}

fn outcomes(connection: &Connection, limit: usize) -> Result<Vec<Outcome>, Fault> {
    newest(connection, "outcome", rows::OUTCOME, limit, rows::outcome)
}

fn destroyed(connection: &Connection, limit: usize) -> Result<Vec<Destroyed>, Fault> {
    newest(connection, "destroyed", rows::DESTROYED, limit, rows::destroyed)
}

fn estimates(connection: &Connection) -> Result<BTreeMap<Uuid, Estimated>, Fault> {
    let mut all = BTreeMap::new();
    each(connection, "SELECT question, at, bytes, remark FROM estimate", None, |row| {
        let (question, estimate) = rows::estimate(row)?;
        all.insert(question, estimate);
        Ok(())
    })?;
    Ok(all)
}
