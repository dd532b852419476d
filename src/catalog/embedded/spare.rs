//! A copy of the catalog in memory, for as long as there is no room for the catalog on the disk. If the catalog lies on
//! a pool that is full, a pass is what makes room: it must not need any.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::Backup;

use crate::catalog::CatalogError;
use crate::catalog::embedded::error::DbError;
use crate::catalog::embedded::open::{open_to_read, open_to_write, usable_version, writing_failed};
use crate::catalog::embedded::schema;

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
