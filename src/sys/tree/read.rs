//! Reads single files and folders into a [`Sink`].

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, fstat, openat, readlinkat, seek};
use rustix::io::Errno;

use super::attributes;
use super::sink::{Attributes, Item, Kind, LARGEST_PART, Sink};
use super::walk::{Entry, Folder};

/// Why a file was not read to its end.
enum Stop {
    /// It cannot be read.
    Read(io::Error),
    /// Nothing more is taken.
    Sink(io::Error),
}

/// Reads something that is not a folder.
pub fn read_entry(entry: &Entry<'_>, sink: &mut dyn Sink, buffer: &mut Vec<u8>) -> io::Result<()> {
    let (item, file) = match look_at(entry) {
        Ok(found) => found,
        Err(error) => return sink.problem(&entry.path(), &error.to_string()),
    };
    if !sink.begin(entry.name, &item)? {
        return Ok(());
    }
    let Some(mut file) = file else { return Ok(()) };
    match content(&mut file, item.size, sink, buffer) {
        Ok(()) => sink.end(),
        Err(Stop::Read(error)) => sink.fail(&error.to_string()),
        Err(Stop::Sink(error)) => Err(error),
    }
}

/// Leaves a folder.
pub fn leave_folder(folder: &Folder, sink: &mut dyn Sink) -> io::Result<()> {
    if !sink.wants_attributes() {
        return sink.leave(None);
    }
    let mut stopped = Ok(());
    let read = attributes::each(&folder.fd, |name, value| {
        stopped = sink.folder_attribute(name, value);
        stopped.is_ok()
    });
    stopped?;
    if let Err(error) = read {
        sink.problem(&folder.path, &error.to_string())?;
    }
    sink.leave(Some(&Attributes::from(&folder.stat)))
}

/// Finds out what something is, and opens it if it is an ordinary file.
fn look_at(entry: &Entry<'_>) -> io::Result<(Item, Option<File>)> {
    let Entry { folder, name, stat } = entry;
    let mut file = None;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            file = Some(open(folder, name, stat)?);
            Kind::File
        }
        FileType::Symlink => {
            let target = readlinkat(&folder.fd, *name, Vec::new())?;
            Kind::Link(OsStringExt::from_vec(target.into_bytes()))
        }
        FileType::Fifo => Kind::Pipe,
        FileType::CharacterDevice => Kind::CharacterDevice(stat.st_rdev),
        FileType::BlockDevice => Kind::BlockDevice(stat.st_rdev),
        _ => return Err(io::Error::other("it is a socket, which has no content")),
    };
    let size = if kind == Kind::File { stat.st_size.unsigned_abs() } else { 0 };
    let linked = (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
    Ok((Item { kind, size, attributes: Attributes::from(stat), linked }, file))
}

fn open(folder: &Folder, name: &OsStr, stat: &rustix::fs::Stat) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&folder.fd, name, flags, Mode::empty())?;
    let opened = fstat(&file)?;
    if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
        return Err(io::Error::other("it was replaced at this moment"));
    }
    Ok(file.into())
}

/// Reads the data of a file without its holes, and then its extended attributes.
fn content(file: &mut File, size: u64, sink: &mut dyn Sink, buffer: &mut Vec<u8>) -> Result<(), Stop> {
    buffer.resize(LARGEST_PART, 0);
    let mut position = 0;
    while position < size {
        let start = match seek(&*file, SeekFrom::Data(position)) {
            Ok(start) => start,
            // There is no more data.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::NOTSUP) => position,
            Err(error) => return Err(Stop::Read(error.into())),
        };
        let end = match seek(&*file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(_) => size,
        };
        file.seek(io::SeekFrom::Start(start)).map_err(Stop::Read)?;
        let mut at = start;
        while at < end {
            let part = usize::try_from(end - at).unwrap_or(LARGEST_PART).min(LARGEST_PART);
            let read = file.read(&mut buffer[..part]).map_err(Stop::Read)?;
            if read == 0 {
                return Err(Stop::Read(io::Error::other("it is shorter than its size says")));
            }
            sink.data(at, &buffer[..read]).map_err(Stop::Sink)?;
            at += read as u64;
        }
        position = end.max(start + 1);
    }
    let mut stopped = Ok(());
    let read = attributes::each(&*file, |name, value| {
        stopped = sink.attribute(name, value);
        stopped.is_ok()
    });
    stopped.map_err(Stop::Sink)?;
    read.map_err(Stop::Read)
}
