//! Checks the structure of `src/`: which module may use which, what deciding code must never do, and that no text
//! contains certain words.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests may panic"
)]

mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use sources::{Graph, circle};

/// The modules (folders) of `src/` from top to bottom, each with all the modules below it that it may use.
const FLOORS: &[(&str, &[&str])] = &[
    (
        "commands",
        &[
            "plan",
            "director",
            "fleet",
            "agent",
            "slave",
            "host",
            "catalog",
            "server",
            "cli",
            "consul",
            "transport",
            "zfs",
            "sys",
            "actions",
            "config",
            "policy",
            "model",
        ],
    ),
    ("plan", &["director", "fleet", "catalog", "cli", "zfs", "sys", "actions", "config", "policy", "model"]),
    (
        "director",
        &[
            "fleet",
            "agent",
            "host",
            "catalog",
            "server",
            "cli",
            "consul",
            "wire",
            "transport",
            "zfs",
            "sys",
            "actions",
            "config",
            "policy",
            "model",
        ],
    ),
    ("fleet", &["agent", "host", "catalog", "consul", "wire", "transport", "zfs", "sys", "actions", "policy", "model"]),
    ("agent", &["slave", "host", "catalog", "server", "wire", "transport", "zfs", "sys", "actions", "policy", "model"]),
    ("slave", &["host", "server", "wire", "zfs", "sys", "policy", "model"]),
    ("host", &["catalog", "consul", "wire", "transport", "zfs", "sys", "policy", "model"]),
    ("catalog", &["consul", "sys", "policy", "model"]),
    ("server", &["wire", "transport", "sys", "model"]),
    ("consul", &["transport", "sys", "policy"]),
    ("wire", &["transport", "sys", "model"]),
    ("transport", &["sys", "model"]),
    ("zfs", &["sys", "model"]),
    ("cli", &["config", "policy", "model"]),
    ("sys", &[]),
    ("actions", &["policy", "model"]),
    ("config", &["policy", "model"]),
    ("policy", &["model"]),
    ("model", &[]),
];

/// Modules and files that only decide: they perform no I/O and read no clock.
const DECIDING: &[&str] =
    &["actions", "model", "policy", "plan/compare", "plan/document", "plan/foresee", "plan/simulate"];

/// The parts of the decision engine that agent and slave may use: they decide how to transfer, not what to transfer.
const STEPS: &[&str] = &["steps", "divergence", "lineage"];

#[test]
fn modules_use_only_the_modules_that_they_may_use() {
    let graph = Graph::read();
    let floors: BTreeMap<&str, &[&str]> = FLOORS.iter().copied().collect();
    let rooms = graph.siblings(&[]);
    let mut wrong = Vec::new();
    for (module, uses) in &graph.uses {
        let room = module[0].as_str();
        if matches!(room, "main" | "lib") {
            continue;
        }
        let Some(permitted) = floors.get(room) else {
            wrong.push(format!("{}: FLOORS lacks the module {room}", module.join("::")));
            continue;
        };
        for used in uses.iter().filter(|used| used[0] != room && !permitted.contains(&used[0].as_str())) {
            wrong.push(format!("{} uses {}", module.join("::"), used.join("::")));
        }
    }
    for (room, permitted) in FLOORS {
        let used = &rooms[*room];
        wrong.extend(
            permitted.iter().filter(|p| !used.contains(**p)).map(|p| format!("{room} does not use {p} at all")),
        );
        println!("{room:10} -> {}", used.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_are_above_the_modules_that_they_use() {
    for (position, (room, permitted)) in FLOORS.iter().enumerate() {
        for below in *permitted {
            let floor = FLOORS.iter().position(|(name, _)| name == below).expect(below);
            assert!(floor > position, "{room} is below {below} in FLOORS, but may use it");
        }
    }
}

#[test]
fn no_files_and_no_folders_use_each_other_in_a_circle() {
    let graph = Graph::read();
    let files = circle(&graph.uses);
    assert!(files.is_empty(), "files: {:?}", files.iter().map(|module| module.join("::")).collect::<Vec<_>>());
    for folder in graph.folders() {
        let found = circle(&graph.siblings(&folder));
        assert!(found.is_empty(), "below {}: {found:?}", folder.join("::"));
    }
}

#[test]
fn commands_do_not_use_each_other() {
    let graph = Graph::read();
    let commands = graph.siblings(&["commands".to_owned()]);
    for (command, uses) in commands.iter().filter(|(name, _)| *name != "daemon") {
        let others: Vec<&String> = uses.iter().filter(|used| *used != "daemon").collect();
        assert!(others.is_empty(), "commands::{command} uses {others:?}");
    }
}

#[test]
fn agent_and_slave_decide_how_to_transfer_and_nothing_else() {
    let graph = Graph::read();
    for (module, uses) in graph.uses.iter().filter(|(module, _)| matches!(module[0].as_str(), "agent" | "slave")) {
        let engine = uses.iter().filter(|used| used[0] == "actions");
        let beyond: Vec<String> =
            engine.filter(|used| !STEPS.contains(&used[1].as_str())).map(|used| used.join("::")).collect();
        assert!(beyond.is_empty(), "{} uses {beyond:?}", module.join("::"));
    }
}

#[test]
fn deciding_code_performs_no_io_and_reads_no_clock() {
    let forbidden = [
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "ToSocketAddrs",
        "std::process",
        "std::io",
        "SystemTime",
        "Instant::now",
        "Utc::now",
        "Local::now",
        "clock::",
        "EmbeddedCatalog",
    ];
    let mut wrong = Vec::new();
    for source in Graph::read().sources.values() {
        let module = source.module.join("/");
        if DECIDING.iter().any(|deciding| module == *deciding || module.starts_with(&format!("{deciding}/"))) {
            let found = forbidden.iter().filter(|word| source.code.contains(*word));
            wrong.extend(found.map(|word| format!("{module}: {word}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_runtime_is_named_in_sys_and_transport_only() {
    let graph = Graph::read();
    let named = graph.sources.values().filter(|source| source.code.contains("async_std::"));
    let files: BTreeSet<String> = named.map(|source| source.file.display().to_string()).collect();
    assert_eq!(
        files.iter().map(String::as_str).collect::<Vec<_>>(),
        ["sys/runtime.rs", "transport/dial.rs", "transport/tcp.rs", "transport/within.rs"]
    );
}

#[test]
fn no_file_is_longer_than_500_lines_without_its_tests() {
    let long = Graph::read().sources.into_values().filter(|source| source.text.lines().count() > 500);
    let long: Vec<String> =
        long.map(|source| format!("{}: {} lines", source.file.display(), source.text.lines().count())).collect();
    assert!(long.is_empty(), "{long:?}");
}

/// Words that no text of this project may contain. CONTRIBUTING.md describes how its texts are written.
const DIALECT: &[&str] = &[
    "anew",
    "amidst",
    "go on with",
    "goes on with",
    "going on with",
    "gone on with",
    "break off",
    "breaks off",
    "broke off",
    "broken off",
    "at the most",
];

fn dialect_in(place: &str, text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).collect();
    let text = format!(" {} ", words.join(" "));
    let found = DIALECT.iter().filter(|words| text.contains(&format!(" {words} ")));
    found.map(|words| format!("{place}: {words:?}")).collect()
}

#[test]
fn no_text_contains_forbidden_words() {
    fn texts(path: &Path, into: &mut Vec<(String, String)>) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                texts(&entry.unwrap().path(), into);
            }
        } else if let Ok(text) = fs::read_to_string(path) {
            // The names of keys and statuses stay as they are on the wire and in files.
            into.push((
                path.display().to_string(),
                text.replace("broken_off", "").replace("\"Anew\"", "").replace("Cm Anew", ""),
            ));
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    for place in ["src", "man", "examples", "README.md", "CHANGELOG.md", "benches", "tests/lab"] {
        texts(&root.join(place), &mut all);
    }
    let mut help = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_zsync")).args(arguments).arg("--help").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        all.push((format!("zsync {} --help", arguments.join(" ")), text.clone()));
        text
    };
    let overview = help(&[]);
    let commands = overview.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<String> = commands.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
    assert!(commands.len() > 8, "{overview}");
    for command in &commands {
        help(&[command]);
    }
    let found: Vec<String> = all.iter().flat_map(|(place, text)| dialect_in(place, text)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}
