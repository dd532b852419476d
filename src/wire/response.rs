//! Defines the message that ends an order or a step.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::{KeyJoin, OrderId, ResponseStatus, SourceRecord, hint};
use crate::wire::text;

/// The result of an order or a step; zeplic's `ZFSResponseToAgent` (for its agent, `ZFSResponseFromSlave`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Response {
    /// The order's identity; `None` if the order could not be parsed.
    #[serde(rename = "OrderUUID")]
    pub order_uuid: Option<OrderId>,
    /// Whether the order or the step succeeded.
    pub is_success: bool,
    /// The status, which is more detailed.
    pub status: ResponseStatus,
    /// The error, or a remark after a success.
    #[serde(default, deserialize_with = "text::text")]
    pub error: String,
    /// What an administrator can do about a failure.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text::optional")]
    pub hint: Option<String>,
    /// Whether a later attempt may succeed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub temporary: bool,
    /// Whether the agent could not write the result to the shared catalog yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unpublished: bool,
    /// The number of bytes that were transferred.
    #[serde(default)]
    pub bytes: u64,
    /// The duration in milliseconds.
    #[serde(default)]
    pub millis: u64,
    /// The estimated number of bytes that would be sent or freed. Missing if ZFS cannot estimate it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<u64>,
    /// For a listing, the number of datasets that it has. If another number arrives, something was lost on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datasets: Option<u64>,
    /// For a listing, the time by the host's clock. A director whose clock is ahead of it destroys nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<DateTime<Utc>>,
    /// For an estimate of a restore, the properties of the source that the copy has recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<Box<SourceRecord>>,
    /// For join_keys, the datasets whose keys are joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "text::joins")]
    pub joins: Vec<KeyJoin>,
}

impl Response {
    /// A successful result, with a remark.
    #[must_use]
    pub fn success(order: OrderId, status: ResponseStatus, remark: impl Into<String>) -> Self {
        Self {
            order_uuid: Some(order),
            is_success: true,
            status,
            error: remark.into(),
            hint: None,
            temporary: false,
            unpublished: false,
            bytes: 0,
            millis: 0,
            estimate: None,
            datasets: None,
            clock: None,
            recorded: None,
            joins: Vec::new(),
        }
    }

    /// A failure, with the error. If the text has a hint, it is split off.
    #[must_use]
    pub fn failure(order: Option<OrderId>, status: ResponseStatus, error: impl Into<String>) -> Self {
        let (error, hint) = hint::split(&error.into());
        Self {
            order_uuid: order,
            is_success: false,
            status,
            error,
            hint,
            temporary: false,
            unpublished: false,
            bytes: 0,
            millis: 0,
            estimate: None,
            datasets: None,
            clock: None,
            recorded: None,
            joins: Vec::new(),
        }
    }

    /// The error or remark followed by the hint, for places that have one text for both.
    #[must_use]
    pub fn message(&self) -> String {
        hint::join(&self.error, self.hint.as_deref())
    }
}
