//! Copies files into a folder. Nothing that exists there is changed.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, chmodat, fstat, linkat, mkdirat, mknodat, openat, readlinkat, seek,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::attributes;
use super::walk::{Entry, Folder};

/// How much is copied at a time, in bytes.
const BUFFER: usize = 1 << 20;

/// What was copied.
#[derive(Debug, Default)]
pub struct Copied {
    /// How many files, links and folders.
    pub files: usize,
    /// How many bytes the files contain, without holes.
    pub bytes: u64,
    /// What could not be copied.
    pub problems: Vec<String>,
}

/// A folder of the source that is being visited, and its counterpart once that is needed.
struct Level {
    name: Option<OsString>,
    target: Option<OwnedFd>,
    /// Whether it cannot be created, so that nothing below it is copied. That is reported once.
    is_refused: bool,
}

/// Copies files into a folder, with the folders that lead to them.
pub struct Copier {
    levels: Vec<Level>,
    /// Files with several names that were copied, by device and inode, with the first of their paths.
    links: HashMap<(u64, u64), PathBuf>,
    /// The folders that were created, by their paths: only these get attributes.
    created: BTreeSet<PathBuf>,
    buffer: Vec<u8>,
    /// What was copied.
    pub copied: Copied,
}

impl Copier {
    /// Copies into this folder.
    #[must_use]
    pub fn new(into: OwnedFd) -> Self {
        let root = Level { name: None, target: Some(into), is_refused: false };
        let (links, created, buffer) = Default::default();
        Self { levels: vec![root], links, created, buffer, copied: Copied::default() }
    }

    /// What follows comes from another file system. Its devices and inodes may have the numbers of an earlier one, which
    /// is mounted no longer.
    pub fn next_source(&mut self) {
        self.links.clear();
    }

    /// A folder with this name is entered, below the one that was entered before. It is created only if it is needed.
    pub fn enter(&mut self, name: &OsStr) {
        self.levels.push(Level { name: Some(name.to_owned()), target: None, is_refused: false });
    }

    /// The folder that was entered last is left. If it was created, it gets the attributes of `source`.
    pub fn leave(&mut self, source: Option<&Folder>) -> io::Result<()> {
        let path = self.path();
        let Some(Level { target: Some(target), name: Some(_), .. }) = self.levels.pop() else { return Ok(()) };
        if let (Some(source), true) = (source, self.created.contains(&path)) {
            let copied = attributes::copy(&source.fd, &source.stat, &target);
            self.check(copied, &path)?;
        }
        Ok(())
    }

    /// The path of the folder that was entered last.
    fn path(&self) -> PathBuf {
        self.levels.iter().filter_map(|level| level.name.as_ref()).collect()
    }

    /// Creates the folder that was entered last, with those above it.
    pub fn need_folder(&mut self) -> io::Result<bool> {
        for at in 1..self.levels.len() {
            if self.levels[at].target.is_some() {
                continue;
            }
            if self.levels[at].is_refused {
                return Ok(false);
            }
            let (above, rest) = self.levels.split_at_mut(at);
            let (Some(Level { target: Some(above), .. }), Some(level)) = (above.last(), rest.first_mut()) else {
                return Ok(false);
            };
            let name = level.name.clone().unwrap_or_default();
            // Until its attributes are set, nobody else may look into it.
            let made = mkdirat(above, &name, Mode::RWXU);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = match made {
                Ok(()) | Err(Errno::EXIST) => openat(above, &name, flags, Mode::empty()),
                Err(error) => Err(error),
            };
            let path: PathBuf = self.levels[..=at].iter().filter_map(|level| level.name.as_ref()).collect();
            match opened {
                Ok(fd) => {
                    self.levels[at].target = Some(fd);
                    if made.is_ok() {
                        self.copied.files += 1;
                        self.created.insert(path);
                    }
                }
                Err(error) => {
                    self.levels[at].is_refused = true;
                    self.check::<()>(Err(error.into()), &path)?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Copies something that is not a folder.
    pub fn file(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let path = self.path().join(entry.name);
        if !self.need_folder()? {
            return Ok(());
        }
        let copied = self.copy(entry, &path);
        if self.check(copied, &path)?.is_some() {
            self.copied.files += 1;
        }
        Ok(())
    }

    /// Notes that something could not be copied, unless nothing more can be copied at all.
    fn check<T>(&mut self, result: io::Result<T>, path: &Path) -> io::Result<Option<T>> {
        let error = match result {
            Ok(done) => return Ok(Some(done)),
            Err(error) => error,
        };
        let fatal = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::MFILE];
        if fatal.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) {
            return Err(error);
        }
        let why = match error.kind() {
            io::ErrorKind::AlreadyExists => "it exists, and is not overwritten".to_owned(),
            _ => error.to_string(),
        };
        self.problem(path, &why);
        Ok(None)
    }

    /// Notes that something could not be copied.
    pub fn problem(&mut self, path: &Path, why: &str) {
        self.copied.problems.push(format!("cannot restore {path:?}: {why}"));
    }

    fn copy(&mut self, entry: &Entry<'_>, path: &Path) -> io::Result<()> {
        let Self { levels, links, buffer, copied, .. } = self;
        let Some(into) = levels.last().and_then(|level| level.target.as_ref()) else { return Ok(()) };
        let Entry { folder, name, stat } = entry;
        let identity = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let (Some(first), Some(root)) = (links.get(&identity), levels.first().and_then(|l| l.target.as_ref()))
        {
            return Ok(linkat(root, first, into, *name, AtFlags::empty())?);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => copied.bytes += content(entry, into, buffer)?,
            FileType::Symlink => {
                let target = readlinkat(&folder.fd, *name, Vec::new())?;
                symlinkat(target, into, *name)?;
                attributes::copy_at(stat, into, name)?;
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                mknodat(into, *name, kind, Mode::from_raw_mode(0o600), stat.st_rdev)?;
                attributes::copy_at(stat, into, name)?;
                chmodat(into, *name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
            }
            _ => return Err(io::Error::other("it is a socket, which has no content")),
        }
        if stat.st_nlink > 1 {
            links.insert(identity, path.to_owned());
        }
        Ok(())
    }
}

/// Copies a file with its attributes. A file that cannot be copied whole is removed again.
fn content(entry: &Entry<'_>, into: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<u64> {
    let Entry { folder, name, stat } = entry;
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = openat(&folder.fd, *name, flags | OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
    let opened = fstat(&from)?;
    if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
        return Err(io::Error::other("it was replaced at this moment"));
    }
    let new = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let to = openat(into, *name, new, Mode::from_raw_mode(0o600))?;
    let (mut from, mut to) = (File::from(from), File::from(to));
    let copied = data(&mut from, &mut to, stat.st_size.unsigned_abs(), buffer)
        .and_then(|bytes| attributes::copy(&from, stat, &to).map(|()| bytes));
    if copied.is_err() {
        drop(to);
        unlinkat(into, *name, AtFlags::empty())?;
    }
    copied
}

/// Copies the data of a file, and leaves out its holes. Returns the number of bytes.
fn data(from: &mut File, to: &mut File, size: u64, buffer: &mut Vec<u8>) -> io::Result<u64> {
    buffer.resize(BUFFER, 0);
    let (mut position, mut copied) = (0, 0);
    while position < size {
        let start = match seek(&*from, SeekFrom::Data(position)) {
            Ok(start) => start,
            // There is no more data.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::NOTSUP) => position,
            Err(error) => return Err(error.into()),
        };
        let end = match seek(&*from, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(_) => size,
        };
        from.seek(io::SeekFrom::Start(start))?;
        to.seek(io::SeekFrom::Start(start))?;
        let mut left = end.saturating_sub(start);
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let read = from.read(&mut buffer[..part])?;
            if read == 0 {
                return Err(io::Error::other("it is shorter than its size says"));
            }
            to.write_all(&buffer[..read])?;
            left -= read as u64;
            copied += read as u64;
        }
        position = end.max(start + 1);
    }
    to.set_len(size)?;
    Ok(copied)
}
