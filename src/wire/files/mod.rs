//! Defines how files are read from the snapshots of another host: the messages, and the stream of files.

mod pack;
mod record;
mod unpack;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::{DatasetName, Guid, HostName, OrderId, SnapName};
use crate::wire::{Facts, Progress, Response, default_protocol, text};

pub use pack::Packer;
pub use record::Bytes;
pub use unpack::unpack;

/// How many snapshots one request searches at most.
pub const MOST_SNAPSHOTS: usize = 1000;
/// How many versions are in one line at most, so that it stays below the longest line.
pub const FOUND_PER_LINE: usize = 100;

/// The first line of a host that reads files from the snapshots of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskFiles {
    /// What is asked for.
    pub read_files: ReadFiles,
}

/// What a host wants to know about, or to have of, the files of a dataset and of the datasets below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ReadFiles {
    /// The identity of the request.
    #[serde(rename = "OrderUUID")]
    pub order_uuid: OrderId,
    /// The host that asks. Its certificate must name it.
    pub host: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// What is asked for; if it is missing, the list of snapshots.
    #[serde(default)]
    pub what: WantedOfFiles,
    /// The protocol's version.
    #[serde(default = "default_protocol")]
    pub protocol: u32,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WantedOfFiles {
    /// The datasets and their snapshots.
    #[default]
    List,
    /// The versions of files in these snapshots.
    #[serde(rename_all = "PascalCase")]
    Search {
        /// The pattern of their paths below the dataset.
        pattern: String,
        /// The snapshots, the newest first, of the dataset or of those below it; at most [`MOST_SNAPSHOTS`].
        snapshots: Vec<(DatasetName, SnapName)>,
    },
    /// The files of one snapshot.
    #[serde(rename_all = "PascalCase")]
    Fetch {
        /// The patterns of their paths below the dataset; one has to match.
        patterns: Vec<String>,
        /// The dataset of the snapshot: the dataset itself, or one below it.
        of: DatasetName,
        /// The snapshot's name.
        snapshot: SnapName,
        /// The snapshot's guid.
        guid: Guid,
    },
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FilesLine {
    /// The last line; of [`WantedOfFiles::Fetch`], if it is successful, the stream of files follows in frames.
    Response(Response),
    /// Still at work.
    Progress {
        /// How many snapshots were searched.
        #[serde(rename = "Progress")]
        progress: Progress,
    },
    /// A part of the list.
    Facts {
        /// The part.
        #[serde(rename = "Facts")]
        facts: Box<Facts>,
    },
    /// Versions that were found.
    Found {
        /// The versions.
        #[serde(rename = "Found")]
        found: Vec<FileFound>,
    },
    /// What could not be read.
    Problem {
        /// The reason.
        #[serde(rename = "Problem", deserialize_with = "text::text")]
        problem: String,
    },
}

/// A version of a file: what stays the same as long as nobody writes to it, on its source as on all copies, and in which
/// of the snapshots it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FileFound {
    /// The path below the dataset, in base64.
    #[serde(with = "record::path")]
    pub path: PathBuf,
    /// What it is.
    #[serde(default)]
    pub kind: FoundKind,
    /// The inode.
    pub inode: u64,
    /// The size in bytes.
    pub size: u64,
    /// When it was last written to, in seconds and nanoseconds.
    pub written: (i64, i64),
    /// When it was last changed in any way, in seconds and nanoseconds.
    pub changed: (i64, i64),
    /// In how many of the snapshots it is.
    pub snapshots: usize,
    /// The first of the snapshots that has it, counted from 0.
    pub newest: usize,
    /// The last of the snapshots that has it.
    pub oldest: usize,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundKind {
    /// An ordinary file.
    File,
    /// A symbolic link.
    Link,
    /// Something else.
    #[default]
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests;
