use super::*;

const NOW: &str = "11-23T12:00";

fn one() -> Policy {
    policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| p.creation = None)])
}

#[test]
fn explain_lists_all_reasons_of_every_snapshot() {
    let both = policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| {
        p.creation = None;
        p.retention = rules(&["2 in last day", "1/day in last week"]);
    })]);
    let world = "
        alpha:tank/foo  B@11-10T10:00 B@11-21T10:00 B@11-21T11:00 B@11-22T10:00! other B@11-23T10:00 B@11-23T11:00
        beta:tank/copy  B@11-21T10:00 B@11-21T11:00 B@11-22T10:00
    ";
    assert_eq!(
        why(&both, world, NOW, "alpha:tank/foo"),
        [
            "B@11-10T10:00 goes: no rule keeps it",
            "B@11-21T10:00 goes: no rule keeps it",
            "B@11-21T11:00 stays: kept by \"1/day in last week\"",
            "B@11-22T10:00 stays: kept by \"1/day in last week\"; \
             it is the newest snapshot in common with beta:tank/copy; it is held",
            "B@11-23T10:00 stays: kept by \"2 in last day\"; it is not yet on beta:tank/copy",
            "B@11-23T11:00 stays: kept by \"2 in last day\"; kept by \"1/day in last week\"; \
             it is not yet on beta:tank/copy; it is the newest snapshot of its policy",
        ]
    );
    let plan = decide(&both, &crate::actions::tests::world(world), utc(NOW));
    assert_eq!((plan.prunes[0].kept, plan.prunes[0].destroy.len(), plan.prunes[0].others), (4, 2, 1));
    let orders = plan.orders(&both);
    let Some(Order::Destroy { keep_common_with, reason, bytes, skip_if_renamed, skip_if_cloned, side, .. }) =
        orders.iter().find(|o| matches!(o, Order::Destroy { .. }))
    else {
        panic!("{orders:?}")
    };
    assert_eq!(keep_common_with, &[place("beta:tank/copy")]);
    assert_eq!(reason, "no rule keeps them (2 in last day; 1/day in last week)");
    assert_eq!((*bytes, *skip_if_renamed, *skip_if_cloned, *side), (2000, true, true, Side::Source));
}

/// A sent snapshot that no rule keeps is destroyed unless one of the protections applies.
#[test]
fn each_protection_alone_keeps_a_snapshot() {
    let sent = "B@11-20T10:00 B@11-23T10:00 B@11-23T11:00";
    let beta = format!("beta:tank/copy {sent}");
    let goes = |world: &str, policy: &Policy| {
        let all = why(policy, world, NOW, "alpha:tank/foo");
        all[0].split_once(' ').map(|(_, why)| why.to_owned()).unwrap()
    };
    assert_eq!(goes(&format!("alpha:tank/foo {sent}\n{beta}"), &one()), "goes: no rule keeps it");

    let mut seen = vec![];
    let unlisted_other = policy([with(one().datasets[0].clone(), |e| {
        let mut other = e.policies[0].clone();
        other.prefix = "SYNC".parse().unwrap();
        other.sync_on = vec![place("gamma:tank/live")];
        e.policies.push(other);
    })]);
    let keep_all = policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| p.retention = None)]);
    let follower = policy([one().datasets[0].clone(), entry("delta:tank/origin", &["alpha:tank/foo"])]);
    let cases: [(Protection, &str, String, &Policy, &str); 10] = [
        (
            Protection::Newest,
            "B@11-20T10:00",
            "beta:tank/copy B@11-20T10:00 x".into(),
            &one(),
            "it is the newest snapshot of its policy",
        ),
        (Protection::Held, "B@11-20T10:00! B@11-23T11:00", beta.clone(), &one(), "it is held"),
        (Protection::Cloned, "B@11-20T10:00^ B@11-23T11:00", beta.clone(), &one(), "it has clones"),
        (
            Protection::Renamed,
            "B@11-20T10:00 B@11-23T11:00",
            "beta:tank/copy B@11-20T10:00>z B@11-23T11:00".into(),
            &one(),
            "it has a different name on the other side",
        ),
        (Protection::NoRules, sent, beta.clone(), &keep_all, "a policy without retention rules keeps everything here"),
        (
            Protection::DestinationUnknown,
            sent,
            beta.clone(),
            &unlisted_other,
            "a destination could not be listed, and may still need it",
        ),
        (
            Protection::SourceUnknown,
            sent,
            beta.clone(),
            &follower,
            "the source could not be listed, and may still need it",
        ),
        (
            Protection::NothingInCommon,
            sent,
            format!("{beta}\ndelta:tank/origin B@11-01T00:00"),
            &follower,
            "no snapshot here is in common with the source",
        ),
        (
            Protection::AppendOnly,
            "append-only B@11-20T10:00 B@11-23T11:00",
            beta.clone(),
            &one(),
            "local.json of its host forbids destroying it",
        ),
        (
            Protection::Trashed,
            "trash=7days B@11-20T10:00* B@11-23T11:00",
            beta.clone(),
            &one(),
            "it is in the trash already",
        ),
    ];
    for (protection, snapshots, others, policy, words) in cases {
        let world = format!("alpha:tank/foo {snapshots}\n{others}");
        let found = goes(&world, policy);
        assert!(found.starts_with("stays: ") && found.contains(words), "{protection:?}: {found}");
        assert!(only("destroy alpha", policy, &world, NOW).iter().all(|o| !o.contains("11-20")), "{protection:?}");
        seen.push(protection);
    }
    assert_eq!(seen, Protection::ALL, "there is a case for every protection");
}

#[test]
fn base_and_unsent_snapshots_are_kept_for_every_destination() {
    let two = |prune_unsent| {
        policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy", "gamma:tank/copy"]), |p| {
            p.creation = None;
            p.prune_unsent = prune_unsent;
        })])
    };
    let world = "
        alpha:tank/foo   B@11-20T10:00 B@11-20T11:00 B@11-20T12:00 B@11-20T13:00 B@11-23T11:00
        beta:tank/copy   B@11-20T10:00 B@11-20T11:00
        gamma:tank/copy  B@11-20T10:00 B@11-20T11:00 B@11-20T12:00 B@11-20T13:00 B@11-23T11:00
    ";
    assert_eq!(
        why(&two(false), world, NOW, "alpha:tank/foo"),
        [
            "B@11-20T10:00 goes: no rule keeps it",
            "B@11-20T11:00 stays: it is the newest snapshot in common with beta:tank/copy",
            "B@11-20T12:00 stays: it is not yet on beta:tank/copy",
            "B@11-20T13:00 stays: it is not yet on beta:tank/copy",
            "B@11-23T11:00 stays: kept by \"1 in last day\"; it is the newest snapshot in common with gamma:tank/copy; \
             it is not yet on beta:tank/copy; it is the newest snapshot of its policy",
        ]
    );
    // With prune_unsent, only the bases are kept.
    assert_eq!(
        only("destroy alpha", &two(true), world, NOW),
        ["destroy alpha:tank/foo: B@11-20T10:00 B@11-20T12:00 B@11-20T13:00"]
    );
    // Even then, nothing is destroyed while a destination is unknown.
    let unknown = world.replace("gamma:", "gamma?:");
    assert!(only("destroy alpha", &two(true), &unknown, NOW).is_empty());
    // A listed destination without the dataset lacks everything.
    let absent = "alpha:tank/foo B@11-20T10:00 B@11-23T11:00\nbeta\ngamma";
    assert!(only("destroy", &two(false), absent, NOW).is_empty());
    assert_eq!(only("destroy", &two(true), absent, NOW), ["destroy alpha:tank/foo: B@11-20T10:00"]);
}

#[test]
fn snapshot_pruned_by_destination_is_not_unsent() {
    let world = "
        alpha:tank/foo  B@11-20T10:00 B@11-20T11:00 B@11-23T11:00
        beta:tank/copy  B@11-23T11:00
    ";
    assert_eq!(only("destroy", &one(), world, NOW), ["destroy alpha:tank/foo: B@11-20T10:00 B@11-20T11:00"]);
    // A bookmark shows, too, which snapshots the destination has received.
    let world = "
        alpha:tank/foo  B@11-20T10:00 #B@11-20T11:00 B@11-20T12:00 B@11-23T11:00
        beta:tank/copy  B@11-20T11:00
    ";
    assert_eq!(only("destroy", &one(), world, NOW), ["destroy alpha:tank/foo: B@11-20T10:00"]);
}

#[test]
fn base_with_another_prefix_is_kept() {
    // The newest snapshot in common with the target of another policy has a foreign name.
    let two = policy([with(one().datasets[0].clone(), |e| {
        let mut other = e.policies[0].clone();
        other.prefix = "SYNC".parse().unwrap();
        other.sync_on = vec![place("gamma:tank/live")];
        e.policies.push(other);
    })]);
    let world = "
        alpha:tank/foo   B@11-20T10:00 B@11-20T11:00 SYNC@11-23T10:00 B@11-23T11:00
        beta:tank/copy   B@11-20T10:00 B@11-20T11:00 SYNC@11-23T10:00 B@11-23T11:00
        gamma:tank/live  B@11-20T10:00 B@11-20T11:00
    ";
    let reasons = why(&two, world, NOW, "alpha:tank/foo");
    assert_eq!(reasons[0], "B@11-20T10:00 goes: no rule keeps it");
    assert_eq!(reasons[1], "B@11-20T11:00 stays: it is the newest snapshot in common with gamma:tank/live");
}

#[test]
fn renamed_snapshot_goes_without_skip_if_renamed_and_cloned_one_always_stays() {
    let bold = policy([with(one().datasets[0].clone(), |e| {
        e.skip_if_cloned = false;
        e.skip_if_renamed = false;
    })]);
    let world = "
        alpha:tank/foo  B@11-20T09:00^ B@11-20T10:00 B@11-20T11:00! B@11-23T11:00
        beta:tank/copy  B@11-20T10:00>z B@11-20T11:00 B@11-23T11:00
    ";
    assert_eq!(only("destroy alpha", &bold, world, NOW), ["destroy alpha:tank/foo: B@11-20T10:00"]);
}

#[test]
fn destination_is_pruned_by_sync_retention_from_its_own_inventory() {
    let all = policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| {
        p.creation = None;
        p.retention = rules(&["1 in last hour"]);
        p.sync_retention = rules(&["1/day in last week"]);
    })]);
    let world = "
        alpha:tank/foo  B@11-23T11:30
        beta:tank/copy  B@11-10T10:00 own B@11-21T10:00 B@11-21T11:00 C@11-21T11:00 B@11-22T10:00! B@11-22T11:00 B@11-23T11:30
    ";
    assert_eq!(
        why(&all, world, NOW, "beta:tank/copy"),
        [
            "B@11-10T10:00 goes: no rule keeps it",
            "B@11-21T10:00 goes: no rule keeps it",
            "B@11-21T11:00 stays: kept by \"1/day in last week\"",
            "B@11-22T10:00 stays: it is held",
            "B@11-22T11:00 stays: kept by \"1/day in last week\"",
            "B@11-23T11:30 stays: kept by \"1/day in last week\"; it is the newest snapshot in common with alpha:tank/foo; \
             it is the newest snapshot of its policy",
        ]
    );
    let plan = decide(&all, &crate::actions::tests::world(world), utc(NOW));
    assert_eq!((plan.prunes[1].side, plan.prunes[1].others), (Side::Destination, 2));
}

#[test]
fn snapshots_carried_along_are_pruned_by_retention_of_the_source() {
    let two = policy([with(with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| p.creation = None), |e| {
        let mut local = e.policies[0].clone();
        (local.name, local.prefix, local.sync_on) = ("local".to_owned(), "L".parse().unwrap(), Vec::new());
        local.retention = rules(&["2 in last day"]);
        e.policies.push(local);
    })]);
    let world = "
        alpha:tank/foo  L@11-23T09:00 L@11-23T10:00 L@11-23T11:00 B@11-23T11:30
        beta:tank/copy  L@11-20T09:00 L@11-23T09:00 L@11-23T10:00 L@11-23T11:00 by-hand B@11-23T11:30
    ";
    assert_eq!(
        only("destroy", &two, world, NOW),
        ["destroy beta:tank/copy: L@11-20T09:00 L@11-23T09:00", "destroy alpha:tank/foo: L@11-23T09:00"]
    );
}

#[test]
fn destination_is_not_pruned_while_its_source_is_unknown() {
    let beta = "beta:tank/copy B@11-10T10:00 B@11-23T11:00";
    assert_eq!(only("destroy beta", &one(), &format!("{beta}\nalpha:tank/foo B@11-23T11:00"), NOW).len(), 1);
    assert!(only("destroy", &one(), beta, NOW).is_empty(), "its host was never listed");
    assert!(
        only("destroy", &one(), &format!("{beta}\nalpha?:tank/foo B@11-23T11:00"), NOW).is_empty(),
        "only parts of the host were reported"
    );
    assert!(only("destroy", &one(), &format!("{beta}\nalpha"), NOW).is_empty(), "the source is gone");
    assert_eq!(
        notices(&one(), &format!("{beta}\nalpha"), NOW),
        ["alpha:tank/foo cannot be used: either it does not exist (destroyed, misspelt, pool not imported), \
          or local.json on alpha does not list it, or disables it"]
    );
    let replaced = format!("{beta}\nalpha:tank/foo B@11-23T12:00");
    assert!(only("destroy beta", &one(), &replaced, NOW).is_empty(), "the source is a different dataset");
    assert_eq!(
        notices(&one(), &replaced, NOW),
        ["beta:tank/copy has no snapshot in common with alpha:tank/foo, so nothing is destroyed there"]
    );
    // Conversely, a bookmark of the source identifies the base on the destination.
    let marked = format!("{beta} B@11-23T11:30\nalpha:tank/foo #B@11-23T11:00 B@11-23T12:00");
    assert_eq!(
        why(&one(), &marked, NOW, "beta:tank/copy")[1],
        "B@11-23T11:00 stays: it is the newest snapshot in common with alpha:tank/foo"
    );
}

#[test]
fn delete_decides_about_one_dataset() {
    let inventory = world("alpha:tank/foo B@11-20T10:00 B@11-21T10:00 B@11-23T11:00\nbeta:tank/copy B@11-21T10:00");
    let at = |text: &str| inventory.dataset(&place(text).host, &place(text).dataset).unwrap();
    let policy = one();
    let terms = DeleteTerms {
        prefix: &policy.datasets[0].policies[0].prefix,
        rules: policy.datasets[0].policies[0].retention.iter().flat_map(Retention::rules).collect(),
        keep_all: false,
        prune_unsent: false,
        skip_if_renamed: true,
        skip_if_cloned: true,
    };
    let peer = Peer {
        place: place("beta:tank/copy"),
        relation: Relation::Destination,
        known: KnownDataset::Present(at("beta:tank/copy")),
    };
    let verdicts = delete(at("alpha:tank/foo"), &terms, &[peer], Zone::UTC, utc(NOW));
    assert_eq!(verdicts.iter().map(SnapVerdict::keep).collect::<Vec<_>>(), [false, true, true]);
}
