//! The parts of a tree, in the order in which they are read and written: from a folder into another one, or with a
//! connection in between.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

/// How much of a file is read at a time, in bytes.
pub const LARGEST_PART: usize = 1 << 20;

/// The longest value of an extended attribute, and the longest list of their names, that Linux permits, in bytes.
pub const LONGEST_ATTRIBUTE: usize = 64 << 10;

/// What a file or folder has besides its content and its extended attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Attributes {
    /// Its permissions, with the bits for set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was last read, in seconds and nanoseconds.
    pub accessed: (i64, i64),
    /// When it was last written to, in seconds and nanoseconds.
    pub modified: (i64, i64),
}

/// The permissions in a mode, whose type differs between systems.
fn permissions(mode: impl Into<u32>) -> u32 {
    mode.into() & 0o7777
}

impl From<&Stat> for Attributes {
    fn from(stat: &Stat) -> Self {
        // The type of the nanoseconds differs between systems.
        let time = |seconds, nanoseconds: i128| (seconds, i64::try_from(nanoseconds).unwrap_or_default());
        Self {
            mode: permissions(stat.st_mode),
            uid: stat.st_uid,
            gid: stat.st_gid,
            accessed: time(stat.st_atime, stat.st_atime_nsec.into()),
            modified: time(stat.st_mtime, stat.st_mtime_nsec.into()),
        }
    }
}

/// What is not a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary file.
    File,
    /// A symbolic link to this target.
    Link(OsString),
    /// A named pipe.
    Pipe,
    /// A character device with this number.
    CharacterDevice(u64),
    /// A block device with this number.
    BlockDevice(u64),
}

/// A file, a symbolic link or whatever else is not a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// The size of a file in bytes.
    pub size: u64,
    /// Its attributes.
    pub attributes: Attributes,
    /// The device and inode, if it has several names.
    pub linked: Option<(u64, u64)>,
}

/// Takes the parts of a tree. An error ends everything; what concerns one file alone is only noted.
pub trait Sink {
    /// A folder with this name is entered, below the one that was entered before.
    fn enter(&mut self, name: &OsStr) -> io::Result<()>;
    /// The folder that was entered last is wanted itself, even if nothing in it is. Returns whether it can be had.
    fn need_folder(&mut self) -> io::Result<bool>;
    /// Whether the attributes of the folder that was entered last are wanted.
    fn wants_attributes(&self) -> bool;
    /// An extended attribute of the folder that was entered last, immediately before it is left.
    fn folder_attribute(&mut self, name: &[u8], value: &[u8]) -> io::Result<()>;
    /// The folder that was entered last is left.
    fn leave(&mut self, attributes: Option<&Attributes>) -> io::Result<()>;
    /// Something that is not a folder, in the folder that was entered last. Returns whether the rest of it is wanted:
    /// only of an ordinary file, whose data, extended attributes and end then follow.
    fn begin(&mut self, name: &OsStr, item: &Item) -> io::Result<bool>;
    /// Data of the file, at this position. What is left out is a hole.
    fn data(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// An extended attribute of the file, after its data.
    fn attribute(&mut self, name: &[u8], value: &[u8]) -> io::Result<()>;
    /// The file is complete.
    fn end(&mut self) -> io::Result<()>;
    /// The file cannot be read to its end.
    fn fail(&mut self, why: &str) -> io::Result<()>;
    /// Something cannot be read at all.
    fn problem(&mut self, path: &Path, why: &str) -> io::Result<()>;
}
