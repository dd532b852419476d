//! Remembers when orders last changed what is known of each dataset. A listing takes a while, and orders end meanwhile:
//! a listing that began before an order's facts came must not undo them.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_lock::{Mutex, MutexGuardArc};

use crate::model::{DatasetInventory, DatasetName, HostInventory, HostName};

/// A moment in the sequence of everything that hosts report. It has nothing to do with a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// When each dataset was last changed by the facts of an order.
#[derive(Default)]
pub(super) struct Touched {
    now: Moment,
    of: BTreeMap<HostName, BTreeMap<DatasetName, Moment>>,
    writing: BTreeMap<HostName, Arc<Mutex<()>>>,
}

impl Touched {
    /// A moment that is later than all moments before.
    pub(super) fn next(&mut self) -> Moment {
        self.now.0 += 1;
        self.now
    }

    /// Records that an order has changed something in a dataset.
    pub(super) fn touch(&mut self, host: &HostName, dataset: &DatasetName) {
        let now = self.next();
        self.of.entry(host.clone()).or_default().insert(dataset.clone(), now);
    }

    /// Whether an order has changed a dataset since a moment.
    pub(super) fn is_touched_since(&self, began: Moment, host: &HostName, dataset: &DatasetName) -> bool {
        self.of.get(host).and_then(|of| of.get(dataset)).is_some_and(|at| *at > began)
    }

    /// What is `known` of the datasets of a host that orders have changed since a moment; `None` for a dataset that does
    /// not exist.
    pub(super) fn since(
        &self,
        began: Moment,
        host: &HostName,
        known: Option<&HostInventory>,
    ) -> Vec<(DatasetName, Option<DatasetInventory>)> {
        let later = self.of.get(host).into_iter().flatten().filter(|(_, at)| **at > began);
        later.map(|(name, _)| (name.clone(), known.and_then(|known| known.datasets.get(name)).cloned())).collect()
    }

    /// The locks of these hosts, in an order in which nobody waits for ever. Who writes what a host has reported holds
    /// its lock, so that the inventory and the catalog change in the same sequence.
    pub(super) fn locks<'h>(&mut self, hosts: impl IntoIterator<Item = &'h HostName>) -> Vec<Arc<Mutex<()>>> {
        let sorted: std::collections::BTreeSet<&HostName> = hosts.into_iter().collect();
        sorted.into_iter().map(|host| Arc::clone(self.writing.entry(host.clone()).or_default())).collect()
    }
}

/// Waits for locks, in this order.
pub(super) async fn lock(locks: Vec<Arc<Mutex<()>>>) -> Vec<MutexGuardArc<()>> {
    let mut held = Vec::new();
    for lock in locks {
        held.push(lock.lock_arc().await);
    }
    held
}
