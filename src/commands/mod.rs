//! The subcommands: thin doing around what the deciding modules decided.

pub mod agent;
pub mod busy;
pub mod catalogs;
pub mod check;
pub mod clean;
pub mod clones;
pub mod director;
pub mod facts;
pub mod fences;
pub mod gate;
pub mod hooks;
pub mod marks;
pub mod metrics;
pub mod migrate;
pub mod plan;
pub mod presence;
mod progress;
pub mod publisher;
pub mod receiving;
pub mod retry;
pub mod serve;
pub mod slave;
pub mod slots;
pub mod state;
pub mod status;
pub mod throttle;
pub mod tls;
