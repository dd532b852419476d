//! Tests the program under a service manager: notifications, inherited sockets, signals and log formats; and single
//! passes as cron runs them. A datagram socket stands in for systemd, a shell script for `zfs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::PATIENCE;
use common::program::{LOCAL, POLICY, Place, Running, ZFS, ended};
use serde_json::Value;

/// The service manager, which receives the notifications of a service.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new(place: &Place) -> Self {
        let path = place.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path }
    }

    /// Waits for a notification with these words, and returns it.
    #[track_caller]
    fn wait_for(&self, words: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let read = self
                .socket
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("there is no notification with {words:?}: {e}"));
            let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
            if text.contains(words) {
                return text;
            }
        }
    }
}

fn signal(running: &Running, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(&running.child), signal).unwrap();
}

/// Sends an order to an agent, and returns the response, which is the last line.
fn order(address: &str, order: &str) -> Value {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(order.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let last = BufReader::new(stream).lines().map_while(Result::ok).last().expect("a response");
    serde_json::from_str(&last).unwrap_or_else(|error| panic!("{error} in {last}"))
}

/// Each order has its own UUID, because agents recognise repeated orders by it.
fn uuid() -> uuid::Uuid {
    uuid::Uuid::now_v7()
}

fn take(dataset: &str) -> String {
    let id = uuid();
    format!(r#"{{"OrderUUID":"{id}","Action":"take_snapshot","SnapshotName":"by-hand","DestDataset":"{dataset}"}}"#)
}

fn resync() -> String {
    format!(r#"{{"OrderUUID":"{}","Action":"kv_resync"}}"#, uuid())
}

/// The address in `... listens on ADDRESS`.
fn listens(running: &mut Running) -> String {
    running.wait_for("listens on ", 1);
    running.seen.last().unwrap().rsplit(' ').next().unwrap().to_owned()
}

/// Whether a process runs. A zombie does not.
fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

/// Installs a `zfs` whose listings never end. Each one writes its process id to the file `pids`.
fn slow_zfs(place: &Place) {
    let script = format!("[ \"$*\" = version ] || {{ echo $$ >>{}; exec sleep 60; }}", place.path("pids"));
    place.zfs(&ZFS.replace("#!/bin/sh\n", &format!("#!/bin/sh\n{script}\n")));
}

#[track_caller]
fn nothing_is_left(place: &Place) {
    let pids = fs::read_to_string(place.path("pids")).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    for pid in pids.lines() {
        // The kernel takes a moment to end a killed process.
        while is_alive(pid) {
            let shown = || fs::read_to_string(format!("/proc/{pid}/stat"));
            assert!(Instant::now() < end, "process {pid} still runs: {:?}", shown());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn service_notifies_systemd_of_start_reload_and_stop() {
    let place = Place::new();
    let manager = Manager::new(&place);
    for subcommand in ["agent --listen 127.0.0.1:0", "slave --listen 127.0.0.1:0", "director --interval 1h"] {
        place.write("local.json", LOCAL);
        let mut command = place.command(subcommand);
        command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "200000");
        let running = Running::start(&mut command);
        let ready = manager.wait_for("READY=1");
        assert!(ready.contains("STATUS="), "{ready}");
        manager.wait_for("WATCHDOG=1");
        manager.wait_for("WATCHDOG=1");
        signal(&running, rustix::process::Signal::HUP);
        assert!(manager.wait_for("RELOADING=1").contains("MONOTONIC_USEC="));
        let well = manager.wait_for("READY=1");
        assert!(!well.contains("wrong") && !well.contains("stays"), "{well}");
        place.write("local.json", "{ \"local_datasets\": [ { \"nam\": 1 } ] }");
        signal(&running, rustix::process::Signal::HUP);
        manager.wait_for("RELOADING=1");
        let refused = manager.wait_for("READY=1");
        assert!(refused.contains("local.json:1:") && refused.lines().count() == 2, "{subcommand}: {refused}");
        assert_eq!(running.stop(), Some(0), "{subcommand}");
        if !subcommand.starts_with("director") {
            manager.wait_for("STOPPING=1");
        }
    }
}

#[test]
fn sighup_applies_valid_configuration_and_rejects_invalid_one() {
    let place = Place::new();
    let mut running = Running::start(&mut place.command("agent --listen 127.0.0.1:0"));
    let address = listens(&mut running);
    let refusal = |dataset: &str| order(&address, &take(dataset))["Error"].as_str().unwrap().to_owned();
    assert!(refusal("tank/other").contains("is not listed"));
    place.write("local.json", "{ \"local_datasets\": [ { \"name\": \"tank/other\" } ] }");
    signal(&running, rustix::process::Signal::HUP);
    running.wait_for("reloaded the configuration", 1);
    assert!(refusal("tank/data").contains("is not listed"));
    assert!(!refusal("tank/other").contains("is not listed"));
    for (bad, words) in [("{ \"local_datasets\": [ ", "local.json:1:"), ("", "local.json"), ("[]", "local.json")] {
        place.write("local.json", bad);
        signal(&running, rustix::process::Signal::HUP);
        running.wait_for("stays in force", 1);
        assert!(running.seen.iter().any(|line| line.contains("stays in force") && line.contains(words)));
        assert!(!refusal("tank/other").contains("is not listed"), "the former configuration stays in force");
    }
    place.write("local.json", "{ \"listen\": \"127.0.0.1:4\", \"local_datasets\": [ { \"name\": \"tank/other\" } ] }");
    signal(&running, rustix::process::Signal::HUP);
    running.wait_for("reloaded the configuration", 1);
    assert_eq!(running.count("takes effect after a restart"), 0, "--listen overrides the file");
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn sighup_starts_pass_at_once() {
    let place = Place::new();
    let mut running = Running::start(&mut place.command("director --interval 1h --log debug"));
    running.wait_for("the pass took", 1);
    signal(&running, rustix::process::Signal::HUP);
    running.wait_for("the pass took", 1);
    place.write("local.json", "{");
    signal(&running, rustix::process::Signal::HUP);
    running.wait_for("the previous local.json stays in force on this host", 1);
    running.wait_for("the pass took", 1);
    assert_eq!(running.count("cannot list the snapshots of"), 0, "{:#?}", running.seen);
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn agent_serves_socket_of_service_manager() {
    let place = Place::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let agent = place.command("agent");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 0</dev/null", "sh"]);
    command.arg(agent.get_program()).args(agent.get_args());
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("ZSYNC_STATE", place.path("state"))
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(socket)));
    let mut running = Running::start(&mut command);
    assert_eq!(listens(&mut running), address);
    assert_eq!(order(&address, &resync())["IsSuccess"], true);
    assert_eq!(running.stop(), Some(0));
    // The agent refuses a file descriptor that is not a socket, and two sockets.
    for (count, words) in [("1", "not a socket"), ("2", "only one is supported")] {
        let mut command = Command::new("/bin/sh");
        let script = format!("LISTEN_PID=$$ LISTEN_FDS={count} exec \"$@\" 3</dev/null 4</dev/null");
        command.args(["-c", &script, "sh"]).arg(agent.get_program()).args(agent.get_args());
        command.env_clear().env("PATH", "/usr/bin:/bin").env("ZSYNC_STATE", place.path("state")).stdin(Stdio::null());
        ended(&mut command).fails(2, &[words, "LISTEN_FDS"]);
    }
}

#[test]
fn running_order_may_finish_after_sigterm() {
    let place = Place::new();
    // The listing ends only after SIGTERM.
    let open = place.path("open");
    let wait = format!("#!/bin/sh\n[ \"$*\" = version ] || until [ -e {open} ]; do sleep 0.02; done\n");
    place.zfs(&ZFS.replace("#!/bin/sh\n", &wait));
    let mut running = Running::start(&mut place.command("agent --listen 127.0.0.1:0 --grace 30s --log debug"));
    let address = listens(&mut running);
    let asking = std::thread::spawn({
        let address = address.clone();
        move || order(&address, &resync())
    });
    running.wait_for("running", 1);
    signal(&running, rustix::process::Signal::TERM);
    running.wait_for("running conversations (1) have 30s to end", 1);
    // A child that was just forked holds the socket until it executes zfs.
    let closed = |_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        TcpStream::connect(&address).is_err()
    };
    assert!((0..500).any(closed), "new connections are refused");
    fs::write(open, "").unwrap();
    assert_eq!(asking.join().unwrap()["IsSuccess"], true, "the running order has succeeded");
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn running_order_is_aborted_after_grace_and_leaves_no_process() {
    let place = Place::new();
    slow_zfs(&place);
    for (subcommand, words) in [
        ("agent --listen 127.0.0.1:0 --grace 300ms --log debug", "interrupting"),
        ("director --interval 1h --grace 300ms --log debug", "the director was ended"),
    ] {
        let mut running = Running::start(&mut place.command(subcommand));
        let mut _stream = None;
        if subcommand.starts_with("agent") {
            let address = listens(&mut running);
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.write_all(format!("{}\n", resync()).as_bytes()).unwrap();
            _stream = Some(stream);
        }
        running.wait_for("zfs list", 1);
        let asked = Instant::now();
        signal(&running, rustix::process::Signal::TERM);
        running.wait_for(words, 1);
        assert_eq!(running.stop(), Some(0), "{subcommand}");
        assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
        nothing_is_left(&place);
    }
    // A second signal ends the program at once.
    let mut running = Running::start(&mut place.command("director --interval 1h --grace 1h --log debug"));
    running.wait_for("zfs list", 1);
    signal(&running, rustix::process::Signal::INT);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(running.stop(), Some(0));
    nothing_is_left(&place);
}

#[test]
fn json_log_has_json_on_every_line() {
    let place = Place::new();
    let mut running = Running::start(&mut place.command("agent --listen 127.0.0.1:0 --log debug --log-format json"));
    running.wait_for("listens on 127.0.0.1", 1);
    let line: Value = serde_json::from_str(running.seen.last().unwrap()).unwrap();
    assert_eq!((line["level"].as_str(), line["target"].as_str()), (Some("info"), Some("zsync::server::acceptor")));
    assert!(line["time"].as_str().unwrap().ends_with('Z') && line["message"].as_str().unwrap().contains("listens"));
    for line in &running.seen {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error} in {line}"));
    }
    assert_eq!(running.stop(), Some(0));
    // The fatal error is JSON as well, even if it has several lines.
    place.write("local.json", "{ \"local_datasets\": [ { \"nam\": 1 }, { \"nam\": 2 } ] }");
    let ended = place.run("agent --log-format json");
    assert_eq!(ended.status, Some(2));
    let line: Value = serde_json::from_str(&ended.stderr).unwrap_or_else(|error| panic!("{error} in {ended:?}"));
    assert!(line["level"] == "error" && line["message"].as_str().unwrap().lines().count() > 1, "{line}");
}

#[test]
fn journal_gets_priorities_and_no_time() {
    let place = Place::new();
    let script = "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec \"$@\"";
    let agent = place.command("agent --listen 127.0.0.1:0");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(agent.get_program()).args(agent.get_args());
    command.env_clear().env("PATH", "/usr/bin:/bin").env("ZSYNC_STATE", place.path("state")).stdin(Stdio::null());
    let mut running = Running::start(&mut command);
    running.wait_for("listens on", 1);
    assert!(running.seen.last().unwrap().starts_with("<6>agent listens on"), "{:?}", running.seen);
    assert_eq!(running.stop(), Some(0));
}

// --- From cron.

#[test]
fn pass_makes_way_for_running_one() {
    let place = Place::new();
    slow_zfs(&place);
    let mut first = Running::start(&mut place.command("director --once --log debug --grace 0s"));
    first.wait_for("zfs list", 1);
    let second = place.run("director --once");
    assert_eq!((second.status, second.stdout.as_str(), second.stderr.as_str()), (Some(0), "", ""));
    let second = place.run("director --once --verbose");
    assert_eq!(second.status, Some(0), "{second:?}");
    second.says(&[&format!("process {}", first.child.id()), "still running"]);
    let second = place.run("director --once --format json");
    assert_eq!((second.status, second.stdout.as_str()), (Some(0), ""), "a sentence would not be JSON");
    second.says(&["still running"]);
    // On SIGTERM, the pass reports what is missing.
    signal(&first, rustix::process::Signal::TERM);
    first.wait_for("ended by SIGTERM", 1);
    assert_eq!(first.stop(), Some(1));
    nothing_is_left(&place);
}

/// A pipe that is full, as if its reader were a pager. It stays full as long as the reading end is open.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    std::thread::spawn(move || while filler.write(&[b' '; 4096]).is_ok() {});
    (reader, writer)
}

#[test]
fn nothing_that_prints_holds_catalog() {
    for subcommand in ["plan", "plan --format json", "plan --out /dev/stdout", "director --once --verbose"] {
        let place = Place::new();
        place.zfs(&ZFS.replace("#!/bin/sh\n", &format!("#!/bin/sh\necho \"$*\" >>{}\n", place.path("calls"))));
        let (reader, writer) = full_pipe();
        let mut command = place.command(subcommand);
        let mut printing = command.stdout(writer).stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + PATIENCE;
        // The program lists after it has opened the catalog.
        while !fs::read_to_string(place.path("calls")).is_ok_and(|calls| calls.contains("list")) {
            assert!(Instant::now() < end, "{subcommand} does not list");
            std::thread::sleep(Duration::from_millis(10));
        }
        while place.run("director --once --verbose").stderr.contains("still running") {
            assert!(Instant::now() < end, "{subcommand} holds the catalog while it prints");
        }
        assert!(printing.try_wait().unwrap().is_none(), "{subcommand} does not print");
        drop(reader);
        assert!(printing.wait().unwrap().code().is_some(), "{subcommand}");
    }
}

#[test]
fn pass_ends_at_timeout_and_reports_missing_parts() {
    let place = Place::new();
    slow_zfs(&place);
    let began = Instant::now();
    place.run("director --once --timeout 500ms").fails(1, &["the pass was interrupted", "500ms"]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    nothing_is_left(&place);
    place.zfs(ZFS);
    let ended = place.run("director --once --timeout 1h");
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn order_that_exceeds_timeout_is_reported_and_recorded() {
    let place = Place::new();
    place.policy(&POLICY.replace("@yearly", "* * * * *").replace("tank/data", "tank/slow"));
    place.write("local.json", &LOCAL.replace("tank/data", "tank/slow"));
    let take = format!("snapshot*) echo $$ >>{}; exec sleep 60 ;;\n  *filesystem", place.path("pids"));
    let script = ZFS.replace("tank/data", "tank/slow").replace(
        "*snapshot,bookmark*) printf 'tank/slow@SYNC_2026-01-01_00:00:00\\t1\\t1\\t%s\\t0\\t0\\n' \"$(date +%s)\" ;;",
        "*snapshot,bookmark*) ;;",
    );
    place.zfs(&script.replacen("*filesystem", &take, 1));
    let ended = place.run("director --once --timeout 3s");
    assert_eq!(ended.status, Some(1), "{ended:?}");
    ended.says(&[
        "take of alpha:tank/slow failed: it did not end within 3s; the next pass resumes it",
        "the pass was interrupted",
    ]);
    assert_eq!(ended.stderr.lines().count(), 2, "{ended:?}");
    nothing_is_left(&place);
    assert!(Path::new(&place.path("catalog")).exists());
}
