//! The slave (`zsync slave`) receives streams from agents.
//!
//! A conversation (`session`) begins with an agent's order. The slave checks it, locks the dataset, waits for a slot
//! and answers with a listing of the dataset (`listing`). Then the agent asks for one step after the other, and each is
//! answered with a response and a new listing. `idle` ends a conversation in which nothing arrives, and `flow` frees the slot of a
//! stream that hardly arrives. `stream` hands a stream over to `zfs receive`; everything else that a step does is in
//! `receive`, which agents use as well, for copies within their host.

mod flow;
mod idle;
mod listing;
pub(crate) mod receive;
mod session;
mod stream;

pub use session::Slave;
