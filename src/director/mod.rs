//! The director: makes passes over the fleet. A pass lists every host, decides by policy what to take, send and destroy,
//! has agents do it, and records the outcomes.
//!
//! [`run`] is where it starts; [`Pass`] is one pass; [`connect`] has what previews need as well. With a catalog in Consul,
//! [`Election`] sees to it that one director of several is active.

pub mod bars;
pub mod connect;
mod failure_log;
mod leader;
mod leader_loop;
mod metrics;
mod once;
mod pass;
mod progress;
mod report;
mod run;
pub mod saved;
mod service;
mod settings;
mod status_file;
mod summary;

pub use leader::{Election, ElectionResult, Leadership};
pub use metrics::{DirectorMetrics, PassMetrics};
pub use pass::Pass;
pub use progress::{PassProgress, RunningOrder};
pub use report::Report;
pub use run::run;
pub use saved::SavedPlan;
pub use settings::DirectorSettings;
