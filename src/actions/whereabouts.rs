//! Finds out where each snapshot of a dataset exists, as far as the hosts were listed.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use crate::actions::index::{IndexedPolicy, PolicyIndex};
use crate::model::{
    DatasetInventory, DatasetName, Guid, HostInventory, HostName, Inventory, Place, SnapName, Snapshot,
};
use crate::policy::Policy;

/// Where the snapshots of a dataset are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Whereabouts {
    /// The places that have or should have snapshots of the dataset. A place comes after those that it receives from.
    pub places: Vec<PlaceState>,
    /// The snapshots, newest first.
    pub snapshots: Vec<SnapshotState>,
    /// Hosts and pools that could not be listed. They may have more than is known.
    pub unlisted: Vec<Unlisted>,
}

/// What a place is to the dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceRole {
    /// The policy takes its snapshots or sends it, and sends nothing to it.
    Source,
    /// The policy sends to it.
    Copy,
    /// The policy does not connect it with the dataset, but it has some of the snapshots.
    Other,
}

/// A place that has or should have snapshots of the dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlaceState {
    /// The host.
    pub host: HostName,
    /// The dataset there.
    pub dataset: DatasetName,
    /// What it is to the dataset.
    pub role: PlaceRole,
    /// Whether the dataset exists there; `None` if that is unknown, because its host or its pool could not be listed.
    pub exists: Option<bool>,
    /// When its host was last listed; `None` if never.
    pub listed: Option<DateTime<Utc>>,
    /// Whether its pool was missing from that listing. What is known of the place is then from an earlier one.
    pub is_pool_unlisted: bool,
}

/// A snapshot, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotState {
    /// The name after `@`, as it is at the first place that has the snapshot.
    pub name: SnapName,
    /// Its identity.
    pub guid: Guid,
    /// When it was taken.
    pub taken: DateTime<Utc>,
    /// What is known of it at each place, in the order of [`Whereabouts::places`].
    pub places: Vec<AtPlace>,
}

/// What is known of a snapshot at a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AtPlace {
    /// The host.
    pub host: HostName,
    /// The dataset there.
    pub dataset: DatasetName,
    /// Whether it is there.
    #[serde(flatten)]
    pub presence: Presence,
}

/// Whether a snapshot is at a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Presence {
    /// It was there when the place was last listed.
    Present(Found),
    /// It was not there.
    Absent,
    /// The place could not be listed, or was last listed before the snapshot was taken.
    Unknown,
}

/// A snapshot that a place has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The name that the snapshot has there.
    pub name: SnapName,
    /// Bytes that only this snapshot references there; 0 also if that is unknown.
    pub used: u64,
    /// How many holds it has, not counting that of the trash.
    pub holds: u32,
    /// Since when it has been in the trash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trashed_since: Option<DateTime<Utc>>,
    /// Until when it stays in the trash at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trashed_until: Option<DateTime<Utc>>,
}

/// A host or a pool that could not be listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unlisted {
    /// The host.
    pub host: HostName,
    /// The pool; `None` for all of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Why; `None` if the host was never listed, and nobody knows why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Which snapshots are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only those that were taken at this moment or later.
    pub since: Option<DateTime<Utc>>,
    /// Only those that were taken until this moment.
    pub until: Option<DateTime<Utc>>,
    /// Only the places on this host, and only the snapshots that are there or may be there.
    pub host: Option<HostName>,
}

impl Whereabouts {
    /// Whether the policy or a listing has the dataset at any of the places.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.places.iter().any(|place| place.exists == Some(true) || place.role != PlaceRole::Other)
            || !self.snapshots.is_empty()
    }

    /// Leaves only what is selected.
    pub fn select(&mut self, selection: &Selection) {
        let Selection { since, until, host } = selection;
        let is_wanted = |other: &HostName| host.as_ref().is_none_or(|host| other == host);
        self.places.retain(|place| is_wanted(&place.host));
        self.unlisted.retain(|unlisted| is_wanted(&unlisted.host));
        self.snapshots.retain_mut(|snapshot| {
            snapshot.places.retain(|at| is_wanted(&at.host));
            since.is_none_or(|since| snapshot.taken >= since)
                && until.is_none_or(|until| snapshot.taken <= until)
                && snapshot.places.iter().any(|at| at.presence != Presence::Absent)
        });
    }
}

/// Finds out where the snapshots of a dataset are: at its source, at the copies of the policy, and at all other datasets
/// that have one of these snapshots. `unseen` are the hosts that could not be listed last time, each with the reason.
#[must_use]
pub fn whereabouts(
    policy: &Policy,
    inventory: &Inventory,
    unseen: &BTreeMap<HostName, String>,
    wanted: &Place,
) -> Whereabouts {
    let index = PolicyIndex::new(policy);
    let index = IndexedPolicy::new(policy, &index);
    let mut all = family(&index, wanted);
    let of_family: BTreeSet<&Place> = all.iter().collect();
    let known = of_family.iter().filter_map(|place| inventory.dataset(&place.host, &place.dataset));
    let guids: BTreeSet<Guid> = known.flat_map(live).map(|snapshot| snapshot.guid).collect();
    let everything = inventory.hosts.iter().flat_map(|(host, known)| {
        known.datasets.iter().map(move |(name, found)| (Place { host: host.clone(), dataset: name.clone() }, found))
    });
    let others = everything
        .filter(|(place, found)| !of_family.contains(place) && live(found).any(|s| guids.contains(&s.guid)))
        .map(|(place, _)| place)
        .collect::<Vec<Place>>();
    let places = all.iter().map(|place| place_state(inventory, place, role(&index, place)));
    let beside = others.iter().map(|place| place_state(inventory, place, PlaceRole::Other));
    let places: Vec<PlaceState> = places.chain(beside).collect();
    all.extend(others);
    Whereabouts { snapshots: snapshots(inventory, &all), places, unlisted: unlisted(policy, inventory, unseen) }
}

/// The snapshots of a dataset, without those that only the catalog still has.
fn live(found: &DatasetInventory) -> impl Iterator<Item = &Snapshot> {
    found.snapshots.iter().filter(|snapshot| !snapshot.marks.deleted)
}

fn role(index: &IndexedPolicy<'_>, place: &Place) -> PlaceRole {
    if !index.incoming(&place.host, &place.dataset).is_empty() {
        PlaceRole::Copy
    } else if index.governs_any(&place.host, &place.dataset) {
        PlaceRole::Source
    } else {
        PlaceRole::Other
    }
}

fn place_state(inventory: &Inventory, place: &Place, role: PlaceRole) -> PlaceState {
    let known = inventory.hosts.get(&place.host);
    let is_covered = known.is_some_and(|known| known.covers(&place.dataset));
    let listed = known.and_then(|known| known.observed);
    PlaceState {
        host: place.host.clone(),
        dataset: place.dataset.clone(),
        role,
        exists: is_covered.then(|| inventory.dataset(&place.host, &place.dataset).is_some()),
        listed,
        is_pool_unlisted: listed.is_some() && !is_covered,
    }
}

/// The dataset with everything from which it receives according to the policy, and everything to which any of these is
/// sent, directly or through other hosts. Sources come first.
fn family(index: &IndexedPolicy<'_>, wanted: &Place) -> Vec<Place> {
    let (mut roots, mut seen, mut next) = (BTreeSet::new(), BTreeSet::new(), vec![wanted.clone()]);
    while let Some(place) = next.pop() {
        if !seen.insert(place.clone()) {
            continue;
        }
        let incoming = index.incoming(&place.host, &place.dataset);
        if incoming.is_empty() {
            roots.insert(place);
        }
        next.extend(incoming.into_iter().map(|send| send.source));
    }
    // In a circle of hosts that send to each other, nothing is the first.
    let mut all: Vec<Place> = if roots.is_empty() { vec![wanted.clone()] } else { roots.into_iter().collect() };
    let mut known: BTreeSet<Place> = all.iter().cloned().collect();
    let mut at = 0;
    while let Some(place) = all.get(at).cloned() {
        at += 1;
        for send in index.outgoing(&place.host, &place.dataset) {
            if known.insert(send.to.clone()) {
                all.push(send.to);
            }
        }
    }
    all
}

/// The snapshots of these places by guid, newest first.
fn snapshots(inventory: &Inventory, places: &[Place]) -> Vec<SnapshotState> {
    let found_at = |place: &Place| -> BTreeMap<Guid, (&Snapshot, Found)> {
        let Some(dataset) = inventory.dataset(&place.host, &place.dataset) else { return BTreeMap::new() };
        live(dataset).map(|snapshot| (snapshot.guid, (snapshot, found(dataset, snapshot)))).collect()
    };
    let by_place: Vec<BTreeMap<Guid, (&Snapshot, Found)>> = places.iter().map(found_at).collect();
    // Of a snapshot that several places have, the first place says what it is called.
    let mut by_guid: BTreeMap<Guid, &Snapshot> = BTreeMap::new();
    for (guid, (snapshot, _)) in by_place.iter().flatten() {
        by_guid.entry(*guid).or_insert(snapshot);
    }
    let state = |snapshot: &Snapshot| SnapshotState {
        name: snapshot.name.clone(),
        guid: snapshot.guid,
        taken: snapshot.creation,
        places: std::iter::zip(places, &by_place)
            .map(|(place, there)| AtPlace {
                host: place.host.clone(),
                dataset: place.dataset.clone(),
                presence: match there.get(&snapshot.guid) {
                    Some((_, found)) => Presence::Present(found.clone()),
                    None => missing(inventory.hosts.get(&place.host), place, snapshot.creation),
                },
            })
            .collect(),
    };
    let mut all: Vec<SnapshotState> = by_guid.into_values().map(state).collect();
    all.sort_by(|a, b| (b.taken, &b.name).cmp(&(a.taken, &a.name)));
    all
}

/// A snapshot of a dataset, as it was listed.
fn found(dataset: &DatasetInventory, snapshot: &Snapshot) -> Found {
    let trashed = dataset.trashed(snapshot.guid);
    Found {
        name: snapshot.name.clone(),
        used: snapshot.used,
        holds: dataset.other_holds(snapshot),
        trashed_since: trashed.map(|trashed| trashed.since),
        trashed_until: trashed.and_then(|trashed| dataset.trashed_until(trashed)),
    }
}

/// What it means that a place is not known to have a snapshot. A listing does not say anything about a snapshot that was
/// taken after it. ZFS knows in which second a snapshot was taken.
fn missing(known: Option<&HostInventory>, place: &Place, taken: DateTime<Utc>) -> Presence {
    match known.filter(|known| known.covers(&place.dataset)).and_then(|known| known.observed) {
        Some(listed) if taken + TimeDelta::seconds(1) <= listed => Presence::Absent,
        _ => Presence::Unknown,
    }
}

/// The hosts of the policy and the pools that could not be listed.
fn unlisted(policy: &Policy, inventory: &Inventory, unseen: &BTreeMap<HostName, String>) -> Vec<Unlisted> {
    let was_listed = |host: &HostName| inventory.hosts.get(host).is_some_and(|known| known.observed.is_some());
    let mut hosts: BTreeMap<HostName, Option<String>> =
        policy.hosts_named().into_iter().filter(|host| !was_listed(host)).map(|host| (host, None)).collect();
    hosts.extend(unseen.iter().map(|(host, reason)| (host.clone(), Some(reason.clone()))));
    let hosts = hosts.into_iter().map(|(host, reason)| Unlisted { host, pool: None, reason });
    let known = inventory.hosts.iter().filter(|(_, known)| known.observed.is_some());
    let pools = known.flat_map(|(host, known)| {
        known.unlisted.iter().map(move |(pool, reason)| Unlisted {
            host: host.clone(),
            pool: Some(pool.clone()),
            reason: Some(reason.clone()),
        })
    });
    hosts.chain(pools).collect()
}
