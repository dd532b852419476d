use std::ffi::OsStr;
use std::io::{self, Cursor};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::record::{ItemKind, Record};
use super::*;
use crate::sys::tree::{Attributes, Item, Kind, Sink};

/// Writes down what it takes.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn add(&mut self, text: impl std::fmt::Debug) -> io::Result<()> {
        self.0.push(format!("{text:?}"));
        Ok(())
    }
}

impl Sink for Notes {
    fn enter(&mut self, name: &OsStr) -> io::Result<()> {
        self.add(("enter", name))
    }
    fn need_folder(&mut self) -> io::Result<bool> {
        self.add("folder").map(|()| true)
    }
    fn wants_attributes(&self) -> bool {
        true
    }
    fn folder_attribute(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        self.add(("folder attribute", name, value))
    }
    fn leave(&mut self, attributes: Option<&Attributes>) -> io::Result<()> {
        self.add(("leave", attributes))
    }
    fn begin(&mut self, name: &OsStr, item: &Item) -> io::Result<bool> {
        self.add((name, item)).map(|()| true)
    }
    fn data(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.add((at, bytes))
    }
    fn attribute(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        self.add((name, value))
    }
    fn end(&mut self) -> io::Result<()> {
        self.add("end")
    }
    fn fail(&mut self, why: &str) -> io::Result<()> {
        self.add(("fail", why))
    }
    fn problem(&mut self, path: &Path, why: &str) -> io::Result<()> {
        self.add((path, why))
    }
}

fn item(kind: Kind) -> Item {
    let attributes = Attributes { mode: 0o4755, uid: 1, gid: 2, accessed: (-3, 4), modified: (5, 6) };
    Item { kind, size: 70, attributes, linked: Some((8, 9)) }
}

/// Gives a tree to a sink.
fn feed(sink: &mut impl Sink) -> io::Result<()> {
    sink.enter(OsStr::new("a"))?;
    sink.enter(OsStr::from_bytes(b"odd \xff"))?;
    sink.begin(OsStr::new("file"), &item(Kind::File))?;
    sink.data(10, b"da\0ta")?;
    sink.attribute(b"user.x", b"\xfe")?;
    sink.end()?;
    sink.begin(OsStr::new("other"), &item(Kind::File))?;
    sink.fail("it is gone")?;
    sink.begin(OsStr::new("link"), &item(Kind::Link("/etc/passwd".into())))?;
    sink.begin(OsStr::new("device"), &item(Kind::BlockDevice(77)))?;
    sink.folder_attribute(b"user.y", b"")?;
    sink.leave(Some(&Attributes::default()))?;
    sink.problem(Path::new("a/b"), "unreadable")?;
    sink.leave(None)
}

fn unpacked(bytes: &[u8]) -> (Notes, io::Result<()>) {
    let mut notes = Notes::default();
    let result = unpack(&mut Cursor::new(bytes), &mut notes);
    (notes, result)
}

#[test]
fn stream_gives_what_was_written() {
    let (mut packer, mut wanted) = (Packer::new(Vec::new()), Notes::default());
    feed(&mut packer).unwrap();
    feed(&mut wanted).unwrap();
    let bytes = packer.finish().unwrap();
    let (found, result) = unpacked(&bytes);
    result.unwrap();
    assert_eq!(found.0, wanted.0);
    for length in 0..bytes.len() {
        assert!(unpacked(&bytes[..length]).1.is_err(), "{length}");
    }
}

#[test]
fn folders_without_anything_wanted_are_not_written() {
    let mut packer = Packer::new(Vec::new());
    packer.enter(OsStr::new("empty")).unwrap();
    assert!(!packer.wants_attributes());
    packer.leave(None).unwrap();
    packer.enter(OsStr::new("wanted")).unwrap();
    packer.need_folder().unwrap();
    packer.leave(None).unwrap();
    let (found, result) = unpacked(&packer.finish().unwrap());
    result.unwrap();
    assert_eq!(found.0, ["(\"enter\", \"wanted\")", "\"folder\"", "(\"leave\", None)"]);
}

#[test]
fn hostile_streams_are_refused() {
    let enter = |name: &[u8]| Record::Enter { name: Bytes(name.to_vec()) };
    let leave = || Record::Leave { attributes: None };
    let file = |name: &[u8], kind, target| Record::Item {
        name: Bytes(name.to_vec()),
        kind,
        attributes: Attributes::default(),
        size: 0,
        target,
        device: None,
        linked: None,
    };
    let attribute = |length| Record::Attribute { name: Bytes(b"user.x".to_vec()), length };
    let cases: Vec<(&str, Vec<Record>)> = vec![
        ("..", vec![enter(b"..")]),
        (".", vec![file(b".", ItemKind::File, None)]),
        ("no name", vec![enter(b"")]),
        ("a path", vec![file(b"a/b", ItemKind::File, None)]),
        ("an absolute path", vec![enter(b"/etc")]),
        ("a NUL", vec![file(b"a\0", ItemKind::Pipe, None)]),
        ("a name of 256 bytes", vec![enter(&[b'x'; 256])]),
        ("leaving the uppermost folder", vec![leave()]),
        ("too deep", (0..501).map(|_| enter(b"a")).collect()),
        ("data of nothing", vec![Record::Data { at: 0, length: 0 }]),
        ("the end of nothing", vec![Record::End]),
        ("a folder in a file", vec![file(b"a", ItemKind::File, None), enter(b"b")]),
        ("too much at once", vec![file(b"a", ItemKind::File, None), Record::Data { at: 0, length: 1 << 30 }]),
        ("a long attribute", vec![file(b"a", ItemKind::File, None), attribute(1 << 20)]),
        ("a link to nothing", vec![file(b"a", ItemKind::Link, Some(Bytes(Vec::new())))]),
        ("a file with a target", vec![file(b"a", ItemKind::File, Some(Bytes(b"x".to_vec())))]),
        ("the end within a folder", vec![enter(b"a"), Record::All]),
    ];
    for (what, records) in cases {
        let mut bytes = Vec::new();
        for record in records {
            let record = serde_json::to_vec(&record).unwrap();
            bytes.extend(u32::try_from(record.len()).unwrap().to_be_bytes());
            bytes.extend(record);
        }
        let error = unpacked(&bytes).1.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}: {error}");
    }
    let huge = [&u32::MAX.to_be_bytes()[..], &[b'x'; 100]].concat();
    assert_eq!(unpacked(&huge).1.unwrap_err().kind(), io::ErrorKind::InvalidData);
}
