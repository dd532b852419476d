//! Predicts a whole pass of the director: the orders that are due now, and the orders that follow from them in the same
//! pass.
//!
//! This is pure: orders are carried out only in a predicted inventory.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};

use crate::actions::{Destroyed, Engine, Intervention, Notice, Order, Plan, groups, held_copy, predict, predict_order};
use crate::director::{is_unsent, transfer_steps, turn};
use crate::fleet::durations::KnownDurations;
use crate::fleet::obstacles::Obstacles;
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
    fn of(orders: impl IntoIterator<Item = Order>) -> Self {
        let mut all = Self::default();
        for order in orders {
            match order {
                Order::Take { .. } => all.takes.push(order),
                Order::Send { .. } => all.sends.push(order),
                Order::Destroy { .. } => all.destroys.push(order),
            }
        }
        all
    }
}

/// A policy with a predicted inventory, which the policy's orders change.
pub struct PredictedFleet<'a> {
    policy: &'a Policy,
    engine: Engine<'a>,
    obstacles: Obstacles,
    /// Copies on other hosts that have received, each with the snapshot whose hold was released by that. The director
    /// learns of the release only when it lists the copy again, which it does before it destroys anything there.
    released: BTreeMap<Place, (HostName, Option<Guid>)>,
    /// What has been destroyed so far.
    destroyed: Destroyed,
    /// The transfers that fail although no obstacle stands in their way, each with the reason. Two entries may send a
    /// dataset to one destination.
    failures: HashMap<(usize, HostName, DatasetName, Guid, Place), String>,
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
        Self {
            policy,
            engine: Engine::new(policy),
            obstacles: Obstacles::default(),
            released: BTreeMap::new(),
            destroyed: Destroyed::default(),
            failures: HashMap::new(),
            inventory,
        }
    }

    /// Decides the whole policy. Changes nothing.
    #[must_use]
    pub fn decide(&self, at: DateTime<Utc>) -> Plan {
        self.engine.decide_after(&self.inventory, at, &self.destroyed)
    }

    /// Decides one entry. Changes nothing.
    #[must_use]
    pub fn decide_entry(&self, entry: usize, at: DateTime<Utc>) -> Plan {
        self.engine.decide_entry_after(entry, &self.inventory, at, &self.destroyed)
    }

    /// Changes the inventory as these orders would.
    pub fn apply(&mut self, orders: &[Order], at: DateTime<Utc>) {
        predict(&mut self.inventory, orders, at);
    }

    /// This fleet, in which orders fail because of these obstacles.
    #[must_use]
    pub fn with_obstacles(self, obstacles: Obstacles) -> Self {
        Self { obstacles, ..self }
    }

    /// Carries out an order, unless an obstacle stands in its way. Returns whether it succeeds.
    fn carry_out(&mut self, order: &Order, at: DateTime<Utc>) -> bool {
        if self.obstacles.objection(order).is_some() {
            return false;
        }
        // A destination that could not be listed stays so in this pass, whatever its host receives.
        let receiver = if let Order::Send { to, .. } = order { Some(&to.host) } else { None };
        let is_unlisted =
            |host: &&HostName| self.inventory.hosts.get(*host).is_none_or(|known| known.observed.is_none());
        let unlisted = receiver.filter(is_unlisted);
        let held = self.held_copy(order);
        let permits = |intervention: Intervention<'_>| self.obstacles.permits(intervention, order.host());
        self.destroyed.add(order, &self.inventory, at);
        let result = predict_order(&mut self.inventory, order, at, &permits);
        if let Some(receiver) = unlisted.and_then(|host| self.inventory.hosts.get_mut(host)) {
            receiver.observed = None;
        }
        match (result, order) {
            (Ok(()), Order::Send { host, to, .. }) => {
                self.note_permission(to);
                if to.host != *host {
                    // The hold moves only with the cursor.
                    let held = held.filter(|held| self.held_copy(order) != Some(*held));
                    // A second transfer finds what the first one has released.
                    if let Some((_, before)) = self.released.insert(to.clone(), (host.clone(), held)) {
                        self.release(to, before);
                    }
                }
            }
            (Err(reason), Order::Send { entry, host, dataset, guid, to, .. }) => {
                self.failures.insert((*entry, host.clone(), dataset.clone(), *guid, to.clone()), reason);
                return false;
            }
            _ => {}
        }
        true
    }

    /// Notes of a copy whether it is append-only, as its host does when it has received.
    fn note_permission(&mut self, of: &Place) {
        let Some(local) = self.obstacles.permits.get(&of.host) else { return };
        let append_only = Some(local.permission_to_destroy(&of.dataset).is_err());
        let copy = self.inventory.hosts.get_mut(&of.host).and_then(|host| host.datasets.get_mut(&of.dataset));
        copy.into_iter().for_each(|copy| copy.append_only = append_only);
    }

    /// The snapshot of a transfer's destination that the last transfer has held.
    fn held_copy(&self, order: &Order) -> Option<Guid> {
        let Order::Send { host, dataset, to, route, .. } = order else { return None };
        let source = self.inventory.dataset(host, dataset)?;
        let renamed = route.renamed.as_ref();
        let copy = self.inventory.dataset(&to.host, &to.dataset);
        let former = || self.inventory.dataset(&to.host, &renamed?.dataset);
        held_copy(source, copy.or_else(former)?, to, renamed)
    }

    /// Releases a hold on a snapshot of a copy.
    fn release(&mut self, place: &Place, held: Option<Guid>) {
        let copy = self.inventory.hosts.get_mut(&place.host).and_then(|host| host.datasets.get_mut(&place.dataset));
        let snapshot = copy.and_then(|copy| copy.snapshots.iter_mut().find(|s| Some(s.guid) == held));
        snapshot.into_iter().for_each(|s| s.userrefs = s.userrefs.saturating_sub(1));
    }

    /// The destroys that are due in an entry. The copies that have received are listed again first, if anything is to
    /// be destroyed there.
    fn destroys(&mut self, entry: usize, at: DateTime<Utc>) -> Vec<Order> {
        let due = |fleet: &Self| -> Vec<Order> {
            fleet.due(entry, at).into_iter().filter(|order| matches!(order, Order::Destroy { .. })).collect()
        };
        let first = due(self);
        let listed: BTreeSet<Place> = first.iter().flat_map(|order| self.unlisted(order)).collect();
        if listed.is_empty() {
            return first;
        }
        for place in listed {
            let held = self.released.remove(&place).and_then(|(_, held)| held);
            self.release(&place, held);
        }
        due(self).into_iter().filter(|order| self.unlisted(order).is_empty()).collect()
    }

    /// The copies that have to be listed again before a destroy: its own dataset, and those with which it must keep
    /// something in common, unless the host that would lose the snapshots has reported them itself.
    fn unlisted(&self, order: &Order) -> Vec<Place> {
        let Order::Destroy { host, dataset, keep_common_with, .. } = order else { return Vec::new() };
        let own = Place { host: host.clone(), dataset: dataset.clone() };
        let own = self.released.contains_key(&own).then_some(own);
        let is_told_by_another = |peer: &&Place| self.released.get(*peer).is_some_and(|(reporter, _)| reporter != host);
        own.into_iter().chain(keep_common_with.iter().filter(is_told_by_another).cloned()).collect()
    }

    /// Carries out transfers step by step, as the director does: a transfer is dropped if the parent of its
    /// destination does not exist and has just failed to arrive. Returns those that are given.
    fn send(&mut self, due: Vec<Order>, at: DateTime<Utc>) -> Vec<Order> {
        // A preview does not know how long earlier transfers took.
        let durations = KnownDurations::default();
        let by_deadline = |order: &Order| turn(order, durations.start_by(order));
        let (mut given, mut failed) = (Vec::new(), HashSet::new());
        let steps = transfer_steps(due, &self.inventory, |_| false, by_deadline);
        for order in steps.into_iter().flat_map(|step| step.orders) {
            let Order::Send { to, .. } = &order else { continue };
            let parent = to.dataset.parent().map(|dataset| Place { host: to.host.clone(), dataset });
            let is_missing = |parent: &Place| self.inventory.dataset(&parent.host, &parent.dataset).is_none();
            if parent.is_some_and(|parent| failed.contains(&parent) && is_missing(&parent)) {
                // Nor do its children arrive.
                failed.insert(to.clone());
                continue;
            }
            if !self.carry_out(&order, at) {
                failed.insert(to.clone());
            }
            given.push(order);
        }
        given
    }

    fn due(&self, entry: usize, at: DateTime<Utc>) -> Vec<Order> {
        self.decide_entry(entry, at).orders(self.policy)
    }

    /// Carries out one entry in the inventory as the director does on hosts: takes, then transfers that were due before
    /// or are due now, then destroys.
    pub fn carry_out_entry(&mut self, entry: usize, at: DateTime<Utc>) -> EntryOrders {
        let mut orders = EntryOrders::of(self.due(entry, at));
        let has_taken = self.take(&orders, at);
        self.send_and_destroy(entry, &mut orders, has_taken, at);
        orders
    }

    /// Takes the snapshots among the orders of one entry, in the inventory. Returns whether there are any.
    fn take(&mut self, orders: &EntryOrders, at: DateTime<Utc>) -> bool {
        for order in &orders.takes {
            self.carry_out(order, at);
        }
        !orders.takes.is_empty()
    }

    /// Carries out the transfers and the destroys of one entry. They are decided again if the inventory has changed since
    /// `orders` were decided. Returns whether there are any.
    fn send_and_destroy(
        &mut self,
        entry: usize,
        orders: &mut EntryOrders,
        mut has_changed: bool,
        at: DateTime<Utc>,
    ) -> bool {
        let mut sends = std::mem::take(&mut orders.sends);
        if has_changed {
            sends.retain(|order| is_unsent(order, &self.inventory));
            sends.extend(self.due(entry, at).into_iter().filter(|order| matches!(order, Order::Send { .. })));
        }
        orders.sends = self.send(latest_of_each(sends), at);
        has_changed |= !orders.sends.is_empty();
        if has_changed {
            orders.destroys = self.destroys(entry, at);
        }
        for order in &orders.destroys {
            self.carry_out(order, at);
        }
        !orders.sends.is_empty() || !orders.destroys.is_empty()
    }
}

/// Keeps the last of several transfers of a dataset to one destination, because it also sends the snapshots of the
/// others.
fn latest_of_each(sends: Vec<Order>) -> Vec<Order> {
    let mut latest: BTreeMap<(DatasetName, Place), Order> = BTreeMap::new();
    for order in sends {
        if let Order::Send { dataset, to, .. } = &order {
            latest.insert((dataset.clone(), to.clone()), order);
        }
    }
    latest.into_values().collect()
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
/// `inventory`. Orders fail because of the `obstacles`, and nothing follows from them.
///
/// As in a pass, everything takes its snapshots first, and then entries that share datasets are carried out one after
/// another.
#[must_use]
pub fn foresee(
    policy: &Policy,
    inventory: Inventory,
    now: Vec<Order>,
    at: DateTime<Utc>,
    obstacles: &Obstacles,
) -> Foreseen {
    let due_now = DueNow::of(&now);
    let mut due: BTreeMap<usize, Vec<Order>> = BTreeMap::new();
    for order in now {
        due.entry(order.entry()).or_default().push(order);
    }
    let mut due: BTreeMap<usize, EntryOrders> =
        due.into_iter().map(|(entry, orders)| (entry, EntryOrders::of(orders))).collect();
    let mut fleet = PredictedFleet::new(policy, inventory, at).with_obstacles(obstacles.clone());
    let groups = groups(policy);
    // What is no longer as it was when `now` was decided, by cluster, and what has been sent.
    let (mut changed, mut sent) = (HashSet::new(), HashSet::new());
    for group in &groups {
        for orders in group.entries.iter().filter_map(|entry| due.get(entry)) {
            if fleet.take(orders, at) {
                changed.insert(group.cluster);
            }
        }
    }
    let mut planned = PlannedByKind::default();
    for group in &groups {
        for entry in &group.entries {
            let due = due.remove(entry);
            let has_changed = changed.contains(&group.cluster);
            if due.is_none() && !has_changed {
                continue;
            }
            let mut orders = due.unwrap_or_default();
            if fleet.send_and_destroy(*entry, &mut orders, has_changed, at) {
                changed.insert(group.cluster);
            }
            if !orders.sends.is_empty() {
                sent.insert(group.cluster);
            }
            planned.add(orders, sent.contains(&group.cluster), &due_now);
        }
    }
    let mut all: Vec<PlannedOrder> = planned.takes.into_iter().chain(planned.sends).chain(planned.destroys).collect();
    for planned in &mut all {
        let objection = obstacles.objection(&planned.order);
        planned.refused = objection.or_else(|| match &planned.order {
            Order::Send { entry, host, dataset, guid, to, .. } => {
                fleet.failures.get(&(*entry, host.clone(), dataset.clone(), *guid, to.clone())).cloned()
            }
            Order::Take { .. } | Order::Destroy { .. } => None,
        });
    }
    // Without orders, nothing differs from what was decided for the present inventory.
    let notices = if all.is_empty() { Vec::new() } else { fleet.decide(at).notices };
    Foreseen { orders: all, held_back: notices.into_iter().filter(|notice| notice.kind.is_brake()).collect() }
}

/// What a pass is predicted to do.
pub struct Foreseen {
    /// Its orders.
    pub orders: Vec<PlannedOrder>,
    /// The destroys that are held back at its end.
    pub held_back: Vec<Notice>,
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
    ///
    /// `has_sent` tells whether it, or another entry that shares datasets with it, has sent something.
    fn add(&mut self, orders: EntryOrders, has_sent: bool, due_now: &DueNow) {
        let EntryOrders { takes, sends, destroys } = orders;
        let after = if has_sent { After::Send } else { After::Take };
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
        for order in destroys {
            let after = if is_due(&order, due_now) { None } else { Some(after) };
            self.destroys.push(PlannedOrder::new(order, after));
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

/// Whether every snapshot of a destroy could be destroyed now.
fn is_due(order: &Order, due_now: &DueNow) -> bool {
    let Order::Destroy { host, dataset, snapshots, .. } = order else { return false };
    let due = due_now.destroyed.get(&(host.clone(), dataset.clone()));
    due.is_some_and(|due| snapshots.iter().all(|(guid, _)| due.contains(guid)))
}
