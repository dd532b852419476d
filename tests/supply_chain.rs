//! Checks the dependencies: all of them come from the registry under licences that deny.toml allows, none is denied
//! there, and every accepted advisory has a reason. `make audit` checks what needs advisory data.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The packages of the accepted advisories. An exception whose package is gone must be removed.
const EXCEPTED: &[(&str, &str)] = &[
    ("RUSTSEC-2020-0056", "stdweb"),
    ("RUSTSEC-2021-0059", "aesni"),
    ("RUSTSEC-2021-0060", "aes-soft"),
    ("RUSTSEC-2021-0064", "cpuid-bool"),
    ("RUSTSEC-2024-0384", "instant"),
    ("RUSTSEC-2025-0036", "surf"),
    ("RUSTSEC-2025-0052", "async-std"),
    ("RUSTSEC-2026-0097", "rand"),
    ("RUSTSEC-2026-0169", "surf"),
    ("RUSTSEC-2026-0174", "http-types"),
];

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// The packages of Cargo.lock: name and lines.
fn locked() -> Vec<(String, String)> {
    let name =
        |piece: &str| piece.lines().find_map(|line| line.strip_prefix("name = ")).unwrap().trim_matches('"').to_owned();
    read("Cargo.lock").split("[[package]]\n").skip(1).map(|piece| (name(piece), piece.to_owned())).collect()
}

/// A section of deny.toml.
fn section(name: &str) -> String {
    let text = read("deny.toml");
    let after = text.split(&format!("[{name}]\n")).nth(1).unwrap_or_else(|| panic!("deny.toml has no [{name}]"));
    after.split("\n[").next().unwrap().to_owned()
}

fn quoted(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split('"').skip(1).step_by(2))
        .collect()
}

#[test]
fn dependencies_are_pinned_and_from_the_registry() {
    for (name, piece) in locked() {
        if name != "zsync" {
            assert!(piece.contains("\nsource = \"registry+"), "{name} is from elsewhere");
            assert!(piece.contains("\nchecksum = \""), "{name} has no checksum");
        }
    }
}

fn cargo(arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments).args(["--offline", "--locked"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The packages that are built on Linux, with tests: name and licence. Cargo.lock has more, mostly for WebAssembly.
fn built() -> BTreeMap<String, String> {
    let output = cargo(&["metadata", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    let metadata: Value = serde_json::from_slice(&output).unwrap();
    let used: BTreeSet<&str> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap()).collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    let built = packages.filter(|package| used.contains(package["id"].as_str().unwrap()));
    built.map(|package| (text(&package["name"]), text(&package["license"]))).collect()
}

#[test]
fn denied_packages_are_not_built() {
    let bans = section("bans");
    let denied: BTreeSet<&str> = bans.lines().filter(|line| line.contains("{ name = ")).flat_map(quoted).collect();
    assert!(denied.len() >= 6, "{denied:?}");
    for name in built().keys() {
        assert!(!denied.contains(name.as_str()), "{name} is denied in deny.toml; see cargo tree -i {name}");
    }
}

#[test]
fn tokio_is_built_without_runtime() {
    let rule = section("[bans.features]");
    assert!(rule.contains("crate = \"tokio\""), "{rule}");
    let allowed = quoted(&rule);
    let tree = cargo(&["tree", "--prefix", "none", "--format", "{f},{p}"]);
    for line in String::from_utf8(tree).unwrap().lines() {
        let Some((features, _)) = line.split_once(",tokio v") else { continue };
        assert!(features.split(',').all(|one| allowed.contains(&one)), "{line}; see cargo tree -e features -i tokio");
    }
}

#[test]
fn advisory_exceptions_have_reason_and_package() {
    let advisories = section("advisories");
    let locked: BTreeSet<String> = locked().into_iter().map(|(name, _)| name).collect();
    let mut found = BTreeSet::new();
    let mut reason = false;
    for line in advisories.lines().map(str::trim) {
        if line.starts_with('#') {
            reason = true;
        } else if line.starts_with("\"RUSTSEC-") {
            assert!(reason, "{line} has no reason");
            found.extend(quoted(line));
        } else {
            reason = false;
        }
    }
    assert_eq!(found, EXCEPTED.iter().map(|(id, _)| *id).collect());
    for (id, package) in EXCEPTED {
        assert!(locked.contains(*package), "{package} is gone: take {id} out of deny.toml");
    }
}

/// Whether the allowed licences satisfy a licence expression.
fn is_met(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let expression = expression.replace('/', " OR ");
    let all = |choice: &str| choice.split(" AND ").all(|one| allowed.contains(one.trim_matches(['(', ')', ' '])));
    // A choice in parentheses within a conjunction: each part has to be satisfied.
    if expression.contains(") AND") || expression.contains("AND (") {
        return expression.split(" AND ").all(|part| is_met(part.trim_matches(['(', ')', ' ']), allowed));
    }
    expression.split(" OR ").any(all)
}

#[test]
fn licences_are_allowed() {
    let licenses = section("licenses");
    let allowed: BTreeSet<&str> = quoted(&licenses).into_iter().collect();
    assert!(is_met("MIT OR GPL-3.0", &allowed) && is_met("(MIT OR Apache-2.0) AND Unicode-3.0", &allowed));
    assert!(!is_met("GPL-3.0", &allowed) && !is_met("MIT AND GPL-3.0", &allowed));
    let wrong: Vec<_> = built().into_iter().filter(|(_, license)| !is_met(license, &allowed)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
