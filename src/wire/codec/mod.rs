//! Sends and receives messages and streams on a connection, with a limit for every length and a timeout for every wait.
//!
//! [`Conn`] is the conversation with one peer: it sends and receives messages (`conn`) and streams (`stream`, in the
//! frames of `frame`, which `pack` compresses). `line` reads lines, and `error` has the reasons why a conversation ends
//! early.

mod conn;
mod error;
mod frame;
mod line;
mod pack;
mod stream;

pub use conn::Conn;
pub(crate) use conn::{ALIVE_EVERY, SILENCE};
pub use error::WireError;
pub use frame::{LARGEST_FRAME, StreamEnd};
pub use stream::{Pace, Sent, StreamOptions, Wait};
