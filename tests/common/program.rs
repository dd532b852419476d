//! Runs the program in a folder with configuration, a catalog and a scripted `zfs`, and checks its output and status.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::PATIENCE;

/// A folder with configuration, a catalog and a `zfs`. Programs that are started from it inherit no environment.
pub struct Place(pub TempDir);

pub const POLICY: &str = r#"{
  "catalog": { "embedded": { "path": "CATALOG" } },
  "datasets": [
    { "hostname": "alpha", "dataset": "tank/data",
      "sync": { "prefix": "SYNC", "creation": "@yearly", "retention": ["1 in last day"] } }
  ]
}"#;

/// [`POLICY`] with a second host, which is unreachable: nothing listens on port 1.
pub const TWO_HOSTS: &str = r#"{
  "catalog": { "embedded": { "path": "CATALOG" } },
  "retry_for": "1s",
  "hosts": { "beta": { "address": "127.0.0.1:1", "receive_address": "127.0.0.1:1" } },
  "datasets": [
    { "hostname": "alpha", "dataset": "tank/data",
      "sync": { "prefix": "SYNC", "creation": "@yearly", "retention": ["1 in last day"],
                "sync_on": "beta", "sync_dataset": "pool/copy", "sync_policy": "0 0 1 1 *" } }
  ]
}"#;

pub const LOCAL: &str = r#"{ "local_datasets": [ { "name": "tank/data" } ] }"#;

/// A `zfs` with one dataset that has one snapshot. It is too old for `snapshots_changed`.
pub const ZFS: &str = r#"#!/bin/sh
case "$*" in
  version) echo zfs-2.1.15-1; echo zfs-kmod-2.1.15-1 ;;
  *snapshot,bookmark*) printf 'tank/data@SYNC_2026-01-01_00:00:00\t1\t1\t%s\t0\t0\n' "$(date +%s)" ;;
  *filesystem,volume*) printf 'tank/data\tfilesystem\t2\t0\t-\t-\t-\t-\t-\ttank/data\n' ;;
  *) echo "unexpected: $*" >&2; exit 1 ;;
esac
"#;

impl Place {
    pub fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        place.write("server.json", &POLICY.replace("CATALOG", &place.path("catalog")));
        place.write("local.json", LOCAL);
        place.zfs(ZFS);
        place
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn policy(&self, text: &str) {
        self.write("server.json", &text.replace("CATALOG", &self.path("catalog")));
    }

    pub fn zfs(&self, script: &str) {
        // A running script cannot be written to, so each one is a new file.
        drop(fs::remove_file(self.path("zfs")));
        self.write("zfs", script);
        fs::set_permissions(self.path("zfs"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A subcommand with the files of this folder; `{}` in an argument stands for the folder.
    pub fn command(&self, arguments: &str) -> Command {
        let arguments = arguments.replace("{}", &self.0.path().display().to_string());
        let mut words = arguments.split_whitespace();
        let subcommand = words.next().unwrap_or_default();
        let mut command = bare();
        command.arg(subcommand).args(words).env("ZSYNC_STATE", self.0.path().join("state"));
        let has = |option: &str| arguments.split_whitespace().any(|word| word.trim_end_matches('=') == option);
        if matches!(subcommand, "director" | "plan" | "check" | "status") && !has("--config") {
            command.args(["--config", &self.path("server.json")]);
        }
        if !has("--local") {
            command.args(["--local", &self.path("local.json")]);
        }
        if !has("--zfs") {
            command.args(["--zfs", &self.path("zfs")]);
        }
        if !has("--hostname") {
            command.args(["--hostname", "alpha"]);
        }
        command
    }

    pub fn run(&self, arguments: &str) -> Ended {
        ended(&mut self.command(arguments))
    }
}

pub fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zsync"));
    // The scripted `zfs` needs `$PATH` to find `printf` and `date`.
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").stdin(Stdio::null());
    command
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The errors on standard error, without the hints below them.
    pub fn errors(&self) -> usize {
        self.stderr.lines().filter(|line| !line.starts_with("  hint: ")).count()
    }

    /// Checks that the program failed with this status and one error that has all these words.
    #[track_caller]
    pub fn fails(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status, Some(status), "{self:?}");
        assert_eq!(self.errors(), 1, "{self:?}");
        self.says(words);
    }

    #[track_caller]
    pub fn says(&self, words: &[&str]) {
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing in {self:?}");
        }
    }
}

pub fn ended(command: &mut Command) -> Ended {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = rustix::process::Pid::from_child(&child);
    let (done, waiting) = mpsc::channel();
    std::thread::spawn(move || drop(done.send(child.wait_with_output())));
    let Output { status, stdout, stderr } = waiting.recv_timeout(PATIENCE).map_or_else(
        |_| {
            rustix::process::kill_process(id, rustix::process::Signal::KILL).ok();
            panic!("{command:?} does not end")
        },
        Result::unwrap,
    );
    Ended {
        status: status.code(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// A running program, and its log.
pub struct Running {
    pub child: Child,
    pub log: mpsc::Receiver<String>,
    pub seen: Vec<String>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, log) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, log, seen: Vec::new() }
    }

    /// Waits for this many more lines with these words.
    #[track_caller]
    pub fn wait_for(&mut self, words: &str, mut times: usize) {
        let end = Instant::now() + PATIENCE;
        while times > 0 {
            match self.log.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    times -= usize::from(line.contains(words));
                    self.seen.push(line);
                }
                Err(_) => panic!("no line with {words:?}: {:#?}", self.seen),
            }
        }
    }

    pub fn count(&self, words: &str) -> usize {
        self.seen.iter().filter(|line| line.contains(words)).count()
    }

    /// Sends SIGTERM, and returns the exit status.
    pub fn stop(mut self) -> Option<i32> {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(asked.elapsed() < Duration::from_secs(10), "the program does not end on SIGTERM");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
