//! Checks metrics: names that follow Prometheus' conventions, correct values, and examples that use existing metrics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;

use chrono::Utc;
use common::fleet::Fleet;
use common::program::{Place, Running, bare};
use zsync::director::{DirectorMetrics, PassMetrics};
use zsync::model::{CertificateExpiry, PeerRole};
use zsync::server::counters::{AGENT, SLAVE};
use zsync::server::{Counters, http};
use zsync::sys::runtime;

fn project(path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The samples of an exposition: the value by name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

fn names(text: &str) -> BTreeSet<String> {
    samples(text).keys().map(|name| name.split('{').next().unwrap().to_owned()).collect()
}

/// The metrics of a pass in which one of two destinations received everything and the other one diverged.
fn passed() -> PassMetrics {
    let fleet = Fleet::new();
    fleet.take("tank/one", 300);
    fleet.take("tank/two", 300);
    fleet.pass();
    fleet.snapshot(&fleet.beta, "pool/one", "by-hand", 250);
    fleet.take("tank/one", 125);
    let began = Utc::now();
    let report = fleet.pass();
    let mut health = fleet.status_of(&fleet.settings()).health;
    let until = Utc::now() + chrono::TimeDelta::days(20);
    let certificate = CertificateExpiry { host: "beta".parse().unwrap(), role: PeerRole::Agent, until };
    health.judge_certificates(vec![certificate]);
    health.rows.iter_mut().for_each(|row| {
        (row.limit_seconds, row.forecast_seconds) = (Some(7200), Some(7300));
    });
    PassMetrics::of(&report, health, began)
}

#[test]
fn pass_metrics_describe_its_result() {
    let passed = passed();
    let text = passed.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let found = samples(&text);
    let one = r#"host="alpha",dataset="tank/one",policy="sync""#;
    let to = r#"to_host="beta",to_dataset="pool/one""#;
    for (name, value) in [
        (format!("zsync_snapshots{{{one}}}"), 2),
        (format!("zsync_replica_unsent_snapshots{{{one},{to}}}"), 1),
        ("zsync_last_pass_success".to_owned(), 0),
        (r#"zsync_last_pass_orders{action="send_snapshot",result="failed"}"#.to_owned(), 1),
        (r#"zsync_host_up{host="beta"}"#.to_owned(), 1),
        (r#"zsync_findings{severity="critical"}"#.to_owned(), 1),
        (r#"zsync_findings{severity="warning"}"#.to_owned(), 1),
        (r#"zsync_findings{severity="unknown"}"#.to_owned(), 0),
    ] {
        assert_eq!(found.get(&name), Some(&f64::from(value)), "{name}: {text}");
    }
    let row = passed.health.rows.iter().find(|row| row.dataset.as_str() == "tank/one").unwrap();
    let newest = found[&format!("zsync_snapshot_newest_timestamp_seconds{{{one}}}")];
    assert_eq!(newest as i64, row.newest.as_ref().unwrap().creation.timestamp());
    let oldest = found[&format!("zsync_replica_unsent_oldest_timestamp_seconds{{{one},{to}}}")];
    assert_eq!(oldest as i64, row.unsent_since.unwrap().timestamp());
    let [lag, limit] = ["", "limit_"].map(|of| found[&format!("zsync_replica_lag_{of}seconds{{{one},{to}}}")]);
    assert_eq!((Some(lag as i64), limit as i64), (row.lag_seconds, 7200));
    let expiry = found[r#"zsync_certificate_expiry_timestamp_seconds{host="beta",role="agent"}"#] as i64;
    assert_eq!(expiry, passed.health.certificates[0].expiry.until.timestamp());
    // A destination that lacks no snapshot does not have this metric.
    assert_eq!(found.keys().filter(|name| name.starts_with("zsync_replica_unsent_oldest_")).count(), 1, "{text}");
}

/// All metrics of zsync.
fn everything() -> String {
    let tally = |names| {
        let tally = Counters::new(names);
        tally.ended("send_snapshot", true, 10);
        tally.text()
    };
    let watch = DirectorMetrics::default();
    watch.ended(Some(passed()));
    let text = tally(AGENT) + &tally(SLAVE) + &watch.text();
    text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("zsync_")).map(str::to_owned).collect()
}

#[test]
fn metric_names_follow_conventions_and_are_documented() {
    let exposed = names(&everything());
    assert!(exposed.len() > 20, "{exposed:?}");
    for name in &exposed {
        assert!(name.starts_with("zsync_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        for unit in ["seconds", "bytes"] {
            let place = name.strip_suffix("_total").unwrap_or(name);
            assert!(!name.contains(unit) || place.ends_with(unit), "the unit comes last in {name}");
        }
    }
    assert_eq!(
        named(&project("man/zsync-metrics.7")),
        exposed,
        "zsync-metrics.7 and the program have different metrics"
    );
}

#[test]
fn examples_use_existing_metrics() {
    let exposed = names(&everything());
    for file in ["examples/prometheus/zsync.rules.yml", "examples/grafana/zsync.json"] {
        let text = project(file);
        let unknown: Vec<String> = named(&text).difference(&exposed).cloned().collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
        assert!(named(&text).len() >= 5, "{file}");
    }
    let board: serde_json::Value = serde_json::from_str(&project("examples/grafana/zsync.json")).unwrap();
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            assert!(!named(target["expr"].as_str().unwrap()).is_empty(), "{target}");
        }
    }
    // The labels in alerts exist, too.
    let rules = project("examples/prometheus/zsync.rules.yml");
    let everything = everything();
    for label in rules.split("$labels.").skip(1).map(|rest| rest.split(' ').next().unwrap()) {
        assert!(label == "instance" || everything.contains(&format!("{label}=\"")), "{label}");
    }
    assert!(rules.contains("rules:") && project("examples/prometheus/prometheus.yml").contains("zsync.rules.yml"));
}

// --- HTTP.

/// Sends a request to a metrics server, and returns its response.
fn asked(address: &str, words: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    stream.write_all(words.as_bytes()).unwrap();
    drop(stream.shutdown(Shutdown::Write));
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn http_serves_metrics_and_nothing_else() {
    let text: http::Text = Arc::new(|| "zsync_build_info 1\n# EOF\n".to_owned());
    let address = runtime::block_on(http::serve("127.0.0.1:0", text)).unwrap();
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000));
    for (words, status, body) in [
        ("GET /metrics HTTP/1.1\r\nHost: zsync\r\n\r\n", "200 OK", "zsync_build_info 1\n# EOF\n"),
        ("GET /metrics?name=x HTTP/1.0\r\n\r\n", "200 OK", "zsync_build_info 1\n# EOF\n"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK", ""),
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found", "the metrics are at /metrics\n"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed", "only GET and HEAD\n"),
        ("{\"OrderUUID\":\"\"}\n", "400 Bad Request", ""),
        (long.as_str(), "431 Request Header Fields Too Large", ""),
    ] {
        let answer = asked(&address, words);
        let (head, told) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{words:?}: {answer:?}"));
        let version = if words.contains("HTTP/1.0") { "HTTP/1.0" } else { "HTTP/1.1" };
        assert!(head.starts_with(&format!("{version} {status}\r\n")), "{words:?}: {answer}");
        assert_eq!(told, body, "{words:?}");
        let length = format!("\r\nContent-Length: {}\r\n", body.len());
        assert!(words.starts_with("HEAD") || format!("{head}\r\n").contains(&length), "{words:?}: {head}");
    }
    for words in ["", "GET /metrics HT"] {
        assert_eq!(asked(&address, words), "", "{words:?} is no request");
    }
}

#[test]
fn connection_is_closed_while_sixteen_are_open() {
    let address = runtime::block_on(http::serve("127.0.0.1:0", Arc::new(|| "# EOF\n".to_owned()))).unwrap();
    let request = "GET /metrics HTTP/1.1\r\n\r\n";
    let idle: Vec<_> = (0..16).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut refused = TcpStream::connect(&address).unwrap();
    refused.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let mut answer = Vec::new();
    drop(refused.read_to_end(&mut answer));
    assert_eq!(answer, b"");
    drop(idle);
    let began = std::time::Instant::now();
    let is_served = || {
        let mut stream = TcpStream::connect(&address).unwrap();
        drop(stream.write_all(request.as_bytes()));
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer));
        answer.starts_with("HTTP/1.1 200 OK\r\n")
    };
    while !is_served() {
        assert!(began.elapsed() < common::PATIENCE, "closed connections still count");
    }
}

// --- The program.

#[test]
fn pass_from_cron_writes_metrics_file_silently() {
    let place = Place::new();
    let ended = place.run("director --once --metrics-file {}/zsync.prom");
    assert_eq!((ended.status, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""), "{ended:?}");
    let found = samples(&fs::read_to_string(place.path("zsync.prom")).unwrap());
    assert_eq!(found["zsync_last_pass_success"], 1.0, "{found:?}");
    assert_eq!(found[r#"zsync_snapshots{host="alpha",dataset="tank/data",policy="sync"}"#], 1.0, "{found:?}");
    let failed = place.run("director --once --metrics-file {}/none/zsync.prom");
    failed.fails(1, &["cannot write metrics to", "none/zsync.prom"]);
}

/// Otherwise the file would go on saying that all is well.
#[test]
fn pass_from_cron_that_can_do_nothing_says_so_in_metrics_file() {
    let place = Place::new();
    place.run("director --once --metrics-file {}/zsync.prom");
    let before = samples(&fs::read_to_string(place.path("zsync.prom")).unwrap());
    for file in ["zsync.prom", "new.prom"] {
        let ended = place.run(&format!("director --once --zfs /nonexistent/zfs --metrics-file {{}}/{file}"));
        assert_eq!(ended.status, Some(2), "{ended:?}");
        let found = samples(&fs::read_to_string(place.path(file)).unwrap());
        assert_eq!(found["zsync_last_pass_success"], 0.0, "{found:?}");
        if file == "zsync.prom" {
            let end = "zsync_last_pass_end_timestamp_seconds";
            assert_eq!((found.len(), found[end]), (before.len(), before[end]), "the rest describes an earlier pass");
        }
    }
}

#[test]
fn invalid_metrics_address_is_rejected() {
    let place = Place::new();
    for (arguments, words) in [
        ("agent --metrics beta", "has no port"),
        ("slave --metrics ftp://x", "URL"),
        ("director --metrics 70000", "not an address"),
        ("director --once --metrics 9771", "--once"),
        ("director --metrics-file {}/x.prom", "--once"),
    ] {
        let ended = place.run(arguments);
        assert_eq!(ended.status, Some(2), "{arguments}: {ended:?}");
        assert!(ended.stderr.contains(words), "{arguments}: {ended:?}");
    }
    assert!(bare().args(["agent", "--help"]).output().unwrap().status.success());
}

#[test]
fn service_metrics_listen_on_loopback_by_default() {
    let place = Place::new();
    for (arguments, name) in [
        ("agent --listen 127.0.0.1:0 --metrics 0", "zsync_agent_orders_running"),
        ("slave --listen 127.0.0.1:0 --metrics 0", "zsync_slave_streams_running"),
        ("director --metrics 0", "zsync_director_orders_running"),
    ] {
        let mut running = Running::start(&mut place.command(arguments));
        running.wait_for("serving metrics at http://127.0.0.1:", 1);
        let line = running.seen.last().unwrap();
        let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap();
        let answer = asked(address, "GET /metrics HTTP/1.1\r\n\r\n");
        assert!(answer.contains(&format!("\n{name} 0\n")), "{answer}");
        assert_eq!(running.stop(), Some(0));
    }
}
