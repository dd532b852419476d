//! Defines the reasons why a conversation can end early.

use std::io;
use std::time::Duration;

use thiserror::Error;

/// Why a conversation ended early.
#[derive(Debug, Error)]
pub enum WireError {
    /// The peer closed the connection.
    #[error("{peer} closed the connection")]
    Closed {
        /// The peer's name and address.
        peer: String,
    },
    /// The peer sent nothing for too long.
    #[error("{peer} sent nothing for {}", humantime::format_duration(*limit))]
    Silent {
        /// The peer's name and address.
        peer: String,
        /// How long this side waited.
        limit: Duration,
    },
    /// The peer sent something that is not a message of the protocol.
    #[error("cannot parse what {peer} sent: {reason}")]
    InvalidMessage {
        /// The peer's name and address.
        peer: String,
        /// What is wrong.
        reason: String,
    },
    /// The peer sent something that no correct peer sends, so it was probably damaged in transit.
    #[error("what {peer} sent is damaged: {reason}")]
    Damaged {
        /// The peer's name and address.
        peer: String,
        /// What is wrong.
        reason: String,
    },
    /// A stream makes no progress although the peer reports that it is alive.
    #[error("{peer} {} no data of the stream for {}", if *gives { "sent" } else { "accepted" }, humantime::format_duration(*limit))]
    Stalled {
        /// The peer's name and address.
        peer: String,
        /// Whether the peer is the sender of the stream.
        gives: bool,
        /// How long this side waited.
        limit: Duration,
    },
    /// Too little of a stream arrives, while others wait for a slot.
    #[error("less than 1 MiB of the stream of {peer} arrived within {}, as of several others of the same host, while transfers of other hosts wait for a slot", humantime::format_duration(*limit))]
    Slow {
        /// The peer's name and address.
        peer: String,
        /// The time that was measured.
        limit: Duration,
    },
    /// The peer kept a conversation open, but sent nothing that could be received.
    #[error("{peer} kept the conversation open, but sent nothing that could be received in {steps} steps")]
    Fruitless {
        /// The peer's name and address.
        peer: String,
        /// How many steps it took.
        steps: u32,
    },
    /// The peer aborted the conversation, with a reason.
    #[error("{peer} aborted: {reason}")]
    Aborted {
        /// The peer's name and address.
        peer: String,
        /// The peer's reason.
        reason: String,
        /// Whether a later attempt may succeed, according to the peer.
        temporary: bool,
    },
    /// The connection failed.
    #[error("the connection with {peer} failed")]
    Io {
        /// The peer's name and address.
        peer: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl WireError {
    /// Whether another attempt may succeed. It cannot if the peer does not speak the protocol, or refuses this host
    /// (which a connection reports as [`io::ErrorKind::PermissionDenied`]).
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::InvalidMessage { .. } => false,
            Self::Aborted { temporary, .. } => *temporary,
            Self::Io { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            Self::Closed { .. }
            | Self::Silent { .. }
            | Self::Damaged { .. }
            | Self::Stalled { .. }
            | Self::Slow { .. }
            | Self::Fruitless { .. } => true,
        }
    }
}
