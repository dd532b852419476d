//! Tests `zsync check` as monitoring uses it: one line of output, performance data, and an exit status. A shell script
//! stands in for `zfs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::fs;

use chrono::{TimeDelta, Utc};
use common::program::{LOCAL, POLICY, Place, TWO_HOSTS, ZFS};
use serde_json::Value;
use zsync::commands::tls::{Wanted, mint, mint_ca, revoke};
use zsync::model::PeerRole;

#[test]
fn check_of_healthy_fleet_prints_one_line_with_performance_data() {
    let place = Place::new();
    let ended = place.run("check");
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let (text, data) = ended.stdout.trim_end().split_once(" | ").expect("performance data");
    assert!(text.starts_with("ZSYNC OK: 1 dataset, newest snapshots at most "), "{text}");
    assert_eq!(ended.stdout.lines().count(), 1);
    for value in data.split(' ') {
        let (label, value) = value.split_once('=').unwrap();
        assert!(label.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{label}");
        let number = value.strip_suffix('s').unwrap_or(value);
        assert!(number == "U" || number.parse::<u64>().is_ok(), "{label}={value}");
    }
    assert!(data.contains("datasets=1 ") && data.contains("snapshots=1 ") && data.contains("critical=0 "), "{data}");
    assert!(!fs::exists(place.path("catalog")).unwrap(), "check creates no catalog");
}

#[test]
fn check_with_old_snapshot_ends_with_status_of_its_severity() {
    let place = Place::new();
    let schema = common::schema("health.schema.json");
    // The snapshot of the scripted zfs is new; this makes it two hours old.
    let old = ZFS.replace("$(date +%s)", "$(($(date +%s) - 7200))");
    place.zfs(&old);
    for (check, status, words) in [
        (r#"{ "warn_age": "3h" }"#, 0, "ZSYNC OK: "),
        (
            r#"{ "warn_age": "1h", "crit_age": "3h" }"#,
            1,
            "ZSYNC WARNING: alpha:tank/data (sync): the newest snapshot is 2h",
        ),
        (r#"{ "crit_age": "1h" }"#, 2, "ZSYNC CRITICAL: alpha:tank/data (sync): the newest snapshot is 2h"),
    ] {
        place.policy(&POLICY.replace("\"retention\"", &format!("\"check\": {check}, \"retention\"")));
        let ended = place.run("check");
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(status), ""), "{ended:?}");
        assert!(ended.stdout.starts_with(words) && ended.stdout.lines().count() == 1, "{ended:?}");
        let json = place.run("check --format json");
        assert_eq!(json.status, Some(status), "{json:?}");
        let health: Value = serde_json::from_str(&json.stdout).unwrap();
        common::assert_valid(&schema, &health);
        assert_eq!(health["rows"][0]["findings"].as_array().unwrap().len(), usize::from(status > 0), "{health}");
    }
}

#[test]
fn check_counts_findings_and_lists_them_when_verbose() {
    let place = Place::new();
    place.policy(&TWO_HOSTS.replace("tank/data", "tank/gone"));
    place.write("local.json", &LOCAL.replace("tank/data", "tank"));
    // One host was listed, the other one was not.
    place.run("director --once");
    let ended = place.run("check --verbose");
    assert_eq!(ended.status, Some(2), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines[0].contains("alpha:tank/gone") && lines[0].contains("does not exist"), "{lines:?}");
    assert!(lines[0].contains("; and 1 more (1 unknown) | "), "{lines:?}");
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[2].starts_with("UNKNOWN: beta: unreachable, never listed: "), "{lines:?}");
    assert_eq!(place.run("check --host beta").status, Some(3));
}

#[test]
fn check_without_data_is_unknown_and_names_failing_zfs() {
    let place = Place::new();
    for arguments in ["check --config {}/none.json", "check --config {}"] {
        let ended = place.run(arguments);
        assert_eq!((ended.status, ended.stderr.as_str()), (Some(3), ""), "{ended:?}");
        assert!(ended.stdout.starts_with("ZSYNC UNKNOWN: ") && ended.stdout.lines().count() == 1, "{ended:?}");
    }
    place.run("director --once");
    let ended = place.run("check --zfs /nonexistent/zfs");
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("alpha: unreachable, last listed ") && ended.stdout.contains("--zfs"), "{ended:?}");
}

#[test]
fn check_config_only_validates_files_without_zfs() {
    let place = Place::new();
    let ended = place.run("check --config-only --zfs /nonexistent/zfs");
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(ended.stdout.starts_with("ZSYNC OK: ") && ended.stdout.ends_with("local.json are valid\n"), "{ended:?}");
    place.policy(&POLICY.replace("\"prefix\"", "\"prefiks\""));
    place.write("local.json", "{ \"local_datasets\": [ { \"nam\": 1 } ] }");
    let ended = place.run("check --config-only");
    assert_eq!(ended.status, Some(2), "{ended:?}");
    for words in ["server.json:5:", "prefiks", "local.json:1:"] {
        assert!(ended.stdout.contains(words), "{words}: {ended:?}");
    }
    let ended = place.run("check --config-only --config {}/none.json --local /etc/zsync/local.json");
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(ended.stdout.contains("none.json"), "{ended:?}");
}

#[test]
fn what_local_configuration_of_this_host_forbids_is_found_by_all_commands() {
    let place = Place::new();
    place.policy(&POLICY.replace("\"retention\"", "\"sync_on\": \"alpha:pool/copy\", \"retention\""));
    let words =
        ["the policy asks for something that alpha forbids: pool/copy is not", "sync_dataset of server.json names"];
    let expected = |output: &str| words.iter().all(|word| output.replace('\n', " ").contains(word));
    let ended = place.run("check --config-only");
    assert!(ended.status == Some(2) && expected(&ended.stdout), "{ended:?}");
    let ended = place.run("plan --dry-run");
    assert!(ended.status == Some(0) && ended.stdout.contains("will fail, because pool/copy is not"), "{ended:?}");
    let ended = place.run("check");
    assert!(ended.status == Some(2) && ended.stdout.contains(words[0]), "{ended:?}");
    let ended = place.run("status --offline");
    assert!(ended.stdout.contains(words[0]), "{ended:?}");
    // With an entry for the destination that does not receive.
    place.write("local.json", &LOCAL.replace("{ \"name\"", "{ \"name\": \"pool\" }, { \"name\""));
    let ended = place.run("check --config-only");
    assert!(ended.status == Some(2) && ended.stdout.contains("lacks \"slave\": true"), "{ended:?}");
    place.write("local.json", &LOCAL.replace("{ \"name\"", "{ \"name\": \"pool\", \"slave\": true }, { \"name\""));
    assert_eq!(place.run("check --config-only").status, Some(0));
}

#[test]
fn check_notes_what_configuration_leaves_open() {
    let place = Place::new();
    let closed = r#""sources": ["beta"], "append_only": false, "keep": ["7 in last 7 days"]"#;
    let with = |head: &str, entry: &str| {
        format!(
            r#"{{ {head} "local_datasets": [ {{ "name": "tank/data" }}, {{ "name": "pool", "slave": true, {entry} }} ] }}"#
        )
    };
    place.write("local.json", &with("", closed));
    let ended = place.run("check --config-only");
    assert!(ended.status == Some(0) && ended.stdout.lines().count() == 1, "{ended:?}");
    assert!(!place.run("check").stdout.contains("note"));
    place.policy(&TWO_HOSTS.replace("127.0.0.1:1", "beta:7711"));
    let open = r#""append_only": false"#;
    place.write("local.json", &with(r#""listen": "0.0.0.0", "consul": { "address": "http://10.0.0.1:8500" },"#, open));
    let words = [
        "any host may send into pool, because its entry has no \"sources\"; hint: ",
        "snapshots of the copies in pool destroyed",
        "\"listen\" is 0.0.0.0, which",
        "Consul at http://10.0.0.1:8500 in plaintext",
        "server.json: without \"tls\", orders to beta go",
    ];
    let ended = place.run("check --config-only");
    assert_eq!((ended.status, ended.stdout.lines().count()), (Some(0), 1 + words.len()), "{ended:?}");
    let verbose = place.run("check --verbose");
    assert!(verbose.stdout.contains("; 5 notes (--verbose) | "), "{verbose:?}");
    let json: Value = serde_json::from_str(&place.run("check --format json").stdout).unwrap();
    common::assert_valid(&common::schema("health.schema.json"), &json);
    for (n, words) in words.iter().enumerate() {
        let is_note = |line: &str| line.starts_with("note: ") && line.contains(words);
        assert!(ended.stdout.lines().any(is_note) && verbose.stdout.lines().any(is_note), "{words}: {ended:?}");
        assert!(json["open"][n].as_str().unwrap().contains(words), "{words}: {json}");
    }
}

#[test]
fn policy_with_invalid_thresholds_is_rejected() {
    let place = Place::new();
    for (check, words) in [
        (r#"{ "warn_age": "3h", "crit_age": "1h" }"#, "less than \"warn_age\""),
        (r#"{ "warn_age": "soon" }"#, "is not a duration:"),
        (r#"{ "warn_age": "0s" }"#, "is not between 1s and"),
        (r#"{ "max_snapshots": 0 }"#, "a whole number from 1"),
        (r#"{ "max_snapshots": "many" }"#, "a whole number from 1"),
        (r#"{ "warn": "1h" }"#, "warn_age"),
        ("7", "an object"),
    ] {
        place.policy(&POLICY.replace("\"retention\"", &format!("\"check\": {check}, \"retention\"")));
        let ended = place.run("check --config-only");
        assert_eq!(ended.status, Some(2), "{check}: {ended:?}");
        assert!(ended.stdout.contains(words) && ended.stdout.contains("server.json:"), "{check}: {ended:?}");
    }
}

#[test]
fn check_config_only_finds_secrets_that_others_can_read() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.write("token", "b1gs3cr3t");
    let consul = format!(r#""consul": {{ "token_file": "{}" }}, "#, place.path("token"));
    place.write("local.json", &LOCAL.replacen('{', &format!("{{ {consul}"), 1));
    for (mode, status) in [(0o600, 0), (0o640, 1), (0o604, 1)] {
        fs::set_permissions(place.path("token"), fs::Permissions::from_mode(mode)).unwrap();
        let ended = place.run("check --config-only");
        assert_eq!(ended.status, Some(status), "{mode:o}: {ended:?}");
        let words = format!("can be read by users other than the owner of the file, whose mode is {mode:04o}");
        assert_eq!(ended.stdout.contains(&words), status > 0, "{ended:?}");
    }
    // The token itself in the file, and the private key of a certificate.
    place.write("local.json", &LOCAL.replacen('{', r#"{ "consul": { "token": "b1gs3cr3t" }, "#, 1));
    fs::set_permissions(place.path("local.json"), fs::Permissions::from_mode(0o644)).unwrap();
    let ended = place.run("check --config-only");
    assert!(ended.status == Some(1) && ended.stdout.contains("Consul's token in "), "{ended:?}");
    assert!(!ended.stdout.contains("b1gs3cr3t"), "{ended:?}");
    place.write("local.json", LOCAL);
    let tls = write_certificate(&place, 40);
    place.policy(&POLICY.replacen('{', &format!("{{ {tls}"), 1));
    fs::set_permissions(place.path("tls/host.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let ended = place.run("check --config-only");
    assert!(ended.status == Some(1) && ended.stdout.contains("host.key has mode 0640"), "{ended:?}");
}

/// Whatever the umask is, only the owner can read what a pass leaves behind, and ZFS is given no token of Consul.
#[test]
fn state_is_private_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.zfs(&ZFS.replacen("#!/bin/sh\n", &format!("#!/bin/sh\nenv >>{}\n", place.path("environment")), 1));
    let run = |arguments: &str| {
        let folder = place.0.path().display();
        let line = format!(
            "umask 0; exec {} {arguments} --config {folder}/server.json --local {folder}/local.json --hostname alpha \
             --zfs {folder}/zfs",
            env!("CARGO_BIN_EXE_zsync")
        );
        let output = std::process::Command::new("sh")
            .args(["-c", &line])
            .env("CONSUL_HTTP_TOKEN", "b1gs3cr3t")
            .env("ZSYNC_TEST", "kept")
            .output()
            .unwrap();
        assert!(output.status.code().unwrap() < 2, "{output:?}");
    };
    run(&format!("director --once --metrics-file {}", place.path("zsync.prom")));
    run(&format!("plan --dry-run --out {}", place.path("plan.json")));
    let mode = |name: &str| fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("catalog"), 0o700);
    for entry in fs::read_dir(place.path("catalog")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o7777, 0o600, "{entry:?}");
    }
    assert_eq!(mode("plan.json"), 0o600);
    assert_eq!(mode("zsync.prom"), 0o644, "node_exporter reads it");
    let environment = fs::read_to_string(place.path("environment")).unwrap();
    assert!(environment.contains("ZSYNC_TEST=kept") && !environment.contains("CONSUL_"), "{environment}");
}

/// Writes a CA's certificate, and the certificate and key of alpha, which are valid for so many days.
fn write_certificate(place: &Place, days: i64) -> String {
    let ca = mint_ca("test CA", Utc::now() - TimeDelta::days(100), 3650).unwrap();
    let roles = [PeerRole::Director, PeerRole::Agent].into();
    let wanted = Wanted { host: "alpha".parse().unwrap(), also: Vec::new(), roles, days: 60 };
    let minted = mint(&ca, &wanted, Utc::now() + TimeDelta::days(days - 60)).unwrap();
    let files = common::tls::write_pem(std::path::Path::new(&place.path("tls")), &ca, &minted);
    let [ca, certificate, key] = [files.ca, files.certificate, files.key].map(|file| file.display().to_string());
    format!(r#""tls": {{ "ca": "{ca}", "certificate": "{certificate}", "key": "{key}" }},"#)
}

#[test]
fn check_finds_certificates_that_expire() {
    let place = Place::new();
    let with_tls = |text: &str, tls: &str| text.replacen('{', &format!("{{ {tls}"), 1);
    for (days, status, words) in [
        (40, 0, "are valid"),
        (20, 1, "expires on "),
        (5, 2, "in 5 days; hint: renew it where its CA is: zsync tls issue alpha --role director,agent --renew"),
        (-3, 2, "/host.crt expired on "),
    ] {
        let tls = write_certificate(&place, days);
        place.policy(&with_tls(POLICY, &tls));
        let ended = place.run("check --config-only");
        assert_eq!(ended.status, Some(status), "{days}: {ended:?}");
        assert!(ended.stdout.contains(words), "{days}: {ended:?}");
        let ended = place.run("check");
        assert_eq!(ended.status, Some(status), "{days}: {ended:?}");
        let found = ended.stdout.contains("alpha: the certificate of its director expire");
        assert_eq!(found, status > 0, "{days}: {ended:?}");
    }
    // The list of revoked certificates expires, too.
    let tls = write_certificate(&place, 40).replace(" },", &format!(", \"crl\": \"{}\" }},", place.path("tls/ca.crl")));
    place.policy(&with_tls(POLICY, &tls));
    let ended = place.run("check --config-only");
    assert!(
        ended.status == Some(2) && ended.stdout.contains("list of revoked certificates does not exist"),
        "{ended:?}"
    );
    let ca = mint_ca("test CA", Utc::now(), 3650).unwrap();
    place.write("tls/ca.crl", &revoke(&ca, None, &[], Utc::now(), 20).unwrap());
    let ended = place.run("check --config-only");
    assert!(ended.status == Some(1) && ended.stdout.contains("ca.crl expires on "), "{ended:?}");
    let ended = place.run("check");
    assert!(
        ended.status == Some(1) && ended.stdout.contains("alpha: its list of revoked certificates exp"),
        "{ended:?}"
    );
    place.write("tls/host.key", "no key");
    let ended = place.run("check --config-only");
    assert!(ended.status == Some(2) && ended.stdout.contains("/tls/host.key: it contains no"), "{ended:?}");
}

/// What agents presented to the director is in its status file.
#[test]
fn check_finds_certificates_that_the_director_has_seen() {
    let place = Place::new();
    let tls = write_certificate(&place, 40);
    place.policy(&TWO_HOSTS.replacen('{', &format!("{{ {tls}"), 1));
    place.run("director --once");
    let file = place.path("catalog/live.json");
    let mut live: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let seen = live["certificates"].as_array().unwrap();
    assert_eq!(seen.iter().map(|of| &of["role"]).collect::<Vec<_>>(), ["director", "agent"], "{live}");
    let until = (Utc::now() + TimeDelta::days(6)).to_rfc3339();
    live["certificates"] = serde_json::json!([
        { "host": "beta", "role": "agent", "until": until }, { "host": "omega", "role": "agent", "until": until }
    ]);
    fs::write(&file, live.to_string()).unwrap();
    let ended = place.run("check --verbose");
    assert!(ended.stdout.contains("CRITICAL: beta: the certificate of its agent expires on"), "{ended:?}");
    assert!(!ended.stdout.contains("omega"), "the policy does not name that host: {ended:?}");
    let health: Value = serde_json::from_str(&place.run("check --format json").stdout).unwrap();
    common::assert_valid(&common::schema("health.schema.json"), &health);
    assert_eq!(health["certificates"].as_array().unwrap().len(), 2, "{health}");
    // The next pass does not forget what it could not see again.
    place.run("director --once");
    assert!(fs::read_to_string(&file).unwrap().contains("\"beta\",\"role\":\"agent\""));
}
