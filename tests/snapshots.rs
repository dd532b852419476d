//! Tests `zsync snapshots` on pools in memory with an embedded catalog, and as a program. `tests/lab/scenarios/restore`
//! does the same on real ZFS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use chrono::Utc;
use common::fleet::Fleet;
use common::program::{Place, TWO_HOSTS};
use serde_json::Value;
use zsync::actions::{Selection, Whereabouts};
use zsync::commands::snapshots::{SnapshotsSettings, render, snapshots};
use zsync::sys::runtime;

/// Asks for a dataset of alpha, as its director does.
fn ask(fleet: &Fleet, dataset: &str, selection: Selection) -> Result<Whereabouts, String> {
    let settings = SnapshotsSettings {
        config: fleet.path("server.json"),
        local: None,
        host_name: "alpha".parse().unwrap(),
        dataset: zsync::cli::args::place(dataset).unwrap(),
        selection,
    };
    runtime::block_on(snapshots(&settings, &fleet.alpha)).map_err(|error| format!("{error:#}"))
}

fn text(fleet: &Fleet, dataset: &str) -> String {
    render(&ask(fleet, dataset, Selection::default()).unwrap(), Utc::now())
}

/// The words of the line that ends with `end`.
#[track_caller]
fn row<'t>(text: &'t str, end: &str) -> Vec<&'t str> {
    let line = text.lines().find(|line| line.ends_with(end)).unwrap_or_else(|| panic!("no {end}: {text}"));
    line.split_whitespace().collect()
}

#[test]
fn snapshots_are_shown_with_their_places_without_asking_any_host() {
    let mut fleet = Fleet::new();
    let first = fleet.take("tank/one", 300);
    let second = fleet.take("tank/one", 185);
    // The second pass finds the hold that the first one has left on the copy.
    assert!(fleet.pass().is_success() && fleet.pass().is_success());
    // Nobody can be asked.
    fleet.addresses = ("127.0.0.1:1".into(), "127.0.0.1:1".into());
    fleet.policy();
    let text = self::text(&fleet, "alpha:tank/one");
    assert_eq!(row(&text, " alpha:tank/one")[1..4], ["2", "3h", "5m"], "{text}");
    let beta = row(&text, " beta:pool/one");
    assert_eq!((beta[0], beta[1], &beta[beta.len() - 2..]), ("2", "2", &["copy", "beta:pool/one"][..]), "{text}");
    assert_eq!(row(&text, &first)[2..], ["5h", "0B", "x", "x", &first], "{text}");
    // The newest one of a copy is held.
    assert_eq!(row(&text, &second)[2..], ["3h", "5m", "0B", "x", "h", &second], "{text}");
    let order = [text.find(&second).unwrap(), text.find(&first).unwrap()];
    assert!(order.is_sorted() && text.lines().all(|line| line.len() <= 80), "newest first: {text}");
    assert_eq!(self::text(&fleet, "beta:pool/one"), text, "the copy has the same");

    // A snapshot that was taken after the listing of beta may be there.
    fleet.snapshot(&fleet.alpha, "tank/one", "new", 0);
    let later = ask(&fleet, "alpha:tank/one", Selection::default()).unwrap();
    let json = serde_json::to_value(&later).unwrap();
    let states: Vec<&str> =
        json["snapshots"].as_array().unwrap().iter().map(|s| s["places"][1]["state"].as_str().unwrap()).collect();
    assert_eq!(states[1..], ["present", "present"], "{json:#}");
    let beta = Selection { host: Some("beta".parse().unwrap()), ..Selection::default() };
    assert!(ask(&fleet, "alpha:tank/one", beta).unwrap().places.iter().all(|place| place.host.as_str() == "beta"));
}

#[test]
fn unknown_names_are_refused_with_a_hint() {
    let fleet = Fleet::new();
    fleet.take("tank/one", 20);
    fleet.pass();
    let error = ask(&fleet, "alpha:tank/on", Selection::default()).unwrap_err();
    assert!(error.contains("neither the policy nor the catalog has this dataset; hint: check the name"), "{error}");
    let gamma = Selection { host: Some("gamma".parse().unwrap()), ..Selection::default() };
    let error = ask(&fleet, "alpha:tank/one", gamma).unwrap_err();
    assert!(error.contains("on gamma: no place of it is there; hint: use one of alpha, beta"), "{error}");
}

// --- The program.

#[test]
fn snapshots_prints_every_format_and_says_what_was_never_listed() {
    let place = Place::new();
    place.policy(TWO_HOSTS);
    let config = |arguments: &str| format!("snapshots alpha:tank/data --config {{}}/server.json {arguments}");
    let table = place.run(&config(""));
    assert_eq!((table.status, table.stderr.as_str()), (Some(0), ""), "{table:?}");
    assert!(!std::fs::exists(place.path("catalog")).unwrap(), "it creates no catalog");
    assert_eq!(row(&table.stdout, " beta:pool/copy"), ["2", "?", "-", "never", "copy", "beta:pool/copy"], "{table:?}");
    let snapshot = row(&table.stdout, " SYNC_2026-01-01_00:00:00");
    assert_eq!(snapshot[snapshot.len() - 3..snapshot.len() - 1], ["x", "?"], "{table:?}");

    place.run("director --once");
    let table = place.run(&config(""));
    assert!(table.stdout.contains("\ncannot list beta: cannot reach beta"), "{table:?}");
    let json: Value = serde_json::from_str(&place.run(&config("--format json")).stdout).unwrap();
    assert_eq!(json["places"][0]["role"], "source", "{json:#}");
    assert_eq!(json["places"][1]["listed"], Value::Null, "{json:#}");
    assert_eq!(json["snapshots"][0]["places"][1]["state"], "unknown", "{json:#}");
    assert!(json["unlisted"][0]["reason"].as_str().unwrap().contains("cannot reach beta"), "{json:#}");
    let lines = place.run(&config("--format ndjson")).stdout;
    let line: Value = serde_json::from_str(lines.trim()).unwrap();
    assert_eq!(line["name"], "SYNC_2026-01-01_00:00:00", "{lines}");
    let none = place.run(&config("--until 2001-01-01T00:00:00Z"));
    assert!(none.stdout.ends_with("\nno snapshot is known\n"), "{none:?}");
}

#[test]
fn snapshots_with_invalid_arguments_ends_with_status_2() {
    let place = Place::new();
    for (arguments, word) in [
        ("snapshots", "HOST:DATASET"),
        ("snapshots tank/data", "write it like alpha:tank/home"),
        ("snapshots alpha:/x", "alpha:/x"),
        ("snapshots alpha:tank/data --since yesterday", "2026-11-23T10:30:00Z"),
        ("snapshots alpha:tank/data --config {}/none.json", "none.json"),
        ("snapshots alpha:tank/none --config {}/server.json", "hint: check the name"),
    ] {
        let ended = place.run(arguments);
        assert_eq!(ended.status, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(word), "{word}: {ended:?}");
    }
}
