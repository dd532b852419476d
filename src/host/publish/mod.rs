//! Publishes a host in Consul: its records (`publisher`) and its services (`presence`). `fences` recognises
//! orders of a director that has lost its lock.

pub mod fences;
pub mod presence;
pub mod publisher;
