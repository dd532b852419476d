//! Determines the sequence of an entry's transfers.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::actions::route::ranks;
use crate::actions::{Occupied, Order};
use crate::model::Place;
use crate::model::{DatasetName, Inventory, Turn};

/// The transfers of one source dataset, the one whose turn is first coming first.
pub(crate) struct Step {
    /// The transfers, to one destination each.
    pub orders: Vec<Order>,
    /// The numbers of the steps that have to end before: all of them are earlier ones.
    pub after: Vec<usize>,
}

/// Sorts the transfers of one entry into steps, one for each source dataset. A step is carried out once those have ended
/// that it comes `after`, beside all others. A step whose first `turn` comes first, comes first.
///
/// - A parent comes before its children: a child cannot arrive if its parent is missing at the destination, and a
///   parent that is set aside takes its children along. A dataset does not wait for its parents if its copies exist and
///   must not be changed on divergence.
/// - A clone's origin comes before the first copy of the clone, which otherwise arrives as a full copy. Later copies do
///   not wait for it.
/// - A transfer that renames a copy comes before a transfer to the name that this sets free. Where two
///   copies exchange their names, the transfer that does it comes first.
///
/// What would have to come after a dataset that others are sending (`is_sent`) is left out.
pub(crate) fn transfer_steps(
    orders: impl IntoIterator<Item = Order>,
    inventory: &Inventory,
    is_sent: impl Fn(&DatasetName) -> bool,
    turn: impl Fn(&Order) -> Turn,
) -> Vec<Step> {
    let mut chains: BTreeMap<DatasetName, Vec<Order>> = BTreeMap::new();
    for order in orders {
        if let Order::Send { dataset, .. } = &order {
            chains.entry(dataset.clone()).or_default().push(order);
        }
    }
    let freed_names: BTreeMap<Place, &Order> =
        chains.values().flatten().filter_map(|order| Some((freed_name(order)?, order))).collect();
    let waits_for = |dataset: &DatasetName, chain: &Vec<Order>| {
        let origin = chain.iter().find_map(|order| origin(order, inventory)).cloned();
        let renamed = chain.iter().filter_map(|order| {
            let frees = freed_names.get(destination(order)?)?;
            let is_first = occupied(order) == Some(Occupied::Exchange) && occupied(frees) == Some(Occupied::Wait);
            if is_first { None } else { source(frees).cloned() }
        });
        let parents =
            if chain.iter().all(|order| is_settled(order, inventory)) { None } else { Some(dataset.ancestors()) };
        origin.into_iter().chain(renamed).chain(parents.into_iter().flatten()).collect()
    };
    let mut waiting: BTreeMap<DatasetName, Vec<DatasetName>> =
        chains.iter().map(|(dataset, chain)| (dataset.clone(), waits_for(dataset, chain))).collect();
    let mut left_out = BTreeSet::new();
    loop {
        let waits = |(_, others): &(&DatasetName, &Vec<DatasetName>)| {
            others.iter().any(|other| is_sent(other) || left_out.contains(other))
        };
        let found: Vec<DatasetName> = waiting.iter().filter(waits).map(|(dataset, _)| dataset.clone()).collect();
        if found.is_empty() {
            break;
        }
        for dataset in found {
            waiting.remove(&dataset);
            left_out.insert(dataset);
        }
    }
    chains.retain(|dataset, _| !left_out.contains(dataset));
    let ranks = ranks(&waiting);
    let rank = |dataset: &DatasetName| ranks.get(dataset).copied().unwrap_or_default();
    for chain in chains.values_mut() {
        // One destination may be in greater need than another of the same dataset.
        chain.sort_by_cached_key(&turn);
    }
    let mut sorted: Vec<(DatasetName, Vec<Order>)> = chains.into_iter().collect();
    sorted.sort_by_cached_key(|(dataset, chain)| (rank(dataset), chain.first().map(&turn)));
    let numbers: BTreeMap<DatasetName, usize> =
        sorted.iter().enumerate().map(|(number, (dataset, _))| (dataset.clone(), number)).collect();
    let steps = sorted.into_iter().enumerate().map(|(number, (dataset, orders))| {
        let others = waiting.get(&dataset).into_iter().flatten().filter_map(|other| numbers.get(other).copied());
        // In a circle, the ones that come later wait for the others.
        let after = others.filter(|other| *other < number).collect();
        Step { orders, after }
    });
    steps.collect()
}

/// Whether the source of a transfer that was decided earlier still has the snapshot, and the destination still lacks it.
pub(crate) fn is_unsent(order: &Order, inventory: &Inventory) -> bool {
    let Order::Send { host, dataset, guid, to, .. } = order else { return false };
    let has = |host, dataset| inventory.dataset(host, dataset).is_some_and(|d| d.by_guid(*guid).is_some());
    has(host, dataset) && !has(&to.host, &to.dataset)
}

/// The copy that the transfer renames before it sends, which frees its name.
fn freed_name(order: &Order) -> Option<Place> {
    let Order::Send { to, route, .. } = order else { return None };
    Some(Place { host: to.host.clone(), dataset: route.renamed.as_ref()?.dataset.clone() })
}

fn occupied(order: &Order) -> Option<Occupied> {
    if let Order::Send { route, .. } = order { route.occupied } else { None }
}

/// Whether the transfer's destination exists and is never renamed, set aside or replaced.
fn is_settled(order: &Order, inventory: &Inventory) -> bool {
    let Order::Send { to, allowed, route, .. } = order else { return false };
    let is_renamed = route.renamed.is_some() || route.occupied.is_some();
    !is_renamed && allowed.on_divergence.is_stop() && inventory.dataset(&to.host, &to.dataset).is_some()
}

/// The dataset from which the transfer's source was cloned, if the transfer makes its first copy.
fn origin<'i>(order: &Order, inventory: &'i Inventory) -> Option<&'i DatasetName> {
    let Order::Send { host, dataset, to, route, .. } = order else { return None };
    let has_copy = inventory.dataset(&to.host, &to.dataset).is_some_and(|copy| !copy.snapshots.is_empty());
    if has_copy || route.renamed.is_some() {
        return None;
    }
    Some(&inventory.dataset(host, dataset)?.origin.as_ref()?.dataset)
}

/// The turn of an order in queues, if it has to begin by `start_by`. Only transfers wait for others.
pub(crate) fn turn(order: &Order, start_by: Option<DateTime<Utc>>) -> Turn {
    match order {
        Order::Send { oldest_unsent, .. } => Turn::new(*oldest_unsent, start_by),
        Order::Take { .. } | Order::Destroy { .. } => DateTime::UNIX_EPOCH.into(),
    }
}

fn source(order: &Order) -> Option<&DatasetName> {
    if let Order::Send { dataset, .. } = order { Some(dataset) } else { None }
}

/// The destination of a transfer.
pub(crate) fn destination(order: &Order) -> Option<&Place> {
    if let Order::Send { to, .. } = order { Some(to) } else { None }
}
