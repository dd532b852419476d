//! A client for Consul's HTTP API: pairs, sessions with their locks, and services.
//!
//! [`Consul`] (in `client`) sends the requests; `kv`, `session` and `services` are its methods for the parts of the
//! API. It builds requests with surf, on top of zsync's own HTTP client (`http`) with `tls`. `settings` combines the
//! configuration with the environment variables that Consul's own tools use.
//!
//! All reads use Consul's `consistent` mode, in which the leader first makes sure that it is still the leader. In
//! Consul's default mode, a leader that has been cut off may answer with old data for a moment, and no order may be
//! based on old data.

mod client;
mod error;
mod http;
mod kv;
mod services;
mod session;
mod settings;
mod tls;

pub use client::Consul;
pub use error::ConsulError;
pub use kv::{Committed, MOST_BYTES, MOST_OPS, Op, Pair};
pub use services::{Health, Instance, Registration};
pub use settings::ConsulSettings;
