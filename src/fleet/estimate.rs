//! Estimates how much the orders of a plan would send and free. The agents are asked with orders that change nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::actions::Order;
use crate::actions::divergence::{Allowed, Remedy, remedy};
use crate::actions::steps::{Base, Step, Transfer, steps};
use crate::catalog::Estimated;
use crate::fleet::planned::{After, Estimate, PlannedOrder, Totals};
use crate::fleet::poll::SIDE_BY_SIDE;
use crate::fleet::{Dispatcher, fitting, wire_order};
use crate::model::{Action, Counter, DatasetInventory, HostName, Inventory, OrderId, Place, Snapshot, tags};
use crate::policy::Policy;
use crate::sys::{clock, runtime};
use crate::wire::{CommonBase, DirectorsOrder, Response};
use crate::zfs::Zfs;

/// How many estimates one host makes at once. Each is a process that reads metadata of a pool.
const PER_HOST: usize = 4;
/// The namespace of the UUIDs of questions.
const NAMESPACE: Uuid = Uuid::from_u128(0x7a73_796e_6300_5a46_8000_6573_7469_6d61);

/// A question to an agent about a part of one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    host: HostName,
    wire: DirectorsOrder,
}

/// The way to find the size of one order.
#[derive(Debug, PartialEq, Eq)]
enum Method {
    /// The order sends and frees nothing.
    NoSize,
    /// The estimate can be made without an agent.
    Known(Estimate),
    /// Agents have to answer these questions. The order moves this number of bytes in addition.
    Ask(Vec<Question>, u64),
}

/// The questions about a plan's orders, each with the index of its order.
pub struct Questions(Vec<(usize, Question)>);

impl Questions {
    /// Adds the estimates that can be made without an agent to the orders, and returns the questions about the others.
    /// `inventory` is the present one, not the predicted one.
    #[must_use]
    pub fn about(orders: &mut [PlannedOrder], policy: &Policy, inventory: &Inventory) -> Self {
        let mut questions = Vec::new();
        for (index, planned) in orders.iter_mut().enumerate() {
            planned.estimate = match method(planned, policy, inventory) {
                Method::NoSize => None,
                Method::Known(estimate) => Some(estimate),
                Method::Ask(about, known) => {
                    questions.extend(about.into_iter().map(|question| (index, question)));
                    Some(Estimate::of(known))
                }
            };
        }
        Self(questions)
    }

    /// Asks the agents. `answered` counts the answers.
    pub async fn ask<Z: Zfs>(
        &self,
        policy: &Arc<Policy>,
        dispatcher: &Arc<Dispatcher<Z>>,
        answered: &Counter,
    ) -> Answers {
        answered.expect(self.0.len() as u64);
        let mut by_host: BTreeMap<&HostName, Vec<&Question>> = BTreeMap::new();
        for (_, question) in &self.0 {
            by_host.entry(&question.host).or_default().push(question);
        }
        let hosts = by_host.into_values().map(|questions| {
            let asking = questions.into_iter().map(|question| {
                let (policy, dispatcher) = (Arc::clone(policy), Arc::clone(dispatcher));
                question.clone().ask(policy, dispatcher, answered.clone())
            });
            let asking: Vec<_> = asking.collect();
            runtime::side_by_side(PER_HOST, asking)
        });
        let hosts: Vec<_> = hosts.collect();
        runtime::side_by_side(SIDE_BY_SIDE, hosts).await.into_iter().flatten().collect()
    }

    /// Adds the answers to the orders. An order of which a part was not answered gets no estimate.
    pub fn put(self, orders: &mut [PlannedOrder], answers: &Answers) -> Totals {
        let mut at = None;
        for (index, question) in self.0 {
            let Some(planned) = orders.get_mut(index) else { continue };
            planned.estimate = planned.estimate.take().zip(answers.get(&question.key())).map(|(before, answer)| {
                at = at.into_iter().chain([answer.at]).min();
                before.and(Estimate { bytes: answer.bytes, remark: answer.remark.clone() })
            });
        }
        Totals { at, ..Totals::of(orders) }
    }
}

/// The answers, by the question's UUID.
pub type Answers = BTreeMap<Uuid, Estimated>;

impl Question {
    /// Asks the agent. Returns the answer with the question's key.
    async fn ask<Z: Zfs>(
        self,
        policy: Arc<Policy>,
        dispatcher: Arc<Dispatcher<Z>>,
        answered: Counter,
    ) -> (Uuid, Estimated) {
        let (response, _) = dispatcher.ask(&policy, &self.host, &self.wire, Counter::default()).await;
        answered.add(1);
        (self.key(), answer(&response))
    }

    /// Identifies the question: the same question about the same snapshots has the same key.
    fn key(&self) -> Uuid {
        let wire = DirectorsOrder { order_uuid: OrderId(Uuid::nil()), ..self.wire.clone() };
        let text = serde_json::to_string(&wire).unwrap_or_default();
        Uuid::new_v5(&NAMESPACE, format!("{} {text}", self.host).as_bytes())
    }
}

/// The answer in an agent's response. An older agent refuses the question, as it does every action that it does not
/// know.
fn answer(response: &Response) -> Estimated {
    let bytes = response.estimate.filter(|_| response.is_success);
    let remark = match (bytes, response.message()) {
        (None, error) if error.is_empty() => "ZFS reports no estimate".to_owned(),
        (_, error) => error,
    };
    Estimated { at: clock::now(), bytes, remark }
}

/// Chooses how to find the size of an order.
fn method(planned: &PlannedOrder, policy: &Policy, inventory: &Inventory) -> Method {
    match &planned.order {
        Order::Take { .. } => Method::NoSize,
        Order::Destroy { host, dataset, snapshots, .. } => {
            let present = inventory.dataset(host, dataset);
            let exists = |guid| present.is_some_and(|present| present.by_guid(guid).is_some());
            if !snapshots.iter().any(|(guid, _)| exists(*guid)) {
                return Method::Known(Estimate::unknown("the snapshots do not exist yet"));
            }
            let question = |order: Order| {
                let mut wire =
                    DirectorsOrder { action: Action::EstimateDestroy, ..wire_order(&order, policy, inventory) };
                if planned.after.is_some() {
                    // The orders before this one change what would prevent the destroy now.
                    wire.keep_common_with.clear();
                    wire.follows = true;
                }
                Question { host: host.clone(), wire }
            };
            Method::Ask(fitting(planned.order.clone()).into_iter().map(question).collect(), 0)
        }
        Order::Send { host, dataset, to, allowed, route, .. } => {
            if planned.after == Some(After::Send) {
                return Method::Known(Estimate::unknown("the snapshot has not arrived yet"));
            }
            let is_listed = |host: &HostName| inventory.hosts.get(host).is_some_and(|known| known.observed.is_some());
            if let Some(unseen) = [host, &to.host].into_iter().find(|host| !is_listed(host)) {
                return Method::Known(Estimate::unknown(format!("{unseen} could not be listed")));
            }
            let Some(source) = inventory.dataset(host, dataset) else {
                return Method::Known(Estimate::unknown(format!("{dataset} does not exist")));
            };
            // A copy that is renamed first has the same snapshots then.
            let renamed = || {
                let old = Place { host: to.host.clone(), dataset: route.renamed.as_ref()?.dataset.clone() };
                inventory.dataset(&old.host, &old.dataset).filter(|_| tags::was_sent(source, &old))
            };
            // What is there now may be another copy, which goes away first.
            let there = || inventory.dataset(&to.host, &to.dataset);
            let destination =
                if route.occupied.is_some() { renamed().or_else(there) } else { there().or_else(renamed) };
            transfer(planned, source, destination, *allowed, policy, inventory)
        }
    }
}

/// How to find the size of a transfer: the agent estimates what exists already, and the size of snapshots that are not
/// taken yet is added.
fn transfer(
    planned: &PlannedOrder,
    source: &DatasetInventory,
    destination: Option<&DatasetInventory>,
    allowed: Allowed,
    policy: &Policy,
    inventory: &Inventory,
) -> Method {
    let Order::Send { host, to, .. } = &planned.order else { return Method::NoSize };
    let ours: Vec<Snapshot> = source.snapshots.iter().filter(|s| !s.marks.deleted).cloned().collect();
    // A snapshot that is not taken yet will contain what was written since the newest snapshot.
    let written = if planned.after.is_some() { source.written } else { Some(0) };
    let Some(written) = written else {
        return Method::Known(Estimate::unknown("it is unknown how much was written since the newest snapshot"));
    };
    let target = match (&planned.order, planned.after) {
        (Order::Send { guid, .. }, None) => Some(*guid),
        _ => ours.last().map(|s| s.guid),
    };
    let Some(target) = target else { return Method::Known(Estimate::of(written)) };
    let theirs = destination.map(|destination| destination.snapshots.as_slice()).unwrap_or_default();
    let common = match steps(&to.dataset, &ours, &source.bookmarks, theirs, None, None, target) {
        Ok(Transfer::Steps { steps }) => match steps.into_iter().next() {
            Some(Step::Incremental { from: Base::Snapshot(base) | Base::Bookmark(base), .. }) => Some(base.guid),
            _ => None,
        },
        Ok(_) => return Method::Known(Estimate::of(written)),
        Err(conflict) => match remedy(&conflict.clone().into(), allowed) {
            // After the rollback, the destination is at the common snapshot.
            Remedy::Rollback { to, .. } => Some(to),
            // The destination is set aside, so the transfer begins with a full stream.
            Remedy::SetAside => None,
            Remedy::Stop | Remedy::Replace => return Method::Known(Estimate::unknown(conflict.to_string())),
        },
    };
    let mut order = planned.order.clone();
    if let Order::Send { guid, .. } = &mut order {
        *guid = target;
    }
    let base = |guid| CommonBase { host: to.host.clone(), dataset: to.dataset.clone(), guid, awaits: false };
    let wire = DirectorsOrder {
        action: Action::EstimateSend,
        keep_common_with: common.map(base).into_iter().collect(),
        resume_token: destination.and_then(|destination| destination.resume_token.clone()),
        ..wire_order(&order, policy, inventory)
    };
    Method::Ask(vec![Question { host: host.clone(), wire }], written)
}
