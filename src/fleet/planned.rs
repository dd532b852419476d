//! The orders of a preview. Each has the orders for which it waits, and how much it would send or free.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, Serializer};

use crate::actions::Order;

/// The orders of the same pass that have to be carried out first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// The order follows once snapshots have been taken.
    Take,
    /// The order follows once snapshots have been taken and sent.
    Send,
}

/// An order that a pass would give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedOrder {
    /// The order. The guid of a snapshot that has yet to be taken is made up.
    pub order: Order,
    /// What the order waits for; `None` if it can be given now.
    pub after: Option<After>,
    /// Why it will fail, if that is known.
    pub refused: Option<String>,
    /// What it would send or free; `None` for a snapshot, and if no estimate was made.
    pub estimate: Option<Estimate>,
}

impl PlannedOrder {
    pub(crate) fn new(order: Order, after: Option<After>) -> Self {
        Self { order, after, refused: None, estimate: None }
    }
}

impl Serialize for PlannedOrder {
    /// Leaves out a made-up guid.
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            #[serde(flatten)]
            order: &'a Order,
            #[serde(skip_serializing_if = "Option::is_none")]
            after: Option<After>,
            #[serde(skip_serializing_if = "Option::is_none")]
            refused: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            estimate: Option<&'a Estimate>,
        }
        let Self { order, after, refused, estimate } = self;
        let fields = Fields { order, after: *after, refused: refused.as_deref(), estimate: estimate.as_ref() };
        if *after != Some(After::Take) || !matches!(order, Order::Send { .. }) {
            return fields.serialize(s);
        }
        let mut value = serde_json::to_value(fields).map_err(serde::ser::Error::custom)?;
        if let Some(object) = value.as_object_mut() {
            object.remove("guid");
        }
        value.serialize(s)
    }
}

/// The size of what a transfer would send, or a destroy would free.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Bytes; `None` if the size is unknown.
    pub bytes: Option<u64>,
    /// Why the size is unknown, or what the agent would leave out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remark: String,
}

/// The sums of all estimates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Bytes that would be sent, without orders of unknown size.
    pub send: u64,
    /// Bytes that would be freed, without orders of unknown size. Several destroys of one dataset together can free
    /// more than their sum.
    pub free: u64,
    /// How many orders have an unknown size.
    pub unknown: usize,
    /// When the oldest estimate was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<DateTime<Utc>>,
}

impl Estimate {
    pub(crate) fn of(bytes: u64) -> Self {
        Self { bytes: Some(bytes), remark: String::new() }
    }

    pub(crate) fn unknown(remark: impl Into<String>) -> Self {
        Self { bytes: None, remark: remark.into() }
    }

    /// The sum of two parts of one order.
    pub(crate) fn and(self, other: Self) -> Self {
        let bytes = self.bytes.zip(other.bytes).map(|(a, b)| a.saturating_add(b));
        let remarks: Vec<String> = [self.remark, other.remark].into_iter().filter(|r| !r.is_empty()).collect();
        Self { bytes, remark: remarks.join("; ") }
    }
}

impl Totals {
    /// Adds up the estimates of some orders.
    #[must_use]
    pub fn of(orders: &[PlannedOrder]) -> Self {
        let mut totals = Self::default();
        for PlannedOrder { order, estimate, .. } in orders {
            match (order, estimate.as_ref().map(|e| e.bytes)) {
                (_, None) => {}
                (_, Some(None)) => totals.unknown += 1,
                (Order::Destroy { .. }, Some(Some(bytes))) => totals.free = totals.free.saturating_add(bytes),
                (_, Some(Some(bytes))) => totals.send = totals.send.saturating_add(bytes),
            }
        }
        totals
    }
}
