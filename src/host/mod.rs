//! What the agent and the slave of one host share: locks on datasets, the transfer queue, bandwidth, hooks, clones,
//! and what they publish in Consul.

pub mod clones;
pub mod error;
pub mod hooks;
pub mod locks;
pub mod publish;
pub mod queue;
pub mod throttle;
