//! zsync keeps a fleet's ZFS snapshots taken, replicated and pruned by policy.

pub mod catalog;
pub mod config;
pub mod model;
pub mod policy;
