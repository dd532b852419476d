//! How well the policy is kept: the newest snapshot of every dataset, the newest replica on every destination, and how
//! far the destination lags behind.
//!
//! [`health()`] builds the report from the same verdicts as a pass, and judges it by the policy's thresholds, or by its
//! schedules if it has none.

mod evaluate;
mod finding;
mod judge;
mod listed;
mod report;

pub use evaluate::health;
pub use finding::{Finding, Severity, span};
pub use report::{DatedSnapshot, Health, HostState, Row};
