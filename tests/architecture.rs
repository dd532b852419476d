//! Who may name whom: the arrows between the modules of `src/`, and what deciding code never does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module with those that it may name. `main` and `lib` tie everything together and may name all.
const ARROWS: &[(&str, &[&str])] = &[
    ("actions", &["model", "policy"]),
    ("catalog", &["consul", "model", "runtime"]),
    ("cli", &["model", "report"]),
    ("clock", &[]),
    (
        "commands",
        &[
            "actions",
            "catalog",
            "clock",
            "config",
            "consul",
            "error",
            "model",
            "policy",
            "process",
            "report",
            "runtime",
            "service",
            "transport",
            "wire",
            "zfs",
        ],
    ),
    ("config", &["model", "policy"]),
    ("consul", &["policy", "runtime", "transport"]),
    ("error", &[]),
    ("logging", &["cli", "report"]),
    ("model", &[]),
    ("policy", &["model"]),
    ("process", &["runtime"]),
    ("report", &[]),
    ("runtime", &[]),
    ("service", &["runtime"]),
    ("settings", &["cli", "clock", "commands", "config", "error", "logging", "model", "transport"]),
    ("transport", &["model", "runtime", "wire"]),
    ("wire", &["model", "runtime"]),
    ("zfs", &["clock", "model", "process", "runtime"]),
];

/// Modules that perform no I/O and read no clock.
const DECIDING: &[&str] = &["actions", "cli", "model", "policy"];
/// The same of files in modules that otherwise do.
const DECIDING_FILES: &[&str] =
    &["commands/plan/compare.rs", "commands/plan/document.rs", "commands/plan/foresee.rs", "commands/plan/simulate.rs"];

fn sources() -> Vec<(String, PathBuf, String)> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|e| e == "rs") {
                into.push(path);
            }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&src, &mut paths);
    paths.sort();
    let of = |path: PathBuf| {
        let relative = path.strip_prefix(&src).unwrap().to_owned();
        let module = relative.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
        let text = fs::read_to_string(&path).unwrap();
        // Tests may name what they like.
        let is_test = relative.file_stem().is_some_and(|stem| stem == "tests") || relative.iter().any(|c| c == "tests");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
        (module, relative, if is_test { String::new() } else { code })
    };
    paths.into_iter().map(of).collect()
}

/// The modules that a text names as `crate::module` or `crate::{module, ...}`.
fn named(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for rest in line.split("crate::").skip(1) {
            let list = rest.strip_prefix('{').map_or(vec![rest], |inside| inside.split(',').collect());
            for item in list {
                let name: String = item.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                names.insert(name);
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn modules_name_only_those_below_them() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (module, path, code) in sources() {
        if matches!(module.as_str(), "main" | "lib") {
            continue;
        }
        let Some(allowed) = arrows.get(module.as_str()) else {
            wrong.push(format!("{}: the module {module} has no arrows", path.display()));
            continue;
        };
        for name in named(&code) {
            if name != module && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{}: {module} names {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_arrows_have_no_circle() {
    let mut left: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(module, allowed)| (*module, allowed.iter().copied().collect())).collect();
    while !left.is_empty() {
        let ready: Vec<&str> = left.iter().filter(|(_, names)| names.is_empty()).map(|(module, _)| *module).collect();
        assert!(!ready.is_empty(), "a circle among {:?}", left.keys());
        for module in ready {
            left.remove(module);
            left.values_mut().for_each(|names| {
                names.remove(module);
            });
        }
    }
}

#[test]
fn deciding_code_performs_no_io_and_reads_no_clock() {
    let forbidden = [
        "std::fs",
        "std::net",
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
    for (module, path, code) in sources() {
        if DECIDING.contains(&module.as_str()) || DECIDING_FILES.iter().any(|file| path.ends_with(file)) {
            wrong.extend(forbidden.iter().filter(|f| code.contains(*f)).map(|f| format!("{}: {f}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_runtime_is_named_in_one_place() {
    let allowed = ["runtime.rs", "transport/dial.rs", "transport/tcp.rs"];
    let mut wrong = Vec::new();
    for (_, path, code) in sources() {
        if code.contains("async_std::") && !allowed.contains(&path.to_string_lossy().as_ref()) {
            wrong.push(path.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "async_std is named in {wrong:?}");
}

#[test]
fn no_file_is_longer_than_people_read() {
    let long: Vec<String> = sources()
        .into_iter()
        .filter(|(_, _, code)| code.lines().count() > 550)
        .map(|(_, path, code)| format!("{}: {} lines", path.display(), code.lines().count()))
        .collect();
    assert!(long.is_empty(), "{long:?}");
}
