//! All hosts of a policy, as a director or a preview reaches them: polling, dispatching orders, and what is known.

pub mod dispatch;
pub mod estimate;
pub mod facts;
pub mod health;
pub mod known;
pub mod live_status;
pub mod planned;
pub mod poll;
pub mod state;

pub use dispatch::{Dispatcher, fitting, wire_order};
pub use poll::ask_all;
pub use state::FleetState;
