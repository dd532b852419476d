//! Measures the throughput of streams from a process that writes as fast as it can, through zsync, to a process that
//! discards everything.
//!
//! The same rounds measure the alternatives: a pipe, socat, mbuffer. No ZFS is needed: this program stands in for `zfs`
//! when it is called by that name. Run it with `cargo bench --bench transfer`; BENCH_MIB sets the size of a stream,
//! BENCH_ROUNDS the number of rounds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

#[path = "../tests/common/mod.rs"]
mod common;

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
use zsync::model::{Action, Counter, Guid, PeerRole};
use zsync::sys::runtime;
use zsync::transport::tls::Tls;
use zsync::wire::DirectorsOrder;
use zsync::zfs::system::System;

const SNAPSHOT: u64 = 4711;
/// The usual size of a write of `zfs send`.
const CHUNK: usize = 128 << 10;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

fn mib() -> u64 {
    number("BENCH_MIB", 2048)
}

// --- The stand-in for zfs, whose folder records what was received.

fn stand_in(folder: &Path, args: &[String]) -> ExitCode {
    let (received, mut out) = (folder.join("received"), std::io::stdout().lock());
    let has = |word: &str| args.iter().any(|arg| arg == word);
    match args[0].as_str() {
        "version" => writeln!(out, "zfs-2.3.9-1\nzfs-kmod-2.3.9-1").unwrap(),
        "send" if has("-nP") || has("-nPt") => writeln!(out, "size\t{}", mib() << 20).unwrap(),
        "send" => {
            let chunk = vec![0x5a; CHUNK];
            for _ in 0..(mib() << 20) / CHUNK as u64 {
                out.write_all(&chunk).unwrap();
            }
        }
        "receive" => {
            let (mut chunk, mut stdin) = (vec![0; CHUNK], std::io::stdin().lock());
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
                    writeln!(out, "{name}\tfilesystem\t{}\t0\toff\t-\t-\t-\t-", name.len()).unwrap();
                } else if has("snapshot,bookmark") && name != "pool" {
                    writeln!(out, "{name}@S_1\t{SNAPSHOT}\t10\t1700000000\t0").unwrap();
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
        let copies = r#""local_datasets": [ { "name": "pool/copy", "slave": true } ]"#;
        fs::write(&configuration, format!("{{ {} {copies} }}", tls_or_not(tls_of_slave))).unwrap();
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
        self.carried(&source, "beta", Some(format!("127.0.0.1:{port}")), secure.then_some(tls))
    }

    /// Copies a stream from one pool to another one of the same host.
    fn copied(&self) -> Duration {
        let both = r#"{ "local_datasets": [ { "name": "tank/data" }, { "name": "pool/copy", "slave": true } ] }"#;
        self.carried(both, "alpha", None, None)
    }

    fn carried(&self, local: &str, to: &str, address: Option<String>, tls: Option<Arc<Tls>>) -> Duration {
        let side = if to == "alpha" { "dest" } else { "source" };
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
        assert_eq!(counter.get(), mib() << 20);
        began.elapsed()
    }
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
    let bench = Bench { folder: tempfile::tempdir().unwrap(), ca: mint_ca("bench CA", Utc::now(), 30).unwrap() };
    for side in ["source", "dest"] {
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
    ExitCode::SUCCESS
}
