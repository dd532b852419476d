//! Accepting connections, for agents and slaves alike: limits, conversations, counters, and metrics over HTTP.

pub mod acceptor;
pub mod counters;
pub mod http;
pub mod limiter;
pub mod metrics;

pub use counters::{Counters, DIRECTOR};
