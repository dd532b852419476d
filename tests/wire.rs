//! Confronts agent and slave with peers that violate the protocol. Whatever arrives, both must respond or give up in
//! time, change nothing that they should not, and serve the next peer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::loopback::Server;
use common::{ds, host, local, order, snap, wait_until};
use futures_lite::AsyncReadExt;
use zsync::agent::Agent;
use zsync::model::{Action, Counter, DatasetInventory, Guid, HostName, PeerRole, ResponseStatus, Snapshot};
use zsync::policy::Local;
use zsync::server::acceptor::{Acceptor, Role};
use zsync::slave::Slave;
use zsync::sys::runtime;
use zsync::transport::tcp::Dial;
use zsync::wire::codec::Conn;
use zsync::wire::codec::{LARGEST_FRAME, Sent, StreamEnd, StreamOptions, WireError};
use zsync::wire::{Alive, DestinationInfo, DirectorsOrder, LONGEST_LINE, ListUuids, OrderToSlave, Response, Step};
use zsync::zfs;
use zsync::zfs::Zfs;
use zsync::zfs::fake::Fake;

/// How long a peer may be silent in these tests.
const PATIENCE: Duration = Duration::from_millis(400);
/// How long anything may take before it counts as hanging.
const HANGS: Duration = Duration::from_secs(20);

fn serve<R: Role>(role: &Arc<R>) -> SocketAddr {
    let mut acceptor = Acceptor::new(Arc::clone(role), None);
    acceptor.patience = PATIENCE;
    Server::start(acceptor).address.parse().unwrap()
}

/// A source host, alpha, and a destination host, beta, both listening.
struct Pair {
    alpha: Fake,
    beta: Fake,
    agent: Arc<Agent<Fake>>,
    agent_address: SocketAddr,
    slave_address: SocketAddr,
}

impl Pair {
    fn new() -> Self {
        Self::with(r#"{ "local_datasets": [ { "name": "tank" } ] }"#)
    }

    /// With this `local.json` of the source.
    fn with(source: &str) -> Self {
        let (alpha, beta) = (Fake::new(1), Fake::new(2));
        alpha.create(&ds("tank"));
        alpha.create(&ds("tank/data"));
        beta.create(&ds("pool"));
        let source = Arc::new(Local { stall_timeout: PATIENCE, ..Local::clone(&local(source)) });
        let destination = local(r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true } ] }"#);
        let agent = Arc::new(Agent::new(host("alpha"), Arc::new(alpha.clone()), source));
        let slave = Arc::new(Slave::new(Arc::new(beta.clone()), destination));
        let (agent_address, slave_address) = (serve(&agent), serve(&slave));
        Self { alpha, beta, agent, agent_address, slave_address }
    }

    fn take(&self, name: &str) -> Snapshot {
        self.alpha.write(&ds("tank/data"), 1000);
        let taken = runtime::block_on(self.alpha.snapshot(&[ds("tank/data")], &snap(name))).unwrap();
        taken[0].1.0.last().unwrap().clone()
    }

    fn send(&self, guid: Guid, slave: SocketAddr) -> Response {
        let order = DirectorsOrder {
            destination: "beta".into(),
            destination_address: Some(slave.to_string()),
            snapshot_uuid: vec![guid.uuid().to_string()],
            dest_dataset: "pool/copy".into(),
            dataset: Some(ds("tank/data")),
            order_uuid: sent(),
            ..order(Action::SendSnapshot)
        };
        let (facts, _received) = runtime::channel::unbounded();
        runtime::block_on(common::carry_out(&self.agent, &order, facts, Counter::default()))
    }

    /// Starts a conversation with the slave, and reads its listing.
    fn offer(&self) -> (TcpStream, BufReader<TcpStream>, ListUuids) {
        let order = OrderToSlave {
            source: "alpha".parse().unwrap(),
            order_uuid: sent(),
            snapshot_uuid: Guid(7).uuid().to_string(),
            snapshot_name: snap("S_1"),
            dest_dataset: ds("pool/copy"),
            protocol: 1,
            source_dataset: Some(ds("tank/data")),
            rollback_if_needed: false,
            rollback_may_destroy: false,
            on_divergence: Default::default(),
            clone_of: None,
            renamed_from: None,
            oldest_unsent: None,
            start_by: None,
        };
        let mut stream = connect(self.slave_address);
        send_line(&mut stream, &order);
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let listing = recv_line(&mut lines).unwrap();
        (stream, lines, listing)
    }

    fn offer_when_free(&self) -> (TcpStream, BufReader<TcpStream>) {
        let end = Instant::now() + HANGS;
        loop {
            let (stream, lines, listing) = self.offer();
            if listing.error.is_empty() {
                return (stream, lines);
            }
            assert!(Instant::now() < end, "{listing:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn copy(&self) -> Option<Vec<Guid>> {
        self.beta.dataset(&ds("pool/copy")).map(|d| d.snapshots.iter().map(|s| s.guid).collect())
    }

    fn holds(&self) -> Vec<String> {
        let data = self.alpha.dataset(&ds("tank/data")).unwrap();
        data.snapshots.iter().flat_map(|s| self.alpha.tags(&ds("tank/data"), &s.name)).collect()
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(HANGS)).unwrap();
    stream.set_write_timeout(Some(HANGS)).unwrap();
    stream
}

fn send_line<T: serde::Serialize>(stream: &mut TcpStream, message: &T) {
    let mut line = serde_json::to_vec(message).unwrap();
    line.push(b'\n');
    stream.write_all(&line).unwrap();
}

fn recv_line<T: serde::de::DeserializeOwned>(lines: &mut impl BufRead) -> Option<T> {
    let mut line = String::new();
    let read = lines.read_line(&mut line).unwrap();
    (read > 0).then(|| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}")))
}

/// Sends these bytes, and returns the one response. The connection must be closed after it.
#[track_caller]
fn only_response(address: SocketAddr, bytes: &[u8]) -> Response {
    let mut stream = connect(address);
    // The peer may close before it has read everything.
    stream.write_all(bytes).ok();
    let mut lines = BufReader::new(stream);
    let answer = recv_line(&mut lines).expect("a response");
    let mut rest = Vec::new();
    lines.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    answer
}

#[test]
fn malformed_message_gets_one_response_and_changes_nothing() {
    let pair = Pair::new();
    let nested = format!("{}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    let deep = format!(r#"{{"Unknown":{}1{}}}"#, r#"{"a":"#.repeat(100_000), "}".repeat(100_000)) + "\n";
    let long = "x".repeat(LONGEST_LINE + 1);
    let id = "9b2c1c4e-1111-4222-8333-0123456789ab";
    let cases: Vec<(&[u8], &str)> = vec![
        (b"hello\n", "expected value"),
        (b"\n", "EOF"),
        (b"{}\n", "missing field"),
        (b"[]\n", "invalid length 0"),
        (b"{\"OrderUUID\":\"\xff\xfe\"}\n", "unicode"),
        (nested.as_bytes(), "invalid type"),
        (deep.as_bytes(), "missing field"),
        (long.as_bytes(), "a line of more than"),
        (b"GET / HTTP/1.1\r\n", "expected value"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", "this port accepts only plaintext"),
    ];
    for address in [pair.agent_address, pair.slave_address] {
        for (bytes, words) in &cases {
            let answer = only_response(address, bytes);
            assert!(!answer.is_success && answer.status == ResponseStatus::Refused, "{answer:?}");
            assert!(answer.error.contains(words), "{answer:?}");
            assert!(answer.error.len() < 1000, "{}", answer.error.len());
        }
    }
    for (line, words) in [
        (format!(r#"{{"OrderUUID":"{id}","Action":"take_snapshot","Action":"destroy_snapshot"}}"#), "duplicate field"),
        (format!(r#"{{"OrderUUID":"{id}","Action":"format_disks"}}"#), "unknown variant"),
        (format!(r#"{{"OrderUUID":"{id}","Action":"kv_resync","Protocol":2}}"#), "protocol 2 is newer"),
        (format!(r#"{{"OrderUUID":"{id}","Action":"kv_resync","Protocol":-1}}"#), "invalid value"),
        (r#"{"OrderUUID":"1","Action":"kv_resync"}"#.to_owned(), "UUID"),
    ] {
        let answer = only_response(pair.agent_address, (line + "\n").as_bytes());
        assert!(!answer.is_success && answer.error.contains(words), "{answer:?}");
    }
    assert!(pair.alpha.calls().is_empty() && pair.beta.calls().is_empty());
}

#[test]
fn endless_line_is_refused_before_its_end() {
    let pair = Pair::new();
    for address in [pair.agent_address, pair.slave_address] {
        let mut stream = connect(address);
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let talking = std::thread::spawn(move || {
            let began = Instant::now();
            let error = loop {
                if let Err(error) = stream.write_all(&[b'x'; 65536]) {
                    break error;
                }
                assert!(began.elapsed() < HANGS, "the peer reads forever");
            };
            assert_ne!(error.kind(), ErrorKind::WouldBlock, "the connection hangs");
        });
        let answer: Response = recv_line(&mut lines).unwrap();
        assert!(answer.error.contains("a line of more than"), "{answer:?}");
        talking.join().unwrap();
    }
}

#[test]
fn silent_peer_is_disconnected_with_reason() {
    let pair = Pair::new();
    for address in [pair.agent_address, pair.slave_address] {
        for beginning in [&b""[..], b"{\"OrderUUID\":"] {
            let began = Instant::now();
            let answer = only_response(address, beginning);
            assert!(answer.error.contains("sent nothing for 400ms"), "{answer:?}");
            assert!(began.elapsed() >= PATIENCE);
        }
    }
}

#[test]
fn invalid_names_are_refused_before_zfs_runs() {
    let pair = Pair::new();
    let answer = |fields: &str| {
        let id = uuid::Uuid::now_v7();
        only_response(pair.agent_address, format!("{{\"OrderUUID\":\"{id}\",{fields}}}\n").as_bytes())
    };
    let long = "x".repeat(300);
    for name in ["..", "a@b", "%recv", "a/b", "", "a\\nb", "a\\u0000b", "a,b", "a b#c", &long] {
        for fields in [
            format!(r#""Action":"take_snapshot","SnapshotName":"{name}","DestDataset":"tank/data""#),
            format!(r#""Action":"take_snapshot","SnapshotName":"S","DestDataset":"tank/{name}x/..""#),
        ] {
            let answer = answer(&fields);
            assert!(!answer.is_success && answer.status == ResponseStatus::Refused, "{fields}: {answer:?}");
        }
    }
    let uuid = Guid(7).uuid();
    for fields in [
        r#""Action":"take_snapshot","SnapshotName":"S","DestDataset":"-R""#.to_owned(),
        r#""Action":"take_snapshot","SnapshotName":"S","DestDataset":"tank/data","Datasets":["-r"]"#.to_owned(),
        r#""Action":"take_snapshot","SnapshotName":"S","DestDataset":"tank/data","Datasets":["other/x"]"#.to_owned(),
        r#""Action":"kv_resync","DestDataset":"-R""#.to_owned(),
        r#""Action":"kv_resync","DestDataset":"rpool""#.to_owned(),
        format!(r#""Action":"destroy_snapshot","SnapshotUUID":["{uuid}:tank/data@a,b"]"#),
        format!(r#""Action":"destroy_snapshot","SnapshotUUID":["{uuid}:tank/data@a%b"]"#),
        format!(r#""Action":"destroy_snapshot","SnapshotUUID":["{uuid}:-R@a"]"#),
        format!(r#""Action":"destroy_snapshot","SnapshotUUID":["{uuid}:rpool/data@a"]"#),
        r#""Action":"destroy_snapshot","SnapshotUUID":["tank/data@S"]"#.to_owned(),
        format!(r#""Action":"send_snapshot","Destination":"-o","SnapshotUUID":["{uuid}"],"DestDataset":"pool/copy""#),
        format!(r#""Action":"send_snapshot","Destination":"beta","SnapshotUUID":["{uuid}"],"DestDataset":"-F""#),
        r#""Action":"send_snapshot","Destination":"beta","SnapshotUUID":[],"DestDataset":"pool/copy""#.to_owned(),
        r#""Action":"send_snapshot","Destination":"beta","SnapshotUUID":["x","y"],"DestDataset":"pool/copy""#
            .to_owned(),
    ] {
        let answer = answer(&fields);
        assert!(!answer.is_success && answer.status == ResponseStatus::Refused, "{fields}: {answer:?}");
        assert!(!answer.error.is_empty(), "{fields}");
    }
    assert!(pair.alpha.calls().is_empty(), "{:?}", pair.alpha.calls());
    // After an @, ZFS never takes a name for an option.
    let order =
        DirectorsOrder { snapshot_name: "-R".into(), dest_dataset: "tank/data".into(), ..order(Action::TakeSnapshot) };
    let (facts, _received) = runtime::channel::unbounded();
    let taken = runtime::block_on(common::carry_out(&pair.agent, &order, facts, Counter::default()));
    assert!(taken.is_success, "{taken:?}");
    assert_eq!(pair.alpha.calls(), ["snapshot tank/data@-R"]);
}

#[test]
fn order_with_very_many_names_is_handled_or_refused() {
    let pair = Pair::new();
    let kept = pair.take("S_1");
    let order = |count: u64| DirectorsOrder {
        snapshot_uuid: (0..count).map(|n| Guid(u64::MAX - n).uuid().to_string()).collect(),
        dest_dataset: "tank/data".into(),
        ..order(Action::DestroySnapshot)
    };
    let line = |count| serde_json::to_string(&order(count)).unwrap() + "\n";
    let began = Instant::now();
    let answer = only_response(pair.agent_address, line(20_000).as_bytes());
    assert_eq!((answer.is_success, answer.status), (true, ResponseStatus::NothingToDo), "{answer:?}");
    let answer = only_response(pair.agent_address, line(100_000).as_bytes());
    assert!(!answer.is_success && answer.error.contains("a line of more than"), "{answer:?}");
    let datasets = (0..20_001).map(|n| ds(&format!("tank/{n}"))).collect();
    let many = DirectorsOrder { datasets, ..order(1) };
    let answer = only_response(pair.agent_address, (serde_json::to_string(&many).unwrap() + "\n").as_bytes());
    assert!(!answer.is_success && answer.error.contains("20000 are allowed in one order"), "{answer:?}");
    assert!(began.elapsed() < HANGS);
    assert_eq!(pair.alpha.dataset(&ds("tank/data")).unwrap().snapshots[0].guid, kept.guid);
}

#[test]
fn cut_or_malformed_stream_changes_nothing_and_next_order_succeeds() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let receive = Step::Receive {
        status: ResponseStatus::Full,
        guid: Some(first.guid),
        snapshot_name: snap("S_1"),
        create: Some(zsync::model::DatasetKind::Filesystem),
        overwrite: false,
        is_unresumable: false,
        cloned: false,
        flags: None,
        properties: Default::default(),
    };
    let half = [&100u32.to_be_bytes()[..], b"not all of it"].concat();
    let oversized = u32::try_from(LARGEST_FRAME + 1).unwrap().to_be_bytes().to_vec();
    let strange = [&5u32.to_be_bytes()[..], b"hello", &0u32.to_be_bytes(), b"{\"IsSuccess\":true}\n"].concat();
    let failed = [&5u32.to_be_bytes()[..], b"hello", &0u32.to_be_bytes(), b"{\"IsSuccess\":false,\"Error\":\"E\"}\n"];
    for (bytes, words) in [
        (half, None),
        (oversized, Some("a frame of 1048577 bytes")),
        (b"{\"Step\":\"finish\"}\n".to_vec(), Some("a frame of")),
        (strange, Some("failed to read from stream")),
        (failed.concat(), Some("E")),
    ] {
        let (mut stream, mut lines) = pair.offer_when_free();
        send_line(&mut stream, &receive);
        stream.write_all(&bytes).unwrap();
        if let Some(words) = words {
            let answer: Response = recv_line(&mut lines).unwrap();
            assert!(!answer.is_success && answer.error.contains(words), "{answer:?}");
        }
        drop((stream, lines));
        assert_eq!(pair.copy(), None);
    }
    assert!(pair.send(first.guid, pair.slave_address).is_success);
    assert_eq!(pair.copy(), Some(vec![first.guid]));
}

#[test]
fn invalid_steps_are_refused() {
    let pair = Pair::new();
    pair.beta.create(&ds("pool/copy"));
    let (mut stream, mut lines, _) = pair.offer();
    send_line(&mut stream, &Step::Rollback { guid: Guid(7), destroys: Vec::new() });
    let answer: Response = recv_line(&mut lines).unwrap();
    assert!(answer.error.contains("the order does not allow it"), "{answer:?}");
    let listing: ListUuids = recv_line(&mut lines).unwrap();
    assert!(listing.inventory.is_some());
    // The conversation continues until a message is malformed.
    stream.write_all(b"{\"Step\":\"format\"}\n").unwrap();
    let answer: Response = recv_line(&mut lines).unwrap();
    assert!(answer.error.contains("unknown variant"), "{answer:?}");
    assert_eq!(recv_line::<Response>(&mut lines), None);
    assert!(pair.beta.calls().is_empty(), "{:?}", pair.beta.calls());
}

#[test]
fn second_sender_is_refused_after_waiting_for_the_first() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let (stream, _lines, listing) = pair.offer();
    assert!(listing.error.is_empty());
    let began = Instant::now();
    let (_, _, second) = pair.offer();
    assert!(second.error.contains("is already running"), "{second:?}");
    assert!(began.elapsed() >= PATIENCE, "{:?}", began.elapsed());
    drop((stream, _lines));
    assert!(
        pair.send(first.guid, pair.slave_address).is_success,
        "the slave releases the dataset of an agent that has vanished"
    );
}

#[test]
fn send_to_busy_slave_may_be_retried() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let occupied = r#"{"MapUUID":[],"Status":1,"Error":"another transfer into pool/copy is already running"}"#;
    let slave = fake_slave(move |mut stream, _| stream.write_all(format!("{occupied}\n").as_bytes()).unwrap());
    let busy = pair.send(first.guid, slave);
    assert_eq!((busy.status, busy.temporary), (ResponseStatus::Busy, true), "{busy:?}");
    assert!(busy.error.contains("pool/copy"), "{busy:?}");
    assert!(pair.holds().is_empty());
}

#[test]
fn reconnecting_agent_waits_for_its_own_dropped_conversation() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let gone = pair.offer();
    std::thread::scope(|scope| {
        let back = scope.spawn(|| pair.send(first.guid, pair.slave_address));
        // The new order arrives while the slave still serves the earlier one, or after that.
        drop(gone);
        let back = back.join().unwrap();
        assert!(back.is_success, "{back:?}");
    });
}

/// The OrderUUID of every order that is sent, which the answers of a slave name.
fn sent() -> zsync::model::OrderId {
    zsync::model::OrderId(uuid::Uuid::from_u128(7))
}

/// A fake slave: reads the order, then calls `act`, once for each connection.
fn fake_slave(act: impl Fn(TcpStream, BufReader<TcpStream>) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let _: Option<OrderToSlave> = recv_line(&mut lines);
            act(stream, lines);
        }
    });
    address
}

fn absent() -> ListUuids {
    ListUuids { status: Some(zsync::model::DatasetStatus::False), ..ListUuids::default() }
}

/// Reads a stream to its end, frame by frame.
fn frames(lines: &mut impl BufRead) -> (u64, StreamEnd) {
    let mut total = 0;
    loop {
        let mut length = [0; 4];
        lines.read_exact(&mut length).unwrap();
        match u32::from_be_bytes(length) {
            0 => return (total, recv_line(lines).unwrap()),
            u32::MAX => {}
            length => {
                assert!(length as usize <= LARGEST_FRAME, "{length:x} is not the length of a frame");
                let copied = std::io::copy(&mut lines.by_ref().take(u64::from(length)), &mut std::io::sink()).unwrap();
                assert_eq!(copied, u64::from(length));
                total += copied;
            }
        }
    }
}

#[test]
fn second_order_for_dataset_is_busy_at_once() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let (arrived, waiting) = std::sync::mpsc::channel();
    let slow = fake_slave(move |stream, mut lines| {
        arrived.send(()).unwrap();
        // Reads until the agent gives up.
        std::io::copy(&mut lines, &mut std::io::sink()).ok();
        drop(stream);
    });
    std::thread::scope(|scope| {
        let earlier = scope.spawn(|| pair.send(first.guid, slow));
        waiting.recv_timeout(HANGS).unwrap();
        let began = Instant::now();
        let later = pair.send(first.guid, pair.slave_address);
        assert_eq!((later.status, later.temporary), (ResponseStatus::Busy, true), "{later:?}");
        assert!(later.error.contains("tank/data is being sent already"), "{later:?}");
        assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
        let earlier = earlier.join().unwrap();
        assert_eq!((earlier.status, earlier.temporary), (ResponseStatus::Unreachable, true), "{earlier:?}");
        assert!(earlier.error.contains("sent nothing for 400ms"), "{earlier:?}");
    });
    assert!(pair.send(first.guid, pair.slave_address).is_success);
}

#[test]
fn send_to_vanishing_slave_may_be_retried() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    for point in 0..4 {
        let slave = fake_slave(move |mut stream, mut lines| {
            if point > 0 {
                send_line(&mut stream, &absent());
            }
            if point > 1 {
                let _: Option<Step> = recv_line(&mut lines);
            }
            if point > 2 {
                frames(&mut lines);
            }
        });
        let response = pair.send(first.guid, slave);
        assert_eq!((response.status, response.temporary), (ResponseStatus::Unreachable, true), "{point}: {response:?}");
        assert!(response.error.contains("beta") && response.error.contains("closed"), "{point}: {response:?}");
    }
    // The transfer that succeeds releases the holds that the failed ones left for resuming.
    assert!(pair.send(first.guid, pair.slave_address).is_success);
    assert!(pair.holds().is_empty(), "{:?}", pair.holds());
}

#[test]
fn refusal_or_nonsense_of_slave_is_quoted() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    for (line, words) in [
        ("hello", "cannot parse what"),
        (r#"{"MapUUID":[],"Status":99}"#, "99 is not a DatasetStatus"),
        (r#"{"MapUUID":[],"Status":4,"Error":"closed today"}"#, "closed today"),
        (r#"{"OrderUUID":null,"IsSuccess":false,"Status":10,"Error":"not in this tone"}"#, "not in this tone"),
    ] {
        let slave = fake_slave(move |mut stream, _| {
            stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        });
        let response = pair.send(first.guid, slave);
        assert!(!response.is_success && !response.temporary, "{response:?}");
        assert!(response.error.contains("beta") && response.error.contains(words), "{response:?}");
        assert!(pair.holds().is_empty());
    }
}

#[test]
fn send_succeeds_if_only_end_of_conversation_is_lost() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let arrived = first.clone();
    let slave = fake_slave(move |mut stream, mut lines| {
        send_line(&mut stream, &absent());
        let step: Option<Step> = recv_line(&mut lines);
        assert!(matches!(step, Some(Step::Receive { .. })), "{step:?}");
        assert!(frames(&mut lines).1.is_success);
        send_line(&mut stream, &Response::success(sent(), ResponseStatus::Done, ""));
        let inventory = DatasetInventory { snapshots: vec![arrived.clone()], ..DatasetInventory::default() };
        let map_uuid = vec![arrived.guid.uuid().to_string()];
        send_line(&mut stream, &ListUuids { map_uuid, inventory: Some(inventory), ..absent() });
        let step: Option<Step> = recv_line(&mut lines);
        assert!(matches!(step, Some(Step::Finish { .. })), "{step:?}");
    });
    let response = pair.send(first.guid, slave);
    assert_eq!((response.is_success, response.status), (true, ResponseStatus::Full), "{response:?}");
    assert!(response.error.contains("the stream arrived"), "{response:?}");
    let cursors = pair.alpha.dataset(&ds("tank/data")).unwrap().bookmarks;
    assert_eq!(cursors.len(), 1, "the cursor moves, because the snapshot is known to have arrived");
    assert_eq!(pair.holds().len(), 1, "the source keeps its hold, because the destination may have none");
}

#[test]
fn send_fails_if_received_snapshot_cannot_be_held() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    pair.beta.fail_next("hold", zfs::ErrorKind::Permission, "cannot hold: permission denied");
    let response = pair.send(first.guid, pair.slave_address);
    assert!(!response.is_success, "{response:?}");
    assert!(response.error.contains("the stream arrived, but the destination cannot complete"), "{response:?}");
    assert!(response.error.contains("permission denied"), "{response:?}");
    assert_eq!(pair.copy(), Some(vec![first.guid]));
    assert!(pair.send(first.guid, pair.slave_address).is_success, "the next order repairs it");
    assert_eq!(pair.beta.tags(&ds("pool/copy"), &snap("S_1")).len(), 1);
    assert!(pair.holds().is_empty());
}

#[test]
fn failed_transfer_leaves_no_holds_on_source() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let out_of_space = "cannot receive new filesystem stream: out of space";
    pair.beta.fail_next("receive", zfs::ErrorKind::NoSpace, out_of_space);
    let response = pair.send(first.guid, pair.slave_address);
    assert!(response.error.contains(out_of_space) && response.message().contains("free space"), "{response:?}");
    assert!(pair.holds().is_empty(), "{:?}", pair.holds());
    pair.alpha.fail_next("send", zfs::ErrorKind::Permission, "cannot send: permission denied");
    let response = pair.send(first.guid, pair.slave_address);
    assert!(!response.is_success && !response.temporary, "{response:?}");
    assert!(response.error.contains("permission denied"), "{response:?}");
    assert!(pair.holds().is_empty(), "{:?}", pair.holds());
    assert_eq!(pair.copy(), None);
}

#[test]
fn order_ends_after_director_disconnects() {
    let pair = Pair::new();
    // More facts than the agent keeps for a director that reads slowly.
    for n in 0..200 {
        pair.alpha.create(&ds(&format!("tank/data/{n}")));
    }
    let idle = Arc::strong_count(&pair.agent);
    for _ in 0..20 {
        let mut stream = connect(pair.agent_address);
        send_line(&mut stream, &order(Action::KvResync));
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
    let answer = pair.send(pair.take("S_1").guid, pair.slave_address);
    assert!(answer.is_success, "{answer:?}");
    wait_until("the orders end", || Arc::strong_count(&pair.agent) == idle);
}

/// The sender's side of a connection, and the raw socket at the other end.
fn streaming() -> (zsync::wire::codec::Conn, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut conn = {
        let beta: HostName = "beta".parse().unwrap();
        let dial = Dial { host: &beta, role: PeerRole::Slave, address: &address, tls: None };
        Conn::from(runtime::block_on(dial.connect()).unwrap())
    };
    conn.patience = PATIENCE;
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(HANGS)).unwrap();
    (conn, peer)
}

#[test]
fn stream_refused_during_frame_ends_at_frame_boundary() {
    let (mut conn, mut peer) = streaming();
    let peer_thread = std::thread::spawn(move || {
        let mut lines = BufReader::new(peer.try_clone().unwrap());
        // The sender fills the buffers of the connection, and blocks within a frame.
        let mut beginning = [0; 100_000];
        lines.read_exact(&mut beginning[..4]).unwrap();
        let length = u32::from_be_bytes(beginning[..4].try_into().unwrap());
        std::thread::sleep(PATIENCE / 4);
        send_line(&mut peer, &Alive { refused: true, ..Alive::default() });
        std::thread::sleep(PATIENCE / 4);
        std::io::copy(&mut lines.by_ref().take(u64::from(length)), &mut std::io::sink()).unwrap();
        frames(&mut lines)
    });
    let counter = Counter::default();
    let sent = runtime::block_on(async {
        let mut source = futures_lite::io::repeat(7).take(1 << 30);
        let sent = conn.send_stream(&mut source, StreamOptions::default(), &counter).await.unwrap();
        conn.end_stream(&StreamEnd { is_success: false, error: "refused".into() }).await.unwrap();
        sent
    });
    assert_eq!(sent, Sent::Refused);
    let (_, end) = peer_thread.join().unwrap();
    assert_eq!(end.error, "refused");
    assert!(counter.get() < 1 << 28, "{} bytes were sent after the refusal", counter.get());
}

#[test]
fn sender_waits_for_slow_receiver_that_reports_progress() {
    let (mut conn, mut peer) = streaming();
    let peer_thread = std::thread::spawn(move || {
        for alive in 0..10 {
            send_line(&mut peer, &Alive { alive, ..Alive::default() });
            std::thread::sleep(PATIENCE / 4);
        }
        frames(&mut BufReader::new(peer)).0
    });
    let counter = Counter::default();
    let sent = runtime::block_on(async {
        let mut source = futures_lite::io::repeat(7).take(32 << 20);
        let sent = conn.send_stream(&mut source, StreamOptions::default(), &counter).await.unwrap();
        conn.end_stream(&StreamEnd { is_success: true, error: String::new() }).await.unwrap();
        sent
    });
    assert_eq!((sent, peer_thread.join().unwrap()), (Sent::All, 32 << 20));
    assert_eq!(counter.get(), 32 << 20);
}

#[test]
fn sender_gives_up_on_silent_receiver() {
    let (mut conn, peer) = streaming();
    let mut source = futures_lite::io::repeat(7).take(1 << 30);
    let began = Instant::now();
    let error =
        runtime::block_on(conn.send_stream(&mut source, StreamOptions::default(), &Counter::default())).unwrap_err();
    assert!(matches!(error, WireError::Silent { .. }), "{error}");
    assert!(began.elapsed() < HANGS);
    drop(peer);
}

const COMPRESSING: &str = r#"{ "compression": { "beta": "zstd:1" }, "local_datasets": [ { "name": "tank" } ] }"#;

/// Skips the next frame of a stream; returns its length and whether it is compressed, `None` at the end of the stream.
fn pass_frame(lines: &mut impl BufRead) -> Option<(u32, bool)> {
    loop {
        let mut length = [0; 4];
        lines.read_exact(&mut length).unwrap();
        match u32::from_be_bytes(length) {
            0 => return None,
            // A sign of life.
            u32::MAX => {}
            said => {
                let length = said & !(1 << 31);
                std::io::copy(&mut lines.by_ref().take(length.into()), &mut std::io::sink()).unwrap();
                return Some((length, said & 1 << 31 != 0));
            }
        }
    }
}

/// Reads a stream that must succeed; returns the length of each frame and whether it is compressed.
fn lengths(lines: &mut impl BufRead) -> Vec<(u32, bool)> {
    let all = std::iter::from_fn(|| pass_frame(lines)).collect();
    let end: Option<StreamEnd> = recv_line(lines);
    assert!(end.unwrap().is_success);
    all
}

#[test]
fn compressed_stream_arrives() {
    let pair = Pair::with(COMPRESSING);
    assert_eq!(pair.offer().2.place.map(|place| place.takes_zstd), Some(true));
    let taken: Vec<Guid> = (0..40).map(|n| pair.take(&format!("S_{n}")).guid).collect();
    let response = pair.send(taken[39], pair.slave_address);
    assert!(response.is_success, "{response:?}");
    assert_eq!(pair.copy(), Some(taken));
}

#[test]
fn stream_is_compressed_only_for_slaves_that_support_it() {
    for newer in [false, true] {
        let pair = Pair::with(COMPRESSING);
        let taken: Vec<Snapshot> = (0..40).map(|n| pair.take(&format!("S_{n}"))).collect();
        let (sender, receiver) = std::sync::mpsc::channel();
        let slave = fake_slave(move |mut stream, mut lines| {
            let place = newer.then(|| DestinationInfo { takes_zstd: true, ..DestinationInfo::default() });
            send_line(&mut stream, &ListUuids { place, ..absent() });
            let step: Option<Step> = recv_line(&mut lines);
            assert!(matches!(step, Some(Step::Receive { .. })), "{step:?}");
            sender.send(lengths(&mut lines)).unwrap();
        });
        // The fake slave ends the conversation here; other tests check what that means.
        assert!(!pair.send(taken[39].guid, slave).is_success);
        let frames = receiver.recv_timeout(HANGS).unwrap();
        assert!(!frames.is_empty() && frames.iter().all(|(_, packed)| *packed == newer), "{newer}: {frames:?}");
    }
}

#[test]
fn stream_is_not_compressed_unless_configured() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    let (sender, receiver) = std::sync::mpsc::channel();
    let slave = fake_slave(move |mut stream, mut lines| {
        let place = Some(DestinationInfo { takes_zstd: true, ..DestinationInfo::default() });
        send_line(&mut stream, &ListUuids { place, ..absent() });
        let _step: Option<Step> = recv_line(&mut lines);
        sender.send(lengths(&mut lines)).unwrap();
    });
    assert!(!pair.send(first.guid, slave).is_success);
    assert!(receiver.recv_timeout(HANGS).unwrap().iter().all(|(_, packed)| !packed));
}

#[test]
fn damaged_compressed_stream_changes_nothing_and_next_one_arrives() {
    let pair = Pair::new();
    let first = pair.take("S_1");
    for frame in [&b"\x80\0\0\0"[..], b"\x80\0\0\x04what", b"\x80\x10\0\x01"] {
        let (mut stream, mut lines) = pair.offer_when_free();
        let line = r#"{"Step":"receive","Status":8,"Guid":"7","SnapshotName":"S_1","Create":"filesystem"}"#;
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        stream.write_all(frame).unwrap();
        let answer: Response = recv_line(&mut lines).unwrap();
        assert!(!answer.is_success && answer.error.contains("is damaged"), "{answer:?}");
        assert_eq!(pair.copy(), None);
    }
    assert!(pair.send(first.guid, pair.slave_address).is_success);
}

#[test]
fn compressed_stream_can_be_refused_midway() {
    let (mut conn, mut peer) = streaming();
    let peer_thread = std::thread::spawn(move || {
        let mut lines = BufReader::new(peer.try_clone().unwrap());
        assert!(pass_frame(&mut lines).is_some());
        send_line(&mut peer, &Alive { refused: true, ..Alive::default() });
        while pass_frame(&mut lines).is_some() {}
        recv_line::<StreamEnd>(&mut lines).unwrap()
    });
    let counter = Counter::default();
    let sent = runtime::block_on(async {
        let mut source = futures_lite::io::repeat(7).take(1 << 40);
        let way = StreamOptions { zstd: Some(1), ..StreamOptions::default() };
        let sent = conn.send_stream(&mut source, way, &counter).await.unwrap();
        conn.end_stream(&StreamEnd { is_success: false, error: "refused".into() }).await.unwrap();
        sent
    });
    assert_eq!(sent, Sent::Refused);
    assert_eq!(peer_thread.join().unwrap().error, "refused");
}
