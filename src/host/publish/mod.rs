//! What a host keeps in Consul: its records and its services. Also the fences of the directors that it has obeyed.

pub mod fences;
pub mod presence;
pub mod publisher;
