//! Tests how single files are found and restored, with datasets in memory and folders that stand for their snapshots.
//! `tests/lab/scenarios/files` does the same on real ZFS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use common::fleet::{Fleet, ago};
use common::{ds, host, local};
use zsync::agent::Agent;
use zsync::commands::find::{FindSettings, find, render};
use zsync::commands::restore::files::{FilesSettings, restore_files};
use zsync::fleet::files::{Brought, Open, Period, Versions};
use zsync::model::{Counter, Place};
use zsync::sys::runtime;
use zsync::zfs::fake::Fake;
use zsync::zfs::{ErrorKind, Zfs, ZfsError, ZfsRead};

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
    runtime::block_on(find(&settings, &fleet.alpha, open(fleet), &Counter::default()))
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
    runtime::block_on(restore_files(&settings, &fleet.alpha, open(fleet), &Counter::default())).unwrap().brought
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
    let text = render(&found, &host("alpha"));
    assert!(text.contains("4 versions in 4 snapshots"), "{text}");
    // Datasets that cannot have such files are not opened.
    assert_eq!(find_in(&fleet, "alpha:tank/one", "note").unwrap().searched, 2);
    let none = find_in(&fleet, "alpha:tank/one", "nothing").unwrap();
    assert_eq!(render(&none, &host("alpha")), "no file matches in the 2 snapshots that were searched\n");
    let error = find_in(&fleet, "beta:pool/other", "note").unwrap_err().to_string();
    assert_eq!(error, "cannot read the files of beta:pool/other: beta: pool/other does not exist");
    let error = find_in(&fleet, "alpha:tank/other", "note").unwrap_err().to_string();
    assert!(
        error.contains("neither it nor any copy of it exists, as far as the policy and this host (alpha) know"),
        "{error}"
    );
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
    // What was restored before is neither an error nor restored again.
    let Brought { from, problems } = restore(&fleet, &["note"], None);
    assert_eq!((from[0].1.files, from[0].1.present, problems.len()), (0, 1, 0), "{problems:?}");
    let late = restore(&fleet, &["**"], Some(60)).problems;
    assert!(late[0].starts_with("there is no snapshot with files that was taken until "), "{late:?}");
    let none = restore(&fleet, &["c*"], None).problems;
    assert!(none[0].contains("no file matches c*; hint: zsync find"), "{none:?}");
    assert_eq!(runtime::block_on(fleet.alpha.snapshots(&ds("tank/one"))).unwrap().unwrap().0.len(), 2);
}

fn destroy(zfs: &Fake, dataset: &str) {
    let name = ds(dataset);
    let snapshots: Vec<_> = zfs.dataset(&name).unwrap().snapshots.into_iter().map(|s| s.name).collect();
    zfs.destroy_by_hand(&name, &snapshots);
    runtime::block_on(zfs.destroy_clone(&name)).unwrap();
}

/// A fleet whose source is lost, so that only beta has the files. beta permits what its configuration says.
fn lost(configuration: &str) -> Fleet {
    let mut fleet = tree();
    for dataset in ["tank/one/docs", "tank/one"] {
        destroy(&fleet.alpha, dataset);
    }
    let folder = |name: &str| fleet.path("snapshots").join(name);
    fs::rename(folder("tank_one"), folder("pool_one")).unwrap();
    let beta = Agent::new(host("beta"), Arc::new(fleet.beta.clone()), local(configuration)).opening(open(&fleet));
    fleet.addresses.0 = common::loopback::listen(beta, None);
    fleet.policy();
    fleet
}

const VAULT: &str = r#"{ "local_datasets": [ { "name": "pool", "slave": true } ] }"#;

#[test]
fn files_come_from_the_copy_on_another_host() {
    let fleet = lost(VAULT);
    let found = find_in(&fleet, "alpha:tank/one", "**/plan").unwrap();
    assert_eq!((found.versions.len(), found.searched, found.problems), (2, 2, Vec::<String>::new()));
    let newest = &found.versions[0].newest;
    assert_eq!((newest.host.as_str(), newest.dataset.as_str()), ("beta", "pool/one"));
    let Brought { from, problems } = restore(&fleet, &["a", "note"], None);
    assert_eq!(problems, Vec::<String>::new());
    assert!(from[0].0.starts_with("beta:pool/one@S_") && from[0].1.files == 3, "{from:?}");
    let read = |name: &str| fs::read_to_string(fleet.path("back").join(name)).unwrap();
    assert_eq!((read("a/plan"), read("note")), ("second".to_owned(), "same".to_owned()));
    // The same command does what is missing.
    fs::remove_file(fleet.path("back").join("note")).unwrap();
    let Brought { from, problems } = restore(&fleet, &["a", "note"], None);
    assert_eq!((from[0].1.files, from[0].1.present, problems), (1, 1, Vec::new()));
    let none = restore(&fleet, &["c*"], None).problems;
    assert!(none[0].contains("no file matches c*; hint: zsync find"), "{none:?}");
}

#[test]
fn copy_without_its_key_on_another_host_is_reported() {
    let fleet = lost(VAULT);
    fs::remove_dir_all(fleet.path("snapshots").join("pool_one")).unwrap();
    let problems = restore(&fleet, &["note"], None).problems;
    let (wanted, hint) =
        ("its key is not loaded; hint: load it with zfs load-key pool/one", "cannot read the files of beta:pool/one@");
    assert!(problems.iter().any(|problem| problem.contains(wanted) && problem.starts_with(hint)), "{problems:?}");
    let problems = find_in(&fleet, "alpha:tank/one", "note").unwrap().problems;
    assert_eq!(problems, [format!("beta: cannot read the files of pool/one: it is encrypted, and {wanted}")]);
}

#[test]
fn files_are_read_only_by_their_own_source_and_by_readers() {
    let fleet = lost(VAULT);
    let gamma = Fake::new(9);
    let read = |fleet: &Fleet| {
        let settings = FindSettings {
            config: Some(fleet.path("server.json")),
            local: None,
            host_name: host("gamma"),
            dataset: place("alpha:tank/one"),
            from: Some(place("beta:pool/one")),
            pattern: "note".parse().unwrap(),
            period: Period::default(),
        };
        runtime::block_on(find(&settings, &gamma, open(fleet), &Counter::default())).map_err(|error| error.to_string())
    };
    let error = read(&fleet).unwrap_err();
    assert!(
        error.contains("beta: pool/one must not be sent back to gamma: it is not a copy of a dataset of gamma"),
        "{error}"
    );
    assert!(error.contains("add \"gamma\" to \"readers\""), "{error}");
    let fleet = lost(r#"{ "local_datasets": [ { "name": "pool", "slave": true, "readers": ["gamma"] } ] }"#);
    assert_eq!(read(&fleet).unwrap().versions.len(), 2);
}

/// Without a policy, the cursors of a source tell where its copies are, and copies tell where they come from.
#[test]
fn places_are_found_without_a_policy() {
    let fleet = tree();
    let settings = |here: &str, local| FindSettings {
        config: None,
        local,
        host_name: host(here),
        dataset: place("alpha:tank/one"),
        from: None,
        pattern: "note".parse().unwrap(),
        period: Period::default(),
    };
    let local = local(VAULT);
    fs::rename(fleet.path("snapshots").join("tank_one"), fleet.path("snapshots").join("pool_one")).unwrap();
    let vault = settings("beta", Some((*local).clone()));
    let found = runtime::block_on(find(&vault, &fleet.beta, open(&fleet), &Counter::default())).unwrap();
    assert_eq!(found.versions[0].newest.dataset, ds("pool/one"));
    // beta cannot be reached under its name here, but it is known where to look.
    let found =
        runtime::block_on(find(&settings("alpha", None), &fleet.alpha, open(&fleet), &Counter::default())).unwrap();
    let of_beta = |problem: &&String| problem.starts_with("cannot read the files of beta:pool/one: ");
    assert_eq!(found.problems.iter().filter(of_beta).count(), 1, "{:?}", found.problems);
}
