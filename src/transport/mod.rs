//! Connections between hosts. This module moves bytes, and proves identities; it knows no messages.
//!
//! [`tcp`] connects roles of zsync and accepts connections, over [`tls`] if it is configured. `dial` opens plain streams
//! to other servers, such as Consul.

pub(crate) mod dial;
pub mod tcp;
pub mod tls;
