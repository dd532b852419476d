//! The lock that only one writer of the catalog can hold, and the folder of the lock file.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::catalog::{CatalogError, Holder};

const FILE: &str = "director.lock";

/// The lock of the one writer. The system releases it however the process ends.
#[derive(Debug)]
pub(super) struct Lock(pub(super) File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child process that is being started has it open, too, until its exec.
        drop(self.0.unlock());
    }
}

impl Lock {
    /// Creates the folder, accessible to its owner only, and takes the lock, which only one process can have. The lock
    /// file states the id of this process and its `holder`, for other processes.
    pub fn take(folder: &Path, holder: Holder) -> Result<Self, CatalogError> {
        let unusable = |cause| CatalogError::Folder { path: folder.to_owned(), cause };
        create(folder).map_err(unusable)?;
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(FILE));
        let mut file = options.map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                drop(file.take(32).read_to_string(&mut text));
                let mut words = text.split_whitespace();
                let pid = words.next().and_then(|word| word.parse().ok());
                let holder = words.next().and_then(Holder::from_word);
                return Err(CatalogError::Locked { path: folder.to_owned(), pid, holder });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        // The text of the lock file is for messages only; a full disk is no reason to fail here.
        let (pid, word) = (std::process::id(), holder.word());
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{pid} {word}"));
        Ok(Self(file))
    }
}

fn create(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !folder.is_dir() => Err(error),
        _ => Ok(()),
    }
}
