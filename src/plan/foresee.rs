//! Predicts a whole pass of the director: the orders that are due now, and the orders that follow from them in the same
//! pass.
//!
//! This is pure: orders are carried out only in a predicted inventory.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};

use crate::actions::{Engine, Order, Plan, predict};
use crate::fleet::planned::{After, PlannedOrder};
use crate::model::{DatasetName, Guid, HostName, Inventory, Place, SnapName};
use crate::policy::Policy;

/// How long a dataset in which nothing was written is assumed to stay unwritten after its host was listed.
const UNWRITTEN_FOR: TimeDelta = TimeDelta::minutes(5);

/// The orders of one entry in one pass, in the sequence in which they are carried out.
#[derive(Debug, Default)]
pub struct EntryOrders {
    /// Snapshots to take.
    pub takes: Vec<Order>,
    /// Transfers that are due once the snapshots have been taken.
    pub sends: Vec<Order>,
    /// Destroys that are due once the transfers have ended.
    pub destroys: Vec<Order>,
}

impl EntryOrders {
    fn is_empty(&self) -> bool {
        self.takes.is_empty() && self.sends.is_empty() && self.destroys.is_empty()
    }
}

/// A policy with a predicted inventory, which the policy's orders change.
pub struct PredictedFleet<'a> {
    policy: &'a Policy,
    engine: Engine<'a>,
    /// The inventory after all orders so far.
    pub inventory: Inventory,
}

impl<'a> PredictedFleet<'a> {
    /// Begins with an inventory as it is known at a moment.
    #[must_use]
    pub fn new(policy: &'a Policy, mut inventory: Inventory, at: DateTime<Utc>) -> Self {
        for host in inventory.hosts.values_mut() {
            // A dataset may have been written since its host was listed.
            if host.observed.is_none_or(|observed| at - observed > UNWRITTEN_FOR) {
                host.datasets.values_mut().for_each(|dataset| dataset.written = None);
            }
        }
        Self { policy, engine: Engine::new(policy), inventory }
    }

    /// Decides the whole policy. Changes nothing.
    #[must_use]
    pub fn decide(&self, at: DateTime<Utc>) -> Plan {
        self.engine.decide(&self.inventory, at)
    }

    /// Decides one entry. Changes nothing.
    #[must_use]
    pub fn decide_entry(&self, entry: usize, at: DateTime<Utc>) -> Plan {
        self.engine.decide_entry(entry, &self.inventory, at)
    }

    /// Changes the inventory as these orders would.
    pub fn apply(&mut self, orders: &[Order], at: DateTime<Utc>) {
        predict(&mut self.inventory, orders, at);
    }

    fn due(&self, entry: usize, at: DateTime<Utc>) -> Vec<Order> {
        self.engine.decide_entry(entry, &self.inventory, at).orders(self.policy)
    }

    /// Carries out one entry in the inventory as the director does on hosts: takes, then transfers that were due before
    /// or are due now, then destroys.
    pub fn carry_out_entry(&mut self, entry: usize, at: DateTime<Utc>) -> EntryOrders {
        let due = self.due(entry, at);
        self.carry_out_due(entry, due, at)
    }

    /// Carries out one entry, whose orders `due` were decided before.
    pub fn carry_out_due(&mut self, entry: usize, due: Vec<Order>, at: DateTime<Utc>) -> EntryOrders {
        let mut orders = EntryOrders::default();
        let mut sends: Vec<Order> = Vec::new();
        for order in due {
            match order {
                Order::Take { .. } => orders.takes.push(order),
                Order::Send { .. } => sends.push(order),
                Order::Destroy { .. } => orders.destroys.push(order),
            }
        }
        if !orders.takes.is_empty() {
            self.apply(&orders.takes, at);
            orders.destroys.clear();
            for order in self.due(entry, at) {
                match order {
                    Order::Take { .. } => {}
                    Order::Send { .. } => sends.push(order),
                    Order::Destroy { .. } => orders.destroys.push(order),
                }
            }
        }
        orders.sends = latest_of_each(sends);
        if !orders.sends.is_empty() {
            self.apply(&orders.sends, at);
            orders.destroys = self.due(entry, at);
            orders.destroys.retain(|order| matches!(order, Order::Destroy { .. }));
        }
        self.apply(&orders.destroys, at);
        orders
    }
}

/// Keeps the last of several transfers of a dataset to one destination, because it also sends the snapshots of the
/// others. Sorts parents before their children, as the director does.
fn latest_of_each(sends: Vec<Order>) -> Vec<Order> {
    let mut by_level: BTreeMap<(usize, DatasetName, Place), Order> = BTreeMap::new();
    for order in sends {
        if let Order::Send { dataset, to, .. } = &order {
            by_level.insert((dataset.as_str().matches('/').count(), dataset.clone(), to.clone()), order);
        }
    }
    by_level.into_values().collect()
}

/// What is due before anything has been carried out.
#[derive(Default)]
struct DueNow {
    sends: HashSet<(HostName, DatasetName, Guid, Place)>,
    destroyed: HashMap<(HostName, DatasetName), HashSet<Guid>>,
}

impl DueNow {
    fn of(orders: &[Order]) -> Self {
        let mut due = Self::default();
        for order in orders {
            match order {
                Order::Take { .. } => {}
                Order::Send { host, dataset, guid, to, .. } => {
                    due.sends.insert((host.clone(), dataset.clone(), *guid, to.clone()));
                }
                Order::Destroy { host, dataset, snapshots, .. } => {
                    let destroyed = due.destroyed.entry((host.clone(), dataset.clone()));
                    destroyed.or_default().extend(snapshots.iter().map(|(guid, _)| *guid));
                }
            }
        }
        due
    }
}

/// Predicts everything that one pass would do at a moment. `now` has the orders that are due according to the present
/// `inventory`.
///
/// Entries are carried out in the policy's sequence. The director, however, works on the entries of different datasets
/// side by side. Orders that follow from another entry's orders may therefore have to wait for its next pass.
#[must_use]
pub fn foresee(policy: &Policy, inventory: Inventory, now: Vec<Order>, at: DateTime<Utc>) -> Vec<PlannedOrder> {
    let due_now = DueNow::of(&now);
    let mut due_by_entry: HashMap<usize, Vec<Order>> = HashMap::new();
    for order in now {
        due_by_entry.entry(order.entry()).or_default().push(order);
    }
    let mut fleet = PredictedFleet::new(policy, inventory, at);
    // Hosts whose inventory is no longer the one for which `now` was decided.
    let mut changed: HashSet<HostName> = HashSet::new();
    let mut planned = PlannedByKind::default();
    for (entry, of) in policy.datasets.iter().enumerate() {
        let mut hosts =
            std::iter::once(&of.hostname).chain(of.policies.iter().flat_map(|p| &p.sync_on).map(|target| &target.host));
        let due = due_by_entry.remove(&entry).unwrap_or_default();
        let orders = if hosts.clone().any(|host| changed.contains(host)) {
            fleet.carry_out_entry(entry, at)
        } else if due.is_empty() {
            continue;
        } else {
            fleet.carry_out_due(entry, due, at)
        };
        if !orders.is_empty() {
            changed.extend(hosts.by_ref().cloned());
        }
        planned.add(orders, &due_now);
    }
    planned.takes.into_iter().chain(planned.sends).chain(planned.destroys).collect()
}

/// The planned orders of several entries, by kind.
#[derive(Default)]
struct PlannedByKind {
    takes: Vec<PlannedOrder>,
    sends: Vec<PlannedOrder>,
    destroys: Vec<PlannedOrder>,
}

impl PlannedByKind {
    /// Adds the orders of an entry, each with the orders for which it waits.
    fn add(&mut self, orders: EntryOrders, due_now: &DueNow) {
        let EntryOrders { takes, sends, destroys } = orders;
        let after = if sends.is_empty() { After::Take } else { After::Send };
        let taken: HashSet<(&DatasetName, &SnapName)> = takes.iter().flat_map(snapshots_taken).collect();
        for order in &sends {
            let Order::Send { host, dataset, snapshot, guid, to, .. } = order else { continue };
            let after = if due_now.sends.contains(&(host.clone(), dataset.clone(), *guid, to.clone())) {
                None
            } else if taken.contains(&(dataset, snapshot)) {
                Some(After::Take)
            } else {
                Some(After::Send)
            };
            self.sends.push(PlannedOrder::new(order.clone(), after));
        }
        for order in &destroys {
            self.destroys.extend(split(order, due_now, after));
        }
        self.takes.extend(takes.into_iter().map(|order| PlannedOrder::new(order, None)));
    }
}

fn snapshots_taken(order: &Order) -> impl Iterator<Item = (&DatasetName, &SnapName)> {
    let (datasets, name): (&[DatasetName], Option<&SnapName>) = match order {
        Order::Take { datasets, name, .. } => (datasets, Some(name)),
        Order::Send { .. } | Order::Destroy { .. } => (&[], None),
    };
    datasets.iter().filter_map(move |dataset| Some((dataset, name?)))
}

/// Splits a destroy into the part that is due now and the part that becomes possible later in the pass.
fn split(order: &Order, due_now: &DueNow, after: After) -> Vec<PlannedOrder> {
    let Order::Destroy { host, dataset, snapshots, .. } = order else { return Vec::new() };
    let due = due_now.destroyed.get(&(host.clone(), dataset.clone()));
    let is_due = |guid: &Guid| due.is_some_and(|due| due.contains(guid));
    let (now, later): (Vec<_>, Vec<_>) = snapshots.iter().cloned().partition(|(guid, _)| is_due(guid));
    let part = |part: Vec<(Guid, SnapName)>, after: Option<After>| {
        let mut order = order.clone();
        if let Order::Destroy { snapshots, bytes, .. } = &mut order {
            // The size is known only for all snapshots together.
            *bytes = if snapshots.len() == part.len() { *bytes } else { 0 };
            *snapshots = part;
        }
        PlannedOrder::new(order, after)
    };
    let parts = [(now, None), (later, Some(after))];
    parts.into_iter().filter(|(snapshots, _)| !snapshots.is_empty()).map(|(s, after)| part(s, after)).collect()
}
