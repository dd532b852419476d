//! Runs `zsync plan` on exported catalogs, and compares its output with the expected one.
//!
//! The expected output of a case is in `tests/plan/NAME.{txt,json,ndjson}`. With `UPDATE_EXPECTED` in the environment,
//! the output is written there instead, for review in the diff. All JSON is validated by its schema in
//! `examples/schema`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::schema;
use serde_json::{Value, json};

#[path = "plan/foreseen.rs"]
mod foreseen;
#[path = "plan/saved.rs"]
mod saved;

const NOW: &str = "2026-11-23T10:30:00Z";

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The program without an environment, in the folder of the inputs.
fn zsync(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zsync"));
    // There is no zfs and no local.json: with --catalog, plan must read nothing else.
    command.env_clear().current_dir(project("tests/plan/input")).stdin(Stdio::null()).arg("plan");
    command.args(["--zfs", "/nonexistent/zfs", "--local", "/nonexistent/local.json", "--hostname", "alpha"]).args(args);
    command
}

fn run(args: &[&str]) -> Output {
    zsync(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Replaces the random parts of the output.
fn settled(text: &str) -> String {
    let key = "\"OrderUUID\":\"";
    let mut parts = text.split(key);
    let mut settled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        settled += &format!("{key}00000000-0000-0000-0000-000000000000{}", &part[36..]);
    }
    settled
}

/// Each case is `NAME.EXTENSION: status: arguments`. An empty policy or catalog is omitted.
struct Case(&'static str, i32, &'static str, &'static str, &'static [&'static str]);

const CASES: &[Case] = &[
    Case("orders.txt", 0, "server.json", "fleet.ndjson", &[]),
    Case("orders.json", 0, "server.json", "fleet.ndjson", &["--format", "json"]),
    Case("orders.ndjson", 0, "server.json", "fleet.ndjson", &["--format", "ndjson"]),
    Case("explain.txt", 0, "server.json", "fleet.ndjson", &["--explain"]),
    Case("explain.json", 0, "server.json", "fleet.ndjson", &["--explain", "--format", "json"]),
    Case("host.txt", 3, "server.json", "fleet.ndjson", &["--host", "beta", "--exit-code"]),
    Case("dataset.txt", 3, "server.json", "fleet.ndjson", &["--dataset", "tank/foo/child", "--exit-code"]),
    Case(
        "dataset.ndjson",
        3,
        "server.json",
        "fleet.ndjson",
        &["--dataset", "tank/foo/child", "--exit-code", "--format", "ndjson"],
    ),
    Case("chain.txt", 0, "chain.json", "chain.ndjson", &[]),
    Case("quiet.txt", 0, "server.json", "quiet.ndjson", &["--exit-code"]),
    Case("quiet.json", 0, "server.json", "quiet.ndjson", &["--exit-code", "--explain", "--format", "json"]),
    Case("quiet.ndjson", 0, "server.json", "quiet.ndjson", &["--exit-code", "--format", "ndjson"]),
    Case("later.txt", 0, "server.json", "quiet.ndjson", &["--at", "2027-03-01 00:00:00"]),
    Case("idle.txt", 0, "server.json", "fleet.ndjson", &["--dataset", "tank/foo/idle"]),
    Case("idle-later.txt", 0, "server.json", "idle.ndjson", &["--dataset", "tank/foo/idle"]),
    Case("compare.txt", 0, "server.json", "fleet.ndjson", &["--compare", "other.json"]),
    Case(
        "compare.json",
        3,
        "server.json",
        "fleet.ndjson",
        &["--compare", "other.json", "--format", "json", "--exit-code"],
    ),
    Case("compare.ndjson", 0, "server.json", "fleet.ndjson", &["--compare", "other.json", "--format", "ndjson"]),
    Case("compare-same.txt", 0, "server.json", "fleet.ndjson", &["--compare", "server.json", "--exit-code"]),
    Case("simulate.txt", 0, "server.json", "fleet.ndjson", &["--simulate", "3d"]),
    Case("simulate.json", 0, "server.json", "fleet.ndjson", &["--simulate", "2d", "--format", "json"]),
    Case(
        "simulate.ndjson",
        0,
        "server.json",
        "fleet.ndjson",
        &["--simulate", "2d", "--format", "ndjson", "--host", "beta"],
    ),
    Case("simulate-compare.txt", 0, "server.json", "fleet.ndjson", &["--simulate", "3d", "--compare", "other.json"]),
    Case(
        "simulate-compare.json",
        3,
        "server.json",
        "fleet.ndjson",
        &["--simulate", "2d", "--compare", "other.json", "--format", "json", "--exit-code"],
    ),
    Case(
        "simulate-compare.ndjson",
        0,
        "server.json",
        "fleet.ndjson",
        &["--simulate", "2d", "--compare", "other.json", "--format", "ndjson", "--host", "beta"],
    ),
    Case(
        "simulate-compare-same.txt",
        0,
        "server.json",
        "fleet.ndjson",
        &["--simulate", "2d", "--compare", "server.json", "--exit-code"],
    ),
    Case("example.txt", 0, "../../../examples/two-hosts/server.json", "../../../examples/plan/catalog.ndjson", &[]),
    Case(
        "example-compare.txt",
        0,
        "../../../examples/two-hosts/server.json",
        "../../../examples/plan/catalog.ndjson",
        &["--compare", "../../../examples/plan/shorter.json"],
    ),
    Case("future.txt", 0, "server.json", "future.ndjson", &["--explain"]),
    Case("same-second.txt", 0, "server.json", "same-second.ndjson", &["--explain"]),
    Case("same-guids.txt", 0, "server.json", "same-guids.ndjson", &["--explain"]),
    Case("foreign.txt", 0, "server.json", "foreign.ndjson", &["--explain"]),
    Case("broken.txt", 2, "server.json", "broken.ndjson", &[]),
    Case("missing.txt", 2, "server.json", "no-such-file.ndjson", &[]),
    Case("folder.txt", 2, "server.json", ".", &[]),
    Case("zone.txt", 2, "zone.json", "fleet.ndjson", &[]),
    Case("no-policy.txt", 2, "no-such-file.json", "fleet.ndjson", &[]),
    Case("no-other.txt", 2, "server.json", "fleet.ndjson", &["--compare", "no-such-file.json"]),
    Case("unknown-host.txt", 2, "server.json", "fleet.ndjson", &["--host", "betta"]),
    Case("unknown-dataset.txt", 2, "server.json", "fleet.ndjson", &["--dataset", "tank/fo"]),
    Case("bad-time.txt", 2, "server.json", "fleet.ndjson", &["--at", "yesterday"]),
    Case("out-of-a-file.txt", 2, "server.json", "fleet.ndjson", &["--out", "plan.json"]),
    Case("no-exit-code.txt", 2, "server.json", "fleet.ndjson", &["--simulate", "2d", "--exit-code"]),
    Case("too-long.txt", 2, "server.json", "fleet.ndjson", &["--simulate", "100y"]),
];

#[test]
fn plan_prints_expected_output_for_each_case() {
    let mut wrong = String::new();
    for Case(name, status, policy, catalog, more) in CASES {
        let mut args = vec!["--config", policy, "--catalog", catalog];
        if !more.contains(&"--at") && !more.contains(&"--out") {
            args.extend(["--at", NOW]);
        }
        args.extend(*more);
        let output = run(&args);
        let (stdout, stderr) = (settled(&text(&output.stdout)), text(&output.stderr));
        let found = if stderr.is_empty() { stdout } else { format!("{stdout}--- standard error:\n{stderr}") };
        if output.status.code() != Some(*status) {
            wrong += &format!("--- {name}: ends with {}, not {status}: {args:?}\n{found}\n", output.status);
        }
        let path = project("tests/plan").join(name);
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&path, &found).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if expected != found {
            wrong += &format!("--- {name}: expected\n{expected}--- found\n{found}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Validates documents by a schema, or by one of its parts.
fn assert_valid<'v>(schema: &Value, part: Option<&str>, what: &str, values: impl IntoIterator<Item = &'v Value>) {
    let mut schema = schema.clone();
    if let Some(part) = part {
        schema = json!({ "$ref": format!("#/$defs/{part}"), "$defs": schema["$defs"] });
    }
    let mut count = 0;
    for value in values {
        count += 1;
        common::assert_valid(&schema, value);
    }
    assert!(count > 0, "{what}: nothing was validated");
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The expected outputs are those of plan_prints_expected_output_for_each_case.
#[test]
fn json_output_is_valid_by_its_schema() {
    let plan = schema("plan.schema.json");
    let expected = |file: &str| fs::read_to_string(project("tests/plan").join(file)).unwrap();
    let whole = |file: &str| -> Value { serde_json::from_str(&expected(file)).unwrap() };
    for file in ["orders.json", "explain.json", "quiet.json"] {
        assert_valid(&plan, None, file, [&whole(file)]);
    }
    for file in ["orders.ndjson", "dataset.ndjson"] {
        assert_valid(&schema("order.schema.json"), None, file, &lines(&expected(file)));
    }
    let simulation = schema("simulation.schema.json");
    assert_valid(&simulation, None, "simulate.json", [&whole("simulate.json")]);
    let (days, places): (Vec<Value>, Vec<Value>) =
        lines(&expected("simulate.ndjson")).into_iter().partition(|line| line.get("date").is_some());
    assert_valid(&simulation, Some("day"), "simulate.ndjson", &days);
    assert_valid(&simulation, Some("place"), "simulate.ndjson", &places);
    let simulations = schema("simulations.schema.json");
    assert_valid(&simulations, None, "simulate-compare.json", [&whole("simulate-compare.json")]);
    let (days, places): (Vec<Value>, Vec<Value>) =
        lines(&expected("simulate-compare.ndjson")).into_iter().partition(|line| line.get("date").is_some());
    assert_valid(&simulations, Some("day"), "simulate-compare.ndjson", &days);
    assert_valid(&simulations, Some("place"), "simulate-compare.ndjson", &places);
    let comparison = schema("comparison.schema.json");
    assert_valid(&comparison, None, "compare.json", [&whole("compare.json")]);
    assert_valid(&comparison, Some("difference"), "compare.ndjson", &lines(&expected("compare.ndjson")));
    let record = schema("catalog-record.schema.json");
    for file in
        ["fleet.ndjson", "chain.ndjson", "future.ndjson", "foreign.ndjson", "../../../examples/plan/catalog.ndjson"]
    {
        let text = fs::read_to_string(project("tests/plan/input").join(file)).unwrap();
        assert_valid(&record, None, file, &lines(&text));
    }
}

/// A schema that accepts everything would prove nothing.
#[test]
fn schemas_reject_invalid_documents() {
    let plan = schema("plan.schema.json");
    let text = fs::read_to_string(project("tests/plan/explain.json")).unwrap();
    let good: Value = serde_json::from_str(&text).unwrap();
    let validator = jsonschema::validator_for(&plan).unwrap();
    assert!(validator.is_valid(&good));
    for (pointer, value) in [
        ("/at", json!(7)),
        ("/orders/0/action", json!("burn")),
        ("/orders/0/extra", json!(1)),
        ("/orders/1/guid", json!(7)),
        ("/explain/prunes/0/snapshots/0/keep", json!("yes")),
        ("/explain/takes/0/reason/kind", json!("whim")),
    ] {
        let mut bad = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        bad.pointer_mut(parent).unwrap()[key] = value;
        assert!(!validator.is_valid(&bad), "{pointer}");
    }
}

#[test]
fn exported_catalog_gives_the_same_plan() {
    let export = |catalog: &str, to: &[&str], input: &str| {
        let mut args = vec!["--config", "server.json", "--catalog", catalog, "--export-catalog"];
        args.extend(to);
        let mut child = zsync(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        text(&output.stdout)
    };
    // Without these lines, every host counts as listed at the time of reading.
    let listed = ["alpha", "beta"].map(|host| format!("{}\n", json!({ "host": host, "observed": NOW })));
    let catalog = fs::read_to_string(project("tests/plan/input/fleet.ndjson")).unwrap() + &listed.concat();
    let first = export("-", &[], &catalog);
    assert_valid(&schema("catalog-record.schema.json"), None, "export", &lines(&first));
    assert_eq!(first.lines().filter(|line| line.contains("\"name\"")).count(), 17);
    assert_eq!(export("-", &["-"], &first), first);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("catalog.ndjson");
    let file = file.to_str().unwrap();
    assert_eq!(export("-", &[file], &catalog), "");
    assert_eq!(fs::read_to_string(file).unwrap(), first);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
    let plan =
        |catalog| text(&run(&["--config", "server.json", "--catalog", catalog, "--at", NOW, "--explain"]).stdout);
    assert_eq!(plan("fleet.ndjson"), plan(file));
    let refused = run(&["--config", "server.json", "--catalog", "fleet.ndjson", "--export-catalog", "/nonexistent/x"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("cannot write /nonexistent/x"), "{}", text(&refused.stderr));
}

/// The benchmark measures how long such a simulation takes.
#[test]
fn simulation_of_every_example_keeps_its_promises() {
    for example in ["one-host", "two-hosts", "fleet", "full"] {
        let policy = project("examples").join(example).join("server.json");
        let policy = policy.to_str().unwrap();
        let known: Value = serde_json::from_str(&fs::read_to_string(policy).unwrap()).unwrap();
        let mut catalog = String::new();
        for entry in known["datasets"].as_array().unwrap() {
            catalog += &format!("{}\n", json!({ "host": entry["hostname"], "dataset": entry["dataset"] }));
        }
        for host in ["beta", "gamma", "vault", "offsite"] {
            catalog += &format!("{}\n", json!({ "host": host }));
        }
        let args = ["--config", policy, "--catalog", "-", "--at", NOW, "--simulate", "8d", "--format", "json"];
        let mut child = zsync(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(catalog.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let simulation: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_valid(&schema("simulation.schema.json"), None, example, [&simulation]);
        assert_eq!(simulation["days"].as_array().unwrap().len(), 9);
        for place in simulation["end"].as_array().unwrap() {
            for rule in place["rules"].as_array().unwrap() {
                let hourly = ["backup"].contains(&place["policy"].as_str().unwrap()) && example != "full";
                if rule["rule"] == "24 in last day" && hourly && place["side"] == "source" {
                    assert_eq!(rule["keeps"], 24, "{example}: {place:#}");
                }
            }
        }
    }
}
