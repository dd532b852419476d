//! Replaces files atomically: after a crash or a power failure, and for every reader, a file holds either the old text
//! or the new one.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde::de::DeserializeOwned;

/// The permissions of files that only their owner may read.
pub const PRIVATE: u32 = 0o600;
/// The permissions of files that everybody may read.
pub const PUBLIC: u32 = 0o644;

/// What to do with an existing file of the same name, and what the new file has to survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Fail if the file exists.
    Create,
    /// Replace an existing file. Once the write has returned, the new file survives a power failure.
    Replace,
    /// Replace an existing file without waiting for the disk, for files that are written again soon.
    ReplaceUnsynced,
}

/// Reads a JSON file. A missing file reads as the default value.
pub fn load<T: DeserializeOwned + Default>(file: &Path) -> io::Result<T> {
    match fs::read(file) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error),
    }
}

/// Replaces a private file of durable state. Its folder is created if it is missing.
pub fn save(file: &Path, text: &[u8]) -> io::Result<()> {
    create_private_folder(folder(file))?;
    write(file, PRIVATE, Mode::Replace, |new| new.write_all(text))
}

/// Writes a file with what `fill` writes. `permissions` are set regardless of the umask. A failed write leaves nothing
/// behind.
pub fn write(
    file: &Path,
    permissions: u32,
    mode: Mode,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    // The suffix comes last: node_exporter collects *.prom only, so it never reads an unfinished file.
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = Path::new(&name);
    // An earlier process with this number may have left one. Removing it also avoids following a link in its place.
    remove(new)?;
    let written = (|| {
        let mut opened = OpenOptions::new().write(true).create_new(true).mode(permissions).open(new)?;
        opened.set_permissions(Permissions::from_mode(permissions))?;
        fill(&mut opened)?;
        if mode != Mode::ReplaceUnsynced {
            opened.sync_all()?;
        }
        match mode {
            // Unlike a rename, a hard link does not replace an existing file.
            Mode::Create => fs::hard_link(new, file).and_then(|()| remove(new)),
            Mode::Replace | Mode::ReplaceUnsynced => fs::rename(new, file),
        }
    })();
    match written {
        Err(error) => {
            // It may not exist. If it cannot be removed, the next write to this file removes it.
            drop(fs::remove_file(new));
            Err(error)
        }
        Ok(()) if mode == Mode::ReplaceUnsynced => Ok(()),
        // The directory entry has to reach the disk as well.
        Ok(()) => File::open(folder(file))?.sync_all(),
    }
}

/// Creates a folder that only its owner can enter, and its parents, unless it exists. The umask has no influence.
pub fn create_private_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Makes a file that a library is about to open private to its owner, and creates it if it does not exist. If that is
/// not possible, nothing happens: the library reports why the file cannot be opened.
pub fn make_private(file: &Path) {
    let options = OpenOptions::new().write(true).create(true).truncate(false).mode(PRIVATE).open(file);
    if let Ok(opened) = options
        && opened.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o077 != 0)
    {
        drop(opened.set_permissions(Permissions::from_mode(PRIVATE)));
    }
}

/// Whether an error means that there is no room: the filesystem is full, or a quota is used up.
#[must_use]
pub fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Tries out whether a folder lacks room for a file of this many bytes. Some libraries report a full disk as an I/O
/// error, or as a file that cannot be opened.
#[must_use]
pub fn lacks_room(folder: &Path, bytes: u64) -> bool {
    let probe = folder.join("room");
    // A compressing filesystem would hardly need any room for zeros.
    let fill = |new: &mut File| io::copy(&mut File::open("/dev/urandom")?.take(bytes), new).map(drop);
    let create = create_private_folder(folder);
    let result = create.and_then(|()| write(&probe, PRIVATE, Mode::Replace, fill));
    drop(remove(&probe));
    result.is_err_and(|error| is_no_room(&error))
}

/// Removes a file, if it exists.
pub fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn folder(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn replace_keeps_the_old_file_if_writing_fails() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state");
        save(&file, b"old").unwrap();
        let failed = write(&file, PRIVATE, Mode::Replace, |new| {
            new.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["state"]);
    }

    #[test]
    fn write_to_a_folder_fails_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let occupied = folder.path().join("zsync.prom");
        fs::create_dir(&occupied).unwrap();
        write(&occupied, PUBLIC, Mode::ReplaceUnsynced, |new| new.write_all(b"x")).unwrap_err();
        assert_eq!(names(folder.path()), ["zsync.prom"]);
    }

    #[test]
    fn create_refuses_to_replace_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.key");
        write(&file, PRIVATE, Mode::Create, |new| new.write_all(b"first")).unwrap();
        let second = write(&file, PRIVATE, Mode::Create, |new| new.write_all(b"second"));
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["ca.key"]);
    }

    #[test]
    fn write_sets_permissions_regardless_of_the_umask() {
        let folder = tempfile::tempdir().unwrap();
        for (name, permissions) in [("private", PRIVATE), ("public", PUBLIC)] {
            let file = folder.path().join(name);
            write(&file, permissions, Mode::ReplaceUnsynced, |new| new.write_all(b"x")).unwrap();
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, permissions);
        }
    }

    #[test]
    fn make_private_creates_or_corrects_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("journal");
        let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
        make_private(&file);
        assert_eq!(mode(), PRIVATE);
        fs::write(&file, "content").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o664)).unwrap();
        make_private(&file);
        assert_eq!((mode(), fs::read(&file).unwrap().as_slice()), (PRIVATE, &b"content"[..]));
        make_private(&folder.path().join("none/journal"));
    }

    #[test]
    fn write_replaces_the_leftover_of_a_killed_process() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state");
        fs::write(folder.path().join(format!("state.{}.new", std::process::id())), b"half").unwrap();
        save(&file, b"whole").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"whole");
        assert_eq!(names(folder.path()), ["state"]);
    }
}
