//! Tests of what a catalog file may contain, and of the text of the errors.

use proptest::prelude::*;

use super::*;
use crate::model::{
    Bookmark, DatasetInventory, DatasetKind, Guid, HostInventory, Inventory, Marks, NotWritten, Snapshot,
};
use chrono::{DateTime, Utc};

use crate::model::Trashed;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

fn read_valid(text: &str) -> Inventory {
    read(text.as_bytes(), "c.ndjson", at(99)).unwrap_or_else(|error| panic!("{error}"))
}

fn invalid_lines(text: &[u8]) -> Vec<(u32, String)> {
    match read(text, "c.ndjson", at(99)) {
        Err(FileError::Invalid(invalid)) => invalid.lines,
        other => panic!("{other:?}"),
    }
}

fn dataset(inventory: &Inventory) -> &DatasetInventory {
    inventory.dataset(&"a".parse().unwrap(), &"tank/x".parse().unwrap()).unwrap()
}

#[test]
fn read_accepts_every_form_of_a_value() {
    let forms = [
        (
            r##""guid":"18446744073709551615","createtxg":"7","creation":"1970-01-01T00:01:40Z","flags":["#sent","sync"],"clones":["tank/c"]"##,
            true,
        ),
        (r##""guid":18446744073709551615,"createtxg":7,"creation":100,"flags":"#sent#sync","clones":1"##, true),
        (
            r##""guid":"18446744073709551615","createtxg":7,"creation":"1970-01-01T01:01:40.9+01:00","flags":["#sync","#sent"],"clones":true"##,
            true,
        ),
        (r##""guid":18446744073709551615,"createtxg":7,"creation":"100","flags":"#sync#sent","clones":0"##, false),
        (
            r##""guid":18446744073709551615,"createtxg":7,"creation":100,"flags":["sent","sync"],"clones":[],"userrefs":null"##,
            false,
        ),
    ];
    for (form, has_clones) in forms {
        let inventory = read_valid(&format!(r#"{{"host":"a","dataset":"tank/x","name":"s",{form}}}"#));
        assert_eq!(inventory.hosts[&"a".parse().unwrap()].observed, Some(at(99)));
        let marks = Marks { sent: true, sync: true, deleted: false };
        let expected = Snapshot {
            name: "s".parse().unwrap(),
            guid: Guid(u64::MAX),
            createtxg: 7,
            creation: at(100),
            userrefs: 0,
            has_clones,
            used: 0,
            marks,
        };
        assert_eq!(dataset(&inventory).snapshots, [expected], "{form}");
    }
}

#[test]
fn read_sorts_records_of_any_order() {
    let inventory = read_valid(
        r##"{"host":"a","dataset":"tank/x","name":"new","guid":2,"createtxg":20,"creation":200}

            {"host":"a","dataset":"tank/x","name":"#mark","guid":1,"createtxg":10,"creation":100}
            {"host":"a","dataset":"tank/x","name":"S_1970-01-01_00:00:00","creation":5,"flags":["#NotWritten"]}
            {"host":"a","dataset":"tank/x","name":"old","guid":1,"createtxg":10,"creation":100}
            {"host":"a","dataset":"tank/x","written":0,"encrypted":true,"kind":"volume","guid":"9"}
            {"host":"b"}
            {"host":"c","observed":null}
            {"host":"d","observed":"1970-01-01T00:00:01Z"}"##,
    );
    let found = dataset(&inventory);
    assert_eq!(found.snapshots.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["old", "new"]);
    assert_eq!((found.bookmarks.len(), found.not_written.len(), found.written), (1, 1, Some(0)));
    assert_eq!((found.kind, found.guid, found.encrypted), (DatasetKind::Volume, Some(Guid(9)), true));
    let observed: Vec<_> = inventory.hosts.values().map(|h| h.observed).collect();
    assert_eq!(observed, [Some(at(99)), Some(at(99)), None, Some(at(1))]);
}

#[test]
fn read_names_each_invalid_line_and_its_reason() {
    let base = r#""host":"a","dataset":"tank/x""#;
    let good = r#""name":"s","guid":1,"createtxg":1,"creation":1"#;
    let cases: &[(&str, &str)] = &[
        ("x", "not a JSON object"),
        (r#"{"host":"a""#, "EOF while parsing an object (at column 11)"),
        (r#"["a"]"#, "not a JSON object"),
        (&format!("{{{base},{good},\"extra\":1}}"), "unknown field `extra`"),
        (&format!("{{{base},{good},\"guid\":1}}"), "duplicate field `guid`"),
        (&format!("{{{base},{good}}} {{}}"), "trailing characters"),
        (r#"{"dataset":"tank/x"}"#, "missing field `host`"),
        (r#"{"host":"a","guid":1}"#, "\"dataset\" is missing"),
        (r#"{"host":"a b"}"#, "host: \"a b\" is not a host name: ' ' is not allowed"),
        (r#"{"host":"a","dataset":"/tank"}"#, "dataset: \"/tank\" is not a dataset name"),
        (&format!(r#"{{{base},"name":"a@b","guid":1,"createtxg":1,"creation":1}}"#), "name: \"a@b\" is not a snapshot"),
        (&format!(r#"{{{base},"name":"s","createtxg":1,"creation":1}}"#), "\"guid\" is missing"),
        (&format!(r#"{{{base},"name":"s","guid":1,"creation":1}}"#), "\"createtxg\" is missing"),
        (&format!(r#"{{{base},"name":"s","guid":1,"createtxg":1}}"#), "\"creation\" is missing"),
        (&format!(r#"{{{base},"name":"s","guid":-1,"createtxg":1,"creation":1}}"#), "invalid type: integer `-1`"),
        (&format!(r#"{{{base},"name":"s","guid":1.5,"createtxg":1,"creation":1}}"#), "invalid type: floating point"),
        (
            &format!(r#"{{{base},"name":"s","guid":18446744073709551616,"createtxg":1,"creation":1}}"#),
            "invalid type: floating point",
        ),
        (&format!(r#"{{{base},"name":"s","guid":"0x1","createtxg":1,"creation":1}}"#), "invalid value: string \"0x1\""),
        (&format!(r#"{{{base},"name":"s","guid":1,"createtxg":1,"creation":"yesterday"}}"#), "invalid value: string"),
        (&format!("{{{base},{good},\"flags\":[\"#lost\"]}}"), "\"lost\" is not a flag"),
        (&format!("{{{base},{good},\"clones\":\"-\"}}"), "invalid type: string \"-\", expected the clones"),
        (&format!("{{{base},{good},\"userrefs\":4294967296}}"), "\"userrefs\" is larger"),
        (&format!("{{{base},{good},\"written\":1}}"), "a snapshot has no \"written\""),
        (&format!("{{{base},{good},\"observed\":1}}"), "\"observed\" belongs to a host"),
        (&format!(r#"{{{base},"used":1}}"#), "(one without \"name\") has no \"used\""),
        (&format!(r##"{{{base},"name":"#b","guid":1,"createtxg":1,"creation":1,"used":1}}"##), "a bookmark has no"),
        (&format!("{{{base},{good},\"flags\":\"#NotWritten\"}}"), "a #NotWritten mark has no \"guid\""),
        (&format!(r#"{{{base},"name":"s","flags":["NotWritten"]}}"#), "\"creation\" is missing"),
    ];
    for (line, reason) in cases {
        let text = format!("{{{base}}}\n{line}\n");
        let invalid = invalid_lines(text.as_bytes());
        assert_eq!(invalid.len(), 1, "{line}: {invalid:?}");
        assert_eq!(invalid[0].0, 2, "{line}: {invalid:?}");
        assert!(invalid[0].1.contains(reason), "{line}: {}", invalid[0].1);
    }
}

#[test]
fn read_names_both_lines_of_a_duplicate() {
    let line = |name: &str, guid: u64| {
        format!(r#"{{"host":"a","dataset":"tank/x","name":"{name}","guid":{guid},"createtxg":1,"creation":1}}"#)
    };
    let invalid = invalid_lines(format!("{}\n{}\n{}\n", line("s", 1), line("t", 1), line("s", 2)).as_bytes());
    let expected = ["line 1 already has the guid 1, for a:tank/x@s", "line 1 already has a:tank/x@s"];
    assert_eq!(invalid, [(2, expected[0].to_owned()), (3, expected[1].to_owned())]);
    let twice = "{\"host\":\"a\",\"dataset\":\"tank/x\"}\n".repeat(2) + &"{\"host\":\"a\",\"observed\":1}\n".repeat(2);
    assert_eq!(invalid_lines(twice.as_bytes()).len(), 2);
    // In another dataset, the same guid is a copy of the snapshot.
    read_valid(&format!("{}\n{}", line("s", 1), line("s", 1).replace("tank/x", "tank/y")));
}

#[test]
fn error_about_many_invalid_lines_is_short() {
    let mut text = vec![0xffu8; 100];
    text.push(b'\n');
    text.extend(vec![b' '; MAX_LINE + 10]);
    text.extend(b"x\n");
    text.extend(b"x\n".repeat(100));
    let Err(error) = read(text.as_slice(), "c.ndjson", at(0)) else { panic!() };
    let shown = error.to_string();
    assert!(shown.contains("c.ndjson:2: longer than 1048576 bytes"), "{shown}");
    assert!(shown.ends_with("and 82 more lines"), "{shown}");
    assert_eq!(read_valid(""), Inventory::default());
}

prop_compose! {
    fn any_snapshot()(
        name in "[a-z]{3}[ .:_-][a-z0-9]{0,5}[a-z]", guid: u64, createtxg: u64, creation in -10i64..253_402_300_799,
        userrefs: u32, has_clones: bool, used: u64, sent: bool, sync: bool, deleted: bool
    ) -> Snapshot {
        let marks = Marks { sent, sync, deleted };
        let (name, creation) = (name.parse().unwrap(), at(creation));
        Snapshot { name, guid: Guid(guid), createtxg, creation, userrefs, has_clones, used, marks }
    }
}

prop_compose! {
    fn any_dataset()(
        volume: bool, guid: Option<u64>, written: Option<u64>, encrypted: bool,
        resume_token in proptest::option::of("[0-9a-f-]{1,20}"),
        snapshots in proptest::collection::btree_map("[a-z0-9]{1,3}", any_snapshot(), 0..6),
        bookmarks in proptest::collection::btree_map("[a-z0-9]{1,3}", any_snapshot(), 0..4),
        not_written in proptest::collection::btree_map("[a-z0-9]{1,3}", 0i64..1_000_000_000, 0..4),
    ) -> DatasetInventory {
        // Names and guids are unique.
        let named = |(i, (name, s)): (u64, (String, Snapshot))| {
            Snapshot { name: name.parse().unwrap(), guid: Guid(s.guid.0 / 8 * 8 + i), ..s }
        };
        let bookmark = |s: Snapshot| Bookmark { name: s.name, guid: s.guid, createtxg: s.createtxg, creation: s.creation };
        let mut dataset = DatasetInventory {
            kind: if volume { DatasetKind::Volume } else { DatasetKind::Filesystem },
            guid: guid.map(Guid),
            written,
            encrypted,
            key_from: None,
            origin: volume.then(|| "tank/o@x".parse().unwrap()),
            excluded: encrypted,
            append_only: encrypted.then_some(true),
            flags: encrypted.then_some(crate::model::SendFlags::Raw),
            transfer_holds: resume_token.iter().cloned().collect(),
            destroy_after: written,
            trashed: encrypted.then(|| vec![Trashed { guid: Guid(7), since: at(9), used: 8 }]),
            resume_token,
            unchanged: None,
            snapshots: (0..).zip(snapshots).map(named).collect(),
            bookmarks: (0..).zip(bookmarks).map(named).map(bookmark).collect(),
            not_written: not_written.into_iter()
                .map(|(name, seconds)| NotWritten { name: name.parse().unwrap(), at: at(seconds) })
                .collect(),
        };
        dataset.sort();
        dataset
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn read_returns_what_was_written(
        hosts in proptest::collection::btree_map(
            "[a-z]{1,5}",
            (
                proptest::option::of(0i64..4_000_000_000),
                proptest::collection::btree_map("tank(/[a-z]{1,4}){0,2}", any_dataset(), 0..4),
            ),
            0..3,
        )
    ) {
        let hosts = hosts.into_iter().map(|(host, (observed, datasets))| {
            let datasets = datasets.into_iter().map(|(name, listed)| (name.parse().unwrap(), listed)).collect();
            (host.parse().unwrap(), HostInventory { observed: observed.map(at), datasets, ..HostInventory::default() })
        });
        let inventory = Inventory { hosts: hosts.collect() };
        let mut text = Vec::new();
        write(&inventory, &mut text).unwrap();
        let back = read(text.as_slice(), "c.ndjson", at(99)).unwrap_or_else(|error| panic!("{error}"));
        prop_assert_eq!(back, inventory);
    }
}
