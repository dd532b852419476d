//! The journal of an agent: the answers to recent orders, kept across restarts.
//!
//! It is a SQLite file in the state folder. An answer is written to it before it is sent. The number of answers and
//! their age are limited. Losing the file is harmless: every order can be carried out again without doing anything
//! twice.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OptionalExtension};
use thiserror::Error;
use uuid::Uuid;

use crate::model::OrderId;
use crate::sys::files;
use crate::wire::Response;

const FILE: &str = "orders.sqlite";
/// How many answers are kept, and for how long.
const MAX_ANSWERS: u32 = 10_000;
const MAX_AGE: TimeDelta = TimeDelta::days(7);
/// How many characters of an error or a remark are kept.
const MAX_REMARK: usize = 4096;
/// A disk counts as full if it has no room for this many bytes.
const ROOM: u64 = 1 << 20;
/// How long to wait while another agent that uses the same folder has locked the file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the state folder cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The folder cannot be created or entered.
    #[error("cannot use the state folder {}: {cause}; hint: run as a user who may write to it, or name another folder with --state", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// The journal's file cannot be used.
    #[error(
        "cannot use {}: {cause}; hint: run as a user who may write to it, name another folder with --state, or, if it is damaged, \
         delete it: it only remembers how recent orders ended", .path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        cause: rusqlite::Error,
    },
}

/// The answers to recent orders. Clones share the file.
#[derive(Clone, Debug)]
pub struct Journal {
    connection: Arc<Mutex<Connection>>,
    file: PathBuf,
}

/// A remembered answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The fingerprint of the order.
    pub(crate) fingerprint: Uuid,
    pub(crate) response: Response,
}

impl Journal {
    /// Opens the journal in a folder. Both are created if they do not exist. Fails if the folder or the file cannot be
    /// used.
    ///
    /// If the disk is full, the answers are kept in memory: the agent must run, because its orders may make room.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        let cannot = |cause| JournalError::Folder { path: folder.to_owned(), cause };
        let file = folder.join(FILE);
        let created = files::create_private_folder(folder).map_err(cannot);
        if created.is_ok() {
            files::make_private(&file);
        }
        let error = match created.and_then(|()| Self::open_at(&file, Connection::open(&file))) {
            Err(error) if files::lacks_room(folder, ROOM) => error,
            result => return result,
        };
        log::warn!("the disk is full, so answers to orders are kept in memory until the agent is restarted: {error}");
        Self::open_at(&file, Connection::open_in_memory())
    }

    fn open_at(file: &Path, connection: rusqlite::Result<Connection>) -> Result<Self, JournalError> {
        let of_file = |cause| JournalError::File { path: file.to_owned(), cause };
        let connection = connection.map_err(of_file)?;
        connection.busy_timeout(LOCK_TIMEOUT).map_err(of_file)?;
        let schema = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 1048576;
            CREATE TABLE IF NOT EXISTS orders (
                id BLOB PRIMARY KEY, content BLOB NOT NULL, ended INTEGER NOT NULL, response TEXT NOT NULL
            ) WITHOUT ROWID;
            CREATE INDEX IF NOT EXISTS by_age ON orders (ended);";
        connection.execute_batch(schema).map_err(of_file)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), file: file.to_owned() })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock()
    }

    fn failed(&self, cause: rusqlite::Error) -> JournalError {
        JournalError::File { path: self.file.clone(), cause }
    }

    /// The answer to an order, if it is remembered.
    pub(crate) fn find(&self, order: OrderId) -> Result<Option<Answer>, JournalError> {
        let connection = self.connection();
        let found = connection
            .prepare_cached("SELECT content, response FROM orders WHERE id = ?1")
            .and_then(|mut query| {
                query
                    .query_row([order.0.as_bytes()], |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, String>(1)?)))
                    .optional()
            })
            .map_err(|e| self.failed(e))?;
        // An answer in another version's format counts as forgotten.
        Ok(found.and_then(|(content, text)| {
            let fingerprint = Uuid::from_bytes(content);
            serde_json::from_str(&text).ok().map(|response| Answer { fingerprint, response })
        }))
    }

    /// Remembers an answer durably, and deletes those that are too old or too many.
    pub(crate) fn add(&self, order: OrderId, answer: &Answer, at: DateTime<Utc>) -> Result<(), JournalError> {
        let mut response = answer.response.clone();
        shorten(&mut response.error);
        if let Some(hint) = &mut response.hint {
            shorten(hint);
        }
        let text = serde_json::to_string(&response).unwrap_or_default();
        let write = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT OR REPLACE INTO orders VALUES (?1, ?2, ?3, ?4)",
                (order.0.as_bytes(), answer.fingerprint.as_bytes(), at.timestamp(), text),
            )?;
            transaction.execute(
                "DELETE FROM orders WHERE ended < ?1 OR id IN (SELECT id FROM orders ORDER BY ended DESC LIMIT -1 OFFSET ?2)",
                ((at - MAX_AGE).timestamp(), MAX_ANSWERS),
            )?;
            transaction.commit()
        };
        write(&mut self.connection()).map_err(|e| self.failed(e))
    }
}

fn shorten(text: &mut String) {
    if let Some((cut, _)) = text.char_indices().nth(MAX_REMARK) {
        text.truncate(cut);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ResponseStatus;

    fn answer(n: u32) -> (OrderId, Answer) {
        let id = OrderId(Uuid::from_u128(n.into()));
        let response = Response::success(id, ResponseStatus::Done, format!("took {n}"));
        (id, Answer { fingerprint: Uuid::from_u128(7), response })
    }

    #[test]
    fn answers_survive_restart_and_expire() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let now = DateTime::from_timestamp(1_795_429_805, 0).unwrap();
        let journal = Journal::open(&state).unwrap();
        let (first, what) = answer(1);
        journal.add(first, &what, now).unwrap();
        drop(journal);
        let journal = Journal::open(&state).unwrap();
        assert_eq!(journal.find(first).unwrap(), Some(what));
        let (second, what) = answer(2);
        assert_eq!(journal.find(second).unwrap(), None);
        journal.add(second, &what, now + MAX_AGE + TimeDelta::seconds(1)).unwrap();
        assert_eq!(journal.find(first).unwrap(), None);
        assert_eq!(journal.find(second).unwrap(), Some(what));
    }

    #[test]
    fn unusable_folder_error_names_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let error = Journal::open(&file.join("state")).unwrap_err();
        assert!(error.to_string().contains("--state"), "{error}");
        std::fs::write(folder.path().join(FILE), "not a database, and long enough to be taken for one".repeat(20))
            .unwrap();
        let error = Journal::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("delete it"), "{error}");
    }
}
