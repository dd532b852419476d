//! Tests restores on pools in memory, over loopback: what comes back, what is refused, and what the next pass does.
//! `tests/lab/scenarios/restore` does the same on real ZFS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::Utc;
use common::fleet::{Fleet, ago};
use common::{ds, guids, local};
use zsync::actions::{Lost, Wanted};
use zsync::agent::Agent;
use zsync::commands::restore::{RestoreSettings, keys, prepare};
use zsync::model::{Place, ResponseStatus};
use zsync::sys::runtime;
use zsync::zfs::fake::{Fake, Fault};
use zsync::zfs::{Depth, ErrorKind, Zfs, ZfsRead};

fn place(text: &str) -> Place {
    let (host, dataset) = text.split_once(':').unwrap();
    Place { host: host.parse().unwrap(), dataset: ds(dataset) }
}

/// A restore of alpha:tank/one.
fn wanted(to: &str) -> Wanted {
    Wanted { source: place("alpha:tank/one"), to: place(to), from: None, at: None, set_aside: None }
}

/// What a restore printed, and what went wrong.
fn restore(fleet: &Fleet, wanted: Wanted) -> (String, Vec<String>) {
    restore_with(fleet, wanted, true)
}

fn restore_with(fleet: &Fleet, wanted: Wanted, with_properties: bool) -> (String, Vec<String>) {
    restore_lost(fleet, Lost::Tree(wanted), with_properties)
}

/// The settings of `zsync restore` on this host, which also restores properties.
fn settings(fleet: &Fleet, host: &str, lost: Lost) -> RestoreSettings {
    RestoreSettings {
        config: fleet.path("server.json"),
        local_file: fleet.path("local.json"),
        state: fleet.path("state"),
        host_name: host.parse().unwrap(),
        lost,
        with_properties: true,
    }
}

fn restore_lost(fleet: &Fleet, lost: Lost, with_properties: bool) -> (String, Vec<String>) {
    let settings = RestoreSettings { with_properties, ..settings(fleet, "alpha", lost) };
    runtime::block_on(async {
        let prepared = prepare(&settings, Arc::new(fleet.alpha.clone())).await.unwrap();
        let lines = RefCell::new(prepared.text());
        let mut problems = prepared.problems().to_vec();
        problems.extend(prepared.restore(|line| lines.borrow_mut().push_str(&format!("{line}\n"))).await);
        (lines.into_inner(), problems)
    })
}

fn destroy(zfs: &Fake, dataset: &str) {
    let name = ds(dataset);
    let snapshots: Vec<_> = zfs.dataset(&name).unwrap().snapshots.into_iter().map(|s| s.name).collect();
    zfs.destroy_by_hand(&name, &snapshots);
    runtime::block_on(zfs.destroy_clone(&name)).unwrap();
}

/// A fleet in which both datasets have two snapshots and are copied, and the first one is lost.
fn lost() -> (Fleet, Vec<zsync::model::Guid>) {
    let fleet = Fleet::new();
    for dataset in ["tank/one", "tank/two"] {
        fleet.take(dataset, 20);
        fleet.take(dataset, 10);
    }
    assert!(fleet.pass().is_success());
    let before = guids(&fleet.alpha, "tank/one");
    destroy(&fleet.alpha, "tank/one");
    (fleet, before)
}

#[test]
fn lost_dataset_comes_back_as_it_was_and_the_next_pass_sends_an_increment() {
    let (fleet, before) = lost();
    let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    assert!(text.contains("restored alpha:tank/one from beta:pool/one@S_"), "{text}");
    assert_eq!(guids(&fleet.alpha, "tank/one"), before);
    let left = runtime::block_on(fleet.alpha.properties(&ds("tank/one"))).unwrap();
    assert!(left.is_empty(), "nothing of the restore is left: {left:?}");
    let found = fleet.alpha.dataset(&ds("tank/one")).unwrap();
    assert!(!found.excluded && found.flags.is_none() && found.snapshots.iter().all(|s| s.userrefs == 0), "{found:?}");
    let copy = fleet.beta.dataset(&ds("pool/one")).unwrap();
    assert!(copy.bookmarks.is_empty(), "the copy has no cursor for its own source: {:?}", copy.bookmarks);
    let newest = &copy.snapshots.last().unwrap().name;
    assert_eq!(fleet.beta.tags(&ds("pool/one"), newest), ["zsync:from:alpha"]);
    assert!(fleet.alpha.calls().contains(&"mount tank/one".to_owned()));

    fleet.take("tank/one", 1);
    let report = fleet.pass();
    assert!(report.is_success(), "{:?}", report.outcomes);
    let sent = report.outcomes.iter().filter(|o| o.dataset.as_ref() == Some(&ds("tank/one")) && o.to.is_some());
    assert_eq!(sent.map(|o| o.status).collect::<Vec<_>>(), [Some(ResponseStatus::Incremental)]);
    assert_eq!(guids(&fleet.beta, "pool/one"), guids(&fleet.alpha, "tank/one"));
}

#[test]
fn existing_dataset_is_never_overwritten() {
    let (fleet, _) = lost();
    fleet.alpha.create(&ds("tank/one"));
    let before = fleet.alpha.dataset(&ds("tank/one"));
    let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert_eq!((text.as_str(), problems.len()), ("", 1), "{problems:?}");
    assert!(problems[0].contains("exists, and is never overwritten; hint: "), "{problems:?}");
    assert_eq!(fleet.alpha.dataset(&ds("tank/one")), before);
    // Beside it, there is room.
    let (_, problems) = restore(&fleet, wanted("alpha:tank/one_restored"));
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(guids(&fleet.alpha, "tank/one_restored"), guids(&fleet.beta, "pool/one"));
    // A second restore of the same has nothing to do.
    let (text, problems) = restore(&fleet, wanted("alpha:tank/one_restored"));
    assert!(text.contains("alpha:tank/one_restored exists, and has the snapshot"), "{text}");
    assert!(text.contains("nothing is missing") && problems.is_empty(), "{text} {problems:?}");
}

/// The names of alpha's datasets that were set aside.
fn set_aside(fleet: &Fleet) -> Vec<zsync::model::DatasetName> {
    let listed = runtime::block_on(fleet.alpha.list(&[ds("tank")], Depth::Recursive)).unwrap();
    listed.into_iter().map(|(name, _)| name).filter(|name| name.as_str().contains("_set_aside_")).collect()
}

fn setting_aside() -> Wanted {
    Wanted { set_aside: Some(Utc::now()), ..wanted("alpha:tank/one") }
}

#[test]
fn dataset_in_the_way_is_renamed_and_nothing_is_destroyed() {
    let (fleet, before) = lost();
    for name in ["tank/one", "tank/one/own"] {
        fleet.alpha.create(&ds(name));
    }
    fleet.snapshot(&fleet.alpha, "tank/one", "mine", 5);
    let was = fleet.alpha.dataset(&ds("tank/one")).unwrap();
    let (text, problems) = restore(&fleet, setting_aside());
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    let [aside, below] = &set_aside(&fleet)[..] else { panic!("{:?}", set_aside(&fleet)) };
    assert!(text.contains(&format!("alpha:tank/one: what is there is renamed to {aside}\n")), "{text}");
    assert!(text.contains("alpha:tank/one: renamed with it, and not restored: tank/one/own\n"), "{text}");
    assert!(text.contains(&format!("what was there is now {aside})")), "{text}");
    let kept = fleet.alpha.dataset(aside).unwrap();
    assert_eq!((kept.guid, &kept.snapshots, kept.excluded), (was.guid, &was.snapshots, true));
    for name in [aside, below] {
        let properties = runtime::block_on(fleet.alpha.properties(name)).unwrap();
        assert_eq!(properties.get("canmount").map(String::as_str), Some("noauto"), "{name}: {properties:?}");
    }
    assert_eq!(guids(&fleet.alpha, "tank/one"), before);
    fleet.take("tank/one", 1);
    let report = fleet.pass();
    assert!(report.is_success(), "{:?}", report.outcomes);
    assert_eq!(guids(&fleet.alpha, "tank/one"), guids(&fleet.beta, "pool/one"));
    assert_eq!(fleet.alpha.dataset(aside).unwrap().snapshots, was.snapshots, "no policy covers it");
}

#[test]
fn nothing_is_renamed_before_the_copy_is_on_its_way() {
    let (fleet, before) = lost();
    fleet.alpha.create(&ds("tank/one"));
    let was = fleet.alpha.dataset(&ds("tank/one")).unwrap().guid;
    // local.json has an entry for a dataset below, which the new name would leave without.
    fleet.alpha.create(&ds("tank/one/own"));
    let own = r#"{ "local_datasets": [ { "name": "tank", "restore": true }, { "name": "tank/one/own" } ] }"#;
    let usual = std::fs::read_to_string(fleet.path("local.json")).unwrap();
    std::fs::write(fleet.path("local.json"), own).unwrap();
    let (_, problems) = restore(&fleet, setting_aside());
    assert!(
        problems.iter().any(|problem| problem.contains("tank/one/own, which has an entry of its own")),
        "{problems:?}"
    );
    std::fs::write(fleet.path("local.json"), usual).unwrap();
    // The host of the copy refuses.
    let policy = std::fs::read_to_string(fleet.path("server.json")).unwrap();
    std::fs::write(fleet.path("server.json"), policy.replace(&fleet.addresses.0, "127.0.0.1:1")).unwrap();
    let (_, problems) = restore(&fleet, setting_aside());
    assert!(!problems.is_empty());
    std::fs::write(fleet.path("server.json"), policy).unwrap();
    // A program uses it.
    fleet.alpha.fail_next("rename", ErrorKind::Busy, "cannot unmount '/tank/one': pool or dataset is busy");
    let (_, problems) = restore(&fleet, setting_aside());
    assert!(problems.iter().any(|problem| problem.contains("stop the programs that use tank/one")), "{problems:?}");
    assert_eq!((fleet.alpha.dataset(&ds("tank/one")).unwrap().guid, set_aside(&fleet)), (was, Vec::new()));

    // The stream is cut off: what was there has its new name, and the same command continues.
    fleet.alpha.disturb_next("receive", Fault::Killed(700));
    let (_, problems) = restore(&fleet, setting_aside());
    let aside = set_aside(&fleet);
    assert_eq!(fleet.alpha.dataset(&aside[0]).unwrap().guid, was);
    let hint = format!("what was there is now {}; to continue, give the command without --set-aside", aside[0]);
    assert!(problems[0].contains(&hint), "{problems:?}");
    let (text, problems) = restore(&fleet, setting_aside());
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    assert_eq!((guids(&fleet.alpha, "tank/one"), set_aside(&fleet)), (before, aside));
}

#[test]
fn older_snapshot_is_chosen_by_time() {
    let (fleet, before) = lost();
    let at = |minutes| Wanted { at: Some(ago(minutes)), ..wanted("alpha:tank/friday") };
    let (text, problems) = restore(&fleet, at(15));
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    assert_eq!(guids(&fleet.alpha, "tank/friday"), before[..1]);
    let (_, problems) = restore(&fleet, Wanted { to: place("alpha:tank/sunday"), ..at(30) });
    assert!(problems[0].contains("no copy has a snapshot that is old enough; the oldest is of "), "{problems:?}");
    // In place of the source, an older state makes the copies diverge, which is said before.
    let (text, problems) = restore(&fleet, Wanted { to: place("alpha:tank/one"), ..at(15) });
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    assert!(text.contains("beta:pool/one has 1 newer snapshot that the restored dataset will lack"), "{text}");
}

#[test]
fn interrupted_restore_continues_and_no_pass_touches_what_it_has_left() {
    let (fleet, before) = lost();
    fleet.alpha.disturb_next("receive", Fault::Killed(700));
    let (_, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert_eq!(problems.len(), 1, "{problems:?}");
    let found = fleet.alpha.dataset(&ds("tank/one")).unwrap();
    assert!(found.resume_token.is_some() && found.excluded, "{found:?}");
    // Passes leave it alone.
    let report = fleet.pass();
    let touched = report.outcomes.iter().filter(|o| o.dataset.as_ref() == Some(&ds("tank/one")));
    assert_eq!(touched.count(), 0, "{:?}", report.outcomes);
    let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    assert_eq!(guids(&fleet.alpha, "tank/one"), before);
    assert!(!fleet.alpha.dataset(&ds("tank/one")).unwrap().excluded);
}

#[test]
fn copy_is_sent_only_to_its_own_source_and_to_readers() {
    let (fleet, _) = lost();
    let gamma = Fake::new(9);
    gamma.create(&ds("tank"));
    let run = |zfs: &Fake| {
        let settings = settings(&fleet, "gamma", Lost::Tree(wanted("gamma:tank/one")));
        runtime::block_on(async { prepare(&settings, Arc::new(zfs.clone())).await.unwrap().problems().to_vec() })
    };
    let problems = run(&gamma);
    let denied = "must not be sent back to gamma: it is not a copy of a dataset of gamma, and \"readers\"";
    assert!(problems.iter().any(|problem| problem.contains(denied)), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.contains("add \"gamma\" to \"readers\"")), "{problems:?}");

    let permitted = local(r#"{ "local_datasets": [ { "name": "pool", "slave": true, "readers": ["gamma"] } ] }"#);
    let agent = Agent::new("beta".parse().unwrap(), Arc::new(fleet.beta.clone()), permitted);
    let address = common::loopback::listen(agent, None);
    let text = std::fs::read_to_string(fleet.path("server.json")).unwrap();
    std::fs::write(fleet.path("server.json"), text.replace(&fleet.addresses.0, &address)).unwrap();
    let problems = run(&gamma);
    assert!(!problems.iter().any(|problem| problem.contains("readers")), "{problems:?}");
}

/// A copy that was set aside has lost the hold that names its source.
#[test]
fn copy_that_was_set_aside_is_sent_back_to_its_own_source_only() {
    let (fleet, before) = lost();
    let newest = fleet.beta.dataset(&ds("pool/one")).unwrap().snapshots.last().unwrap().name.clone();
    runtime::block_on(async {
        fleet.beta.release("zsync:from:alpha", &ds("pool/one"), &[newest]).await.unwrap();
        fleet.beta.rename(&ds("pool/one"), &ds("pool/one_aside")).await.unwrap();
        fleet.beta.set(&ds("pool/one_aside"), "zsync:exclude", "on").await.unwrap();
    });
    let aside = |to: &str| Wanted { from: Some(place("beta:pool/one_aside")), ..wanted(to) };
    let gamma = Fake::new(9);
    gamma.create(&ds("tank"));
    let other = settings(&fleet, "gamma", Lost::Tree(aside("gamma:tank/one")));
    let problems = runtime::block_on(async { prepare(&other, Arc::new(gamma)).await.unwrap().problems().to_vec() });
    assert!(problems.iter().any(|problem| problem.contains("must not be sent back to gamma")), "{problems:?}");
    let (text, problems) = restore(&fleet, aside("alpha:tank/one"));
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    assert_eq!(guids(&fleet.alpha, "tank/one"), before);
}

/// What is restored is mounted, so a host has to permit it.
#[test]
fn host_restores_nothing_that_its_configuration_does_not_permit() {
    let (fleet, _) = lost();
    std::fs::write(fleet.path("local.json"), r#"{ "local_datasets": [ { "name": "tank" } ] }"#).unwrap();
    let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert!(problems.iter().any(|problem| problem.contains("does not set \"restore\": true")), "{text} {problems:?}");
    assert!(fleet.alpha.dataset(&ds("tank/one")).is_none());
}

/// The properties that were set on a dataset.
fn properties(zfs: &Fake, dataset: &str) -> BTreeMap<String, String> {
    runtime::block_on(zfs.properties(&ds(dataset))).unwrap()
}

fn map(properties: &[(&str, &str)]) -> BTreeMap<String, String> {
    properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const SET: &[(&str, &str)] =
    &[("com.example:note", "a\tb ü"), ("compression", "zstd"), ("mountpoint", "/nowhere/one"), ("quota", "1073741824")];

/// A fleet that has lost a dataset on which these properties were set.
fn lost_with(set: &[(&str, &str)]) -> Fleet {
    let fleet = Fleet::new();
    for (name, value) in set {
        runtime::block_on(fleet.alpha.set(&ds("tank/one"), name, value)).unwrap();
    }
    fleet.take("tank/one", 20);
    fleet.take("tank/two", 20);
    assert!(fleet.pass().is_success());
    destroy(&fleet.alpha, "tank/one");
    fleet
}

#[test]
fn properties_are_recorded_on_the_copy_and_set_by_a_restore() {
    let fleet = lost_with(SET);
    let copy = properties(&fleet.beta, "pool/one");
    let ours = |name: &str| name.starts_with("zsync:") || matches!(name, "canmount" | "readonly");
    assert!(copy.keys().all(|name| ours(name)), "none is in force on the copy: {copy:?}");
    let record = &copy["zsync:properties"];
    assert!(record.contains(r#""source":{"host":"alpha","dataset":"tank/one"}"#), "{record}");
    let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    assert_eq!(properties(&fleet.alpha, "tank/one"), map(SET));
    assert!(text.lines().nth(1).unwrap().ends_with('4'), "the plan counts them: {text}");
    assert!(text.contains("alpha:tank/one: sets: mountpoint=/nowhere/one, quota=1073741824\n"), "{text}");
}

#[test]
fn properties_are_recorded_with_each_stream() {
    let fleet = lost_with(SET);
    assert_eq!(restore(&fleet, wanted("alpha:tank/one")).1, Vec::<String>::new());
    runtime::block_on(fleet.alpha.set(&ds("tank/one"), "compression", "off")).unwrap();
    fleet.take("tank/one", 1);
    assert!(fleet.pass().is_success());
    let record = &properties(&fleet.beta, "pool/one")["zsync:properties"];
    assert!(record.contains(r#""compression":"off""#), "{record}");
}

#[test]
fn nothing_is_mounted_in_the_place_of_another_dataset() {
    let fleet = lost_with(SET);
    let (text, problems) = restore(&fleet, wanted("alpha:tank/friday"));
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    assert!(text.contains("not set, because it is restored in another place: mountpoint=/nowhere/one\n"), "{text}");
    assert!(!properties(&fleet.alpha, "tank/friday").contains_key("mountpoint"));
    let (text, _) = restore_with(&fleet, wanted("alpha:tank/sunday"), false);
    assert_eq!(properties(&fleet.alpha, "tank/sunday"), BTreeMap::new(), "{text}");
}

#[test]
fn folder_with_files_is_not_hidden_and_canmount_decides() {
    let full = tempfile::TempDir::new().unwrap();
    std::fs::write(full.path().join("file"), "").unwrap();
    let path = full.path().to_str().unwrap();
    let fleet = lost_with(&[("mountpoint", path)]);
    let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert_eq!(problems, Vec::<String>::new());
    assert!(text.contains(&format!("(mountpoint was not set: {path} is not an empty folder; ")), "{text}");
    assert_eq!(properties(&fleet.alpha, "tank/one"), BTreeMap::new());
    // What is not mounted hides nothing.
    let set = [("canmount", "noauto"), ("mountpoint", path)];
    let fleet = lost_with(&set);
    let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert_eq!(problems, Vec::<String>::new());
    assert!(text.contains("it is not mounted, as canmount is noauto (zfs mount tank/one)"), "{text}");
    assert_eq!(properties(&fleet.alpha, "tank/one"), map(&set));
    assert!(!fleet.alpha.calls().contains(&"mount tank/one".to_owned()));
}

#[test]
fn property_that_zfs_refuses_is_named_and_stops_nothing() {
    let fleet = lost_with(SET);
    let words = "cannot set property for 'tank/one': invalid property 'compression'";
    fleet.alpha.fail_next("set compression", ErrorKind::Property, words);
    let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert_eq!(problems, Vec::<String>::new());
    assert!(text.contains("compression was not set: \"zfs set compression\" failed"), "{text}");
    assert_eq!(properties(&fleet.alpha, "tank/one").len(), SET.len() - 1);
    // A pool in trouble is something else: the restore is continued later.
    let fleet = lost_with(SET);
    fleet.alpha.fail_next("set compression", ErrorKind::Pool, "pool I/O is currently suspended");
    let (_, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(fleet.alpha.dataset(&ds("tank/one")).unwrap().excluded);
    assert_eq!(restore(&fleet, wanted("alpha:tank/one")).1, Vec::<String>::new());
    assert_eq!(properties(&fleet.alpha, "tank/one"), map(SET));
}

#[test]
fn restore_that_is_cut_off_at_its_very_end_is_complete() {
    for (call, is_complete) in [("inherit zsync:exclude", false), ("inherit zsync:restoring", true)] {
        let fleet = lost_with(SET);
        fleet.alpha.fail_next(call, ErrorKind::Killed, "");
        let (_, problems) = restore(&fleet, wanted("alpha:tank/one"));
        assert_eq!(problems.len(), 1, "{problems:?}");
        let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
        assert_eq!(problems, Vec::<String>::new(), "{text}");
        assert_eq!(text.contains("nothing is missing of alpha:tank/one"), is_complete, "{text}");
        let mut set = properties(&fleet.alpha, "tank/one");
        set.remove("zsync:restoring");
        assert_eq!(set, map(SET));
        // From now on, it is protected as any other dataset is.
        fleet.alpha.write(&ds("tank/one"), 1000);
        let (text, problems) = restore(&fleet, setting_aside());
        assert_eq!(problems, Vec::<String>::new(), "{text}");
        assert_eq!(set_aside(&fleet).len(), 1, "{text}");
    }
}

#[test]
fn copy_whose_host_lies_sets_nothing_unseen() {
    let fleet = lost_with(SET);
    let lie = r#"{"properties":{"zsync:restoring":"tank","keylocation":"file:///etc/shadow","mountpoint":"/root\u001b",
        "-o":"x","a:b=c":"d","newprop":"on"},"left_out":["-x","a:b"],"more":1}"#;
    runtime::block_on(fleet.beta.set(&ds("pool/one"), "zsync:properties", lie)).unwrap();
    let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    assert_eq!(properties(&fleet.alpha, "tank/one"), map(&[("mountpoint", "/root\u{1b}")]));
    assert!(text.contains(r#"alpha:tank/one: sets: mountpoint="/root\u{1b}""#), "{text}");
    assert!(text.contains("zsync does not know it: keylocation=file:///etc/shadow, newprop=on\n"), "{text}");
    // What is no record at all is none.
    for value in ["on", "{", ""] {
        destroy(&fleet.alpha, "tank/one");
        runtime::block_on(fleet.beta.set(&ds("pool/one"), "zsync:properties", value)).unwrap();
        let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
        assert_eq!(problems, Vec::<String>::new());
        assert!(text.contains("alpha:tank/one: its properties were not recorded: set them again\n"), "{text}");
        assert_eq!(properties(&fleet.alpha, "tank/one"), BTreeMap::new());
    }
}

/// A fleet that has lost two encrypted datasets, one of which used the key of the other, and has restored them.
fn restored_with_keys() -> Fleet {
    let fleet = Fleet::new();
    let policy = std::fs::read_to_string(fleet.path("server.json")).unwrap();
    let recursive = policy.replace(r#""dataset": "tank/one","#, r#""dataset": "tank/one", "recursive": true,"#);
    std::fs::write(fleet.path("server.json"), recursive).unwrap();
    let (one, below) = (ds("tank/one"), ds("tank/one/below"));
    fleet.alpha.create(&below);
    fleet.alpha.encrypt(&one);
    fleet.alpha.encrypt(&below);
    fleet.alpha.use_key_of(&below, &one);
    for dataset in ["tank/one", "tank/one/below", "tank/two"] {
        fleet.take(dataset, 20);
    }
    assert!(fleet.pass().is_success());
    destroy(&fleet.alpha, "tank/one/below");
    destroy(&fleet.alpha, "tank/one");
    let (text, problems) = restore(&fleet, wanted("alpha:tank/one"));
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    let hint = "hint: load the keys (zfs load-key -r tank/one), then join them (zsync restore --join-keys \
                alpha:tank/one)\n";
    assert!(text.ends_with(hint), "{text}");
    assert_eq!(properties(&fleet.alpha, "tank/one"), BTreeMap::new());
    assert_eq!(properties(&fleet.alpha, "tank/one/below"), map(&[("zsync:key_from", "tank/one")]));
    assert_eq!(fleet.alpha.dataset(&below).unwrap().key_from, None);
    fleet
}

/// Joins the keys within alpha:tank/one. Returns what was printed, and what went wrong.
fn join(fleet: &Fleet, is_dry_run: bool) -> (Vec<String>, Vec<String>) {
    let settings = settings(fleet, "alpha", Lost::Tree(wanted("alpha:tank/one")));
    let (tree, lines) = (place("alpha:tank/one"), RefCell::new(Vec::new()));
    let tell = |line| lines.borrow_mut().push(line);
    let joining = keys::join(&settings, &tree, Arc::new(fleet.alpha.clone()), is_dry_run, |_| Ok(()), tell);
    let problems = runtime::block_on(joining).unwrap();
    (lines.into_inner(), problems)
}

#[test]
fn one_key_opens_a_restored_tree_again() {
    let fleet = restored_with_keys();
    let below = ds("tank/one/below");
    fleet.alpha.set_loaded(&below, false);
    let (lines, problems) = join(&fleet, false);
    let locked = "cannot give alpha:tank/one/below the key of tank/one: its own key is not loaded; hint: zfs load-key \
                  tank/one/below";
    assert_eq!((lines, problems), (Vec::new(), vec![locked.to_owned()]));
    fleet.alpha.set_loaded(&below, true);
    let planned = "alpha:tank/one/below gets the key of tank/one".to_owned();
    assert_eq!(join(&fleet, true), (vec![planned.clone()], Vec::new()));
    assert_eq!(fleet.alpha.dataset(&below).unwrap().key_from, None);
    let done = "alpha:tank/one/below uses the key of tank/one".to_owned();
    assert_eq!(join(&fleet, false), (vec![planned, done], Vec::new()));
    assert_eq!(fleet.alpha.dataset(&below).unwrap().key_from, Some(ds("tank/one")));
    assert_eq!(properties(&fleet.alpha, "tank/one/below"), BTreeMap::new());
    let (lines, problems) = join(&fleet, false);
    assert!(lines[0].starts_with("nothing to do: ") && problems.is_empty(), "{lines:?} {problems:?}");
    // The copies keep the keys that they have, and take the next increments.
    fleet.take("tank/one", 1);
    fleet.take("tank/one/below", 1);
    let report = fleet.pass();
    assert!(report.is_success(), "{:?}", report.outcomes);
    for (source, copy) in [("tank/one", "pool/one"), ("tank/one/below", "pool/one/below")] {
        assert_eq!(guids(&fleet.alpha, source), guids(&fleet.beta, copy));
        assert_eq!(fleet.beta.dataset(&ds(copy)).unwrap().key_from, None);
    }
}

#[test]
fn keys_are_joined_only_where_a_restore_is_permitted_and_never_on_copies() {
    let fleet = restored_with_keys();
    std::fs::write(fleet.path("local.json"), r#"{ "local_datasets": [ { "name": "tank" } ] }"#).unwrap();
    let settings = settings(&fleet, "alpha", Lost::Tree(wanted("alpha:tank/one")));
    let tree = place("alpha:tank/one");
    let joining = keys::join(&settings, &tree, Arc::new(fleet.alpha.clone()), false, |_| Ok(()), |_| ());
    let refused = runtime::block_on(joining).unwrap_err().to_string();
    assert!(refused.contains("does not set \"restore\": true"), "{refused}");
    std::fs::write(fleet.path("local.json"), r#"{ "local_datasets": [ { "name": "tank", "restore": true } ] }"#)
        .unwrap();
    // It has become a copy.
    let guid = fleet.alpha.dataset(&ds("tank/one/below")).unwrap().guid.unwrap();
    runtime::block_on(fleet.alpha.set(&ds("tank/one/below"), "zsync:flags", &format!("w {guid}"))).unwrap();
    let (lines, problems) = join(&fleet, false);
    assert!(lines[0].starts_with("nothing to do: ") && problems.is_empty(), "{lines:?} {problems:?}");
}

/// A fleet whose source has lost its pool: both datasets, one of which contains others.
fn lost_pool() -> Fleet {
    let fleet = Fleet::new();
    let policy = std::fs::read_to_string(fleet.path("server.json")).unwrap();
    let recursive = policy.replace(r#""dataset": "tank/one","#, r#""dataset": "tank/one", "recursive": true,"#);
    std::fs::write(fleet.path("server.json"), recursive).unwrap();
    for name in OF_POOL.iter().filter(|name| name.matches('/').count() > 1) {
        fleet.alpha.create(&ds(name));
    }
    for name in OF_POOL {
        fleet.take(name, 20);
    }
    assert!(fleet.pass().is_success());
    for name in OF_POOL.iter().rev() {
        destroy(&fleet.alpha, name);
    }
    fleet
}

const OF_POOL: &[&str] = &["tank/one", "tank/one/a", "tank/one/a/deep", "tank/one/b", "tank/two"];

fn restore_host(fleet: &Fleet, host: &str) -> (String, Vec<String>) {
    restore_lost(fleet, Lost::Host { host: host.parse().unwrap(), at: None }, true)
}

#[test]
fn all_datasets_of_a_host_come_back() {
    let fleet = lost_pool();
    let (text, problems) = restore_host(&fleet, "alpha");
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    for (source, copy) in [("tank/one/a/deep", "pool/one/a/deep"), ("tank/two", "pool/two")] {
        assert_eq!(guids(&fleet.alpha, source), guids(&fleet.beta, copy));
    }
    let restored: Vec<usize> =
        OF_POOL.iter().map(|name| text.find(&format!("restored alpha:{name} from")).unwrap()).collect();
    assert!(restored[0] < restored[1] && restored[1] < restored[2] && restored[0] < restored[3], "{text}");
    let (text, problems) = restore_host(&fleet, "alpha");
    assert!(text.ends_with("nothing is missing of alpha\n") && problems.is_empty(), "{text} {problems:?}");
    OF_POOL.iter().for_each(|name| drop(fleet.take(name, 1)));
    let report = fleet.pass();
    assert!(report.is_success(), "{:?}", report.outcomes);
    let (text, problems) = restore_host(&fleet, "nobody");
    assert_eq!((text.as_str(), problems.len()), ("", 1));
    assert!(problems[0].contains("the policy has no datasets of it; hint: "), "{problems:?}");
}

#[test]
fn dataset_in_trouble_stops_only_those_below_it() {
    let fleet = lost_pool();
    fleet.alpha.disturb_next(
        "receive -s -u -o readonly=on -o zsync:exclude=on -o zsync:restoring=tank/one/a ",
        Fault::Killed(700),
    );
    let (text, mut problems) = restore_host(&fleet, "alpha");
    problems.sort();
    let [failed, below] = &problems[..] else { panic!("{problems:?} {text}") };
    assert!(failed.starts_with("cannot restore alpha:tank/one/a from"), "{failed}");
    assert_eq!(below, "did not restore alpha:tank/one/a/deep, because tank/one/a was not restored");
    assert!(text.contains("restored alpha:tank/one/b from") && text.contains("restored alpha:tank/two from"), "{text}");
    // The same command restores the rest.
    let (text, problems) = restore_host(&fleet, "alpha");
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    assert!(text.contains("alpha:tank/two exists, and has the snapshot"), "{text}");
    assert!(
        text.contains("restored alpha:tank/one/a/deep from") && !text.contains("restored alpha:tank/two"),
        "{text}"
    );
}

#[test]
fn pool_that_exists_is_left_out_and_what_was_below_it_comes_back() {
    let fleet = Fleet::new();
    let policy = std::fs::read_to_string(fleet.path("server.json")).unwrap();
    let from = policy.find(r#""datasets": ["#).unwrap();
    let entry = r#""datasets": [ { "hostname": "alpha", "dataset": "tank", "recursive": true, "sync": { "prefix": "S",
        "sync_policy": "asap", "sync_on": "beta", "sync_dataset": "pool/all", "retention": ["all in last year"] } } ] }"#;
    std::fs::write(fleet.path("server.json"), format!("{}{entry}", &policy[..from])).unwrap();
    let names = ["tank", "tank/one", "tank/two"];
    names.iter().for_each(|name| drop(fleet.take(name, 20)));
    assert!(fleet.pass().is_success());
    names.iter().rev().for_each(|name| destroy(&fleet.alpha, name));
    fleet.alpha.create(&ds("tank"));
    let (text, problems) = restore_host(&fleet, "alpha");
    assert_eq!(problems, Vec::<String>::new(), "{text}");
    assert!(
        text.contains("alpha:tank is a pool, which exists, so only what was below it is restored; hint: "),
        "{text}"
    );
    assert_eq!(guids(&fleet.alpha, "tank/two"), guids(&fleet.beta, "pool/all/two"));
    assert!(fleet.alpha.dataset(&ds("tank")).unwrap().snapshots.is_empty());
}
