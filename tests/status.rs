//! Tests `zsync status` of a fleet on pools in memory with an embedded catalog, and as a program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::fs;
use std::io::Read;
use std::process::Stdio;

use chrono::Utc;
use common::PATIENCE;
use common::fleet::{Fleet, ago};
use common::program::{Place, TWO_HOSTS, ended};
use common::{ds, schema};
use serde_json::{Value, json};
use zsync::actions::health::{Finding, Row};
use zsync::commands::status::{Status, StatusSettings, as_lines, as_text};
use zsync::fleet::live_status::{LiveStatus, RestingOrder, RunningTransfer};
use zsync::model::Action;

/// The status of a fleet, validated by the schema.
#[track_caller]
fn status(fleet: &Fleet) -> Status {
    status_of(fleet, &fleet.settings())
}

#[track_caller]
fn status_of(fleet: &Fleet, settings: &StatusSettings) -> Status {
    let status = fleet.status_of(settings);
    assert_valid(&status);
    status
}

/// Validates a status as a document and line by line.
#[track_caller]
fn assert_valid(status: &Status) {
    let schema = schema("status.schema.json");
    common::assert_valid(&schema, &serde_json::to_value(status).unwrap());
    let line = json!({ "$ref": "#/$defs/line", "$defs": schema["$defs"] });
    for text in as_lines(status).lines() {
        common::assert_valid(&line, &serde_json::from_str(text).unwrap());
    }
}

fn row<'s>(status: &'s Status, dataset: &str) -> &'s Row {
    status.health.rows.iter().find(|row| row.dataset == ds(dataset)).unwrap()
}

#[test]
fn status_shows_lag_in_snapshots_time_and_bytes() {
    let fleet = Fleet::new();
    let first = fleet.take("tank/one", 300);
    fleet.take("tank/two", 300);
    assert!(fleet.pass().is_success());
    let status = self::status(&fleet);
    for dataset in ["tank/one", "tank/two"] {
        let row = row(&status, dataset);
        assert_eq!((row.behind, row.lag_seconds, row.unsent_bytes), (Some(0), Some(0), Some(0)), "{row:?}");
        assert!(row.findings.is_empty() && row.replica == row.newest, "{row:?}");
    }
    assert!(status.errors.is_empty() && status.health.hosts.iter().all(|h| h.unseen.is_none()), "{status:?}");
    // The catalog does not know these snapshots yet; status finds them because it lists the hosts.
    fleet.take("tank/one", 185);
    let newest = fleet.take("tank/one", 125);
    let status = self::status(&fleet);
    let one = row(&status, "tank/one");
    assert_eq!((one.newest.as_ref().unwrap().name.as_str(), one.behind), (newest.as_str(), Some(2)), "{one:?}");
    assert_eq!(one.replica.as_ref().unwrap().name.as_str(), first);
    assert_eq!(one.unsent_bytes, Some(2000), "{one:?}");
    assert!((11_100..11_160).contains(&one.lag_seconds.unwrap()), "{one:?}");
    assert_eq!(row(&status, "tank/two").behind, Some(0));
    let text = as_text(&status, None);
    for line in
        ["alpha:tank/one ", " 2h 5m ", "  to beta:pool/one ", " 5h ", "2 (3h 5m)", "1.95K", "no pass has run yet"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn status_changes_nothing() {
    let fleet = Fleet::new();
    fleet.take("tank/one", 300);
    fleet.pass();
    fleet.take("tank/one", 185);
    let before = (fleet.alpha.dataset(&ds("tank/one")), fleet.beta.dataset(&ds("pool/one")));
    let catalog = || fs::read(fleet.path("catalog/catalog.sqlite")).unwrap_or_default();
    let written = catalog();
    self::status(&fleet);
    assert_eq!((fleet.alpha.dataset(&ds("tank/one")), fleet.beta.dataset(&ds("pool/one"))), before);
    assert_eq!(catalog(), written);
}

#[test]
fn status_shows_unreachable_host_as_last_seen() {
    let mut fleet = Fleet::new();
    fleet.take("tank/one", 300);
    assert!(fleet.pass().is_success());
    let newer = fleet.take("tank/one", 125);
    fleet.addresses = ("127.0.0.1:1".into(), "127.0.0.1:1".into());
    fleet.policy();
    let status = self::status(&fleet);
    let beta = status.health.hosts.iter().find(|h| h.host.as_str() == "beta").unwrap();
    assert!(beta.unseen.as_ref().unwrap().contains("cannot reach beta") && beta.observed.is_some(), "{beta:?}");
    let one = row(&status, "tank/one");
    assert_eq!((one.behind, one.unsent_bytes), (Some(1), Some(1000)), "{one:?}");
    assert_eq!(one.newest.as_ref().unwrap().name.as_str(), newer);
    assert!(
        as_text(&status, None).contains("\nWARNING: beta: unreachable, last listed "),
        "{}",
        as_text(&status, None)
    );
    // Offline, the reachability and the unsent bytes are unknown.
    let offline = status_of(&fleet, &StatusSettings { offline: true, ..fleet.settings() });
    assert!(offline.health.hosts.iter().all(|h| h.unseen.is_none()), "{offline:?}");
    assert_eq!((row(&offline, "tank/one").behind, row(&offline, "tank/one").unsent_bytes), (Some(1), None));
}

#[test]
fn status_shows_diverged_destination_with_failed_order() {
    let fleet = Fleet::new();
    fleet.take("tank/one", 300);
    assert!(fleet.pass().is_success());
    fleet.snapshot(&fleet.beta, "pool/one", "by-hand", 250);
    fleet.take("tank/one", 185);
    assert!(!fleet.pass().is_success());
    let status = self::status(&fleet);
    let one = row(&status, "tank/one");
    assert_eq!(one.findings.iter().map(Finding::kind).collect::<Vec<_>>(), ["diverged"], "{one:?}");
    assert_eq!((one.behind, one.unsent_bytes), (Some(1), None), "{one:?}");
    let [error] = status.errors.as_slice() else { panic!("{:?}", status.errors) };
    assert_eq!(
        (error.dataset.as_ref(), error.to.as_ref().map(|to| &to.dataset)),
        (Some(&ds("tank/one")), Some(&ds("pool/one")))
    );
    let text = as_text(&status, Some(100));
    assert!(text.contains("CRITICAL: alpha:tank/one (sync) to beta:pool/one: diverged:"), "{text}");
    assert!(text.lines().filter(|line| line.contains("failed")).count() == 1 && text.contains("\n  "), "{text}");
    // A director has tried it several times and lets it rest.
    let (now, until) = (Utc::now(), Utc::now() + chrono::TimeDelta::minutes(8));
    let (dataset, to) = (ds("tank/one"), error.to.clone());
    let resting = |to| RestingOrder {
        action: Action::SendSnapshot,
        host: "alpha".parse().unwrap(),
        dataset: dataset.clone(),
        to,
        failures: 4,
        until,
    };
    let other = zsync::model::Place { host: "gamma".parse().unwrap(), dataset: ds("pool/one") };
    let live = LiveStatus {
        at: now,
        began: now,
        ended: Some(now),
        unseen: Default::default(),
        clocks_behind: Default::default(),
        running: Vec::new(),
        resting: vec![resting(Some(other)), resting(to)],
        certificates: Vec::new(),
    };
    let file = fleet.path("catalog/live.json");
    let rests = |live: &LiveStatus| {
        fs::write(&file, serde_json::to_vec(live).unwrap()).unwrap();
        let status = self::status(&fleet);
        common::assert_valid(&schema("status.schema.json"), &serde_json::to_value(&status).unwrap());
        (status.errors[0].not_before, as_text(&status, None).contains("; not tried again before "))
    };
    assert_eq!(rests(&live), (Some(until), true));
    // The director has ended, or the time is over.
    let is_over: Vec<RestingOrder> =
        live.resting.iter().map(|order| RestingOrder { until: ago(1), ..order.clone() }).collect();
    assert_eq!(rests(&LiveStatus { resting: is_over, ..live.clone() }), (None, false));
    assert_eq!(rests(&LiveStatus { resting: Vec::new(), ..live }), (None, false));
    // The filter applies to errors and rows.
    let other = status_of(&fleet, &StatusSettings { dataset: Some(ds("tank/two")), ..fleet.settings() });
    assert!(other.errors.is_empty() && other.health.rows.iter().all(|row| row.dataset == ds("tank/two")), "{other:?}");
    // If the order has succeeded since, it is no longer an error.
    let names = ["by-hand".parse().unwrap()];
    fleet.beta.destroy_by_hand(&ds("pool/one"), &names);
    assert!(fleet.pass().is_success());
    assert!(self::status(&fleet).errors.is_empty());
}

#[test]
fn status_is_not_ok_if_orders_fail_or_nothing_is_known() {
    let fleet = Fleet::new();
    for name in ["one", "two"] {
        fleet.take(&format!("tank/{name}"), 3);
    }
    // It exists without a snapshot, so no snapshot can be sent there.
    fleet.beta.create(&ds("pool/one"));
    assert!(!fleet.pass().is_success());
    let state = |place: &str| {
        let text = as_text(&self::status(&fleet), None);
        let row = text.lines().find(|line| line.trim_start().starts_with(place)).unwrap_or_default();
        row.split_whitespace().last().unwrap_or_default().to_owned()
    };
    assert_eq!((state("to beta:pool/one"), state("to beta:pool/two")), ("failed".to_owned(), "ok".to_owned()));
    assert_eq!(state("alpha:tank/one"), "ok");
    // The policy no longer has this destination.
    let policy = std::fs::read_to_string(fleet.path("server.json")).unwrap();
    fs::write(fleet.path("server.json"), policy.replace("pool/one", "pool/other")).unwrap();
    assert_eq!(self::status(&fleet).errors, []);
    fleet.beta.set_away("pool", Some("the pool is suspended"));
    assert_eq!(state("to beta:pool/two"), "unknown");
}

#[test]
fn status_shows_running_transfer_until_its_pass_is_gone() {
    let fleet = Fleet::new();
    fleet.take("tank/one", 300);
    fleet.pass();
    let now = Utc::now();
    let transfer = RunningTransfer {
        action: Action::SendSnapshot,
        host: "alpha".parse().unwrap(),
        dataset: Some(ds("tank/one")),
        snapshot: None,
        to: Some(zsync::model::Place { host: "beta".parse().unwrap(), dataset: ds("pool/one") }),
        seconds: 10.0,
        bytes: 1 << 20,
        total: Some(4 << 20),
        waits_for: None,
    };
    let live = LiveStatus {
        at: now,
        began: now,
        ended: None,
        unseen: Default::default(),
        clocks_behind: Default::default(),
        running: vec![transfer],
        resting: Vec::new(),
        certificates: Vec::new(),
    };
    let file = fleet.path("catalog/live.json");
    fs::write(&file, serde_json::to_vec(&live).unwrap()).unwrap();
    let status = self::status(&fleet);
    assert_eq!(status.pass.as_ref().unwrap().running, live.running);
    let text = as_text(&status, None);
    let line = text.lines().find(|line| line.starts_with("send alpha:tank/one to beta:pool/one")).unwrap();
    assert_eq!(line.split_whitespace().skip(4).collect::<Vec<_>>(), ["1.00M", "4.00M", "102K/s", "30s"], "{line}");
    assert!(text.contains("sending 25%") && text.contains("; a pass has been running for "), "{text}");
    // The director was killed.
    let then = ago(125);
    fs::write(&file, serde_json::to_vec(&LiveStatus { at: then, ..live }).unwrap()).unwrap();
    let status = self::status(&fleet);
    assert!(status.pass.as_ref().unwrap().running.is_empty());
    assert!(as_text(&status, None).contains("; the last pass stopped before its end, 2h 5m ago"));
}

// --- The program.

#[test]
fn status_prints_last_pass_in_every_format() {
    let place = Place::new();
    place.policy(TWO_HOSTS);
    let before = place.run("status");
    assert_eq!((before.status, before.stderr.as_str()), (Some(0), ""), "{before:?}");
    assert!(before.stdout.contains("no pass has run yet"), "{before:?}");
    assert!(!fs::exists(place.path("catalog")).unwrap(), "status creates no catalog");
    place.run("director --once");
    let table = place.run("status");
    assert_eq!(table.status, Some(0), "{table:?}");
    for words in ["DATASET", "alpha:tank/data", "  to beta:pool/copy", "beta: unreachable", "the last pass ended "] {
        assert!(table.stdout.contains(words), "{words}: {table:?}");
    }
    let json: Value = serde_json::from_str(&place.run("status --format json").stdout).unwrap();
    common::assert_valid(&schema("status.schema.json"), &json);
    assert!(json["pass"]["unseen"]["beta"].is_string(), "{json:#}");
    let lines = place.run("status --offline --format ndjson").stdout;
    let kinds: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["line"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["host", "host", "row"], "{lines}");
}

#[test]
fn status_watch_ends_when_output_is_closed() {
    let place = Place::new();
    let mut watching = place.command("status --offline --watch 10ms");
    let mut child = watching.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut read = [0u8; 400];
    child.stdout.as_mut().unwrap().read_exact(&mut read).unwrap();
    let shown = String::from_utf8_lossy(&read).into_owned();
    assert!(shown.matches("DATASET").count() >= 2, "the status is printed repeatedly: {shown}");
    drop(child.stdout.take());
    let end = std::time::Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if std::time::Instant::now() > end {
            child.kill().unwrap();
            panic!("status continues although its output is closed");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn status_with_invalid_arguments_ends_with_status_2() {
    let place = Place::new();
    place.run("status --config {}/none.json").fails(2, &["none.json"]);
    for (arguments, words) in [("status --watch=0s", "zero"), ("status --dataset /x", "--dataset")] {
        let ended = ended(&mut place.command(arguments));
        assert_eq!(ended.status, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(words), "{ended:?}");
    }
}
