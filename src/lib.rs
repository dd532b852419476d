//! zsync keeps a fleet's ZFS snapshots taken, replicated and pruned by policy.

pub mod actions;
pub mod model;
pub mod policy;
