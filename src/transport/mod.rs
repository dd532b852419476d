//! Connections: how two roles reach each other.

pub mod dial;
pub mod tcp;
