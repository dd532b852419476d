//! The subcommands: thin doing around what the deciding modules decided.

pub mod agent;
pub mod busy;
pub mod check;
pub mod clones;
pub mod director;
pub mod gate;
pub mod hooks;
pub mod marks;
pub mod metrics;
pub mod plan;
mod progress;
pub mod receiving;
pub mod retry;
pub mod serve;
pub mod slave;
pub mod slots;
pub mod status;
pub mod throttle;
pub mod tls;
