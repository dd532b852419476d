use super::*;
use crate::actions::divergence::Allowed;

fn one() -> Policy {
    policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| p.creation = None)])
}

#[test]
fn asap_sends_newest_snapshot_that_destination_lacks() {
    for (source, destination, due, reason) in [
        (
            "B@11-23T09:00 B@11-23T10:00",
            "beta:tank/copy B@11-23T09:00",
            Some("B@11-23T10:00"),
            "the destination lacks the newest snapshot; the newest common one is B_2026-11-23_09:00:00",
        ),
        (
            "B@11-23T09:00",
            "beta:tank/copy B@11-23T09:00",
            None,
            "the destination has the newest snapshot, B_2026-11-23_09:00:00",
        ),
        ("B@11-23T09:00", "beta:tank/copy B@11-23T09:00>renamed", None, "the destination has the newest snapshot"),
        ("B@11-23T09:00", "beta", Some("B@11-23T09:00"), "the dataset does not exist on the destination yet"),
        (
            "B@11-23T09:00",
            "beta:tank/copy",
            Some("B@11-23T09:00"),
            "the destination lacks the newest snapshot and has none in common",
        ),
        (
            "B@11-23T09:00",
            "beta?",
            Some("B@11-23T09:00"),
            "the destination could not be listed; the agent will compare both sides",
        ),
        (
            "B@11-23T09:00",
            "",
            Some("B@11-23T09:00"),
            "the destination could not be listed; the agent will compare both sides",
        ),
        ("other", "beta:tank/copy", None, "there is no snapshot of this policy yet"),
        ("", "beta", None, "there is no snapshot of this policy yet"),
        // The same name is not the same snapshot.
        (
            "B@11-23T09:00",
            "beta:tank/copy B@11-23T09:00=2",
            Some("B@11-23T09:00"),
            "the destination lacks the newest snapshot",
        ),
        // A destroyed snapshot neither counts as present nor is sent.
        ("B@11-23T08:00 B@11-23T09:00~", "beta:tank/copy B@11-23T08:00", None, "the destination has the newest"),
        (
            "B@11-23T08:00 B@11-23T09:00",
            "beta:tank/copy B@11-23T08:00 B@11-23T09:00~",
            Some("B@11-23T09:00"),
            "the destination lacks",
        ),
        // A bookmark is a base. Snapshots of the destination's own do not matter: the agent finds out about them.
        (
            "#B@11-23T08:00 B@11-23T09:00",
            "beta:tank/copy B@11-23T08:00",
            Some("B@11-23T09:00"),
            "the destination lacks the newest snapshot; the newest common one is B_2026-11-23_08:00:00",
        ),
        (
            "B@11-23T08:00 B@11-23T09:00",
            "beta:tank/copy B@11-23T08:00 own",
            Some("B@11-23T09:00"),
            "the destination lacks the newest snapshot",
        ),
    ] {
        let world = format!("alpha:tank/foo {source}\n{destination}");
        let expected: Vec<String> = due.iter().map(|d| format!("send alpha:tank/foo to beta:tank/copy: {d}")).collect();
        assert_eq!(only("send", &one(), &world, "11-23T12:00"), expected, "{world}");
        let reasons = send_reasons(&one(), &world, "11-23T12:00");
        assert!(reasons[0].starts_with(reason), "{world}: {}", reasons[0]);
    }
}

#[test]
fn absent_destination_is_new_or_gone() {
    let mut inventory = world("alpha:tank/foo B@11-23T09:00\nbeta");
    let reason = |inventory: &Inventory| decide(&one(), inventory, utc("11-23T12:00")).sends[0].reason.to_string();
    assert_eq!(reason(&inventory), "the dataset does not exist on the destination yet");
    let (source, guid) = (place("alpha:tank/foo"), Guid(5));
    let name = tags::cursor(&source.dataset, &place("beta:tank/copy"), guid, None).unwrap();
    let cursor = Bookmark { name, guid, createtxg: 1, creation: utc("11-22T09:00") };
    let datasets = &mut inventory.hosts.get_mut(&source.host).unwrap().datasets;
    datasets.get_mut(&source.dataset).unwrap().bookmarks.push(cursor);
    assert!(reason(&inventory).starts_with("the destination no longer has the dataset"), "{}", reason(&inventory));
}

#[test]
fn cron_sync_policy_sends_after_its_slot() {
    let nightly = policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| {
        p.sync_policy = "0 1 * * *".parse().unwrap();
    })]);
    let world = "alpha:tank/foo B@11-22T23:00 B@11-23T00:00\nbeta:tank/copy B@11-22T23:00";
    assert!(only("send", &nightly, world, "11-23T00:59").is_empty());
    assert_eq!(
        send_reasons(&nightly, world, "11-23T00:59"),
        ["no slot of sync_policy has passed since the newest snapshot; the next slot is 2026-11-23T01:00:00Z"]
    );
    // It is due from the slot on until the destination has it, however late.
    for now in ["11-23T01:00", "11-23T09:00", "11-25T00:00"] {
        assert_eq!(
            only("send", &nightly, world, now),
            ["send alpha:tank/foo to beta:tank/copy: B@11-23T00:00"],
            "{now}"
        );
    }
    // The reason names the slot, and since when the snapshot has been waiting.
    let plan = decide(&nightly, &crate::actions::tests::world(world), utc("11-23T09:00"));
    assert_eq!(
        plan.sends[0].why(plan.at),
        "the destination lacks the newest snapshot; the newest common one is B_2026-11-22_23:00:00; \
         the slot 2026-11-23T01:00:00Z has passed; waiting since 2026-11-23T00:00:00Z"
    );
    // A snapshot taken after the slot waits for the next slot.
    let world = "alpha:tank/foo B@11-22T23:00 B@11-23T02:00\nbeta:tank/copy B@11-22T23:00";
    assert!(only("send", &nightly, world, "11-23T03:00").is_empty());
    // A snapshot taken exactly at the slot does not wait.
    let world = "alpha:tank/foo B@11-22T23:00 B@11-23T01:00\nbeta";
    assert_eq!(only("send", &nightly, world, "11-23T01:00").len(), 1);
}

#[test]
fn due_take_does_not_delay_sends_and_destroys() {
    let all = policy([entry("alpha:tank/foo", &["beta:tank/copy"])]);
    let world = "
        alpha:tank/foo  B@11-23T07:00 B@11-23T08:00 B@11-23T09:00
        beta:tank/copy  B@11-23T07:00 B@11-23T08:00
    ";
    assert_eq!(
        orders(&all, world, "11-23T10:00"),
        [
            "take B@11-23T10:00 on alpha: tank/foo",
            "send alpha:tank/foo to beta:tank/copy: B@11-23T09:00",
            "destroy alpha:tank/foo: B@11-23T07:00",
            "destroy beta:tank/copy: B@11-23T07:00",
        ]
    );
}

#[test]
fn children_keep_their_relative_name_below_the_target() {
    let all = policy([recursive(with_policy(entry("alpha:tank/foo", &["beta:tank/copy", "gamma:pool"]), |p| {
        p.creation = None;
    }))]);
    let world = "
        alpha:tank/foo      B@11-23T09:00
        alpha:tank/foo/a/b  B@11-23T09:00
        alpha:tank/foo-bar  B@11-23T09:00
        beta:tank/copy/a/b  B@11-23T09:00
        gamma
    ";
    assert_eq!(
        only("send", &all, world, "11-23T10:00"),
        [
            "send alpha:tank/foo to beta:tank/copy: B@11-23T09:00",
            "send alpha:tank/foo to gamma:pool: B@11-23T09:00",
            "send alpha:tank/foo/a/b to gamma:pool/a/b: B@11-23T09:00",
        ]
    );
}

#[test]
fn send_order_has_time_of_oldest_unsent_snapshot() {
    let oldest = |destination: &str| {
        let world_text = format!("alpha:tank/foo B@11-22T08:00 x B@11-22T09:00 B@11-23T09:00\n{destination}");
        let plan = decide(&one(), &world(&world_text), utc("11-23T12:00"));
        let orders = plan.orders(&one());
        let sent = orders.iter().find_map(|o| match o {
            Order::Send { oldest_unsent, allowed: Allowed { rollback: false, .. }, .. } => Some(*oldest_unsent),
            _ => None,
        });
        sent.unwrap()
    };
    assert_eq!(oldest("beta:tank/copy B@11-22T08:00"), utc("11-22T09:00"));
    assert_eq!(oldest("beta:tank/copy B@11-22T08:00 x"), utc("11-22T09:00"));
    assert_eq!(oldest("beta"), utc("11-22T08:00"));
    assert_eq!(oldest("beta?"), utc("11-23T09:00"));
}

#[test]
fn send_decides_about_one_dataset() {
    let policy = one();
    let inventory = world("alpha:tank/foo B@11-23T09:00\nbeta:tank/copy B@11-23T09:00");
    let at = |text: &str| inventory.dataset(&place(text).host, &place(text).dataset).unwrap();
    let ask = |known| send(at("alpha:tank/foo"), known, &policy.datasets[0].policies[0], Zone::UTC, utc("11-23T10:00"));
    assert!(ask(KnownDataset::Present(at("beta:tank/copy"))).due.is_none());
    assert_eq!(ask(KnownDataset::Absent).due.map(|d| d.guid), Some(at("alpha:tank/foo").snapshots[0].guid));
    assert_eq!(ask(KnownDataset::Unlisted).reason, SendReason::DestinationUnknown);
}
