//! Names, configurations and orders for tests.

use std::sync::Arc;

use zsync::agent::{Agent, CheckedOrder, FactSink};
use zsync::config::parse_local;
use zsync::model::{Action, Counter, DatasetName, HostName, SnapName};
use zsync::policy::Local;
use zsync::wire::{DirectorsOrder, Response};

/// Gives an agent an order as if it had come over the wire. An invalid order gets a response, too.
pub async fn carry_out<Z: zsync::zfs::Zfs>(
    agent: &Agent<Z>,
    order: &DirectorsOrder,
    facts: FactSink,
    counter: Counter,
) -> Response {
    match CheckedOrder::try_from(order.clone()) {
        Ok(order) => agent.carry_out(order, facts, counter).await,
        Err(error) => error.response(order.order_uuid),
    }
}

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

/// An order that has only an action, and is not retried.
pub fn order(action: Action) -> DirectorsOrder {
    let text = format!(r#"{{"OrderUUID":"{}","Action":"{action}","RetryFor":0}}"#, uuid::Uuid::now_v7());
    serde_json::from_str(&text).unwrap()
}
