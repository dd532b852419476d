//! Runs the scenarios of `tests/lab/scenarios` on real ZFS, in a few starts of the lab, and reports each as a test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;

/// The longest time for all scenarios of one machine.
const SECONDS: &str = "3000";
/// The number of machines that run at the same time. Most scenarios are a shell that waits for commands.
const MACHINES: usize = 2;

/// The release of Debian that runs all scenarios, and an older one, with OpenZFS 2.1, that runs some of them.
const RELEASES: [&str; 2] = ["trixie", "bookworm"];

/// The scenarios that compare with a clock what takes seconds, and may fail on a busy machine: `make lab-lag` runs them.
const BY_HAND: &[&str] = &["lag"];

/// How each scenario ended on each release: "ok", "failed" or "timeout".
static RESULTS: OnceLock<BTreeMap<(&str, String), String>> = OnceLock::new();

fn lab() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab")
}

/// A scenario, from the comments at its top.
struct Scenario {
    name: String,
    /// Its time-out in seconds, which also serves as an estimate of its duration.
    limit: u64,
    /// Whether it needs systemd in the machine.
    systemd: bool,
    /// The release of Debian that it runs on, an index of [`RELEASES`].
    release: usize,
}

/// Every scenario, as it runs on one release.
fn scenarios(release: usize) -> Vec<Scenario> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let head: Vec<&str> = text.lines().take(20).collect();
        let limit = head.iter().find_map(|l| l.strip_prefix("# timeout:")?.trim().parse().ok());
        let systemd = head.contains(&"# systemd");
        Scenario {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            limit: limit.unwrap_or(300),
            systemd,
            release,
        }
    };
    let found = std::fs::read_dir(lab().join("scenarios")).unwrap().map(read);
    found.filter(|scenario| !BY_HAND.contains(&scenario.name.as_str())).collect()
}

/// One start of the lab: a release, and the arguments of `tests/lab/run` after it.
type Start = (usize, Vec<String>);

/// Distributes scenarios among machines, longest first, so that all end at about the same time. Within a share, the
/// scenarios of each release run in a start of their own, and those that need systemd in another one after it.
fn shares(mut scenarios: Vec<Scenario>, machines: usize) -> Vec<Vec<Start>> {
    scenarios.sort_by(|a, b| b.limit.cmp(&a.limit).then_with(|| a.name.cmp(&b.name)));
    let mut shares: Vec<(u64, Vec<Scenario>)> = (0..machines).map(|_| (0, Vec::new())).collect();
    for scenario in scenarios {
        let least = shares.iter_mut().min_by_key(|(load, _)| *load).unwrap();
        least.0 += scenario.limit;
        least.1.push(scenario);
    }
    let starts = |share: Vec<Scenario>| {
        let mut starts: BTreeMap<(usize, bool), Vec<String>> = BTreeMap::new();
        for scenario in share {
            starts.entry((scenario.release, scenario.systemd)).or_default().push(scenario.name);
        }
        let start = |((release, systemd), names): ((usize, bool), Vec<String>)| {
            let options = ["--systemd"].into_iter().filter(|_| systemd).chain(["guest-suite"]);
            (release, options.map(str::to_owned).chain(names).collect())
        };
        starts.into_iter().map(start).collect()
    };
    shares.into_iter().map(|(_, share)| starts(share)).collect()
}

/// The number of machines to use. If the scenarios run directly on this machine, there is only one, because it has only
/// one ZFS.
fn machines() -> usize {
    let in_emulation = std::env::var("ZSYNC_LAB_VM").is_ok_and(|v| v == "1") || !Path::new("/dev/zfs").exists();
    if in_emulation { MACHINES } else { 1 }
}

/// The option that selects a release. Without it, the lab is this machine itself if it has ZFS.
fn option(release: &'static str) -> impl Iterator<Item = &'static str> {
    ["--release", release].into_iter().filter(move |_| release != RELEASES[0])
}

/// Runs one start of the lab. Prints the output of each scenario as soon as it has ended, because the lab takes minutes
/// and people watch.
fn start((release, args): &Start) -> BTreeMap<(&'static str, String), String> {
    let lab = lab().join("run");
    let release = RELEASES[*release];
    let mut child = Command::new(&lab)
        .args(option(release))
        .args(["--timeout", SECONDS])
        .args(args)
        .env("ZSYNC_BIN", env!("CARGO_BIN_EXE_zsync"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", lab.display()));
    let (mut results, mut shown, mut survived) = (BTreeMap::new(), String::new(), Vec::new());
    let mut failed = Vec::new();
    let show = |text: &mut String| {
        std::io::stderr().write_all(text.as_bytes()).ok();
        text.clear();
    };
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap_or_default();
        shown.push_str(&line);
        shown.push('\n');
        if let Some(case) = line.trim_start().strip_prefix("SURVIVED ") {
            survived.push(case.to_owned());
        }
        if let Some(check) = line.trim_start().strip_prefix("FAILED ") {
            failed.push(check.to_owned());
        }
        if let Some(result) = line.strip_prefix("LAB-SCENARIO ") {
            let mut words = result.split(' ');
            if let (Some(name), Some(ended)) = (words.next(), words.next()) {
                let ended = match missing(name, &std::mem::take(&mut survived)) {
                    _ if ended != "ok" => format!("{ended}: {failed:?}"),
                    None => ended.to_owned(),
                    Some(case) => format!("it did not show {case:?}, which tests/lab/SURVIVED.md lists"),
                };
                failed.clear();
                results.insert((release, name.to_owned()), ended);
            }
            show(&mut shown);
        }
    }
    show(&mut shown);
    let status = child.wait().unwrap();
    assert!(!results.is_empty(), "the lab did not run any scenario: {status}; see above, and tests/lab/README.md");
    results
}

/// A case in a scenario's file that the run of the scenario did not report. tests/lab/SURVIVED.md is generated from the
/// files.
fn missing(name: &str, survived: &[String]) -> Option<String> {
    let text = std::fs::read_to_string(lab().join("scenarios").join(name)).unwrap_or_default();
    let named = text.lines().filter_map(|line| line.trim_start().strip_prefix("survived \"")?.strip_suffix('"'));
    named.map(|case| case.replace("\" \"", ": ")).find(|case| !survived.contains(case))
}

fn run_all() -> BTreeMap<(&'static str, String), String> {
    // `cargo test --test lab` alone does not build the example programs that scenarios run.
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--locked", "--quiet", "--examples"]).args((!cfg!(debug_assertions)).then_some("--release"));
    assert!(build.status().unwrap().success(), "the example programs cannot be built");
    // The lab is prepared once, so that no two machines do it at the same time.
    for release in RELEASES {
        let mut prepare = Command::new(lab().join("run"));
        prepare.args(option(release)).arg("--prepare").env("ZSYNC_BIN", env!("CARGO_BIN_EXE_zsync"));
        assert!(prepare.status().unwrap().success(), "the lab cannot be prepared for {release}");
    }
    let chosen = scenarios(1).into_iter().filter(|s| ON_BOTH.contains(&s.name.as_str()));
    let shares = shares(scenarios(0).into_iter().chain(chosen).collect(), machines());
    thread::scope(|scope| {
        let running: Vec<_> =
            shares.iter().map(|starts| scope.spawn(|| starts.iter().flat_map(start).collect::<Vec<_>>())).collect();
        // If a machine fails to start, its scenarios are reported as not run.
        running.into_iter().filter_map(|machine| machine.join().ok()).flatten().collect()
    })
}

fn scenario(release: &'static str, name: &str) {
    let results = RESULTS.get_or_init(run_all);
    match results.get(&(release, name.to_owned())).map(String::as_str) {
        Some("ok") => {}
        Some(ended) => panic!("scenario {name} on {release}: {ended}; its checks are above"),
        None => panic!("scenario {name} did not run on {release}; did the lab end before?"),
    }
}

macro_rules! scenarios {
    (on_both: $($both:ident),+; $($name:ident),+ $(,)?) => {
        $(#[test] fn $name() { scenario(RELEASES[0], stringify!($name)); })+

        /// The scenarios that run on the older release too: what takes little time, and exercises the commands of ZFS in
        /// whose output and behaviour releases differ. `make lab-matrix` runs the others.
        const ON_BOTH: &[&str] = &[$(stringify!($both)),+];

        mod bookworm {
            $(#[test] fn $both() { super::scenario(super::RELEASES[1], stringify!($both)); })+
        }

        /// A scenario that no machine runs would fail unnoticed.
        #[test]
        fn every_scenario_is_a_test() {
            let mut found: Vec<String> = scenarios(0).into_iter().map(|s| s.name).collect();
            found.sort();
            let mut tests = vec![$(stringify!($name).to_owned()),+];
            tests.sort();
            assert_eq!(found, tests);
        }
    };
}

#[test]
fn scenarios_are_assigned_to_one_machine_each() {
    let scenario = |(name, limit, systemd, release): (&str, u64, bool, usize)| Scenario {
        name: name.into(),
        limit,
        systemd,
        release,
    };
    let all =
        [("a", 100, false, 0), ("b", 400, false, 0), ("c", 200, true, 0), ("d", 150, false, 0), ("a", 50, false, 1)];
    let shares = shares(all.into_iter().map(scenario).collect(), 2);
    let args = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>();
    assert_eq!(
        shares,
        [
            vec![(0, args(&["guest-suite", "b"])), (1, args(&["guest-suite", "a"]))],
            vec![(0, args(&["guest-suite", "d", "a"])), (0, args(&["--systemd", "guest-suite", "c"]))],
        ]
    );
}

scenarios!(
    on_both: one_host, resume, trees;
    adopt,
    bad_input,
    behind,
    catalog_writer,
    certificates,
    chaos,
    clock,
    consul,
    copy,
    demo,
    divergence,
    extras,
    fake_and_real,
    few,
    files,
    flags,
    glance,
    hostile,
    keep_storm,
    least_privilege,
    lineage,
    links,
    manual,
    mixed,
    names,
    never_waits,
    once,
    one_host,
    one_host_consul,
    orders,
    package,
    plan,
    readme,
    restore,
    restore_host,
    restore_keys,
    resume,
    selftest,
    space,
    ssh,
    supervised,
    taken_over,
    tls,
    trash,
    trees,
    trouble
);
