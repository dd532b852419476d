use super::*;

#[test]
fn snapshot_gets_no_name_that_a_destination_has_for_another_one() {
    let policy = policy([entry("alpha:tank/foo", &["beta:tank/copy"])]);
    // The source's snapshot of the slot was destroyed after it had been sent.
    let world = "
        alpha:tank/foo  B@11-23T10:00
        beta:tank/copy  B@11-23T10:00 B@11-23T12:00
    ";
    let now = "11-23T12:20";
    assert_eq!(only("take", &policy, world, now), ["take B@11-23T12:20 on alpha: tank/foo"]);
    let free = world.replace("B@11-23T12:00", "");
    assert_eq!(only("take", &policy, &free, now), ["take B@11-23T12:00 on alpha: tank/foo"]);
}

fn one() -> Policy {
    policy([entry("alpha:tank/foo", &[])])
}

#[test]
fn take_is_due_once_a_slot_has_passed() {
    for (snapshots, now, due, reason) in [
        ("", "11-23T10:17", Some("B@11-23T10:00"), "there is no snapshot of this policy yet"),
        (
            "B@11-23T09:00",
            "11-23T10:00",
            Some("B@11-23T10:00"),
            "the slot 2026-11-23T10:00:00Z has passed since the last snapshot (2026-11-23T09:00:00Z)",
        ),
        (
            "B@11-23T09:00",
            "11-23T09:59",
            None,
            "no slot has passed since the last snapshot (2026-11-23T09:00:00Z); the next slot is 2026-11-23T10:00:00Z",
        ),
        // Several missed slots make one snapshot. A late snapshot counts from its creation.
        ("B@11-23T05:00", "11-23T10:30", Some("B@11-23T10:00"), "the slot 2026-11-23T10:00:00Z has passed"),
        ("B@11-23T10:00+40m", "11-23T10:50", None, "no slot has passed since the last snapshot (2026-11-23T10:40:00Z)"),
        // Snapshots with other names do not count.
        ("B@11-23T09:00 other B_x B_C@11-23T10:00", "11-23T10:01", Some("B@11-23T10:00"), "the slot"),
        // A destroyed snapshot does not count.
        ("B@11-23T09:00 B@11-23T10:00~", "11-23T10:01", Some("B@11-23T10:00"), "the slot"),
        // A slot with a NotWritten mark counts as taken.
        (
            "B@11-23T08:00 -B@11-23T10:00",
            "11-23T10:01",
            None,
            "no slot has passed since the last snapshot (2026-11-23T10:00:00Z)",
        ),
        ("B@11-23T08:00 -B@11-23T09:00", "11-23T10:01", Some("B@11-23T10:00"), "the slot"),
        ("-B@11-23T10:00", "11-23T10:01", None, "no slot has passed"),
        ("B@11-23T09:00 -C@11-23T10:00", "11-23T10:01", Some("B@11-23T10:00"), "the slot"),
    ] {
        let world = format!("alpha:tank/foo {snapshots}");
        let expected: Vec<String> = due.iter().map(|d| format!("take {d} on alpha: tank/foo")).collect();
        assert_eq!(only("take", &one(), &world, now), expected, "{snapshots:?} at {now}");
        let reasons = take_reasons(&one(), &world, now);
        assert!(reasons[0].starts_with(reason), "{snapshots:?} at {now}: {}", reasons[0]);
    }
}

#[test]
fn missed_slot_is_not_taken_after_catch_up() {
    let daily = |catch_up: u64| {
        policy([with_policy(entry("alpha:tank/foo", &[]), |p| {
            p.creation = Some("0 1 * * *".parse().unwrap());
            p.catch_up = std::time::Duration::from_secs(catch_up);
        })])
    };
    let world = "alpha:tank/foo B@11-21T01:00";
    assert_eq!(only("take", &daily(6 * 3600), world, "11-23T07:00"), ["take B@11-23T01:00 on alpha: tank/foo"]);
    assert!(only("take", &daily(6 * 3600), world, "11-23T07:01").is_empty());
    assert_eq!(
        take_reasons(&daily(6 * 3600), world, "11-23T07:01"),
        ["the slot 2026-11-23T01:00:00Z passed more than 6h (catch_up) ago; the next slot is 2026-11-24T01:00:00Z"]
    );
    assert!(only("take", &daily(0), world, "11-23T01:01").is_empty());
    assert_eq!(only("take", &daily(0), world, "11-23T01:00").len(), 1);
    // The first snapshot is due at once, and has a current name.
    assert_eq!(
        only("take", &daily(6 * 3600), "alpha:tank/foo", "11-23T15:42"),
        ["take B@11-23T15:42 on alpha: tank/foo"]
    );
}

#[test]
fn slow_clock_causes_no_second_snapshot_of_a_slot() {
    // The agent's clock is two minutes behind the director's, so the snapshot is older than its slot.
    let mut inventory = world("alpha:tank/foo B@11-23T09:00 B@11-23T10:00");
    let dataset = inventory.hosts.values_mut().next().unwrap().datasets.values_mut().next().unwrap();
    dataset.snapshots[1].creation -= TimeDelta::minutes(2);
    let plan = decide(&one(), &inventory, utc("11-23T10:01"));
    assert_eq!(plan.takes[0].due, None);
    assert_eq!(
        plan.takes[0].reason.to_string(),
        "the snapshot for the slot 2026-11-23T10:00:00Z exists already; the next slot is 2026-11-23T11:00:00Z"
    );
    assert!(decide(&one(), &inventory, utc("11-23T11:00")).takes[0].due.is_some());
}

#[test]
fn snapshot_in_the_future_does_not_hold_back_takes() {
    // Its time in the name counts.
    let ahead = "alpha:tank/foo B@11-23T09:00 B@11-23T10:00+5h";
    assert!(only("take", &one(), ahead, "11-23T10:59").is_empty());
    assert_eq!(only("take", &one(), ahead, "11-23T11:00"), ["take B@11-23T11:00 on alpha: tank/foo"]);
    assert_eq!(
        notices(&one(), ahead, "11-23T11:00"),
        ["alpha:tank/foo has the snapshot B_2026-11-23_10:00:00, dated in the future (2026-11-23T15:00:00Z): \
          a clock is or was wrong"]
    );
    let taken = format!("{ahead} B@11-23T11:00");
    assert!(only("take", &one(), &taken, "11-23T11:30").is_empty());
    assert_eq!(notices(&one(), &taken, "11-23T11:30"), [] as [&str; 0]);
    // Clocks of two hosts differ a little.
    let close = "alpha:tank/foo B@11-23T10:57+4m";
    assert_eq!(
        take_reasons(&one(), close, "11-23T11:00"),
        ["the last snapshot is dated in the future (2026-11-23T11:01:00Z): a clock is or was wrong"]
    );
    assert!(notices(&one(), close, "11-23T11:00").is_empty());
    // If both are implausible, the snapshot before it counts.
    let wrong = "alpha:tank/foo B@11-23T09:00 B@12-31T10:00";
    assert_eq!(only("take", &one(), wrong, "11-23T10:00"), ["take B@11-23T10:00 on alpha: tank/foo"]);
    assert_eq!(only("take", &one(), "alpha:tank/foo B@12-31T10:00", "11-23T10:00").len(), 1);
}

#[test]
fn take_order_lists_datasets_of_a_pool_parents_first() {
    let both = policy([recursive(entry("alpha:tank", &[])), recursive(entry("alpha:other", &[]))]);
    let world = "
        alpha:tank
        alpha:tank/foo/deep
        alpha:tank/foo
        alpha:tank/foo-bar
        alpha:tank/new       B@11-23T10:00
        alpha:tanker
        alpha:other
    ";
    assert_eq!(
        only("take", &both, world, "11-23T10:20"),
        ["take B@11-23T10:00 on alpha: tank tank/foo tank/foo-bar tank/foo/deep", "take B@11-23T10:00 on alpha: other"]
    );
    // A child that was created later is due at once, alone.
    let world = "
        alpha:tank       B@11-23T10:00
        alpha:tank/new
    ";
    assert_eq!(only("take", &both, world, "11-23T10:20"), ["take B@11-23T10:00 on alpha: tank/new"]);
}

#[test]
fn take_order_has_skip_if_not_written() {
    let mut inventory = world("alpha:tank/foo B@11-23T09:00");
    inventory.hosts.values_mut().next().unwrap().datasets.values_mut().next().unwrap().written = Some(0);
    let plan = decide(&one(), &inventory, utc("11-23T10:00"));
    let orders = plan.orders(&one());
    assert!(
        matches!(&orders[0], Order::Take { skip_if_not_written: true, .. }),
        "it is ordered although nothing was written: the agent decides when it carries out the order"
    );
    let always = policy([with(entry("alpha:tank/foo", &[]), |e| e.skip_if_not_written = false)]);
    let orders = decide(&always, &inventory, utc("11-23T10:00")).orders(&always);
    assert!(matches!(&orders[0], Order::Take { skip_if_not_written: false, .. }));
}

#[test]
fn slots_follow_the_time_zone_and_names_are_utc() {
    let mut berlin =
        policy([with_policy(entry("alpha:tank/foo", &[]), |p| p.creation = Some("30 2 * * *".parse().unwrap()))]);
    berlin.timezone = "Europe/Berlin".parse().unwrap();
    let world = "alpha:tank/foo B@03-28T01:30";
    // On 29 March 2026, 02:30 does not exist in Berlin.
    assert!(only("take", &berlin, world, "03-29T00:59").is_empty());
    assert_eq!(only("take", &berlin, world, "03-29T01:00"), ["take B@03-29T01:00 on alpha: tank/foo"]);
    assert!(only("take", &berlin, "alpha:tank/foo B@03-29T01:00", "03-30T00:29").is_empty());
    assert_eq!(only("take", &berlin, "alpha:tank/foo B@03-29T01:00", "03-30T00:30").len(), 1);
}

#[test]
fn policy_without_schedule_takes_nothing() {
    let others = policy([with_policy(entry("alpha:tank/foo", &[]), |p| p.creation = None)]);
    assert!(only("take", &others, "alpha:tank/foo", "11-23T10:00").is_empty());
    assert_eq!(
        take_reasons(&others, "alpha:tank/foo", "11-23T10:00"),
        ["the policy has no schedule; its snapshots are taken by other means"]
    );
}

#[test]
fn new_snapshot_decides_about_one_dataset() {
    let policy = one();
    let inventory = world("alpha:tank/foo B@11-23T09:00");
    let dataset = inventory.hosts.values().next().unwrap().datasets.values().next().unwrap();
    let decision = new_snapshot(dataset, &policy.datasets[0].policies[0], Zone::UTC, utc("11-23T10:00"));
    assert_eq!(decision.due.as_ref().map(SnapName::as_str), Some("B_2026-11-23_10:00:00"));
}
