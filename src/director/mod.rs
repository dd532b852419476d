//! The director works in passes. In a pass, it lists the snapshots of every host, decides by policy what to take, send
//! and destroy, gives orders to agents, and records the outcomes.
//!
//! [`run()`] starts a director, and [`Pass`] is one pass. [`connect`] opens the catalog, TLS and the connections to
//! agents, for directors and for previews. If the catalog is in Consul, several directors can run, and [`Election`]
//! ensures that only one of them gives orders.

pub mod bars;
pub mod connect;
mod failure_log;
mod firsthand;
mod heartbeat;
mod initial;
mod lanes;
mod leader;
mod leader_loop;
mod metrics;
mod old_records;
mod once;
pub mod ordered;
mod pass;
mod progress;
mod report;
mod rests;
mod rounds;
mod run;
pub mod saved;
mod send_lanes;
mod service;
mod settings;
mod slot_clock;
mod slots;
mod status_file;
mod summary;
mod transfer_steps;

pub use lanes::Lanes;
pub use leader::{Election, ElectionResult, Leadership};
pub use metrics::{DirectorMetrics, PassMetrics};
pub use pass::{Begun, Pass};
pub use progress::{PassProgress, RunningOrder};
pub use report::Report;
pub use rounds::Rounds;
pub use run::run;
pub use saved::SavedPlan;
pub use settings::DirectorSettings;
pub(crate) use transfer_steps::{is_unsent, transfer_steps, turn};
