//! Tests of what the two configuration files accept and refuse, and of the text of their errors.

use crate::policy::{Denied, LocalDataset, SLAVE_PORT};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::{DatasetName, DatasetStatus, HostName, Place};
use crate::policy::{CatalogConfig, Retention, Schedule, SyncPolicy};

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn json_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            json_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
    found.sort();
}

fn parse_error(file: &str, text: &str) -> Option<ConfigError> {
    if file.starts_with("local") { parse_local(file, text).err() } else { parse_policy(file, text).err() }
}

fn dataset(name: &str) -> DatasetName {
    name.parse().unwrap()
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// Every `tests/config/invalid/NAME.json` is refused with the text of `NAME.expected`. With
/// `UPDATE_EXPECTED` in the environment, the texts are written instead, to be reviewed in the diff.
#[test]
fn invalid_files_are_refused_with_expected_text() {
    let mut files = Vec::new();
    json_files(&project("tests/config/invalid"), &mut files);
    assert!(files.len() > 50, "only {} cases", files.len());
    let mut wrong = String::new();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let Some(error) = parse_error(name, &text) else {
            wrong += &format!("{name} is accepted\n");
            continue;
        };
        let expected = path.with_extension("expected");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&expected, format!("{error}\n")).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        if expected != format!("{error}\n") {
            wrong += &format!("--- {name}: expected\n{expected}--- found\n{error}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn examples_are_accepted() {
    let mut files = Vec::new();
    json_files(&project("examples"), &mut files);
    let mut seen = (0, 0);
    for path in files {
        match path.file_name().unwrap().to_str().unwrap() {
            "server.json" => {
                load_policy(&path).unwrap_or_else(|error| panic!("{error}"));
                seen.0 += 1;
            }
            "local.json" => {
                load_local(&path).unwrap_or_else(|error| panic!("{error}"));
                seen.1 += 1;
            }
            _ => {}
        }
    }
    assert!(seen.0 >= 4 && seen.1 >= 4, "{seen:?}");
}

#[test]
fn the_full_example_has_every_key() {
    for (file, keys) in [
        (
            "examples/full/server.json",
            "datacenter timezone catalog embedded path tls ca certificate key crl hosts address receive_address consul_resync retry_for datasets hostname dataset \
             recursive exclude backup sync policies rollback_if_needed rollback_may_destroy on_divergence skip_if_renamed skip_if_not_written skip_if_cloned prefix \
             creation catch_up sync_on sync_dataset sync_policy retention sync_retention prune_unsent lag",
        ),
        (
            "examples/full/local.json",
            "listen hostname max_sends max_receives stall_timeout tls ca certificate key crl directors consul address token_file ca_file \
             cert_file key_file tls_server_name datacenter prefix advertise local_datasets enable slave name sources append_only \
             properties include exclude override clone delete",
        ),
    ] {
        let text = fs::read_to_string(project(file)).unwrap();
        for key in keys.split_whitespace() {
            assert!(text.contains(&format!("\"{key}\":")), "{file} lacks {key}");
        }
    }
}

#[test]
fn parse_policy_returns_every_value() {
    let text = r#"{
        "$schema": "server.schema.json",
        "datacenter": "dc1",
        "timezone": "Europe/Paris",
        "catalog": { "embedded": { "path": "/srv/catalog" } },
        "hosts": {
            "beta": { "address": "10.0.0.2", "receive_address": "[fe80::2]:9" },
            "gamma": { "address": "gamma:1" },
            "delta": { "receive_address": "delta" },
            "epsilon": {}
        },
        "consul_resync": ["23:50", "00:10"],
        "datasets": [{
            "hostname": "alpha", "dataset": "tank/foo", "recursive": true,
            "backup": {
                "prefix": "BACKUP", "creation": "0 * * * 1-5", "catch_up": "1h 30m",
                "sync_on": "beta", "sync_dataset": "tank/copy", "sync_policy": "0 1 * * *",
                "retention": ["24 in last day"], "sync_retention": ["1/day in last month"], "prune_unsent": true
            },
            "sync": {
                "prefix": "SYNC", "creation": "*/5 * * * *", "sync_on": ["gamma", "alpha"], "sync_dataset": "pool/live",
                "retention": ["12 in last day"]
            },
            "policies": { "by hand": { "prefix": "HAND", "retention": ["all in last year"] } },
            "rollback_needed": true, "skip_renamed": false, "skip_not_written": false, "skip_cloned": false
        }]
    }"#;
    let policy = parse_policy("server.json", text).unwrap();
    assert_eq!(policy.datacenter.as_deref(), Some("dc1"));
    assert_eq!(policy.timezone, "Europe/Paris".parse().unwrap());
    assert_eq!(policy.catalog, CatalogConfig::Embedded { path: "/srv/catalog".into() });
    let times = policy.consul_resync.map(|(from, to)| (from.to_string(), to.to_string()));
    assert_eq!(times, Some(("23:50:00".to_owned(), "00:10:00".to_owned())));
    let addresses = |name: &str| {
        let found = &policy.hosts[&host(name)];
        (found.address.clone().unwrap_or_default(), found.receive_address.clone().unwrap_or_default())
    };
    assert_eq!(addresses("beta"), ("10.0.0.2:7711".to_owned(), "[fe80::2]:9".to_owned()));
    assert_eq!(addresses("gamma"), ("gamma:1".to_owned(), "gamma:7722".to_owned()));
    assert_eq!(addresses("delta"), (String::new(), "delta:7722".to_owned()));
    assert_eq!(addresses("epsilon"), (String::new(), String::new()));

    let [entry] = policy.datasets.as_slice() else { panic!("{policy:?}") };
    assert_eq!((entry.hostname.as_str(), entry.dataset.as_str(), entry.recursive), ("alpha", "tank/foo", true));
    assert!(entry.rollback_if_needed && !entry.skip_if_renamed && !entry.skip_if_not_written && !entry.skip_if_cloned);
    let [backup, sync, by_hand] = entry.policies.as_slice() else { panic!("{entry:?}") };
    let rules = |rule: &str| Some(Retention::parse(&[rule]).unwrap());
    assert_eq!((backup.name.as_str(), backup.prefix.as_str()), ("backup", "BACKUP"));
    assert_eq!(backup.creation, Some("0 * * * 1-5".parse::<Schedule>().unwrap()));
    assert_eq!(backup.catch_up, Duration::from_secs(5400));
    assert_eq!(backup.sync_on, [Place { host: host("beta"), dataset: dataset("tank/copy") }]);
    assert_eq!(backup.sync_policy, "0 1 * * *".parse::<SyncPolicy>().unwrap());
    assert_eq!(backup.retention, rules("24 in last day"));
    assert_eq!(backup.sync_retention, rules("1/day in last month"));
    assert!(backup.prune_unsent);
    let targets: Vec<_> = sync.sync_on.iter().map(|target| format!("{}:{}", target.host, target.dataset)).collect();
    assert_eq!(targets, ["gamma:pool/live", "alpha:pool/live"]);
    assert_eq!(sync.sync_policy, SyncPolicy::Asap);
    assert_eq!(sync.sync_retention, sync.retention, "the default is the retention of the source");
    assert!(!sync.prune_unsent);
    assert_eq!((by_hand.name.as_str(), by_hand.creation.is_none()), ("by hand", true));
    assert_eq!(by_hand.sync_retention, None);
}

#[test]
fn missing_keys_have_documented_defaults() {
    let text = r#"{ "datasets": [
        { "hostname": "alpha", "dataset": "tank", "backup": { "prefix": "B", "creation": "@daily" } }
    ] }"#;
    let policy = parse_policy("server.json", text).unwrap();
    assert_eq!(policy.timezone, crate::policy::Zone::UTC);
    assert_eq!(policy.catalog, CatalogConfig::Embedded { path: DEFAULT_CATALOG.into() });
    let entry = &policy.datasets[0];
    assert!(!entry.recursive && !entry.rollback_if_needed);
    assert!(entry.skip_if_renamed && entry.skip_if_not_written && entry.skip_if_cloned);
    assert_eq!(entry.policies[0].catch_up, Duration::from_secs(6 * 3600));
    assert_eq!(entry.policies[0].retention, None);
}

#[test]
fn compatible_entries_are_accepted() {
    let text = r#"{ "datasets": [
        { "hostname": "alpha", "dataset": "tank", "recursive": true,
          "backup": { "prefix": "B", "creation": "@daily", "sync_on": "gamma", "sync_dataset": "pool/alpha" } },
        { "hostname": "alpha", "dataset": "tank/db", "recursive": true,
          "backup": { "prefix": "B", "creation": "@hourly", "sync_on": "gamma", "sync_dataset": "pool/alpha/db" },
          "sync": { "prefix": "S", "creation": "@hourly", "sync_on": "gamma", "sync_dataset": "pool/alpha/db" } },
        { "hostname": "beta", "dataset": "tank",
          "backup": { "prefix": "B", "creation": "@daily", "sync_on": ["gamma", "nobody"], "sync_dataset": "pool/beta" } },
        { "hostname": "gamma", "dataset": "pool/beta",
          "policies": { "onward": { "prefix": "B", "sync_on": "gamma", "sync_dataset": "other/beta" } } }
    ] }"#;
    parse_policy("server.json", text).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn position_of_invalid_retention_is_the_word() {
    let rules = ["24 in last day", "12 in last dayz"];
    let text = format!(
        "{{ \"datasets\": [ {{ \"hostname\": \"a\", \"dataset\": \"t\", \"backup\": {{ \"prefix\": \"B\", \"retention\": [\n\
         {:?},\n  {:?} ] }} }} ] }}",
        rules[0], rules[1]
    );
    // The tests of the grammar check which word is wrong; this one checks its position in the file.
    let Err(errors) = Retention::parse(&rules) else { return };
    let (index, error) = &errors[0];
    assert_eq!(*index, 1);
    let expected = format!("f:3:{}: datasets[0].backup.retention[1]: {error}", 4 + error.at.start);
    assert_eq!(parse_policy("f", &text).unwrap_err().to_string(), expected);
}

#[test]
fn error_prints_twenty_problems_and_counts_the_rest() {
    let entry = r#"{ "hostname": "alpha", "dataset": "tank", "x": 1 }"#;
    let text = format!("{{ \"datasets\": [ {} ] }}", [entry; 30].join(",\n"));
    let error = parse_policy("f", &text).unwrap_err();
    assert_eq!(error.problems().len(), 60, "an unknown key and no policy, thirty times");
    let shown = error.to_string();
    assert_eq!(shown.lines().count(), 21);
    assert!(shown.ends_with("\nand 40 more problems"), "{shown}");
}

#[test]
fn unreadable_file_error_has_hint() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| load_policy(path).unwrap_err().to_string();
    let path = folder.path().join("server.json");
    let named = path.display();
    assert_eq!(
        message(&path),
        format!(
            "{named}: cannot read the file: it does not exist; hint: create it (see zsync-server.json(5)), or name another one with --config"
        )
    );
    let said = message(folder.path());
    assert!(said.contains("it is a folder; hint: name the file in it with --config"), "{said}");
    fs::write(&path, b"{\n\xff}").unwrap();
    assert_eq!(
        message(&path),
        format!("{named}: cannot read the file: line 2 is not UTF-8 text; hint: save the file as UTF-8")
    );
    fs::write(&path, "\u{feff}{ \"datasets\": [] }").unwrap();
    load_policy(&path).expect("a byte order mark is no problem");
    fs::write(&path, vec![b' '; json::MAX_BYTES + 1]).unwrap();
    assert_eq!(message(&path), format!("{named}: cannot read the file: it is larger than the 16 MiB that are allowed"));
    let said = load_local(&folder.path().join("local.json")).unwrap_err().to_string();
    assert!(said.contains("(see zsync-local.json(5)), or name another one with --local"), "{said}");
}

fn example_local() -> Local {
    let text = r#"{
        "$schema": "local.schema.json", "listen": "0.0.0.0", "hostname": "beta",
        "local_datasets": [
            { "name": "tank", "clone": { "enable": false, "name": "tank/c", "delete": true } },
            { "name": "tank/off", "enable": false },
            { "name": "tank/copy", "slave": true, "sources": ["alpha"] },
            { "name": "tank/copy/any", "slave": true, "append_only": false },
            { "name": "tank/copy/own", "slave": true, "take": true, "append_only": false, "rollback": true },
            { "name": "tank/secret", "destinations": ["alpha"] }
        ]
    }"#;
    parse_local("local.json", text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn nearest_entry_determines_permissions() {
    let local = example_local();
    assert_eq!(local.listen.as_ref().unwrap().with_default_port(SLAVE_PORT), "0.0.0.0:7722");
    assert_eq!(local.hostname, Some(host("beta")));
    let covers = |name: &str| local.entry_for(&dataset(name)).map(|entry| entry.name.to_string());
    assert_eq!(covers("tank/a/b").as_deref(), Some("tank"));
    assert_eq!(covers("tank/copy/any/x").as_deref(), Some("tank/copy/any"));
    assert_eq!(covers("tank/copyist").as_deref(), Some("tank"));
    assert_eq!(covers("tanker"), None);

    let (alpha, gamma) = (host("alpha"), host("gamma"));
    assert!(local.permission_to_take(&dataset("tank/a")).is_ok());
    assert!(local.permission_to_send(&dataset("tank/a"), &gamma).is_ok());
    assert!(local.permission_to_send(&dataset("tank/secret"), &alpha).is_ok());
    assert!(local.permission_to_take(&dataset("tank/copy/own")).is_ok());
    assert!(local.permission_to_destroy(&dataset("tank/a")).is_ok());
    assert!(local.permission_to_receive(&dataset("tank/copy/x"), &alpha).is_ok());
    assert!(local.permission_to_receive(&dataset("tank/copy/any"), &gamma).is_ok());

    let said = |denied: Result<&LocalDataset, Denied>| {
        let denied = denied.unwrap_err();
        (denied.status(), format!("{denied}; {}", denied.hint()))
    };
    assert_eq!(
        said(local.permission_to_take(&dataset("pool/x"))),
        (
            DatasetStatus::NotConf,
            "pool/x is not listed in local_datasets of local.json; to allow this, add \
             { \"enable\": true, \"name\": \"pool/x\" } to local_datasets of local.json; an entry also covers what is below \
             its dataset"
                .to_owned()
        )
    );
    let (status, text) = said(local.permission_to_receive(&dataset("pool/x/deep"), &alpha));
    assert_eq!(status, DatasetStatus::NotConf);
    assert!(text.contains("\"slave\": true") && text.contains("that sync_dataset of server.json names"), "{text}");
    assert_eq!(
        said(local.permission_to_destroy(&dataset("tank/off/x"))),
        (
            DatasetStatus::Disable,
            "tank/off/x is disabled by the entry \"tank/off\" in local.json; to allow this, set \"enable\": true in the \
             entry \"tank/off\" of local.json"
                .to_owned()
        )
    );
    let (status, text) = said(local.permission_to_receive(&dataset("tank/a"), &alpha));
    assert_eq!(status, DatasetStatus::Docker);
    assert!(text.contains("tank/a is not open for receiving") && text.contains("\"slave\": true"), "{text}");
    let (status, text) = said(local.permission_to_receive(&dataset("tank/copy"), &gamma));
    assert_eq!(status, DatasetStatus::Docker);
    assert!(text.contains("does not receive from gamma") && text.contains("add \"gamma\" to \"sources\""), "{text}");
    let (_, text) = said(local.permission_to_destroy(&dataset("tank/copy/x")));
    assert!(text.contains("append-only") && text.contains("set \"append_only\": false in"), "{text}");
    assert!(local.permission_to_destroy(&dataset("tank/copy/any/x")).is_ok());
    let (_, text) = said(local.permission_to_roll_back(&dataset("tank/copy/any")));
    assert!(text.ends_with("set \"rollback\": true in the entry \"tank/copy/any\" of local.json"), "{text}");
    let (_, text) = said(local.permission_to_roll_back(&dataset("tank/copy")));
    assert!(text.contains("set \"append_only\": false and \"rollback\": true in"), "{text}");
    assert!(local.permission_to_roll_back(&dataset("tank/copy/own")).is_ok());
    let (_, text) = said(local.permission_to_take(&dataset("tank/copy/x")));
    assert!(
        text.contains("because it receives") && text.contains("without \"slave\" or with \"take\": true"),
        "{text}"
    );
    // A host is no exception for itself: the data could be sent on from the copy.
    let (_, text) = said(local.permission_to_send(&dataset("tank/secret/x"), &host("beta")));
    assert!(text.contains("must not be sent to beta") && text.contains("add \"beta\" to \"destinations\""), "{text}");
}

/// The valid files that the mutations below start from.
fn seeds() -> Vec<String> {
    ["examples/full/server.json", "examples/full/local.json"]
        .map(|file| fs::read_to_string(project(file)).unwrap())
        .to_vec()
}

fn parse_as_both(text: &str) {
    for result in [parse_policy("f", text).err(), parse_local("f", text).err()].into_iter().flatten() {
        assert!(!result.to_string().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_does_not_panic(text in any::<String>()) {
        parse_as_both(&text);
    }

    #[test]
    fn damaged_file_does_not_panic(
        seed in 0..2_usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
    ) {
        let mut bytes = seeds().swap_remove(seed).into_bytes();
        for (index, byte, how) in edits {
            let at = index.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => { bytes.remove(at); }
                _ => bytes.insert(at, b"{}[]\",:\\"[usize::from(byte) % 8]),
            }
        }
        parse_as_both(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn value_of_wrong_type_does_not_panic(
        seed in 0..2_usize,
        at in any::<prop::sample::Index>(),
        with in prop::sample::select(vec!["null", "true", "-1e999", "\"\"", "\"\\ud83d\\ude00\\n\"", "[]", "{}", "[{}]", "[[]]", "{\"\":{}}"]),
    ) {
        let text = seeds().swap_remove(seed);
        // A value begins after a colon.
        let places: Vec<usize> = text.match_indices(": ").map(|(at, _)| at + 2).collect();
        let at = places[at.index(places.len())];
        let end = text[at..].find([',', '\n', '}', ']']).map_or(text.len(), |end| at + end);
        parse_as_both(&format!("{}{with}{}", &text[..at], &text[end..]));
        parse_as_both(&format!("{}{with}, \"x\": {}", &text[..at], &text[at..]));
    }
}
