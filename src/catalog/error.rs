//! Errors of catalogs: why a catalog cannot be used, and what the administrator can do about it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::catalog::Holder;
use crate::consul::ConsulError;
use crate::model::{DatasetName, HostName};

/// Why a catalog cannot be read or written.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// Another process has the catalog open for writing.
    #[error(
        "cannot open the catalog {}: another director{} is using it; hint: wait until it ends, or stop it",
        .path.display(), .pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
    )]
    Locked {
        /// The catalog's folder.
        path: PathBuf,
        /// The other process, if the lock file names it.
        pid: Option<u32>,
        /// The kind of program, if the lock file names it.
        holder: Option<Holder>,
    },
    /// The folder cannot be created, entered, or written to.
    #[error(
        "cannot use the folder {} for the catalog: {cause}; hint: run zsync as a user who may write there, or set another \
         catalog.embedded.path in server.json",
        .path.display()
    )]
    Folder {
        /// The catalog's folder.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// The file cannot be opened, or cannot be opened for writing.
    #[error("cannot open the catalog {}: {cause}; hint: run zsync as the user of the director, who may write its folder", .path.display())]
    Access {
        /// The catalog's file.
        path: PathBuf,
        /// SQLite's error.
        cause: rusqlite::Error,
    },
    /// The content of the file is not a valid catalog.
    #[error(
        "the catalog {} is damaged: {detail}; hint: stop the director and move the folder {} away: the next pass rebuilds the catalog \
         from the hosts; only the history of orders is lost",
        .path.display(), folder(.path).display()
    )]
    Damaged {
        /// The catalog's file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The file is a SQLite database of another program.
    #[error(
        "cannot use {} for the catalog: it is the database of another program; hint: set another catalog.embedded.path in server.json",
        .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a newer version of zsync.
    #[error(
        "cannot use the catalog {}: it has version {found}, and this zsync supports versions up to {known}; hint: use the newer zsync, or \
         move the folder {} away: the next pass rebuilds the catalog from the hosts",
        .path.display(), folder(.path).display()
    )]
    Newer {
        /// The catalog's file.
        path: PathBuf,
        /// The version of the file.
        found: i64,
        /// The newest version that this program supports.
        known: i64,
    },
    /// The filesystem of the catalog is full.
    #[error("cannot write the catalog {}: no space left on its filesystem; hint: free some space there", .path.display())]
    Full {
        /// The catalog's file.
        path: PathBuf,
    },
    /// Another program that is not a director has locked the file for too long.
    #[error("cannot use the catalog {}: another program has kept it locked for too long", .path.display())]
    Busy {
        /// The catalog's file.
        path: PathBuf,
    },
    /// Consul cannot be reached, or refused the request.
    #[error(transparent)]
    Consul(#[from] ConsulError),
    /// Other writers changed the pairs during every attempt.
    #[error(
        "cannot write {key} to Consul: others changed it during each of {tries} attempts; zsync will try again later"
    )]
    Contended {
        /// The key of the pair.
        key: String,
        /// The number of attempts.
        tries: usize,
    },
    /// A dataset has more snapshots than fit into Consul.
    #[error(
        "cannot write {host}:{dataset} to Consul: its snapshots take {bytes} bytes when compressed, and at most {most} fit; keep fewer \
         snapshots of it, or use the embedded catalog"
    )]
    TooLarge {
        /// The host.
        host: HostName,
        /// The dataset.
        dataset: DatasetName,
        /// The compressed size.
        bytes: usize,
        /// The largest size that fits.
        most: usize,
    },
    /// The director has lost its lock in Consul.
    #[error("the director lost its lock in Consul ({0}), and gives no more orders")]
    LockLost(String),
    /// SQLite failed in another way.
    #[error("cannot use the catalog {}: {cause}", .path.display())]
    Sqlite {
        /// The catalog's file.
        path: PathBuf,
        /// SQLite's error.
        cause: rusqlite::Error,
    },
}

fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or(file)
}
