//! Connections: how two roles reach each other, and how they know that it is them.

pub mod dial;
pub mod tcp;
pub mod tls;
