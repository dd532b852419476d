//! What is at work in the fleet, across passes: the orders that run, and the rooms in which they run. A transfer may run
//! for days, and passes do not wait for those of earlier passes.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_lite::future;
use parking_lot::{Mutex, MutexGuard};

use crate::actions::Order;
use crate::catalog::CatalogError;
use crate::director::firsthand::Firsthand;
use crate::director::initial::Initial;
use crate::director::progress::PassProgress;
use crate::director::rests::Rests;
use crate::director::send_lanes::{PassNumber, SendLanes, Ticket};
use crate::director::slots::{OrderSlot, OrderSlots};
use crate::model::{DatasetName, HostName, Place, Turn};
use crate::sys::runtime::channel;

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
    sends: SendLanes,
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

    /// Adds a transfer to those of its source dataset that wait for their turn. `None` if another pass has it running or
    /// waiting already.
    pub(super) fn wish(&self, from: &Place, to: &Place, turn: Turn, pass: PassNumber) -> Option<Wish> {
        let (ticket, changed) = self.0.claims.lock().sends.join(from, to, turn, pass)?;
        Some(Wish { lanes: self.clone(), from: from.clone(), turn, ticket, changed })
    }

    /// Whether another pass is sending a dataset, or is about to.
    pub(super) fn is_sent_by_another(&self, from: &Place, pass: PassNumber) -> bool {
        self.0.claims.lock().sends.is_sent_by_another(from, pass)
    }

    /// Waits for a transfer that is sending a dataset or is received into it.
    pub(super) async fn sending_ended(&self, place: &Place) {
        let ended = self.0.claims.lock().sends.ending(place);
        if let Some(ended) = ended {
            // The channel is only ever closed.
            let _ = ended.recv().await;
        }
    }

    /// Claims a dataset for a destroy; `None` if another order destroys in it, sends it, or receives into it. What is
    /// being sent is not pruned.
    pub(super) fn claim_destroy(&self, place: &Place) -> Option<Claim> {
        let claimed = self.0.claims.lock().sends.begin_destroy(place);
        claimed.then(|| Claim { lanes: self.clone(), of: Of::Destroy(place.clone()) })
    }
}

/// A transfer that waits for its turn among those of its source dataset, and for a slot. It leaves when this is dropped.
pub(super) struct Wish {
    lanes: Lanes,
    from: Place,
    turn: Turn,
    ticket: Ticket,
    changed: channel::Receiver<()>,
}

impl Wish {
    /// Waits until the transfer may begin.
    pub async fn granted(self, order: &Order) -> (OrderSlot, Claim) {
        loop {
            while !self.sends(|sends| sends.may_go(&self.from, self.ticket)) {
                // This value is among those that wait, so the channel has a sender.
                let _ = self.changed.recv().await;
            }
            let mut slot = pin!(self.lanes.slots().wait(order, self.turn));
            let slot = match future::poll_once(&mut slot).await {
                Some(slot) => slot,
                None => {
                    self.sends(|sends| sends.set_queued(&self.from, self.ticket, true));
                    slot.await
                }
            };
            if self.sends(|sends| sends.begin(&self.from, self.ticket)) {
                let (lanes, of) = (self.lanes.clone(), Of::Send(self.from.clone()));
                return (slot, Claim { lanes, of });
            }
            // Another transfer of the dataset was given a slot first.
            self.sends(|sends| sends.set_queued(&self.from, self.ticket, false));
        }
    }

    fn sends<T>(&self, with: impl FnOnce(&mut SendLanes) -> T) -> T {
        with(&mut self.lanes.0.claims.lock().sends)
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        self.sends(|sends| sends.leave(&self.from, self.ticket));
    }
}

/// An order for which a single pass stays, until this is dropped.
pub(super) struct Kept(Lanes);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.0.initial.release();
    }
}

/// The right to give an order, until it is dropped.
pub(super) struct Claim {
    lanes: Lanes,
    of: Of,
}

enum Of {
    Take(HostName, Vec<DatasetName>, String),
    Send(Place),
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
            Of::Send(from) => claims.sends.end(from),
            Of::Destroy(place) => claims.sends.end_destroy(place),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;

    fn place(text: &str) -> Place {
        let (host, dataset) = text.split_once(':').unwrap();
        Place { host: host.parse().unwrap(), dataset: dataset.parse().unwrap() }
    }

    fn at(minute: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_428_000 + minute * 60, 0).unwrap()
    }

    fn send(to: &str) -> Order {
        Order::Send {
            entry: 0,
            host: "alpha".parse().unwrap(),
            dataset: "tank/a".parse().unwrap(),
            snapshot: "S_1".parse().unwrap(),
            guid: crate::model::Guid(1),
            to: place(to),
            allowed: Default::default(),
            route: Default::default(),
            policy: "sync".into(),
            reason: String::new(),
            oldest_unsent: at(0),
            deadline: None,
        }
    }

    /// A transfer of alpha:tank/a that waits for its turn.
    fn waits(
        lanes: &Lanes,
        to: &str,
        turn: Turn,
        pass: PassNumber,
    ) -> Option<impl Future<Output = (OrderSlot, Claim)>> {
        let wish = lanes.wish(&place("alpha:tank/a"), &place(to), turn, pass)?;
        let order = send(to);
        Some(Box::pin(async move { wish.granted(&order).await }))
    }

    #[test]
    fn dataset_is_not_sent_twice_nor_pruned_meanwhile() {
        future::block_on(async {
            let lanes = Lanes::default();
            let (from, to) = (place("alpha:tank/a"), place("beta:pool/a"));
            let running = waits(&lanes, "beta:pool/a", at(0).into(), 1).unwrap().await;
            assert!(waits(&lanes, "beta:pool/a", at(0).into(), 2).is_none(), "another pass has it running");
            assert!(lanes.is_sent_by_another(&from, 2) && !lanes.is_sent_by_another(&from, 1));
            let mut other = waits(&lanes, "gamma:pool/a", at(0).into(), 2).unwrap();
            assert!(waits(&lanes, "gamma:pool/a", at(0).into(), 3).is_none(), "another pass has it waiting");
            assert!(future::poll_once(&mut other).await.is_none());
            assert!(lanes.claim_destroy(&from).is_none() && lanes.claim_destroy(&to).is_none());
            let elsewhere = lanes.claim_destroy(&place("beta:pool/b"));
            assert!(elsewhere.is_some() && lanes.claim_destroy(&place("beta:pool/b")).is_none());
            drop(running);
            let running = future::poll_once(&mut other).await.unwrap();
            assert!(lanes.claim_destroy(&to).is_some());
            drop(running);
            // Nor does a transfer begin where something is destroyed.
            for place in [from, to] {
                let destroy = lanes.claim_destroy(&place).unwrap();
                let mut sending = waits(&lanes, "beta:pool/a", at(0).into(), 3).unwrap();
                assert!(future::poll_once(&mut sending).await.is_none());
                drop(destroy);
                assert!(future::poll_once(&mut sending).await.is_some());
            }
        });
    }

    #[test]
    fn least_slack_goes_first_whenever_it_came() {
        future::block_on(async {
            let lanes = Lanes::default();
            let running = waits(&lanes, "beta:pool/a", at(0).into(), 1).unwrap().await;
            // In the order in which they come, with the minute by which they have to begin.
            let wanted = [
                ("gamma:pool/a", None),
                ("delta:pool/a", Some(90)),
                ("eta:pool/a", Some(30)),
                ("zeta:pool/a", Some(60)),
            ];
            let mut waiting = Vec::new();
            for (pass, (to, start_by)) in wanted.into_iter().enumerate() {
                let turn = Turn::new(at(0), start_by.map(at));
                waiting.push((to, waits(&lanes, to, turn, 2 + pass as u64).unwrap()));
            }
            let mut ended = Vec::new();
            let mut held = Some(running);
            while !waiting.is_empty() {
                for (_, waits) in &mut waiting {
                    assert!(future::poll_once(waits).await.is_none(), "one at a time");
                }
                drop(held.take());
                // Whoever is asked first.
                while held.is_none() {
                    for index in 0..waiting.len() {
                        if let Some(begun) = future::poll_once(&mut waiting[index].1).await {
                            held = Some(begun);
                            ended.push(waiting.remove(index).0);
                            break;
                        }
                    }
                }
            }
            assert_eq!(ended, ["eta:pool/a", "zeta:pool/a", "delta:pool/a", "gamma:pool/a"]);
            drop(held);
            assert!(!lanes.is_sent_by_another(&place("alpha:tank/a"), 9), "nothing is left");
        });
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
