//! One pass over a policy: it asks the three questions about every dataset that the policy covers.

mod brakes;
mod peers;
mod pruning;

pub use brakes::Destroyed;

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::actions::common::{KnownDataset, PolicySnapshot, Slots, SnapshotsByGuid, policy_snapshots};
use crate::actions::delete::{Peer, Relation};
use crate::actions::divergence::Allowed;
use crate::actions::index::{Claim, IncomingSend, IndexedPolicy};
use crate::actions::new_snapshot;
use crate::actions::notice::{Notice, NoticeKind};
use crate::actions::plan::Plan;
use crate::actions::reason::{SendReason, TakeReason};
use crate::actions::route::{self, Renamed, Route};
use crate::actions::send::{self, SendDecision};
use crate::actions::verdict::{SendVerdict, Subject, TakeVerdict};
use crate::model::{DatasetInventory, DatasetName, HostName, Inventory, OnDivergence, Place, Prefix};
use crate::policy::retention::{CLOCK_TOLERANCE, Tally};
use crate::policy::{DatasetPolicy, Policy, Schedule, SnapshotPolicy, SyncPolicy};

/// The state of a pass. Each call of [`Pass::decide_entry`] adds verdicts to its plan.
pub(super) struct Pass<'a> {
    policy: &'a Policy,
    index: IndexedPolicy<'a>,
    inventory: &'a Inventory,
    now: DateTime<Utc>,
    /// What this pass of the director has already destroyed.
    destroyed: &'a Destroyed,
    /// How many snapshots of each dataset that count for `max_destroys` the plan destroys.
    planned: HashMap<Place, usize>,
    plan: Plan,
    tally: Tally<'a>,
    /// The slots of each schedule, computed once: thousands of datasets share a few schedules.
    slots: HashMap<&'a Schedule, Slots>,
    /// A buffer for one policy's snapshots of one dataset, reused for every dataset.
    buffer: Vec<PolicySnapshot>,
}

/// A dataset with a policy that governs it.
struct GovernedDataset<'a> {
    claim: Claim,
    entry: &'a DatasetPolicy,
    policy: &'a SnapshotPolicy,
    host: &'a HostName,
    name: &'a DatasetName,
    dataset: &'a DatasetInventory,
}

impl GovernedDataset<'_> {
    fn subject(&self) -> Subject {
        self.subject_at(self.host, self.name)
    }

    fn subject_at(&self, host: &HostName, dataset: &DatasetName) -> Subject {
        Subject {
            entry: self.claim.entry,
            policy_index: self.claim.policy,
            policy: self.policy.name.clone(),
            host: host.clone(),
            dataset: dataset.clone(),
        }
    }

    fn place(&self) -> Place {
        Place { host: self.host.clone(), dataset: self.name.clone() }
    }
}

impl<'a> Pass<'a> {
    pub fn new(
        policy: &'a Policy,
        index: IndexedPolicy<'a>,
        inventory: &'a Inventory,
        now: DateTime<Utc>,
        destroyed: &'a Destroyed,
    ) -> Self {
        let plan = Plan { at: now, takes: vec![], sends: vec![], prunes: vec![], notices: vec![] };
        let tally = Tally::new(policy.timezone, now);
        Self {
            policy,
            index,
            inventory,
            now,
            destroyed,
            planned: HashMap::new(),
            plan,
            tally,
            slots: HashMap::new(),
            buffer: Vec::new(),
        }
    }

    pub fn finish(mut self) -> Plan {
        let due = self.plan.sends.iter_mut().filter(|send| send.due.is_some());
        let routes = due.map(|send| (&send.to, &mut send.route));
        route::settle_renames(routes, |to| self.inventory.dataset(&to.host, &to.dataset).is_some());
        // What has nothing in common with its source is another dataset's copy, and goes away.
        let goes_away = self.plan.sends.iter().filter(|send| send.route.occupied.is_some()).map(|send| send.to.clone());
        let goes_away: std::collections::HashSet<Place> = goes_away.collect();
        self.plan.notices.retain(|n| match (&n.kind, &n.dataset) {
            (NoticeKind::NothingInCommon { .. }, Some(dataset)) => {
                !goes_away.contains(&Place { host: n.host.clone(), dataset: dataset.clone() })
            }
            _ => true,
        });
        // A host or a pool may occur in thousands of entries; one notice about it is enough.
        let mut noted = std::collections::HashSet::new();
        self.plan.notices.retain(|n| {
            let pool = match &n.kind {
                NoticeKind::HostNotListed | NoticeKind::ClockAhead { .. } => None,
                NoticeKind::PoolNotListed { pool, .. } => Some(pool.clone()),
                _ => return true,
            };
            noted.insert((std::mem::discriminant(&n.kind), n.host.clone(), pool))
        });
        self.plan
    }

    /// Decides about all datasets that one entry covers.
    pub fn decide_entry(&mut self, index: usize) {
        let Some(entry) = self.policy.datasets.get(index) else { return };
        let targets = entry.policies.iter().flat_map(|p| &p.sync_on).map(|t| &t.host);
        for host in std::iter::once(&entry.hostname).chain(targets) {
            if !self.is_listed(host) {
                self.note(index, host, None, NoticeKind::HostNotListed);
            }
        }
        for target in entry.policies.iter().flat_map(|p| &p.sync_on) {
            self.note_unlisted_pool(index, target);
        }
        if self.note_unlisted_pool(index, &Place { host: entry.hostname.clone(), dataset: entry.dataset.clone() }) {
            return;
        }
        let Some(host) = self.inventory.hosts.get(&entry.hostname).filter(|h| h.observed.is_some()) else { return };
        if !host.datasets.contains_key(&entry.dataset) {
            let incoming = self.index.incoming(&entry.hostname, &entry.dataset);
            let awaited = incoming.iter().find(|i| matches!(self.known(&i.source), KnownDataset::Present(_)));
            let kind =
                awaited.map_or(NoticeKind::DatasetMissing, |i| NoticeKind::NotReceivedYet { from: i.source.clone() });
            self.note(index, &entry.hostname, Some(&entry.dataset), kind);
        } else if entry.recursive {
            self.note_gone_sources(index);
        }
        for (name, dataset) in host.within(&entry.dataset) {
            if !entry.recursive && *name != entry.dataset {
                break;
            }
            if dataset.excluded {
                if self.is_topmost_excluded(index, host, name) {
                    self.note(index, &entry.hostname, Some(name), NoticeKind::Excluded);
                }
                continue;
            }
            for (policy_index, policy) in entry.policies.iter().enumerate() {
                let claim = Claim { entry: index, policy: policy_index };
                match self.index.governing(&entry.hostname, name, &policy.prefix) {
                    Some(by) if by == claim => {
                        self.decide_dataset(&GovernedDataset {
                            claim,
                            entry,
                            policy,
                            host: &entry.hostname,
                            name,
                            dataset,
                        });
                    }
                    Some(by) if *name == entry.dataset && self.policy.datasets[by.entry].dataset == *name => {
                        let kind = NoticeKind::ClaimedTwice { by: by.entry, prefix: policy.prefix.to_string() };
                        self.note(index, &entry.hostname, Some(name), kind);
                    }
                    // An entry for a dataset nearer to this one takes precedence.
                    _ => {}
                }
            }
        }
        self.hold_back(index);
    }

    fn decide_dataset(&mut self, governed: &GovernedDataset<'a>) {
        let mut snapshots = std::mem::take(&mut self.buffer);
        let others = policy_snapshots(governed.dataset, &governed.policy.prefix, &mut snapshots);
        let incoming = self.index.incoming(governed.host, governed.name);

        if let Some(newest) = snapshots.last().filter(|s| s.creation - self.now > CLOCK_TOLERANCE)
            && let Some(snapshot) = governed.dataset.snapshots.get(newest.index as usize)
        {
            let kind = NoticeKind::FromTheFuture { snapshot: snapshot.name.clone(), creation: newest.creation };
            self.note(governed.claim.entry, governed.host, Some(governed.name), kind);
        }
        self.take(governed, &snapshots, &incoming);
        self.prune_source(governed, &snapshots, others, &incoming);
        for (i, target) in governed.policy.sync_on.iter().enumerate() {
            if !governed.policy.sync_on[..i].contains(target) {
                self.decide_target(governed, target, &snapshots);
            }
        }
        self.buffer = snapshots;
    }

    fn take(&mut self, governed: &GovernedDataset<'a>, snapshots: &[PolicySnapshot], incoming: &[IncomingSend]) {
        let slots = governed.policy.creation.as_ref().map(|s| self.slots_of(s));
        let follows = slots.and_then(|_| self.follows(governed, incoming));
        let (due, reason) = match follows {
            Some(from) => {
                // If the entry names a dataset above this one, there is no notice: an entry for a whole pool may well
                // cover destinations.
                if *governed.name == governed.entry.dataset {
                    let kind = NoticeKind::ReceivesAndTakes { from: from.clone() };
                    self.note(governed.claim.entry, governed.host, Some(governed.name), kind);
                }
                (None, TakeReason::Receives { from })
            }
            None => {
                let decision = new_snapshot::decide(governed.dataset, snapshots, governed.policy, slots, self.now);
                let free = |name| self.name_free_on_destinations(governed, name);
                (decision.due.map(free), decision.reason)
            }
        };
        self.plan.takes.push(TakeVerdict { subject: governed.subject(), due, reason });
    }

    /// The dataset that this one receives from, if this one must therefore take no snapshots of its own. In a loop of
    /// datasets that send to each other, the entry that comes first in the policy takes the snapshots.
    fn follows(&self, governed: &GovernedDataset<'a>, incoming: &[IncomingSend]) -> Option<Place> {
        let place = governed.place();
        let leads = |i: &IncomingSend| governed.claim.entry < i.claim.entry && self.index.reaches(&place, &i.source);
        incoming.iter().find(|i| self.exists(i) && !leads(i)).map(|i| i.source.clone())
    }

    /// Whether the source of a send exists. It is assumed to exist unless its host and its pool were listed.
    fn exists(&self, incoming: &IncomingSend) -> bool {
        // While a host or a pool is away, its datasets have not ceased to exist. If a copy took snapshots of its own
        // meanwhile, it would diverge from its source.
        !matches!(self.known(&incoming.source), KnownDataset::Absent)
    }

    /// Decides about one target of a policy: the transfer to it, and pruning there.
    fn decide_target(&mut self, governed: &GovernedDataset<'a>, target: &'a Place, snapshots: &[PolicySnapshot]) {
        let Some(to) = self.destination(governed, target) else {
            let kind = NoticeKind::NameTooLong { to: target.clone() };
            self.note(governed.claim.entry, governed.host, Some(governed.name), kind);
            return self.push_send(
                governed,
                target.clone(),
                SendDecision::not_due(SendReason::NameTooLong),
                Route::default(),
            );
        };
        let place = governed.place();
        if to == place {
            return self.push_send(governed, to, SendDecision::not_due(SendReason::ToItself), Route::default());
        }
        let incoming = self.index.incoming(&to.host, &to.dataset);
        if let Some(sender) = self.sender(&to, &incoming, |_| true).filter(|i| i.source != place) {
            let by = sender.source.clone();
            let kind = NoticeKind::DestinationTaken { to: to.clone(), by: by.clone() };
            self.note(governed.claim.entry, governed.host, Some(governed.name), kind);
            let decision = SendDecision::not_due(SendReason::DestinationTaken { by });
            return self.push_send(governed, to, decision, Route::default());
        }
        if self.unlisted_pool(&to).is_some() {
            let decision = SendDecision::not_due(SendReason::PoolNotListed);
            return self.push_send(governed, to, decision, Route::default());
        }
        let known = self.known(&to);
        let there_by_guid = match known {
            KnownDataset::Present(there) => Some(SnapshotsByGuid::of(there)),
            KnownDataset::Absent | KnownDataset::Unlisted => None,
        };
        let slots = match &governed.policy.sync_policy {
            SyncPolicy::Asap => None,
            SyncPolicy::Cron(schedule) => Some(self.slots_of(schedule)),
        };
        let decision = send::decide(governed.dataset, snapshots, known, there_by_guid.as_ref(), slots);
        let route = match (&decision.due, known) {
            (None, _) => Route::default(),
            (Some(_), KnownDataset::Present(there)) => self.route(governed, target, Some(there)),
            (Some(_), KnownDataset::Absent | KnownDataset::Unlisted) => self.route(governed, target, None),
        };
        let is_free = |renamed: &Renamed| {
            let place = Place { host: to.host.clone(), dataset: renamed.dataset.clone() };
            !self.index.others_are_below(governed.claim.entry, &place)
        };
        let route = Route { renamed: route.renamed.filter(is_free), ..route };
        let decision =
            SendDecision { reason: Self::absence(decision.reason, governed.dataset, &to, &route), ..decision };
        self.push_send(governed, to.clone(), decision, route);
        if let KnownDataset::Present(there) = known {
            self.prune_destination(governed, &to, there, &incoming);
            self.prune_carried_along(governed, &to, there, &incoming);
        }
    }

    fn route(&self, governed: &GovernedDataset<'a>, target: &Place, there: Option<&DatasetInventory>) -> Route {
        let from = route::SendSource {
            claim: governed.claim,
            host: governed.host,
            name: governed.name,
            dataset: governed.dataset,
        };
        route::route(self.policy, self.index, self.inventory, &from, target, there)
    }

    fn push_send(&mut self, governed: &GovernedDataset<'a>, to: Place, decision: SendDecision, route: Route) {
        let SendDecision { due, reason } = decision;
        let GovernedDataset { entry, .. } = governed;
        let allowed = match self.index.reaches(&to, &governed.place()) {
            // In a loop, snapshots that only the destination has will be sent back to the source.
            true => Allowed::default(),
            false => Allowed {
                rollback: entry.rollback_if_needed,
                may_destroy: entry.rollback_may_destroy,
                on_divergence: match entry.on_divergence {
                    OnDivergence::SetAside if self.index.others_are_below(governed.claim.entry, &to) => {
                        OnDivergence::Stop
                    }
                    allowed => allowed,
                },
            },
        };
        self.plan.sends.push(SendVerdict { subject: governed.subject(), to, due, allowed, route, reason });
    }

    /// All datasets with which this one must keep its common snapshots.
    fn peers(
        &self,
        host: &HostName,
        dataset: &DatasetName,
        prefix: &Prefix,
        incoming: &[IncomingSend],
    ) -> Vec<Peer<'a>> {
        let mut peers: Vec<(Place, Relation)> = Vec::new();
        for out in self.index.outgoing(host, dataset) {
            let same_policy = self.index.snapshot_policy(out.claim).prefix == *prefix;
            peers.push((out.to, if same_policy { Relation::Destination } else { Relation::OtherDestination }));
        }
        for i in incoming {
            if self.exists(i) {
                peers.push((i.source.clone(), Relation::Source));
            }
        }
        peers.sort();
        // A destination of both this and another policy counts once, as that of this policy.
        peers.dedup_by(|b, a| a.0 == b.0 && (a.1 == b.1 || b.1 == Relation::OtherDestination));
        peers.into_iter().map(|(place, relation)| Peer { known: self.known(&place), place, relation }).collect()
    }

    fn is_listed(&self, host: &HostName) -> bool {
        self.inventory.hosts.get(host).is_some_and(|h| h.observed.is_some())
    }

    /// Why the pool of a dataset could not be listed, although its host was; `None` if it was listed.
    fn unlisted_pool(&self, place: &Place) -> Option<&'a String> {
        let host = self.inventory.hosts.get(&place.host).filter(|h| h.observed.is_some())?;
        host.unlisted.get(place.dataset.pool())
    }

    /// Adds a notice if the pool of a dataset could not be listed although its host was. Returns whether it did.
    fn note_unlisted_pool(&mut self, entry: usize, place: &Place) -> bool {
        let Some(reason) = self.unlisted_pool(place) else { return false };
        let kind = NoticeKind::PoolNotListed { pool: place.dataset.pool().to_owned(), reason: reason.clone() };
        self.note(entry, &place.host, None, kind);
        true
    }

    fn slots_of(&mut self, schedule: &'a Schedule) -> Slots {
        let (tz, now) = (self.policy.timezone, self.now);
        let slots = || Slots { last: schedule.last_slot(tz, now), next: schedule.next_slot(tz, now) };
        *self.slots.entry(schedule).or_insert_with(slots)
    }

    fn note(&mut self, entry: usize, host: &HostName, dataset: Option<&DatasetName>, kind: NoticeKind) {
        self.plan.notices.push(Notice { entry, host: host.clone(), dataset: dataset.cloned(), kind });
    }
}
