//! Gives the orders of a pass, and records how they end.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::actions::Order;
use crate::catalog::{CatalogError, CatalogWrite, Outcome};
use crate::director::pass::Pass;
use crate::director::progress::RunningOrder;
use crate::director::transfer_levels::transfer_levels;
use crate::fleet::dispatch::wire_order;
use crate::model::{Action, Counter, OrderId, Place, ResponseStatus};
use crate::sys::{clock, runtime};
use crate::wire::{DirectorsOrder, Response};
use crate::zfs::Zfs;

impl<Z: Zfs, C: CatalogWrite + ?Sized + 'static> Pass<Z, C> {
    /// Carries out transfers, one at a time for each source dataset.
    pub(super) async fn send(&self, due: impl IntoIterator<Item = Order>) -> Result<Vec<Outcome>, CatalogError> {
        let levels = transfer_levels(due, &self.state.inventory());
        let mut outcomes = Vec::new();
        let mut failed: BTreeSet<Place> = BTreeSet::new();
        for mut level in levels {
            for orders in &mut level {
                orders.retain(|order| !self.lacks_parent(order, &failed));
            }
            for outcome in self.carry_out_chains(level).await? {
                if let (false, Some(to)) = (outcome.success, &outcome.to) {
                    failed.insert(to.clone());
                }
                outcomes.push(outcome);
            }
        }
        Ok(outcomes)
    }

    /// Records an order that is not given, for this reason.
    pub(super) async fn refuse(
        &self,
        order: &Order,
        status: ResponseStatus,
        reason: String,
    ) -> Result<Outcome, CatalogError> {
        let id = OrderId(uuid::Uuid::now_v7());
        let outcome = outcome(order, id, &Response::failure(Some(id), status, reason));
        self.state.record_outcome(outcome.clone()).await?;
        Ok(outcome)
    }

    /// Whether the parent of a transfer's destination does not exist and has just failed to arrive.
    fn lacks_parent(&self, order: &Order, failed: &BTreeSet<Place>) -> bool {
        let Order::Send { to, .. } = order else { return false };
        let Some(parent) = to.dataset.parent().map(|dataset| Place { host: to.host.clone(), dataset }) else {
            return false;
        };
        failed.contains(&parent) && self.state.inventory().dataset(&parent.host, &parent.dataset).is_none()
    }

    /// Carries out chains of orders side by side, each chain in sequence.
    pub(super) async fn carry_out_chains(
        &self,
        chains: impl IntoIterator<Item = Vec<Order>>,
    ) -> Result<Vec<Outcome>, CatalogError> {
        let chains = chains.into_iter().map(|orders| {
            let pass = self.clone();
            async move {
                let mut outcomes = Vec::new();
                for order in orders {
                    let _slot = pass.slots.wait(&order).await;
                    if !pass.progress.is_stopped() {
                        outcomes.push(pass.carry_out(&order).await?);
                    }
                }
                Ok(outcomes)
            }
        });
        let chains: Vec<_> = chains.collect();
        let results: Vec<Result<Vec<Outcome>, CatalogError>> = runtime::side_by_side(usize::MAX, chains).await;
        let mut outcomes = Vec::new();
        for result in results {
            outcomes.extend(result?);
        }
        Ok(outcomes)
    }

    /// Dispatches one order, and stores what it changed.
    async fn carry_out(&self, order: &Order) -> Result<Outcome, CatalogError> {
        let fence = self.fence()?;
        self.destroyed.lock().add(order, &self.state.inventory(), self.now());
        let wire = DirectorsOrder { fence, ..wire_order(order, &self.policy, &self.state.inventory()) };
        let host = order.host();
        let counter = Counter::default();
        let unfinished =
            Response::failure(Some(wire.order_uuid), ResponseStatus::Unreachable, "the order has not ended");
        self.progress.begin(RunningOrder {
            outcome: outcome(order, wire.order_uuid, &unfinished),
            since: Instant::now(),
            counter: counter.clone(),
        });
        let (response, facts) = self.dispatcher.ask(&self.policy, host, &wire, counter).await;
        self.state.apply_facts(host, self.firsthand.admit(order, facts)).await?;
        if response.unpublished {
            self.state.mark_unpublished(host);
        }
        let outcome = outcome(order, wire.order_uuid, &response);
        self.state.record_outcome(outcome.clone()).await?;
        self.progress.end(&outcome);
        Ok(outcome)
    }
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
