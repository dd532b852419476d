//! Reads the records of a `zfs send` stream as they pass, without keeping their payloads.
//!
//! A stream is a sequence of records of 312 bytes, each followed by a payload whose length the record determines. The
//! format is that of `dmu_replay_record` in OpenZFS' `include/sys/zfs_ioctl.h`. Integers have the byte order of the
//! sender, which the magic number of the first record shows.

use std::fmt;

use crate::model::DatasetKind;

/// The length of a record.
const RECORD: usize = 312;
/// The magic number of a record that begins a stream.
const MAGIC: u64 = 0x2_F5BA_CBAC;
/// The longest payload: ZFS' largest block. `zfs receive` skips what it does not want with a buffer of this size.
const MAX_PAYLOAD: u64 = 16 << 20;

/// The types of records.
mod kind {
    pub const BEGIN: u32 = 0;
    pub const OBJECT: u32 = 1;
    pub const FREE_OBJECTS: u32 = 2;
    pub const WRITE: u32 = 3;
    pub const FREE: u32 = 4;
    pub const END: u32 = 5;
    pub const WRITE_BYREF: u32 = 6;
    pub const SPILL: u32 = 7;
    pub const WRITE_EMBEDDED: u32 = 8;
    pub const OBJECT_RANGE: u32 = 9;
    pub const REDACT: u32 = 10;
}

/// A stream is resumed (`DMU_BACKUP_FEATURE_RESUMING`).
const RESUMING: u64 = 1 << 20;
/// A stream lacks data on purpose (`DMU_BACKUP_FEATURE_REDACTED`).
const REDACTED: u64 = 1 << 21;
/// A stream has the blocks of an encrypted dataset as they are on disk (`DMU_BACKUP_FEATURE_RAW`).
const RAW: u64 = 1 << 24;

/// The type of a filesystem (`DMU_OST_ZFS`).
const FILESYSTEM: u32 = 2;
/// The type of a volume (`DMU_OST_ZVOL`).
const VOLUME: u32 = 3;

/// The beginning of a stream or of a package of streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Whether this begins a package of streams, not a single stream.
    pub is_package: bool,
    /// Whether a payload follows. That of a package has properties, holds and the names of children.
    pub has_payload: bool,
    /// The full name of the snapshot on the sender.
    pub name: String,
    /// The guid of the snapshot.
    pub to: u64,
    /// The guid of the snapshot from which the stream is an increment; 0 for a full stream.
    pub from: u64,
    /// Whether the stream continues an interrupted receive.
    pub is_resumed: bool,
    /// Whether data was left out on purpose.
    pub is_redacted: bool,
    /// Whether the blocks are raw.
    pub is_raw: bool,
    /// Whether it is the stream of a filesystem or of a volume; `None` if of neither.
    pub kind: Option<DatasetKind>,
    /// Whether the dataset is a clone (`DRR_FLAG_CLONE`), for whose origin `zfs receive` searches the whole pool.
    pub is_clone: bool,
}

/// A record that delimits streams. All others are data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delimiter {
    /// A stream or a package begins.
    Begin(Begin),
    /// A stream or the header of a package ends.
    End,
}

/// Why bytes are not a valid stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord(String);

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads records from pieces of a stream.
#[derive(Debug, Default)]
pub struct RecordReader {
    /// The beginning of a record that is not complete yet.
    partial: Vec<u8>,
    /// How much of the payload of the last record has not passed yet.
    payload: u64,
    /// Whether integers are big-endian; `None` before the first record.
    big_endian: Option<bool>,
}

impl RecordReader {
    /// Reads the next piece, and passes each delimiter to `found`, which may refuse it.
    pub fn feed<E: From<BadRecord>>(
        &mut self,
        mut bytes: &[u8],
        mut found: impl FnMut(Delimiter) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let skipped = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
            self.payload -= skipped as u64;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return Ok(());
            }
            if !self.partial.is_empty() || bytes.len() < RECORD {
                let more = (RECORD - self.partial.len()).min(bytes.len());
                self.partial.extend_from_slice(&bytes[..more]);
                bytes = &bytes[more..];
                if self.partial.len() < RECORD {
                    return Ok(());
                }
                let record = std::mem::take(&mut self.partial);
                self.record(&record, &mut found)?;
                self.partial = record;
                self.partial.clear();
                continue;
            }
            let (record, rest) = bytes.split_at(RECORD);
            self.record(record, &mut found)?;
            bytes = rest;
        }
    }

    fn record<E: From<BadRecord>>(
        &mut self,
        bytes: &[u8],
        found: &mut impl FnMut(Delimiter) -> Result<(), E>,
    ) -> Result<(), E> {
        let big_endian = match self.big_endian {
            Some(known) => known,
            None => byte_order(bytes)?,
        };
        self.big_endian = Some(big_endian);
        let record = Record { bytes, big_endian };
        let payload = match record.u32(0) {
            kind::BEGIN => {
                if record.u64(8) != MAGIC {
                    return Err(BadRecord("bad magic number".into()).into());
                }
                u64::from(record.u32(4))
            }
            kind::OBJECT => match record.u32(36) {
                0 => u64::from(record.u32(28)).next_multiple_of(8),
                raw => u64::from(raw),
            },
            kind::WRITE if bytes[50] != 0 => record.u64(96),
            kind::WRITE => record.u64(32),
            kind::SPILL => match record.u64(40) {
                0 => record.u64(16),
                compressed => compressed,
            },
            kind::WRITE_EMBEDDED => u64::from(record.u32(52)).next_multiple_of(8),
            kind::FREE_OBJECTS | kind::FREE | kind::END | kind::WRITE_BYREF | kind::OBJECT_RANGE | kind::REDACT => 0,
            unknown => return Err(BadRecord(format!("unknown record type {unknown}")).into()),
        };
        if payload > MAX_PAYLOAD {
            return Err(BadRecord(format!("a payload of {payload} bytes")).into());
        }
        self.payload = payload;
        match record.u32(0) {
            kind::BEGIN => found(Delimiter::Begin(record.begin()?)),
            kind::END => found(Delimiter::End),
            _ => Ok(()),
        }
    }
}

/// The byte order of the sender: whether it is big-endian.
fn byte_order(bytes: &[u8]) -> Result<bool, BadRecord> {
    let magic = |big_endian| Record { bytes, big_endian }.u64(8) == MAGIC;
    match (magic(false), magic(true)) {
        (true, _) => Ok(false),
        (_, true) => Ok(true),
        _ => Err(BadRecord("it does not begin as a stream".into())),
    }
}

/// A record with its byte order.
struct Record<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl Record<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.bytes[at..at + N]);
        bytes
    }

    fn u32(&self, at: usize) -> u32 {
        if self.big_endian { u32::from_be_bytes(self.array(at)) } else { u32::from_le_bytes(self.array(at)) }
    }

    fn u64(&self, at: usize) -> u64 {
        if self.big_endian { u64::from_be_bytes(self.array(at)) } else { u64::from_le_bytes(self.array(at)) }
    }

    fn begin(&self) -> Result<Begin, BadRecord> {
        let version = self.u64(16);
        // The lowest two bits are the kind of header, the next thirty the features.
        let is_package = match version & 3 {
            1 => false,
            2 => true,
            other => return Err(BadRecord(format!("unknown kind of header {other}"))),
        };
        let features = (version >> 2) & ((1 << 30) - 1);
        let name = &self.bytes[56..];
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Ok(Begin {
            is_package,
            has_payload: self.u32(4) > 0,
            name: String::from_utf8_lossy(&name[..end]).into_owned(),
            to: self.u64(40),
            from: self.u64(48),
            is_resumed: features & RESUMING != 0,
            is_redacted: features & REDACTED != 0,
            is_raw: features & RAW != 0,
            kind: match self.u32(32) {
                FILESYSTEM => Some(DatasetKind::Filesystem),
                VOLUME => Some(DatasetKind::Volume),
                _ => None,
            },
            is_clone: self.u32(36) & 1 != 0,
        })
    }
}

/// Makes records for tests.
#[cfg(test)]
pub(super) mod made {
    use super::*;

    /// Puts integers into a record.
    pub fn record(kind: u32, fields: &[(usize, u64, usize)], big_endian: bool) -> Vec<u8> {
        let mut bytes = vec![0; RECORD];
        let mut put = |at: usize, value: u64, length: usize| {
            let all = if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
            let part = if big_endian { &all[8 - length..] } else { &all[..length] };
            bytes[at..at + length].copy_from_slice(part);
        };
        put(0, u64::from(kind), 4);
        fields.iter().for_each(|(at, value, length)| put(*at, *value, *length));
        bytes
    }

    /// What begins a stream or, with `header` 2, a package.
    pub fn begin(header: u64, name: &str, (from, to): (u64, u64), features: u64, payload: u64) -> Vec<u8> {
        let (version, kind) = (header | features << 2, u64::from(FILESYSTEM));
        let fields = [(4, payload, 4), (8, MAGIC, 8), (16, version, 8), (32, kind, 4), (40, to, 8), (48, from, 8)];
        let mut bytes = record(kind::BEGIN, &fields, false);
        bytes[56..56 + name.len()].copy_from_slice(name.as_bytes());
        bytes.extend(std::iter::repeat_n(7, usize::try_from(payload).unwrap()));
        bytes
    }

    /// What ends a stream.
    pub fn end() -> Vec<u8> {
        record(kind::END, &[], false)
    }

    /// A block of data that looks like the beginning of a package.
    pub fn write() -> Vec<u8> {
        let payload = begin(2, "evil@s", (0, 1), 0, 8);
        let mut bytes = record(kind::WRITE, &[(32, payload.len() as u64, 8)], false);
        bytes.extend(payload);
        bytes
    }

    /// Feature flags by name.
    pub const FEATURES: [u64; 3] = [RESUMING, REDACTED, RAW];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<Delimiter>, BadRecord> {
        let (mut reader, mut found) = (RecordReader::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            reader.feed(piece, |delimiter| {
                found.push(delimiter);
                Ok::<_, BadRecord>(())
            })?;
        }
        assert!(reader.partial.is_empty() && reader.payload == 0, "{reader:?}");
        Ok(found)
    }

    #[test]
    fn delimiters_are_found_in_pieces_of_any_size() {
        let [resuming, _, raw] = made::FEATURES;
        let kinds = [
            made::record(kind::OBJECT, &[(28, 5, 4)], false),
            vec![1; 8],
            made::record(kind::OBJECT, &[(28, 5, 4), (36, 9, 4)], false),
            vec![1; 9],
            made::record(kind::WRITE, &[(32, 1000, 8), (50, 3, 1), (96, 500, 8)], false),
            vec![1; 500],
            made::record(kind::SPILL, &[(16, 20, 8)], false),
            vec![1; 20],
            made::record(kind::SPILL, &[(16, 20, 8), (40, 10, 8)], false),
            vec![1; 10],
            made::record(kind::WRITE_EMBEDDED, &[(52, 9, 4)], false),
            vec![1; 16],
            made::record(kind::FREE, &[], false),
            made::record(kind::FREE_OBJECTS, &[], false),
            made::record(kind::OBJECT_RANGE, &[], false),
        ];
        let stream =
            [made::begin(1, "tank/a@s", (3, 4), resuming | raw, 16), kinds.concat(), made::write(), made::end()];
        let stream = stream.concat();
        let begin = Begin {
            is_package: false,
            has_payload: true,
            name: "tank/a@s".into(),
            to: 4,
            from: 3,
            is_resumed: true,
            is_redacted: false,
            is_raw: true,
            kind: Some(DatasetKind::Filesystem),
            is_clone: false,
        };
        for piece in [1, 7, 311, 312, 313, 4096, stream.len()] {
            assert_eq!(read(&stream, piece).unwrap(), [Delimiter::Begin(begin.clone()), Delimiter::End], "{piece}");
        }
    }

    #[test]
    fn streams_of_big_endian_senders_are_read() {
        let fields = [(8, MAGIC, 8), (16, 1, 8), (40, 0x0102, 8), (48, 0, 8)];
        let stream = [made::record(kind::BEGIN, &fields, true), made::record(kind::END, &[], true)].concat();
        let found = read(&stream, 100).unwrap();
        assert!(matches!(&found[0], Delimiter::Begin(Begin { to: 0x0102, .. })), "{found:?}");
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        let error = |bytes: &[u8]| read(bytes, 64).unwrap_err().to_string();
        assert_eq!(error(&[0; 312]), "it does not begin as a stream");
        let begin = made::begin(1, "a@s", (0, 1), 0, 0);
        assert_eq!(error(&[begin.clone(), made::record(11, &[], false)].concat()), "unknown record type 11");
        let huge = made::record(kind::WRITE, &[(32, u64::MAX, 8)], false);
        assert!(error(&[begin.clone(), huge].concat()).contains("a payload of"));
        let other = made::record(kind::BEGIN, &[(8, 1, 8)], false);
        assert_eq!(error(&[begin, other].concat()), "bad magic number");
        assert_eq!(error(&made::begin(3, "a@s", (0, 1), 0, 0)), "unknown kind of header 3");
    }
}
