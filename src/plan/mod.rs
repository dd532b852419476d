//! Previews: the orders that the director would give and the reasons, over time, and with another policy.
//!
//! A dry run gets a catalog and a ZFS that can only be read, so it cannot change anything. Without `--dry-run` the agents
//! are polled, and their listings are written to the catalog. No dataset is changed either way.
//!
//! Three modules are pure: [`foresee`] predicts a whole pass, [`simulate`] plays the policy forward, and [`compare`] finds
//! what another policy would do differently. [`preview`] and [`survey`] run `zsync plan` without and with polling.

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
pub use settings::{InventorySource, PlanMode, PlanSettings};
