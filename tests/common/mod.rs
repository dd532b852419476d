//! What several test programs share. Each one compiles all of it and uses a part.

#![allow(dead_code, reason = "each test program uses a part")]

pub mod consul;
pub mod fleet;
pub mod loopback;
pub mod pair;
pub mod program;

use std::sync::Arc;

use zsync::config::parse_local;
use zsync::model::{Action, DatasetName, Guid, HostName, SnapName};
use zsync::policy::Local;
use zsync::wire::DirectorsOrder;
use zsync::zfs::fake::Fake;

pub fn ds(text: &str) -> DatasetName {
    text.parse().unwrap()
}

pub fn snap(text: &str) -> SnapName {
    text.parse().unwrap()
}

pub fn host(text: &str) -> HostName {
    text.parse().unwrap()
}

/// A `local.json`.
#[track_caller]
pub fn local(text: &str) -> Arc<Local> {
    Arc::new(parse_local("local.json", text).unwrap_or_else(|error| panic!("{error}")))
}

/// An order with nothing but its action, which is not retried.
pub fn order(action: Action) -> DirectorsOrder {
    let text = format!(r#"{{"OrderUUID":"{}","Action":"{action}","RetryFor":0}}"#, uuid::Uuid::now_v7());
    serde_json::from_str(&text).unwrap()
}

/// The snapshots of a dataset by guid, oldest first; none if it does not exist.
pub fn guids(fake: &Fake, dataset: &str) -> Vec<Guid> {
    fake.dataset(&ds(dataset)).map(|d| d.snapshots.iter().map(|s| s.guid).collect()).unwrap_or_default()
}

/// The snapshots of a dataset by name, oldest first; none if it does not exist.
pub fn names(fake: &Fake, dataset: &str) -> Vec<String> {
    fake.dataset(&ds(dataset)).map(|d| d.snapshots.iter().map(|s| s.name.to_string()).collect()).unwrap_or_default()
}
