//! Walks through a tree, folder by folder, as far as a selection says.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;

/// How many folders may be within each other: each needs an open file.
const DEEPEST: usize = 400;
/// How many names of one folder are held in memory at most.
const MOST_NAMES: usize = 4_000_000;

/// A folder that is open.
pub struct Folder {
    /// Its path below the root.
    pub path: PathBuf,
    /// The folder.
    pub fd: OwnedFd,
    /// Its attributes.
    pub stat: Stat,
}

/// A file, a symbolic link or whatever else is not a folder.
pub struct Entry<'a> {
    /// The folder that contains it.
    pub folder: &'a Folder,
    /// Its name there.
    pub name: &'a OsStr,
    /// Its attributes.
    pub stat: Stat,
}

impl Entry<'_> {
    /// Its path below the root.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path.join(self.name)
    }
}

/// What is done on the way. An error ends the walk.
pub trait Visit {
    /// What is known about a folder from its path, and decides about what is in it.
    type Selection;

    /// The names that are looked for in a folder; `None` for all.
    fn names(&self, of: &Self::Selection) -> Option<Vec<OsString>>;
    /// The selection for a name in a folder; `None` if neither it nor anything below it is wanted.
    fn select(&self, of: &Self::Selection, name: &OsStr) -> Option<Self::Selection>;
    /// A folder is entered.
    fn enter(&mut self, folder: &Folder, of: &Self::Selection) -> io::Result<()>;
    /// A file was found.
    fn file(&mut self, entry: &Entry<'_>, of: &Self::Selection) -> io::Result<()>;
    /// Everything in a folder was visited.
    fn leave(&mut self, folder: &Folder) -> io::Result<()>;
    /// Something cannot be read.
    fn problem(&mut self, path: &Path, error: io::Error) -> io::Result<()>;
}

/// Walks through the folder `root`, whose path is `path`.
pub fn walk<V: Visit>(root: &OwnedFd, path: PathBuf, of: &V::Selection, visit: &mut V) -> io::Result<()> {
    let stat = fstat(root)?;
    // The root may be open only as a place in the tree.
    let fd = open_folder(root, OsStr::new("."))?;
    folder(&Folder { path, fd, stat }, of, visit, DEEPEST)
}

fn open_folder(at: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

fn folder<V: Visit>(folder: &Folder, of: &V::Selection, visit: &mut V, depth: usize) -> io::Result<()> {
    visit.enter(folder, of)?;
    let names = match visit.names(of) {
        Some(names) => names,
        None => match names(folder) {
            Ok(names) => names,
            Err(error) => {
                visit.problem(&folder.path, error)?;
                Vec::new()
            }
        },
    };
    for name in names {
        let Some(selection) = visit.select(of, &name) else { continue };
        match below(folder, &name, &selection, visit, depth) {
            Ok(Ok(())) => {}
            Ok(Err(ends)) => return Err(ends),
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            Err(error) => visit.problem(&folder.path.join(&name), error)?,
        }
    }
    visit.leave(folder)
}

/// Visits one name in a folder. The outer error is about this name alone, the inner one ends the walk.
fn below<V: Visit>(
    within: &Folder,
    name: &OsStr,
    of: &V::Selection,
    visit: &mut V,
    depth: usize,
) -> io::Result<io::Result<()>> {
    let stat = statat(&within.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(visit.file(&Entry { folder: within, name, stat }, of));
    }
    let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("too many folders are within each other"))?;
    let fd = open_folder(&within.fd, name)?;
    let stat = fstat(&fd)?;
    if stat.st_dev != within.stat.st_dev {
        return Err(io::Error::other("another file system is mounted there"));
    }
    Ok(folder(&Folder { path: within.path.join(name), fd, stat }, of, visit, depth))
}

/// The names in a folder, sorted.
fn names(folder: &Folder) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    // The list is read through a descriptor of its own, whose position is at the beginning.
    for entry in Dir::read_from(&folder.fd)? {
        let name = entry?;
        let name = name.file_name().to_bytes();
        // ZFS shows ".zfs" in the uppermost folder if the property snapdir says so.
        if name != b"." && name != b".." && !(name == b".zfs" && folder.path.as_os_str().is_empty()) {
            names.push(OsString::from_vec(name.to_vec()));
        }
        if names.len() > MOST_NAMES {
            return Err(io::Error::other(format!("the folder has more than {MOST_NAMES} entries")));
        }
    }
    names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(names)
}
