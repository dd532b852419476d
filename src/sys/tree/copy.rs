//! Writes files into a folder. Nothing that exists there is changed.
//!
//! A file gets its name only once it is complete. A folder has the mode 1700 until everything in it is complete, and only
//! then its own attributes, so that the next attempt recognises a folder that an interrupted one has left.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, chmodat, fstat, linkat, mkdirat, mknodat, openat, readlinkat, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::attributes;
use super::sink::{Attributes, Item, Kind, Sink};

/// The mode of a folder that is not complete: nobody else may look into it.
const INCOMPLETE: u32 = 0o1700;
/// How many problems and remarks are kept; the others are counted.
const MOST_PROBLEMS: usize = 1000;
/// How many files with several names are remembered. The names of others become files of their own.
const MOST_LINKS: usize = 1 << 20;
/// The bits of a mode with which a program gets the permissions of its owner or group.
const SET_ID: u32 = 0o6000;

/// What was copied.
#[derive(Debug, Default)]
pub struct Copied {
    /// How many files, links and folders.
    pub files: usize,
    /// How many bytes the files contain, without holes.
    pub bytes: u64,
    /// How many existed already, as they are in the source.
    pub present: usize,
    /// What could not be copied.
    pub problems: Vec<String>,
    /// What was copied in another way than it was.
    pub notes: Vec<String>,
    /// How many more there were of each.
    left_out: (usize, usize),
}

impl Copied {
    /// Adds how many problems and remarks there were besides those that are kept.
    #[must_use]
    pub fn summed_up(mut self) -> Self {
        for (list, more) in [(&mut self.problems, self.left_out.0), (&mut self.notes, self.left_out.1)] {
            if more > 0 {
                list.push(format!("and {more} more of this kind"));
            }
        }
        self
    }
}

/// A folder of the source that is being visited, and its counterpart once that is needed.
struct Level {
    name: Option<OsString>,
    target: Option<OwnedFd>,
    /// Whether it cannot be created, so that nothing below it is copied. That is reported once.
    is_refused: bool,
    /// Whether it was created, by this or an interrupted attempt: only then it gets attributes.
    is_new: bool,
}

/// A file that is being written.
struct Writing {
    file: File,
    name: OsString,
    item: Item,
    /// Whether it has no name yet.
    is_nameless: bool,
    /// Whether its owner and mode are set.
    is_settled: bool,
    /// How many bytes were written.
    bytes: u64,
}

/// Writes files into a folder, with the folders that lead to them.
pub struct Copier {
    levels: Vec<Level>,
    /// Files with several names that were copied, by device and inode, with the first of their paths.
    links: HashMap<(u64, u64), PathBuf>,
    writing: Option<Writing>,
    /// Whether what gives privileges is left out.
    is_careful: bool,
    /// What was copied.
    pub copied: Copied,
}

impl Copier {
    /// Copies into this folder.
    #[must_use]
    pub fn new(into: OwnedFd) -> Self {
        let root = Level { name: None, target: Some(into), is_refused: false, is_new: false };
        let (links, writing) = Default::default();
        Self { levels: vec![root], links, writing, is_careful: false, copied: Copied::default() }
    }

    /// What follows comes from another file system. Its devices and inodes may have the numbers of an earlier one, which
    /// is mounted no longer. If it is `foreign`, what gives privileges is left out: device nodes, the bits for set-user-ID
    /// and set-group-ID of files, and extended attributes that the kernel obeys.
    pub fn next_source(&mut self, foreign: bool) {
        self.links.clear();
        self.is_careful = foreign;
    }

    /// Nothing more comes of what was entered since `depth` folders were entered.
    pub fn give_up(&mut self, depth: usize) {
        if let Some(writing) = self.writing.take()
            && let Err(error) = self.discard(&writing)
        {
            self.add_problem(&self.path(), &error.to_string());
        }
        self.levels.truncate(depth + 1);
    }

    /// How many folders are entered.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.levels.len() - 1
    }

    /// The path of the folder that was entered last.
    fn path(&self) -> PathBuf {
        self.levels.iter().filter_map(|level| level.name.as_ref()).collect()
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
        self.add_problem(path, &why);
        Ok(None)
    }

    fn add_problem(&mut self, path: &Path, why: &str) {
        let Copied { problems, left_out, .. } = &mut self.copied;
        add(problems, &mut left_out.0, format!("cannot restore {path:?}: {why}"));
    }

    fn add_note(&mut self, path: &Path, note: &str) {
        let Copied { notes, left_out, .. } = &mut self.copied;
        add(notes, &mut left_out.1, format!("{path:?} {note}"));
    }

    /// Creates the folder of a level below one that is open, or opens what an interrupted attempt has left.
    fn open_folder(above: &OwnedFd, name: &OsStr) -> io::Result<(OwnedFd, bool)> {
        let made = mkdirat(above, name, Mode::from_raw_mode(INCOMPLETE));
        if let Err(error) = made
            && error != Errno::EXIST
        {
            return Err(error.into());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(above, name, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        // The bit for set-group-ID comes from the folder above.
        let is_left = (Attributes::from(&stat).mode & 0o5777, stat.st_uid) == (INCOMPLETE, geteuid().as_raw());
        Ok((fd, made.is_ok() || is_left))
    }

    /// The beginning of something that is not a folder. Returns whether its content is wanted.
    fn start(&mut self, name: &OsStr, item: &Item, path: &Path) -> io::Result<bool> {
        let item = &self.without_privileges(item, path)?;
        let Self { levels, links, copied, .. } = self;
        let root = levels.first().and_then(|level| level.target.as_ref());
        let (Some(into), Some(root)) = (levels.last().and_then(|level| level.target.as_ref()), root) else {
            return Ok(false);
        };
        let remember = |links: &mut HashMap<_, _>| {
            if let Some(identity) = item.linked
                && links.len() < MOST_LINKS
            {
                links.entry(identity).or_insert_with(|| path.to_owned());
            }
        };
        if let Some(there) = existing(into, name)? {
            if !is_same(&there, item, into, name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            copied.present += 1;
            remember(links);
            return Ok(false);
        }
        if let Some(first) = item.linked.and_then(|identity| links.get(&identity)) {
            linkat(root, first, into, name, AtFlags::empty())?;
            copied.files += 1;
            return Ok(false);
        }
        let node = |kind, number| -> io::Result<()> {
            mknodat(into, name, kind, Mode::from_raw_mode(0o600), number)?;
            attributes::set_at(&item.attributes, into, name)?;
            Ok(chmodat(into, name, Mode::from_raw_mode(item.attributes.mode), AtFlags::empty())?)
        };
        match &item.kind {
            Kind::File => {
                let (file, is_nameless) = new_file(into, name)?;
                let (name, item) = (name.to_owned(), item.clone());
                self.writing = Some(Writing { file, name, item, is_nameless, is_settled: false, bytes: 0 });
                return Ok(true);
            }
            Kind::Link(target) => {
                symlinkat(target, into, name)?;
                attributes::set_at(&item.attributes, into, name)?;
            }
            Kind::Pipe => node(FileType::Fifo, 0)?,
            Kind::CharacterDevice(number) => node(FileType::CharacterDevice, *number)?,
            Kind::BlockDevice(number) => node(FileType::BlockDevice, *number)?,
        }
        copied.files += 1;
        remember(links);
        Ok(false)
    }

    /// Leaves out what gives privileges, if that is not wanted.
    fn without_privileges(&mut self, item: &Item, path: &Path) -> io::Result<Item> {
        let mut item = item.clone();
        if self.is_careful {
            if matches!(item.kind, Kind::CharacterDevice(_) | Kind::BlockDevice(_)) {
                return Err(io::Error::other("it is a device node, which is not restored from another host"));
            }
            if item.kind == Kind::File && item.attributes.mode & SET_ID != 0 {
                item.attributes.mode &= !SET_ID;
                self.add_note(path, "came without its set-user-ID and set-group-ID bits, as it is from another host");
            }
        }
        Ok(item)
    }

    fn is_permitted(&self, attribute: &[u8]) -> bool {
        !self.is_careful || !(attribute.starts_with(b"security.") || attribute.starts_with(b"trusted."))
    }

    /// Does something with the file that is being written. If that fails, the file is given up.
    fn with_file(&mut self, work: impl FnOnce(&mut Writing) -> io::Result<()>) -> io::Result<()> {
        let Some(mut writing) = self.writing.take() else { return Ok(()) };
        let done = work(&mut writing);
        if done.is_ok() {
            self.writing = Some(writing);
            return Ok(());
        }
        let path = self.path().join(&writing.name);
        self.discard(&writing)?;
        self.check(done, &path).map(drop)
    }

    /// Removes what there is of a file that cannot be completed.
    fn discard(&self, writing: &Writing) -> io::Result<()> {
        let into = self.levels.last().and_then(|level| level.target.as_ref());
        if let (Some(into), false) = (into, writing.is_nameless) {
            unlinkat(into, &writing.name, AtFlags::empty())?;
        }
        Ok(())
    }

    /// Completes a file, and gives it its name.
    fn complete(&self, writing: &mut Writing) -> io::Result<()> {
        settle(writing)?;
        let Writing { file, name, item, is_nameless, .. } = writing;
        file.set_len(item.size)?;
        attributes::set_times(&item.attributes, &*file)?;
        match self.levels.last().and_then(|level| level.target.as_ref()) {
            Some(into) if *is_nameless => give_name(file, into, name),
            _ => Ok(()),
        }
    }
}

fn add(list: &mut Vec<String>, left_out: &mut usize, text: String) {
    if list.len() < MOST_PROBLEMS {
        list.push(text);
    } else {
        *left_out += 1;
    }
}

/// Sets the owner and mode of a file: after its data, because writing clears the bits for set-user-ID, and before its
/// extended attributes, because a change of owner clears some of them, and an access control list may change the mode.
fn settle(writing: &mut Writing) -> io::Result<()> {
    if !writing.is_settled {
        attributes::set_owner(&writing.item.attributes, &writing.file)?;
        writing.is_settled = true;
    }
    Ok(())
}

/// What has a name already.
fn existing(folder: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether something that exists is what would be written: an earlier attempt has completed it, and nobody has written
/// to it since.
fn is_same(there: &Stat, item: &Item, folder: &OwnedFd, name: &OsStr) -> bool {
    let found = Attributes::from(there);
    let is_of_kind = match (&item.kind, FileType::from_raw_mode(there.st_mode)) {
        (Kind::File, FileType::RegularFile) => there.st_size.unsigned_abs() == item.size,
        (Kind::Link(target), FileType::Symlink) => {
            readlinkat(folder, name, Vec::new()).is_ok_and(|found| found.to_bytes() == target.as_bytes())
        }
        (Kind::Pipe, FileType::Fifo) => true,
        (Kind::CharacterDevice(number), FileType::CharacterDevice)
        | (Kind::BlockDevice(number), FileType::BlockDevice) => there.st_rdev == *number,
        _ => false,
    };
    let wanted = &item.attributes;
    let (seconds, nanoseconds) = found.modified;
    // Some file systems store times in seconds. All links have the same mode.
    let is_of_time = seconds == wanted.modified.0 && (nanoseconds == wanted.modified.1 || nanoseconds == 0);
    let has_mode = found.mode == wanted.mode || matches!(item.kind, Kind::Link(_));
    is_of_kind && is_of_time && has_mode && (found.uid, found.gid) == (wanted.uid, wanted.gid)
}

/// Creates a file for writing, without a name if the file system can do that. Returns whether it has none.
fn new_file(folder: &OwnedFd, name: &OsStr) -> io::Result<(File, bool)> {
    let mode = Mode::from_raw_mode(0o600);
    #[cfg(target_os = "linux")]
    match openat(folder, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode) {
        Ok(file) => return Ok((file.into(), true)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok((openat(folder, name, flags, mode)?.into(), false))
}

/// Gives a nameless file its name, if nothing has that name.
#[cfg(target_os = "linux")]
fn give_name(file: &File, folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    match linkat(file, "", folder, name, AtFlags::EMPTY_PATH) {
        // Only root may do it in that way.
        Err(Errno::NOENT | Errno::PERM) => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(linkat(rustix::fs::CWD, path, folder, name, AtFlags::SYMLINK_FOLLOW)?)
        }
        done => Ok(done?),
    }
}

#[cfg(not(target_os = "linux"))]
fn give_name(_: &File, _: &OwnedFd, _: &OsStr) -> io::Result<()> {
    Ok(())
}

impl Sink for Copier {
    fn enter(&mut self, name: &OsStr) -> io::Result<()> {
        let (name, target) = (Some(name.to_owned()), None);
        self.levels.push(Level { name, target, is_refused: false, is_new: false });
        Ok(())
    }

    fn need_folder(&mut self) -> io::Result<bool> {
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
            match Self::open_folder(above, &name) {
                Ok((fd, is_new)) => {
                    (level.target, level.is_new) = (Some(fd), is_new);
                    self.copied.files += usize::from(is_new);
                }
                Err(error) => {
                    level.is_refused = true;
                    let path: PathBuf = self.levels[..=at].iter().filter_map(|level| level.name.as_ref()).collect();
                    self.check::<()>(Err(error), &path)?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn wants_attributes(&self) -> bool {
        self.levels.last().is_some_and(|level| level.is_new)
    }

    fn folder_attribute(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        let is_permitted = self.is_permitted(name);
        let path = self.path();
        let Some(Level { target: Some(target), is_new: true, .. }) = self.levels.last() else { return Ok(()) };
        if is_permitted {
            let set = attributes::set(target, name, value);
            self.check(set, &path)?;
        }
        Ok(())
    }

    fn leave(&mut self, attributes: Option<&Attributes>) -> io::Result<()> {
        let path = self.path();
        let Some(Level { target: Some(target), is_new: true, name: Some(_), .. }) = self.levels.pop() else {
            return Ok(());
        };
        if let Some(attributes) = attributes {
            let set = attributes::set_owner(attributes, &target);
            let set = set.and_then(|()| attributes::set_times(attributes, &target));
            self.check(set, &path)?;
        }
        Ok(())
    }

    fn begin(&mut self, name: &OsStr, item: &Item) -> io::Result<bool> {
        self.writing = None;
        if !self.need_folder()? {
            return Ok(false);
        }
        let path = self.path().join(name);
        let started = self.start(name, item, &path);
        Ok(self.check(started, &path)?.unwrap_or(false))
    }

    fn data(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.with_file(|writing| {
            if at.checked_add(bytes.len() as u64).is_none_or(|end| end > writing.item.size) {
                return Err(io::Error::other("its data is longer than its size says"));
            }
            writing.file.write_all_at(bytes, at)?;
            writing.bytes += bytes.len() as u64;
            Ok(())
        })
    }

    fn attribute(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        if !self.is_permitted(name) {
            if let Some(path) = self.writing.as_ref().map(|writing| self.path().join(&writing.name)) {
                let name = String::from_utf8_lossy(name).escape_debug().to_string();
                self.add_note(&path, &format!("came without its attribute {name}, as it is from another host"));
            }
            return Ok(());
        }
        self.with_file(|writing| {
            settle(writing)?;
            attributes::set(&writing.file, name, value)
        })
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(mut writing) = self.writing.take() else { return Ok(()) };
        let path = self.path().join(&writing.name);
        let completed = self.complete(&mut writing);
        let (linked, bytes) = (writing.item.linked, writing.bytes);
        if completed.is_err() {
            self.discard(&writing)?;
        }
        if self.check(completed, &path)?.is_some() {
            self.copied.files += 1;
            self.copied.bytes += bytes;
            if let Some(identity) = linked
                && self.links.len() < MOST_LINKS
            {
                self.links.insert(identity, path);
            }
        }
        Ok(())
    }

    fn fail(&mut self, why: &str) -> io::Result<()> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let path = self.path().join(&writing.name);
        self.discard(&writing)?;
        self.add_problem(&path, why);
        Ok(())
    }

    fn problem(&mut self, path: &Path, why: &str) -> io::Result<()> {
        self.add_problem(path, why);
        Ok(())
    }
}
