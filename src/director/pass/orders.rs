//! Gives the orders of a pass, and records how they end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::actions::{Occupied, Order};
use crate::catalog::{CatalogError, CatalogWrite, Outcome};
use crate::director::lanes::{Claim, Kept, Wish};
use crate::director::pass::{Pass, is_take};
use crate::director::progress::{Rank, RunningOrder};
use crate::director::transfer_steps::{self, Step, destination, is_unsent, transfer_steps};
use crate::fleet::Moment;
use crate::fleet::dispatch::wire_order;
use crate::fleet::live_status::RestingOrder;
use crate::model::{Action, Counter, DatasetName, Guid, OrderId, Place, ResponseStatus, Turn, tags};
use crate::sys::runtime::channel;
use crate::sys::{clock, runtime};
use crate::wire::{DirectorsOrder, Response};
use crate::zfs::Zfs;

/// A transfer that is due.
struct Planned {
    order: Order,
    kept: Option<Kept>,
    /// Its place among the transfers of its dataset, unless another pass has it already or it comes after others.
    wish: Option<Wish>,
}

/// An order, with the claim that was made when it was decided, if any was.
type Claimed = (Order, Option<Claim>);

impl<Z: Zfs, C: CatalogWrite + ?Sized + 'static> Pass<Z, C> {
    /// Carries out transfers that were `decided` at a moment. A dataset is sent to one destination at a time, and what
    /// another pass has running or waiting is left to it.
    pub(super) async fn send(&self, due: impl IntoIterator<Item = Order>, decided: Moment) -> Result<(), CatalogError> {
        let (resting, due): (Vec<Order>, Vec<Order>) = due.into_iter().partition(|order| self.rests(order));
        let Some(host) = due.first().map(|order| order.host().clone()) else { return Ok(()) };
        // The orders of one entry are for one host.
        let is_sent = |dataset: &DatasetName| {
            let from = Place { host: host.clone(), dataset: dataset.clone() };
            self.lanes.is_sent_by_another(&from, self.number)
        };
        let steps = transfer_steps(due, &self.state.inventory(), is_sent, |order| self.turn(order));
        // The destinations at which nothing has arrived.
        let failed: Arc<Mutex<BTreeSet<Place>>> =
            Arc::new(Mutex::new(resting.iter().filter_map(destination).cloned().collect()));
        let signals: Vec<_> = steps.iter().map(|_| channel::bounded::<()>(1)).collect();
        let ended: Vec<_> = signals.iter().map(|(_, ended)| ended.clone()).collect();
        let mut chains = Vec::new();
        for (Step { orders, after }, (has_ended, _)) in steps.into_iter().zip(signals) {
            let after: Vec<_> = after.into_iter().map(|step| ended[step].clone()).collect();
            let orders = orders.into_iter().map(|order| Planned {
                kept: self.lanes.keep(&order),
                wish: if after.is_empty() { self.wish(&order) } else { None },
                order,
            });
            let (pass, orders, failed) = (self.clone(), orders.collect::<Vec<_>>(), Arc::clone(&failed));
            chains.push(async move {
                for step in &after {
                    // The channel is only ever closed.
                    let _ = step.recv().await;
                }
                let orders = orders.into_iter().map(|planned| {
                    let wish = if after.is_empty() { planned.wish } else { pass.wish(&planned.order) };
                    let wish = wish.filter(|_| !pass.lacks_parent(&planned.order, &failed.lock()));
                    pass.clone().send_planned(Planned { wish, ..planned }, decided, Arc::clone(&failed))
                });
                let mut orders: Vec<_> = orders.collect();
                match orders.pop() {
                    Some(only) if orders.is_empty() => only.await?,
                    last => side_by_side(orders.into_iter().chain(last)).await?,
                }
                has_ended.close();
                Ok(())
            });
        }
        side_by_side(chains).await
    }

    /// Carries out a transfer, and notes its destination if nothing has arrived there.
    async fn send_planned(
        self,
        Planned { kept, wish, order }: Planned,
        decided: Moment,
        failed: Arc<Mutex<BTreeSet<Place>>>,
    ) -> Result<(), CatalogError> {
        let to = destination(&order).cloned();
        let outcome = match wish {
            Some(wish) => self.send_one(order, wish, decided).await?,
            None => None,
        };
        drop(kept);
        if !outcome.is_some_and(|outcome| outcome.success) {
            failed.lock().extend(to);
        }
        Ok(())
    }

    /// Lets a transfer wait for its turn among those of its dataset; `None` if another pass has it running or waiting, or
    /// if this pass begins nothing more.
    fn wish(&self, order: &Order) -> Option<Wish> {
        let Order::Send { host, dataset, to, .. } = order else { return None };
        if self.begins_nothing() {
            return None;
        }
        let from = Place { host: host.clone(), dataset: dataset.clone() };
        self.lanes.wish(&from, to, self.turn(order), self.number)
    }

    /// Carries out a transfer once it is its turn. It keeps its place when the next pass takes over, so that each gets
    /// its turn.
    async fn send_one(&self, order: Order, wish: Wish, decided: Moment) -> Result<Option<Outcome>, CatalogError> {
        let Order::Send { to, .. } = &order else { return Ok(None) };
        let (slot, claim) = wish.granted(&order).await;
        let is_late = self.over.0.is_closed();
        if self.begins_no_order() {
            return Ok(None);
        }
        let is_stale = is_late || self.state.is_touched_since(decided, &to.host, &to.dataset);
        let order = if is_stale && !self.is_saved { self.decided_again(order) } else { Some(order) };
        let Some(order) = order else { return Ok(None) };
        let outcome = self.carry_out(&order).await;
        drop((slot, claim));
        outcome.map(Some)
    }

    /// The transfer as it is decided now; `None` if there is nothing left to send. A transfer that was due because of its
    /// schedule stays due.
    fn decided_again(&self, order: Order) -> Option<Order> {
        let Order::Send { dataset, to, .. } = &order else { return None };
        let is_same = |other: &Order| matches!(other, Order::Send { dataset: d, to: t, .. } if d == dataset && t == to);
        let inventory = self.state.inventory();
        // If two policies send a dataset to one destination, the last of them comes after the others.
        if let Some(same) = self.decided_orders(order.entry(), &inventory).into_iter().rfind(is_same) {
            return Some(same);
        }
        is_unsent(&order, &inventory).then_some(order)
    }

    /// Carries out destroys side by side, except in datasets on which other passes work. These are returned.
    pub(super) async fn destroy(&self, orders: Vec<Order>) -> Result<Vec<Place>, CatalogError> {
        // The parts of a large order share one claim.
        let mut by_place: BTreeMap<Place, Vec<Order>> = BTreeMap::new();
        for order in orders {
            if let Order::Destroy { host, dataset, .. } = &order {
                by_place.entry(Place { host: host.clone(), dataset: dataset.clone() }).or_default().push(order);
            }
        }
        let (mut claimed, mut busy) = (Vec::new(), Vec::new());
        for (place, orders) in by_place {
            match self.lanes.claim_destroy(&place) {
                Some(claim) => claimed.push((orders, Arc::new(claim))),
                None => busy.push(place),
            }
        }
        let chains = claimed.into_iter().flat_map(|(orders, claim)| {
            orders.into_iter().map(move |order| {
                let (pass, claim) = (self.clone(), Arc::clone(&claim));
                async move {
                    pass.carry_out_in_turn(&order).await?;
                    drop(claim);
                    Ok(())
                }
            })
        });
        side_by_side(chains).await?;
        Ok(busy)
    }

    /// Records an order that is not given, for this reason.
    pub(super) async fn refuse(
        &self,
        order: &Order,
        status: ResponseStatus,
        reason: String,
    ) -> Result<(), CatalogError> {
        let id = OrderId(uuid::Uuid::now_v7());
        let outcome = outcome(order, id, &Response::failure(Some(id), status, reason));
        self.state.record_outcome(outcome.clone()).await?;
        self.lanes.progress().end(self.rank(order), &outcome);
        Ok(())
    }

    /// Whether the parent of a transfer's destination does not exist and has just failed to arrive.
    fn lacks_parent(&self, order: &Order, failed: &BTreeSet<Place>) -> bool {
        let Order::Send { to, .. } = order else { return false };
        let Some(parent) = to.dataset.parent().map(|dataset| Place { host: to.host.clone(), dataset }) else {
            return false;
        };
        failed.contains(&parent) && self.state.inventory().dataset(&parent.host, &parent.dataset).is_none()
    }

    /// Carries out chains of takes side by side, each chain in sequence.
    pub(super) async fn carry_out_chains(
        &self,
        chains: impl IntoIterator<Item = Vec<Claimed>>,
    ) -> Result<(), CatalogError> {
        let chains = chains.into_iter().map(|orders| {
            let pass = self.clone();
            async move {
                for (order, claim) in orders {
                    let _kept = pass.lanes.keep(&order);
                    pass.carry_out_in_turn(&order).await?;
                    drop(claim);
                }
                Ok(())
            }
        });
        side_by_side(chains).await
    }

    /// Carries out an order once there is room for it, also if another pass has taken over in the meantime: that one has
    /// left out what is claimed.
    async fn carry_out_in_turn(&self, order: &Order) -> Result<Option<Outcome>, CatalogError> {
        let _slot = self.lanes.slots().wait(order, self.turn(order)).await;
        if self.begins_no_order() { Ok(None) } else { self.carry_out(order).await.map(Some) }
    }

    /// Dispatches one order, and stores what it changed.
    async fn carry_out(&self, order: &Order) -> Result<Outcome, CatalogError> {
        let fence = self.fence()?;
        let wire = {
            // The inventory is always locked before what was destroyed.
            let inventory = self.state.inventory();
            self.destroyed.lock().add(order, &inventory, self.now());
            let start_by = self.state.durations().start_by(order);
            DirectorsOrder { fence, start_by, ..wire_order(order, &self.policy, &inventory) }
        };
        let host = order.host();
        self.lanes.initial().given(order);
        let counter = Counter::default();
        let unfinished =
            Response::failure(Some(wire.order_uuid), ResponseStatus::Unreachable, "the order has not ended");
        self.lanes.progress().begin(RunningOrder {
            outcome: outcome(order, wire.order_uuid, &unfinished),
            since: Instant::now(),
            counter: counter.clone(),
        });
        let (response, facts) = self.dispatcher.ask(&self.policy, host, &wire, counter).await;
        let facts = self.lanes.firsthand().admit(order, facts, self.state.moment());
        let guid_before = self.guid_of_copy(order);
        let outcome = outcome(order, wire.order_uuid, &response);
        let storing = async {
            self.state.apply_facts(host, facts).await?;
            self.lanes.firsthand().stored(order, self.state.moment());
            self.list_renamed(order, guid_before).await?;
            self.rest_after(order, &outcome);
            if response.unpublished {
                self.state.mark_unpublished(host);
            }
            self.state.record_outcome(outcome.clone()).await
        };
        let stored = storing.await;
        // The order has ended, also if the catalog has failed.
        self.lanes.progress().end(self.rank(order), &outcome);
        stored.map(|()| outcome)
    }

    /// Whether an order has failed several times in a row and is not to be given yet. A saved plan says itself what is to
    /// be done.
    pub(super) fn rests(&self, order: &Order) -> bool {
        let inventory = self.state.inventory();
        let returns = |place: &Place| self.state.returns(&place.host);
        !self.is_saved && self.lanes.rests().rests(order, self.now(), &inventory, returns)
    }

    /// Records how an order has ended, which decides when it may be given again.
    fn rest_after(&self, order: &Order, outcome: &Outcome) {
        let inventory = self.state.inventory();
        let returns = |place: &Place| self.state.returns(&place.host);
        self.lanes.rests().ended(order, outcome.success, self.now(), &inventory, returns);
        self.lanes.initial().ended(order, outcome.success, self.now(), &inventory);
        drop(inventory);
        self.note_resting();
    }

    /// Returns the orders that are not given again yet, and shows them in the status.
    pub(super) fn note_resting(&self) -> Vec<RestingOrder> {
        let resting = self.lanes.rests().resting(self.now());
        self.lanes.progress().note_resting(resting.clone());
        resting
    }

    /// The guid of a transfer's destination, if it is known.
    fn guid_of_copy(&self, order: &Order) -> Option<Guid> {
        let Order::Send { to, .. } = order else { return None };
        self.state.inventory().dataset(&to.host, &to.dataset).and_then(|copy| copy.guid)
    }

    /// Asks the destination's host again for what a transfer may have renamed there: the copy under the former name of
    /// its source, or all that was below a copy that has been set aside. Nothing else tells that these names are gone.
    async fn list_renamed(&self, order: &Order, guid_before: Option<Guid>) -> Result<(), CatalogError> {
        let Order::Send { to, route, .. } = order else { return Ok(()) };
        let is_replaced = guid_before.is_some_and(|before| self.guid_of_copy(order).is_some_and(|now| now != before));
        let below = is_replaced.then_some(&to.dataset);
        let former = route.renamed.as_ref().map(|renamed| &renamed.dataset);
        let names: BTreeSet<DatasetName> = {
            let inventory = self.state.inventory();
            let Some(known) = inventory.hosts.get(&to.host) else { return Ok(()) };
            let tops = below.into_iter().chain(former);
            let names = tops.flat_map(|top| known.within(top)).map(|(name, _)| name.clone());
            // A copy that gave way has a name that no listing has shown yet. Its own transfer is decided by that.
            let is_displaced = route.occupied == Some(Occupied::Displace);
            let between = tags::name_between(&to.dataset).ok().filter(|_| is_displaced);
            let names = names.chain(between);
            names.filter(|name| *name != to.dataset).collect()
        };
        if names.is_empty() {
            return Ok(());
        }
        let fleet = (&*self.policy, &*self.dispatcher, &self.state);
        let failed = self.lanes.firsthand().ask_for(&[(to.host.clone(), names)].into(), fleet, self.fence()?).await?;
        for (host, reason) in failed {
            log::debug!("cannot list what was renamed on {host}: {reason}");
        }
        Ok(())
    }

    /// The turn of an order in queues.
    fn turn(&self, order: &Order) -> Turn {
        transfer_steps::turn(order, self.state.durations().start_by(order))
    }

    /// Where an order stands in the report.
    fn rank(&self, order: &Order) -> Rank {
        let entry = self.policy.datasets.get(order.entry());
        Rank {
            group: entry.map(|entry| (entry.hostname.clone(), entry.dataset.clone())),
            step: u8::from(!is_take(order)),
            entry: order.entry(),
            is_destroy: matches!(order, Order::Destroy { .. }),
        }
    }
}

/// Runs chains of orders side by side.
async fn side_by_side(
    chains: impl IntoIterator<Item = impl Future<Output = Result<(), CatalogError>> + Send + 'static>,
) -> Result<(), CatalogError> {
    let chains: Vec<_> = chains.into_iter().collect();
    runtime::side_by_side(usize::MAX, chains).await.into_iter().collect()
}

/// The outcome of an order to which a host has responded.
fn outcome(order: &Order, order_id: OrderId, response: &Response) -> Outcome {
    let (action, dataset, snapshot, to) = match order {
        Order::Take { name, datasets, .. } => (Action::TakeSnapshot, datasets.first(), Some(name), None),
        Order::Send { dataset, snapshot, to, .. } => (Action::SendSnapshot, Some(dataset), Some(snapshot), Some(to)),
        Order::Destroy { dataset, snapshots, .. } => {
            let only = if let [(_, only)] = snapshots.as_slice() { Some(only) } else { None };
            (Action::DestroySnapshot, Some(dataset), only, None)
        }
    };
    Outcome {
        order_id,
        at: clock::now(),
        host: order.host().clone(),
        action,
        dataset: dataset.cloned(),
        snapshot: snapshot.cloned(),
        to: to.cloned(),
        success: response.is_success,
        status: Some(response.status),
        bytes: response.bytes,
        seconds: response.millis as f64 / 1000.0,
        error: Some(response.error.clone()).filter(|error| !error.is_empty()),
        hint: response.hint.clone(),
    }
}
