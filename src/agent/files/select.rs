//! Reads the files of a snapshot that match patterns.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::agent::files::start;
use crate::model::path_pattern::{Matched, PathPattern};
use crate::sys::tree::{Entry, Folder, Sink, Visit, leave_folder, read_entry, walk};

/// What the folder of a dataset has matched of each pattern, if anything in it can match. `below` is the dataset's name
/// below the one whose files are wanted.
#[must_use]
pub fn selection(patterns: &[PathPattern], below: &str) -> Option<Vec<Matched>> {
    let of: Vec<Matched> = patterns.iter().map(|pattern| start(pattern, below)).collect();
    (!of.iter().all(Matched::is_over)).then_some(of)
}

/// What a name in a folder has matched of each pattern, if it or anything below it can match.
#[must_use]
pub fn step(patterns: &[PathPattern], of: &[Matched], name: &OsStr) -> Option<Vec<Matched>> {
    let steps = patterns.iter().zip(of).map(|(pattern, matched)| pattern.step(matched, name));
    Some(steps.collect()).filter(|matched: &Vec<Matched>| !matched.iter().all(Matched::is_over))
}

/// Reads the files that match from the uppermost folder of a snapshot.
pub fn read(root: &OwnedFd, below: &str, patterns: &[PathPattern], sink: &mut dyn Sink) -> io::Result<()> {
    let Some(of) = selection(patterns, below) else { return Ok(()) };
    let names: Vec<&str> = below.split('/').filter(|name| !name.is_empty()).collect();
    let above = names.len().saturating_sub(1);
    for name in &names[..above] {
        sink.enter(OsStr::new(name))?;
    }
    let path = PathBuf::from(below);
    let mut visitor = Visitor { sink, patterns, root: path.clone(), buffer: Vec::new() };
    walk(root, path, &of, &mut visitor)?;
    for _ in 0..above {
        sink.leave(None)?;
    }
    Ok(())
}

struct Visitor<'a> {
    sink: &'a mut dyn Sink,
    patterns: &'a [PathPattern],
    /// The path of the snapshot's own folder.
    root: PathBuf,
    buffer: Vec<u8>,
}

impl Visitor<'_> {
    /// Whether a folder is the one whose content is wanted.
    fn is_uppermost(&self, folder: &Folder) -> bool {
        folder.path == self.root && self.root.as_os_str().is_empty()
    }
}

impl Visit for Visitor<'_> {
    type Selection = Vec<Matched>;

    fn names(&self, of: &Vec<Matched>) -> Option<Vec<OsString>> {
        let named = self.patterns.iter().zip(of).map(|(pattern, matched)| pattern.names(matched));
        let named: Vec<Vec<&str>> = named.collect::<Option<_>>()?;
        let mut names: Vec<OsString> = named.into_iter().flatten().map(OsString::from).collect();
        names.sort();
        names.dedup();
        Some(names)
    }

    fn select(&self, of: &Vec<Matched>, name: &OsStr) -> Option<Vec<Matched>> {
        step(self.patterns, of, name)
    }

    fn enter(&mut self, folder: &Folder, of: &Vec<Matched>) -> io::Result<()> {
        if self.is_uppermost(folder) {
            return Ok(());
        }
        self.sink.enter(folder.path.file_name().unwrap_or_default())?;
        if of.iter().any(Matched::is_match) {
            self.sink.need_folder()?;
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>, of: &Vec<Matched>) -> io::Result<()> {
        if of.iter().any(Matched::is_match) { read_entry(entry, self.sink, &mut self.buffer) } else { Ok(()) }
    }

    fn leave(&mut self, folder: &Folder) -> io::Result<()> {
        if self.is_uppermost(folder) { Ok(()) } else { leave_folder(folder, self.sink) }
    }

    fn problem(&mut self, path: &Path, error: io::Error) -> io::Result<()> {
        self.sink.problem(path, &error.to_string())
    }
}
