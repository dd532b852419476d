//! Tests interrupted transfers on pools in memory: what arrived is kept, and the next order sends only the rest. A
//! partial state that cannot be resumed is discarded, and the transfer is planned again. `tests/lab/scenarios/resume`
//! does the same on real ZFS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::time::Duration;

use common::pair::Pair;
use common::{ds, guids, local, order, snap, wait_until};
use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use zsync::agent::Agent;
use zsync::model::{Action, Counter, DatasetName, Guid, OnDivergence, ResponseStatus, SendFlags};
use zsync::sys::runtime;
use zsync::wire::{CommonBase, DirectorsOrder, Response};
use zsync::zfs::fake::{Fake, Fault, LONGEST, RECORD};
use zsync::zfs::{ErrorKind, ReceiveSpec, SendFrom, SendSpec, Zfs, ZfsRead};

/// The most that the header and the trailer of one snapshot add to a stream.
const OVERHEAD: u64 = 700;
/// A byte in the middle of the first copy.
const MIDDLE: u64 = 4000;
const COPY: &str = "pool/copy";

fn token(fake: &Fake, dataset: &str) -> Option<String> {
    fake.dataset(&ds(dataset)).and_then(|found| found.resume_token)
}

/// The tags on the snapshots of the source.
fn holds(pair: &Pair) -> Vec<String> {
    let data = pair.alpha.dataset(&ds("tank/data")).unwrap();
    data.snapshots.iter().flat_map(|s| pair.alpha.tags(&ds("tank/data"), &s.name)).collect()
}

/// Checks that the destination has what the source has, and that nothing of the interruption is left on either side.
#[track_caller]
fn assert_complete(pair: &Pair) {
    assert_eq!(pair.copy(), pair.source());
    assert_eq!(token(&pair.beta, COPY), None);
    assert!(holds(pair).is_empty(), "{:?}", holds(pair));
    let cursors: Vec<Guid> = pair.alpha.dataset(&ds("tank/data")).unwrap().bookmarks.iter().map(|b| b.guid).collect();
    // The cursor of a copy that was set aside stays with it.
    let copies = 1 + pair.beta.calls().iter().filter(|call| call.starts_with("rename ")).count();
    assert!(cursors.last() == pair.source().last() && cursors.len() <= copies, "{cursors:?}");
}

/// Checks that the transfer failed, that another attempt may help, and that the snapshots for it stay held on the
/// source.
#[track_caller]
fn assert_interrupted(pair: &Pair, response: &Response) {
    assert_eq!((response.is_success, response.temporary), (false, true), "{response:?}");
    assert!(token(&pair.beta, COPY).is_some(), "{response:?}");
    assert!(holds(pair).contains(&"zsync:to:beta:pool/copy".to_owned()), "{:?}", holds(pair));
}

fn is_aborted(fake: &Fake, dataset: &str) -> bool {
    fake.calls().contains(&format!("receive -A {dataset}"))
}

/// A pair whose first copy was interrupted by a `zfs send` that was killed.
fn interrupted_first_copy() -> (Pair, Guid) {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.alpha.disturb_next("send", Fault::Killed(MIDDLE));
    assert_interrupted(&pair, &pair.send(first));
    (pair, first)
}

/// A pair that has S_1 in common, and an interrupted increment to S_2.
fn interrupted_increment() -> (Pair, Guid) {
    let pair = Pair::new();
    assert!(pair.send(pair.take("S_1")).is_success);
    let second = pair.take("S_2");
    pair.alpha.disturb_next("send", Fault::Killed(900));
    assert_interrupted(&pair, &pair.send(second));
    (pair, second)
}

/// Leaves an interrupted receive of another stream in the destination.
fn leave_partial(from: &Fake, dataset: &str, flags: SendFlags, to: &Fake) {
    let dataset = ds(dataset);
    let name = from.dataset(&dataset).unwrap().snapshots[0].name.clone();
    let send = SendSpec::Snapshot { dataset, to: name, from: SendFrom::Nothing, flags };
    let receive = ReceiveSpec {
        dataset: ds(COPY),
        properties: Default::default(),
        origin: None,
        overwrite: false,
        is_unresumable: false,
    };
    runtime::block_on(async {
        let (mut sent, mut received) = (from.send(&send).await.unwrap(), to.receive(&receive).await.unwrap());
        let mut begun = vec![0; usize::try_from(MIDDLE).unwrap()];
        sent.data.read_exact(&mut begun).await.unwrap();
        received.data.write_all(&begun).await.unwrap();
        drop(received.data);
        received.end.await.unwrap_err();
    });
    assert!(token(to, COPY).is_some());
}

fn has_moved(pair: &Pair) -> bool {
    pair.beta.arrived(&ds(COPY)).is_some_and(|arrived| arrived > 0)
}

/// What another tool began to receive below a raw copy would be encrypted with the key of that copy.
#[test]
fn partial_receive_that_would_need_the_key_of_a_raw_copy_is_discarded() {
    let pair = Pair::new();
    pair.beta.encrypt(&ds("pool"));
    let guid = pair.beta.dataset(&ds("pool")).unwrap().guid.unwrap();
    runtime::block_on(pair.beta.set(&ds("pool"), "zsync:flags", &format!("w {}", guid.0))).unwrap();
    let first = pair.take("S_1");
    leave_partial(&pair.alpha, "tank/data", SendFlags::PLAIN, &pair.beta);
    assert!(pair.beta.dataset(&ds(COPY)).unwrap().encrypted);
    let response = pair.send(first);
    assert!(response.is_success, "{response:?}");
    assert!(!pair.beta.dataset(&ds(COPY)).unwrap().encrypted, "{:?}", pair.beta.calls());
}

// --- Interrupted transfers are resumed.

#[test]
fn receive_whose_rest_is_always_refused_is_discarded_and_sent_again() {
    let (pair, first) = interrupted_first_copy();
    for attempt in 1..=2 {
        pair.beta.fail_next("receive", ErrorKind::Stream, "cannot receive resume stream: checksum mismatch");
        assert_interrupted(&pair, &pair.send(first));
        assert!(pair.beta.arrived(&ds(COPY)).is_some(), "attempt {attempt}");
    }
    pair.beta.fail_next("receive", ErrorKind::Stream, "cannot receive resume stream: checksum mismatch");
    let response = pair.send(first);
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert!(response.error.contains("discarded what had arrived"), "{response:?}");
    assert!(pair.beta.calls().iter().any(|call| call.starts_with("receive -A")), "{:?}", pair.beta.calls());
    assert_complete(&pair);
}

#[test]
fn first_copy_resumes_with_the_rest_wherever_it_was_cut() {
    let whole = {
        let pair = Pair::new();
        pair.send(pair.take("S_1")).bytes
    };
    assert!(whole > LONGEST);
    for at in [600, 601, LONGEST / 2, LONGEST / 2 + 1, LONGEST, whole - 1] {
        let pair = Pair::new();
        let first = pair.take("S_1");
        pair.alpha.disturb_next("send", Fault::Killed(at));
        assert_interrupted(&pair, &pair.send(first));
        let arrived = pair.beta.arrived(&ds(COPY)).unwrap();
        assert!(arrived + OVERHEAD + RECORD >= at, "{arrived} bytes of {at} were kept");
        let response = pair.send(first);
        assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
        assert!(response.bytes < whole - arrived + 20, "{} of {whole} bytes, {arrived} were there", response.bytes);
        assert_complete(&pair);
        assert_eq!(pair.beta.tags(&ds(COPY), &snap("S_1")), ["zsync:from:alpha"]);
    }
}

#[test]
fn first_copy_cut_before_its_header_leaves_nothing_and_is_sent_again() {
    for at in [0, 1, 50] {
        let pair = Pair::new();
        let first = pair.take("S_1");
        pair.alpha.disturb_next("send", Fault::Killed(at));
        let response = pair.send(first);
        assert_eq!((response.is_success, response.temporary), (false, true), "{response:?}");
        assert!(pair.beta.dataset(&ds(COPY)).is_none() && holds(&pair).is_empty(), "{:?}", holds(&pair));
        assert!(pair.send(first).is_success);
        assert_complete(&pair);
    }
}

#[test]
fn increment_resumes_with_the_rest_wherever_it_was_cut() {
    let prepare = || {
        let pair = Pair::new();
        assert!(pair.send(pair.take("S_1")).is_success);
        let newest = ["S_2", "S_3", "S_4"].map(|name| pair.take(name))[2];
        (pair, newest)
    };
    let (pair, newest) = prepare();
    let whole = pair.send(newest).bytes;
    for at in (700..whole).step_by(350) {
        let (pair, newest) = prepare();
        pair.alpha.disturb_next("send", Fault::Killed(at));
        let cut = pair.send(newest);
        assert_eq!((cut.is_success, cut.temporary), (false, true), "{cut:?}");
        let before = pair.copy().len();
        let response = pair.send(newest);
        assert_eq!((response.is_success, response.status), (true, ResponseStatus::Incremental), "{at}: {response:?}");
        // Every snapshot that arrived completely, and every record that arrived of the next one, need not be sent
        // again.
        let again = cut.bytes + response.bytes - whole;
        assert!(again < OVERHEAD + RECORD + 100, "cut at {at} with {before} snapshots there, {again} bytes went twice");
        assert!(!is_aborted(&pair.beta, COPY));
        assert_complete(&pair);
    }
}

#[test]
fn order_resumes_by_itself_while_it_may_be_retried() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.alpha.disturb_next("send", Fault::Killed(MIDDLE));
    let (response, _) = pair.carry_out(&DirectorsOrder { retry_for: Some(20), ..pair.send_order(first) });
    assert!(response.is_success, "{response:?}");
    assert!(response.bytes < LONGEST + 2 * OVERHEAD + RECORD, "{} bytes in all", response.bytes);
    assert_complete(&pair);
}

#[test]
fn transfer_resumes_after_killed_receive() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.beta.disturb_next("receive", Fault::Killed(MIDDLE));
    assert_interrupted(&pair, &pair.send(first));
    let response = pair.send(first);
    assert!(response.is_success && response.bytes < LONGEST, "{response:?}");
    assert_complete(&pair);
}

#[test]
fn transfer_resumes_after_killed_slave() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.alpha.disturb_next("send", Fault::Stalled(MIDDLE));
    let response = std::thread::scope(|scope| {
        let sending = scope.spawn(|| pair.send(first));
        wait_until("some data arrives", || has_moved(&pair));
        pair.slave.kill();
        sending.join().unwrap()
    });
    assert_eq!(response.status, ResponseStatus::Unreachable);
    assert_interrupted(&pair, &response);
    let response = pair.send(first);
    assert!(response.is_success && response.bytes < LONGEST, "{response:?}");
    assert_complete(&pair);
}

#[test]
fn transfer_resumes_after_killed_agent() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.alpha.disturb_next("send", Fault::Stalled(MIDDLE));
    let order = pair.send_order(first);
    let (facts, _received) = runtime::channel::unbounded();
    let killed = runtime::block_on(future::or(
        async { Some(common::carry_out(&pair.agent, &order, facts, Counter::default()).await) },
        async {
            while !has_moved(&pair) {
                runtime::sleep(Duration::from_millis(1)).await;
            }
            None
        },
    ));
    assert!(killed.is_none(), "{killed:?}");
    // Until the slave notices that the agent is gone, it keeps the dataset locked.
    let (response, _) = pair.carry_out(&DirectorsOrder { retry_for: Some(20), ..pair.send_order(first) });
    assert!(response.is_success && response.bytes < LONGEST, "{response:?}");
    assert_complete(&pair);
}

#[test]
fn damaged_stream_is_refused_and_only_the_damaged_rest_is_sent_again() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.alpha.disturb_next("send", Fault::Damaged(MIDDLE));
    assert_interrupted(&pair, &pair.send(first));
    let arrived = pair.beta.arrived(&ds(COPY)).unwrap();
    // The resumed stream is damaged as well.
    pair.alpha.disturb_next("send", Fault::Damaged(2500));
    assert_interrupted(&pair, &pair.send(first));
    assert!(pair.beta.arrived(&ds(COPY)).unwrap() > arrived);
    assert!(pair.send(first).is_success);
    assert!(!is_aborted(&pair.beta, COPY));
    assert_complete(&pair);
}

#[test]
fn interrupted_increment_resumes_from_cursor_if_base_was_destroyed() {
    let (pair, second) = interrupted_increment();
    pair.alpha.destroy_by_hand(&ds("tank/data"), &[snap("S_1")]);
    let response = pair.send(second);
    assert!(response.is_success, "{response:?}");
    assert!(!is_aborted(&pair.beta, COPY));
    assert_eq!((pair.copy().last(), token(&pair.beta, COPY)), (Some(&second), None));
}

#[test]
fn newer_snapshot_follows_the_resumed_one() {
    let (pair, second) = interrupted_increment();
    let third = pair.take("S_3");
    let response = pair.send(third);
    assert!(response.is_success, "{response:?}");
    let resumed = pair.alpha.calls().iter().filter(|call| call.starts_with("send -t 1-")).count();
    assert_eq!((resumed, is_aborted(&pair.beta, COPY)), (1, false));
    assert_eq!(pair.copy()[1..], [second, third]);
    assert_complete(&pair);
}

#[test]
fn interrupted_clone_resumes_as_clone() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let origin = DirectorsOrder { dest_dataset: "pool/copy/data".into(), ..pair.send_order(first) };
    assert!(pair.carry_out(&origin).0.is_success);
    pair.alpha.clone_as(&ds("tank/data"), &snap("S_1"), &ds("tank/data/clone"));
    runtime::block_on(pair.alpha.snapshot(&[ds("tank/data/clone")], &snap("S_2"))).unwrap();
    let clone = DirectorsOrder {
        dest_dataset: "pool/copy/clone".into(),
        dataset: Some(ds("tank/data/clone")),
        origin_dataset: Some(ds("pool/copy/data")),
        ..pair.send_order(guids(&pair.alpha, "tank/data/clone")[0])
    };
    pair.alpha.disturb_next("send", Fault::Killed(MIDDLE));
    assert!(!pair.carry_out(&clone).0.is_success);
    assert!(token(&pair.beta, "pool/copy/clone").is_some());
    let (response, _) = pair.carry_out(&DirectorsOrder { order_uuid: order(Action::SendSnapshot).order_uuid, ..clone });
    assert!(response.is_success && response.bytes < LONGEST, "{response:?}");
    let copy = pair.beta.dataset(&ds("pool/copy/clone")).unwrap();
    assert_eq!(copy.origin.map(|origin| origin.dataset), Some(ds("pool/copy/data")));
    assert!(!is_aborted(&pair.beta, "pool/copy/clone"));
}

#[test]
fn raw_first_copy_resumes_raw() {
    let pair = Pair::new();
    pair.alpha.encrypt(&ds("tank/data"));
    let first = pair.take("S_1");
    pair.alpha.disturb_next("send", Fault::Killed(MIDDLE));
    assert_interrupted(&pair, &pair.send(first));
    let response = pair.send(first);
    assert!(response.is_success && response.bytes < LONGEST, "{response:?}");
    assert!(pair.beta.dataset(&ds(COPY)).unwrap().encrypted);
    assert_complete(&pair);
}

// --- Within one host.

/// An order to copy to another dataset of the source's own host.
fn local_order(pair: &Pair, guid: Guid) -> DirectorsOrder {
    DirectorsOrder { destination: "alpha".into(), dest_dataset: "tank/copy/data".into(), ..pair.send_order(guid) }
}

#[test]
fn local_copy_resumes_after_killed_process() {
    for process in ["send", "receive"] {
        let pair = Pair::new();
        let mut sent = Vec::new();
        for name in ["S_1", "S_2"] {
            let guid = pair.take(name);
            pair.alpha.disturb_next(process, Fault::Killed(900));
            let (cut, _) = pair.carry_out(&local_order(&pair, guid));
            assert_eq!((cut.is_success, cut.temporary), (false, true), "{cut:?}");
            assert!(token(&pair.alpha, "tank/copy/data").is_some() && !holds(&pair).is_empty(), "{cut:?}");
            let (response, _) = pair.carry_out(&local_order(&pair, guid));
            assert!(response.is_success, "{response:?}");
            sent.push(guid);
            assert_eq!((guids(&pair.alpha, "tank/copy/data"), holds(&pair).len()), (sent.clone(), 0));
            assert_eq!(token(&pair.alpha, "tank/copy/data"), None);
        }
        assert!(!is_aborted(&pair.alpha, "tank/copy/data"));
        let resumed = pair.alpha.calls().iter().filter(|call| call.starts_with("send -t 1-")).count();
        assert_eq!(resumed, 2, "{:?}", pair.alpha.calls());
    }
}

#[test]
fn local_copy_whose_rest_is_always_refused_is_discarded_and_sent_again() {
    let pair = Pair::new();
    let order = local_order(&pair, pair.take("S_1"));
    pair.alpha.disturb_next("send", Fault::Killed(MIDDLE));
    assert!(!pair.carry_out(&order).0.is_success);
    let refuse =
        || pair.alpha.fail_next("receive", ErrorKind::Stream, "cannot receive resume stream: checksum mismatch");
    for attempt in 1..=2 {
        refuse();
        let (response, _) = pair.carry_out(&order);
        assert!(!response.is_success && response.error.contains("checksum mismatch"), "{attempt}: {response:?}");
        assert!(token(&pair.alpha, "tank/copy/data").is_some(), "{attempt}");
    }
    refuse();
    let (response, _) = pair.carry_out(&order);
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert!(is_aborted(&pair.alpha, "tank/copy/data"));
}

#[test]
fn local_copy_discards_partial_state_of_destroyed_snapshot() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.alpha.disturb_next("send", Fault::Killed(MIDDLE));
    assert!(!pair.carry_out(&local_order(&pair, first)).0.is_success);
    pair.alpha.destroy_by_hand(&ds("tank/data"), &[snap("S_1")]);
    let second = pair.take("S_2");
    let (response, _) = pair.carry_out(&local_order(&pair, second));
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert!(is_aborted(&pair.alpha, "tank/copy/data"));
    assert_eq!(guids(&pair.alpha, "tank/copy/data"), [second]);
}

// --- Partial states that cannot be resumed are discarded.

#[test]
fn partial_state_of_destroyed_snapshot_is_discarded() {
    let (pair, _) = interrupted_increment();
    pair.alpha.destroy_by_hand(&ds("tank/data"), &[snap("S_2")]);
    let third = pair.take("S_3");
    let response = pair.send(third);
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Incremental), "{response:?}");
    assert!(is_aborted(&pair.beta, COPY));
    assert_complete(&pair);

    let (pair, _) = interrupted_first_copy();
    pair.alpha.destroy_by_hand(&ds("tank/data"), &[snap("S_1")]);
    let second = pair.take("S_2");
    let response = pair.send(second);
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert!(is_aborted(&pair.beta, COPY));
    assert_complete(&pair);
}

#[test]
fn partial_state_of_other_snapshot_with_same_name_is_discarded() {
    let (pair, _) = interrupted_increment();
    pair.alpha.destroy_by_hand(&ds("tank/data"), &[snap("S_2")]);
    let response = pair.send(pair.take("S_2"));
    assert!(response.is_success && is_aborted(&pair.beta, COPY), "{response:?}");
    assert_complete(&pair);
}

#[test]
fn partial_state_of_other_dataset_is_discarded() {
    let pair = Pair::new();
    pair.alpha.create(&ds("tank/other"));
    runtime::block_on(pair.alpha.snapshot(&[ds("tank/other")], &snap("S_1"))).unwrap();
    leave_partial(&pair.alpha, "tank/other", SendFlags::PLAIN, &pair.beta);
    let response = pair.send(pair.take("S_1"));
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert!(is_aborted(&pair.beta, COPY));
    assert!(!pair.alpha.calls().iter().any(|call| call.starts_with("send -t")), "nothing else may be sent");
    assert_complete(&pair);
}

#[test]
fn partial_state_of_other_host_is_discarded() {
    let pair = Pair::new();
    let stranger = Fake::new(9);
    stranger.create(&ds("tank"));
    runtime::block_on(stranger.snapshot(&[ds("tank")], &snap("S_1"))).unwrap();
    leave_partial(&stranger, "tank", SendFlags::PLAIN, &pair.beta);
    let response = pair.send(pair.take("S_1"));
    assert!(response.is_success && is_aborted(&pair.beta, COPY), "{response:?}");
    assert_complete(&pair);
}

#[test]
fn partial_state_is_discarded_unless_as_raw_as_source() {
    for encrypted in [true, false] {
        let pair = Pair::new();
        let first = pair.take("S_1");
        // The same snapshot, from a source that is encrypted where this one is not.
        let other = Pair::new();
        other.take("S_1");
        let (source, flags) = if encrypted {
            pair.alpha.encrypt(&ds("tank/data"));
            (&pair.alpha, SendFlags::PLAIN)
        } else {
            other.alpha.encrypt(&ds("tank/data"));
            (&other.alpha, SendFlags::Raw)
        };
        leave_partial(source, "tank/data", flags, &pair.beta);
        let response = pair.send(first);
        assert!(response.is_success && is_aborted(&pair.beta, COPY), "{response:?}");
        assert_eq!(pair.beta.dataset(&ds(COPY)).unwrap().encrypted, encrypted);
        assert_complete(&pair);
    }
}

#[test]
fn partial_state_that_zfs_does_not_resume_is_discarded_within_the_order() {
    let (pair, first) = interrupted_first_copy();
    let words = "cannot receive resume stream: kernel modules must be upgraded to receive this stream.";
    pair.beta.fail_next("receive -s", ErrorKind::Other, words);
    let response = pair.send(first);
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert!(is_aborted(&pair.beta, COPY));
    assert_complete(&pair);
}

#[test]
fn interrupted_replacement_is_discarded_and_replaced_again() {
    let pair = Pair::new();
    pair.beta.create(&ds(COPY));
    let first = pair.take("S_1");
    let replacing = || DirectorsOrder { rollback_if_needed: true, ..pair.send_order(first) };
    pair.alpha.disturb_next("send", Fault::Killed(MIDDLE));
    assert!(!pair.carry_out(&replacing()).0.is_success);
    assert!(token(&pair.beta, COPY).is_some());
    // ZFS would resume this receive only with -F, which zsync never uses for a resumed receive.
    let (response, _) = pair.carry_out(&replacing());
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert!(is_aborted(&pair.beta, COPY));
    assert_complete(&pair);
}

#[test]
fn failed_send_of_token_leaves_it_to_next_order() {
    // The token is valid when the transfer is planned, and no longer valid when the stream starts.
    let (pair, first) = interrupted_first_copy();
    pair.alpha.fail_next("send -t", ErrorKind::StaleToken, "cannot resume send: resume token is corrupt");
    let failed = pair.send(first);
    assert!(!failed.is_success, "{failed:?}");
    assert!(pair.send(first).is_success);
    assert_complete(&pair);
}

// --- What a partial state blocks.

#[test]
fn base_of_interrupted_increment_is_not_pruned_on_either_side() {
    let (pair, second) = interrupted_increment();
    let base = pair.source()[0];
    pair.take("S_3");
    let destroy = |dataset: &str| {
        let record = format!("{}:{dataset}@S_1", base.uuid());
        DirectorsOrder { snapshot_uuid: vec![record], ..order(Action::DestroySnapshot) }
    };
    let (response, _) = pair.carry_out(&destroy("tank/data"));
    assert!(response.is_success && pair.source().contains(&base), "it is held: {response:?}");
    // On the destination, it is neither the newest nor held, but the partial state is a clone of it.
    runtime::block_on(pair.beta.snapshot(&[ds(COPY)], &snap("by-hand"))).unwrap();
    runtime::block_on(pair.beta.release("zsync:from:alpha", &ds(COPY), &[snap("S_1")])).unwrap();
    let open = r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true, "append_only": false } ] }"#;
    let agent = Agent::new(common::host("beta"), std::sync::Arc::new(pair.beta.clone()), local(open));
    let carry_out = |order: &DirectorsOrder| {
        let (facts, _received) = runtime::channel::unbounded();
        runtime::block_on(common::carry_out(&agent, order, facts, Counter::default()))
    };
    let response = carry_out(&destroy(COPY));
    assert!(response.is_success && pair.copy().contains(&base), "it has a clone: {response:?}");
    pair.beta.destroy_by_hand(&ds(COPY), &[snap("by-hand")]);
    assert!(pair.send(second).is_success, "it is resumed nevertheless");
}

#[test]
fn destination_written_to_during_interruption_is_rolled_back_only_if_allowed() {
    let (pair, second) = interrupted_increment();
    pair.beta.write(&ds(COPY), 10);
    let refused = pair.send(second);
    assert_eq!((refused.is_success, refused.status), (false, ResponseStatus::WasWritten), "{refused:?}");
    assert_eq!(pair.copy(), pair.source()[..1]);
    let (allowed, _) = pair.carry_out(&DirectorsOrder { rollback_if_needed: true, ..pair.send_order(second) });
    assert!(allowed.is_success, "{allowed:?}");
    assert_complete(&pair);
}

#[test]
fn diverged_destination_with_partial_state_is_rolled_back_or_set_aside() {
    for set_aside in [false, true] {
        let (pair, second) = interrupted_increment();
        runtime::block_on(pair.beta.snapshot(&[ds(COPY)], &snap("theirs"))).unwrap();
        assert!(!pair.send(second).is_success);
        let order = DirectorsOrder {
            rollback_if_needed: !set_aside,
            rollback_may_destroy: !set_aside,
            on_divergence: if set_aside { OnDivergence::SetAside } else { OnDivergence::Stop },
            ..pair.send_order(second)
        };
        let (response, _) = pair.carry_out(&order);
        assert!(response.is_success, "{response:?}");
        assert_complete(&pair);
        let aside = runtime::block_on(pair.beta.list(&[ds("pool")], zsync::zfs::Depth::Recursive)).unwrap();
        let aside: Vec<DatasetName> =
            aside.into_iter().map(|(name, _)| name).filter(|name| name.as_str().contains("diverged")).collect();
        assert_eq!(aside.len(), usize::from(set_aside));
        assert!(aside.iter().all(|aside| token(&pair.beta, aside.as_str()).is_none()));
    }
}

#[test]
fn estimate_counts_only_the_rest() {
    let (pair, second) = interrupted_increment();
    let arrived = pair.beta.arrived(&ds(COPY)).unwrap();
    let common = CommonBase { host: common::host("beta"), dataset: ds(COPY), guid: pair.copy()[0], awaits: false };
    let estimate = DirectorsOrder {
        action: Action::EstimateSend,
        resume_token: token(&pair.beta, COPY),
        keep_common_with: vec![common],
        ..pair.send_order(second)
    };
    let (response, _) = pair.carry_out(&estimate);
    assert_eq!((response.is_success, response.estimate), (true, Some(1000 - arrived)), "{response:?}");
}
