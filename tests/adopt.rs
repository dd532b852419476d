//! Tests the policy that is inferred from what hosts have, on pools in memory, over loopback: the director's disk is
//! lost. `tests/lab/scenarios/adopt` does the same on real ZFS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::fs;
use std::sync::Arc;

use chrono::{TimeDelta, Utc};
use common::fleet::Fleet;
use common::{ds, guids};
use zsync::commands::adopt::{AdoptReport, AdoptSettings, adopt};
use zsync::config::load_local;
use zsync::sys::runtime;

fn adopt_from(fleet: &Fleet, hosts: &[&str]) -> anyhow::Result<AdoptReport> {
    let local_file = fleet.path("local.json");
    let settings = AdoptSettings {
        local: load_local(&local_file).ok(),
        local_file,
        host_name: "alpha".parse().unwrap(),
        hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        tls: None,
    };
    runtime::block_on(adopt(&settings, Arc::new(fleet.alpha.clone())))
}

#[test]
fn pass_with_the_inferred_policy_sends_increments_and_destroys_nothing() {
    let fleet = Fleet::new();
    for dataset in ["tank/one", "tank/two"] {
        for minutes in [30, 20, 10] {
            // Whole minutes would show a schedule.
            let at = Utc::now() - TimeDelta::minutes(minutes);
            fleet.snapshot(&fleet.alpha, dataset, &at.format("S_%F_%H:%M:07").to_string(), minutes);
        }
    }
    assert!(fleet.pass().is_success());
    let before = guids(&fleet.beta, "pool/one");
    fs::remove_dir_all(fleet.path("catalog")).unwrap();
    fs::remove_file(fleet.path("server.json")).unwrap();

    let beta = format!("beta={}", fleet.addresses.0);
    let AdoptReport { text, notes, problems } = adopt_from(&fleet, &["alpha", &beta]).unwrap();
    assert_eq!((notes.len(), problems.len()), (2, 0), "{notes:?} {problems:?}");
    assert!(notes.iter().all(|note| note.contains("show no schedule")), "their times have seconds: {notes:?}");
    let mut policy: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(policy["datasets"][0]["backup"]["sync_on"], serde_json::json!(["beta:pool/one"]), "{text}");
    policy["hosts"]["beta"]["receive_address"] = fleet.addresses.1.clone().into();
    policy["catalog"] = serde_json::json!({ "embedded": { "path": fleet.path("catalog") } });
    fs::write(fleet.path("server.json"), policy.to_string()).unwrap();
    let report = fleet.pass();
    assert!(report.is_success() && report.outcomes.is_empty(), "nothing is due: {:?}", report.outcomes);
    fleet.take("tank/one", 1);
    let report = fleet.pass();
    assert!(report.is_success(), "{:?}", report.outcomes);
    assert_eq!(guids(&fleet.beta, "pool/one"), guids(&fleet.alpha, "tank/one"));
    assert!(guids(&fleet.beta, "pool/one").starts_with(&before), "nothing was destroyed");
}

#[test]
fn host_that_does_not_answer_is_reported_and_the_others_are_used() {
    let fleet = Fleet::new();
    fleet.take("tank/one", 10);
    assert!(fleet.pass().is_success());
    let AdoptReport { text, notes, problems } = adopt_from(&fleet, &["alpha", "beta=127.0.0.1:1"]).unwrap();
    assert!(problems[0].starts_with("cannot list the snapshots of beta: ") && problems.len() == 1, "{problems:?}");
    assert!(notes.iter().any(|note| note.contains("alpha:tank/one to beta:pool/one")), "{notes:?}");
    assert!(text.contains("tank/one") && !text.contains("sync_on"), "{text}");
    let error = adopt_from(&fleet, &["beta=127.0.0.1:1"]).unwrap_err();
    assert!(error.to_string().starts_with("cannot infer a policy: cannot list the snapshots of beta: "), "{error}");
    // This host alone needs no agent, but its local.json.
    assert_eq!(adopt_from(&fleet, &[]).unwrap().problems, Vec::<String>::new());
    fs::remove_file(fleet.path("local.json")).unwrap();
    let error = adopt_from(&fleet, &[]).unwrap_err();
    assert!(error.to_string().contains("local.json"), "{error}");
    assert!(fleet.alpha.dataset(&ds("tank/one")).is_some());
}
