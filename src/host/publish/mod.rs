//! Publishes a host in Consul: its records (`publisher`) and its services (`presence`). `fences` remembers which
//! directors the host has obeyed.

pub mod fences;
pub mod presence;
pub mod publisher;
