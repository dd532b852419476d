//! Inspects a stream before `zfs receive` gets it, because a sender may send something other than it has announced.
//!
//! A stream may be a package, as `zfs send -R`, `-p` and `-h` write it. From a package, `zfs receive` takes more than
//! the snapshots that were announced: children with mount points of the sender's choice, properties, holds, renames. An
//! honest `zfs send -I` writes a package without a payload, which has none of these. All other packages are refused.

use std::collections::BTreeSet;

use crate::model::{DatasetKind, Guid};
use crate::zfs::records::{BadRecord, Begin, Delimiter, RecordReader};

/// Inspects a stream piece by piece.
pub trait Inspect: Send {
    /// Inspects the next piece, before it is passed on. The error says what is wrong.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), String>;
}

/// What a stream must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedStream {
    /// The snapshots from which it may be an increment: those of the destination or, for a clone, its origin. Empty if
    /// it must be a full stream.
    pub bases: BTreeSet<Guid>,
    /// The guid of its last snapshot, which must be that one; `None` for a stream that resumes an interrupted one.
    pub guid: Option<Guid>,
    /// Whether it is the stream of a filesystem or of a volume; `None` if that was not announced, because it continues an
    /// interrupted receive. The safe properties of a new dataset depend on it.
    pub kind: Option<DatasetKind>,
    /// Whether its blocks may be raw.
    pub may_be_raw: bool,
    /// Whether it may be the stream of a clone.
    pub may_be_clone: bool,
}

/// Inspects the streams of `zfs send`.
#[derive(Debug)]
pub struct StreamInspector {
    expected: ExpectedStream,
    reader: RecordReader,
    progress: Progress,
}

/// The part of a stream that has been inspected so far.
#[derive(Debug, Default)]
struct Progress {
    /// Whether the stream is a package.
    is_package: bool,
    /// The dataset on the sender.
    dataset: Option<String>,
    /// The guid of the last snapshot that began.
    last: Option<u64>,
    /// The guids of all snapshots that began.
    begun: BTreeSet<u64>,
    /// Whether a stream has begun and not ended.
    is_open: bool,
}

impl StreamInspector {
    /// An inspector for a stream that must be as `expected`.
    #[must_use]
    pub fn new(expected: ExpectedStream) -> Self {
        Self { expected, reader: RecordReader::default(), progress: Progress::default() }
    }
}

impl From<BadRecord> for String {
    fn from(error: BadRecord) -> Self {
        error.to_string()
    }
}

impl Inspect for StreamInspector {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Self { expected, reader, progress } = self;
        reader.feed(bytes, |delimiter| match delimiter {
            Delimiter::Begin(begin) => progress.begin(&begin, expected),
            Delimiter::End => progress.end(expected),
        })
    }
}

impl Progress {
    fn begin(&mut self, begin: &Begin, expected: &ExpectedStream) -> Result<(), String> {
        if self.is_open {
            return Err("a stream begins within another one".into());
        }
        let dataset = begin.name.split('@').next().unwrap_or_default();
        match &self.dataset {
            None => self.dataset = Some(dataset.to_owned()),
            Some(first) if first == dataset => {}
            Some(first) => return Err(format!("it has streams of two datasets, {first:?} and {dataset:?}")),
        }
        self.is_open = true;
        if begin.is_package {
            if self.is_package || self.last.is_some() {
                return Err("it is a package within another one".into());
            }
            if begin.has_payload {
                return Err("it is a package with properties, holds or children (zfs send -R, -p or -h)".into());
            }
            self.is_package = true;
            return Ok(());
        }
        // zfs receive skips a snapshot that it has already, and then may read the data of the stream as records: everything
        // that was refused above could be hidden there. OpenZFS: `recv_skip` in libzfs_sendrecv.c.
        if begin.to == 0 || expected.bases.contains(&Guid(begin.to)) || !self.begun.insert(begin.to) {
            return Err(format!("it contains the snapshot {}, which is there already", begin.to));
        }
        if begin.is_redacted {
            return Err("it is redacted".into());
        }
        if begin.has_payload && !begin.is_raw && !begin.is_resumed {
            return Err("it begins with a payload".into());
        }
        if begin.is_clone && !expected.may_be_clone {
            return Err("it is the stream of a clone, but was not announced as such".into());
        }
        if expected.kind.is_some_and(|kind| begin.kind != Some(kind)) {
            let found = begin.kind.map_or("something else", |kind| match kind {
                DatasetKind::Filesystem => "a filesystem",
                DatasetKind::Volume => "a volume",
            });
            return Err(format!("it is the stream of {found}, but was not announced as such"));
        }
        if begin.is_raw && !expected.may_be_raw {
            return Err("it is raw, but was not announced as such".into());
        }
        match self.last {
            _ if self.is_package && expected.guid.is_none() => {
                return Err("it is a package where an interrupted stream was to be resumed".into());
            }
            Some(_) if !self.is_package => return Err("another stream follows its end".into()),
            Some(last) if begin.from != last => return Err("its snapshots do not follow each other".into()),
            Some(_) => {}
            // ZFS checks that a resumed stream continues the partial state.
            None if expected.guid.is_none() && begin.is_resumed => {}
            None if begin.from == 0 && expected.bases.is_empty() => {}
            None if begin.from == 0 => return Err("it is a full stream, but an increment was announced".into()),
            None if expected.bases.contains(&Guid(begin.from)) => {}
            None => return Err(format!("it is an increment from {}, which the destination does not have", begin.from)),
        }
        if begin.is_resumed && expected.guid.is_some() {
            return Err("it resumes an interrupted stream, but was not announced as such".into());
        }
        self.last = Some(begin.to);
        // The last snapshot of a package is known at its end only.
        if self.is_package { Ok(()) } else { self.check_last(expected) }
    }

    fn end(&mut self, expected: &ExpectedStream) -> Result<(), String> {
        if self.is_open {
            self.is_open = false;
            return Ok(());
        }
        self.check_last(expected)
    }

    /// Checks that the last snapshot is the one that was announced. ZFS would take any other one as well.
    fn check_last(&self, expected: &ExpectedStream) -> Result<(), String> {
        match (self.last, expected.guid) {
            (Some(last), Some(announced)) if last != announced.0 => {
                Err(format!("its last snapshot is {last}, but {announced} was announced"))
            }
            (None, Some(announced)) => Err(format!("it ends without the snapshot {announced}, which was announced")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zfs::records::made;

    fn inspect(stream: &[Vec<u8>], expected: &ExpectedStream) -> Result<(), String> {
        let mut inspector = StreamInspector::new(expected.clone());
        stream.concat().chunks(1000).try_for_each(|piece| inspector.feed(piece))
    }

    fn of(bases: &[u64], guid: Option<u64>) -> ExpectedStream {
        let bases = bases.iter().copied().map(Guid).collect();
        let kind = Some(DatasetKind::Filesystem);
        ExpectedStream { bases, guid: guid.map(Guid), kind, may_be_raw: false, may_be_clone: false }
    }

    fn stream(from: u64, to: u64) -> Vec<u8> {
        [made::begin(1, "tank/a@s", (from, to), 0, 0), made::write(), made::end()].concat()
    }

    fn package(payload: u64) -> Vec<u8> {
        [made::begin(2, "tank/a@s", (0, 0), 0, payload), made::end()].concat()
    }

    #[test]
    fn streams_of_an_honest_sender_pass() {
        inspect(&[stream(0, 5)], &of(&[], Some(5))).unwrap();
        inspect(&[stream(3, 5)], &of(&[1, 3], Some(5))).unwrap();
        // zfs send -I.
        inspect(&[package(0), stream(3, 5), stream(5, 6), made::end()], &of(&[3], Some(6))).unwrap();
        // zfs send -t: an increment, or a first copy into a dataset that has been created.
        let [resuming, ..] = made::FEATURES;
        for from in [0, 3] {
            let resumed = [made::begin(1, "tank/a@s", (from, 5), resuming, 24), made::end()];
            inspect(&resumed, &of(&[], None)).unwrap();
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let refused = |stream: &[Vec<u8>], expected: &ExpectedStream| inspect(stream, expected).unwrap_err();
        let full = of(&[], Some(5));
        assert!(refused(&[package(400), stream(0, 5)], &full).contains("zfs send -R"));
        assert!(refused(&[package(0), package(0)], &full).contains("within another"));
        assert!(refused(&[package(0), made::begin(1, "tank/a/evil@s", (0, 5), 0, 0)], &full).contains("two datasets"));
        assert!(
            refused(&[made::begin(1, "a@s", (0, 5), 0, 0), made::begin(1, "a@s", (0, 5), 0, 0)], &full)
                .contains("within")
        );
        assert!(refused(&[stream(0, 5), stream(5, 6)], &full).contains("follows its end"));
        assert!(refused(&[package(0), stream(0, 5), stream(4, 6)], &full).contains("do not follow"));
        assert!(refused(&[stream(0, 5)], &of(&[3], Some(5))).contains("full stream"));
        assert!(refused(&[stream(9, 5)], &of(&[3], Some(5))).contains("does not have"));
        assert!(refused(&[stream(9, 5)], &full).contains("does not have"));
        assert!(refused(&[stream(0, 6)], &full).contains("but 5 was announced"));
        assert!(refused(&[package(0), stream(0, 4), made::end()], &full).contains("but 5 was announced"));
        assert!(refused(&[package(0), made::end()], &full).contains("ends without the snapshot 5"));
        let [resuming, ..] = made::FEATURES;
        assert!(refused(&[made::begin(1, "a@s", (0, 5), resuming, 24)], &full).contains("resumes"));
        // What zfs receive skips, with something hidden in its data.
        let again = |to| [made::begin(1, "tank/a@s", (3, to), 0, 24), made::write(), made::end()].concat();
        assert!(refused(&[package(0), again(3)], &of(&[3], Some(5))).contains("there already"));
        assert!(refused(&[package(0), stream(0, 4), stream(4, 4)], &full).contains("there already"));
        assert!(refused(&[package(0), stream(0, 0)], &full).contains("there already"));
        assert!(refused(&[made::begin(1, "tank/a@s", (0, 5), 0, 24)], &full).contains("payload"));
        assert!(refused(&[package(0), stream(3, 5)], &of(&[3], None)).contains("resumed"));
        let [_, redacted, raw] = made::FEATURES;
        assert!(refused(&[made::begin(1, "a@s", (0, 5), redacted, 0)], &full).contains("redacted"));
        assert!(refused(&[made::begin(1, "a@s", (0, 5), raw, 0)], &full).contains("raw"));
        // A volume has other safe properties than a filesystem.
        let volume = ExpectedStream { kind: Some(DatasetKind::Volume), ..full.clone() };
        assert!(refused(&[stream(0, 5)], &volume).contains("stream of a filesystem"));
        let encrypted = ExpectedStream { may_be_raw: true, ..full };
        inspect(&[made::begin(1, "a@s", (0, 5), raw, 0)], &encrypted).unwrap();
    }
}
