//! Tests of datasets to which several entries, policies or transfers apply.

use super::*;
use crate::actions::divergence::Allowed;
use crate::model::tags;

const NOW: &str = "11-23T12:00";

#[test]
fn nearest_entry_governs_a_dataset() {
    let nested = policy([
        recursive(entry("alpha:tank", &[])),
        with_policy(entry("alpha:tank/db", &[]), |p| p.creation = Some("@daily".parse().unwrap())),
    ]);
    let world = "
        alpha:tank
        alpha:tank/db      B@11-23T00:00
        alpha:tank/db/log
        alpha:tank/home
    ";
    assert_eq!(
        only("take", &nested, world, NOW),
        ["take B@11-23T12:00 on alpha: tank tank/db/log tank/home"],
        "datasets below a non-recursive entry belong to the outer entry"
    );
    let deep = policy([nested.datasets[0].clone(), recursive(nested.datasets[1].clone())]);
    assert_eq!(
        only("take", &deep, world, "11-23T03:00"),
        ["take B@11-23T03:00 on alpha: tank tank/home", "take B@11-23T00:00 on alpha: tank/db/log"]
    );
    // An entry with another prefix governs only its own snapshots.
    let other = policy([
        nested.datasets[0].clone(),
        with_policy(entry("alpha:tank/db", &[]), |p| p.prefix = "C".parse().unwrap()),
    ]);
    assert_eq!(
        only("take", &other, world, NOW),
        ["take B@11-23T12:00 on alpha: tank tank/db tank/db/log tank/home", "take C@11-23T12:00 on alpha: tank/db"]
    );
}

#[test]
fn policies_of_one_dataset_are_independent() {
    let two = policy([with(entry("alpha:tank/foo", &[]), |e| {
        let mut other = e.policies[0].clone();
        (other.name, other.prefix) = ("sync".to_owned(), "B_B".parse().unwrap());
        other.creation = Some("*/5 * * * *".parse().unwrap());
        e.policies.push(other);
    })]);
    let world = "alpha:tank/foo B_B@11-20T10:00 B@11-20T10:00 B@11-23T11:00 B_B@11-23T12:00";
    assert_eq!(
        orders(&two, world, NOW),
        [
            "take B@11-23T12:00 on alpha: tank/foo",
            "destroy alpha:tank/foo: B@11-20T10:00",
            "destroy alpha:tank/foo: B_B@11-20T10:00",
        ]
    );
}

/// alpha -> beta -> gamma, where beta takes no snapshots of its own.
fn chain() -> Policy {
    policy([
        with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| {
            p.sync_retention = rules(&["1/day in last week"]);
        }),
        with_policy(entry("beta:tank/copy", &["gamma:tank/far"]), |p| p.creation = None),
    ])
}

#[test]
fn middle_of_a_chain_keeps_what_both_sides_need() {
    let world = "
        alpha:tank/foo  B@11-23T12:00
        beta:tank/copy  B@11-19T09:00 B@11-19T10:00 B@11-20T10:00 B@11-20T11:00 B@11-23T11:00 B@11-23T12:00
        gamma:tank/far  B@11-19T09:00 B@11-19T10:00 B@11-20T10:00
    ";
    assert_eq!(only("send", &chain(), world, NOW), ["send beta:tank/copy to gamma:tank/far: B@11-23T12:00"]);
    assert_eq!(
        why(&chain(), world, NOW, "beta:tank/copy"),
        [
            "B@11-19T09:00 goes: no rule keeps it",
            "B@11-19T10:00 stays: kept by \"1/day in last week\"",
            "B@11-20T10:00 stays: it is the newest snapshot in common with gamma:tank/far",
            "B@11-20T11:00 stays: kept by \"1/day in last week\"; it is not yet on gamma:tank/far",
            "B@11-23T11:00 stays: it is not yet on gamma:tank/far",
            "B@11-23T12:00 stays: kept by \"1 in last day\"; kept by \"1/day in last week\"; \
             it is the newest snapshot in common with alpha:tank/foo; it is not yet on gamma:tank/far; \
             it is the newest snapshot of its policy",
        ],
        "the rules of both entries apply, and the bases with both neighbours are kept"
    );
    let verdicts = decide(&chain(), &crate::actions::tests::world(world), utc(NOW)).prunes;
    assert_eq!(verdicts.len(), 3, "there is one verdict per dataset");
}

#[test]
fn policy_without_rules_keeps_everything_on_both_sides() {
    let mut keeps = chain();
    keeps.datasets[1].policies[0].retention = None;
    let world = "
        alpha:tank/foo  B@11-23T12:00
        beta:tank/copy  B@11-01T09:00 B@11-23T12:00
        gamma:tank/far  B@11-23T12:00
    ";
    assert!(only("destroy beta", &keeps, world, NOW).is_empty());
    assert_eq!(only("destroy beta", &chain(), world, NOW), ["destroy beta:tank/copy: B@11-01T09:00"]);
}

#[test]
fn receiving_dataset_takes_nothing() {
    let mut takes = chain();
    takes.datasets[1].policies[0].creation = Some("@hourly".parse().unwrap());
    let world = "alpha:tank/foo B@11-23T11:00\nbeta:tank/copy B@11-23T11:00\ngamma";
    assert_eq!(only("take", &takes, world, NOW), ["take B@11-23T12:00 on alpha: tank/foo"]);
    assert_eq!(
        notices(&takes, world, NOW),
        ["beta:tank/copy receives from alpha:tank/foo, so its own schedule is ignored: \
          a snapshot of its own would make the two diverge"]
    );
    // The same holds for copies below an entry for a whole pool; they are still sent on and pruned.
    let pool = policy([takes.datasets[0].clone(), recursive(entry("beta:tank", &["gamma:vault"]))]);
    assert_eq!(
        orders(&pool, &format!("{world}\nbeta:tank\nbeta:tank/own"), NOW),
        [
            "take B@11-23T12:00 on alpha: tank/foo",
            "take B@11-23T12:00 on beta: tank tank/own",
            "send beta:tank/copy to gamma:vault/copy: B@11-23T11:00",
        ]
    );
    assert!(notices(&pool, &format!("{world}\nbeta:tank\nbeta:tank/own"), NOW).is_empty());
}

/// alpha -> beta -> alpha.
fn ring() -> Policy {
    policy([entry("alpha:tank/x", &["beta:tank/x"]), entry("beta:tank/x", &["alpha:tank/x"])])
}

#[test]
fn first_entry_of_a_loop_takes_the_snapshots() {
    let world = "
        alpha:tank/x  B@11-20T10:00 B@11-23T11:00
        beta:tank/x   B@11-20T10:00
    ";
    assert_eq!(
        orders(&ring(), world, NOW),
        ["take B@11-23T12:00 on alpha: tank/x", "send alpha:tank/x to beta:tank/x: B@11-23T11:00"],
        "beta has no snapshot that alpha lacks, and the base stays on both"
    );
    let settled = world.replace("beta:tank/x   B@11-20T10:00", "beta:tank/x   B@11-20T10:00 B@11-23T11:00");
    assert_eq!(
        orders(&ring(), &settled, "11-23T11:30"),
        ["destroy alpha:tank/x: B@11-20T10:00", "destroy beta:tank/x: B@11-20T10:00"]
    );
    // Snapshots taken on beta, while it was in use, come back to alpha.
    let back = "alpha:tank/x B@11-23T11:00\nbeta:tank/x B@11-23T11:00 B@11-23T11:10";
    assert_eq!(orders(&ring(), back, "11-23T11:30"), ["send beta:tank/x to alpha:tank/x: B@11-23T11:10"]);
    // A loop permits no rollback, whatever the policy says.
    let rolling = policy(ring().datasets.into_iter().map(|e| with(e, |e| e.rollback_if_needed = true)));
    let plan = decide(&rolling, &crate::actions::tests::world(world), utc(NOW));
    assert!(plan.sends.iter().all(|s| s.allowed == Allowed::default()));
    let plan = decide(&policy([rolling.datasets[0].clone()]), &crate::actions::tests::world(world), utc(NOW));
    assert!(plan.sends[0].allowed.rollback);
    // A loop over three hosts behaves in the same way.
    let three = policy([
        entry("alpha:t/x", &["beta:t/x"]),
        entry("beta:t/x", &["gamma:t/x"]),
        entry("gamma:t/x", &["alpha:t/x"]),
    ]);
    let world = "alpha:t/x\nbeta:t/x\ngamma:t/x";
    assert_eq!(orders(&three, world, NOW), ["take B@11-23T12:00 on alpha: t/x"]);
}

#[test]
fn destination_below_its_source_is_not_sent_into_itself() {
    let inside = policy([recursive(entry("alpha:tank", &["alpha:tank/copies"]))]);
    let world = "
        alpha:tank             B@11-23T12:00
        alpha:tank/a           B@11-23T12:00
        alpha:tank/copies      B@11-23T12:00
        alpha:tank/copies/old  B@11-20T12:00
    ";
    assert_eq!(orders(&inside, world, NOW), ["send alpha:tank/a to alpha:tank/copies/a: B@11-23T12:00"]);
    let itself = policy([entry("alpha:tank/a", &["alpha:tank/a"])]);
    assert_eq!(send_reasons(&itself, world, NOW), ["source and destination are the same dataset"]);
}

#[test]
fn destination_has_only_one_source() {
    let two = policy([entry("alpha:tank/a", &["gamma:tank/copy"]), entry("beta:tank/b", &["gamma:tank/copy"])]);
    let world = "
        alpha:tank/a     B@11-23T12:00
        beta:tank/b      B@11-23T12:00
        gamma:tank/copy  B@11-20T12:00
    ";
    assert_eq!(only("send", &two, world, NOW), ["send alpha:tank/a to gamma:tank/copy: B@11-23T12:00"]);
    assert_eq!(send_reasons(&two, world, NOW)[1], "the destination already receives from alpha:tank/a");
    assert!(
        notices(&two, world, NOW).contains(
            &"beta:tank/b is not sent to gamma:tank/copy, which already receives from alpha:tank/a".to_owned()
        )
    );
    // A target below another target belongs to the entry that names it, even if the other source has a child of that
    // name.
    let nested =
        policy([recursive(entry("alpha:tank/a", &["gamma:tank/copy"])), entry("beta:tank/b", &["gamma:tank/copy/b"])]);
    assert_eq!(only("send beta", &nested, world, NOW), ["send beta:tank/b to gamma:tank/copy/b: B@11-23T12:00"]);
    let taken = format!("{world}\nalpha:tank/a/b B@11-23T12:00");
    assert_eq!(only("send beta", &nested, &taken, NOW), ["send beta:tank/b to gamma:tank/copy/b: B@11-23T12:00"]);
    assert_eq!(only("send alpha:tank/a/b", &nested, &taken, NOW), [""; 0]);
    // But a dataset stays the source of the copy that was made of it.
    let established = format!("{taken} B@11-23T11:00\ngamma:tank/copy/b B@11-23T11:00");
    assert_eq!(only("send beta", &nested, &established, NOW), [""; 0]);
}

#[test]
fn new_child_of_recursive_entry_does_not_take_over_the_copy_of_another_dataset() {
    let policy = policy([recursive(entry("alpha:tank/d", &["beta:bak/d"])), entry("alpha:tank/x", &["beta:bak/d/x"])]);
    let world = "
        alpha:tank/d    B@11-23T12:00
        alpha:tank/d/x  B@11-23T12:00=2
        alpha:tank/x    B@11-23T11:00=3 B@11-23T12:00=3
        beta:bak/d      B@11-23T12:00
        beta:bak/d/x    B@11-23T11:00=3
    ";
    assert_eq!(only("send", &policy, world, NOW), ["send alpha:tank/x to beta:bak/d/x: B@11-23T12:00"]);
    assert!(
        notices(&policy, world, NOW).contains(
            &"alpha:tank/d/x is not sent to beta:bak/d/x, which already receives from alpha:tank/x".to_owned()
        )
    );
}

#[test]
fn copy_stays_with_the_source_that_has_its_newest_snapshot() {
    let policy = policy([
        recursive(entry("alpha:tank/e", &["beta:bak/m"])),
        recursive(entry("alpha:tank/d", &["beta:bak/m/y"])),
    ]);
    // An old snapshot of the source was restored where the first entry covers it.
    let world = "
        alpha:tank/e      B@11-23T12:00=5
        alpha:tank/e/y    B@11-23T12:00=6
        alpha:tank/e/y/x  B@11-23T10:00
        alpha:tank/d      B@11-23T12:00=7
        alpha:tank/d/x    B@11-23T10:00 B@11-23T11:00 B@11-23T12:00
        beta:bak/m        B@11-23T12:00=5
        beta:bak/m/y      B@11-23T12:00=7
        beta:bak/m/y/x    B@11-23T10:00 B@11-23T11:00
    ";
    assert_eq!(only("send", &policy, world, NOW), ["send alpha:tank/d/x to beta:bak/m/y/x: B@11-23T12:00"]);
}

#[test]
fn copy_is_not_taken_over_while_another_source_is_away() {
    let policy = policy([recursive(entry("gamma:two/d", &["beta:bak/d"])), entry("alpha:tank/x", &["beta:bak/d/x"])]);
    let world = "
        alpha:tank/x  B@11-23T12:00
        gamma:two?
        beta:bak/d    B@11-23T12:00=1
        beta:bak/d/x  B@11-23T11:00=2
    ";
    assert_eq!(only("send", &policy, world, NOW), [""; 0]);
    // As long as there is no copy, nobody loses one.
    let without = world.replace("beta:bak/d/x  B@11-23T11:00=2", "");
    assert_eq!(only("send", &policy, &without, NOW), ["send alpha:tank/x to beta:bak/d/x: B@11-23T12:00"]);
}

#[test]
fn copy_is_not_renamed_with_those_of_other_entries_below() {
    let whole = |others: &[DatasetPolicy]| {
        let first = recursive(entry("alpha:tank/n", &["beta:bak/n"]));
        policy(std::iter::once(first).chain(others.iter().cloned()))
    };
    let world = "
        alpha:tank/n       B@11-23T12:00
        alpha:tank/n/new   B@11-23T11:00=1 B@11-23T12:00=1
        beta:bak/n         B@11-23T12:00
        beta:bak/n/old     B@11-23T11:00=1
    ";
    let mut inventory = super::world(world);
    note_sent(&mut inventory, "alpha:tank/n/new", "beta:bak/n/old");
    let renames = |policy: &Policy| {
        let plan = decide(policy, &inventory, utc(NOW));
        plan.sends.iter().filter(|send| send.route.renamed.is_some()).count()
    };
    assert_eq!(renames(&whole(&[])), 1);
    assert_eq!(renames(&whole(&[entry("alpha:tank/x", &["beta:bak/n/old/x"])])), 0);
    assert_eq!(renames(&whole(&[entry("beta:bak/n/old/live", &["alpha:tank/live"])])), 0);
}

/// Gives a source the cursor for a copy that has its first snapshot.
fn note_sent(inventory: &mut Inventory, source: &str, copy: &str) {
    let (source, copy) = (place(source), place(copy));
    let of = inventory.hosts.get_mut(&source.host).unwrap().datasets.get_mut(&source.dataset).unwrap();
    let Snapshot { guid, createtxg, creation, .. } = of.snapshots[0].clone();
    let name = tags::cursor(&source.dataset, &copy, guid, None).unwrap();
    of.bookmarks.push(Bookmark { name, guid, createtxg, creation });
}

#[test]
fn renamed_copy_is_predicted_under_its_new_name() {
    let policy = policy([recursive(entry("alpha:tank/n", &["beta:bak/n"]))]);
    let mut inventory = super::world(
        "
        alpha:tank/n        B@11-23T12:00
        alpha:tank/n/new    B@11-23T11:00=1 B@11-23T12:00=1
        beta:bak/n          B@11-23T12:00
        beta:bak/n/old      B@11-23T11:00=1
        beta:bak/n/old/own  B@11-20T11:00=3
    ",
    );
    let reasons = |inventory: &Inventory| -> Vec<String> {
        decide(&policy, inventory, utc(NOW)).sends.iter().map(|send| send.reason.to_string()).collect()
    };
    let is_rename = |reason: &String| reason.starts_with("the source was renamed: its copy bak/n/old is renamed");
    // The agent renames it only if a cursor proves that the source was sent there.
    assert!(!reasons(&inventory).iter().any(is_rename), "somebody may have renamed the copy to save it");
    note_sent(&mut inventory, "alpha:tank/n/new", "beta:bak/n/old");
    assert!(reasons(&inventory).iter().any(is_rename), "{:?}", reasons(&inventory));
    let plan = decide(&policy, &inventory, utc(NOW));
    predict(&mut inventory, &plan.orders(&policy), utc(NOW));
    let there = &inventory.hosts[&place("beta:bak").host].datasets;
    let names: Vec<&str> = there.keys().map(DatasetName::as_str).collect();
    assert_eq!(names, ["bak/n", "bak/n/new", "bak/n/new/own"]);
    assert_eq!(there[&place("beta:bak/n/new").dataset].snapshots.len(), 2);
}

#[test]
fn excluded_dataset_has_one_notice_where_the_exclusion_begins() {
    let policy = policy([recursive(entry("alpha:tank", &["beta:bak"]))]);
    let mut inventory = super::world(
        "
        alpha:tank          B@11-23T12:00
        alpha:tank/out      B@11-23T12:00=1
        alpha:tank/out/deep B@11-23T12:00=2
        beta:bak            B@11-23T12:00
    ",
    );
    for (name, found) in &mut inventory.hosts.get_mut(&place("alpha:tank").host).unwrap().datasets {
        found.excluded = name.is_within(&place("alpha:tank/out").dataset);
    }
    let plan = decide(&policy, &inventory, utc(NOW));
    let excluded = plan.notices.iter().filter(|n| n.kind == NoticeKind::Excluded);
    let excluded: Vec<&str> = excluded.filter_map(|n| Some(n.dataset.as_ref()?.as_str())).collect();
    assert_eq!(excluded, ["tank/out"]);
    let health = health(&policy, &inventory, &Default::default(), utc(NOW));
    assert!(health.notices.is_empty() && health.reminders.len() == 1, "{health:?}");
}

#[test]
fn copies_without_source_are_mentioned() {
    let policy = policy([recursive(entry("alpha:tank/d", &["beta:bak/d"]))]);
    let world = "
        alpha:tank/d    B@11-23T12:00
        alpha:tank/d/p  B@11-23T12:00=1
        beta:bak/d      B@11-23T12:00
        beta:bak/d/p    B@11-23T12:00=1
        beta:bak/d/old  B@11-20T12:00=2
        beta:bak/d/own  other
    ";
    let gone = "beta:bak/d contains a copy whose source no longer exists, so nothing prunes it: bak/d/old";
    assert!(notices(&policy, world, NOW).contains(&gone.to_owned()));
    // A renamed source still has a copy, and a host that did not answer may have the source.
    let renamed = format!("{world}\nalpha:tank/d/new B@11-20T12:00=2");
    let unknown = world.replace("alpha:tank/d/p  B@11-23T12:00=1", "").replace("alpha:", "alpha?:");
    for world in [renamed, unknown] {
        assert!(!notices(&policy, &world, NOW).iter().any(|notice| notice.contains("no longer exists")));
    }
    // On one machine, the copies are no sources.
    let here = self::policy([recursive(entry("alpha:tank/d", &["alpha:bak/d", "alpha:usb/d"]))]);
    let world = format!("{}{}", world.replace("beta:", "alpha:"), world.replace("beta:bak", "alpha:usb"));
    for copies in ["bak", "usb"] {
        let gone = gone.replace("beta:", "alpha:").replace("bak", copies);
        assert!(notices(&here, &world, NOW).contains(&gone), "{gone}");
    }
}

#[test]
fn source_that_is_excluded_or_sent_elsewhere_is_not_gone() {
    let world = "
        alpha:tank/d    B@11-23T12:00
        alpha:tank/d/p  B@11-23T12:00=1
        beta:bak/d      B@11-23T12:00
        beta:bak/d/p    B@11-23T12:00=1
        gamma:bak
    ";
    let tree = recursive(entry("alpha:tank/d", &["beta:bak/d"]));
    let excluding =
        with(tree.clone(), |e| e.exclude = crate::policy::Exclude::new(vec![glob::Pattern::new("p").unwrap()]));
    let elsewhere = entry("alpha:tank/d/p", &["gamma:bak/p"]);
    for policy in [policy([excluding]), policy([tree, elsewhere])] {
        assert!(!notices(&policy, world, NOW).iter().any(|notice| notice.contains("no longer exists")));
    }
}

#[test]
fn copies_of_datasets_that_swapped_names_are_recognised() {
    let policy = policy([recursive(entry("alpha:tank/d", &["beta:bak/d"]))]);
    let world = "
        alpha:tank/d    B@11-23T12:00
        alpha:tank/d/p  B@11-23T11:00=2 B@11-23T12:00=2
        alpha:tank/d/q  B@11-23T11:00=1 B@11-23T12:00=1
        beta:bak/d      B@11-23T12:00
        beta:bak/d/p    B@11-23T11:00=1
        beta:bak/d/q    B@11-23T11:00=2
    ";
    let found = notices(&policy, world, NOW);
    for (copy, with, of) in [("p", "p", "q"), ("q", "q", "p")] {
        let expected = format!(
            "beta:bak/d/{copy} has no snapshot in common with alpha:tank/d/{with}, so nothing is destroyed there; it is a \
             copy of alpha:tank/d/{of}"
        );
        assert!(found.contains(&expected), "{expected:?} is not in {found:?}");
    }
}

#[test]
fn plans_of_all_entries_add_up_to_the_whole_plan() {
    let policies = [
        chain(),
        ring(),
        policy([recursive(entry("alpha:tank", &["beta:tank"])), entry("beta:tank/copy", &["gamma:far"])]),
    ];
    let world_text = "
        alpha:tank      B@11-20T10:00 B@11-23T11:00
        alpha:tank/foo  B@11-20T10:00 B@11-23T11:00
        alpha:tank/x    B@11-20T10:00 B@11-23T11:00
        beta:tank/copy  B@11-20T10:00
        beta:tank/x     B@11-20T10:00 B@11-23T11:00
        beta:tank/foo   B@11-20T10:00 B@11-23T11:00
    ";
    for policy in policies {
        let inventory = world(world_text);
        let whole = decide(&policy, &inventory, utc(NOW));
        let parts: Vec<Plan> =
            (0..policy.datasets.len() + 1).map(|i| decide_entry(&policy, i, &inventory, utc(NOW))).collect();
        assert_eq!(whole.takes, parts.iter().flat_map(|p| p.takes.clone()).collect::<Vec<_>>());
        assert_eq!(whole.sends, parts.iter().flat_map(|p| p.sends.clone()).collect::<Vec<_>>());
        assert_eq!(whole.prunes, parts.iter().flat_map(|p| p.prunes.clone()).collect::<Vec<_>>());
        let orders: Vec<Order> = parts.iter().flat_map(|p| p.orders(&policy)).collect();
        assert_eq!(whole.orders(&policy).len(), orders.len());
        assert!(!orders.is_empty());
    }
}

#[test]
fn copies_of_copies_do_not_nest_forever() {
    let crossed = policy([recursive(entry("alpha:t", &["beta:t/x"])), recursive(entry("beta:t", &["alpha:t/x"]))]);
    let mut inventory = world("alpha:t B@11-23T11:00\nbeta:t B@11-23T11:00");
    let mut rounds = 0;
    loop {
        let orders = decide(&crossed, &inventory, utc("11-23T11:30")).orders(&crossed);
        if orders.is_empty() {
            break;
        }
        predict(&mut inventory, &orders, utc("11-23T11:30"));
        rounds += 1;
        assert!(rounds < 6, "{:?}", render(&orders));
    }
    let names: Vec<&str> = inventory.hosts.values().flat_map(|h| h.datasets.keys()).map(DatasetName::as_str).collect();
    assert_eq!(names, ["t", "t/x", "t/x/x", "t", "t/x", "t/x/x"]);
}

#[test]
fn hosts_of_lists_only_hosts_that_matter_to_the_entries() {
    let policy = policy([
        entry("alpha:tank/a", &["beta:pool/a"]),
        // Its destination sends on to other hosts, and other hosts send to it.
        recursive(entry("beta:pool", &["gamma:pool/all"])),
        entry("delta:tank/x", &["beta:pool/a/x"]),
        entry("epsilon:tank/a", &["beta:other"]),
        entry("alpha:tank/ab", &[]),
    ]);
    let index = PolicyIndex::new(&policy);
    let hosts = |entries: &[usize]| {
        let hosts: Vec<String> = index.hosts_of(&policy, entries).iter().map(ToString::to_string).collect();
        hosts.join(" ")
    };
    assert_eq!(hosts(&[0]), "alpha beta delta gamma");
    assert_eq!(hosts(&[1]), "alpha beta delta gamma");
    assert_eq!(hosts(&[3]), "beta epsilon");
    assert_eq!(hosts(&[4]), "alpha");
    assert_eq!(hosts(&[3, 4]), "alpha beta epsilon");
}

/// Two entries: alpha's datasets are copied to beta, and beta takes snapshots of its own of the whole pool.
fn copies_below_own_entry() -> Policy {
    let copied = recursive(entry("alpha:tank/home", &["beta:vault/copies"]));
    let own = recursive(with_policy(entry("beta:vault", &[]), |p| {
        (p.name, p.prefix) = ("local".to_owned(), "L".parse().unwrap());
    }));
    policy([copied, own])
}

#[test]
fn copy_takes_no_snapshots_while_its_source_is_away() {
    let beta = "
        beta:vault
        beta:vault/copies       B@11-23T11:00
        beta:vault/copies/docs  B@11-23T11:00
        beta:vault/mine
    ";
    let taken = ["take L@11-23T12:00 on beta: vault vault/mine"];
    for alpha in ["alpha?", "alpha:tank?"] {
        let world = format!("{alpha}\n{beta}");
        assert_eq!(only("take", &copies_below_own_entry(), &world, NOW), taken, "{alpha}");
    }
    // Once the host and the pool are listed and the source does not exist, the copy is a dataset like any other.
    let world = format!("alpha:tank/home/docs\n{beta}");
    let all = only("take", &copies_below_own_entry(), &world, NOW);
    assert!(all.iter().any(|order| order.ends_with("on beta: vault vault/copies vault/mine")), "{all:?}");
}

#[test]
fn pool_that_could_not_be_listed_is_left_alone_and_protects_its_peers() {
    let mut entry = entry("alpha:tank/foo", &["beta:usb/copy", "beta:safe/copy"]);
    entry.policies[0].prune_unsent = true;
    let source = "alpha:tank/foo B@11-20T10:00 B@11-21T10:00 B@11-23T11:30";
    let safe = "beta:safe/copy B@11-20T10:00 B@11-21T10:00";
    let world = format!("{source}\n{safe}\nbeta:usb/copy B@11-20T10:00\nbeta:usb?");
    let orders = orders(&policy([entry.clone()]), &world, "11-23T11:45");
    let expected = ["send alpha:tank/foo to beta:safe/copy: B@11-23T11:30", "destroy beta:safe/copy: B@11-20T10:00"];
    assert_eq!(orders, expected, "nothing is sent or pruned there, nor pruned at the source");
    // The same for a source whose pool is away, although older listings of it are remembered.
    let world = format!("{source}\nalpha:tank?\n{safe}\nbeta:usb/copy");
    let policy = policy([entry]);
    assert!(super::orders(&policy, &world, "11-23T11:45").is_empty());
    assert_eq!(
        notices(&policy, &world, "11-23T11:45"),
        ["cannot list the pool tank of alpha: it is not imported; nothing is taken, sent or pruned there"]
    );
}

#[test]
fn append_only_dataset_is_not_pruned_and_one_note_says_so() {
    let policy = policy([entry("alpha:tank/foo", &["beta:usb/copy"])]);
    let same = "B@11-20T10:00 B@11-21T10:00 B@11-23T11:30";
    let known = world(&format!("alpha:tank/foo {same}\nbeta:usb/copy append-only {same}"));
    let plan = decide(&policy, &known, utc("11-23T11:45"));
    assert_eq!(render(&plan.orders(&policy)), ["destroy alpha:tank/foo: B@11-20T10:00 B@11-21T10:00"]);
    let notices: Vec<_> = plan.notices.iter().map(|n| (n.to_string(), n.kind.is_failure())).collect();
    let expected = "beta:usb/copy keeps 2 snapshots that retention would destroy, because local.json of beta makes it \
                    append-only";
    assert_eq!(notices, [(expected.to_owned(), false)]);
}

#[test]
fn destination_that_is_away_for_weeks_does_not_stop_pruning_if_unsent_snapshots_may_go() {
    let mut entry = entry("alpha:tank/foo", &["beta:usb/copy"]);
    let cursor = "#B@11-21T10:00>zsync:beta:usb:copy:0000000000000001:0000000000000002";
    let world = |cursor: &str| {
        format!(
            "alpha:tank/foo B@11-20T10:00 B@11-21T10:00 {cursor} B@11-22T09:00 B@11-23T11:30\nbeta:usb?\nbeta:usb/copy"
        )
    };
    let now = "11-23T11:45";
    assert!(only("destroy", &policy([entry.clone()]), &world(cursor), now).is_empty(), "not all was sent");
    entry.policies[0].prune_unsent = true;
    let policy = policy([entry]);
    // What the copy is known to have stays as the base of the next increment.
    assert_eq!(only("destroy", &policy, &world(cursor), now), ["destroy alpha:tank/foo: B@11-20T10:00 B@11-22T09:00"]);
    assert!(only("destroy", &policy, &world(""), now).is_empty(), "nothing is known of the copy");
}
