//! Judges how well the fleet meets the policy: how old the newest snapshot of every dataset and the newest replica on
//! every destination are, and how far each destination lags behind.
//!
//! [`health()`] builds the report from the verdicts of a pass. It compares ages with the policy's thresholds, or with
//! thresholds that follow from its schedules.

mod evaluate;
mod finding;
mod forecast;
mod judge;
mod listed;
mod report;

pub use evaluate::health;
pub use finding::{Finding, Severity, span};
pub use forecast::Underway;
pub use report::{CertificateState, DatedSnapshot, Health, HostState, Row};
