//! Previews: the orders that the director would give, and why; over time, and by another policy.
//!
//! A dry run gets a catalog and a ZFS that can only be read, so it cannot change anything. Without `--dry-run` the agents
//! are polled, and their answers are written to the catalog; no dataset is changed either way.
//!
//! [`foresee`] predicts a whole pass, [`simulate`] plays the policy forward, [`compare`] sets two policies side by side: all
//! three are pure. [`preview`] and [`survey`] answer what `zsync plan` is asked for.

mod answer;
pub mod compare;
mod document;
mod filter;
pub mod foresee;
mod orders;
mod settings;
mod side_by_side;
pub mod simulate;
mod table;

pub use answer::{preview, survey};
pub use filter::Filter;
pub use settings::{PlanSettings, Question, Source};
