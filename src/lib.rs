//! zsync keeps a fleet's ZFS snapshots taken, replicated and pruned by policy.

pub mod model;
pub mod policy;
pub mod clock;
pub mod runtime;
pub mod zfs;
