//! Access to all hosts of a policy, for the director and for previews: it polls hosts, dispatches orders to them, and
//! keeps what is known about them.

pub mod certificates;
mod clocks;
pub mod copy;
pub mod dispatch;
pub mod durations;
pub mod estimate;
pub mod facts;
pub mod files;
pub mod forget;
pub mod health;
pub mod known;
pub mod live_status;
pub mod obstacles;
mod outcomes;
pub mod planned;
pub mod poll;
pub mod restore;
mod silent;
pub mod state;
mod touched;
pub mod trash;

pub use dispatch::{Dispatcher, fitting, wire_order};
pub use poll::{ask_all, ask_as_in_a_pass, ask_these};
pub use state::FleetState;
pub use touched::Moment;
