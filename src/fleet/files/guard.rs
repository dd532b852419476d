//! Lets only those files of another host pass that were asked for.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use crate::agent::files::select::{selection, step};
use crate::model::path_pattern::{Matched, PathPattern};
use crate::sys::tree::{Attributes, Copier, Item, Sink};

/// Passes what matches the patterns on to a copier. Anything else is an error: the other host was not asked for it.
pub(super) struct Guard<'a> {
    copier: &'a mut Copier,
    patterns: &'a [PathPattern],
    /// The names of the folders that lead to the folder of the snapshot.
    above: Vec<OsString>,
    /// What each entered folder has matched, the uppermost first.
    matched: Vec<Vec<Matched>>,
}

impl<'a> Guard<'a> {
    /// A guard for the files of a dataset, which is called `below` below the one whose files are wanted.
    pub(super) fn new(copier: &'a mut Copier, patterns: &'a [PathPattern], below: &str) -> Self {
        let above = below.split('/').filter(|name| !name.is_empty()).map(OsString::from).collect();
        let matched = vec![selection(patterns, "").unwrap_or_default()];
        Self { copier, patterns, above, matched }
    }

    fn step(&self, name: &OsStr) -> io::Result<Vec<Matched>> {
        let of = self.matched.last().map(Vec::as_slice).unwrap_or_default();
        let depth = self.matched.len() - 1;
        let leads_there = self.above.get(depth).is_none_or(|wanted| wanted == name);
        step(self.patterns, of, name).filter(|_| leads_there).ok_or_else(|| unasked(name))
    }

    fn is_match(of: &[Matched]) -> bool {
        of.iter().any(Matched::is_match)
    }
}

fn unasked(name: &OsStr) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the other host sent {name:?}, which was not asked for"))
}

impl Sink for Guard<'_> {
    fn enter(&mut self, name: &OsStr) -> io::Result<()> {
        let matched = self.step(name)?;
        self.matched.push(matched);
        self.copier.enter(name)
    }

    fn need_folder(&mut self) -> io::Result<bool> {
        // The folders that contain something that matches are needed as well.
        self.copier.need_folder()
    }

    fn wants_attributes(&self) -> bool {
        self.copier.wants_attributes()
    }

    fn folder_attribute(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        self.copier.folder_attribute(name, value)
    }

    fn leave(&mut self, attributes: Option<&Attributes>) -> io::Result<()> {
        self.matched.pop();
        self.copier.leave(attributes)
    }

    fn begin(&mut self, name: &OsStr, item: &Item) -> io::Result<bool> {
        let matched = self.step(name)?;
        if !Self::is_match(&matched) || self.matched.len() <= self.above.len() {
            return Err(unasked(name));
        }
        self.copier.begin(name, item)
    }

    fn data(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.copier.data(at, bytes)
    }

    fn attribute(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        self.copier.attribute(name, value)
    }

    fn end(&mut self) -> io::Result<()> {
        self.copier.end()
    }

    fn fail(&mut self, why: &str) -> io::Result<()> {
        self.copier.fail(why)
    }

    fn problem(&mut self, path: &Path, why: &str) -> io::Result<()> {
        self.copier.problem(path, why)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::sys::tree::Kind;

    fn item(kind: Kind, mode: u32) -> Item {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let attributes = Attributes { mode, uid, gid, accessed: (1, 0), modified: (1, 0) };
        Item { kind, size: 4, attributes, linked: None }
    }

    /// What a copier for another host's files does in a folder.
    fn with(
        folder: &TempDir,
        below: &str,
        pattern: &str,
        work: impl FnOnce(&mut Guard<'_>) -> io::Result<()>,
    ) -> Copier {
        let mut copier = Copier::new(File::open(folder.path()).unwrap().into());
        copier.next_source(true);
        let patterns = [pattern.parse().unwrap()];
        let done = work(&mut Guard::new(&mut copier, &patterns, below));
        if let Err(error) = done {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            copier.copied.problems.push(error.to_string());
            copier.give_up(0);
        }
        copier
    }

    #[test]
    fn only_what_was_asked_for_is_written() {
        let folder = TempDir::new().unwrap();
        let file = |guard: &mut Guard<'_>, name: &str| {
            guard.begin(OsStr::new(name), &item(Kind::File, 0o644))?;
            guard.data(0, b"text")?;
            guard.end()
        };
        let other = with(&folder, "", "docs/*.txt", |guard| file(guard, "other"));
        assert_eq!(other.copied.problems, ["the other host sent \"other\", which was not asked for"]);
        let folders = with(&folder, "", "docs/*.txt", |guard| guard.enter(OsStr::new("etc")));
        assert_eq!(folders.copied.problems, ["the other host sent \"etc\", which was not asked for"]);
        // Not even in the place of another dataset's files.
        let elsewhere = with(&folder, "docs", "**", |guard| file(guard, "a.txt"));
        assert_eq!(elsewhere.copied.problems.len(), 1);
        let elsewhere = with(&folder, "docs", "**", |guard| guard.enter(OsStr::new("private")));
        assert_eq!(elsewhere.copied.problems.len(), 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let good = with(&folder, "", "docs/*.txt", |guard| {
            guard.enter(OsStr::new("docs"))?;
            file(guard, "a.txt")?;
            guard.leave(None)
        });
        assert_eq!((good.copied.files, good.copied.problems.len()), (2, 0));
        assert_eq!(fs::read(folder.path().join("docs/a.txt")).unwrap(), b"text");
    }

    #[test]
    fn links_are_not_followed_and_nothing_is_overwritten() {
        let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        fs::write(other.path().join("file"), "safe").unwrap();
        let target = other.path().as_os_str().to_owned();
        let mode = fs::metadata(other.path()).unwrap().mode();
        let copier = with(&folder, "", "**", |guard| {
            guard.begin(OsStr::new("link"), &item(Kind::Link(target), 0o777))?;
            guard.enter(OsStr::new("link"))?;
            guard.begin(OsStr::new("file"), &item(Kind::File, 0o644))?;
            guard.data(0, b"evil")?;
            guard.end()?;
            guard.leave(Some(&Attributes::default()))
        });
        assert_eq!(copier.copied.problems.len(), 1, "{:?}", copier.copied.problems);
        symlink(other.path().join("file"), folder.path().join("name")).unwrap();
        let copier = with(&folder, "", "**", |guard| {
            guard.begin(OsStr::new("name"), &item(Kind::File, 0o644))?;
            guard.data(0, b"evil")?;
            guard.end()
        });
        assert_eq!(copier.copied.problems, ["cannot restore \"name\": it exists, and is not overwritten"]);
        assert_eq!(fs::read(other.path().join("file")).unwrap(), b"safe");
        assert_eq!(fs::metadata(other.path()).unwrap().mode(), mode);
    }

    #[test]
    fn nothing_that_gives_privileges_comes_from_another_host() {
        let folder = TempDir::new().unwrap();
        let copier = with(&folder, "", "**", |guard| {
            guard.begin(OsStr::new("device"), &item(Kind::BlockDevice(0x800), 0o666))?;
            guard.begin(OsStr::new("tool"), &item(Kind::File, 0o6755))?;
            guard.data(0, b"tool")?;
            guard.attribute(b"security.capability", b"all of them")?;
            guard.end()
        });
        assert!(copier.copied.problems[0].contains("it is a device node"), "{:?}", copier.copied.problems);
        assert_eq!((copier.copied.problems.len(), copier.copied.notes.len()), (1, 2));
        assert_eq!(fs::metadata(folder.path().join("tool")).unwrap().mode() & 0o7777, 0o755);
        assert!(!folder.path().join("device").exists());
    }

    #[test]
    fn data_that_is_longer_than_its_file_is_refused_and_the_file_is_not_kept() {
        let folder = TempDir::new().unwrap();
        let copier = with(&folder, "", "**", |guard| {
            guard.begin(OsStr::new("file"), &item(Kind::File, 0o644))?;
            guard.data(2, b"long")?;
            guard.end()
        });
        assert_eq!(copier.copied.problems, ["cannot restore \"file\": its data is longer than its size says"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
