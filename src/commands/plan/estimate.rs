//! How much the orders of a plan would send and free: asked of the agents by orders that change nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::foresee::{After, Foreseen};
use crate::actions::Order;
use crate::actions::steps::{Base, Conflict, Step, Transfer, steps};
use crate::commands::director::{Dispatcher, fitting, wire_order};
use crate::model::{Action, Counter, DatasetInventory, HostName, Inventory, Snapshot};
use crate::policy::Policy;
use crate::runtime;
use crate::wire::{CommonBase, DirectorsOrder, Response};
use crate::zfs::Zfs;

/// How many estimates one host makes at once: each is a process that walks through a pool.
const AT_ONCE: usize = 4;
/// How many hosts are asked at once.
const SIDE_BY_SIDE: usize = 64;

/// What a transfer would send, or a destroy would free.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Bytes; `None` where nobody can tell.
    pub bytes: Option<u64>,
    /// Why nobody can tell, or what the agent would leave out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remark: String,
}

/// All estimates together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Bytes that would be sent, as far as known.
    pub send: u64,
    /// Bytes that would be freed, as far as known. Several destroys of one dataset may free more together.
    pub free: u64,
    /// Of how many orders nobody can tell.
    pub unknown: usize,
}

/// A question to an agent about a part of one order.
#[derive(Debug, PartialEq, Eq)]
struct Question {
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

impl Estimate {
    fn of(bytes: u64) -> Self {
        Self { bytes: Some(bytes), remark: String::new() }
    }

    fn unknown(remark: impl Into<String>) -> Self {
        Self { bytes: None, remark: remark.into() }
    }

    /// Two parts of one order.
    fn and(self, other: Self) -> Self {
        let bytes = self.bytes.zip(other.bytes).map(|(a, b)| a.saturating_add(b));
        let remarks: Vec<String> = [self.remark, other.remark].into_iter().filter(|r| !r.is_empty()).collect();
        Self { bytes, remark: remarks.join("; ") }
    }
}

impl Totals {
    /// Adds up what is known of some orders.
    #[must_use]
    pub fn of(orders: &[Foreseen]) -> Self {
        let mut totals = Self::default();
        for Foreseen { order, estimate, .. } in orders {
            match (order, estimate.as_ref().map(|e| e.bytes)) {
                (_, None) => {}
                (_, Some(None)) => totals.unknown += 1,
                (Order::Destroy { .. }, Some(Some(bytes))) => totals.free = totals.free.saturating_add(bytes),
                (_, Some(Some(bytes))) => totals.send = totals.send.saturating_add(bytes),
            }
        }
        totals
    }
}

/// Puts the estimates to the orders. `inventory` is how the world is now, as the agents have just told.
pub async fn ask<Z: Zfs>(
    orders: &mut [Foreseen],
    policy: &Arc<Policy>,
    inventory: &Inventory,
    dispatcher: &Arc<Dispatcher<Z>>,
) {
    let mut questions: BTreeMap<HostName, Vec<(usize, DirectorsOrder)>> = BTreeMap::new();
    for (index, foreseen) in orders.iter_mut().enumerate() {
        foreseen.estimate = match wanted(foreseen, policy, inventory) {
            Wanted::Nothing => None,
            Wanted::Known(estimate) => Some(estimate),
            Wanted::Ask(asked, known) => {
                for Question { host, wire } in asked {
                    questions.entry(host).or_default().push((index, wire));
                }
                Some(Estimate::of(known))
            }
        };
    }
    let hosts = questions.into_iter().map(|(host, asked)| {
        let (policy, dispatcher) = (Arc::clone(policy), Arc::clone(dispatcher));
        async move {
            let answers = asked.into_iter().map(|(index, wire)| {
                let (host, policy, dispatcher) = (host.clone(), Arc::clone(&policy), Arc::clone(&dispatcher));
                async move { (index, answer(dispatcher.ask(&policy, &host, &wire, Counter::default()).await.0)) }
            });
            runtime::side_by_side(AT_ONCE, answers).await
        }
    });
    for (index, estimate) in runtime::side_by_side(SIDE_BY_SIDE, hosts).await.into_iter().flatten() {
        if let Some(foreseen) = orders.get_mut(index) {
            foreseen.estimate = Some(foreseen.estimate.take().unwrap_or_default().and(estimate));
        }
    }
}

/// What an agent says. One that does not know the question refuses it, as it does every action that it does not know.
fn answer(response: Response) -> Estimate {
    let bytes = response.estimate.filter(|_| response.is_success);
    let remark = match (bytes, response.error) {
        (None, said) if said.is_empty() => "ZFS does not tell".to_owned(),
        (_, said) => said,
    };
    Estimate { bytes, remark }
}

fn wanted(foreseen: &Foreseen, policy: &Policy, inventory: &Inventory) -> Wanted {
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
        Order::Send { host, dataset, to, rollback_if_needed, .. } => {
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
            transfer(foreseen, source, there, *rollback_if_needed, policy, inventory)
        }
    }
}

/// What a transfer moves: what is there already, and what is yet to be snapshotted.
fn transfer(
    foreseen: &Foreseen,
    source: &DatasetInventory,
    there: Option<&DatasetInventory>,
    rollback: bool,
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
    let common = match steps(&live, &source.bookmarks, theirs, None, target) {
        Ok(Transfer::Steps { steps }) => match steps.into_iter().next() {
            Some(Step::Incremental { from: Base::Snapshot(base) | Base::Bookmark(base), .. }) => Some(base.guid),
            _ => None,
        },
        Ok(_) => return Wanted::Known(Estimate::of(fresh)),
        // Rolled back, it is at the common snapshot.
        Err(Conflict::Diverged { common, .. }) if rollback => Some(common.guid),
        Err(conflict) => return Wanted::Known(Estimate::unknown(conflict.to_string())),
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
