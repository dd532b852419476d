//! Runs an agent and a slave over loopback, on pools in memory, and checks the result of an order on both sides.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use common::pair::Pair;
use common::{ds, guids, host, local, order, snap};
use zsync::agent::Agent;
use zsync::model::{Action, Counter, Guid, OrderId, ResponseStatus};
use zsync::sys::runtime;
use zsync::wire::{CommonBase, DirectorsOrder, ExpectedSnapshot, Forgotten, RenamedFrom, Response};
use zsync::zfs::fake::Fake;
use zsync::zfs::{ErrorKind, Zfs, ZfsRead};

#[test]
fn first_copy_brings_whole_history_and_leaves_one_hold_and_one_cursor() {
    let pair = Pair::new();
    let (first, second) = (pair.take("S_1"), pair.take("S_2"));
    let response = pair.send(second);
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert!(response.bytes > 0);
    assert_eq!(pair.copy(), [first, second]);
    assert_eq!(pair.beta.tags(&ds("pool/copy"), &snap("S_2")), ["zsync:from:alpha"]);
    assert!(pair.beta.tags(&ds("pool/copy"), &snap("S_1")).is_empty());
    assert!(pair.alpha.tags(&ds("tank/data"), &snap("S_2")).is_empty());
    let cursors: Vec<Guid> = pair.alpha.dataset(&ds("tank/data")).unwrap().bookmarks.iter().map(|b| b.guid).collect();
    assert_eq!(cursors, [second]);
}

#[test]
fn estimate_returns_size_of_order_and_changes_nothing() {
    let pair = Pair::new();
    let (first, second, third) = (pair.take("S_1"), pair.take("S_2"), pair.take("S_3"));
    runtime::block_on(pair.alpha.hold("mine", &ds("tank/data"), &[snap("S_2")])).unwrap();
    let before = (pair.alpha.calls(), pair.beta.calls(), pair.source());
    let send = |has: Option<Guid>, of: Guid| {
        let common = |guid| CommonBase { host: "beta".parse().unwrap(), dataset: ds("pool/copy"), guid, awaits: false };
        let keep_common_with = has.map(common).into_iter().collect();
        let order = DirectorsOrder { action: Action::EstimateSend, keep_common_with, ..pair.send_order(of) };
        let (response, facts) = pair.carry_out(&order);
        assert!(response.is_success && facts.is_empty(), "{response:?} {facts:?}");
        response.estimate
    };
    // Each snapshot has 1000 bytes. The first one also has the data with which the dataset was created.
    let whole = send(None, first).unwrap();
    assert!(whole >= 1000);
    assert_eq!(send(None, third), Some(whole + 2000));
    assert_eq!(send(Some(first), third), Some(2000));
    assert_eq!(send(Some(third), third), Some(0));

    let destroy = |guids: &[Guid], dataset: &str| {
        let snapshot_uuid = guids.iter().map(|guid| guid.uuid().to_string()).collect();
        let dest_dataset = dataset.to_owned();
        pair.carry_out(&DirectorsOrder { snapshot_uuid, dest_dataset, ..order(Action::EstimateDestroy) }).0
    };
    let response = destroy(&[first, second, third], "tank/data");
    assert_eq!((response.is_success, response.estimate), (true, Some(whole)), "{response:?}");
    assert!(response.error.contains("tank/data@S_2 stays: it is held"), "{}", response.error);
    assert!(response.error.contains("tank/data@S_3 stays: it is the newest of its dataset"), "{}", response.error);
    // An estimate is refused if local.json does not permit the order itself.
    for refused in [
        destroy(&[first], "tank"),
        pair.carry_out(&DirectorsOrder {
            action: Action::EstimateSend,
            dataset: Some(ds("tank")),
            ..pair.send_order(first)
        })
        .0,
    ] {
        assert_eq!((refused.is_success, refused.status), (false, ResponseStatus::Refused), "{refused:?}");
        assert_eq!(refused.estimate, None);
    }
    assert_eq!((pair.alpha.calls(), pair.beta.calls(), pair.source()), before);
}

#[test]
fn increment_moves_hold_and_cursor() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.send(first);
    let (_, third) = (pair.take("S_2"), pair.take("S_3"));
    let response = pair.send(third);
    assert_eq!(response.status, ResponseStatus::Incremental, "{response:?}");
    assert_eq!(pair.copy(), pair.source());
    assert!(pair.beta.tags(&ds("pool/copy"), &snap("S_1")).is_empty());
    assert_eq!(pair.beta.tags(&ds("pool/copy"), &snap("S_3")), ["zsync:from:alpha"]);
    let cursors: Vec<Guid> = pair.alpha.dataset(&ds("tank/data")).unwrap().bookmarks.iter().map(|b| b.guid).collect();
    assert_eq!(cursors, [third]);
    assert_eq!(pair.send(third).status, ResponseStatus::NothingToDo);
}

#[test]
fn send_continues_from_cursor_if_common_snapshot_was_pruned() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.send(first);
    pair.alpha.destroy_by_hand(&ds("tank/data"), &[snap("S_1")]);
    let (second, third) = (pair.take("S_2"), pair.take("S_3"));
    let response = pair.send(third);
    assert_eq!(response.status, ResponseStatus::Incremental, "{response:?}");
    assert_eq!(pair.copy(), [first, second, third]);
}

#[test]
fn failed_receive_changes_nothing_and_next_order_succeeds() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.beta.fail_next("receive", ErrorKind::NoSpace, "cannot receive new filesystem stream: out of space");
    let response = pair.send(first);
    assert_eq!((response.is_success, response.status), (false, ResponseStatus::Zerror));
    assert!(response.error.contains("out of space"), "{}", response.error);
    assert!(pair.copy().is_empty());
    assert!(pair.send(first).is_success);
    assert_eq!(pair.copy(), [first]);
    assert!(pair.alpha.tags(&ds("tank/data"), &snap("S_1")).is_empty(), "the hold of the first attempt is released");
}

#[test]
fn diverged_destination_is_left_alone_and_reported() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.send(first);
    runtime::block_on(pair.beta.snapshot(&[ds("pool/copy")], &snap("by-hand"))).unwrap();
    let second = pair.take("S_2");
    let before = pair.copy();
    for rollback in [false, true] {
        let order = DirectorsOrder { rollback_if_needed: rollback, ..pair.send_order(second) };
        let (response, _) = pair.carry_out(&order);
        assert!(!response.is_success);
        assert!(response.error.contains("by-hand") && response.error.contains("S_2"), "{}", response.error);
        assert_eq!(pair.copy(), before);
    }
}

#[test]
fn written_destination_is_rolled_back_only_if_order_allows_it() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.send(first);
    pair.beta.write(&ds("pool/copy"), 10);
    let second = pair.take("S_2");
    let refused = pair.send(second);
    assert_eq!((refused.is_success, refused.status), (false, ResponseStatus::WasWritten));
    let (allowed, _) = pair.carry_out(&DirectorsOrder { rollback_if_needed: true, ..pair.send_order(second) });
    assert_eq!((allowed.is_success, allowed.status), (true, ResponseStatus::Incremental), "{allowed:?}");
    assert_eq!(pair.copy(), [first, second]);
}

#[test]
fn append_only_destination_loses_nothing() {
    let open = r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true } ] }"#;
    let refused = |response: &Response| {
        assert_eq!((response.is_success, response.status), (false, ResponseStatus::Refused), "{response:?}");
        assert!(response.message().contains("set \"append_only\": false"), "{response:?}");
    };
    let pair = Pair::with_destination(open);
    let first = pair.take("S_1");
    assert!(pair.send(first).is_success);
    let second = pair.take("S_2");
    assert!(pair.send(second).is_success);
    // The destination was written to: it is not rolled back.
    pair.beta.write(&ds("pool/copy"), 10);
    let third = pair.take("S_3");
    let rollback = |guid| DirectorsOrder { rollback_if_needed: true, ..pair.send_order(guid) };
    refused(&pair.carry_out(&rollback(third)).0);
    // No order may prune it.
    let beta = Agent::new("beta".parse().unwrap(), Arc::new(pair.beta.clone()), local(open));
    let record = format!("{}:pool/copy@S_1", first.uuid());
    let destroy = DirectorsOrder { snapshot_uuid: vec![record], ..order(Action::DestroySnapshot) };
    let (facts, _received) = runtime::channel::unbounded();
    refused(&runtime::block_on(common::carry_out(&beta, &destroy, facts, Counter::default())));
    assert_eq!(pair.copy(), [first, second]);
    // A destination without snapshots is not replaced.
    let pair = Pair::with_destination(open);
    pair.beta.create(&ds("pool/copy"));
    let order = DirectorsOrder { rollback_if_needed: true, ..pair.send_order(pair.take("S_1")) };
    refused(&pair.carry_out(&order).0);
    assert!(pair.copy().is_empty());
}

#[test]
fn prunable_destination_is_neither_rolled_back_nor_replaced_without_rollback() {
    let pruned = r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true, "append_only": false } ] }"#;
    let refused = |response: &Response| {
        assert_eq!((response.is_success, response.status), (false, ResponseStatus::Refused), "{response:?}");
        assert!(response.message().contains("set \"rollback\": true in"), "{response:?}");
    };
    let pair = Pair::with_destination(pruned);
    let (first, second) = (pair.take("S_1"), pair.take("S_2"));
    assert!(pair.send(second).is_success);
    // The source says that the policy permits everything, and asks for the loss of the second snapshot.
    let data = ds("tank/data");
    pair.alpha.destroy_by_hand(&data, &[snap("S_2")]);
    let cursors = pair.alpha.dataset(&data).unwrap().bookmarks;
    cursors.iter().for_each(|cursor| runtime::block_on(pair.alpha.destroy_bookmark(&data, &cursor.name)).unwrap());
    let third = pair.take("S_3");
    let all = |guid| DirectorsOrder { rollback_if_needed: true, rollback_may_destroy: true, ..pair.send_order(guid) };
    refused(&pair.carry_out(&all(third)).0);
    assert_eq!(pair.copy(), [first, second]);
    let pair = Pair::with_destination(pruned);
    pair.beta.create(&ds("pool/copy"));
    let first = pair.take("S_1");
    let order = DirectorsOrder { rollback_if_needed: true, ..pair.send_order(first) };
    refused(&pair.carry_out(&order).0);
    assert!(pair.copy().is_empty());
}

#[test]
fn dataset_is_sent_only_to_hosts_that_its_own_host_lists() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let to = |destinations: &str| {
        let own = format!(
            r#"{{ "local_datasets": [ {{ "name": "tank/data", "destinations": [{destinations}] }}, {{ "name": "tank/copy", "slave": true }} ] }}"#
        );
        Agent::new("alpha".parse().unwrap(), Arc::new(pair.alpha.clone()), local(&own))
    };
    let send = |agent: &Agent<_>, order: &DirectorsOrder| {
        let (facts, _received) = runtime::channel::unbounded();
        runtime::block_on(common::carry_out(agent, order, facts, Counter::default()))
    };
    let here =
        DirectorsOrder { destination: "alpha".into(), dest_dataset: "tank/copy".into(), ..pair.send_order(first) };
    let refused = |response: Response, host: &str| {
        assert_eq!((response.is_success, response.status), (false, ResponseStatus::Refused), "{response:?}");
        assert!(response.message().contains(&format!("add \"{host}\" to \"destinations\"")), "{response:?}");
    };
    let named = |order: DirectorsOrder| DirectorsOrder { dataset: Some(ds("tank/data")), ..order };
    refused(send(&to(r#""gamma""#), &named(pair.send_order(first))), "beta");
    let estimate = DirectorsOrder { action: Action::EstimateSend, ..named(pair.send_order(first)) };
    refused(send(&to(r#""gamma""#), &estimate), "beta");
    refused(send(&to(r#""beta""#), &named(here.clone())), "alpha");
    assert!(pair.copy().is_empty() && guids(&pair.alpha, "tank/copy").is_empty());
    assert!(send(&to(r#""beta""#), &named(pair.send_order(first))).is_success);
    assert!(send(&to(r#""alpha""#), &named(here)).is_success);
}

#[test]
fn snapshot_of_receiving_dataset_is_taken_only_with_permission() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    assert!(pair.send(first).is_success);
    let take =
        DirectorsOrder { snapshot_name: "S_2".into(), dest_dataset: "pool/copy".into(), ..order(Action::TakeSnapshot) };
    let on_beta = |own: &str| {
        let agent = Agent::new("beta".parse().unwrap(), Arc::new(pair.beta.clone()), local(own));
        let (facts, _received) = runtime::channel::unbounded();
        runtime::block_on(common::carry_out(&agent, &take, facts, Counter::default()))
    };
    let response = on_beta(r#"{ "local_datasets": [ { "name": "pool", "slave": true, "append_only": false } ] }"#);
    assert_eq!((response.is_success, response.status), (false, ResponseStatus::Refused), "{response:?}");
    assert!(response.message().contains("with \"take\": true"), "{response:?}");
    assert_eq!(pair.copy(), [first]);
    assert!(on_beta(r#"{ "local_datasets": [ { "name": "pool", "slave": true, "take": true } ] }"#).is_success);
}

#[test]
fn dataset_without_snapshots_is_not_overwritten() {
    let pair = Pair::new();
    pair.beta.create(&ds("pool/copy"));
    let first = pair.take("S_1");
    let response = pair.send(first);
    assert_eq!((response.is_success, response.status), (false, ResponseStatus::NotEmpty));
    assert!(response.error.contains("may hold data"), "{}", response.error);
    assert!(pair.copy().is_empty());
}

#[test]
fn receive_into_closed_dataset_is_refused_with_hint() {
    for (local, words) in [
        (r#"{ "local_datasets": [ { "name": "pool/other", "slave": true } ] }"#, "is not listed"),
        (r#"{ "local_datasets": [ { "name": "pool/copy", "slave": false } ] }"#, "not open for receiving"),
        (r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true, "enable": false } ] }"#, "is disabled"),
        (r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true, "sources": ["gamma"] } ] }"#, "alpha"),
    ] {
        let pair = Pair::with_destination(local);
        let first = pair.take("S_1");
        let response = pair.send(first);
        assert_eq!((response.is_success, response.status), (false, ResponseStatus::Refused));
        assert!(response.error.contains(words), "{}", response.error);
        assert!(pair.beta.calls().is_empty(), "{:?}", pair.beta.calls());
    }
}

#[test]
fn send_to_unreachable_slave_may_be_retried() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let order = DirectorsOrder { destination_address: Some("127.0.0.1:1".into()), ..pair.send_order(first) };
    let (response, _) = pair.carry_out(&order);
    assert_eq!((response.is_success, response.status, response.temporary), (false, ResponseStatus::Unreachable, true));
}

#[test]
fn local_copy_needs_no_slave() {
    let pair = Pair::new();
    pair.alpha.create(&ds("tank"));
    let first = pair.take("S_1");
    let order =
        DirectorsOrder { destination: "alpha".into(), dest_dataset: "tank/copy/data".into(), ..pair.send_order(first) };
    let (response, facts) = pair.carry_out(&order);
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert_eq!(guids(&pair.alpha, "tank/copy/data"), [first]);
    assert!(facts.iter().filter_map(|f| f.listing.as_ref()).any(|l| l.dataset == ds("tank/copy/data")));
}

#[test]
fn destroy_spares_held_cloned_unsent_and_newest_snapshots() {
    let pair = Pair::new();
    let guids: Vec<Guid> = (1..=6).map(|n| pair.take(&format!("S_{n}"))).collect();
    pair.send(guids[3]);
    let data = ds("tank/data");
    runtime::block_on(pair.alpha.hold("mine", &data, &[snap("S_1")])).unwrap();
    pair.alpha.clone_of(&data, &snap("S_2"));
    let records = guids.iter().enumerate().map(|(n, guid)| format!("{}:tank/data@S_{}", guid.uuid(), n + 1)).collect();
    let common = CommonBase { host: "beta".parse().unwrap(), dataset: ds("pool/copy"), guid: guids[3], awaits: true };
    let order = DirectorsOrder {
        snapshot_uuid: records,
        keep_common_with: vec![common],
        skip_if_renamed: true,
        ..order(Action::DestroySnapshot)
    };
    let (response, facts) = pair.carry_out(&order);
    assert!(response.is_success, "{response:?}");
    // S_1 is held, S_2 has a clone, beta lacks S_5, S_6 is the newest. S_4 is in common with beta, but its cursor
    // stays.
    assert_eq!(pair.source(), [guids[0], guids[1], guids[4], guids[5]], "{}", response.error);
    let reported: Vec<Guid> = facts.iter().flat_map(|f| &f.destroyed).map(|(_, guid)| *guid).collect();
    assert_eq!(reported, [guids[2], guids[3]]);
    for words in [
        "S_1 stays: it is held (mine)",
        "S_2 stays: it has clones",
        "S_5 stays: beta does not have it yet",
        "S_6 stays",
    ] {
        assert!(response.error.contains(words), "{}", response.error);
    }
}

#[test]
fn destroy_spares_renamed_snapshot() {
    let pair = Pair::new();
    let (first, _) = (pair.take("S_1"), pair.take("S_2"));
    let records = vec![format!("{}:tank/data@S_other", first.uuid())];
    let order = DirectorsOrder { snapshot_uuid: records, skip_if_renamed: true, ..order(Action::DestroySnapshot) };
    let (response, _) = pair.carry_out(&order);
    assert!(response.error.contains("it was renamed from @S_other"), "{}", response.error);
    assert_eq!(pair.source().len(), 2);
}

#[test]
fn take_of_unwritten_dataset_leaves_mark_instead_of_snapshot() {
    let pair = Pair::new();
    pair.alpha.set_now(DateTime::<Utc>::UNIX_EPOCH);
    pair.take("S_1");
    let order = DirectorsOrder {
        snapshot_name: "S_2".into(),
        dest_dataset: "tank/data".into(),
        skip_if_not_written: true,
        ..order(Action::TakeSnapshot)
    };
    let (response, facts) = pair.carry_out(&order);
    assert_eq!(response.status, ResponseStatus::NothingToDo);
    assert_eq!(facts[0].not_written[0].1.name, snap("S_2"));
    assert_eq!(pair.source().len(), 1);
}

#[test]
fn repeated_take_makes_no_second_snapshot() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    assert_eq!(pair.take("S_1"), first);
    assert_eq!(pair.source(), [first]);
}

#[test]
fn temporary_failure_is_retried_and_lasting_one_reported_at_once() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let patient = DirectorsOrder { retry_for: Some(20), ..pair.send_order(first) };
    pair.beta.fail_next("receive", ErrorKind::Stream, "checksum mismatch or incomplete stream");
    pair.alpha.fail_next("bookmark", ErrorKind::Busy, "dataset is busy");
    let (response, _) = pair.carry_out(&patient);
    assert!(response.is_success, "{response:?}");
    assert_eq!(pair.copy(), [first]);
    assert!(pair.alpha.tags(&ds("tank/data"), &snap("S_1")).is_empty());
    let second = pair.take("S_2");
    pair.beta.fail_next("receive", ErrorKind::NoSpace, "out of space");
    let patient = DirectorsOrder { retry_for: Some(20), ..pair.send_order(second) };
    let (response, _) = pair.carry_out(&patient);
    assert_eq!((response.is_success, response.temporary), (false, false), "{response:?}");
    let tries = pair.beta.calls().iter().filter(|call| call.starts_with("receive -s")).count();
    assert_eq!(tries, 3, "{:?}", pair.beta.calls());
}

#[test]
fn order_of_newer_protocol_is_refused() {
    let pair = Pair::new();
    let newer = DirectorsOrder { protocol: 99, ..order(Action::KvResync) };
    let (response, _) = pair.carry_out(&newer);
    assert_eq!((response.is_success, response.status), (false, ResponseStatus::Refused));
    let _: OrderId = response.order_uuid.unwrap();
}

// --- Destinations that cannot take the next stream.

/// A pair whose destination diverged after the first snapshot.
fn diverged() -> (Pair, Guid) {
    let pair = Pair::new();
    let first = pair.take("S_1");
    assert!(pair.send(first).is_success);
    runtime::block_on(pair.beta.snapshot(&[ds("pool/copy")], &snap("theirs"))).unwrap();
    let second = pair.take("S_2");
    (pair, second)
}

fn allowed(pair: &Pair, guid: Guid, keys: &str) -> Response {
    let mut order = serde_json::to_value(pair.send_order(guid)).unwrap();
    for key in keys.split_whitespace() {
        let (key, value) = key.split_once('=').unwrap();
        order[key] = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    }
    pair.carry_out(&serde_json::from_value(order).unwrap()).0
}

#[test]
fn rollback_destroys_snapshots_only_if_order_allows_both() {
    let (pair, second) = diverged();
    let before = pair.copy();
    for keys in ["", "RollbackIfNeeded=true", "RollbackMayDestroy=true"] {
        let response = allowed(&pair, second, keys);
        assert_eq!((response.is_success, response.status), (false, ResponseStatus::WasWritten), "{response:?}");
        for words in
            ["only on the destination: theirs", "only on the source: S_2", "rollback_may_destroy", "zfs rename"]
        {
            assert!(response.message().contains(words), "{words:?} is not in {response:?}");
        }
        assert_eq!(pair.copy(), before);
    }
    let response = allowed(&pair, second, "RollbackIfNeeded=true RollbackMayDestroy=true");
    assert!(response.is_success, "{response:?}");
    assert!(response.error.contains("destroyed 1 snapshots there"), "{response:?}");
    assert_eq!(pair.copy(), pair.source());
}

#[test]
fn rollback_over_held_snapshot_destroys_nothing() {
    let (pair, second) = diverged();
    runtime::block_on(pair.beta.snapshot(&[ds("pool/copy")], &snap("theirs-too"))).unwrap();
    runtime::block_on(pair.beta.hold("mine", &ds("pool/copy"), &[snap("theirs")])).unwrap();
    let before = pair.copy();
    let response = allowed(&pair, second, "RollbackIfNeeded=true RollbackMayDestroy=true");
    assert!(!response.is_success && response.error.contains("pool/copy@theirs is held"), "{response:?}");
    assert_eq!(pair.copy(), before);
    assert_eq!(
        pair.beta.tags(&ds("pool/copy"), &snap("S_1")),
        ["zsync:from:alpha"],
        "the common snapshot always has a hold"
    );
}

#[test]
fn diverged_destination_is_set_aside_and_copied_again() {
    let (pair, second) = diverged();
    let before = pair.copy();
    let response = allowed(&pair, second, "OnDivergence=set_aside");
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert_eq!(pair.copy(), pair.source());
    let (_, name) = response.error.split_once("beta:").unwrap();
    let aside = ds(name.split(' ').next().unwrap());
    assert!(aside.as_str().starts_with("pool/copy_diverged_"), "{aside}");
    assert_eq!(guids(&pair.beta, aside.as_str()), before);
    assert!(pair.beta.dataset(&aside).unwrap().excluded);
    assert!(pair.beta.tags(&aside, &snap("S_1")).is_empty());
}

#[test]
fn append_only_destination_is_set_aside_only_within_append_only_entry() {
    for (above, is_set_aside) in [("", true), (r#", { "name": "pool" }"#, false)] {
        let destination = format!(r#"{{ "local_datasets": [ {{ "name": "pool/copy", "slave": true }} {above} ] }}"#);
        let pair = Pair::with_destination(&destination);
        let first = pair.take("S_1");
        assert!(pair.send(first).is_success);
        runtime::block_on(pair.beta.snapshot(&[ds("pool/copy")], &snap("theirs"))).unwrap();
        let second = pair.take("S_2");
        let before = pair.copy();
        let response = allowed(&pair, second, "RollbackIfNeeded=true RollbackMayDestroy=true");
        assert!(!response.is_success && response.error.contains("append-only"), "{response:?}");
        assert_eq!(pair.copy(), before);
        let response = allowed(&pair, second, "OnDivergence=set_aside");
        assert_eq!(response.is_success, is_set_aside, "{response:?}");
        assert_eq!(pair.copy() == before, !is_set_aside);
    }
}

/// Otherwise, an order could take away what `keep` protects: rename the copy first, then destroy its snapshots.
#[test]
fn copy_is_renamed_only_to_where_it_is_protected_as_well() {
    let copy = r#"{ "name": "pool/copy", "slave": true, "append_only": false, KEYS }"#;
    let keep = r#""keep": ["all in last day"]"#;
    for (keys, above, key) in [
        (keep, r#""append_only": false"#, Some("keep")),
        (keep, r#""append_only": false, "keep": ["all in last hour"]"#, Some("keep")),
        (keep, r#""append_only": false, "rollback": true, "keep": ["all in last day"]"#, Some("rollback")),
        (r#""destinations": ["beta"]"#, r#""append_only": false"#, Some("destinations")),
        (keep, r#""append_only": false, "keep": ["all in last day"]"#, None),
        (keep, r#""append_only": true"#, None),
        (keep, r#""enable": false"#, None),
    ] {
        let copy = copy.replace("KEYS", keys);
        let entries = format!(r#"{{ "local_datasets": [ {copy}, {{ "name": "pool", "slave": true, {above} }} ] }}"#);
        let pair = Pair::with_destination(&entries);
        let first = pair.take("S_1");
        assert!(pair.send(first).is_success);
        runtime::block_on(pair.beta.snapshot(&[ds("pool/copy")], &snap("theirs"))).unwrap();
        let (second, before) = (pair.take("S_2"), pair.copy());
        let response = allowed(&pair, second, "OnDivergence=set_aside");
        assert_eq!(response.is_success, key.is_none(), "{entries}: {response:?}");
        assert_eq!(pair.copy() == before, key.is_some());
        if let Some(key) = key {
            let words = format!("does not protect it by \"{key}\" as the entry \"pool/copy\" does");
            assert!(response.error.contains(&words), "{response:?}");
            assert!(response.hint.is_some_and(|hint| hint.contains(key)));
        }
    }
    // What is below gets an entry of its own by the rename.
    let pair = Pair::with_destination(
        r#"{ "local_datasets": [ { "name": "pool", "slave": true, "append_only": false, "keep": ["all in last day"] },
             { "name": "pool/new/below", "slave": true, "append_only": false } ] }"#,
    );
    let first = pair.take("S_1");
    for to in ["pool/copy", "pool/copy/below"] {
        let order = DirectorsOrder { dest_dataset: to.into(), ..pair.send_order(first) };
        assert!(pair.carry_out(&order).0.is_success);
    }
    runtime::block_on(pair.alpha.rename(&ds("tank/data"), &ds("tank/renamed"))).unwrap();
    let from = RenamedFrom {
        dataset: ds("pool/copy"),
        source_dataset: ds("tank/data"),
        guid: first,
        exchange: false,
        displace: false,
    };
    let order = DirectorsOrder { dest_dataset: "pool/new".into(), renamed_from: Some(from), ..pair.send_order(first) };
    let local = local(r#"{ "local_datasets": [ { "name": "tank/renamed" } ] }"#);
    let agent = Agent::new(host("alpha"), Arc::new(pair.alpha.clone()), local);
    let (response, _) = Pair::carry_out_by(&agent, &order);
    let words = "pool/copy/below must not be renamed to pool/new/below";
    assert!(response.error.contains(words), "{response:?}");
    assert_eq!(
        (guids(&pair.beta, "pool/copy"), guids(&pair.beta, "pool/copy/below")),
        (vec![first], vec![first]),
        "{response:?}"
    );
}

/// The copy would otherwise be made a second time, and the first one left behind.
#[test]
fn copy_that_cannot_be_renamed_now_is_renamed_later() {
    let pair =
        Pair::with_destination(r#"{ "local_datasets": [ { "name": "pool", "slave": true, "append_only": false } ] }"#);
    let first = pair.take("S_1");
    assert!(pair.send(first).is_success);
    runtime::block_on(pair.alpha.rename(&ds("tank/data"), &ds("tank/renamed"))).unwrap();
    let from = RenamedFrom {
        dataset: ds("pool/copy"),
        source_dataset: ds("tank/data"),
        guid: first,
        exchange: false,
        displace: false,
    };
    let order = DirectorsOrder { dest_dataset: "pool/new".into(), renamed_from: Some(from), ..pair.send_order(first) };
    let local = local(r#"{ "local_datasets": [ { "name": "tank/renamed" } ] }"#);
    let agent = Agent::new(host("alpha"), Arc::new(pair.alpha.clone()), local);
    pair.beta.fail_next("rename", ErrorKind::Busy, "cannot unmount '/pool/copy': pool or dataset is busy");
    let (response, _) = Pair::carry_out_by(&agent, &order);
    assert!(!response.is_success && response.temporary, "{response:?}");
    assert!(response.error.starts_with("cannot rename beta:pool/copy as tank/data was renamed"), "{response:?}");
    assert!(response.hint.unwrap().contains("zfs unmount"));
    assert_eq!((guids(&pair.beta, "pool/copy"), pair.beta.dataset(&ds("pool/new"))), (vec![first], None));
    let (response, _) = Pair::carry_out_by(&agent, &order);
    assert!(response.is_success, "{response:?}");
    assert_eq!(guids(&pair.beta, "pool/new"), [first]);
}

/// An agent of alpha for the whole pool `tank`.
fn agent_of_tank(pair: &Pair) -> Agent<Fake> {
    let local = local(r#"{ "local_datasets": [ { "name": "tank" } ] }"#);
    Agent::new(host("alpha"), Arc::new(pair.alpha.clone()), local)
}

/// Two sources that have exchanged their names: what was tank/data, with the snapshot `first`, is tank/other now, but its
/// copy is still pool/copy; and the reverse, with the snapshot `other` and the copy pool/other.
struct Swapped {
    pair: Pair,
    agent: Agent<Fake>,
    first: Guid,
    other: Guid,
}

impl Swapped {
    /// `destination` is the local.json of the host with the copies.
    fn new(destination: &str) -> Self {
        let pair = Pair::with_destination(destination);
        let first = pair.take("S_1");
        assert!(pair.send(first).is_success);
        let agent = agent_of_tank(&pair);
        pair.alpha.create(&ds("tank/other"));
        runtime::block_on(pair.alpha.snapshot(&[ds("tank/other")], &snap("S_1"))).unwrap();
        let other = guids(&pair.alpha, "tank/other")[0];
        let swapped = Self { pair, agent, first, other };
        let response = swapped.carry_out(&swapped.order("tank/other", "pool/other", other));
        assert!(response.is_success, "{response:?}");
        let rename = |from: &str, to: &str| runtime::block_on(swapped.pair.alpha.rename(&ds(from), &ds(to))).unwrap();
        rename("tank/data", "tank/between");
        rename("tank/other", "tank/data");
        rename("tank/between", "tank/other");
        swapped
    }

    fn order(&self, dataset: &str, to: &str, guid: Guid) -> DirectorsOrder {
        DirectorsOrder { dataset: Some(ds(dataset)), dest_dataset: to.into(), ..self.pair.send_order(guid) }
    }

    /// The order to send what is tank/data now, whose copy is to exchange its name with pool/copy.
    fn exchange(&self) -> DirectorsOrder {
        let from = RenamedFrom {
            dataset: ds("pool/other"),
            source_dataset: ds("tank/other"),
            guid: self.other,
            exchange: true,
            displace: false,
        };
        DirectorsOrder { renamed_from: Some(from), ..self.order("tank/data", "pool/copy", self.other) }
    }

    fn carry_out(&self, order: &DirectorsOrder) -> Response {
        Pair::carry_out_by(&self.agent, order).0
    }
}

/// Between the renames, the copy that gives way has a name from which the next pass can continue.
#[test]
fn copies_exchange_their_names_whichever_rename_fails() {
    for (fails, expected) in [
        (None, [Some(2), Some(1), None]),
        (Some("rename pool/copy"), [Some(1), Some(2), None]),
        (Some("rename pool/other"), [Some(1), Some(2), None]),
        (Some("rename pool/copy_zsync_exchange"), [Some(2), None, Some(1)]),
    ] {
        let swapped =
            Swapped::new(r#"{ "local_datasets": [ { "name": "pool", "slave": true, "append_only": false } ] }"#);
        let (beta, first) = (&swapped.pair.beta, swapped.first);
        let order = swapped.exchange();
        if let Some(call) = fails {
            beta.fail_next(call, ErrorKind::Busy, "cannot unmount: pool or dataset is busy");
        }
        let response = swapped.carry_out(&order);
        assert_eq!(response.is_success, fails.is_none(), "{fails:?} {response:?}");
        let number = |name: &str| {
            let found = beta.dataset(&ds(name))?;
            Some(if found.snapshots[0].guid == first { 1 } else { 2 })
        };
        let names = ["pool/copy", "pool/other", "pool/copy_zsync_exchange"].map(number);
        assert_eq!(names, expected, "{fails:?}: {response:?}");
        // Whatever the state, what the other source's order does now is right.
        let waits = DirectorsOrder { awaits_rename: true, ..swapped.order("tank/other", "pool/other", first) };
        if names[1] == Some(2) {
            let response = swapped.carry_out(&waits);
            assert!(!response.is_success && response.temporary, "{response:?}");
            assert!(response.error.contains("is still the copy of another dataset"), "{response:?}");
        }
        if names[2].is_some() {
            let from = RenamedFrom {
                dataset: ds("pool/copy_zsync_exchange"),
                guid: first,
                exchange: false,
                ..order.renamed_from.unwrap()
            };
            let response = swapped.carry_out(&DirectorsOrder { renamed_from: Some(from), ..waits });
            assert!(response.is_success, "{response:?}");
            assert_eq!(number("pool/other"), Some(1));
        }
    }
}

/// Between the renames, a copy would be outside the entry that protects it, and stay there if the next rename failed.
#[test]
fn copies_that_local_json_names_exchange_no_names() {
    let swapped = Swapped::new(
        r#"{ "local_datasets": [ { "name": "pool", "slave": true, "append_only": false },
            { "name": "pool/copy", "slave": true, "append_only": false, "keep": ["all in last day"] },
            { "name": "pool/other", "slave": true, "append_only": false, "keep": ["all in last day"] } ] }"#,
    );
    let response = swapped.carry_out(&swapped.exchange());
    assert!(response.error.contains("pool/copy_zsync_exchange"), "{response:?}");
    let Swapped { pair, first, other, .. } = &swapped;
    assert_eq!((guids(&pair.beta, "pool/copy"), guids(&pair.beta, "pool/other")), (vec![*first], vec![*other]));
}

#[test]
fn copies_of_other_hosts_exchange_no_names() {
    let pair =
        Pair::with_destination(r#"{ "local_datasets": [ { "name": "pool", "slave": true, "append_only": false } ] }"#);
    let first = pair.take("S_1");
    assert!(pair.send(first).is_success);
    pair.beta.create(&ds("pool/theirs"));
    runtime::block_on(pair.beta.snapshot(&[ds("pool/theirs")], &snap("S_1"))).unwrap();
    runtime::block_on(pair.alpha.rename(&ds("tank/data"), &ds("tank/theirs"))).unwrap();
    let from = RenamedFrom {
        dataset: ds("pool/copy"),
        source_dataset: ds("tank/data"),
        guid: first,
        exchange: true,
        displace: false,
    };
    let order = DirectorsOrder {
        dataset: Some(ds("tank/theirs")),
        dest_dataset: "pool/theirs".into(),
        renamed_from: Some(from),
        ..pair.send_order(first)
    };
    let agent = agent_of_tank(&pair);
    let (response, _) = Pair::carry_out_by(&agent, &order);
    assert!(response.error.contains("pool/theirs has no hold zsync:from:alpha"), "{response:?}");
    assert_eq!(guids(&pair.beta, "pool/copy"), [first]);
}

#[test]
fn copy_follows_no_source_without_proof_of_its_rename() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    assert!(pair.send(first).is_success);
    runtime::block_on(pair.beta.rename(&ds("pool/copy"), &ds("pool/old"))).unwrap();
    let second = pair.take("S_2");
    let from =
        |source: &str| format!(r#"RenamedFrom={{"Dataset":"pool/old","SourceDataset":"{source}","Guid":"{first}"}}"#);
    // No bookmark proves that it was ever sent to pool/old.
    let response = allowed(&pair, second, &from("tank/was"));
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert!(response.error.contains("a new copy was made"), "{response:?}");
    assert_eq!(guids(&pair.beta, "pool/old"), [first]);
}

#[test]
fn cursor_name_taken_by_other_bookmark_is_an_error() {
    let pair = Pair::new();
    let (first, second) = (pair.take("S_1"), pair.take("S_2"));
    assert!(pair.send(first).is_success);
    let copy = pair.beta.dataset(&ds("pool/copy")).unwrap().guid.unwrap();
    let cursor = snap(&format!("zsync:beta:pool:copy:{:016x}:{:016x}", second.0, copy.0));
    let named = zsync::zfs::Named { name: snap("S_1"), guid: first };
    runtime::block_on(pair.alpha.bookmark(&ds("tank/data"), &named, &cursor)).unwrap();
    let response = pair.send(second);
    assert!(!response.is_success && response.error.contains("bookmark exists"), "{response:?}");
    assert_eq!(pair.copy(), pair.source(), "the snapshot has arrived");
}

#[test]
fn send_releases_holds_of_former_destinations() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    for tag in ["zsync:to:gamma:pool/gone", "zsync:to:delta:pool/other", "mine"] {
        runtime::block_on(pair.alpha.hold(tag, &ds("tank/data"), &[snap("S_1")])).unwrap();
    }
    let response = allowed(&pair, first, r#"Destinations=[["beta","pool/copy"],["delta","pool/other"]]"#);
    assert!(response.is_success, "{response:?}");
    assert_eq!(pair.alpha.tags(&ds("tank/data"), &snap("S_1")), ["mine", "zsync:to:delta:pool/other"]);
}

#[test]
fn clone_arrives_as_clone_if_origin_is_there_and_else_in_full() {
    for (origin, expected) in [("pool/copy/data", true), ("pool/copy/nowhere", false)] {
        let pair = Pair::new();
        let first = pair.take("S_1");
        let order = DirectorsOrder { dest_dataset: "pool/copy/data".into(), ..pair.send_order(first) };
        assert!(pair.carry_out(&order).0.is_success);
        pair.alpha.clone_as(&ds("tank/data"), &snap("S_1"), &ds("tank/data/clone"));
        let order = DirectorsOrder {
            snapshot_name: "S_2".into(),
            dest_dataset: "tank/data/clone".into(),
            ..self::order(Action::TakeSnapshot)
        };
        let (response, facts) = pair.carry_out(&order);
        assert!(response.is_success, "{response:?}");
        let order = DirectorsOrder {
            dest_dataset: "pool/copy/clone".into(),
            dataset: Some(ds("tank/data/clone")),
            origin_dataset: Some(ds(origin)),
            ..pair.send_order(facts[0].taken[0].1.guid)
        };
        let (response, _) = pair.carry_out(&order);
        assert!(response.is_success, "{response:?}");
        let there = pair.beta.dataset(&ds("pool/copy/clone")).unwrap();
        assert_eq!(there.snapshots.len(), 1);
        let reported = there.origin.map(|origin| origin.dataset);
        assert_eq!(reported, expected.then(|| ds(origin)));
    }
}

#[test]
fn increment_keeps_send_flags_of_first_copy() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    assert!(pair.send(first).is_success);
    let own = pair.beta.dataset(&ds("pool/copy")).unwrap();
    assert_eq!(own.flags.unwrap().to_string(), "Lc");
    // An encrypted dataset with the same snapshots has taken the place of the source.
    pair.alpha.encrypt(&ds("tank/data"));
    let second = pair.take("S_2");
    let response = pair.send(second);
    assert_eq!((response.is_success, response.status), (false, ResponseStatus::NotEmpty), "{response:?}");
    for words in ["the copy was made with non-raw streams", "sent only with raw streams", "zfs rename", "set_aside"] {
        assert!(response.message().contains(words), "{words:?} is not in {response:?}");
    }
    assert_eq!(pair.copy(), [first]);
    let response = allowed(&pair, second, "OnDivergence=set_aside");
    assert!(response.is_success, "{response:?}");
    assert_eq!(pair.beta.dataset(&ds("pool/copy")).unwrap().flags.unwrap().to_string(), "w");
}

/// A pair whose source is encrypted, and its first snapshot, which was sent.
fn pair_with_raw_copy() -> (Pair, Guid) {
    let pair = Pair::new();
    pair.alpha.encrypt(&ds("tank/data"));
    let first = pair.take("S_1");
    assert!(pair.send(first).is_success);
    (pair, first)
}

#[test]
fn copy_whose_key_others_use_takes_no_raw_increment() {
    let (pair, first) = pair_with_raw_copy();
    pair.beta.create(&ds("pool/copy/below"));
    pair.beta.encrypt(&ds("pool/copy/below"));
    pair.beta.use_key_of(&ds("pool/copy/below"), &ds("pool/copy"));
    let second = pair.take("S_2");
    let response = pair.send(second);
    assert!(!response.is_success);
    for words in ["pool/copy/below uses the key of the copy", "keylocation=prompt pool/copy/below"] {
        assert!(response.message().contains(words), "{words:?} is not in {response:?}");
    }
    assert_eq!(pair.copy(), [first]);
}

#[test]
fn copy_with_key_of_another_dataset_takes_no_raw_increment() {
    let (pair, first) = pair_with_raw_copy();
    pair.beta.use_key_of(&ds("pool/copy"), &ds("pool"));
    let second = pair.take("S_2");
    let response = pair.send(second);
    assert_eq!((response.is_success, response.status), (false, ResponseStatus::NotEmpty), "{response:?}");
    for words in ["the copy uses the key of pool", "zfs change-key -o keyformat=passphrase", "set_aside"] {
        assert!(response.message().contains(words), "{words:?} is not in {response:?}");
    }
    assert_eq!(pair.copy(), [first]);
    let response = allowed(&pair, second, "OnDivergence=set_aside");
    assert!(response.is_success, "{response:?}");
}

#[test]
fn dataset_below_raw_copy_stays_unencrypted_as_at_source() {
    for recorded in [true, false] {
        let pair = Pair::new();
        pair.beta.create(&ds("pool"));
        pair.beta.encrypt(&ds("pool"));
        if recorded {
            let guid = pair.beta.dataset(&ds("pool")).unwrap().guid.unwrap();
            runtime::block_on(pair.beta.set(&ds("pool"), "zsync:flags", &format!("w {}", guid.0))).unwrap();
        }
        let first = pair.take("S_1");
        assert!(pair.send(first).is_success);
        let copy = pair.beta.dataset(&ds("pool/copy")).unwrap();
        // Below an encrypted dataset that is no raw copy, the copy is encrypted with the key of that dataset.
        assert_eq!((copy.encrypted, copy.flags.unwrap().to_string().as_str()), (!recorded, "Lc"));
    }
}

#[test]
fn stream_is_sent_with_flags_that_destination_can_take() {
    let lacks = "cannot receive new filesystem stream: pool must be upgraded to receive this stream.";
    let pair = Pair::new();
    pair.beta.fail_next("receive", ErrorKind::Feature, lacks);
    let response = pair.send(pair.take("S_1"));
    assert!(response.is_success && response.error.contains("flags"), "{response:?}");
    let flags = || pair.beta.dataset(&ds("pool/copy")).unwrap().flags.unwrap().to_string();
    assert_eq!(flags(), "L");
    // Later, an increment needs large blocks, or can do without one of the flags.
    let needs = "cannot receive incremental stream: incremental send stream requires -L (--large-block)";
    pair.beta.fail_next("receive", ErrorKind::LargeBlocks, needs);
    let response = pair.send(pair.take("S_2"));
    assert!(!response.is_success, "it had -L already: {response:?}");
    // An increment has larger blocks than the pool of the copy can have.
    let pair = Pair::new();
    assert!(pair.send(pair.take("S_1")).is_success);
    let flags = || pair.beta.dataset(&ds("pool/copy")).unwrap().flags.unwrap().to_string();
    assert_eq!(flags(), "Lc");
    for _ in 0..2 {
        pair.beta.fail_next("receive", ErrorKind::Feature, lacks);
    }
    let response = pair.send(pair.take("S_2"));
    assert!(response.is_success && flags() == "-", "{response:?}");
    // The copy has large blocks, and its pool lacks a feature that no flag can replace.
    let pair = Pair::new();
    assert!(pair.send(pair.take("S_1")).is_success);
    for _ in 0..2 {
        pair.beta.fail_next("receive", ErrorKind::Feature, lacks);
    }
    pair.beta.fail_next("receive", ErrorKind::LargeBlocks, needs);
    let response = pair.send(pair.take("S_2"));
    assert!(!response.is_success && response.message().contains("zpool upgrade"), "{response:?}");
    // Raw streams have no flags to leave out.
    let pair = Pair::new();
    pair.alpha.encrypt(&ds("tank/data"));
    for _ in 0..2 {
        pair.beta.fail_next("receive", ErrorKind::Feature, lacks);
    }
    let response = pair.send(pair.take("S_1"));
    assert!(!response.is_success && response.message().contains("zpool upgrade"), "{response:?}");
}

#[test]
fn stream_is_received_without_resuming_if_pool_lacks_extensible_dataset() {
    let pair = Pair::new();
    pair.beta.without_extensible_dataset("pool");
    for name in ["S_1", "S_2"] {
        let response = pair.send(pair.take(name));
        assert!(response.is_success && response.error.contains("extensible_dataset"), "{response:?}");
    }
    assert_eq!(pair.copy(), pair.source());
    assert!(pair.beta.calls().iter().any(|call| call.starts_with("receive -u ")), "{:?}", pair.beta.calls());
}

#[test]
fn destination_that_another_transfer_created_meanwhile_is_replaced() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.beta.create_before_receive(&ds("pool/copy"));
    let response = pair.send(first);
    assert!(response.is_success, "{response:?}");
    assert_eq!(pair.copy(), [first]);
    assert!(pair.beta.calls().iter().any(|call| call.starts_with("receive -s -u -F ")), "{:?}", pair.beta.calls());
}

#[test]
fn properties_are_in_force_only_if_receiver_asks() {
    let destination = r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true,
        "properties": { "include": ["compression", "set*"], "override": { "atime": "off" } } } ] }"#;
    let pair = Pair::with_destination(destination);
    for (property, value) in [("compression", "zstd"), ("setuid", "on"), ("quota", "1G")] {
        runtime::block_on(pair.alpha.set(&ds("tank/data"), property, value)).unwrap();
    }
    let first = pair.take("S_1");
    assert!(pair.send(first).is_success);
    let set = runtime::block_on(pair.beta.properties(&ds("pool/copy"))).unwrap();
    let reported: Vec<String> =
        set.iter().filter(|(n, _)| !n.starts_with("zsync:")).map(|(n, v)| format!("{n}={v}")).collect();
    assert_eq!(reported, ["atime=off", "canmount=noauto", "compression=zstd", "readonly=on"]);
}

#[test]
fn property_that_destination_refuses_is_left_out() {
    let destination = r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true,
        "properties": { "include": ["compression", "recordsize"] } } ] }"#;
    let pair = Pair::with_destination(destination);
    for (property, value) in [("compression", "zstd"), ("recordsize", "1048576")] {
        runtime::block_on(pair.alpha.set(&ds("tank/data"), property, value)).unwrap();
    }
    let refused = "cannot receive incremental stream: 'recordsize' must be power of 2 from 512B to 128K\n\
                   cannot receive incremental stream: invalid property";
    pair.beta.fail_next("receive", ErrorKind::Property, refused);
    let response = pair.send(pair.take("S_1"));
    assert!(response.is_success && response.error.contains("sent without recordsize"), "{response:?}");
    let set = runtime::block_on(pair.beta.properties(&ds("pool/copy"))).unwrap();
    assert!(set.contains_key("compression") && !set.contains_key("recordsize"), "{set:?}");
}

/// An agent with these datasets, all of which an order may name.
fn agent_with(datasets: &[&str]) -> (zsync::zfs::fake::Fake, Arc<Agent<zsync::zfs::fake::Fake>>) {
    let zfs = zsync::zfs::fake::Fake::new(1);
    datasets.iter().for_each(|name| zfs.create(&ds(name)));
    let local = local(r#"{ "local_datasets": [ { "name": "tank" }, { "name": "usb" } ] }"#);
    (zfs.clone(), Arc::new(Agent::new("alpha".parse().unwrap(), Arc::new(zfs), local)))
}

fn take_order(name: &str, datasets: &[&str]) -> DirectorsOrder {
    let (first, others) = datasets.split_first().unwrap();
    let datasets = others.iter().map(|name| ds(name)).collect();
    let dest_dataset = (*first).to_owned();
    DirectorsOrder { snapshot_name: name.into(), dest_dataset, datasets, ..order(Action::TakeSnapshot) }
}

fn carry_out_all(
    agent: &Arc<Agent<zsync::zfs::fake::Fake>>,
    order: &DirectorsOrder,
) -> (Response, Vec<zsync::wire::Facts>) {
    let (sender, received) = runtime::channel::unbounded();
    let response = runtime::block_on(common::carry_out(agent, order, sender, Counter::default()));
    (response, std::iter::from_fn(|| received.try_recv().ok()).collect())
}

/// ZFS dates changes of snapshots by whole seconds, so somebody may destroy one within the second after it arrived.
#[test]
fn listing_after_a_copy_does_not_count_for_the_second_in_which_it_was_made() {
    let zfs = zsync::zfs::fake::Fake::new(1);
    ["tank", "tank/data", "usb"].iter().for_each(|name| zfs.create(&ds(name)));
    let local = local(r#"{ "local_datasets": [ { "name": "tank/data" }, { "name": "usb/copy", "slave": true } ] }"#);
    let agent = Arc::new(Agent::new("alpha".parse().unwrap(), Arc::new(zfs), local));
    let (response, facts) = carry_out_all(&agent, &take_order("S_1", &["tank/data"]));
    assert!(response.is_success, "{response:?}");
    let order = DirectorsOrder {
        destination: "alpha".into(),
        snapshot_uuid: vec![facts[0].taken[0].1.guid.uuid().to_string()],
        dest_dataset: "usb/copy".into(),
        ..order(Action::SendSnapshot)
    };
    let (response, facts) = carry_out_all(&agent, &order);
    assert!(response.is_success, "{response:?}");
    let mut listings = facts.iter().filter_map(|fact| fact.listing.as_ref());
    let unchanged = listings.find_map(|listing| listing.inventory.unchanged).unwrap();
    assert!(unchanged.to < unchanged.listed, "{unchanged:?}");
}

#[test]
fn hook_that_fails_prevents_only_the_snapshots_of_its_own_entry() {
    let zfs = zsync::zfs::fake::Fake::new(1);
    ["tank", "tank/a", "tank/db", "tank/db/wal"].iter().for_each(|name| zfs.create(&ds(name)));
    let local = local(
        r#"{ "local_datasets": [ { "name": "tank" },
             { "name": "tank/db", "hooks": { "before_snapshot": { "command": ["/bin/false"] } } } ] }"#,
    );
    let agent = Arc::new(Agent::new("alpha".parse().unwrap(), Arc::new(zfs), local));
    let order = take_order("S_1", &["tank", "tank/a", "tank/db", "tank/db/wal"]);
    let (response, facts) = carry_out_all(&agent, &order);
    let why = "the hook before_snapshot of tank/db (/bin/false) failed: exit status: 1";
    assert!(!response.is_success);
    assert_eq!(response.error, format!("2 of 4 datasets have their snapshot: {why}"));
    let taken: Vec<&str> = facts.iter().flat_map(|f| &f.taken).map(|(name, _)| name.as_str()).collect();
    assert_eq!(taken, ["tank", "tank/a"]);
    let (response, _) = carry_out_all(&agent, &take_order("S_2", &["tank/db"]));
    assert_eq!(response.error, format!("cannot take the snapshot: {why}"));
}

#[test]
fn take_names_datasets_that_zfs_refuses_and_takes_all_others() {
    let (zfs, agent) = agent_with(&["tank", "tank/a", "tank/b", "tank/thick"]);
    zfs.refuse_snapshots(&ds("tank/thick"), "out of space");
    let order = take_order("S_1", &["tank/a", "tank/b", "tank/gone", "tank/thick"]);
    let (response, facts) = carry_out_all(&agent, &order);
    assert!(!response.is_success);
    assert_eq!(response.error, "2 of 3 datasets have their snapshot: cannot take tank/thick@S_1: out of space");
    let taken: Vec<&str> = facts.iter().flat_map(|f| &f.taken).map(|(name, _)| name.as_str()).collect();
    assert_eq!(taken, ["tank/a", "tank/b"]);
    let txg = |name| zfs.dataset(&ds(name)).unwrap().snapshots[0].createtxg;
    assert_eq!(txg("tank/a"), txg("tank/b"), "the others were taken atomically");
}

#[test]
fn take_of_datasets_that_no_longer_exist_is_no_failure() {
    let (_, agent) = agent_with(&["tank", "tank/a"]);
    let (response, _) = carry_out_all(&agent, &take_order("S_1", &["tank/a", "tank/gone"]));
    assert!(response.is_success, "{response:?}");
    assert_eq!(response.error, "took 1; 1 of the datasets no longer exist");
    let (response, _) = carry_out_all(&agent, &take_order("S_2", &["tank/gone"]));
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::NothingToDo), "{response:?}");
}

#[test]
fn listing_reports_pools_that_cannot_be_listed_and_counts_datasets() {
    let (zfs, agent) = agent_with(&["tank", "tank/a", "usb", "usb/copy"]);
    zfs.set_away("usb", Some("the pool is not imported"));
    let (response, facts) = carry_out_all(&agent, &order(Action::KvResync));
    assert_eq!((response.is_success, response.datasets), (true, Some(2)), "{response:?}");
    assert_eq!(response.error, "listed 2 datasets; cannot list the pool usb: the pool is not imported");
    let unlisted: Vec<_> = facts.iter().flat_map(|f| &f.unlisted).collect();
    assert_eq!(unlisted, [(&"usb".to_owned(), &"the pool is not imported".to_owned())]);
}

/// A child is sent first, and the slave makes the dataset that contains its copy. Later the parent is sent as well.
#[test]
fn dataset_that_slave_made_for_child_gives_way_to_copy_of_parent() {
    let pair =
        Pair::with_destination(r#"{ "local_datasets": [ { "name": "pool", "slave": true, "sources": ["alpha"] } ] }"#);
    let first = pair.take("S_1");
    let child = DirectorsOrder { dest_dataset: "pool/copy/child".into(), ..pair.send_order(first) };
    assert!(pair.carry_out(&child).0.is_success);
    let made = pair.beta.dataset(&ds("pool/copy")).unwrap();
    assert!(made.snapshots.is_empty());
    let response = pair.send(first);
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert_eq!((pair.copy(), guids(&pair.beta, "pool/copy/child")), (vec![first], vec![first]));
    // One that somebody has used does not.
    let other = DirectorsOrder { dest_dataset: "pool/used/child".into(), ..pair.send_order(first) };
    assert!(pair.carry_out(&other).0.is_success);
    runtime::block_on(pair.beta.set(&ds("pool/used"), "canmount", "on")).unwrap();
    let refused = pair.carry_out(&DirectorsOrder { dest_dataset: "pool/used".into(), ..pair.send_order(first) }).0;
    assert!(!refused.is_success && refused.error.contains("exists without a snapshot"), "{refused:?}");
}

#[test]
fn snapshot_that_differs_from_what_director_knows_stays() {
    let pair = Pair::new();
    let (first, second, third) = (pair.take("S_1"), pair.take("S_2"), pair.take("S_3"));
    let known = pair.alpha.dataset(&ds("tank/data")).unwrap();
    let expected = |guid, seconds| {
        let of = known.by_guid(guid).unwrap();
        let creation = of.creation - chrono::TimeDelta::seconds(seconds);
        ExpectedSnapshot { guid, createtxg: of.createtxg, creation }
    };
    let record = |guid: Guid, name: &str| format!("{}:tank/data@{name}", guid.uuid());
    let destroy = |expected| DirectorsOrder {
        snapshot_uuid: vec![record(first, "S_1"), record(second, "S_2")],
        expected,
        ..order(Action::DestroySnapshot)
    };
    // The director knows the first one as a year older than it is.
    let (response, _) = pair.carry_out(&destroy(vec![expected(first, 31_536_000), expected(second, 0)]));
    assert!(response.is_success, "{response:?}");
    assert!(response.error.contains("tank/data@S_1 stays: it was created at"), "{}", response.error);
    assert_eq!(pair.source(), [first, third]);
    // A director of an older version says nothing.
    assert!(pair.carry_out(&destroy(Vec::new())).0.is_success);
    assert_eq!(pair.source(), [third]);
}

#[test]
fn copy_belongs_to_its_first_source_unless_sources_are_listed() {
    let pair = Pair::with_destination(r#"{ "local_datasets": [ { "name": "pool", "slave": true } ] }"#);
    let first = pair.take("S_1");
    assert!(pair.send(first).is_success);
    let (gamma, _, theirs) = Pair::another_source("gamma");
    let send = |to: &str| {
        let order = DirectorsOrder {
            dest_dataset: to.into(),
            on_divergence: zsync::model::OnDivergence::SetAside,
            ..pair.send_order(theirs)
        };
        Pair::carry_out_by(&gamma, &order).0
    };
    for taken in ["pool/copy", "pool/copy/below"] {
        let before = pair.beta.calls();
        let response = send(taken);
        assert_eq!((response.is_success, response.status), (false, ResponseStatus::Refused), "{response:?}");
        let words = "pool/copy is another host's copy (it has the hold zsync:from:alpha)";
        assert!(response.error.contains(words), "{response:?}");
        assert!(response.hint.is_some_and(|hint| hint.contains("sync_dataset") && hint.contains("sources")));
        assert_eq!(pair.beta.calls(), before);
    }
    assert!(send("pool/other").is_success);
    let second = pair.take("S_2");
    assert!(pair.send(second).is_success);
    assert_eq!(pair.copy(), pair.source());
}

#[test]
fn rename_takes_no_dataset_along_that_is_treated_otherwise() {
    let entries = [
        r#"{ "name": "pool", "slave": true }"#,
        r#"{ "name": "pool", "slave": true }, { "name": "pool/copy/below", "slave": true }"#,
    ];
    for (local, words) in entries.into_iter().zip(["another host's copy", "an entry of its own"]) {
        let pair = Pair::with_destination(&format!(r#"{{ "local_datasets": [ {local} ] }}"#));
        // The dataset below is there before the copy above it, which replaces a dataset that the slave made.
        let (gamma, _, theirs) = Pair::another_source("gamma");
        let below = DirectorsOrder { dest_dataset: "pool/copy/below".into(), ..pair.send_order(theirs) };
        assert!(Pair::carry_out_by(&gamma, &below).0.is_success);
        let first = pair.take("S_1");
        assert!(pair.send(first).is_success);
        runtime::block_on(pair.beta.snapshot(&[ds("pool/copy")], &snap("theirs"))).unwrap();
        let (second, before) = (pair.take("S_2"), pair.copy());
        let response = allowed(&pair, second, "OnDivergence=set_aside");
        assert!(!response.is_success && response.error.contains(words), "{response:?}");
        assert!(response.error.contains("that would also rename pool/copy/below"), "{response:?}");
        assert_eq!((pair.copy(), guids(&pair.beta, "pool/copy/below")), (before, vec![theirs]));
    }
}

#[test]
fn forget_removes_what_the_order_names_and_nothing_else() {
    let pair = Pair::new();
    let (first, second) = (pair.take("S_1"), pair.take("S_2"));
    assert!(pair.send(second).is_success);
    let (source, copy) = (ds("tank/data"), ds("pool/copy"));
    let hold = |tag: &str| runtime::block_on(pair.alpha.hold(tag, &source, &[snap("S_1")])).unwrap();
    ["zsync:to:beta:pool/copy", "zsync:to:beta:pool/copy/below", "zsync:to:gamma:pool/copy", "mine"]
        .into_iter()
        .for_each(hold);
    // A listing of the host says which holds transfers have left.
    let (_, facts) = pair.carry_out(&order(Action::KvResync));
    let listed = facts.iter().filter_map(|fact| fact.listing.as_ref()).find(|listing| listing.dataset == source);
    let tags = &listed.unwrap().inventory.transfer_holds;
    assert_eq!(*tags, ["zsync:to:beta:pool/copy", "zsync:to:beta:pool/copy/below", "zsync:to:gamma:pool/copy"]);

    let forgotten = |to: &str| Forgotten { dataset: source.clone(), to: to.parse().unwrap() };
    let forget = |to: &str| {
        pair.carry_out(&DirectorsOrder { forget: vec![forgotten(to)], ..order(Action::ForgetDestination) }).0
    };
    let response = forget("delta:pool/copy");
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::NothingToDo), "{response:?}");
    let response = forget("beta:pool/copy");
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Done), "{response:?}");
    assert_eq!(response.error, "holds released: 1, bookmarks destroyed: 1");
    let left = pair.alpha.tags(&source, &snap("S_1"));
    assert_eq!(left, ["mine", "zsync:to:beta:pool/copy/below", "zsync:to:gamma:pool/copy"]);
    assert!(pair.alpha.dataset(&source).unwrap().bookmarks.is_empty());
    assert_eq!((pair.source(), pair.copy()), (vec![first, second], vec![first, second]));
    assert_eq!(pair.beta.tags(&copy, &snap("S_2")), ["zsync:from:alpha"], "the copy is on another host");

    // Datasets that local.json does not list are left alone.
    let outside = Forgotten { dataset: ds("tank"), ..forgotten("beta:pool/copy") };
    let refused = DirectorsOrder { forget: vec![outside], ..order(Action::ForgetDestination) };
    let response = pair.carry_out(&refused).0;
    assert_eq!((response.is_success, response.status), (false, ResponseStatus::Refused), "{response:?}");

    // On the host of a copy, the order releases what receives have left, and nothing else.
    let agent = Agent::new(
        "beta".parse().unwrap(),
        Arc::new(pair.beta.clone()),
        local(r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true } ] }"#),
    );
    runtime::block_on(pair.beta.hold("mine", &copy, &[snap("S_2")])).unwrap();
    let given_up = DirectorsOrder { datasets: vec![copy.clone()], ..order(Action::ForgetDestination) };
    let (sender, _receiver) = runtime::channel::unbounded();
    let response = runtime::block_on(common::carry_out(&agent, &given_up, sender, Counter::default()));
    assert_eq!(response.error, "holds released: 1, bookmarks destroyed: 0", "{response:?}");
    assert_eq!(pair.beta.tags(&copy, &snap("S_2")), ["mine"]);
}
