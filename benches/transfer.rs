//! Measures the throughput of streams from a process that writes as fast as it can, through zsync, to a process that
//! discards everything. Also measures what it costs that the slave inspects each stream.
//!
//! The same rounds measure the alternatives: a pipe, socat, mbuffer. No ZFS is needed: this program stands in for `zfs`
//! when it is called by that name. Run it with `cargo bench --bench transfer`; BENCH_MIB sets the size of a stream,
//! BENCH_ROUNDS the number of rounds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use chrono::Utc;
use common::order;
use common::tls::write_pem;
use zsync::agent::{Agent, CheckedOrder};
use zsync::commands::tls::{Minted, Wanted, mint, mint_ca};
use zsync::model::{Action, Counter, DatasetKind, DatasetName, Guid, HostListing, KeyState, PeerRole, SnapName};
use zsync::server::acceptor::{self, Listening, Security};
use zsync::slave::Slave;
use zsync::sys::runtime;
use zsync::transport::tls::Tls;
use zsync::wire::DirectorsOrder;
use zsync::zfs::inspect::StreamInspector;
use zsync::zfs::system::System;
use zsync::zfs::{
    Depth, ExpectedStream, Fate, History, Inspect, Known, Listed, Named, ReceiveSpec, ReceiveStream, Resumable,
    SendSpec, SendStream, Zfs, ZfsError, ZfsRead,
};

const SNAPSHOT: u64 = 4711;
/// The length of a record of a stream.
const RECORD: usize = 312;
/// The usual size of blocks, and of a write of `zfs send`.
const LARGE: usize = 128 << 10;
/// The size of blocks of which an inspection has the most to read.
const SMALL: usize = 4 << 10;
/// The configuration of the slave.
const COPIES: &str = r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true } ] }"#;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

fn mib() -> u64 {
    number("BENCH_MIB", 2048)
}

// --- The stream: a slave accepts only one that is as announced.

/// A record of a `zfs send` stream with these integers at these places.
fn record(kind: u32, fields: &[(usize, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; RECORD];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    for (at, value) in fields {
        bytes[*at..*at + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// The record that begins a full stream.
fn begin() -> Vec<u8> {
    record(0, &[(8, 0x2_F5BA_CBAC), (16, 1), (40, SNAPSHOT)])
}

/// The records of one MiB of a file with blocks of this length, and its blocks.
fn one_mib(block: usize) -> Vec<u8> {
    let mut one = record(3, &[(32, block as u64)]);
    one.resize(RECORD + block, 0x5a);
    one.repeat((1 << 20) / block)
}

/// The length of the whole stream.
fn stream_length(block: usize) -> u64 {
    2 * RECORD as u64 + mib() * one_mib(block).len() as u64
}

/// How long the inspection of a stream takes that is in memory already.
fn inspected_in_memory(block: usize) -> Duration {
    let expected = ExpectedStream {
        bases: BTreeSet::new(),
        guid: Some(Guid(SNAPSHOT)),
        kind: Some(DatasetKind::Filesystem),
        may_be_raw: false,
        may_be_clone: false,
    };
    let mut inspector = StreamInspector::new(expected);
    inspector.feed(&begin()).unwrap();
    let blocks = one_mib(block);
    let began = Instant::now();
    for _ in 0..mib() {
        for piece in blocks.chunks(LARGE) {
            inspector.feed(std::hint::black_box(piece)).unwrap();
        }
    }
    began.elapsed()
}

// --- A slave that does not inspect streams, for comparison. The programs of zsync have no such thing.

struct Uninspected(System);

struct Unread;

impl Inspect for Unread {
    fn feed(&mut self, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// Passes operations on to the real ones.
macro_rules! passed_on {
    ($($name:ident($($arg:ident: $of:ty),*) -> $result:ty;)*) => {
        $(async fn $name(&self, $($arg: $of),*) -> Result<$result, ZfsError> { self.0.$name($($arg),*).await })*
    };
}

impl ZfsRead for Uninspected {
    passed_on! {
        list(roots: &[DatasetName], depth: Depth) -> Vec<Listed>;
        list_pools(roots: &[DatasetName], known: &Known) -> HostListing;
        snapshots(dataset: &DatasetName) -> Option<History>;
        cloned(dataset: &DatasetName, names: &[SnapName]) -> Vec<SnapName>;
        holds(dataset: &DatasetName, names: &[SnapName]) -> Vec<(SnapName, String)>;
        written_since(datasets: &[DatasetName], name: &SnapName) -> Vec<(DatasetName, u64)>;
        resumable(token: &str) -> Resumable;
        properties(dataset: &DatasetName) -> BTreeMap<String, String>;
        arrivals(dataset: &DatasetName) -> BTreeMap<SnapName, String>;
        key_users(root: &DatasetName) -> Vec<DatasetName>;
        keys(root: &DatasetName) -> BTreeMap<DatasetName, KeyState>;
        size_of_send(spec: &SendSpec) -> Option<u64>;
        size_of_destroy(dataset: &DatasetName, names: &[SnapName]) -> Option<u64>;
        check_version() -> String;
    }
}

impl Zfs for Uninspected {
    passed_on! {
        snapshot(datasets: &[DatasetName], name: &SnapName) -> Vec<(DatasetName, History)>;
        sync(dataset: &DatasetName) -> ();
        destroy(dataset: &DatasetName, victims: &[Named], guards: &[Named], all: bool) -> Vec<Fate>;
        hold(tag: &str, dataset: &DatasetName, names: &[SnapName]) -> ();
        release(tag: &str, dataset: &DatasetName, names: &[SnapName]) -> ();
        bookmark(dataset: &DatasetName, snapshot: &Named, bookmark: &SnapName) -> ();
        destroy_bookmark(dataset: &DatasetName, bookmark: &SnapName) -> ();
        rollback(dataset: &DatasetName, to: &SnapName) -> ();
        abort_receive(dataset: &DatasetName) -> ();
        create_ancestors(dataset: &DatasetName) -> ();
        rename(dataset: &DatasetName, to: &DatasetName) -> ();
        make_clone(dataset: &DatasetName, of: &SnapName, clone: &DatasetName, properties: &[(&str, &str)]) -> ();
        destroy_clone(clone: &DatasetName) -> ();
        set(dataset: &DatasetName, property: &str, value: &str) -> ();
        inherit(dataset: &DatasetName, property: &str) -> ();
        inherit_key(dataset: &DatasetName) -> ();
        mount(dataset: &DatasetName) -> ();
        set_arrivals(dataset: &DatasetName, names: &[SnapName], value: &str) -> ();
        send(spec: &SendSpec) -> SendStream;
        receive(spec: &ReceiveSpec) -> ReceiveStream;
        copy(send: &SendSpec, receive: &ReceiveSpec, counter: &Counter, stall: Duration) -> ();
    }

    fn inspector(&self, _: ExpectedStream) -> Box<dyn Inspect> {
        Box::new(Unread)
    }
}

/// Runs a slave in this process until it is killed. Both kinds are this same program, so that nothing else differs.
fn slave(inspects: bool, zfs: &Path, address: &str) -> ExitCode {
    fn serve<Z: Zfs>(zfs: Z, address: &str) {
        let local = common::local(COPIES);
        let security = Security::Plaintext { beyond_this_machine: false };
        let listening = Listening { address: address.to_owned(), security, metrics: None, grace: Duration::ZERO };
        let slave = Slave::new(Arc::new(zfs), local);
        runtime::block_on(acceptor::serve(slave, None, &listening, |_| anyhow::bail!("never reloaded"))).unwrap();
    }
    let system = System::new(zfs);
    if inspects {
        serve(system, address);
    } else {
        serve(Uninspected(system), address);
    }
    ExitCode::SUCCESS
}

// --- The stand-in for zfs, whose folder records what was received.

fn stand_in(folder: &Path, args: &[String]) -> ExitCode {
    let (received, mut out) = (folder.join("received"), std::io::stdout().lock());
    let block = if folder.ends_with("small") { SMALL } else { LARGE };
    let has = |word: &str| args.iter().any(|arg| arg == word);
    match args[0].as_str() {
        "version" => writeln!(out, "zfs-2.3.9-1\nzfs-kmod-2.3.9-1").unwrap(),
        "send" if has("-nP") || has("-nPt") => writeln!(out, "size\t{}", stream_length(block)).unwrap(),
        "send" => {
            out.write_all(&begin()).unwrap();
            let blocks = one_mib(block);
            for _ in 0..mib() {
                blocks.chunks(LARGE).for_each(|piece| out.write_all(piece).unwrap());
            }
            out.write_all(&record(5, &[])).unwrap();
        }
        "receive" => {
            let (mut chunk, mut stdin) = (vec![0; LARGE], std::io::stdin().lock());
            while stdin.read(&mut chunk).unwrap() > 0 {}
            fs::write(received, "").unwrap();
        }
        "list" => {
            let mut missing = false;
            for name in args.iter().filter(|arg| ["tank", "pool"].contains(&arg.split('/').next().unwrap())) {
                let there = name == "pool" || name.starts_with("tank") || (name == "pool/copy" && received.exists());
                if !there {
                    eprintln!("cannot open '{name}': dataset does not exist");
                    missing = true;
                } else if has("filesystem,volume") {
                    writeln!(out, "{name}\tfilesystem\t{}\t0\toff\t-\t-\t-\t-\t{name}", name.len()).unwrap();
                } else if has("snapshot,bookmark") && name != "pool" {
                    writeln!(out, "{name}@S_1\t{SNAPSHOT}\t10\t1700000000\t0\t0").unwrap();
                }
            }
            return if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
        _ => {}
    }
    ExitCode::SUCCESS
}

// --- The ways to transfer a stream.

struct Bench {
    folder: tempfile::TempDir,
    ca: Minted,
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _: std::io::Result<()> = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// How long a process has used a processor, in itself and in the kernel. The children do not count.
fn processor_time(process: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    // In nanoseconds. Those of threads that have ended are lost, which are few.
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Duration::from_nanos(tasks.map(|task| of(task.unwrap())).sum())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn wait_for(port: u16) {
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        sleep(Duration::from_millis(1));
    }
}

/// Waits for a listener without connecting: socat and mbuffer would take that connection for the stream.
fn wait_listening(port: u16) {
    let wanted = format!(":{port:04X} 00000000:0000 0A");
    while !fs::read_to_string("/proc/net/tcp").unwrap().contains(&wanted) {
        sleep(Duration::from_millis(1));
    }
}

impl Bench {
    fn zfs(&self, side: &str) -> PathBuf {
        self.folder.path().join(side).join("zfs")
    }

    fn run(&self, side: &str, command: &str) -> Command {
        let mut zfs = Command::new(self.zfs(side));
        zfs.arg(command);
        zfs
    }

    /// Sends a stream through the pipeline `via`.
    fn through(&self, via: &mut [Command]) -> Duration {
        let began = Instant::now();
        let mut children = Vec::new();
        let mut last = self.run("source", "send").stdout(Stdio::piped()).spawn().unwrap();
        for command in via {
            let next = command.stdin(last.stdout.take().unwrap()).stdout(Stdio::piped()).spawn().unwrap();
            children.push(std::mem::replace(&mut last, next));
        }
        let mut end = self.run("dest", "receive").stdin(last.stdout.take().unwrap()).spawn().unwrap();
        children.push(last);
        for child in &mut children {
            assert!(child.wait().unwrap().success());
        }
        assert!(end.wait().unwrap().success());
        began.elapsed()
    }

    fn relayed(&self, listen: impl Fn(u16) -> Command, connect: impl Fn(u16) -> Command) -> Duration {
        let port = free_port();
        let mut listener =
            listen(port).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        wait_listening(port);
        let began = Instant::now();
        let mut writer = self.run("source", "send").stdout(Stdio::piped()).spawn().unwrap();
        let mut sender = connect(port)
            .stdin(writer.stdout.take().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut reader = self.run("dest", "receive").stdin(listener.stdout.take().unwrap()).spawn().unwrap();
        for child in [&mut writer, &mut sender, &mut listener, &mut reader] {
            assert!(child.wait().unwrap().success());
        }
        began.elapsed()
    }

    fn tls(&self, host: &str, role: PeerRole) -> (String, Arc<Tls>) {
        let wanted = Wanted { host: host.parse().unwrap(), also: Vec::new(), roles: [role].into(), days: 30 };
        let minted = mint(&self.ca, &wanted, Utc::now()).unwrap();
        let files = write_pem(&self.folder.path().join(host), &self.ca, &minted);
        let said = format!(
            r#""tls": {{ "ca": {:?}, "certificate": {:?}, "key": {:?} }},"#,
            files.ca, files.certificate, files.key
        );
        (said, Arc::new(Tls::load(&files).unwrap()))
    }

    /// Sends a stream from an agent in this process to a slave in another one.
    fn sent(&self, secure: bool) -> Duration {
        let (tls_of_slave, _) = self.tls("beta", PeerRole::Slave);
        let (tls_of_agent, tls) = self.tls("alpha", PeerRole::Agent);
        let tls_or_not = |said: String| if secure { said } else { String::new() };
        let port = free_port();
        let configuration = self.folder.path().join("slave.json");
        fs::write(&configuration, COPIES.replacen('{', &format!("{{ {}", tls_or_not(tls_of_slave)), 1)).unwrap();
        let mut slave = Command::new(env!("CARGO_BIN_EXE_zsync"));
        let slave = slave
            .args(["slave", "--listen", &format!("127.0.0.1:{port}"), "--zfs"])
            .arg(self.zfs("dest"))
            .arg("--local")
            .arg(&configuration)
            .env("ZSYNC_STATE", self.folder.path().join("state"))
            .env("RUST_LOG", "error")
            .stdin(Stdio::null());
        let _slave = Ended(slave.spawn().unwrap());
        wait_for(port);
        let source = format!(r#"{{ {} "local_datasets": [ {{ "name": "tank/data" }} ] }}"#, tls_or_not(tls_of_agent));
        let address = Some(format!("127.0.0.1:{port}"));
        self.carried("source", &source, "beta", address, secure.then_some(tls), LARGE)
    }

    /// Sends a stream to a slave that inspects it, or to one that does not. Also returns the processor time of the
    /// slave.
    fn compared(&self, inspects: bool, block: usize) -> (Duration, Duration) {
        let address = format!("127.0.0.1:{}", free_port());
        let slave = Command::new(std::env::current_exe().unwrap())
            .args(["slave", &inspects.to_string(), &self.zfs("dest").to_string_lossy(), &address])
            .env("ZSYNC_STATE", self.folder.path().join("state"))
            .stdin(Stdio::null())
            .spawn();
        let slave = Ended(slave.unwrap());
        wait_for(address.rsplit(':').next().unwrap().parse().unwrap());
        let source = r#"{ "local_datasets": [ { "name": "tank/data" } ] }"#;
        let side = if block == SMALL { "small" } else { "source" };
        let before = processor_time(slave.0.id());
        let took = self.carried(side, source, "beta", Some(address), None, block);
        (took, processor_time(slave.0.id()) - before)
    }

    /// Copies a stream from one pool to another one of the same host.
    fn copied(&self) -> Duration {
        let both = r#"{ "local_datasets": [ { "name": "tank/data" }, { "name": "pool/copy", "slave": true } ] }"#;
        self.carried("dest", both, "alpha", None, None, LARGE)
    }

    fn carried(
        &self,
        side: &str,
        local: &str,
        to: &str,
        address: Option<String>,
        tls: Option<Arc<Tls>>,
        block: usize,
    ) -> Duration {
        let local = common::local(local);
        let agent = Agent::new("alpha".parse().unwrap(), Arc::new(System::new(&self.zfs(side))), local).with_tls(tls);
        let order = DirectorsOrder {
            destination: to.to_owned(),
            destination_address: address,
            snapshot_uuid: vec![Guid(SNAPSHOT).uuid().to_string()],
            dest_dataset: "pool/copy".into(),
            dataset: Some("tank/data".parse().unwrap()),
            ..order(Action::SendSnapshot)
        };
        let (facts, _told) = runtime::channel::unbounded();
        let began = Instant::now();
        let counter = Counter::default();
        let response = runtime::block_on(agent.carry_out(
            CheckedOrder::try_from(order).expect("a valid order"),
            facts,
            counter.clone(),
        ));
        assert!(response.is_success, "{response:?}");
        assert_eq!(counter.get(), stream_length(block));
        began.elapsed()
    }

    /// Prints what the inspection of streams costs.
    fn cost_of_inspection(&self, rounds: u64) {
        println!("\nTCP: zsync agent to slave, with inspection and without it, medians of {rounds} rounds");
        println!(
            "{:<9} {:>8} {:>8} {:>7} {:>17} {:>13} {:>13} {:>7} {:>14} {:>8}",
            "blocks",
            "with",
            "without",
            "ratio",
            "ratios of rounds",
            "slave's CPU",
            "without",
            "ratio",
            "alone MiB/s",
            "of time"
        );
        for block in [LARGE, SMALL] {
            let (mut ways, mut ratios, mut alone) = ([Vec::new(), Vec::new()], Vec::new(), Vec::new());
            for round in 0..rounds {
                // They take turns in being the first.
                for inspects in [round % 2 == 0, round % 2 == 1] {
                    let _: std::io::Result<()> = fs::remove_file(self.folder.path().join("dest/received"));
                    ways[usize::from(!inspects)].push(self.compared(inspects, block));
                }
                let last = |way: &[(Duration, Duration)]| way[way.len() - 1].0.as_secs_f64();
                ratios.push(last(&ways[0]) / last(&ways[1]));
                alone.push(inspected_in_memory(block).as_secs_f64());
            }
            let of = |times: &[(Duration, Duration)], part: fn(&(Duration, Duration)) -> Duration| {
                median(times.iter().map(|both| part(both).as_secs_f64()))
            };
            let [with, without] = [of(&ways[0], |both| both.0), of(&ways[1], |both| both.0)];
            let [busy, less_busy] = [of(&ways[0], |both| both.1), of(&ways[1], |both| both.1)];
            ratios.sort_by(f64::total_cmp);
            let spread = format!("{:.3} to {:.3}", ratios[0], ratios[ratios.len() - 1]);
            let alone = median(alone.into_iter());
            println!(
                "{:<9} {with:>7.2}s {without:>7.2}s {:>7.3} {spread:>17} {busy:>12.2}s {less_busy:>12.2}s {:>7.3} {:>14.0} {:>7.2}%",
                format!("{} KiB", block >> 10),
                with / without,
                busy / less_busy,
                mib() as f64 / alone,
                100.0 * alone / without
            );
        }
    }
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = numbers.collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

fn is_there(program: &str) -> bool {
    command("sh", &["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status().unwrap().success()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let called = Path::new(&args[0]);
    if called.file_name().is_some_and(|name| name == "zfs" || name == "zpool") {
        return stand_in(called.parent().unwrap(), &args[1..]);
    }
    if let [_, what, inspects, zfs, address] = &args[..]
        && what == "slave"
    {
        return slave(inspects == "true", Path::new(zfs), address);
    }
    let bench = Bench { folder: tempfile::tempdir().unwrap(), ca: mint_ca("bench CA", Utc::now(), 30).unwrap() };
    for side in ["source", "small", "dest"] {
        fs::create_dir(bench.folder.path().join(side)).unwrap();
        for name in ["zfs", "zpool"] {
            symlink(std::env::current_exe().unwrap(), bench.folder.path().join(side).join(name)).unwrap();
        }
    }
    let socat = || {
        bench.relayed(
            |port| command("socat", &["-u", "-b", "1048576", &format!("TCP-LISTEN:{port},bind=127.0.0.1"), "STDOUT"]),
            |port| command("socat", &["-u", "-b", "1048576", "STDIN", &format!("TCP:127.0.0.1:{port}")]),
        )
    };
    let mbuffer = || {
        let common = ["-q", "-s", "128k", "-m", "64M"];
        bench.relayed(
            |port| command("mbuffer", &[&common[..], &["-4", "-I", &format!("127.0.0.1:{port}")]].concat()),
            |port| command("mbuffer", &[&common[..], &["-4", "-O", &format!("127.0.0.1:{port}")]].concat()),
        )
    };
    let ways: [(&str, bool, &dyn Fn() -> Duration); 7] = [
        ("one host: a pipe", true, &|| bench.through(&mut [])),
        ("one host: mbuffer between", is_there("mbuffer"), &|| {
            bench.through(&mut [command("mbuffer", &["-q", "-s", "128k", "-m", "64M"])])
        }),
        ("one host: zsync", true, &|| bench.copied()),
        ("TCP: socat", is_there("socat"), &socat),
        ("TCP: mbuffer", is_there("mbuffer"), &mbuffer),
        ("TCP: zsync agent to slave", true, &|| bench.sent(false)),
        ("TLS 1.3: zsync agent to slave", true, &|| bench.sent(true)),
    ];
    let rounds = number("BENCH_ROUNDS", 5);
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        // The ways take turns, so that other load on the machine affects all alike.
        for ((_, there, way), times) in ways.iter().zip(&mut times) {
            if *there {
                let _: std::io::Result<()> = fs::remove_file(bench.folder.path().join("dest/received"));
                times.push(way());
            }
        }
    }
    println!("{} MiB, {rounds} rounds, medians", mib());
    println!("{:<32} {:>9} {:>17} {:>8} {:>8}", "way", "median s", "spread s", "MiB/s", "ratio");
    let mut base = 0.0;
    for ((name, _, _), times) in ways.iter().zip(&mut times) {
        times.sort();
        let Some(median) = times.get(times.len() / 2).map(Duration::as_secs_f64) else {
            println!("{name:<32} is not installed");
            continue;
        };
        // The first of each kind is the reference for the others.
        if name.ends_with("a pipe") || name.ends_with("socat") {
            base = median;
        }
        let spread = format!("{:.2} to {:.2}", times[0].as_secs_f64(), times[times.len() - 1].as_secs_f64());
        let rate = mib() as f64 / median;
        println!("{name:<32} {median:>9.2} {spread:>17} {rate:>8.0} {:>8.2}", median / base);
    }
    bench.cost_of_inspection(rounds);
    ExitCode::SUCCESS
}
