//! The lock that only one writer of the catalog can hold, and the folder of the lock file.
//!
//! A writer locks both the folder and the file in it. If there is no room for the file, the lock on the folder is
//! enough; if there is no room for the folder either, the nearest folder above is locked instead.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::Path;

use crate::catalog::{CatalogError, Holder};
use crate::sys::files;

const FILE: &str = "director.lock";

/// The lock of the one writer. The system releases it however the process ends.
#[derive(Debug)]
pub(super) struct Lock(pub(super) Vec<File>);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing a file is not enough: a child process that is being started has it open, too, until its exec.
        self.0.iter().for_each(|file| drop(file.unlock()));
    }
}

impl Lock {
    /// Creates the folder, accessible to its owner only, and takes the lock, which only one process can have. The lock
    /// file states the id of this process and its `holder`, for other processes.
    pub fn take(folder: &Path, holder: Holder) -> Result<Self, CatalogError> {
        let unusable = |cause| CatalogError::Folder { path: folder.to_owned(), cause };
        match create(folder) {
            Err(error) if !files::is_no_room(&error) => return Err(unusable(error)),
            _ => {}
        }
        files::make_private(&folder.join(FILE));
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(FILE));
        let file = match options {
            Ok(file) => Some(file),
            Err(error) if files::is_no_room(&error) || !folder.exists() => None,
            Err(error) => return Err(unusable(error)),
        };
        // Where the folder cannot be opened for reading, the lock on the file is enough.
        let existing = folder.ancestors().find(|folder| folder.is_dir()).and_then(|folder| File::open(folder).ok());
        let mut locked = Vec::new();
        for lock in existing.into_iter().chain(file) {
            match lock.try_lock() {
                Ok(()) => locked.push(lock),
                Err(TryLockError::WouldBlock) => return Err(locked_by_another(folder)),
                Err(TryLockError::Error(error)) => return Err(unusable(error)),
            }
        }
        // The text of the lock file is for messages only; a full disk is no reason to fail here.
        let (pid, word) = (std::process::id(), holder.word());
        if let Ok(mut file) = OpenOptions::new().write(true).open(folder.join(FILE)) {
            let _ = file.set_len(0).and_then(|()| writeln!(file, "{pid} {word}"));
        }
        Ok(Self(locked))
    }
}

/// The error for a lock that another process has. The text of the lock file may be missing.
fn locked_by_another(folder: &Path) -> CatalogError {
    let text = fs::read_to_string(folder.join(FILE)).unwrap_or_default();
    let mut words = text.split_whitespace();
    let pid = words.next().and_then(|word| word.parse().ok());
    let holder = words.next().and_then(Holder::from_word);
    CatalogError::Locked { path: folder.to_owned(), pid, holder }
}

fn create(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    files::create_private_folder(folder)
}
