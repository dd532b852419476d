//! The entry points: decisions about a whole policy, or about one of its entries.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::actions::index::{IndexedPolicy, PolicyIndex};
use crate::actions::leftovers::{Leftover, Leftovers, leftovers};
use crate::actions::notice::{Notice, NoticeKind};
use crate::actions::pass::{Destroyed, Pass};
use crate::actions::plan::Plan;
use crate::model::{HostName, Inventory};
use crate::policy::{DatasetPolicy, Policy};

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
        self.decide_after(inventory, now, &Destroyed::default())
    }

    /// Decides the whole policy, like [`Engine::decide`], in a pass that has already destroyed something.
    #[must_use]
    pub fn decide_after(&self, inventory: &Inventory, now: DateTime<Utc>, destroyed: &Destroyed) -> Plan {
        let mut pass = self.pass(inventory, now, destroyed);
        (0..self.policy.datasets.len()).for_each(|entry| pass.decide_entry(entry));
        let mut plan = pass.finish();
        plan.notices.extend(self.leftovers(inventory));
        plan.notices.extend(self.trash(inventory));
        plan
    }

    /// A notice for each host of the policy in whose trash there is anything.
    fn trash(&self, inventory: &Inventory) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (host, known) in &inventory.hosts {
            let trashed = || known.datasets.values().flat_map(|dataset| dataset.trashed.iter().flatten());
            let Some(entry) = self.entry_naming(host).filter(|_| trashed().next().is_some()) else { continue };
            let bytes = trashed().fold(0u64, |sum, trashed| sum.saturating_add(trashed.used));
            let kind = NoticeKind::InTrash { snapshots: trashed().count(), bytes };
            notices.push(Notice { entry, host: host.clone(), dataset: None, kind });
        }
        notices
    }

    /// The first entry that names a host.
    fn entry_naming(&self, host: &HostName) -> Option<usize> {
        let names = |e: &DatasetPolicy| {
            e.hostname == *host || e.policies.iter().flat_map(|p| &p.sync_on).any(|to| to.host == *host)
        };
        self.policy.datasets.iter().position(names)
    }

    /// A notice for each host on which transfers have left something for destinations that the policy no longer has.
    fn leftovers(&self, inventory: &Inventory) -> Vec<Notice> {
        let mut by_host: BTreeMap<HostName, Vec<Leftover>> = BTreeMap::new();
        for left in leftovers(self.policy, &self.index, inventory) {
            by_host.entry(left.host.clone()).or_default().push(left);
        }
        let notice = |(host, left): (HostName, Vec<Leftover>)| {
            let entry = self.entry_naming(&host).unwrap_or_default();
            Notice { entry, host, dataset: None, kind: NoticeKind::Leftovers(Leftovers::of(&left)) }
        };
        by_host.into_iter().map(notice).collect()
    }

    /// Decides one entry of `policy.datasets`. Together, the plans of all entries are the plan of the whole policy.
    #[must_use]
    pub fn decide_entry(&self, entry: usize, inventory: &Inventory, now: DateTime<Utc>) -> Plan {
        self.decide_entry_after(entry, inventory, now, &Destroyed::default())
    }

    /// Decides one entry, like [`Engine::decide_entry`], in a pass that has already destroyed something.
    #[must_use]
    pub fn decide_entry_after(
        &self,
        entry: usize,
        inventory: &Inventory,
        now: DateTime<Utc>,
        destroyed: &Destroyed,
    ) -> Plan {
        let mut pass = self.pass(inventory, now, destroyed);
        pass.decide_entry(entry);
        pass.finish()
    }

    fn pass<'p>(&'p self, inventory: &'p Inventory, now: DateTime<Utc>, destroyed: &'p Destroyed) -> Pass<'p> {
        Pass::new(self.policy, IndexedPolicy::new(self.policy, &self.index), inventory, now, destroyed)
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
