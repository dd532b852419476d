//! Reads the embedded catalog's tables.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, Row};
use uuid::Uuid;

use crate::catalog::embedded::error::DbError;
use crate::catalog::embedded::rows;
use crate::catalog::{Destroyed, Estimated, Outcome};
use crate::model::{DatasetInventory, DatasetName, HostInventory, HostName, Inventory};

/// Reads everything, or everything of one host, in one pass over each table in the order of its key.
pub(super) fn inventory(connection: &Connection, host: Option<&HostName>) -> Result<Inventory, DbError> {
    let selection = Selection::new(host);
    let transaction = connection.unchecked_transaction()?;
    let (mut hosts, host_names) = read_hosts(&transaction, &selection)?;
    let mut datasets = read_datasets(&transaction, &selection)?;
    read_contents(&transaction, &selection, &mut datasets)?;
    read_marks(&transaction, &selection, &mut datasets)?;
    transaction.commit()?;

    for DatasetRow { host, name, mut inventory } in datasets.into_values() {
        let Some(host) = host_names.get(&host) else {
            return Err(DbError::Damaged(format!("dataset {name} belongs to no host")));
        };
        // The rows are in order already, unless a number does not fit into 63 bits.
        inventory.sort();
        hosts.entry(host.clone()).or_default().datasets.insert(name, inventory);
    }
    Ok(Inventory { hosts })
}

/// Which hosts are read, as SQL: a condition for each table, and the parameter of these conditions.
struct Selection<'a> {
    hosts: &'static str,
    datasets: &'static str,
    contents: &'static str,
    host: Option<&'a str>,
}

impl<'a> Selection<'a> {
    fn new(host: Option<&'a HostName>) -> Self {
        let (hosts, datasets, contents) = match host {
            None => ("", "", ""),
            Some(_) => (
                "WHERE name = ?1",
                "AND host = (SELECT id FROM host WHERE name = ?1)",
                "WHERE dataset IN (SELECT dataset.id FROM host JOIN dataset ON dataset.host = host.id \
                 WHERE host.name = ?1)",
            ),
        };
        Self { hosts, datasets, contents, host: host.map(HostName::as_str) }
    }
}

/// A dataset with the id of its host.
struct DatasetRow {
    host: i64,
    name: DatasetName,
    inventory: DatasetInventory,
}

/// Datasets by id.
type Datasets = BTreeMap<i64, DatasetRow>;

type Hosts = (BTreeMap<HostName, HostInventory>, HashMap<i64, HostName>);

/// Reads the hosts that were listed as a whole, and the names of all hosts by id.
fn read_hosts(connection: &Connection, selection: &Selection<'_>) -> Result<Hosts, DbError> {
    let (mut hosts, mut names) = (BTreeMap::new(), HashMap::new());
    let sql = format!("SELECT id, name, observed, unlisted FROM host {}", selection.hosts);
    for_each_row(connection, &sql, selection.host, |row| {
        let (id, name) = (rows::integer(row, 0)?, rows::name::<HostName>(row, 1)?);
        if let Some(observed) = rows::nullable(row, 2, rows::time)? {
            let unlisted = rows::nullable(row, 3, rows::unlisted_pools)?.unwrap_or_default();
            let listed = HostInventory { observed: Some(observed), unlisted, ..HostInventory::default() };
            hosts.insert(name.clone(), listed);
        }
        names.insert(id, name);
        Ok(())
    })?;
    Ok((hosts, names))
}

fn read_datasets(connection: &Connection, selection: &Selection<'_>) -> Result<Datasets, DbError> {
    let mut datasets = Datasets::new();
    let columns = rows::DATASET;
    let sql = format!("SELECT id, host, name, {columns} FROM dataset WHERE present {}", selection.datasets);
    for_each_row(connection, &sql, selection.host, |row| {
        let (host, name, inventory) = (rows::integer(row, 1)?, rows::name(row, 2)?, rows::dataset(row, 3)?);
        datasets.insert(rows::integer(row, 0)?, DatasetRow { host, name, inventory });
        Ok(())
    })?;
    Ok(datasets)
}

/// Reads snapshots, bookmarks and `#NotWritten` marks.
fn read_contents(connection: &Connection, selection: &Selection<'_>, datasets: &mut Datasets) -> Result<(), DbError> {
    let (columns, filter) = (rows::SNAPSHOT, selection.contents);
    let sql = format!("SELECT dataset, {columns} FROM snapshot {filter} ORDER BY dataset, createtxg, guid");
    for_each_dataset(connection, &sql, selection.host, rows::snapshot, |id, snapshots| {
        if let Some(dataset) = datasets.get_mut(&id) {
            dataset.inventory.snapshots = snapshots;
        }
    })?;
    let columns = rows::BOOKMARK;
    let sql = format!("SELECT dataset, {columns} FROM bookmark {filter} ORDER BY dataset, createtxg, guid, name");
    for_each_dataset(connection, &sql, selection.host, rows::bookmark, |id, bookmarks| {
        if let Some(dataset) = datasets.get_mut(&id) {
            dataset.inventory.bookmarks = bookmarks;
        }
    })?;
    let sql = format!("SELECT dataset, name, at FROM not_written {filter} ORDER BY dataset, name");
    for_each_dataset(connection, &sql, selection.host, rows::not_written, |id, marks| {
        if let Some(dataset) = datasets.get_mut(&id) {
            dataset.inventory.not_written = marks;
        }
    })
}

/// Reads `#sent` and `#sync` into the snapshots.
fn read_marks(connection: &Connection, selection: &Selection<'_>, datasets: &mut Datasets) -> Result<(), DbError> {
    let guid_and_flags = |row: &Row<'_>, first| Ok((rows::integer(row, first)?, rows::integer(row, first + 1)?));
    let sql = format!("SELECT dataset, guid, flags FROM mark {} ORDER BY dataset, guid", selection.contents);
    for_each_dataset(connection, &sql, selection.host, guid_and_flags, |id, marks| {
        let Some(dataset) = datasets.get_mut(&id) else { return };
        for snapshot in &mut dataset.inventory.snapshots {
            let guid = snapshot.guid.0.cast_signed();
            let found = marks.binary_search_by_key(&guid, |(guid, _)| *guid).ok().and_then(|index| marks.get(index));
            if let Some((_, flags)) = found {
                snapshot.marks = rows::marks(*flags);
            }
        }
    })
}

/// Calls `take` with each row of a statement. `parameter` is the statement's only parameter, if it has one.
fn for_each_row(
    connection: &Connection,
    sql: &str,
    parameter: Option<&str>,
    mut take: impl FnMut(&Row<'_>) -> Result<(), DbError>,
) -> Result<(), DbError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut found = statement.query(rusqlite::params_from_iter(parameter))?;
    while let Some(row) = found.next()? {
        take(row)?;
    }
    Ok(())
}

/// Calls `take` with all rows of each dataset at once. The first column of the statement is the dataset's id, by which
/// the rows are ordered.
fn for_each_dataset<T>(
    connection: &Connection,
    sql: &str,
    parameter: Option<&str>,
    read: impl Fn(&Row<'_>, usize) -> Result<T, DbError>,
    mut take: impl FnMut(i64, Vec<T>),
) -> Result<(), DbError> {
    let mut current = None;
    let mut group = Vec::new();
    for_each_row(connection, sql, parameter, |row| {
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
    read: impl Fn(&Row<'_>) -> Result<T, DbError>,
) -> Result<Vec<T>, DbError> {
    let mut statement = connection.prepare(&format!("SELECT {columns} FROM {table} ORDER BY id DESC LIMIT ?1"))?;
    let mut found = statement.query([i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let mut values = Vec::new();
    while let Some(row) = found.next()? {
        values.push(read(row)?);
    }
    Ok(values)
}

pub(super) fn outcomes(connection: &Connection, limit: usize) -> Result<Vec<Outcome>, DbError> {
    newest(connection, "outcome", rows::OUTCOME, limit, rows::outcome)
}

pub(super) fn destroyed(connection: &Connection, limit: usize) -> Result<Vec<Destroyed>, DbError> {
    newest(connection, "destroyed", rows::DESTROYED, limit, rows::destroyed)
}

pub(super) fn estimates(connection: &Connection) -> Result<BTreeMap<Uuid, Estimated>, DbError> {
    let mut all = BTreeMap::new();
    for_each_row(connection, "SELECT question, at, bytes, remark FROM estimate", None, |row| {
        let (question, estimate) = rows::estimate(row)?;
        all.insert(question, estimate);
        Ok(())
    })?;
    Ok(all)
}
