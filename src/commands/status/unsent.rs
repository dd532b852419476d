//! Estimates how many bytes each destination still lacks. The agents that would send them make the estimates, now or
//! for the latest plan.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::actions::health::{Health, Row};
use crate::actions::{DueSend, Order, SendVerdict, decide};
use crate::fleet::Dispatcher;
use crate::fleet::estimate::{Answers, Questions};
use crate::fleet::planned::PlannedOrder;
use crate::model::{Counter, DatasetName, HostName, Inventory, Place};
use crate::policy::Policy;
use crate::sys::runtime;
use crate::zfs::Zfs;

/// How long all estimates together may take. Estimates that are missing by then count as unknown.
const ESTIMATED_WITHIN: Duration = Duration::from_secs(20);

/// Asks the agents for estimates.
pub async fn estimate<Z: Zfs>(
    health: &mut Health,
    policy: &Arc<Policy>,
    inventory: &Inventory,
    agents: &Arc<Dispatcher<Z>>,
) {
    let mut transfers = transfers(health, policy, inventory);
    let questions = Questions::about(&mut transfers, policy, inventory);
    let answers = runtime::timeout(ESTIMATED_WITHIN, questions.ask(policy, agents, &Counter::default()))
        .await
        .unwrap_or_default();
    questions.put(&mut transfers, &answers);
    store(health, &transfers);
}

/// Uses the estimates of the latest plan, where that plan asked an agent the same question about a transfer.
pub fn recall(health: &mut Health, policy: &Policy, inventory: &Inventory, answers: &Answers) {
    let mut transfers = transfers(health, policy, inventory);
    Questions::about(&mut transfers, policy, inventory).put(&mut transfers, answers);
    store(health, &transfers);
}

/// The transfers that would bring every destination up to date, whether they are due or not.
fn transfers(health: &Health, policy: &Policy, inventory: &Inventory) -> Vec<PlannedOrder> {
    let mut plan = decide(policy, inventory, health.at);
    let rows: BTreeMap<_, &Row> = health.rows.iter().filter_map(|row| Some((Replication::of(row)?, row))).collect();
    plan.sends.retain_mut(|send| {
        let Some(row) = rows.get(&Replication::of_send(send)).filter(|row| row.behind.is_some_and(|behind| behind > 0))
        else {
            return false;
        };
        let newest = row.newest.as_ref().and_then(|newest| {
            let of = inventory.dataset(&row.host, &row.dataset)?;
            of.snapshots.iter().rfind(|s| s.name == newest.name)
        });
        let Some((snapshot, oldest_unsent)) = newest.zip(row.unsent_since) else { return false };
        let (name, guid) = (snapshot.name.clone(), snapshot.guid);
        send.due.get_or_insert(DueSend { snapshot: name, guid, oldest_unsent, newest_there: None, slot: None });
        true
    });
    let sends = plan.orders(policy).into_iter().filter(|order| matches!(order, Order::Send { .. }));
    sends.map(|order| PlannedOrder { order, after: None, refused: None, estimate: None }).collect()
}

/// A source and a destination of a policy.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Replication<'a>(usize, &'a str, &'a HostName, &'a DatasetName, &'a Place);

impl<'a> Replication<'a> {
    fn of(row: &'a Row) -> Option<Self> {
        Some(Self(row.entry, &row.policy, &row.host, &row.dataset, row.to.as_ref()?))
    }

    fn of_send(SendVerdict { subject, to, .. }: &'a SendVerdict) -> Self {
        Self(subject.entry, &subject.policy, &subject.host, &subject.dataset, to)
    }
}

/// Stores the estimates in the health report.
fn store(health: &mut Health, transfers: &[PlannedOrder]) {
    let mut bytes = BTreeMap::new();
    for PlannedOrder { order, estimate, .. } in transfers {
        if let (Order::Send { entry, policy, host, dataset, to, .. }, Some(estimate)) = (order, estimate) {
            bytes.entry(Replication(*entry, policy, host, dataset, to)).or_insert(estimate.bytes);
        }
    }
    for row in &mut health.rows {
        row.unsent_bytes = match row.behind {
            Some(0) => Some(0),
            _ => Replication::of(row).and_then(|replication| bytes.get(&replication).copied()?),
        };
    }
}
