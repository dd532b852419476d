//! Defines the records that a stream of files consists of.
//!
//! A record is a length (four bytes, big endian) and as many bytes of JSON. The data of a file and the value of an
//! extended attribute follow their record as they are.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sys::tree::{Attributes, Item, Kind};
use crate::wire::text;

/// The longest record, without what follows it, in bytes. A path may take 4096 bytes.
pub(super) const LONGEST_RECORD: usize = 32 << 10;

/// Bytes, which JSON has in base64, such as the name of a file, which need not be UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub(super) fn of(text: &OsStr) -> Self {
        Self(text.as_bytes().to_vec())
    }

    pub(super) fn into_text(self) -> OsString {
        OsString::from_vec(self.0)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        BASE64_STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A path in base64.
pub(super) mod path {
    use std::path::{Path, PathBuf};

    use super::{Bytes, Deserialize, Deserializer, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        Bytes::of(path.as_os_str()).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(Bytes::deserialize(from)?.into_text().into())
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all_fields = "PascalCase")]
pub(super) enum Record {
    /// A folder is entered.
    Enter { name: Bytes },
    /// The folder that was entered last is wanted itself.
    Folder,
    /// An extended attribute of the folder that was entered last; the value follows.
    FolderAttribute { name: Bytes, length: usize },
    /// The folder that was entered last is left.
    Leave {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attributes: Option<Attributes>,
    },
    /// Something that is not a folder. After an ordinary file, its data, attributes and end follow.
    Item {
        name: Bytes,
        kind: ItemKind,
        attributes: Attributes,
        #[serde(default)]
        size: u64,
        /// The target of a symbolic link.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<Bytes>,
        /// The number of a device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<u64>,
        /// The device and inode of a file with several names.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        linked: Option<(u64, u64)>,
    },
    /// Data of the file at this position; it follows.
    Data { at: u64, length: usize },
    /// An extended attribute of the file; the value follows.
    Attribute { name: Bytes, length: usize },
    /// The file is complete.
    End,
    /// The file cannot be read to its end.
    Failed {
        #[serde(deserialize_with = "text::text")]
        why: String,
    },
    /// Something cannot be read.
    Problem {
        path: Bytes,
        #[serde(deserialize_with = "text::text")]
        why: String,
    },
    /// That was all.
    All,
}

/// What is not a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ItemKind {
    File,
    Link,
    Pipe,
    CharacterDevice,
    BlockDevice,
}

impl Record {
    pub(super) fn item(name: &OsStr, item: &Item) -> Self {
        let (kind, target, device) = match &item.kind {
            Kind::File => (ItemKind::File, None, None),
            Kind::Link(target) => (ItemKind::Link, Some(Bytes::of(target)), None),
            Kind::Pipe => (ItemKind::Pipe, None, None),
            Kind::CharacterDevice(number) => (ItemKind::CharacterDevice, None, Some(*number)),
            Kind::BlockDevice(number) => (ItemKind::BlockDevice, None, Some(*number)),
        };
        let Item { size, attributes, linked, .. } = *item;
        Self::Item { name: Bytes::of(name), kind, attributes, size, target, device, linked }
    }
}
