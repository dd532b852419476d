//! What an agent remembers of the orders that it carried out: their answers, across restarts.
//!
//! A SQLite file in the state folder, written before the answer is given. Bounded in number and age. Losing it loses
//! nothing else: every order can be carried out again without doing anything twice.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OptionalExtension};
use thiserror::Error;
use uuid::Uuid;

use crate::model::OrderId;
use crate::wire::Response;

const FILE: &str = "orders.sqlite";
/// How many answers are kept, and how long.
const MOST: u32 = 10_000;
const OLDEST: TimeDelta = TimeDelta::days(7);
/// What is kept of a remark.
const LONGEST_REMARK: usize = 4096;
/// How long to wait for another agent that shares the folder.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the state folder cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// It cannot be created or entered.
    #[error("cannot use the state folder {}; run as a user who may write it, or name another one with --state", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file cannot be used.
    #[error(
        "cannot use {}; run as a user who may write it, name another folder with --state, or, if it is damaged, delete it: \
         it only remembers how recent orders ended", .path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
}

/// The answers to recent orders; clones share the file.
#[derive(Clone, Debug)]
pub struct Journal {
    connection: Arc<Mutex<Connection>>,
    file: PathBuf,
}

/// A remembered order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    /// What was ordered, condensed.
    pub(crate) content: Uuid,
    /// How it was answered.
    pub(crate) response: Response,
}

impl Journal {
    /// Opens the journal in this folder; both are created if they do not exist.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        let cannot = |source| JournalError::Folder { path: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(cannot)?;
        let file = folder.join(FILE);
        let of_file = |source| JournalError::File { path: file.clone(), source };
        let connection = Connection::open(&file).map_err(of_file)?;
        connection.busy_timeout(PATIENCE).map_err(of_file)?;
        let prepare = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 1048576;
            CREATE TABLE IF NOT EXISTS orders (
                id BLOB PRIMARY KEY, content BLOB NOT NULL, ended INTEGER NOT NULL, response TEXT NOT NULL
            ) WITHOUT ROWID;
            CREATE INDEX IF NOT EXISTS by_age ON orders (ended);";
        connection.execute_batch(prepare).map_err(of_file)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), file })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock()
    }

    fn failed(&self, source: rusqlite::Error) -> JournalError {
        JournalError::File { path: self.file.clone(), source }
    }

    /// What is remembered of an order.
    pub(crate) fn find(&self, order: OrderId) -> Result<Option<Remembered>, JournalError> {
        let connection = self.connection();
        let found = connection
            .prepare_cached("SELECT content, response FROM orders WHERE id = ?1")
            .and_then(|mut query| {
                query
                    .query_row([order.0.as_bytes()], |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, String>(1)?)))
                    .optional()
            })
            .map_err(|e| self.failed(e))?;
        // An answer of a version that wrote it otherwise is as good as forgotten.
        Ok(found.and_then(|(content, text)| {
            serde_json::from_str(&text).ok().map(|response| Remembered { content: Uuid::from_bytes(content), response })
        }))
    }

    /// Remembers an order, durably, and forgets what is too old or too much.
    pub(crate) fn add(&self, order: OrderId, remembered: &Remembered, at: DateTime<Utc>) -> Result<(), JournalError> {
        let mut response = remembered.response.clone();
        if let Some((cut, _)) = response.error.char_indices().nth(LONGEST_REMARK) {
            response.error.truncate(cut);
            response.error.push('…');
        }
        let text = serde_json::to_string(&response).unwrap_or_default();
        let write = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT OR REPLACE INTO orders VALUES (?1, ?2, ?3, ?4)",
                (order.0.as_bytes(), remembered.content.as_bytes(), at.timestamp(), text),
            )?;
            transaction.execute(
                "DELETE FROM orders WHERE ended < ?1 OR id IN (SELECT id FROM orders ORDER BY ended DESC LIMIT -1 OFFSET ?2)",
                ((at - OLDEST).timestamp(), MOST),
            )?;
            transaction.commit()
        };
        write(&mut self.connection()).map_err(|e| self.failed(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ResponseStatus;

    fn remembered(n: u32) -> (OrderId, Remembered) {
        let id = OrderId(Uuid::from_u128(n.into()));
        let response = Response::success(id, ResponseStatus::Done, format!("took {n}"));
        (id, Remembered { content: Uuid::from_u128(7), response })
    }

    #[test]
    fn answers_outlive_the_process_and_are_forgotten_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let now = DateTime::from_timestamp(1_795_429_805, 0).unwrap();
        let journal = Journal::open(&state).unwrap();
        let (first, what) = remembered(1);
        journal.add(first, &what, now).unwrap();
        drop(journal);
        let journal = Journal::open(&state).unwrap();
        assert_eq!(journal.find(first).unwrap(), Some(what));
        let (second, what) = remembered(2);
        assert_eq!(journal.find(second).unwrap(), None);
        journal.add(second, &what, now + OLDEST + TimeDelta::seconds(1)).unwrap();
        assert_eq!(journal.find(first).unwrap(), None);
        assert_eq!(journal.find(second).unwrap(), Some(what));
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_an_error_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let error = Journal::open(&file.join("state")).unwrap_err();
        assert!(error.to_string().contains("--state"), "{error}");
        std::fs::write(folder.path().join(FILE), "not a database, and long enough to be looked at as one".repeat(20))
            .unwrap();
        let error = Journal::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("delete it"), "{error}");
    }
}
