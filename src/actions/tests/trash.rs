//! Tests of snapshots that are in the trash.

use super::*;

const NOW: &str = "11-23T12:00";

fn one() -> Policy {
    policy([entry("alpha:tank/foo", &[])])
}

#[test]
fn snapshot_goes_to_the_trash_once_and_is_destroyed_when_its_time_has_passed() {
    let new = "alpha:tank/foo trash=7days B@11-20T10:00 B@11-23T11:30";
    assert_eq!(only("destroy", &one(), new, NOW), ["destroy alpha:tank/foo: B@11-20T10:00"]);
    let in_trash = "alpha:tank/foo trash=7days B@11-20T10:00* B@11-23T11:30";
    assert!(only("destroy", &one(), in_trash, NOW).is_empty());
    assert!(only("destroy", &one(), in_trash, "11-27T09:59").is_empty());
    assert_eq!(only("destroy", &one(), in_trash, "11-27T10:00"), ["destroy alpha:tank/foo: B@11-20T10:00"]);
    // Without the key, nobody knows for how long.
    let no_key = "alpha:tank/foo B@11-20T10:00* B@11-23T11:30";
    assert!(only("destroy", &one(), no_key, "12-27T10:00").is_empty());
    // Somebody else holds it as well.
    let held = in_trash.replace("10:00*", "10:00!*");
    assert!(only("destroy", &one(), &held, "11-27T10:00").is_empty());
}

#[test]
fn snapshot_in_the_trash_takes_no_place_in_a_rule_and_is_not_the_newest() {
    // The rule keeps one snapshot of the last day.
    let world = "alpha:tank/foo trash=7days B@11-23T10:00 B@11-23T10:30 B@11-23T11:30*";
    let plan = decide(&one(), &self::world(world), utc(NOW));
    assert_eq!(
        render(&plan.orders(&one())),
        ["take B@11-23T12:00 on alpha: tank/foo", "destroy alpha:tank/foo: B@11-23T10:00"]
    );
}

#[test]
fn only_common_snapshot_stays_in_the_trash_although_its_time_has_passed() {
    let policy = policy([entry("alpha:tank/foo", &["beta:usb/copy"])]);
    let copy = "beta:usb/copy B@11-10T10:00";
    let source = "alpha:tank/foo trash=7days B@11-10T10:00* B@11-23T11:30";
    let all = only("", &policy, &format!("{source}\n{copy}"), "11-23T11:45");
    assert_eq!(all, ["send alpha:tank/foo to beta:usb/copy: B@11-23T11:30"], "it is the base");
    let copy = format!("{copy} B@11-23T11:30");
    let destroyed = only("destroy alpha", &policy, &format!("{source}\n{copy}"), "11-23T11:45");
    assert_eq!(destroyed, ["destroy alpha:tank/foo: B@11-10T10:00"]);
}

#[test]
fn what_leaves_the_trash_does_not_count_as_destroyed_in_a_pass() {
    let snapshots: String = (0..20).map(|n| format!("B@11-01T10:{n:02}* ")).collect();
    let policy = Policy { max_destroys: 50, ..one() };
    let text = format!("alpha:tank/foo trash=7days {snapshots} B@11-23T11:30");
    let plan = decide(&policy, &world(&text), utc(NOW));
    assert_eq!((plan.prunes[0].destroy.len(), plan.prunes[0].held_back), (20, None));
    let plan = decide(&policy, &world(&text.replace('*', "")), utc(NOW));
    assert_eq!((plan.prunes[0].destroy.len(), plan.prunes[0].held_back), (20, Some(crate::actions::HeldBack::TooMany)));
}

#[test]
fn prediction_moves_to_the_trash_first_and_destroys_then() {
    let mut inventory = world("alpha:tank/foo trash=2days B@11-20T10:00 B@11-23T11:30");
    let (host, dataset) = ("alpha".parse().unwrap(), "tank/foo".parse().unwrap());
    let mut pass = |at: &str| {
        let orders = decide(&one(), &inventory, utc(at)).orders(&one());
        let destroys: Vec<Order> = orders.into_iter().filter(|o| matches!(o, Order::Destroy { .. })).collect();
        predict(&mut inventory, &destroys, utc(at));
        let found = inventory.dataset(&host, &dataset).unwrap();
        (destroys.len(), found.snapshots.len(), found.trashed.as_ref().unwrap().len())
    };
    assert_eq!(pass("11-23T11:45"), (1, 2, 1));
    assert_eq!(pass("11-23T11:46"), (0, 2, 1));
    assert_eq!(pass("11-25T11:45"), (1, 1, 0));
}

#[test]
fn one_reminder_says_how_much_is_in_the_trash_of_a_host() {
    let known = world("alpha:tank/foo trash=7days B@11-20T10:00* B@11-21T10:00* B@11-23T11:30");
    let notices = decide(&one(), &known, utc(NOW)).notices;
    let reminders: Vec<String> = notices.iter().filter(|n| n.kind.is_reminder()).map(ToString::to_string).collect();
    assert_eq!(reminders, ["alpha has 2 snapshots in the trash (at least 0 MiB); see zsync trash alpha"]);
}

#[test]
fn reason_of_a_destroy_names_the_trash() {
    let reason = |words: &str, now: &str| {
        let plan = decide(&one(), &world(&format!("alpha:tank/foo {words} B@11-23T11:30")), utc(now));
        plan.orders(&one()).into_iter().find_map(|order| match order {
            Order::Destroy { reason, bytes, .. } => Some(format!("{reason}, {bytes}")),
            _ => None,
        })
    };
    let rule = "no rule keeps them (1 in last day)";
    assert_eq!(reason("B@11-20T10:00", NOW), Some(format!("{rule}, 1000")));
    assert_eq!(
        reason("trash=7days B@11-20T10:00", NOW),
        Some(format!("{rule}; they stay in the trash for 7days first, 0"))
    );
    let passed = reason("trash=2days B@11-20T10:00*", NOW);
    assert_eq!(passed, Some(format!("{rule}; they have been in the trash for 2days, 1000")));
    let both = reason("trash=2days B@11-20T10:00* B@11-20T11:00", NOW);
    assert_eq!(both, Some(format!("{rule}; 1 have been in the trash for 2days, 1 stay there first, 1000")));
}
