//! The engine: from policy and inventory to what should be done, with a reason for everything.
//!
//! [`decide`] is its one door. Nothing here performs I/O or reads a clock.

mod common;
pub mod delete;
pub mod divergence;
pub mod health;
mod index;
pub mod lineage;
pub mod new_snapshot;
pub mod order;
mod pass;
pub mod plan;
pub mod predict;
pub mod reason;
pub mod route;
pub mod send;
pub mod steps;
pub mod verdict;

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::actions::index::Indexed;
use crate::actions::pass::Pass;
use crate::model::Inventory;
use crate::policy::Policy;

pub use common::Known;
pub use delete::{DeleteTerms, Peer, Role, delete};
pub use health::{Health, health};
pub use index::Index;
pub use new_snapshot::{TakeDecision, new_snapshot};
pub use order::Order;
pub use plan::{DueSend, Notice, Plan, PruneVerdict, SendVerdict, Side, Subject, TakeVerdict};
pub use predict::predict;
pub use reason::{NoticeKind, SendReason, TakeReason};
pub use route::{Renamed, Route};
pub use send::{SendDecision, send};
pub use steps::{Conflict, Resume, Step, Transfer, steps};
pub use verdict::{Doomed, Explained, Protection, PruneReason, SnapVerdict};

/// A policy made ready to decide by: it knows which entry governs which dataset, and what is sent where.
///
/// Making one costs time in proportion to the policy's size: where entries are decided one by one, make it once, or at
/// least the [`Index`].
pub struct Engine<'a> {
    policy: &'a Policy,
    index: Arc<Index>,
}

impl<'a> Engine<'a> {
    /// Makes a policy ready.
    #[must_use]
    pub fn new(policy: &'a Policy) -> Self {
        Self::with(policy, Arc::new(Index::new(policy)))
    }

    /// The same for a policy that has been made ready before.
    #[must_use]
    pub fn with(policy: &'a Policy, index: Arc<Index>) -> Self {
        Self { policy, index }
    }

    /// Decides the whole policy as of `now`.
    #[must_use]
    pub fn decide(&self, inventory: &Inventory, now: DateTime<Utc>) -> Plan {
        let mut pass = Pass::new(self.policy, Indexed::new(self.policy, &self.index), inventory, now);
        (0..self.policy.datasets.len()).for_each(|entry| pass.entry(entry));
        pass.finish()
    }

    /// Decides one entry of `policy.datasets`. Together, the plans of all entries are the plan of the whole.
    #[must_use]
    pub fn decide_entry(&self, entry: usize, inventory: &Inventory, now: DateTime<Utc>) -> Plan {
        let mut pass = Pass::new(self.policy, Indexed::new(self.policy, &self.index), inventory, now);
        pass.entry(entry);
        pass.finish()
    }
}

/// Decides the whole policy as of `now`.
#[must_use]
pub fn decide(policy: &Policy, inventory: &Inventory, now: DateTime<Utc>) -> Plan {
    Engine::new(policy).decide(inventory, now)
}

/// Decides one entry of `policy.datasets`; see [`Engine::decide_entry`].
#[must_use]
pub fn decide_entry(policy: &Policy, entry: usize, inventory: &Inventory, now: DateTime<Utc>) -> Plan {
    Engine::new(policy).decide_entry(entry, inventory, now)
}

#[cfg(test)]
mod tests;
