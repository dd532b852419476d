//! This module has what the agent and the slave of one host share: locks on datasets, the transfer queue, bandwidth
//! limits, hooks, clones, what `keep` keeps, the trash, and publishing in Consul.

pub mod clones;
pub mod error;
pub mod floor;
pub mod hooks;
pub mod locks;
pub mod publish;
pub mod queue;
pub mod throttle;
pub mod trash;
