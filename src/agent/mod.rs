//! The agent (`zsync agent`) carries out orders on one host.
//!
//! Orders arrive over a socket (`session`), or from the director in the same process. Either way a director's order is
//! checked once and becomes a [`CheckedOrder`], whose [`Request`] has one variant for each kind of order (`request`).
//! An order that arrives again is answered from memory (`dedup`, `journal`). [`Agent::carry_out`] checks that the
//! order's director leads, retries temporary failures, and publishes the result (`execute`). Each kind of request has a
//! file: `take`, `destroy`, `list`, `estimate`, `restore`, and the folder `transfer` for sends. `files` reads single files
//! from snapshots, for this host or another one.
//!
//! Every request is checked against local.json and against ZFS as it is at that moment. Whatever a failed order leaves
//! behind, the next attempt continues or corrects.

mod cache;
mod context;
mod dedup;
mod destroy;
mod estimate;
mod execute;
pub mod files;
mod forget;
mod join_keys;
mod journal;
mod list;
pub mod request;
mod restore;
mod resumes;
mod service;
mod session;
mod take;
mod transfer;
mod trash;

pub use context::FactSink;
pub use journal::{Journal, JournalError};
pub use request::{CheckedOrder, Request};
pub use service::Agent;
