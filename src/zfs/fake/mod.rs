//! Simulates pools in memory that behave as ZFS does, for tests and measurements of all roles together.
//!
//! A [`Fake`] stands for the pools of one machine. It logs the calls that change something, fails on demand with the
//! words of the real command, and lets streams be killed, stalled or damaged at any byte ([`Fault`]). An interrupted
//! receive leaves what `zfs receive -s` leaves: a token that names the snapshot, the position and the flags, and a
//! partial state that blocks other receives until it is resumed or aborted.

mod fault;
mod pools;
mod read;
mod receive;
mod send;
mod stream;
mod token;
mod write;

#[cfg(test)]
mod tests;

pub use fault::Fault;
pub use pools::Fake;
pub use stream::{LONGEST, RECORD};
