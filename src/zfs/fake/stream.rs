//! Defines the format of a fake stream: for each snapshot a header line, its data, and a trailer line.
//!
//! The data is as long as what was written before the snapshot, up to [`LONGEST`] bytes, and every byte of it follows
//! from the snapshot's guid and the byte's position. The receiver checks the data record by record, as ZFS does. It
//! does not keep any part of an incomplete or damaged record.

use serde::{Deserialize, Serialize};

use crate::model::{DatasetKind, Guid, SendFlags, Snapshot};
use crate::zfs::fake::token::checksum;

/// The most data of one snapshot in a stream. It bounds the time of tests whose datasets are large.
pub const LONGEST: u64 = 8 << 10;
/// The size of a record. The data of a snapshot ends with a shorter one.
pub const RECORD: u64 = 256;
/// No header line is longer.
const LONGEST_LINE: usize = 64 << 10;

/// The header of one snapshot in a stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Header {
    /// A filesystem or a volume.
    pub kind: DatasetKind,
    /// The snapshot's full name on the sender.
    pub toname: String,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The guid of the snapshot that the destination must already have; `None` in a full stream.
    pub from: Option<Guid>,
    /// The flags of the send, in the format of `zsync:flags`.
    pub flags: String,
    /// Whether the blocks are raw, those of an encrypted dataset.
    pub raw: bool,
    /// How much data the snapshot has in all.
    pub length: u64,
    /// Where the data in this stream starts, if the stream continues an interrupted receive.
    pub resume: Option<u64>,
    /// Whether no other snapshot follows.
    pub is_last: bool,
}

impl Header {
    /// The flags of the send.
    pub(super) fn flags(&self) -> SendFlags {
        self.flags.parse().unwrap_or(SendFlags::PLAIN)
    }

    /// Writes header, data and trailer.
    pub(super) fn write(&self, into: &mut Vec<u8>) {
        let json = serde_json::to_string(self).unwrap_or_default();
        into.extend(format!("{json} {:x}\n", checksum(json.as_bytes())).bytes());
        let guid = self.snapshot.guid;
        into.extend((self.resume.unwrap_or(0)..self.length).map(|at| data(guid, at)));
        into.extend(trailer(guid).bytes());
    }

    /// Reads the header line at the beginning of `input`, and returns it with its length; `None` if it is not complete
    /// yet.
    pub(super) fn read(input: &[u8]) -> Result<Option<(Self, usize)>, &'static str> {
        let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
            return if input.len() > LONGEST_LINE { Err("invalid stream (bad magic number)") } else { Ok(None) };
        };
        let line = std::str::from_utf8(&input[..end]).unwrap_or_default();
        let words = line.rsplit_once(' ').filter(|(json, _)| json.starts_with('{'));
        let (json, sum) = words.ok_or("invalid stream (bad magic number)")?;
        if u64::from_str_radix(sum, 16) != Ok(checksum(json.as_bytes())) {
            return Err("invalid stream (checksum mismatch)");
        }
        serde_json::from_str(json).map(|header| Some((header, end + 1))).map_err(|_| "invalid stream (bad record type)")
    }
}

/// The line after the data of a snapshot.
pub(super) fn trailer(guid: Guid) -> String {
    format!("end {guid}\n")
}

/// The byte of a snapshot's data at a position.
#[allow(clippy::cast_possible_truncation, reason = "one byte is wanted")]
pub(super) fn data(guid: Guid, at: u64) -> u8 {
    (guid.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (8 * (at % 8))) as u8 ^ (at / 8) as u8
}
