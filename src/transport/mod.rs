//! Connections: how two roles reach each other.

pub mod tcp;
