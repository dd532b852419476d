//! What is at work in the fleet, across passes: the orders that run, and the rooms in which they run. A transfer may run
//! for days, and passes do not wait for those of earlier passes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::actions::Order;
use crate::catalog::CatalogError;
use crate::director::firsthand::Firsthand;
use crate::director::initial::Initial;
use crate::director::progress::PassProgress;
use crate::director::rests::Rests;
use crate::director::slots::OrderSlots;
use crate::model::{DatasetName, HostName, Place};
use crate::sys::runtime::channel;

/// The number of a pass.
pub(super) type PassNumber = u64;

/// What is at work in the fleet. Clones share one state.
#[derive(Clone)]
pub struct Lanes(Arc<Shared>);

struct Shared {
    claims: Mutex<Claims>,
    rests: Mutex<Rests>,
    initial: Initial,
    passes: AtomicU64,
    /// How often the policy has changed.
    policies: AtomicU64,
    slots: OrderSlots,
    progress: PassProgress,
    firsthand: Firsthand,
    /// Why the catalog failed since the last report.
    error: Mutex<Option<CatalogError>>,
    /// Every task that works on the fleet holds a clone of the sender.
    tasks: (Mutex<Option<channel::Sender<()>>>, channel::Receiver<()>),
}

/// The orders that are running or wait for a room.
#[derive(Default)]
struct Claims {
    /// By host, dataset and policy.
    takes: BTreeSet<(HostName, DatasetName, String)>,
    /// By source. A dataset is sent to one destination at a time.
    sends: BTreeMap<Place, Sending>,
    destroys: BTreeMap<Place, PassNumber>,
}

/// A transfer that is running or waits for a room.
struct Sending {
    to: Place,
    by: PassNumber,
    /// Closed when the transfer has ended.
    ended: channel::Receiver<()>,
}

impl Default for Lanes {
    fn default() -> Self {
        let (running, ended) = channel::bounded(1);
        Self(Arc::new(Shared {
            claims: Mutex::default(),
            rests: Mutex::default(),
            initial: Initial::default(),
            passes: AtomicU64::default(),
            policies: AtomicU64::default(),
            slots: OrderSlots::default(),
            progress: PassProgress::default(),
            firsthand: Firsthand::default(),
            error: Mutex::default(),
            tasks: (Mutex::new(Some(running)), ended),
        }))
    }
}

impl Lanes {
    /// The number of a new pass.
    pub(super) fn next_pass(&self) -> PassNumber {
        self.0.passes.fetch_add(1, Ordering::Relaxed)
    }

    /// Changes whenever the policy has changed.
    pub(super) fn policy_number(&self) -> u64 {
        self.0.policies.load(Ordering::Relaxed)
    }

    /// Records that another policy is in force: what was decided by the former one and has not begun does not begin.
    pub fn policy_changed(&self) {
        self.0.policies.fetch_add(1, Ordering::Relaxed);
        self.wake();
    }

    /// Lets all orders be given again that rest because they have failed.
    pub fn wake(&self) {
        self.rests().wake();
        self.0.progress.note_resting(Vec::new());
    }

    /// The orders that rest because they have failed.
    pub(super) fn rests(&self) -> MutexGuard<'_, Rests> {
        self.0.rests.lock()
    }

    /// What was due when a single pass began.
    pub(super) fn initial(&self) -> &Initial {
        &self.0.initial
    }

    /// Counts an order among those for which a single pass stays, until the result is dropped.
    pub(super) fn keep(&self, order: &Order) -> Option<Kept> {
        self.0.initial.keep(order).then(|| Kept(self.clone()))
    }

    /// Determines when each order may begin.
    pub(super) fn slots(&self) -> &OrderSlots {
        &self.0.slots
    }

    /// The orders that are running, and those that have ended.
    #[must_use]
    pub fn progress(&self) -> &PassProgress {
        &self.0.progress
    }

    /// Which datasets were listed by their own host.
    pub(super) fn firsthand(&self) -> &Firsthand {
        &self.0.firsthand
    }

    /// Records that the catalog has failed.
    pub(super) fn failed(&self, error: CatalogError) {
        self.0.error.lock().get_or_insert(error);
    }

    /// Why the catalog has failed since the last call, if it has.
    pub(super) fn take_error(&self) -> Option<CatalogError> {
        self.0.error.lock().take()
    }

    /// A token for a task; `None` once [`Lanes::tasks_ended`] was called.
    pub(super) fn token(&self) -> Option<channel::Sender<()>> {
        self.0.tasks.0.lock().clone()
    }

    /// Waits until no task holds a token any more.
    pub(super) async fn tasks_ended(&self) {
        drop(self.0.tasks.0.lock().take());
        // The channel is only ever closed.
        let _ = self.0.tasks.1.recv().await;
    }

    /// Claims the datasets of a take. Those of which another order takes a snapshot of this policy are left out; `None`
    /// if that leaves nothing.
    pub(super) fn claim_take(&self, order: Order) -> Option<(Order, Claim)> {
        let Order::Take { entry, host, name, mut datasets, policy, skip_if_not_written, reason } = order else {
            return None;
        };
        let mut claims = self.0.claims.lock();
        datasets.retain(|dataset| claims.takes.insert((host.clone(), dataset.clone(), policy.clone())));
        drop(claims);
        if datasets.is_empty() {
            return None;
        }
        let of = Of::Take(host.clone(), datasets.clone(), policy.clone());
        let order = Order::Take { entry, host, name, datasets, policy, skip_if_not_written, reason };
        Some((order, Claim { lanes: self.clone(), of }))
    }

    /// Claims the source of a transfer; otherwise returns which pass is sending it.
    pub(super) fn claim_send(&self, from: &Place, to: &Place, pass: PassNumber) -> Result<Claim, PassNumber> {
        let mut claims = self.0.claims.lock();
        if let Some(other) = claims.sends.get(from) {
            return Err(other.by);
        }
        let (until_ended, ended) = channel::bounded(1);
        claims.sends.insert(from.clone(), Sending { to: to.clone(), by: pass, ended });
        Ok(Claim { lanes: self.clone(), of: Of::Send(from.clone(), until_ended) })
    }

    /// Whether another pass is sending a dataset.
    pub(super) fn is_sent_by_another(&self, from: &Place, pass: PassNumber) -> bool {
        self.0.claims.lock().sends.get(from).is_some_and(|sending| sending.by != pass)
    }

    /// Waits until a dataset is not being sent.
    pub(super) async fn claim_ended(&self, from: &Place) {
        let ended = self.0.claims.lock().sends.get(from).map(|sending| sending.ended.clone());
        closed(ended).await;
    }

    /// Waits for a transfer that is sending a dataset or is received into it.
    pub(super) async fn sending_ended(&self, place: &Place) {
        let ended = {
            let claims = self.0.claims.lock();
            let sending = claims.sends.iter().find(|(from, sending)| *from == place || sending.to == *place);
            sending.map(|(_, sending)| sending.ended.clone())
        };
        closed(ended).await;
    }

    /// Claims a dataset for a destroy; `None` if another pass destroys in it, sends it, or receives into it. What is
    /// being sent is not pruned.
    pub(super) fn claim_destroy(&self, place: &Place, pass: PassNumber) -> Option<Claim> {
        let mut claims = self.0.claims.lock();
        let is_sent =
            claims.sends.iter().any(|(from, sending)| sending.by != pass && (from == place || sending.to == *place));
        if is_sent || claims.destroys.contains_key(place) {
            return None;
        }
        claims.destroys.insert(place.clone(), pass);
        Some(Claim { lanes: self.clone(), of: Of::Destroy(place.clone()) })
    }
}

/// An order for which a single pass stays, until this is dropped.
pub(super) struct Kept(Lanes);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.0.initial.release();
    }
}

/// Waits until a transfer has ended, if there is one.
async fn closed(ended: Option<channel::Receiver<()>>) {
    if let Some(ended) = ended {
        // The channel is only ever closed.
        let _ = ended.recv().await;
    }
}

/// The right to give an order, until it is dropped.
pub(super) struct Claim {
    lanes: Lanes,
    of: Of,
}

enum Of {
    Take(HostName, Vec<DatasetName>, String),
    Send(Place, channel::Sender<()>),
    Destroy(Place),
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.lanes.0.claims.lock();
        match &self.of {
            Of::Take(host, datasets, policy) => {
                for dataset in datasets {
                    claims.takes.remove(&(host.clone(), dataset.clone(), policy.clone()));
                }
            }
            Of::Send(from, until_ended) => {
                claims.sends.remove(from);
                until_ended.close();
            }
            Of::Destroy(place) => drop(claims.destroys.remove(place)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        let (host, dataset) = text.split_once(':').unwrap();
        Place { host: host.parse().unwrap(), dataset: dataset.parse().unwrap() }
    }

    #[test]
    fn dataset_is_not_sent_twice_nor_pruned_by_another_pass_meanwhile() {
        let lanes = Lanes::default();
        let (from, to) = (place("alpha:tank/a"), place("beta:pool/a"));
        let sending = lanes.claim_send(&from, &to, 1).unwrap();
        assert!(lanes.claim_send(&from, &place("gamma:pool/a"), 2).is_err_and(|by| by == 1));
        assert!(lanes.claim_destroy(&from, 2).is_none() && lanes.claim_destroy(&to, 2).is_none());
        let other = lanes.claim_destroy(&place("beta:pool/b"), 2);
        assert!(other.is_some() && lanes.claim_destroy(&place("beta:pool/b"), 3).is_none());
        drop(sending);
        assert!(lanes.claim_destroy(&from, 2).is_some() && lanes.claim_send(&from, &to, 2).is_ok());
    }

    #[test]
    fn take_leaves_out_what_another_order_is_taking() {
        let lanes = Lanes::default();
        let take = |datasets: &[&str], policy: &str| Order::Take {
            entry: 0,
            host: "alpha".parse().unwrap(),
            name: "S_1".parse().unwrap(),
            datasets: datasets.iter().map(|name| name.parse().unwrap()).collect(),
            policy: policy.into(),
            skip_if_not_written: false,
            reason: String::new(),
        };
        let datasets = |order: Option<(Order, Claim)>| match order {
            Some((Order::Take { datasets, .. }, _)) => datasets.len(),
            _ => 0,
        };
        let first = lanes.claim_take(take(&["tank/a", "tank/b"], "sync"));
        assert_eq!(datasets(lanes.claim_take(take(&["tank/a"], "sync"))), 0);
        assert_eq!(datasets(lanes.claim_take(take(&["tank/a", "tank/c"], "sync"))), 1);
        assert_eq!(datasets(lanes.claim_take(take(&["tank/a"], "backup"))), 1);
        drop(first);
        assert_eq!(datasets(lanes.claim_take(take(&["tank/a"], "sync"))), 1);
    }
}
