//! The scenarios of `tests/lab/scenarios`, on real ZFS: one start of the lab for all of them, one test for each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// All scenarios together take at most so long.
const SECONDS: &str = "2400";

/// How each scenario ended: "ok", "failed" or "timeout".
static RESULTS: OnceLock<BTreeMap<String, String>> = OnceLock::new();

fn run_all() -> BTreeMap<String, String> {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/run");
    let mut child = Command::new(&lab)
        .args(["--timeout", SECONDS, "guest-suite"])
        .env("ZSYNC_BIN", env!("CARGO_BIN_EXE_zsync"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", lab.display()));
    let mut results = BTreeMap::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap_or_default();
        // Not through the test runner's capture: it takes minutes, and people watch.
        writeln!(std::io::stderr(), "{line}").ok();
        if let Some(result) = line.strip_prefix("LAB-SCENARIO ") {
            let mut words = result.split(' ');
            if let (Some(name), Some(ended)) = (words.next(), words.next()) {
                results.insert(name.to_owned(), ended.to_owned());
            }
        }
    }
    let status = child.wait().unwrap();
    assert!(!results.is_empty(), "the lab did not run any scenario: {status}; see above, and tests/lab/README.md");
    results
}

fn scenario(name: &str) {
    let results = RESULTS.get_or_init(run_all);
    match results.get(name).map(String::as_str) {
        Some("ok") => {}
        Some(ended) => panic!("scenario {name}: {ended}; its checks are above"),
        None => panic!("scenario {name} did not run: did the lab end before?"),
    }
}

macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        $(#[test] fn $name() { scenario(stringify!($name)); })+

        /// A scenario without a test would fail unseen.
        #[test]
        fn every_scenario_is_a_test() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/scenarios");
            let mut found: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            found.sort();
            let mut tests = vec![$(stringify!($name).to_owned()),+];
            tests.sort();
            assert_eq!(found, tests);
        }
    };
}

scenarios!(bad_input, demo, one_host, orders, readme, resume, selftest);
