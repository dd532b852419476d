//! Checks how messages are written, and that they keep the names of zeplic's protocol.

use super::*;
use crate::model::{Action, DatasetInventory, DatasetStatus, Guid, OrderId, ResponseStatus, Snapshot};

#[test]
fn order_of_zeplic_is_parsed() {
    let order: DirectorsOrder = serde_json::from_str(
        r#"{"OrderUUID":"9b2c1c4e-1111-4222-8333-0123456789ab","Action":"take_snapshot","Destination":"",
            "SnapshotUUID":[],"SnapshotName":"BACKUP_2017-July-01_10:30:00","DestDataset":"tank/foo",
            "RollbackIfNeeded":false,"SkipIfRenamed":true,"SkipIfNotWritten":true,"SkipIfCloned":true}"#,
    )
    .unwrap();
    assert_eq!((order.action, order.protocol, order.skip_if_cloned), (Action::TakeSnapshot, 1, true));
    assert!(order.datasets.is_empty() && order.dataset.is_none());
}

#[test]
fn field_names_of_zeplic_are_kept() {
    let response = Response::success(OrderId(uuid::Uuid::nil()), ResponseStatus::NothingToDo, "");
    assert_eq!(
        serde_json::to_string(&response).unwrap(),
        r#"{"OrderUUID":"00000000-0000-0000-0000-000000000000","IsSuccess":true,"Status":3,"Error":"","Bytes":0,"Millis":0}"#
    );
    let list = ListUuids { status: Some(DatasetStatus::False), ..ListUuids::default() };
    assert_eq!(serde_json::to_string(&list).unwrap(), r#"{"MapUUID":[],"Status":2}"#);
}

#[test]
fn hint_is_a_field_of_its_own_and_optional() {
    let failure = Response::failure(None, ResponseStatus::Refused, "no");
    assert!(!serde_json::to_string(&failure).unwrap().contains("Hint"));
    let failure = Response { hint: Some("ask again".into()), ..failure };
    let text = serde_json::to_string(&failure).unwrap();
    assert!(text.contains(r#""Error":"no","Hint":"ask again""#), "{text}");
    assert_eq!(serde_json::from_str::<Response>(&text).unwrap().message(), "no; hint: ask again");
}

#[test]
fn agent_lines_are_distinguished() {
    for line in [
        AgentLine::Progress { progress: Progress { bytes: 7, expected: None, waits_for: None } },
        AgentLine::Facts { facts: Box::default() },
        AgentLine::Response(Response::failure(None, ResponseStatus::Refused, "no")),
    ] {
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<AgentLine>(&text).unwrap(), line, "{text}");
    }
}

#[test]
fn large_listing_is_divided_into_lines_that_fit() {
    let snapshot = |n: u64| Snapshot {
        name: format!("S_{n}_{}", "x".repeat(200)).parse().unwrap(),
        guid: Guid(u64::MAX - n),
        createtxg: u64::MAX,
        creation: chrono::DateTime::UNIX_EPOCH,
        userrefs: u32::MAX,
        has_clones: true,
        used: u64::MAX,
        marks: crate::model::Marks { sent: true, sync: true, deleted: true },
    };
    let inventory = DatasetInventory { snapshots: (0..2500).map(snapshot).collect(), ..DatasetInventory::default() };
    let parts = Listing::parts(&"alpha".parse().unwrap(), &"tank/a".parse().unwrap(), inventory.clone());
    let lengths: Vec<usize> = parts.iter().map(|p| p.inventory.snapshots.len()).collect();
    assert_eq!(lengths, [1000, 1000, 500]);
    assert_eq!(parts.iter().map(|p| p.continued).collect::<Vec<_>>(), [false, true, true]);
    for part in &parts {
        assert!(serde_json::to_vec(part).unwrap().len() < LONGEST_LINE);
    }
}

#[test]
fn listing_whose_uuids_differ_from_its_snapshots_is_inconsistent() {
    let snapshots = vec![Snapshot {
        name: "S_1".parse().unwrap(),
        guid: Guid(7),
        createtxg: 1,
        creation: chrono::DateTime::UNIX_EPOCH,
        userrefs: 0,
        has_clones: false,
        used: 0,
        marks: Default::default(),
    }];
    let inventory = Some(DatasetInventory { snapshots, ..DatasetInventory::default() });
    let sent = ListUuids { map_uuid: vec![Guid(7).uuid().to_string()], inventory, ..ListUuids::default() };
    assert!(sent.is_consistent());
    let other = vec![Guid(8).uuid().to_string()];
    assert!(!ListUuids { map_uuid: other, ..sent.clone() }.is_consistent());
    assert!(!ListUuids { map_uuid: Vec::new(), ..sent.clone() }.is_consistent());
    // A dataset without an inventory is absent. zeplic's slaves list UUIDs alone.
    assert!(ListUuids { inventory: None, ..sent }.is_consistent());
}

#[test]
fn response_to_another_order_is_damaged() {
    let conn = codec::Conn::new(
        Box::new(futures_lite::io::empty()),
        Box::new(futures_lite::io::sink()),
        "beta (10.0.0.2:7722)".into(),
    );
    let (ours, other) = (OrderId(uuid::Uuid::nil()), OrderId(uuid::Uuid::max()));
    let done = |order| Response::success(order, ResponseStatus::Done, "");
    assert!(conn.check_answers(&done(ours), ours).is_ok());
    let error = conn.check_answers(&done(other), ours).unwrap_err();
    assert!(error.is_temporary() && error.to_string().contains("is damaged: it answers ffffffff-"), "{error}");
    assert!(conn.check_answers(&Response::failure(None, ResponseStatus::Refused, "no"), ours).is_ok());
    assert!(conn.check_answers(&Response { order_uuid: None, ..done(ours) }, ours).is_err());
}

#[test]
fn text_of_a_peer_is_cut_and_escaped_where_it_is_received() {
    let long = "x".repeat(1 << 19);
    let text = format!("{{\"Error\":\"\\u001b[2J\\n{long}\",\"Hint\":\"\\u001b[2J\\n{long}\"");
    let response = r#""OrderUUID":null,"IsSuccess":false,"Status":5}"#;
    let response: Response = serde_json::from_str(&format!("{text},{response}")).unwrap();
    let list: ListUuids = serde_json::from_str(&format!("{text}}}")).unwrap();
    let end: codec::StreamEnd = serde_json::from_str(&format!("{text},\"IsSuccess\":false}}")).unwrap();
    let pools = format!(r#"{{"Unlisted":{{"tank\u001b[2J":"{long}"}}}}"#);
    let facts: Facts = serde_json::from_str(&pools).unwrap();
    let texts = [response.error, response.hint.unwrap(), list.error, list.hint.unwrap(), end.error];
    for text in texts {
        assert!(text.starts_with("\\u{1b}[2J\\nxxx") && text.len() <= 4096, "{}", text.len());
    }
    let (pool, reason) = facts.unlisted.first_key_value().unwrap();
    assert!(pool == "tank\\u{1b}[2J" && reason.len() <= 4096, "{pool}");
}
