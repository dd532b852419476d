//! Reads a stream of files, which another host controls.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::sys::tree::{Item, Kind, LARGEST_PART, LONGEST_ATTRIBUTE, Sink};
use crate::wire::files::record::{Bytes, ItemKind, LONGEST_RECORD, Record};

/// The longest name of a file or of an extended attribute that Linux permits, in bytes.
const LONGEST_NAME: usize = 255;
/// The longest target of a symbolic link that Linux permits, in bytes.
const LONGEST_TARGET: usize = 4095;
/// How many folders may be within each other: each needs an open file.
const DEEPEST: usize = 500;

/// Where the stream is.
struct Unpacker<'a> {
    input: &'a mut dyn Read,
    sink: &'a mut dyn Sink,
    depth: usize,
    /// Whether a file was begun.
    is_in_file: bool,
    buffer: Vec<u8>,
}

/// Passes a stream of files on. A stream that no honest host sends is an error.
pub fn unpack(input: &mut dyn Read, sink: &mut dyn Sink) -> io::Result<()> {
    let mut unpacker = Unpacker { input, sink, depth: 0, is_in_file: false, buffer: Vec::new() };
    while unpacker.next()? {}
    Ok(())
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the stream of files is invalid: {reason}"))
}

/// The name of a file or folder, which must not lead anywhere else.
fn name(bytes: Bytes) -> io::Result<OsString> {
    let name = bytes.into_text();
    let is_allowed = !matches!(name.as_bytes(), b"" | b"." | b"..") && name.len() <= LONGEST_NAME;
    if !is_allowed || name.as_bytes().iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(invalid(&format!("{name:?} is not the name of a file")));
    }
    Ok(name)
}

impl Unpacker<'_> {
    /// Passes one record on. Returns false after the last one.
    fn next(&mut self) -> io::Result<bool> {
        let mut length = [0; 4];
        self.input.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > LONGEST_RECORD {
            return Err(invalid(&format!("it has a record of {length} bytes")));
        }
        self.fill(length)?;
        let record: Record = serde_json::from_slice(&self.buffer).map_err(|error| invalid(&error.to_string()))?;
        let is_of_file =
            matches!(record, Record::Data { .. } | Record::Attribute { .. } | Record::End | Record::Failed { .. });
        if is_of_file != self.is_in_file {
            return Err(invalid("its records are out of order"));
        }
        match record {
            Record::Enter { name: of } => {
                self.depth += 1;
                if self.depth > DEEPEST {
                    return Err(invalid("too many folders are within each other"));
                }
                self.sink.enter(&name(of)?)?;
            }
            Record::Folder => drop(self.sink.need_folder()?),
            Record::FolderAttribute { name, length } => {
                let (name, length) = attribute(name, length)?;
                self.fill(length)?;
                if self.depth > 0 {
                    self.sink.folder_attribute(&name, &self.buffer)?;
                }
            }
            Record::Leave { attributes } => {
                self.depth = self.depth.checked_sub(1).ok_or_else(|| invalid("it leaves the uppermost folder"))?;
                self.sink.leave(attributes.as_ref())?;
            }
            Record::Item { name: of, kind, attributes, size, target, device, linked } => {
                let kind = match (kind, target, device) {
                    (ItemKind::File, None, None) => Kind::File,
                    (ItemKind::Link, Some(target), None) => Kind::Link(link_target(target)?),
                    (ItemKind::Pipe, None, None) => Kind::Pipe,
                    (ItemKind::CharacterDevice, None, Some(number)) => Kind::CharacterDevice(number),
                    (ItemKind::BlockDevice, None, Some(number)) => Kind::BlockDevice(number),
                    _ => return Err(invalid("a record does not fit what it is about")),
                };
                self.is_in_file = kind == Kind::File;
                // What follows of a file that is not wanted is ignored.
                let _is_wanted = self.sink.begin(&name(of)?, &Item { kind, size, attributes, linked })?;
            }
            Record::Data { at, length } => {
                if length > LARGEST_PART {
                    return Err(invalid(&format!("a part of a file has {length} bytes")));
                }
                self.fill(length)?;
                self.sink.data(at, &self.buffer)?;
            }
            Record::Attribute { name, length } => {
                let (name, length) = attribute(name, length)?;
                self.fill(length)?;
                self.sink.attribute(&name, &self.buffer)?;
            }
            Record::End => {
                self.is_in_file = false;
                self.sink.end()?;
            }
            Record::Failed { why } => {
                self.is_in_file = false;
                self.sink.fail(&why)?;
            }
            Record::Problem { path, why } => self.sink.problem(&PathBuf::from(path.into_text()), &why)?,
            Record::All if self.depth == 0 => return Ok(false),
            Record::All => return Err(invalid("it ends within a folder")),
        }
        Ok(true)
    }

    fn fill(&mut self, length: usize) -> io::Result<()> {
        self.buffer.resize(length, 0);
        self.input.read_exact(&mut self.buffer)
    }
}

fn attribute(name: Bytes, length: usize) -> io::Result<(Vec<u8>, usize)> {
    let Bytes(name) = name;
    if name.is_empty() || name.contains(&0) || name.len() > LONGEST_NAME || length > LONGEST_ATTRIBUTE {
        return Err(invalid("an extended attribute has no valid name, or is too long"));
    }
    Ok((name, length))
}

fn link_target(target: Bytes) -> io::Result<OsString> {
    let target = target.into_text();
    if target.is_empty() || target.len() > LONGEST_TARGET || OsStr::as_bytes(&target).contains(&0) {
        return Err(invalid("the target of a symbolic link is invalid"));
    }
    Ok(target)
}
