//! The entry points: decisions about a whole policy, or about one of its entries.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::actions::index::{IndexedPolicy, PolicyIndex};
use crate::actions::pass::Pass;
use crate::actions::plan::Plan;
use crate::model::Inventory;
use crate::policy::Policy;

/// A policy together with its [`PolicyIndex`]. It decides what to do about an inventory at a moment.
///
/// Building the index takes time in proportion to the policy's size. To decide entries one by one, build the engine
/// once, or at least share the index.
pub struct Engine<'a> {
    policy: &'a Policy,
    index: Arc<PolicyIndex>,
}

impl<'a> Engine<'a> {
    /// An engine for a policy, with a new index.
    #[must_use]
    pub fn new(policy: &'a Policy) -> Self {
        Self::with(policy, Arc::new(PolicyIndex::new(policy)))
    }

    /// An engine for a policy, with an index that was built from the same policy before.
    #[must_use]
    pub fn with(policy: &'a Policy, index: Arc<PolicyIndex>) -> Self {
        Self { policy, index }
    }

    /// Decides the whole policy as of `now`.
    #[must_use]
    pub fn decide(&self, inventory: &Inventory, now: DateTime<Utc>) -> Plan {
        let mut pass = Pass::new(self.policy, IndexedPolicy::new(self.policy, &self.index), inventory, now);
        (0..self.policy.datasets.len()).for_each(|entry| pass.decide_entry(entry));
        pass.finish()
    }

    /// Decides one entry of `policy.datasets`. Together, the plans of all entries are the plan of the whole policy.
    #[must_use]
    pub fn decide_entry(&self, entry: usize, inventory: &Inventory, now: DateTime<Utc>) -> Plan {
        let mut pass = Pass::new(self.policy, IndexedPolicy::new(self.policy, &self.index), inventory, now);
        pass.decide_entry(entry);
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
