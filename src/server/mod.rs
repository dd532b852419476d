//! Accepts connections for agents and slaves: connection limits, conversations, counters, and metrics over HTTP.

pub mod acceptor;
pub mod counters;
pub mod http;
pub mod limiter;
pub mod metrics;

pub use counters::{Counters, DIRECTOR};
