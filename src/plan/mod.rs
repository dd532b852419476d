//! Previews of the orders that the director would give, with the reasons: for one pass, over a simulated time, and with
//! another policy.
//!
//! With `--dry-run`, the hosts are asked, and nothing is written: the preview gets a catalog and a ZFS that can only be
//! read. Without it, the agents are polled, and their listings are written to the catalog. No dataset is changed either
//! way.
//!
//! Three modules are pure: [`foresee`] predicts a whole pass, [`simulate`] predicts passes over time, and [`compare`]
//! finds what another policy would do differently. Three functions run `zsync plan`: [`preview`] asks nobody, [`ask`]
//! asks the hosts and writes nothing, and [`survey`] writes their answers to the catalog.

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

pub use answer::{ask, preview, survey};
pub use filter::Filter;
pub use settings::{InventorySource, PlanMode, PlanSettings};
