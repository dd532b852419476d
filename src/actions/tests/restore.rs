//! Tests of the decision how to restore datasets.

use std::collections::BTreeMap;

use super::*;
use crate::actions;

const NIGHTLY: &str = "beta:tank/copy B@11-23T01:00 B@11-23T02:00\nbeta:tank/copy/docs B@11-23T01:00 B@11-23T02:00";

fn tree() -> Policy {
    policy([DatasetPolicy { recursive: true, ..entry("alpha:tank/home", &["beta:tank/copy", "gamma:usb/home"]) }])
}

fn wanted(to: &str) -> Wanted {
    Wanted { source: place("alpha:tank/home"), to: place(to), from: None, at: None, set_aside: None }
}

/// A line for each dataset to restore, each note, and each problem.
fn lines(policy: &Policy, text: &str, wanted: &Wanted) -> Vec<String> {
    let unseen: BTreeMap<HostName, String> =
        text.lines().filter_map(|l| Some((l.strip_suffix('?')?.parse().ok()?, "no answer".to_owned()))).collect();
    let plan = actions::restore(policy, &world(text), &unseen, wanted);
    let mut lines = Vec::new();
    for step in plan.steps {
        lines.push(format!("{} from {}@{}", step.to, step.from, step.snapshot.name));
        lines.extend(step.notes);
    }
    lines.extend(plan.present.into_iter().chain(plan.left_out).chain(plan.problems));
    lines
}

#[test]
fn restore_finds_copies_of_a_tree_whose_source_is_gone() {
    let found = lines(&tree(), &format!("alpha\ngamma\n{NIGHTLY}"), &wanted("alpha:tank/home"));
    assert_eq!(
        found,
        [
            "alpha:tank/home from beta:tank/copy@B_2026-11-23_02:00:00",
            "alpha:tank/home/docs from beta:tank/copy/docs@B_2026-11-23_02:00:00"
        ]
    );
    // Only a part of it, and elsewhere.
    let part = Wanted { source: place("alpha:tank/home/docs"), ..wanted("delta:pool/docs") };
    let found = lines(&tree(), &format!("alpha\ngamma\n{NIGHTLY}"), &part);
    assert_eq!(found, ["delta:pool/docs from beta:tank/copy/docs@B_2026-11-23_02:00:00"]);
}

#[test]
fn restore_chooses_the_newest_copy_and_shows_that_another_one_differs() {
    let world = "alpha\nbeta:tank/copy B@11-23T01:00 B@11-23T02:00\ngamma:usb/home B@11-23T01:00 B@11-23T03:00";
    let found = lines(&tree(), world, &wanted("alpha:tank/home"));
    assert_eq!(
        found,
        [
            "alpha:tank/home from gamma:usb/home@B_2026-11-23_03:00:00",
            "another copy, beta:tank/copy, has an older snapshot: B_2026-11-23_02:00:00"
        ]
    );
    // A copy on the host itself needs no network.
    let equal = "alpha\nbeta:tank/copy B@11-23T01:00\ngamma:usb/home B@11-23T01:00";
    let found = lines(&tree(), equal, &wanted("gamma:usb/restored"));
    assert_eq!(found, ["gamma:usb/restored from gamma:usb/home@B_2026-11-23_01:00:00"]);
    let named = Wanted { from: Some(place("beta:tank/copy")), ..wanted("alpha:tank/home") };
    assert_eq!(lines(&tree(), world, &named), ["alpha:tank/home from beta:tank/copy@B_2026-11-23_02:00:00"]);
}

#[test]
fn restore_of_an_older_state_leaves_out_what_did_not_exist_then() {
    let world = "alpha\nbeta:tank/copy B@11-23T01:00\nbeta:tank/copy/late B@11-23T02:00\ngamma";
    let old = Wanted { at: Some(utc("11-23T01:30")), ..wanted("alpha:tank/friday") };
    let found = lines(&tree(), world, &old);
    assert_eq!(found[0], "alpha:tank/friday from beta:tank/copy@B_2026-11-23_01:00:00");
    assert!(found.len() == 2 && found[1].starts_with("alpha:tank/friday/late is left out"), "{found:?}");
}

#[test]
fn restore_under_a_name_that_the_policy_sends_says_so() {
    let pool = policy([DatasetPolicy { recursive: true, ..entry("alpha:tank", &["beta:usb/all"]) }]);
    let wanted = Wanted { source: place("alpha:tank/home"), ..wanted("alpha:tank/friday") };
    let found = lines(&pool, "alpha\nbeta:usb/all/home B@11-23T01:00", &wanted);
    assert_eq!(found[0], "alpha:tank/friday from beta:usb/all/home@B_2026-11-23_01:00:00");
    assert!(found[1].contains("sends all of it to beta:usb/all/friday"), "{found:?}");
}

#[test]
fn restore_of_an_older_state_says_what_follows() {
    let at = |time: &str, to: &str| Wanted { at: Some(utc(time)), ..wanted(to) };
    let world = "alpha\ngamma\nbeta:tank/copy B@11-23T01:00 B@11-23T02:00";
    let found = lines(&tree(), world, &at("11-23T01:30", "alpha:tank/home"));
    assert_eq!(found[0], "alpha:tank/home from beta:tank/copy@B_2026-11-23_01:00:00");
    assert!(found[1].starts_with(
        "beta:tank/copy has 1 newer snapshot that the restored dataset will lack, so the next pass reports"
    ));
    let found = lines(&tree(), world, &at("11-23T01:30", "alpha:tank/friday"));
    assert_eq!(found, ["alpha:tank/friday from beta:tank/copy@B_2026-11-23_01:00:00"]);
    let [problem] = lines(&tree(), world, &at("11-22T00:00", "alpha:tank/friday")).try_into().unwrap();
    assert!(
        problem.ends_with(
            "the oldest is of 2026-11-23T01:00:00Z, on beta:tank/copy; hint: --at 2026-11-23T01:00:00Z, or a later time"
        ),
        "{problem}"
    );
}

#[test]
fn restore_overwrites_nothing_and_blocks_only_what_is_below() {
    let world =
        format!("alpha:tank/home/docs other@11-23T05:00\ngamma\n{NIGHTLY}\nbeta:tank/copy/docs/old B@11-23T02:00");
    let found = lines(&tree(), &world, &wanted("alpha:tank/home"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0], "alpha:tank/home from beta:tank/copy@B_2026-11-23_02:00:00");
    assert!(found[1].starts_with("cannot restore alpha:tank/home/docs: a dataset with this name exists"), "{found:?}");
    // What an earlier run has restored is left as it is.
    let world = format!("alpha:tank/home B@11-23T01:00 B@11-23T02:00\ngamma\n{NIGHTLY}");
    let found = lines(&tree(), &world, &wanted("alpha:tank/home"));
    assert_eq!(found[0], "alpha:tank/home/docs from beta:tank/copy/docs@B_2026-11-23_02:00:00");
    assert_eq!(found[1], "alpha:tank/home exists, and has the snapshot B_2026-11-23_02:00:00");
}

#[test]
fn restore_sets_aside_what_is_in_the_way() {
    let guided = |text: &str, written: u64| {
        let mut world = world(text);
        for (at, found) in world.hosts.values_mut().flat_map(|host| host.datasets.values_mut()).enumerate() {
            (found.guid, found.written) = (Some(Guid(at as u64 + 1)), Some(written));
        }
        world
    };
    let aside = |to: &str| Wanted { set_aside: Some(utc("11-24T08:00")), ..wanted(to) };
    let plan = |text: &str, written: u64, wanted: &Wanted| {
        actions::restore(&tree(), &guided(text, written), &BTreeMap::new(), wanted)
    };
    let name = "tank/home_set_aside_20261124T080000Z";
    // All of the tree is renamed at once, with what no copy has.
    let text = format!(
        "alpha:tank/home B@11-23T01:00\nalpha:tank/home/docs B@11-23T01:00\nalpha:tank/home/own\ngamma\n{NIGHTLY}"
    );
    let planned = plan(&text, 5, &aside("alpha:tank/home"));
    let [home, docs] = &planned.steps[..] else { panic!("{planned:?}") };
    assert_eq!(home.set_aside, Some(SetAside { guid: Guid(1), dataset: name.parse().unwrap() }));
    assert_eq!(
        home.notes,
        [format!("what is there is renamed to {name}"), "renamed with it, and not restored: tank/home/own".to_owned()]
    );
    assert!(docs.set_aside.is_none() && docs.notes.is_empty() && planned.problems.is_empty(), "{planned:?}");
    // It has what is wanted, and nothing was written since; or it has it, and something was written.
    let text = format!("alpha:tank/home B@11-23T01:00 B@11-23T02:00\ngamma\n{NIGHTLY}");
    let planned = plan(&text, 0, &aside("alpha:tank/home"));
    let unchanged =
        "alpha:tank/home exists, has the snapshot B_2026-11-23_02:00:00, and nothing was written to it since";
    assert_eq!((&planned.present[..], planned.steps.len()), (&[unchanged.to_owned()][..], 1), "{planned:?}");
    let planned = plan(&text, 5, &aside("alpha:tank/home"));
    assert_eq!((planned.present.len(), planned.steps.len()), (0, 2), "{planned:?}");
    assert!(planned.steps[0].set_aside.is_some() && planned.steps[1].set_aside.is_none(), "{planned:?}");
    // Nothing is there.
    let planned = plan(&format!("alpha\ngamma\n{NIGHTLY}"), 5, &aside("alpha:tank/home"));
    assert!(planned.steps.iter().all(|step| step.set_aside.is_none()), "{planned:?}");

    let refused = [
        ("alpha:tank B@11-23T05:00\ngamma", aside("alpha:tank"), "it is a pool, which cannot be renamed; hint: "),
        (
            "alpha\ngamma\nbeta:tank B@11-23T05:00",
            aside("beta:tank/copy"),
            "beta:tank/copy is below it, and would be renamed to a name below tank/copy_set_aside_20261124T080000Z; hint: ",
        ),
    ];
    for (text, wanted, words) in refused {
        let planned = plan(&format!("{text}\n{NIGHTLY}"), 5, &Wanted { from: Some(place("beta:tank/copy")), ..wanted });
        assert!(planned.problems[0].contains(words), "{planned:?}");
    }
}

#[test]
fn restore_does_not_take_what_is_unknown_for_absent() {
    let found = lines(&tree(), "alpha\ngamma?\nbeta:tank/copy B@11-23T01:00", &wanted("alpha:tank/home"));
    assert_eq!(found[1], "cannot list the copies on gamma: no answer");
    let found = lines(&tree(), "alpha\nbeta?\ngamma:usb?", &wanted("alpha:tank/home"));
    assert_eq!(
        found[..2],
        ["cannot list the copies on beta: no answer", "cannot list the pool usb of gamma: it is not imported"]
    );
    assert!(found[2].starts_with("cannot restore alpha:tank/home: no copy of it is known"), "{found:?}");
}
