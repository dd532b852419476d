//! What a pass of the director would do in the end: its orders, and those that follow from them in the same pass.
//!
//! Pure: the world in which orders have been carried out is a prediction.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};

use crate::actions::{Engine, Order, predict};
use crate::fleet::planned::{After, PlannedOrder};
use crate::model::{DatasetName, Guid, HostName, Inventory, Place, SnapName};
use crate::policy::Policy;

/// For how long a dataset in which nothing was written is taken to stay so.
const STILL_UNWRITTEN: TimeDelta = TimeDelta::minutes(5);

/// The orders of one entry in one pass, in the order in which they are carried out.
#[derive(Debug, Default)]
pub struct Played {
    /// Snapshots to take.
    pub takes: Vec<Order>,
    /// What is sent once they are taken.
    pub sends: Vec<Order>,
    /// What is destroyed once it is sent.
    pub destroys: Vec<Order>,
}

/// A policy with the world that its orders change.
pub struct Future<'a> {
    policy: &'a Policy,
    engine: Engine<'a>,
    /// The world as predicted so far.
    pub inventory: Inventory,
}

impl<'a> Future<'a> {
    /// Begins with a world as it is known at a moment.
    #[must_use]
    pub fn new(policy: &'a Policy, mut inventory: Inventory, at: DateTime<Utc>) -> Self {
        for host in inventory.hosts.values_mut() {
            // That nothing was written was so when the host was listed; since then anything may have been.
            if host.observed.is_none_or(|observed| at - observed > STILL_UNWRITTEN) {
                host.datasets.values_mut().for_each(|dataset| dataset.written = None);
            }
        }
        Self { policy, engine: Engine::new(policy), inventory }
    }

    /// Decides everything, and changes nothing.
    #[must_use]
    pub fn decide(&self, at: DateTime<Utc>) -> crate::actions::Plan {
        self.engine.decide(&self.inventory, at)
    }

    /// Decides one entry, and changes nothing.
    #[must_use]
    pub fn decide_entry(&self, entry: usize, at: DateTime<Utc>) -> crate::actions::Plan {
        self.engine.decide_entry(entry, &self.inventory, at)
    }

    /// Makes the world what it would be with these orders carried out.
    pub fn carry_out(&mut self, orders: &[Order], at: DateTime<Utc>) {
        predict(&mut self.inventory, orders, at);
    }

    fn orders(&self, entry: usize, at: DateTime<Utc>) -> Vec<Order> {
        self.engine.decide_entry(entry, &self.inventory, at).orders(self.policy)
    }

    /// Carries out one entry as the director does: takes; transfers that were due before or are now; destroys.
    pub fn play(&mut self, entry: usize, at: DateTime<Utc>) -> Played {
        let first = self.orders(entry, at);
        self.play_from(entry, first, at)
    }

    /// The same, where what is due at first is known.
    pub fn play_from(&mut self, entry: usize, first: Vec<Order>, at: DateTime<Utc>) -> Played {
        let mut played = Played::default();
        let mut due: Vec<Order> = Vec::new();
        for order in first {
            match order {
                Order::Take { .. } => played.takes.push(order),
                Order::Send { .. } => due.push(order),
                Order::Destroy { .. } => played.destroys.push(order),
            }
        }
        if !played.takes.is_empty() {
            predict(&mut self.inventory, &played.takes, at);
            let again = self.orders(entry, at);
            played.destroys.clear();
            for order in again {
                match order {
                    Order::Take { .. } => {}
                    Order::Send { .. } => due.push(order),
                    Order::Destroy { .. } => played.destroys.push(order),
                }
            }
        }
        played.sends = newest_of_each(due);
        if !played.sends.is_empty() {
            predict(&mut self.inventory, &played.sends, at);
            played.destroys = self.orders(entry, at);
            played.destroys.retain(|o| matches!(o, Order::Destroy { .. }));
        }
        predict(&mut self.inventory, &played.destroys, at);
        played
    }
}

/// Of several transfers of a dataset to one destination the last one, which brings the others' snapshots along.
/// Parents come before their children, as the director has them carried out.
fn newest_of_each(due: Vec<Order>) -> Vec<Order> {
    let mut by_level: BTreeMap<(usize, DatasetName, Place), Order> = BTreeMap::new();
    for order in due {
        if let Order::Send { dataset, to, .. } = &order {
            by_level.insert((dataset.as_str().matches('/').count(), dataset.clone(), to.clone()), order);
        }
    }
    by_level.into_values().collect()
}

/// What was due before anything was carried out.
#[derive(Default)]
struct Now {
    sends: HashSet<(HostName, DatasetName, Guid, Place)>,
    destroyed: HashMap<(HostName, DatasetName), HashSet<Guid>>,
}

impl Now {
    fn of(orders: &[Order]) -> Self {
        let mut now = Self::default();
        for order in orders {
            match order {
                Order::Take { .. } => {}
                Order::Send { host, dataset, guid, to, .. } => {
                    now.sends.insert((host.clone(), dataset.clone(), *guid, to.clone()));
                }
                Order::Destroy { host, dataset, snapshots, .. } => {
                    let place = now.destroyed.entry((host.clone(), dataset.clone()));
                    place.or_default().extend(snapshots.iter().map(|(guid, _)| *guid));
                }
            }
        }
        now
    }
}

/// Everything that one pass would do at a moment. `now` are the orders that are due in `inventory` as it is.
///
/// Entries are played in the policy's order; the director works on those of different datasets side by side, so that
/// what follows from another entry's orders may have to wait for its next pass.
#[must_use]
pub fn foresee(policy: &Policy, inventory: Inventory, now: Vec<Order>, at: DateTime<Utc>) -> Vec<PlannedOrder> {
    let due = Now::of(&now);
    let mut first: HashMap<usize, Vec<Order>> = HashMap::new();
    for order in now {
        first.entry(order.entry()).or_default().push(order);
    }
    let mut future = Future::new(policy, inventory, at);
    // Hosts whose world is not what `now` was decided on.
    let mut changed: HashSet<HostName> = HashSet::new();
    let (mut takes, mut sends, mut destroys) = (Vec::new(), Vec::new(), Vec::new());
    for (entry, of) in policy.datasets.iter().enumerate() {
        let mut hosts =
            std::iter::once(&of.hostname).chain(of.policies.iter().flat_map(|p| &p.sync_on).map(|target| &target.host));
        let known = first.remove(&entry).unwrap_or_default();
        let played = if hosts.clone().any(|host| changed.contains(host)) {
            future.play(entry, at)
        } else if known.is_empty() {
            continue;
        } else {
            future.play_from(entry, known, at)
        };
        let acted = !(played.takes.is_empty() && played.sends.is_empty() && played.destroys.is_empty());
        if acted {
            changed.extend(hosts.by_ref().cloned());
        }
        let after = if played.sends.is_empty() { After::Take } else { After::Send };
        let taken: HashSet<(&DatasetName, &SnapName)> = played.takes.iter().flat_map(taken).collect();
        for order in &played.sends {
            let Order::Send { host, dataset, snapshot, guid, to, .. } = order else { continue };
            let after = if due.sends.contains(&(host.clone(), dataset.clone(), *guid, to.clone())) {
                None
            } else if taken.contains(&(dataset, snapshot)) {
                Some(After::Take)
            } else {
                Some(After::Send)
            };
            sends.push(PlannedOrder::new(order.clone(), after));
        }
        for order in played.destroys {
            destroys.extend(split(&order, &due, after));
        }
        takes.extend(played.takes.into_iter().map(|order| PlannedOrder::new(order, None)));
    }
    takes.into_iter().chain(sends).chain(destroys).collect()
}

fn taken(order: &Order) -> impl Iterator<Item = (&DatasetName, &SnapName)> {
    let (datasets, name): (&[DatasetName], Option<&SnapName>) = match order {
        Order::Take { datasets, name, .. } => (datasets, Some(name)),
        Order::Send { .. } | Order::Destroy { .. } => (&[], None),
    };
    datasets.iter().filter_map(move |dataset| Some((dataset, name?)))
}

/// The part of a destroy that is due now, and the part that becomes possible later in the pass.
fn split(order: &Order, due: &Now, after: After) -> Vec<PlannedOrder> {
    let Order::Destroy { host, dataset, snapshots, .. } = order else { return Vec::new() };
    let now = due.destroyed.get(&(host.clone(), dataset.clone()));
    let is_due = |guid: &Guid| now.is_some_and(|now| now.contains(guid));
    let (first, rest): (Vec<_>, Vec<_>) = snapshots.iter().cloned().partition(|(guid, _)| is_due(guid));
    let part = |part: Vec<(Guid, SnapName)>, after: Option<After>| {
        let mut order = order.clone();
        if let Order::Destroy { snapshots, bytes, .. } = &mut order {
            // What the parts hold is known only of the whole.
            *bytes = if snapshots.len() == part.len() { *bytes } else { 0 };
            *snapshots = part;
        }
        PlannedOrder::new(order, after)
    };
    let parts = [(first, None), (rest, Some(after))];
    parts.into_iter().filter(|(snapshots, _)| !snapshots.is_empty()).map(|(s, after)| part(s, after)).collect()
}
