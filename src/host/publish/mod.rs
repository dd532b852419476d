//! What a host publishes in Consul: its records, its services, and the fences of the directors that it has obeyed.

pub mod fences;
pub mod presence;
pub mod publisher;
