//! Tests of inputs that should not occur, but that the engine must handle safely.

use super::*;

const NOW: &str = "11-23T12:00";

fn one() -> Policy {
    policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| p.creation = None)])
}

#[test]
fn foreign_names_are_never_candidates() {
    let world = "
        alpha:tank/foo  zfs-auto-snap_daily-2026-11-01-0000 B B_ B_2026-11-01 B_2026-11-01_00:00:00_x b@11-01T00:00 \
                        AB@11-01T00:00 B@11-23T11:00
        beta:tank/copy  zfs-auto-snap_daily-2026-11-01-0000 B@11-23T11:00
    ";
    assert!(orders(&one(), world, NOW).is_empty());
    let plan = decide(&one(), &crate::actions::tests::world(world), utc(NOW));
    assert_eq!(plan.prunes[0].others, 7);
}

#[test]
fn zeplic_names_belong_to_the_prefix() {
    let world = "
        alpha:tank/foo  B@11-23T09:00>B_2026-November-23_09:00:00 B@11-23T11:00
        beta:tank/copy  B@11-23T09:00>B_2026-November-23_09:00:00 B@11-23T11:00
    ";
    assert_eq!(only("destroy alpha", &one(), world, NOW), ["destroy alpha:tank/foo: B_2026-November-23_09:00:00"]);
}

#[test]
fn prefixes_with_common_beginning_are_distinct() {
    let a = policy([with_policy(entry("alpha:tank/foo", &[]), |p| p.prefix = "A".parse().unwrap())]);
    let world = "alpha:tank/foo A_B@11-01T00:00 A@11-02T00:00 A_B@11-03T00:00 A@11-23T12:00";
    assert_eq!(orders(&a, world, NOW), ["destroy alpha:tank/foo: A@11-02T00:00"]);
}

#[test]
fn equal_creation_times_are_ordered_by_createtxg() {
    let world = "
        alpha:tank/foo  B@11-23T11:00=1 B@11-23T11:00=2 B@11-23T11:00=3
        beta:tank/copy  B@11-23T11:00=1 B@11-23T11:00=2 B@11-23T11:00=3
    ";
    let inventory = crate::actions::tests::world(world);
    let plan = decide(&one(), &inventory, utc(NOW));
    let newest = crate::actions::tests::world("x:x B@11-23T11:00=3")
        .hosts
        .values()
        .next()
        .unwrap()
        .datasets
        .values()
        .next()
        .unwrap()
        .snapshots[0]
        .guid;
    for prune in &plan.prunes {
        assert_eq!(prune.destroy.len(), 2);
        assert!(prune.destroy.iter().all(|d| d.guid != newest));
    }
}

#[test]
fn unsorted_inventory_gives_the_same_plan() {
    let sorted = world(
        "
        alpha:tank/foo  B@11-20T10:00 B@11-21T10:00 B@11-22T10:00 B@11-23T11:00 B@11-23T11:30
        beta:tank/copy  B@11-20T10:00 B@11-21T10:00 B@11-22T10:00
    ",
    );
    let mut shuffled = sorted.clone();
    for dataset in shuffled.hosts.values_mut().flat_map(|h| h.datasets.values_mut()) {
        dataset.snapshots.reverse();
        dataset.snapshots.rotate_left(1);
    }
    let orders = |inventory| decide(&one(), &inventory, utc(NOW)).orders(&one());
    assert_eq!(orders(shuffled), orders(sorted));
}

#[test]
fn snapshot_in_the_future_is_kept_and_displaces_no_others() {
    let daily = policy([with_policy(entry("alpha:tank/foo", &[]), |p| p.retention = rules(&["1/day in last week"]))]);
    let world = "alpha:tank/foo B@11-22T10:00 B@11-23T10:00+10y B@11-23T12:00";
    assert!(orders(&daily, world, NOW).is_empty());
    assert!(notices(&daily, world, NOW).is_empty(), "only a newest snapshot in the future has a notice");
}

#[test]
fn guids_of_other_datasets_do_not_matter() {
    // Another dataset on the destination's host has the guid that is to be sent.
    let world = "
        alpha:tank/foo   B@11-23T10:00 B@11-23T11:00
        beta:tank/copy   B@11-23T10:00
        beta:tank/other  B@11-23T11:00
        alpha:tank/bar   B@11-23T10:00
    ";
    assert_eq!(only("send", &one(), world, NOW), ["send alpha:tank/foo to beta:tank/copy: B@11-23T11:00"]);
    // A guid that occurs twice in one dataset: the base is kept in any case.
    let twice = "
        alpha:tank/foo  B@11-20T10:00 B@11-20T11:00 B@11-23T11:00
        beta:tank/copy  B@11-20T11:00 B@11-20T11:00
    ";
    assert_eq!(only("destroy alpha", &one(), twice, NOW), ["destroy alpha:tank/foo: B@11-20T10:00"]);
    assert!(only("destroy beta", &one(), twice, NOW).is_empty());
}

#[test]
fn second_entry_for_a_dataset_and_prefix_is_ignored() {
    let twice = policy([
        entry("alpha:tank/foo", &[]),
        with_policy(entry("alpha:tank/foo", &[]), |p| p.creation = Some("*/5 * * * *".parse().unwrap())),
    ]);
    let world = "alpha:tank/foo B@11-23T12:00";
    assert!(orders(&twice, world, "11-23T12:05").is_empty());
    assert_eq!(
        notices(&twice, world, NOW),
        ["alpha:tank/foo is already covered with the prefix B by entry 0 of the policy, which takes precedence"]
    );
    // The same holds for two policies of one entry.
    let twice = policy([with(entry("alpha:tank/foo", &[]), |e| e.policies.push(e.policies[0].clone()))]);
    assert_eq!(decide(&twice, &crate::actions::tests::world(world), utc(NOW)).takes.len(), 1);
    // A destination that is named twice counts once.
    let twice = policy([entry("alpha:tank/foo", &["beta:tank/copy", "beta:tank/copy"])]);
    assert_eq!(only("send", &twice, "alpha:tank/foo B@11-23T12:00\nbeta", NOW).len(), 1);
}

#[test]
fn unlisted_hosts_and_missing_datasets_have_notices() {
    let several = policy([
        entry("alpha:tank/foo", &["beta:tank/copy"]),
        entry("alpha:tank/bar", &["beta:tank/copy2"]),
        recursive(entry("gamma:tank/none", &[])),
    ]);
    assert_eq!(
        notices(&several, "gamma:tank", NOW),
        [
            "alpha has not answered, so nothing is taken or destroyed there",
            "beta has not answered, so nothing is taken or destroyed there",
            "gamma:tank/none cannot be used: either it does not exist (destroyed, misspelt, pool not imported), \
             or local.json on gamma does not list it, or disables it",
        ]
    );
    assert!(orders(&several, "gamma:tank", NOW).is_empty());
    assert!(orders(&several, "alpha?:tank/foo B@11-01T00:00 B@11-02T00:00", NOW).is_empty());
    assert!(decide(&policy([]), &Inventory::default(), utc(NOW)).is_empty());
}

#[test]
fn too_long_destination_name_has_a_notice() {
    let deep = format!("tank/foo/{}", "x".repeat(240));
    let far = policy([recursive(entry("alpha:tank/foo", &["beta:tank/a/longer/name"]))]);
    let world = format!("alpha:tank/foo\nalpha:{deep} B@11-23T12:00\nbeta");
    assert!(only("send", &far, &world, NOW).is_empty());
    assert_eq!(
        notices(&far, &world, NOW),
        [format!(
            "alpha:{deep} is not sent below beta:tank/a/longer/name: the names of its snapshots would be longer there than ZFS permits"
        )]
    );
    // The destination's own name is short enough, but leaves no room for a snapshot's.
    let deep = format!("tank/{}", "x".repeat(240));
    let full = policy([entry("alpha:tank/foo", &[&format!("beta:{deep}")])]);
    let world = "alpha:tank/foo B@11-23T12:00\nbeta";
    assert!(only("send", &full, world, NOW).is_empty());
    assert!(notices(&full, world, NOW)[0].contains("longer there than ZFS permits"));
}

#[test]
fn extreme_times_do_not_panic() {
    let mut inventory = world("alpha:tank/foo B@11-20T10:00 B@11-21T10:00\nbeta:tank/copy B@11-20T10:00");
    let policy = policy([entry("alpha:tank/foo", &["beta:tank/copy"])]);
    for extreme in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
        let _ = decide(&policy, &inventory, extreme).orders(&policy);
    }
    for dataset in inventory.hosts.values_mut().flat_map(|h| h.datasets.values_mut()) {
        dataset.snapshots[0].creation = DateTime::<Utc>::MAX_UTC;
        dataset.snapshots.last_mut().unwrap().creation = DateTime::<Utc>::MIN_UTC;
    }
    let _ = decide(&policy, &inventory, utc(NOW)).orders(&policy);
}

#[test]
fn plan_json_is_stable() {
    let world = world(
        "
        alpha:tank/foo  B@11-20T10:00 B@11-23T11:00
        beta:tank/copy  B@11-20T10:00
        gamma?
    ",
    );
    let policy = policy([entry("alpha:tank/foo", &["beta:tank/copy"])]);
    let plan = serde_json::to_value(decide(&policy, &world, utc(NOW))).unwrap();
    assert_eq!(
        plan["takes"][0],
        serde_json::json!({
            "entry": 0, "policy": "backup", "host": "alpha", "dataset": "tank/foo",
            "due": "B_2026-11-23_12:00:00",
            "reason": { "kind": "slot_passed", "slot": "2026-11-23T12:00:00Z", "last": "2026-11-23T11:00:00Z" },
        })
    );
    assert_eq!(plan["sends"][0]["to"], serde_json::json!({ "host": "beta", "dataset": "tank/copy" }));
    assert_eq!(plan["sends"][0]["reason"]["kind"], "not_there");
    assert_eq!(plan["prunes"][0]["side"], "source");
    assert_eq!(plan["prunes"][0]["rules"], serde_json::json!(["1 in last day"]));
}
