//! Tests how single files are found and restored, with datasets in memory and folders that stand for their snapshots.
//! `tests/lab/scenarios/files` does the same on real ZFS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use common::ds;
use common::fleet::{Fleet, ago};
use zsync::commands::find::{FindSettings, find, render};
use zsync::commands::restore::files::{FilesSettings, restore_files};
use zsync::fleet::files::{Brought, Open, Period, Versions};
use zsync::model::Place;
use zsync::sys::runtime;
use zsync::zfs::{ErrorKind, ZfsError, ZfsRead};

/// The folder that stands for a snapshot of a dataset of alpha.
fn folder(fleet: &Fleet, dataset: &str, snapshot: &str) -> PathBuf {
    fleet.path("snapshots").join(dataset.replace('/', "_")).join(snapshot)
}

/// Takes a snapshot of a dataset of alpha, with these files.
fn take(fleet: &Fleet, dataset: &str, minutes: i64, files: &[(&str, &str)]) -> String {
    let name = fleet.take(dataset, minutes);
    for (path, content) in files {
        let file = folder(fleet, dataset, &name).join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    name
}

/// Opens the folders of snapshots; a dataset whose folder is missing has no key.
fn open(fleet: &Fleet) -> Open {
    let root = fleet.path("snapshots");
    Arc::new(move |dataset, snapshot| {
        let folder = root.join(dataset.as_str().replace('/', "_")).join(snapshot.as_str());
        File::open(folder).map(Into::into).map_err(|_| ZfsError {
            kind: ErrorKind::KeyNotLoaded,
            command: String::new(),
            status: String::new(),
            stderr: "its key is not loaded".to_owned(),
        })
    })
}

fn place(text: &str) -> Place {
    let (host, dataset) = text.split_once(':').unwrap();
    Place { host: host.parse().unwrap(), dataset: ds(dataset) }
}

fn find_in(fleet: &Fleet, dataset: &str, pattern: &str) -> anyhow::Result<Versions> {
    let settings = FindSettings {
        config: Some(fleet.path("server.json")),
        local: None,
        host_name: "alpha".parse().unwrap(),
        dataset: place(dataset),
        from: None,
        pattern: pattern.parse().unwrap(),
        period: Period::default(),
    };
    runtime::block_on(find(&settings, &fleet.alpha, open(fleet)))
}

fn restore(fleet: &Fleet, patterns: &[&str], minutes: Option<i64>) -> Brought {
    let settings = FilesSettings {
        config: Some(fleet.path("server.json")),
        local: None,
        host_name: "alpha".parse().unwrap(),
        source: place("alpha:tank/one"),
        from: None,
        patterns: patterns.iter().map(|pattern| pattern.parse().unwrap()).collect(),
        at: minutes.map(ago),
        into: fleet.path("back"),
    };
    runtime::block_on(restore_files(&settings, &fleet.alpha, open(fleet))).unwrap()
}

/// A dataset with another one below it, each with two snapshots.
fn tree() -> Fleet {
    let fleet = Fleet::new();
    fleet.alpha.create(&ds("tank/one/docs"));
    for (minutes, text) in [(20, "first"), (10, "second")] {
        take(&fleet, "tank/one", minutes, &[("a/plan", text), ("note", "same")]);
        take(&fleet, "tank/one/docs", minutes, &[("b/plan", text)]);
    }
    // The catalog of an earlier pass.
    assert!(fleet.pass().is_success());
    fleet
}

#[test]
fn find_shows_each_version_with_the_snapshots_that_have_it() {
    let fleet = tree();
    let found = find_in(&fleet, "alpha:tank/one", "**/plan").unwrap();
    let paths: Vec<_> = found.versions.iter().map(|v| (v.path.to_str().unwrap(), v.size, v.snapshots)).collect();
    assert_eq!(paths, [("a/plan", 6, 1), ("a/plan", 5, 1), ("docs/b/plan", 6, 1), ("docs/b/plan", 5, 1)]);
    assert_eq!((found.searched, found.problems.len()), (4, 0), "{:?}", found.problems);
    let text = render(&found);
    assert!(text.contains("4 versions in 4 snapshots"), "{text}");
    // Datasets that cannot have such files are not opened.
    assert_eq!(find_in(&fleet, "alpha:tank/one", "note").unwrap().searched, 2);
    let none = find_in(&fleet, "alpha:tank/one", "nothing").unwrap();
    assert_eq!(render(&none), "no file matches in the 2 snapshots that were searched\n");
    let error = find_in(&fleet, "beta:pool/other", "note").unwrap_err().to_string();
    assert!(error.ends_with("(alpha); hint: run this command on beta, for beta:pool/other"), "{error}");
    let error = find_in(&fleet, "alpha:tank/other", "note").unwrap_err().to_string();
    assert!(error.contains("no copy of it is known on this host (alpha); hint: "), "{error}");
}

#[test]
fn dataset_without_its_key_is_reported_once_and_the_others_are_searched() {
    let fleet = tree();
    fs::remove_dir_all(fleet.path("snapshots").join("tank_one_docs")).unwrap();
    let found = find_in(&fleet, "alpha:tank/one", "**/plan").unwrap();
    assert_eq!(found.versions.len(), 2);
    assert_eq!(
        found.problems,
        [
            "cannot read the files of tank/one/docs: it is encrypted, and its key is not loaded; hint: load it with zfs load-key tank/one/docs"
        ]
    );
}

#[test]
fn files_come_from_the_newest_snapshot_that_was_taken_until_the_moment() {
    let fleet = tree();
    let Brought { from, problems } = restore(&fleet, &["a", "docs/*/plan"], Some(15));
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(from.iter().map(|(_, copied)| copied.files).collect::<Vec<_>>(), [2, 3]);
    let read = |name: &str| fs::read_to_string(fleet.path("back").join(name)).unwrap();
    assert_eq!((read("a/plan"), read("docs/b/plan")), ("first".to_owned(), "first".to_owned()));
    assert!(!fleet.path("back").join("note").exists());
    let Brought { from, problems } = restore(&fleet, &["**"], None);
    assert_eq!(read("a/plan"), "first", "nothing is overwritten");
    assert_eq!((read("note").as_str(), from.len(), problems.len()), ("same", 1, 2), "{problems:?}");
    let late = restore(&fleet, &["**"], Some(60)).problems;
    assert!(late[0].starts_with("there is no snapshot with files that was taken until "), "{late:?}");
    let none = restore(&fleet, &["c*"], None).problems;
    assert!(none[0].contains("no file matches c*; hint: zsync find"), "{none:?}");
    assert_eq!(runtime::block_on(fleet.alpha.snapshots(&ds("tank/one"))).unwrap().unwrap().0.len(), 2);
}
