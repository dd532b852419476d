//! How much the orders of a plan would send and free: asked of the agents by orders that change nothing.

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
use crate::model::{Action, Counter, DatasetInventory, HostName, Inventory, OrderId, Snapshot};
use crate::policy::Policy;
use crate::sys::{clock, runtime};
use crate::wire::{CommonBase, DirectorsOrder, Response};
use crate::zfs::Zfs;

/// How many estimates one host makes at once: each is a process that walks through a pool.
const AT_ONCE: usize = 4;
/// Of the UUIDs of questions.
const NAMESPACE: Uuid = Uuid::from_u128(0x7a73_796e_6300_5a46_8000_6573_7469_6d61);

/// A question to an agent about a part of one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    host: HostName,
    wire: DirectorsOrder,
}

/// What is to be found out about one order.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// It moves nothing.
    Nothing,
    /// It is known already.
    Known(Estimate),
    /// The agents' answers, together with what is known already.
    Ask(Vec<Question>, u64),
}

/// The questions about a plan's orders, each with the place of its order.
pub struct Questions(Vec<(usize, Question)>);

impl Questions {
    /// Puts to the orders what is known without asking, and gives the questions about the others. `inventory` is how the
    /// world is now.
    #[must_use]
    pub fn about(orders: &mut [PlannedOrder], policy: &Policy, inventory: &Inventory) -> Self {
        let mut questions = Vec::new();
        for (index, foreseen) in orders.iter_mut().enumerate() {
            foreseen.estimate = match wanted(foreseen, policy, inventory) {
                Wanted::Nothing => None,
                Wanted::Known(estimate) => Some(estimate),
                Wanted::Ask(asked, known) => {
                    questions.extend(asked.into_iter().map(|question| (index, question)));
                    Some(Estimate::of(known))
                }
            };
        }
        Self(questions)
    }

    /// Asks the agents; `asked` counts the answers.
    pub async fn ask<Z: Zfs>(&self, policy: &Arc<Policy>, dispatcher: &Arc<Dispatcher<Z>>, asked: &Counter) -> Answers {
        asked.expect(self.0.len() as u64);
        let mut by_host: BTreeMap<&HostName, Vec<&Question>> = BTreeMap::new();
        for (_, question) in &self.0 {
            by_host.entry(&question.host).or_default().push(question);
        }
        let hosts: Vec<_> = by_host
            .into_values()
            .map(|questions| {
                let answers: Vec<_> = questions
                    .into_iter()
                    .map(|question| {
                        let (question, policy, dispatcher) =
                            (question.clone(), Arc::clone(policy), Arc::clone(dispatcher));
                        let asked = asked.clone();
                        async move {
                            let (response, _) =
                                dispatcher.ask(&policy, &question.host, &question.wire, Counter::default()).await;
                            asked.add(1);
                            (question.key(), answer(&response))
                        }
                    })
                    .collect();
                runtime::side_by_side(AT_ONCE, answers)
            })
            .collect();
        runtime::side_by_side(SIDE_BY_SIDE, hosts).await.into_iter().flatten().collect()
    }

    /// Puts the answers to the orders. One of which a part is not answered has no estimate.
    pub fn put(self, orders: &mut [PlannedOrder], answers: &Answers) -> Totals {
        let mut at = None;
        for (index, question) in self.0 {
            let Some(foreseen) = orders.get_mut(index) else { continue };
            foreseen.estimate = foreseen.estimate.take().zip(answers.get(&question.key())).map(|(before, answer)| {
                at = at.into_iter().chain([answer.at]).min();
                before.and(Estimate { bytes: answer.bytes, remark: answer.remark.clone() })
            });
        }
        Totals { at, ..Totals::of(orders) }
    }
}

/// What was answered, by the question's UUID.
pub type Answers = BTreeMap<Uuid, Estimated>;

impl Question {
    /// The same for the same question about the same snapshots.
    fn key(&self) -> Uuid {
        let wire = DirectorsOrder { order_uuid: OrderId(Uuid::nil()), ..self.wire.clone() };
        let text = serde_json::to_string(&wire).unwrap_or_default();
        Uuid::new_v5(&NAMESPACE, format!("{} {text}", self.host).as_bytes())
    }
}

/// What an agent says. One that does not know the question refuses it, as it does every action that it does not know.
fn answer(response: &Response) -> Estimated {
    let bytes = response.estimate.filter(|_| response.is_success);
    let remark = match (bytes, response.message()) {
        (None, said) if said.is_empty() => "ZFS does not tell".to_owned(),
        (_, said) => said,
    };
    Estimated { at: clock::now(), bytes, remark }
}

fn wanted(foreseen: &PlannedOrder, policy: &Policy, inventory: &Inventory) -> Wanted {
    match &foreseen.order {
        Order::Take { .. } => Wanted::Nothing,
        Order::Destroy { host, dataset, snapshots, .. } => {
            let held = inventory.dataset(host, dataset);
            if !snapshots.iter().any(|(guid, _)| held.is_some_and(|held| held.by_guid(*guid).is_some())) {
                return Wanted::Known(Estimate::unknown("what goes has yet to come"));
            }
            let ask = |order: Order| {
                let mut wire =
                    DirectorsOrder { action: Action::EstimateDestroy, ..wire_order(&order, policy, inventory) };
                if foreseen.after.is_some() {
                    // What stands against it now is what the orders before it change.
                    wire.keep_common_with.clear();
                }
                Question { host: host.clone(), wire }
            };
            Wanted::Ask(fitting(foreseen.order.clone()).into_iter().map(ask).collect(), 0)
        }
        Order::Send { host, dataset, to, allowed, .. } => {
            if foreseen.after == Some(After::Send) {
                return Wanted::Known(Estimate::unknown("it has yet to come here"));
            }
            let seen = |host: &HostName| inventory.hosts.get(host).is_some_and(|known| known.observed.is_some());
            if let Some(unseen) = [host, &to.host].into_iter().find(|host| !seen(host)) {
                return Wanted::Known(Estimate::unknown(format!("{unseen} could not be looked at")));
            }
            let Some(source) = inventory.dataset(host, dataset) else {
                return Wanted::Known(Estimate::unknown(format!("{dataset} is not there")));
            };
            let there = inventory.dataset(&to.host, &to.dataset);
            transfer(foreseen, source, there, *allowed, policy, inventory)
        }
    }
}

/// What a transfer moves: what is there already, and what is yet to be snapshotted.
fn transfer(
    foreseen: &PlannedOrder,
    source: &DatasetInventory,
    there: Option<&DatasetInventory>,
    allowed: Allowed,
    policy: &Policy,
    inventory: &Inventory,
) -> Wanted {
    let Order::Send { host, to, .. } = &foreseen.order else { return Wanted::Nothing };
    let live: Vec<Snapshot> = source.snapshots.iter().filter(|s| !s.marks.deleted).cloned().collect();
    // What the snapshot before it will hold is what was written since the newest one.
    let fresh = if foreseen.after.is_some() { source.written } else { Some(0) };
    let Some(fresh) = fresh else { return Wanted::Known(Estimate::unknown("nobody knows what was written")) };
    let target = match (&foreseen.order, foreseen.after) {
        (Order::Send { guid, .. }, None) => Some(*guid),
        _ => live.last().map(|s| s.guid),
    };
    let Some(target) = target else { return Wanted::Known(Estimate::of(fresh)) };
    let theirs = there.map(|t| t.snapshots.as_slice()).unwrap_or_default();
    let common = match steps(&live, &source.bookmarks, theirs, None, None, target) {
        Ok(Transfer::Steps { steps }) => match steps.into_iter().next() {
            Some(Step::Incremental { from: Base::Snapshot(base) | Base::Bookmark(base), .. }) => Some(base.guid),
            _ => None,
        },
        Ok(_) => return Wanted::Known(Estimate::of(fresh)),
        Err(conflict) => match remedy(&conflict.clone().into(), allowed) {
            // Rolled back, it is at the common snapshot.
            Remedy::Rollback { to, .. } => Some(to),
            // Set aside, it begins anew.
            Remedy::SetAside => None,
            Remedy::Stop | Remedy::Replace => return Wanted::Known(Estimate::unknown(conflict.to_string())),
        },
    };
    let mut order = foreseen.order.clone();
    if let Order::Send { guid, .. } = &mut order {
        *guid = target;
    }
    let has = |guid| CommonBase { host: to.host.clone(), dataset: to.dataset.clone(), guid, awaits: false };
    let wire = DirectorsOrder {
        action: Action::EstimateSend,
        keep_common_with: common.map(has).into_iter().collect(),
        resume_token: there.and_then(|there| there.resume_token.clone()),
        ..wire_order(&order, policy, inventory)
    };
    Wanted::Ask(vec![Question { host: host.clone(), wire }], fresh)
}
