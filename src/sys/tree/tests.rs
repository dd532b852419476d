use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;

/// Copies everything, but for names that begin with "-".
struct All {
    copier: Copier,
    seen: Vec<PathBuf>,
    buffer: Vec<u8>,
}

impl Visit for All {
    type Selection = ();

    fn names(&self, (): &()) -> Option<Vec<OsString>> {
        None
    }

    fn select(&self, (): &(), name: &OsStr) -> Option<()> {
        (!name.as_encoded_bytes().starts_with(b"-")).then_some(())
    }

    fn enter(&mut self, folder: &Folder, (): &()) -> io::Result<()> {
        if let Some(name) = folder.path.file_name() {
            self.copier.enter(name)?;
            self.copier.need_folder()?;
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>, (): &()) -> io::Result<()> {
        self.seen.push(entry.path());
        read_entry(entry, &mut self.copier, &mut self.buffer)
    }

    fn leave(&mut self, folder: &Folder) -> io::Result<()> {
        if folder.path.as_os_str().is_empty() { Ok(()) } else { leave_folder(folder, &mut self.copier) }
    }

    fn problem(&mut self, path: &Path, error: io::Error) -> io::Result<()> {
        self.copier.problem(path, &error.to_string())
    }
}

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn copy(from: &Path, to: &Path) -> All {
    let mut all = All { copier: Copier::new(open(to)), seen: Vec::new(), buffer: Vec::new() };
    walk(&open(from), PathBuf::new(), &(), &mut all).unwrap();
    all
}

#[test]
fn copied_tree_has_the_same_files_links_holes_and_attributes() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = |name: &str| from.path().join(name);
    fs::create_dir_all(path("a/b")).unwrap();
    fs::create_dir(path("-left out")).unwrap();
    fs::write(path("a/b/file"), "content").unwrap();
    fs::hard_link(path("a/b/file"), path("a/again")).unwrap();
    symlink("/etc/passwd", path("a/link")).unwrap();
    let sparse = File::create(path("sparse")).unwrap();
    sparse.write_all_at(b"end", 50_000_000).unwrap();
    sparse.set_len(90_000_000).unwrap();
    fs::set_permissions(path("a/b/file"), PermissionsExt::from_mode(0o640)).unwrap();
    fs::set_permissions(path("a/b"), PermissionsExt::from_mode(0o500)).unwrap();
    let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(981_173_106, 5));
    File::open(path("a/b")).unwrap().set_times(times).unwrap();

    let all = copy(from.path(), to.path());
    assert_eq!(all.copier.copied.problems, Vec::<String>::new());
    assert_eq!(all.seen, ["a/again", "a/b/file", "a/link", "sparse"].map(PathBuf::from));
    let copy = |name: &str| to.path().join(name);
    for name in ["a", "a/b", "a/b/file", "a/again", "a/link", "sparse"] {
        let (was, is) = (fs::symlink_metadata(path(name)).unwrap(), fs::symlink_metadata(copy(name)).unwrap());
        let of =
            |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec(), m.is_file().then(|| m.size()));
        assert_eq!(of(&was), of(&is), "{name}");
    }
    assert_eq!(fs::read(copy("a/again")).unwrap(), b"content");
    assert_eq!(fs::metadata(copy("a/again")).unwrap().ino(), fs::metadata(copy("a/b/file")).unwrap().ino());
    assert_eq!(fs::read_link(copy("a/link")).unwrap(), Path::new("/etc/passwd"));
    assert!(fs::metadata(copy("sparse")).unwrap().blocks() < 10_000, "holes are not written");
    assert!(all.copier.copied.bytes < 5_000_000 && !copy("-left out").exists());
    fs::set_permissions(path("a/b"), PermissionsExt::from_mode(0o700)).unwrap();
    fs::set_permissions(copy("a/b"), PermissionsExt::from_mode(0o700)).unwrap();
}

#[test]
fn names_of_one_file_are_linked_only_within_one_source() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(from.path().join("a"), "content").unwrap();
    fs::hard_link(from.path().join("a"), from.path().join("b")).unwrap();
    let mut all = All { copier: Copier::new(open(to.path())), seen: Vec::new(), buffer: Vec::new() };
    walk(&open(from.path()), PathBuf::new(), &(), &mut all).unwrap();
    // Another file system with the same numbers.
    fs::rename(from.path().join("b"), from.path().join("c")).unwrap();
    fs::remove_file(from.path().join("a")).unwrap();
    fs::hard_link(from.path().join("c"), from.path().join("d")).unwrap();
    all.copier.next_source(false);
    walk(&open(from.path()), PathBuf::new(), &(), &mut all).unwrap();
    let inode = |name: &str| fs::metadata(to.path().join(name)).unwrap().ino();
    assert_eq!((inode("a"), inode("c")), (inode("b"), inode("d")));
    assert_ne!(inode("a"), inode("c"));
}

#[test]
fn what_exists_is_neither_changed_nor_followed() {
    let (from, to, other) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    for name in ["a", "b", "c"] {
        fs::create_dir(from.path().join(name)).unwrap();
        fs::write(from.path().join(name).join("file"), "new").unwrap();
    }
    fs::create_dir(to.path().join("a")).unwrap();
    fs::set_permissions(to.path().join("a"), PermissionsExt::from_mode(0o711)).unwrap();
    fs::write(to.path().join("a/file"), "older").unwrap();
    symlink(other.path(), to.path().join("b")).unwrap();
    let problems = copy(from.path(), to.path()).copier.copied.problems;
    assert_eq!(problems[0], r#"cannot restore "a/file": it exists, and is not overwritten"#);
    assert!(problems[1..].iter().all(|problem| problem.starts_with("cannot restore \"b\": ")), "{problems:?}");
    assert_eq!(fs::read(to.path().join("a/file")).unwrap(), b"older");
    assert_eq!(fs::metadata(to.path().join("a")).unwrap().mode() & 0o777, 0o711);
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
    assert_eq!(fs::read(to.path().join("c/file")).unwrap(), b"new");
}

#[test]
fn tree_that_is_too_deep_is_reported_and_the_rest_is_visited() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::create_dir_all(from.path().join("d/".repeat(420))).unwrap();
    fs::write(from.path().join("file"), "x").unwrap();
    let all = copy(from.path(), to.path());
    assert_eq!(all.copier.copied.problems.len(), 1, "{:?}", all.copier.copied.problems);
    assert!(all.copier.copied.problems[0].ends_with("too many folders are within each other"));
    assert_eq!(all.seen, [PathBuf::from("file")]);
}

#[test]
fn interrupted_copy_leaves_no_half_file_and_the_next_one_does_what_is_missing() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::create_dir(from.path().join("a")).unwrap();
    for name in ["first", "second"] {
        fs::write(from.path().join("a").join(name), name).unwrap();
    }
    fs::set_permissions(from.path().join("a"), PermissionsExt::from_mode(0o750)).unwrap();
    copy(from.path(), to.path());
    let second = to.path().join("a/second");
    fs::remove_file(&second).unwrap();
    // As a process leaves it that is killed while it writes the second file.
    fs::set_permissions(to.path().join("a"), PermissionsExt::from_mode(0o1700)).unwrap();
    let mut killed = Copier::new(open(to.path()));
    killed.enter(OsStr::new("a")).unwrap();
    let attributes = Attributes::default();
    let item = Item { kind: Kind::File, size: 6, attributes, linked: None };
    assert!(killed.begin(OsStr::new("second"), &item).unwrap());
    killed.data(0, b"sec").unwrap();
    drop(killed);
    assert!(!second.exists());
    let copied = copy(from.path(), to.path()).copier.copied;
    assert_eq!((copied.files, copied.present, copied.problems), (2, 1, Vec::new()));
    assert_eq!(fs::read(&second).unwrap(), b"second");
    assert_eq!(fs::metadata(to.path().join("a")).unwrap().mode() & 0o7777, 0o750);
}
