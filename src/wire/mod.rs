//! Implements the protocol between directors, agents and slaves: JSON messages, one per line, and streams in frames.
//!
//! For each order, a director connects to an agent and sends one [`DirectorsOrder`]. The agent answers with any number
//! of [`AgentLine::Progress`] and [`AgentLine::Facts`] lines, then with one [`Response`]. To send a dataset, an agent
//! connects to a slave and sends one [`OrderToSlave`]; the slave answers with the content of its dataset, as one or
//! more [`ListUuids`] lines. Then the agent sends one [`Step`] after the other, up to [`Step::Finish`]. After
//! [`Step::Receive`], the stream follows in frames. The slave answers each step with any number of [`Alive`] lines, one
//! [`Response`] and the new [`ListUuids`]. zsync-protocol(7) has the details.
//!
//! The types and fields of zeplic's protocol keep their names and meaning. Fields added by zsync are optional, and
//! unknown fields are ignored, so that an order can also be written by hand and sent with `nc`.
//!
//! `director` has the messages between director and agent, `slave` those between agent and slave, `files` those with which
//! a host reads files from another one's snapshots, and `response` the one that all use. `text` limits what peers write into errors, and
//! `memory` how much they send into a process at the same time. [`codec`] sends and receives messages and streams on a connection.

pub mod codec;
mod director;
pub mod files;
pub(crate) mod memory;
mod response;
mod slave;
mod text;

pub use director::{
    AgentLine, AskBack, CommonBase, DirectorsOrder, ExpectedSnapshot, Facts, Fence, Forgotten, Listing, Permit,
    Progress, RenamedFrom, RestoreFrom, SendBack,
};
pub use response::Response;
pub use slave::{Alive, CloneOf, DestinationInfo, ListUuids, OrderToSlave, Step};

/// The protocol's version. Version 1 is zeplic's messages on one connection, with listings, steps and framed streams.
pub const PROTOCOL: u32 = 1;

/// The longest line, in bytes.
pub const LONGEST_LINE: usize = 1 << 20;
/// The largest number of snapshots or datasets in a line. Each takes at most 700 bytes, so the line stays below
/// [`LONGEST_LINE`].
pub const PER_LINE: usize = 1000;

/// The version of a message that does not name one.
fn default_protocol() -> u32 {
    PROTOCOL
}

#[cfg(test)]
mod tests;
