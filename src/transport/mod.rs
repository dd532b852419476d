//! Connects hosts: moves bytes between them, and proves their identities. It does not interpret the bytes.
//!
//! [`tcp`] connects roles of zsync and accepts connections, over [`tls`] if it is configured. `dial` opens plain
//! streams to other servers, such as Consul. `within` connects roles in one process.

pub(crate) mod dial;
pub mod tcp;
pub mod tls;
pub(crate) mod within;
