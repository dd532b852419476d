//! Tests of the trash on pools in memory: what an order would destroy is kept for a time, and can be taken back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::sync::Arc;

use common::{ds, guids, host, local, names, order, snap};
use zsync::agent::Agent;
use zsync::cli::report::Format;
use zsync::commands::trash::render;
use zsync::fleet::trash::Way;
use zsync::model::{Action, Guid, ResponseStatus};
use zsync::sys::runtime;
use zsync::wire::{DirectorsOrder, Facts, Response};
use zsync::zfs::fake::Fake;
use zsync::zfs::{Zfs, ZfsRead};

const KEPT: &str = r#"{ "local_datasets": [ { "name": "tank", "destroy_after": "7days" } ] }"#;
/// A time that passed long ago.
const LONG_AGO: &str = "zsync:doomed:2020-01-01T00:00:00Z";

struct Host {
    zfs: Fake,
    agent: Agent<Fake>,
}

impl Host {
    fn new(own: &str) -> Self {
        let zfs = Fake::new(1);
        zfs.create(&ds("tank"));
        zfs.create(&ds("tank/data"));
        for name in ["S_1", "S_2", "S_3", "S_4"] {
            zfs.write(&ds("tank/data"), 1000);
            runtime::block_on(zfs.snapshot(&[ds("tank/data")], &snap(name))).unwrap();
        }
        let agent = Agent::new(host("alpha"), Arc::new(zfs.clone()), local(own));
        Self { zfs, agent }
    }

    fn carry_out(&self, order: &DirectorsOrder) -> (Response, Vec<Facts>) {
        common::pair::Pair::carry_out_by(&self.agent, order)
    }

    /// An order for all snapshots, in which nothing is said of other hosts.
    fn all(&self, action: Action) -> DirectorsOrder {
        let records = names(&self.zfs, "tank/data").into_iter().zip(guids(&self.zfs, "tank/data"));
        let snapshot_uuid = records.map(|(name, guid)| format!("{}:tank/data@{name}", guid.uuid())).collect();
        DirectorsOrder { snapshot_uuid, ..order(action) }
    }

    fn destroy_all(&self) -> Response {
        self.carry_out(&self.all(Action::DestroySnapshot)).0
    }

    fn holds(&self) -> Vec<String> {
        let names: Vec<_> = names(&self.zfs, "tank/data").iter().map(|name| snap(name)).collect();
        let holds = runtime::block_on(self.zfs.holds(&ds("tank/data"), &names)).unwrap();
        let word = |tag: String| tag.split(':').nth(1).unwrap_or_default().to_owned();
        holds.into_iter().map(|(name, tag)| format!("{name} {}", word(tag))).collect()
    }

    fn hold(&self, tag: &str, name: &str) {
        runtime::block_on(self.zfs.hold(tag, &ds("tank/data"), &[snap(name)])).unwrap();
    }

    /// What a director learns from a listing of the host: the guids of what is in the trash.
    fn listed_trash(&self) -> Vec<Guid> {
        let (_, facts) = self.carry_out(&order(Action::KvResync));
        let listings = facts.into_iter().filter_map(|fact| fact.listing);
        let found = listings.into_iter().find(|listing| listing.dataset == ds("tank/data")).unwrap().inventory;
        assert_eq!(found.destroy_after, Some(7 * 86_400));
        found.snapshots.iter().map(|s| s.guid).filter(|guid| found.trashed(*guid).is_some()).collect()
    }
}

#[test]
fn order_to_destroy_everything_destroys_nothing_at_first() {
    let alpha = Host::new(KEPT);
    let before = guids(&alpha.zfs, "tank/data");
    let (response, facts) = alpha.carry_out(&alpha.all(Action::DestroySnapshot));
    assert!(response.is_success && response.status == ResponseStatus::Done, "{response:?}");
    assert!(response.error.starts_with("moved 3 to the trash until 20"), "{response:?}");
    assert!(response.error.ends_with("tank/data@S_4 stays: it is the newest of its dataset"), "{response:?}");
    assert_eq!(guids(&alpha.zfs, "tank/data"), before);
    assert_eq!(alpha.holds(), ["S_1 doomed", "S_2 doomed", "S_3 doomed"]);
    // The director learns it from the answer, and from the next listing.
    let listing = facts.into_iter().find_map(|fact| fact.listing).unwrap();
    assert_eq!(listing.inventory.trashed.map(|trashed| trashed.len()), Some(3));
    assert_eq!(alpha.listed_trash(), before[..3]);
    // The order can be repeated as often as anybody likes.
    for _ in 0..3 {
        let response = alpha.destroy_all();
        assert_eq!((response.is_success, response.status), (true, ResponseStatus::NothingToDo), "{response:?}");
        assert!(response.error.contains("tank/data@S_1 stays: it is in the trash until 20"), "{response:?}");
    }
    assert_eq!(guids(&alpha.zfs, "tank/data"), before);
    assert_eq!(alpha.holds().len(), 3);
}

#[test]
fn order_destroys_what_has_been_in_the_trash_for_long_enough() {
    let alpha = Host::new(KEPT);
    alpha.hold(LONG_AGO, "S_1");
    alpha.hold(LONG_AGO, "S_2");
    alpha.hold("by-hand", "S_2");
    alpha.hold("zsync:doomed:9999-01-01T00:00:00Z", "S_3");
    let (response, facts) = alpha.carry_out(&alpha.all(Action::DestroySnapshot));
    assert!(response.is_success && response.error.starts_with("destroyed 1; "), "{response:?}");
    assert!(response.error.contains("tank/data@S_2 stays: it is held (by-hand)"), "{response:?}");
    assert!(response.error.contains("tank/data@S_3 stays: it is in the trash until "), "{response:?}");
    assert_eq!(names(&alpha.zfs, "tank/data"), ["S_2", "S_3", "S_4"]);
    assert_eq!(facts.iter().map(|fact| fact.destroyed.len()).sum::<usize>(), 1);
}

#[test]
fn snapshot_that_two_orders_moved_to_the_trash_leaves_it_like_any_other() {
    let alpha = Host::new(KEPT);
    alpha.hold(LONG_AGO, "S_1");
    alpha.hold("zsync:doomed:2020-01-01T00:00:01Z", "S_1");
    // The director sees one hold, so it orders to destroy the snapshot when the time has passed.
    let (_, facts) = alpha.carry_out(&order(Action::KvResync));
    let listings = facts.into_iter().filter_map(|fact| fact.listing);
    let found = listings.into_iter().find(|listing| listing.dataset == ds("tank/data")).unwrap().inventory;
    assert_eq!(found.other_holds(&found.snapshots[0]), 0, "{found:?}");
    let response = alpha.destroy_all();
    assert!(response.error.starts_with("destroyed 1; moved 2 to the trash"), "{response:?}");
    assert_eq!(names(&alpha.zfs, "tank/data"), ["S_2", "S_3", "S_4"]);
    // A hold of somebody else counts all the same.
    alpha.hold(LONG_AGO, "S_3");
    alpha.hold("by-hand", "S_3");
    let response = alpha.destroy_all();
    assert!(response.error.contains("tank/data@S_3 stays"), "{response:?}");
}

#[test]
fn base_of_a_transfer_stays_in_the_trash_with_the_time_that_it_had() {
    let alpha = Host::new(KEPT);
    alpha.hold(LONG_AGO, "S_1");
    alpha.hold(LONG_AGO, "S_2");
    // A clone was made behind the director's back.
    runtime::block_on(alpha.zfs.make_clone(&ds("tank/data"), &snap("S_2"), &ds("tank/clone"), &[])).unwrap();
    let base = |guid: Guid| {
        serde_json::from_value(serde_json::json!({ "Host": "beta", "Dataset": "pool/copy", "Guid": guid })).unwrap()
    };
    let first = guids(&alpha.zfs, "tank/data")[0];
    let order = DirectorsOrder { keep_common_with: vec![base(first)], ..alpha.all(Action::DestroySnapshot) };
    let (response, _) = alpha.carry_out(&order);
    assert!(response.error.contains("tank/data@S_1 stays: it is the newest in common with beta"), "{response:?}");
    assert!(response.error.contains("tank/data@S_2 stays: it has clones"), "{response:?}");
    assert_eq!(names(&alpha.zfs, "tank/data").len(), 4);
    let since = runtime::block_on(alpha.zfs.holds(&ds("tank/data"), &[snap("S_1"), snap("S_2")])).unwrap();
    assert!(since.len() == 2 && since.iter().all(|(_, tag)| tag == LONG_AGO), "{since:?}");
}

#[test]
fn keep_and_a_missing_key_protect_what_is_in_the_trash() {
    for own in [
        r#"{ "local_datasets": [ { "name": "tank", "destroy_after": "7days", "keep": ["all in last 100 years"] } ] }"#,
        r#"{ "local_datasets": [ { "name": "tank" } ] }"#,
    ] {
        let alpha = Host::new(own);
        alpha.hold(LONG_AGO, "S_1");
        let response = alpha.carry_out(&alpha.all(Action::DestroySnapshot)).0;
        assert!(response.is_success && response.error.contains("tank/data@S_1 stays: "), "{response:?}");
        assert_eq!(names(&alpha.zfs, "tank/data")[0], "S_1");
    }
}

#[test]
fn estimate_says_that_the_trash_frees_nothing() {
    let alpha = Host::new(KEPT);
    let (response, _) = alpha.carry_out(&alpha.all(Action::EstimateDestroy));
    assert_eq!(response.estimate, Some(0), "{response:?}");
    assert!(response.error.contains("tank/data: 3 would go to the trash first"), "{response:?}");
    assert!(alpha.holds().is_empty());
}

#[test]
fn copy_with_a_trash_is_not_rolled_back_past_a_snapshot() {
    let pair = common::pair::Pair::with_destination(
        r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true, "append_only": false, "rollback": true,
             "destroy_after": "7days" } ] }"#,
    );
    let (first, second) = (pair.take("S_1"), pair.take("S_2"));
    assert!(pair.send(second).is_success);
    let data = ds("tank/data");
    pair.alpha.destroy_by_hand(&data, &[snap("S_2")]);
    let cursors = pair.alpha.dataset(&data).unwrap().bookmarks;
    cursors.iter().for_each(|cursor| runtime::block_on(pair.alpha.destroy_bookmark(&data, &cursor.name)).unwrap());
    let third = pair.take("S_3");
    let all = |guid| DirectorsOrder { rollback_if_needed: true, rollback_may_destroy: true, ..pair.send_order(guid) };
    let (response, _) = pair.carry_out(&all(third));
    assert!(!response.is_success && response.message().contains("\"destroy_after\" in local.json"), "{response:?}");
    assert_eq!(pair.copy(), [first, second]);
}

#[test]
fn snapshot_taken_back_stays_whatever_is_ordered_until_its_hold_is_released() {
    let alpha = Host::new(KEPT);
    assert!(alpha.destroy_all().is_success);
    let all = alpha.all(Action::UndeleteSnapshot);
    let undelete = DirectorsOrder { snapshot_uuid: vec![all.snapshot_uuid[0].clone()], ..all.clone() };
    let (response, facts) = alpha.carry_out(&undelete);
    assert_eq!((response.is_success, response.error.as_str()), (true, "taken back from the trash: 1"), "{response:?}");
    assert_eq!(facts.into_iter().find_map(|fact| fact.listing).unwrap().inventory.trashed.map(|t| t.len()), Some(2));
    assert_eq!(alpha.holds(), ["S_1 undeleted", "S_2 doomed", "S_3 doomed"]);
    let response = alpha.destroy_all();
    assert!(response.error.contains("tank/data@S_1 stays: it is held (zsync:undeleted)"), "{response:?}");
    // What is not in the trash is an error, and does not stop the others.
    let (response, _) = alpha.carry_out(&all);
    assert!(!response.is_success && response.error.contains("2 of the snapshots are not in the trash"), "{response:?}");
    assert!(response.error.contains("taken back from the trash: 2"), "{response:?}");
    assert_eq!(alpha.holds(), ["S_1 undeleted", "S_2 undeleted", "S_3 undeleted"]);
    runtime::block_on(alpha.zfs.release("zsync:undeleted", &ds("tank/data"), &[snap("S_1")])).unwrap();
    assert!(alpha.destroy_all().error.starts_with("moved 1 to the trash"));
}

#[test]
fn trash_is_listed_and_emptied_on_its_host_only() {
    let alpha = Host::new(KEPT);
    assert!(alpha.destroy_all().is_success);
    alpha.hold("by-hand", "S_2");
    let name = host("alpha");
    let way = Way::Own(Arc::new(alpha.agent));
    let (found, problems) = runtime::block_on(way.list(&name)).unwrap();
    assert!(problems.is_empty());
    let listed: Vec<String> = found.iter().map(|entry| entry.snapshot.to_string()).collect();
    assert_eq!(listed, ["S_1", "S_2", "S_3"]);
    assert!(found.iter().all(|entry| entry.until == Some(entry.since + chrono::TimeDelta::days(7))));
    let table = render(&name, &found, Format::Table);
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    assert!(table.ends_with("3 snapshots in the trash of alpha (at least 0B)\n"), "{table}");
    let (remark, problems) = runtime::block_on(way.empty(&found)).unwrap();
    assert_eq!(remark, "destroyed 2; tank/data@S_2 stays: it is held (by-hand)");
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(names(&alpha.zfs, "tank/data"), ["S_2", "S_4"]);
    assert_eq!(render(&name, &[], Format::Table), "nothing is in the trash of alpha\n");
}
