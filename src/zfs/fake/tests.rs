use std::collections::BTreeMap;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};

use super::{Fake, Fault, LONGEST, RECORD};
use crate::model::{Counter, DatasetName, Guid, SendFlags, SnapName};
use crate::sys::runtime;
use crate::zfs::fake::token::Token;
use crate::zfs::{ErrorKind, Fate, Named, ReceiveSpec, SendFrom, SendSpec, Zfs, ZfsError, ZfsRead};

const PARTIAL: &str = "contains partially-complete state from \"zfs receive -s\".";

fn ds(text: &str) -> DatasetName {
    text.parse().unwrap()
}

fn snap(text: &str) -> SnapName {
    text.parse().unwrap()
}

/// A source with `tank/data`, which has the snapshots 1 to 3 with at least 1000 bytes each, and a destination with
/// `pool`.
fn machines() -> (Fake, Fake) {
    let (source, destination) = (Fake::new(1), Fake::new(2));
    source.create(&ds("tank"));
    source.create(&ds("tank/data"));
    destination.create(&ds("pool"));
    for name in ["1", "2", "3"] {
        source.write(&ds("tank/data"), 1000);
        runtime::block_on(source.snapshot(&[ds("tank/data")], &snap(name))).unwrap();
    }
    (source, destination)
}

fn send(from: SendFrom, to: &str) -> SendSpec {
    SendSpec::Snapshot { dataset: ds("tank/data"), to: snap(to), from, flags: SendFlags::PLAIN }
}

fn receive() -> ReceiveSpec {
    ReceiveSpec {
        dataset: ds("pool/copy"),
        properties: BTreeMap::new(),
        origin: None,
        overwrite: false,
        is_unresumable: false,
    }
}

/// Pipes a send into a receive; returns how many bytes went through, and how the receive ended.
fn pipe(from: (&Fake, &SendSpec), to: (&Fake, &ReceiveSpec)) -> (u64, Result<(), ZfsError>) {
    runtime::block_on(async {
        let (mut sent, mut received) = (from.0.send(from.1).await.unwrap(), to.0.receive(to.1).await.unwrap());
        let (mut buffer, mut bytes) = ([0; 100], 0);
        while let Ok(read @ 1..) = sent.data.read(&mut buffer).await {
            if received.data.write_all(&buffer[..read]).await.is_err() {
                break;
            }
            bytes += read as u64;
        }
        drop(received.data);
        (bytes, received.end.await)
    })
}

/// Like [`pipe`], but the send is killed after `at` bytes; returns the error of the receive.
fn cut(at: u64, source: &Fake, spec: &SendSpec, destination: &Fake) -> ZfsError {
    source.disturb_next("send", Fault::Killed(at));
    pipe((source, spec), (destination, &receive())).1.unwrap_err()
}

fn token(destination: &Fake) -> Option<String> {
    destination.dataset(&ds("pool/copy")).and_then(|copy| copy.resume_token)
}

fn guids(fake: &Fake, dataset: &str) -> Vec<Guid> {
    fake.dataset(&ds(dataset)).map(|d| d.snapshots.iter().map(|s| s.guid).collect()).unwrap_or_default()
}

/// A destination whose first copy is complete, and whose increment to 2 was interrupted.
fn interrupted_increment() -> (Fake, Fake) {
    let (source, destination) = machines();
    pipe((&source, &send(SendFrom::Nothing, "1")), (&destination, &receive())).1.unwrap();
    let error = cut(900, &source, &send(SendFrom::Before(snap("1")), "2"), &destination);
    assert_eq!(error.kind, ErrorKind::Stream, "{error}");
    (source, destination)
}

#[test]
fn interrupted_receive_leaves_token_with_snapshot_bytes_and_flags() {
    let (source, destination) = machines();
    let error = cut(3000, &source, &send(SendFrom::Nothing, "1"), &destination);
    let text = token(&destination).unwrap();
    for words in ["cannot receive new filesystem stream", "Partially received snapshot is saved", &text] {
        assert!(error.stderr.contains(words), "{error}");
    }
    let token = Token::decode(&text).unwrap();
    assert_eq!((token.toname.as_str(), token.toguid), ("tank/data@1", guids(&source, "tank/data")[0]));
    assert_eq!((token.fromguid, token.flags(), token.rawok), (None, SendFlags::PLAIN, false));
    let arrived = destination.arrived(&ds("pool/copy")).unwrap();
    assert_eq!((token.bytes, arrived % RECORD), (arrived, 0), "only whole records are kept");
    assert!((3000 - 600..3000).contains(&arrived), "{arrived}");
    assert!(destination.dataset(&ds("pool/copy")).unwrap().snapshots.is_empty());
}

#[test]
fn receive_cut_before_its_header_leaves_nothing() {
    let (source, destination) = machines();
    let error = cut(20, &source, &send(SendFrom::Nothing, "1"), &destination);
    assert_eq!(error.kind, ErrorKind::Stream, "{error}");
    assert!(destination.dataset(&ds("pool/copy")).is_none());
}

#[test]
fn resumed_send_brings_the_rest_only_wherever_the_first_was_cut() {
    let (source, destination) = machines();
    let whole = pipe((&source, &send(SendFrom::Nothing, "1")), (&destination, &receive())).0;
    for at in (400..whole).step_by(300).chain([whole - 1]) {
        let destination = Fake::new(3);
        destination.create(&ds("pool"));
        cut(at, &source, &send(SendFrom::Nothing, "1"), &destination);
        let arrived = destination.arrived(&ds("pool/copy")).unwrap();
        let resume = SendSpec::Resume { token: token(&destination).unwrap() };
        assert_eq!(runtime::block_on(source.size_of_send(&resume)), Ok(Some(LONGEST - arrived)));
        let (rest, result) = pipe((&source, &resume), (&destination, &receive()));
        assert_eq!(result, Ok(()), "{at}");
        assert!(rest.abs_diff(whole - arrived) < 20, "{rest} of {whole} bytes went, although {arrived} had arrived");
        assert_eq!(guids(&destination, "pool/copy"), guids(&source, "tank/data")[..1]);
        assert_eq!(token(&destination), None);
    }
}

#[test]
fn package_cut_in_second_snapshot_keeps_the_first() {
    let (source, destination) = machines();
    pipe((&source, &send(SendFrom::Nothing, "1")), (&destination, &receive())).1.unwrap();
    cut(2200, &source, &send(SendFrom::Snapshot(snap("1")), "3"), &destination);
    let ours = guids(&source, "tank/data");
    assert_eq!(guids(&destination, "pool/copy"), ours[..2]);
    let token = Token::decode(&token(&destination).unwrap()).unwrap();
    assert_eq!((token.fromguid, token.toguid), (Some(ours[1]), ours[2]));
}

#[test]
fn partial_state_blocks_other_receives_until_aborted() {
    let (source, destination) = interrupted_increment();
    for from in [SendFrom::Before(snap("1")), SendFrom::Snapshot(snap("1"))] {
        let error = pipe((&source, &send(from, "3")), (&destination, &receive())).1.unwrap_err();
        assert!(error.stderr.starts_with("cannot receive incremental stream: destination pool/copy"), "{error}");
        assert!(error.stderr.ends_with(PARTIAL) && error.kind == ErrorKind::Busy, "{error}");
    }
    runtime::block_on(destination.abort_receive(&ds("pool/copy"))).unwrap();
    assert_eq!(token(&destination), None);
    pipe((&source, &send(SendFrom::Snapshot(snap("1")), "3")), (&destination, &receive())).1.unwrap();
    assert_eq!(guids(&destination, "pool/copy"), guids(&source, "tank/data"));
}

#[test]
fn partial_first_copy_blocks_another_one_and_goes_when_aborted() {
    let (source, destination) = machines();
    let full = send(SendFrom::Nothing, "1");
    cut(2000, &source, &full, &destination);
    let error = pipe((&source, &full), (&destination, &receive())).1.unwrap_err();
    assert!(error.stderr.contains("must specify -F to overwrite it"), "{error}");
    let forced = ReceiveSpec { overwrite: true, ..receive() };
    let error = pipe((&source, &full), (&destination, &forced)).1.unwrap_err();
    assert!(error.stderr.ends_with(PARTIAL), "{error}");
    let error = runtime::block_on(destination.snapshot(&[ds("pool/copy")], &snap("x"))).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy, "{error}");
    runtime::block_on(destination.abort_receive(&ds("pool/copy"))).unwrap();
    assert!(destination.dataset(&ds("pool/copy")).is_none());
    pipe((&source, &full), (&destination, &receive())).1.unwrap();
}

#[test]
fn base_of_partial_increment_cannot_be_destroyed() {
    let (source, destination) = interrupted_increment();
    let base = [Named { name: snap("1"), guid: guids(&source, "tank/data")[0] }];
    let copy = ds("pool/copy");
    assert_eq!(runtime::block_on(destination.cloned(&copy, &[snap("1")])).unwrap(), [snap("1")]);
    assert_eq!(runtime::block_on(destination.destroy(&copy, &base, &[], false)).unwrap(), [Fate::Cloned]);
    runtime::block_on(destination.abort_receive(&copy)).unwrap();
    assert_eq!(runtime::block_on(destination.destroy(&copy, &base, &[], false)).unwrap(), [Fate::Destroyed]);
}

#[test]
fn token_of_vanished_snapshot_or_base_is_refused() {
    let (source, destination) = interrupted_increment();
    let token = token(&destination).unwrap();
    let refusal = |words: &str| {
        let error = runtime::block_on(source.resumable(&token)).unwrap_err();
        assert!(error.stderr.contains(words) && error.kind == ErrorKind::StaleToken, "{error}");
        let spec = SendSpec::Resume { token: token.clone() };
        assert_eq!(runtime::block_on(source.send(&spec)).map(|_| ()).unwrap_err().kind, ErrorKind::StaleToken);
    };
    source.destroy_by_hand(&ds("tank/data"), &[snap("1")]);
    refusal(&format!("incremental source {:#x} no longer exists", guids(&destination, "pool/copy")[0].0));
    source.destroy_by_hand(&ds("tank/data"), &[snap("2")]);
    refusal("'tank/data@2' used in the initial send no longer exists");
    runtime::block_on(source.snapshot(&[ds("tank/data")], &snap("2"))).unwrap();
    refusal("'tank/data@2' is no longer the same snapshot used in the initial send");
}

#[test]
fn token_follows_renamed_dataset_and_base_as_bookmark() {
    let (source, destination) = interrupted_increment();
    let ours = guids(&source, "tank/data");
    let base = Named { name: snap("1"), guid: ours[0] };
    runtime::block_on(source.bookmark(&ds("tank/data"), &base, &snap("cursor"))).unwrap();
    source.destroy_by_hand(&ds("tank/data"), &[snap("1")]);
    runtime::block_on(source.rename(&ds("tank/data"), &ds("tank/renamed"))).unwrap();
    let token = token(&destination).unwrap();
    let resumable = runtime::block_on(source.resumable(&token)).unwrap();
    assert_eq!((resumable.dataset, resumable.guid, resumable.raw), (ds("tank/renamed"), ours[1], false));
    pipe((&source, &SendSpec::Resume { token }), (&destination, &receive())).1.unwrap();
    assert_eq!(guids(&destination, "pool/copy"), ours[..2]);
}

#[test]
fn resumed_stream_must_continue_what_is_there() {
    let (source, destination) = interrupted_increment();
    let token = Token::decode(&token(&destination).unwrap()).unwrap();
    let ours = guids(&source, "tank/data");
    for unfit in [
        Token { bytes: token.bytes + RECORD, ..token.clone() },
        Token { toguid: ours[2], ..token.clone() },
        Token { fromguid: None, bytes: 0, ..token },
    ] {
        let resume = SendSpec::Resume { token: unfit.encode() };
        let error = pipe((&source, &resume), (&destination, &receive())).1.unwrap_err();
        assert!(error.stderr.starts_with("cannot receive resume stream: "), "{error}");
        assert!(error.stderr.contains("kernel modules must be upgraded") || error.stderr.contains("-F"), "{error}");
    }
}

#[test]
fn raw_stream_leaves_raw_token() {
    let (source, destination) = machines();
    source.encrypt(&ds("tank/data"));
    let raw =
        SendSpec::Snapshot { dataset: ds("tank/data"), to: snap("1"), from: SendFrom::Nothing, flags: SendFlags::Raw };
    cut(2000, &source, &raw, &destination);
    let token = token(&destination).unwrap();
    assert!(runtime::block_on(source.resumable(&token)).unwrap().raw);
    pipe((&source, &SendSpec::Resume { token }), (&destination, &receive())).1.unwrap();
    assert!(destination.dataset(&ds("pool/copy")).unwrap().encrypted);
}

#[test]
fn damaged_record_is_not_kept() {
    let (source, destination) = machines();
    let full = send(SendFrom::Nothing, "1");
    source.disturb_next("send", Fault::Damaged(3000));
    let error = pipe((&source, &full), (&destination, &receive())).1.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Stream, "{error}");
    let resume = SendSpec::Resume { token: token(&destination).unwrap() };
    pipe((&source, &resume), (&destination, &receive())).1.unwrap();
    assert_eq!(guids(&destination, "pool/copy"), guids(&source, "tank/data")[..1]);
}

#[test]
fn killed_receive_keeps_what_arrived() {
    let (source, destination) = machines();
    destination.disturb_next("receive", Fault::Killed(3000));
    let error = pipe((&source, &send(SendFrom::Nothing, "1")), (&destination, &receive())).1.unwrap_err();
    assert_eq!((error.kind, error.stderr.as_str()), (ErrorKind::Killed, ""));
    assert!(destination.arrived(&ds("pool/copy")).is_some_and(|arrived| arrived > 2000));
}

#[test]
fn running_receive_blocks_others_until_its_process_is_dropped() {
    let (source, destination) = machines();
    let spec = send(SendFrom::Nothing, "1");
    let mut running = runtime::block_on(destination.receive(&receive())).unwrap();
    source.disturb_next("send", Fault::Stalled(2000));
    let mut sent = runtime::block_on(source.send(&spec)).unwrap();
    let mut begun = vec![0; 2000];
    runtime::block_on(async {
        sent.data.read_exact(&mut begun).await.unwrap();
        running.data.write_all(&begun).await.unwrap();
        let more = async { sent.data.read(&mut [0; 10]).await.ok() };
        assert_eq!(future::or(more, async { None }).await, None, "it is stalled");
    });
    let resume = SendSpec::Resume { token: token(&destination).unwrap() };
    let error = pipe((&source, &resume), (&destination, &receive())).1.unwrap_err();
    assert!(error.stderr.ends_with(PARTIAL), "{error}");
    let error = runtime::block_on(destination.abort_receive(&ds("pool/copy"))).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy, "{error}");
    drop(running);
    pipe((&source, &resume), (&destination, &receive())).1.unwrap();
}

#[test]
fn interrupted_replacement_resumes_only_with_force() {
    let (source, destination) = machines();
    destination.create(&ds("pool/copy"));
    let forced = ReceiveSpec { overwrite: true, ..receive() };
    source.disturb_next("send", Fault::Killed(2000));
    pipe((&source, &send(SendFrom::Nothing, "1")), (&destination, &forced)).1.unwrap_err();
    let resume = SendSpec::Resume { token: token(&destination).unwrap() };
    let error = pipe((&source, &resume), (&destination, &receive())).1.unwrap_err();
    assert!(error.stderr.contains("Resuming recv on existing destination 'pool/copy'"), "{error}");
    pipe((&source, &resume), (&destination, &forced)).1.unwrap();
    assert_eq!(guids(&destination, "pool/copy"), guids(&source, "tank/data")[..1]);
}

#[test]
fn resumed_stream_does_not_complete_if_destination_was_written_to() {
    let (source, destination) = interrupted_increment();
    destination.write(&ds("pool/copy"), 10);
    let resume = SendSpec::Resume { token: token(&destination).unwrap() };
    let error = pipe((&source, &resume), (&destination, &receive())).1.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Modified, "{error}");
    assert!(token(&destination).is_some());
}

#[test]
fn copy_reports_why_it_ended_and_gives_up_on_a_stall() {
    let (source, _) = machines();
    source.create(&ds("pool"));
    let copy = |fault: Option<(&str, Fault)>| {
        fault.into_iter().for_each(|(call, fault)| source.disturb_next(call, fault));
        let (counter, stall) = (Counter::default(), Duration::from_millis(50));
        runtime::block_on(source.copy(&send(SendFrom::Nothing, "1"), &receive(), &counter, stall))
    };
    for (fault, kind) in [
        (("send", Fault::Killed(2000)), ErrorKind::Killed),
        (("receive", Fault::Killed(2000)), ErrorKind::Killed),
        (("send", Fault::Stalled(2000)), ErrorKind::Pool),
        (("receive", Fault::Stalled(2000)), ErrorKind::Pool),
        // The receive reports the damage, and the send is killed by its broken pipe. Both errors have one cause, and
        // that of the send is returned.
        (("send", Fault::Damaged(2000)), ErrorKind::Stream),
    ] {
        let error = copy(Some(fault)).unwrap_err();
        assert_eq!(error.kind, kind, "{fault:?}: {error}");
        assert!(token(&source).is_some(), "{fault:?}");
        runtime::block_on(source.abort_receive(&ds("pool/copy"))).unwrap();
    }
    copy(None).unwrap();
    assert_eq!(guids(&source, "pool/copy"), guids(&source, "tank/data")[..1]);
}
