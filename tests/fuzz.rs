//! Feeds random mutations of the seeds in `tests/corpus` to all code that parses data from peers or from `zfs`. No
//! input may cause a panic, take long or make the memory grow. An accepted message must have the same meaning after it
//! is written and read again.
//!
//! `make fuzz` runs ten million inputs, `cargo test` a few thousand for each target. `ZSYNC_FUZZ_INPUTS` sets the
//! number of all inputs, `ZSYNC_FUZZ_SEED` the seed of the random numbers. A failure prints the input.
//!
//! The last long run, 2026-11-25 on two busy cores: 10,000,008 inputs in 310 s, the slowest took 0.6 s (a whole
//! conversation with an agent), 7 MiB resident, at most 0.6 MiB more at the end than after a tenth.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::{ds, resident};
use futures_lite::io::{AsyncReadExt, Cursor};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zsync::agent::Agent;
use zsync::commands::tls::{Wanted, mint, mint_ca};
use zsync::config::{parse_local, parse_policy};
use zsync::model::{Action, DatasetKind, DatasetName, Guid, HostName, Prefix, Record, SendFlags, SnapName};
use zsync::server::acceptor::Role;
use zsync::slave::Slave;
use zsync::sys::runtime;
use zsync::transport::tls::{certificate, certificates_in};
use zsync::wire::codec::{Conn, LARGEST_FRAME, StreamEnd};
use zsync::wire::{AgentLine, Alive, DirectorsOrder, ListUuids, OrderToSlave, Response, Step};
use zsync::zfs::fake::Fake;
use zsync::zfs::inspect::StreamInspector;
use zsync::zfs::parse::UserProperties;
use zsync::zfs::{DatasetColumns, ExpectedStream, Inspect, SendFrom, SendSpec, Zfs, parse};

/// The number of targets, which share the inputs.
const TARGETS: u64 = 14;
/// No input may take longer, however large it is.
const LONGEST: Duration = Duration::from_secs(2);
/// How much the memory may grow between the first tenth of a target and its end.
const GROWTH: u64 = 48 << 20;

// --- Random numbers.

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }

    /// A random range of a text, mostly a short one.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let from = self.below(length + 1);
        let most = if self.below(4) == 0 { length - from } else { (length - from).min(8) };
        from..from + self.below(most + 1)
    }
}

/// Pieces that mean something to one of the parsers, or should not.
const WORDS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"\\",
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b"\0",
    b"null",
    b"true",
    b"false",
    b"-1",
    b"0",
    b"1e999",
    b"-0.0",
    b"18446744073709551615",
    b"18446744073709551616",
    b"99999999999999999999999999",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\xc3\x28",
    b"\xef\xbb\xbf",
    b"..",
    b".",
    b"/",
    b"//",
    b"@",
    b"#",
    b"%",
    b"%recv",
    b"-",
    b"--",
    b"-R",
    b"-rf",
    b"$(id)",
    b"`id`",
    b";",
    b"|",
    b"'",
    b"*",
    b"\xe2\x80\xae",
    b"tank",
    b"tank/data@S_1",
    b"pool/copy",
    b"\"OrderUUID\":",
    b"\"Action\":",
    b"\"take_snapshot\"",
    b"\"destroy_snapshot\"",
    b"\"kv_resync\"",
    b"\"SnapshotUUID\":[",
    b"\"Step\":\"receive\"",
    b"\"Step\":\"finish\"",
    b"\"Step\":\"abort\"",
    b"\"Protocol\":",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x00\x10\x00\x01",
    b"\x30\x80",
    b"\x30\x84",
];

fn mutate(seeds: &[Vec<u8>], random: &mut Random, into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(&seeds[random.below(seeds.len())]);
    for _ in 0..=random.below(8) {
        match random.below(9) {
            0 if !into.is_empty() => {
                let at = random.below(into.len());
                into[at] ^= 1 << random.below(8);
            }
            1 if !into.is_empty() => {
                let at = random.below(into.len());
                into[at] = random.next() as u8;
            }
            2 => {
                let at = random.below(into.len() + 1);
                into.splice(at..at, random.of(WORDS).iter().copied());
            }
            3 => {
                let range = random.range(into.len());
                into.splice(range, random.of(WORDS).iter().copied());
            }
            4 => drop(into.drain(random.range(into.len()))),
            5 => {
                let piece = into[random.range(into.len())].to_vec();
                let at = random.below(into.len() + 1);
                into.splice(at..at, piece);
            }
            6 => {
                let other = &seeds[random.below(seeds.len())];
                let piece = other[random.range(other.len())].to_vec();
                let range = random.range(into.len());
                into.splice(range, piece);
            }
            7 if random.below(8) == 0 => into.truncate(random.below(into.len() + 1)),
            // Sometimes something long: deep nesting, an endless name.
            8 if random.below(64) == 0 => {
                let piece = random.of(WORDS).repeat(1 + random.below(5000));
                let at = random.below(into.len() + 1);
                into.splice(at..at, piece);
            }
            _ => {}
        }
    }
}

// --- Running.

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// Targets run one after the other, because each measures the memory of the process.
static TURN: Mutex<()> = Mutex::new(());

fn fuzz(target: &str, seeds: &[Vec<u8>], mut read: impl FnMut(&[u8])) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let inputs = number("ZSYNC_FUZZ_INPUTS", TARGETS * 3000).div_ceil(TARGETS);
    let mut random = Random(
        number("ZSYNC_FUZZ_SEED", 1)
            ^ target.bytes().fold(7u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(b))),
    );
    let (mut input, mut slowest, mut before) = (Vec::new(), Duration::ZERO, 0);
    let began = Instant::now();
    for n in 0..inputs {
        match seeds.get(usize::try_from(n).unwrap()) {
            Some(seed) => input.clone_from(seed),
            None => mutate(seeds, &mut random, &mut input),
        }
        let begin = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| read(&input)));
        let took = begin.elapsed();
        slowest = slowest.max(took);
        assert!(ended.is_ok() && took < LONGEST, "{target}, input {n}, {took:?}: {}", input.escape_ascii());
        if n == inputs / 10 {
            before = resident(std::process::id());
        }
    }
    let grown = resident(std::process::id()).saturating_sub(before);
    println!(
        "{target}: {inputs} inputs in {:.1?}, the slowest {slowest:.1?}, {} MiB resident, {} KiB more than after a tenth",
        began.elapsed(),
        resident(std::process::id()) >> 20,
        grown >> 10
    );
    assert!(grown < GROWTH, "{target}: memory grew by {grown} bytes");
}

/// The seeds of a target: the pieces of a file in `tests/corpus`, separated by lines of four dashes.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let seeds: Vec<Vec<u8>> = text.split("----\n").map(|piece| piece.as_bytes().to_vec()).collect();
    assert!(seeds.len() >= 2, "{name} has no seeds");
    seeds
}

/// A message that parses is the same after another round of writing and parsing.
fn message<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(read) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&read).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), read);
    }
}

/// Whether ZFS takes this for a name and nothing else.
fn is_harmless(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.: /".contains(&b))
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

// --- Targets.

#[test]
fn orders_are_parsed_without_panic() {
    fuzz("orders", &corpus("orders"), |bytes| {
        message::<DirectorsOrder>(bytes);
        message::<OrderToSlave>(bytes);
    });
}

#[test]
fn agent_lines_are_parsed_without_panic() {
    fuzz("answers of an agent", &corpus("agent"), |bytes| {
        message::<AgentLine>(bytes);
        message::<Response>(bytes);
    });
}

#[test]
fn slave_lines_are_parsed_without_panic() {
    fuzz("answers of a slave", &corpus("slave"), |bytes| {
        message::<ListUuids>(bytes);
        message::<Response>(bytes);
        if let Ok(alive) = serde_json::from_slice::<Alive>(bytes) {
            assert_eq!(serde_json::from_slice::<Alive>(&serde_json::to_vec(&alive).unwrap()).unwrap(), alive);
        }
    });
}

#[test]
fn transfer_steps_are_parsed_without_panic() {
    fuzz("steps of a transfer", &corpus("steps"), |bytes| {
        message::<Step>(bytes);
        message::<StreamEnd>(bytes);
    });
}

fn conn(bytes: &[u8]) -> Conn {
    // Responses are discarded.
    let out = Box::new(futures_lite::io::sink());
    let mut conn = Conn::new(Box::new(Cursor::new(bytes.to_vec())), out, "fuzz".into());
    conn.patience = Duration::from_secs(1);
    conn
}

#[test]
fn lines_and_frames_are_read_within_limits() {
    let mut seeds = corpus("orders");
    seeds.push(b"\0\0\0\x03abc\xff\xff\xff\xff\0\0\0\x01x\0\0\0\0{\"IsSuccess\":true}\n".to_vec());
    seeds.push(b"a\nb\n\nc".to_vec());
    // Compressed: its content is longer than the input.
    let packed = zstd::bulk::compress(&b"zsync ".repeat(5000), 3).unwrap();
    let length = (1 << 31 | u32::try_from(packed.len()).unwrap()).to_be_bytes();
    seeds.push([&b"\0\0\0\x03abc"[..], &length, &packed, &length, &packed, b"\0\0\0\0{\"IsSuccess\":true}\n"].concat());
    fuzz("lines and frames", &seeds, |bytes| {
        let lines = bytes.split(|b| *b == b'\n').count();
        runtime::block_on(async {
            let mut lined = conn(bytes);
            let mut heard = 0;
            while let Ok(Some(line)) = lined.recv_line(lined.patience).await {
                assert!(!line.contains(&b'\n'));
                heard += 1;
            }
            assert!(heard <= lines);
            let (mut framed, mut frame, mut frames) = (conn(bytes), Vec::new(), 0);
            while let Ok(true) = framed.recv_frame(&mut frame).await {
                assert!((1..=LARGEST_FRAME).contains(&frame.len()));
                frames += 1;
            }
            assert!(5 * frames <= bytes.len());
        });
    });
}

#[test]
fn names_that_parse_are_harmless() {
    fuzz("names", &corpus("names"), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        for text in text.lines() {
            if let Ok(name) = text.parse::<DatasetName>() {
                assert!(is_harmless(name.as_str()) && name.as_str().as_bytes()[0].is_ascii_alphabetic(), "{name}");
                assert_eq!(name.as_str(), text);
                let parents = std::iter::successors(name.parent(), DatasetName::parent);
                assert!(parents.into_iter().all(|parent| name.is_within(&parent) && !parent.is_within(&name)));
            }
            if let Ok(name) = text.parse::<SnapName>() {
                assert!(is_harmless(name.as_str()) && !name.as_str().contains('/'), "{name}");
                if let Some(prefix) = Prefix::of(&name) {
                    assert!(name.as_str().starts_with(prefix.as_str()), "{name}");
                }
            }
            if let Ok(host) = text.parse::<HostName>() {
                assert!(host.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{host}");
                assert!(!host.as_str().starts_with(['-', '.']), "{host}");
            }
            // A token becomes an argument of zfs, and must never be an option.
            assert!(!parse::is_token(text) || !text.starts_with('-') && !text.contains(['/', ' ', '@']), "{text}");
            if let Ok(record) = text.parse::<Record>() {
                assert_eq!(record.to_string().parse::<Record>().unwrap(), record);
            }
        }
    });
}

#[test]
fn zfs_listings_are_parsed_without_panic() {
    fuzz("listings of zfs", &corpus("zfs-list"), |bytes| {
        let datasets = parse::datasets(bytes, DatasetColumns { changed: false, user: true });
        let histories = parse::Histories::parse(bytes);
        for ((name, _), _) in datasets.iter().flatten() {
            assert!(is_harmless(name.as_str()));
        }
        if let (Ok(datasets), Ok(histories)) = (datasets, histories) {
            let count = datasets.len();
            assert!(histories.join(datasets.into_iter().map(|(listed, _)| listed).collect()).len() <= count);
        }
    });
}

/// Whatever somebody writes into a user property of one dataset, the others are listed as they are.
#[test]
fn value_of_user_property_affects_only_its_dataset() {
    let names = ["tank", "tank/a", "tank/b", "tank/b/c"];
    let mut seeds = corpus("zfs-list");
    seeds.extend(names.map(|name| format!("on\t-\ttank/b\n{name}\ton\t-\t{name}\ntank/b\t-").into_bytes()));
    let head = |name: &str| format!("{name}\tfilesystem\t7\t0\t-\t-\t-");
    seeds.push(format!("on\t-\ttank/b\n{}\ton\t-\ttank/new\n{}\t-", head("tank/new"), head("tank/b")).into_bytes());
    fuzz("values of user properties", &seeds, |value| {
        let listing = |head: &dyn Fn(&str) -> String| {
            let line = |name: &str| match name {
                "tank/b" => [head(name).as_bytes(), b"\t", value, b"\t-\ttank/b\n"].concat(),
                _ => format!("{}\t-\t-\t{name}\n", head(name)).into_bytes(),
            };
            names.map(line).concat()
        };
        let user = DatasetColumns { changed: false, user: true };
        if let Ok(rows) = parse::datasets(&listing(&head), user) {
            let found: Vec<_> = rows.iter().map(|((name, of), _)| (name.as_str(), of.excluded)).collect();
            assert!(found.iter().map(|(name, _)| *name).eq(names), "{found:?}");
            assert!(found.iter().all(|(name, excluded)| !excluded || *name == "tank/b"), "{found:?}");
        }
        let apart = listing(&str::to_owned);
        for (name, values) in parse::user_properties(&apart) {
            let is_other = name.as_str() != "tank/b" && names.contains(&name.as_str());
            assert!(!is_other || matches!(values, UserProperties::Clear("-", "-") | UserProperties::Ambiguous));
        }
    });
}

/// A record of a `zfs send` stream with these integers at these places, and its payload.
fn record(kind: u32, fields: &[(usize, u64)], payload: usize) -> Vec<u8> {
    let mut bytes = vec![0; 312];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    for (at, value) in fields {
        bytes[*at..*at + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes.extend(std::iter::repeat_n(7, payload));
    bytes
}

fn guid(bytes: &[u8]) -> Guid {
    Guid(u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// A stream of `zfs send`.
struct Captured {
    /// The kind of stream.
    kind: String,
    /// The version of OpenZFS that sent it.
    version: String,
    bytes: Vec<u8>,
}

impl Captured {
    fn continues(&self) -> bool {
        self.kind.contains("resumed")
    }
}

/// The streams that `tests/lab/streams` captured.
fn captured_streams() -> Vec<Captured> {
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let entries = |folder: &Path| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut streams = Vec::new();
    for folder in entries(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/streams")) {
        let version = folder.file_name().unwrap().to_str().unwrap().to_owned();
        streams.extend(entries(&folder).map(|path| Captured {
            kind: name(&path),
            version: version.clone(),
            bytes: zstd::stream::decode_all(std::fs::File::open(path).unwrap()).unwrap(),
        }));
    }
    streams.sort_by(|a, b| (&a.version, &a.kind).cmp(&(&b.version, &b.kind)));
    streams
}

/// The guid of the last snapshot of a stream: a record that begins one has a magic number.
fn last_guid(stream: &[u8]) -> Guid {
    let begins = |record: &&[u8]| record[..8] == 0x2_F5BA_CBAC_u64.to_le_bytes() && record[8] & 3 == 1;
    stream.windows(40).rfind(begins).map_or(Guid(0), |record| guid(&record[32..40]))
}

/// The versions of OpenZFS whose streams were captured.
const VERSIONS: [&str; 2] = ["2.1", "2.3"];

/// The kinds of streams. Those that zsync never asks for are refused, each for a reason.
const KINDS: &[(&str, Option<&str>)] = &[
    ("all-flags", None),
    ("backup", Some("zfs send -R, -p or -h")),
    ("bookmark", None),
    ("clone", Some("is an increment from")),
    ("compressed", None),
    ("decrypted", None),
    ("embedded", None),
    ("full", None),
    ("holds", Some("zfs send -R, -p or -h")),
    ("increment", None),
    ("increments", None),
    ("large", None),
    ("large-compressed", None),
    ("largest-compressed", None),
    ("one-of-increments", None),
    ("partial", None),
    ("properties", Some("zfs send -R, -p or -h")),
    ("raw", None),
    ("raw-increment", None),
    ("raw-increments", None),
    ("raw-partial", None),
    ("raw-replicated", Some("zfs send -R, -p or -h")),
    ("raw-resumed", None),
    ("raw-resumed-increment", None),
    ("raw-spill", None),
    ("raw-volume", None),
    ("redacted", Some("redacted")),
    ("replicated", Some("zfs send -R, -p or -h")),
    ("replicated-increments", Some("zfs send -R, -p or -h")),
    ("resumed", None),
    ("resumed-increment", None),
    ("spill", None),
    ("spill-compressed", None),
    ("volume", None),
    ("volume-increment", None),
    ("zstd", None),
];

/// Real streams of every kind pass the inspection or are refused for the right reason.
#[test]
fn captured_streams_are_inspected_as_expected() {
    let streams = captured_streams();
    let found: Vec<(&str, &str)> = streams.iter().map(|stream| (&*stream.version, &*stream.kind)).collect();
    let all = VERSIONS.iter().flat_map(|version| KINDS.iter().map(|(kind, _)| (*version, *kind)));
    assert_eq!(found, all.collect::<Vec<_>>());
    for captured in &streams {
        let Captured { kind, version, bytes } = captured;
        let refused = KINDS.iter().find(|(of, _)| of == kind).and_then(|(_, why)| *why);
        let is_package = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) & 3 == 2;
        // A package begins with a record of its own, and one that ends it.
        let first = if is_package { bytes.get(624..).unwrap_or_default() } else { bytes };
        let from = first.get(48..56).map_or(Guid(0), guid);
        let is_clone = kind == "clone";
        let bases = if from.0 == 0 || is_clone { BTreeSet::new() } else { [from].into() };
        let [of, other_kind] = match kind.contains("volume") {
            true => [DatasetKind::Volume, DatasetKind::Filesystem],
            false => [DatasetKind::Filesystem, DatasetKind::Volume],
        };
        let expected = ExpectedStream {
            bases,
            guid: (!captured.continues()).then(|| last_guid(bytes)),
            may_be_raw: kind.starts_with("raw"),
            may_be_clone: is_clone,
            kind: Some(of),
        };
        for piece in [1, 313, 4096, bytes.len()] {
            let mut inspector = StreamInspector::new(expected.clone());
            let result = bytes.chunks(piece).try_for_each(|piece| inspector.feed(piece));
            match refused {
                None => assert_eq!(result, Ok(()), "{kind} of {version}"),
                Some(why) => {
                    assert!(result.as_ref().is_err_and(|error| error.contains(why)), "{kind} of {version}: {result:?}");
                }
            }
        }
        if refused.is_some() {
            continue;
        }
        let other = if captured.continues() { last_guid(bytes) } else { Guid(1) };
        let mut inspector = StreamInspector::new(ExpectedStream { guid: Some(other), ..expected.clone() });
        let words = if captured.continues() { "resumes an interrupted stream" } else { "but 1 was announced" };
        assert!(inspector.feed(bytes).unwrap_err().contains(words), "{kind} of {version}");
        let mut inspector = StreamInspector::new(ExpectedStream { kind: Some(other_kind), ..expected.clone() });
        assert!(inspector.feed(bytes).unwrap_err().contains("it is the stream of a"), "{kind} of {version}");
        if expected.may_be_raw {
            let mut inspector = StreamInspector::new(ExpectedStream { may_be_raw: false, ..expected });
            assert!(inspector.feed(bytes).unwrap_err().contains("raw"), "{kind} of {version}");
        }
    }
}

/// Whether a stream passes the inspection does not depend on the pieces into which it is cut. In a stream that passes,
/// no package has a payload.
#[test]
fn inspection_of_streams_does_not_depend_on_pieces() {
    let begin = |header: u64, from: u64, to: u64, payload: u64| {
        record(
            0,
            &[(4, payload), (8, 0x2_F5BA_CBAC), (16, header), (40, to), (48, from)],
            usize::try_from(payload).unwrap(),
        )
    };
    let (end, write) = (record(5, &[], 0), record(3, &[(32, 100)], 100));
    let made = [
        [begin(1, 3, 4, 0), write.clone(), end.clone()].concat(),
        [begin(2, 0, 0, 0), end.clone(), begin(1, 3, 4, 0), end.clone(), begin(1, 4, 5, 0), write, end.clone()]
            .concat(),
        [begin(2, 0, 0, 64), end.clone(), begin(1, 0, 4, 0), end].concat(),
    ];
    let captured = captured_streams().into_iter().map(|captured| captured.bytes);
    let seeds: Vec<Vec<u8>> = made.into_iter().chain(captured).collect();
    // The bases of all captured streams are there, so that more than the first record is read.
    let bases: BTreeSet<Guid> = seeds.iter().filter_map(|seed| seed.get(48..56)).map(guid).chain([Guid(3)]).collect();
    fuzz("streams", &seeds, |bytes| {
        let guid = Some(last_guid(bytes));
        let expected = ExpectedStream { bases: bases.clone(), guid, may_be_raw: true, may_be_clone: true, kind: None };
        let inspect = |piece: usize| {
            let mut inspector = StreamInspector::new(expected.clone());
            bytes.chunks(piece).try_for_each(|piece| inspector.feed(piece))
        };
        let whole = inspect(bytes.len().max(1));
        // Feeding a long stream byte by byte would take most of the time.
        for piece in [1, 7, 312, 1000].into_iter().filter(|piece| bytes.len() / piece < 1 << 16) {
            assert_eq!(inspect(piece), whole, "pieces of {piece}");
        }
        let header = bytes.get(..24).filter(|_| bytes.len() >= 312 && whole.is_ok());
        assert!(
            header.is_none_or(|header| header[16] & 3 != 2 || header[4..8] == [0; 4]),
            "a package with a payload passed"
        );
    });
}

#[test]
fn zfs_output_is_parsed_without_panic() {
    let seeds = [corpus("zfs-other"), corpus("zfs-errors")].concat();
    fuzz("other output of zfs", &seeds, |bytes| {
        drop((parse::cloned(bytes), parse::values(bytes), parse::holds(bytes), parse::version(bytes)));
        if let Ok(resumable) = parse::resumable(bytes) {
            assert!(is_harmless(resumable.dataset.as_str()));
        }
        let _kind = parse::error_kind(&String::from_utf8_lossy(bytes));
    });
}

#[test]
fn certificates_are_parsed_without_panic() {
    let ca = mint_ca("fuzz CA", chrono::Utc::now(), 30).unwrap();
    let also = vec!["alpha.example.org".parse().unwrap()];
    let roles = zsync::model::PeerRole::ALL.into_iter().collect();
    let wanted = Wanted { host: "alpha".parse().unwrap(), also, roles, days: 10 };
    let host = mint(&ca, &wanted, chrono::Utc::now()).unwrap();
    let mut seeds = vec![ca.certificate.clone().into_bytes(), host.certificate.clone().into_bytes()];
    for pem in [&ca.certificate, &host.certificate] {
        seeds.extend(certificates_in(pem.as_bytes()).unwrap().iter().map(|der| der.to_vec()));
    }
    fuzz("certificates", &seeds, |bytes| {
        for der in certificates_in(bytes).unwrap_or_default() {
            drop(certificate(&der));
        }
        if let Ok(said) = certificate(bytes) {
            assert!(said.identity.names.iter().all(|name| !name.as_str().contains(['*', '/', '@', '\n'])));
        }
    });
}

#[test]
fn configurations_are_parsed_without_panic() {
    let mut seeds = Vec::new();
    for file in ["full/server.json", "full/local.json", "fleet/server.json", "two-hosts-tls/beta/local.json"] {
        seeds.push(std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(file)).unwrap());
    }
    fuzz("configurations", &seeds, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        for error in parse_local("f", &text).err().into_iter().chain(parse_policy("f", &text).err()) {
            assert!(!error.problems().is_empty() && error.to_string().lines().count() <= 21);
        }
    });
}

/// Gives a role the first line of the input, and the rest as the rest of the conversation.
fn converse<R: Role>(role: &Arc<R>, bytes: &[u8]) {
    runtime::block_on(async {
        let mut conn = conn(bytes);
        if let Ok(Some(line)) = conn.recv_line(conn.patience).await {
            drop(Arc::clone(role).converse(&mut conn, line).await);
        }
    });
}

/// The stream of a full send of a first snapshot with this guid.
fn stream_of_snapshot(guid: u64) -> Vec<u8> {
    let source = Fake::new(0);
    // Each dataset uses up one guid.
    for number in 1..guid {
        source.create(&ds(&format!("tank/{number}")));
    }
    let (dataset, name): (DatasetName, SnapName) = (ds("tank/1"), "S_1".parse().unwrap());
    runtime::block_on(async {
        source.snapshot(std::slice::from_ref(&dataset), &name).await.unwrap();
        let spec = SendSpec::Snapshot { dataset, to: name, from: SendFrom::Nothing, flags: SendFlags::PLAIN };
        let mut stream = Vec::new();
        source.send(&spec).await.unwrap().data.read_to_end(&mut stream).await.unwrap();
        stream
    })
}

#[test]
fn slave_survives_any_conversation() {
    let fake = Fake::new(1);
    fake.create(&ds("pool"));
    fake.create(&ds("pool/other"));
    let local = r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true, "append_only": false } ] }"#;
    let local = Arc::new(parse_local("f", local).unwrap());
    let mut fake = Arc::new(fake);
    let mut slave = Arc::new(Slave::new(Arc::clone(&fake), Arc::clone(&local)));
    let mut seeds = corpus("slave-conversations");
    // A conversation with a stream that the fake can receive.
    let stream = &stream_of_snapshot(17);
    let length = u32::try_from(stream.len()).unwrap().to_be_bytes();
    let end = b"\0\0\0\0{\"IsSuccess\":true}\n{\"Step\":\"finish\",\"Status\":8,\"Guid\":\"17\"}\n";
    seeds.push([&seeds[1][..], &length, stream, end].concat());
    // That conversation, but with a compressed stream.
    let packed = zstd::bulk::compress(stream, 3).unwrap();
    let length = (1 << 31 | u32::try_from(packed.len()).unwrap()).to_be_bytes();
    seeds.push([&seeds[1][..], &length, &packed, end].concat());
    let mut count = 0u32;
    fuzz("conversations with a slave", &seeds, |bytes| {
        converse(&slave, bytes);
        for call in fake.calls() {
            assert!(call.contains("pool/copy") && !call.contains("pool/copyist"), "{call}");
        }
        count += 1;
        // The fake keeps what it received, so it is replaced from time to time.
        if count.is_multiple_of(64) {
            let fresh = Fake::new(1);
            fresh.create(&ds("pool"));
            fake = Arc::new(fresh);
            slave = Arc::new(Slave::new(Arc::clone(&fake), Arc::clone(&local)));
        }
    });
}

#[test]
fn agent_survives_any_conversation() {
    let local = r#"{ "local_datasets": [ { "name": "tank/data" }, { "name": "tank/off", "enable": false } ] }"#;
    let local = Arc::new(parse_local("f", local).unwrap());
    let set_up = || {
        let fake = Fake::new(1);
        for dataset in ["tank", "tank/data", "tank/data/child", "tank/off", "other"] {
            fake.create(&ds(dataset));
        }
        let host: HostName = "alpha".parse().unwrap();
        let fake = Arc::new(fake);
        (Arc::clone(&fake), Arc::new(Agent::new(host, fake, Arc::clone(&local))))
    };
    let (mut fake, mut agent) = set_up();
    let mut count = 0u32;
    fuzz("conversations with an agent", &corpus("orders"), |bytes| {
        let first = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
        // The agent would connect to any address in the input.
        let calls_out =
            serde_json::from_slice::<DirectorsOrder>(first).is_ok_and(|order| order.action == Action::SendSnapshot);
        if !calls_out {
            converse(&agent, bytes);
        }
        for call in fake.calls() {
            let harmless = call == "sync tank" || call.contains("tank/data") && !call.contains("tank/off");
            assert!(harmless, "{call}");
        }
        count += 1;
        if count.is_multiple_of(64) {
            (fake, agent) = set_up();
        }
    });
}
