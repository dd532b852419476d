//! One pass over a policy: asks the three questions of every dataset that it covers.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::actions::common::{ByGuid, Known, Own, own_snapshots};
use crate::actions::delete;
use crate::actions::delete::{DeleteTerms, Peer, Role};
use crate::actions::divergence::Allowed;
use crate::actions::index::{Claim, Incoming, Indexed};
use crate::actions::new_snapshot;
use crate::actions::new_snapshot::{PLAUSIBLE_FUTURE, Slots};
use crate::actions::plan::{Notice, Plan, PruneVerdict, SendVerdict, Side, Subject, TakeVerdict};
use crate::actions::reason::{NoticeKind, SendReason, TakeReason};
use crate::actions::route::Route;
use crate::actions::send::SendDecision;
use crate::actions::verdict::Doomed;
use crate::actions::{route, send};
use crate::model::{DatasetInventory, DatasetName, HostName, Inventory, Prefix};
use crate::policy::retention::Tally;
use crate::policy::{DatasetPolicy, Policy, Schedule, SnapshotPolicy, SyncPolicy, Target};

/// Clocks of different hosts may be this far apart without anybody being told.
const UNREMARKABLE_FUTURE: chrono::TimeDelta = chrono::TimeDelta::minutes(5);

pub(super) struct Pass<'a> {
    policy: &'a Policy,
    index: Indexed<'a>,
    inventory: &'a Inventory,
    now: DateTime<Utc>,
    plan: Plan,
    tally: Tally<'a>,
    /// Thousands of datasets share a few schedules.
    slots: HashMap<&'a Schedule, Slots>,
    /// Room for one policy's snapshots of one dataset, used again and again.
    own: Vec<Own>,
}

/// One dataset with one policy that governs it.
struct Case<'a> {
    claim: Claim,
    entry: &'a DatasetPolicy,
    policy: &'a SnapshotPolicy,
    host: &'a HostName,
    name: &'a DatasetName,
    dataset: &'a DatasetInventory,
}

impl Case<'_> {
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

    fn place(&self) -> Target {
        Target { host: self.host.clone(), dataset: self.name.clone() }
    }
}

impl<'a> Pass<'a> {
    pub fn new(policy: &'a Policy, index: Indexed<'a>, inventory: &'a Inventory, now: DateTime<Utc>) -> Self {
        let plan = Plan { at: now, takes: vec![], sends: vec![], prunes: vec![], notices: vec![] };
        let tally = Tally::new(policy.timezone, now);
        Self { policy, index, inventory, now, plan, tally, slots: HashMap::new(), own: Vec::new() }
    }

    pub fn finish(mut self) -> Plan {
        // One host may be in a thousand entries, and is unlisted only once.
        let mut unlisted = std::collections::HashSet::new();
        self.plan
            .notices
            .retain(|n| n.kind != NoticeKind::HostNotListed || n.dataset.is_some() || unlisted.insert(n.host.clone()));
        self.plan
    }

    /// Decides about everything that one entry covers.
    pub fn entry(&mut self, index: usize) {
        let Some(entry) = self.policy.datasets.get(index) else { return };
        let targets = entry.policies.iter().flat_map(|p| &p.sync_on).map(|t| &t.host);
        for host in std::iter::once(&entry.hostname).chain(targets) {
            if !self.is_listed(host) {
                self.note(index, host, None, NoticeKind::HostNotListed);
            }
        }
        let Some(host) = self.inventory.hosts.get(&entry.hostname).filter(|h| h.observed.is_some()) else { return };
        if !host.datasets.contains_key(&entry.dataset) {
            self.note(index, &entry.hostname, Some(&entry.dataset), NoticeKind::DatasetMissing);
        }
        // Names below one dataset are neighbours in the order of names, with a few strangers ("a-b" among "a/b").
        let below = host.datasets.range(&entry.dataset..);
        let near = below.take_while(|(name, _)| name.as_str().starts_with(entry.dataset.as_str()));
        for (name, dataset) in near.filter(|(name, _)| name.is_within(&entry.dataset)) {
            if !entry.recursive && *name != entry.dataset {
                break;
            }
            // Its administrator has said so on the dataset itself, or on one above it.
            if dataset.excluded {
                if *name == entry.dataset {
                    self.note(index, &entry.hostname, Some(name), NoticeKind::Excluded);
                }
                continue;
            }
            for (policy_index, policy) in entry.policies.iter().enumerate() {
                let claim = Claim { entry: index, policy: policy_index };
                match self.index.governing(&entry.hostname, name, &policy.prefix) {
                    Some(by) if by == claim => {
                        self.case(&Case { claim, entry, policy, host: &entry.hostname, name, dataset });
                    }
                    Some(by) if *name == entry.dataset && self.policy.datasets[by.entry].dataset == *name => {
                        let kind = NoticeKind::ClaimedTwice { by: by.entry, prefix: policy.prefix.to_string() };
                        self.note(index, &entry.hostname, Some(name), kind);
                    }
                    // A nearer entry decides.
                    _ => {}
                }
            }
        }
    }

    fn case(&mut self, case: &Case<'a>) {
        let mut own = std::mem::take(&mut self.own);
        let others = own_snapshots(case.dataset, &case.policy.prefix, &mut own);
        let incoming = self.index.incoming(case.host, case.name);

        if let Some(newest) = own.last().filter(|s| s.creation - self.now > UNREMARKABLE_FUTURE)
            && let Some(snapshot) = case.dataset.snapshots.get(newest.index as usize)
        {
            let kind = NoticeKind::FromTheFuture { snapshot: snapshot.name.clone(), creation: newest.creation };
            self.note(case.claim.entry, case.host, Some(case.name), kind);
        }
        self.take(case, &own, &incoming);
        self.source_prune(case, &own, others, &incoming);
        for (i, target) in case.policy.sync_on.iter().enumerate() {
            if !case.policy.sync_on[..i].contains(target) {
                self.target(case, target, &mut own);
            }
        }
        self.own = own;
    }

    fn take(&mut self, case: &Case<'a>, own: &[Own], incoming: &[Incoming]) {
        let slots = case.policy.creation.as_ref().map(|s| self.slots_of(s));
        let follows = slots.and_then(|_| self.follows(case, incoming));
        let (due, reason) = match follows {
            Some(from) => {
                // Who names a whole pool does not mean to snapshot what others send into it.
                if *case.name == case.entry.dataset {
                    let kind = NoticeKind::ReceivesAndTakes { from: from.clone() };
                    self.note(case.claim.entry, case.host, Some(case.name), kind);
                }
                (None, TakeReason::Receives { from })
            }
            None => {
                let decision = new_snapshot::decide(case.dataset, own, case.policy, slots, self.now);
                (decision.due, decision.reason)
            }
        };
        self.plan.takes.push(TakeVerdict { subject: case.subject(), due, reason });
    }

    /// What a dataset must leave the taking of snapshots to: what it receives from. In a loop, whoever comes first in
    /// the policy leads.
    fn follows(&self, case: &Case<'a>, incoming: &[Incoming]) -> Option<Target> {
        let place = case.place();
        let leads = |i: &Incoming| case.claim.entry < i.claim.entry && self.index.reaches(&place, &i.source);
        incoming.iter().find(|i| self.exists(i) && !leads(i)).map(|i| i.source.clone())
    }

    /// Whether what a dataset receives from is there, or is named by the policy and not known to be missing.
    fn exists(&self, incoming: &Incoming) -> bool {
        match self.known(&incoming.source) {
            Known::There(_) => true,
            Known::Unlisted => incoming.named,
            Known::Absent => false,
        }
    }

    /// Everything about one target of a policy: the transfer, and what stays there.
    fn target(&mut self, case: &Case<'a>, target: &'a Target, own: &mut Vec<Own>) {
        let Some(to) = self.index.destination(case.claim, target, case.name) else {
            let kind = NoticeKind::NameTooLong { to: target.clone() };
            self.note(case.claim.entry, case.host, Some(case.name), kind);
            return self.sent(case, target.clone(), SendDecision::not_due(SendReason::NameTooLong), Route::default());
        };
        let place = case.place();
        if to == place {
            return self.sent(case, to, SendDecision::not_due(SendReason::ToItself), Route::default());
        }
        let incoming = self.index.incoming(&to.host, &to.dataset);
        if let Some(first) = incoming.iter().find(|i| self.exists(i)).filter(|i| i.source != place) {
            let by = first.source.clone();
            let kind = NoticeKind::DestinationTaken { to: to.clone(), by: by.clone() };
            self.note(case.claim.entry, case.host, Some(case.name), kind);
            let decision = SendDecision::not_due(SendReason::DestinationTaken { by });
            return self.sent(case, to, decision, Route::default());
        }
        let known = self.known(&to);
        let held = match known {
            Known::There(there) => Some(ByGuid::of(there)),
            Known::Absent | Known::Unlisted => None,
        };
        let slots = match &case.policy.sync_policy {
            SyncPolicy::Asap => None,
            SyncPolicy::Cron(schedule) => Some(self.slots_of(schedule)),
        };
        let decision = send::decide(case.dataset, own, known, held.as_ref(), slots);
        let route = match (&decision.due, known) {
            (None, _) => Route::default(),
            (Some(_), Known::There(there)) => self.route(case, target, Some(there)),
            (Some(_), Known::Absent | Known::Unlisted) => self.route(case, target, None),
        };
        self.sent(case, to.clone(), decision, route);
        if let Known::There(there) = known {
            self.destination_prune(case, &to, there, &incoming, own);
            self.passengers(case, &to, there, &incoming);
        }
    }

    /// Prunes what came along: `zfs send -I` brings every snapshot between two of this policy's, those of the
    /// dataset's other policies among them. Where those are not sent by themselves, they stay as long as on the
    /// source; nobody else would ever prune them there.
    fn passengers(&mut self, case: &Case<'a>, to: &Target, there: &'a DatasetInventory, incoming: &[Incoming]) {
        if incoming.iter().find(|i| self.exists(i)).is_none_or(|i| i.claim != case.claim || i.source != case.place()) {
            return;
        }
        let mut own = Vec::new();
        for (policy_index, policy) in case.entry.policies.iter().enumerate() {
            let prefix = &policy.prefix;
            let claim = Claim { policy: policy_index, ..case.claim };
            let sent = incoming.iter().any(|i| self.index.snapshot_policy(i.claim).prefix == *prefix);
            let elsewhere = self.index.governing(&to.host, &to.dataset, prefix).is_some();
            let governs = self.index.governing(case.host, case.name, prefix) == Some(claim);
            let others = own_snapshots(there, prefix, &mut own);
            if sent || elsewhere || !governs || own.is_empty() {
                continue;
            }
            let mut terms = self.terms(prefix, Some(claim), &[]);
            terms.prune_unsent = true;
            let peers = self.peers(&to.host, &to.dataset, prefix, incoming);
            let subject = Case { claim, policy, ..*case }.subject_at(&to.host, &to.dataset);
            let verdict = self.prune(subject, Side::Destination, there, &own, others, &terms, peers);
            self.plan.prunes.push(verdict);
        }
    }

    fn route(&self, case: &Case<'a>, target: &Target, there: Option<&DatasetInventory>) -> Route {
        let from = route::From { claim: case.claim, host: case.host, name: case.name, dataset: case.dataset };
        route::route(self.policy, self.index, self.inventory, &from, target, there)
    }

    fn sent(&mut self, case: &Case<'a>, to: Target, decision: SendDecision, route: Route) {
        let SendDecision { due, reason } = decision;
        let Case { entry, .. } = case;
        let allowed = match self.index.reaches(&to, &case.place()) {
            // In a loop, what only the destination has is to come back.
            true => Allowed::default(),
            false => Allowed {
                rollback: entry.rollback_if_needed,
                may_destroy: entry.rollback_may_destroy,
                on_divergence: entry.on_divergence,
            },
        };
        self.plan.sends.push(SendVerdict { subject: case.subject(), to, due, allowed, route, reason });
    }

    fn source_prune(&mut self, case: &Case<'a>, own: &[Own], others: usize, incoming: &[Incoming]) {
        let terms = self.terms(&case.policy.prefix, Some(case.claim), incoming);
        let peers = self.peers(case.host, case.name, &case.policy.prefix, incoming);
        let verdict = self.prune(case.subject(), Side::Source, case.dataset, own, others, &terms, peers);
        self.plan.prunes.push(verdict);
    }

    /// Prunes one of a policy's destinations, unless somebody else does: the policy of which it is the source itself,
    /// or one that names it earlier. Whoever does asks the rules of all.
    fn destination_prune(
        &mut self,
        case: &Case<'a>,
        to: &Target,
        there: &'a DatasetInventory,
        incoming: &[Incoming],
        own: &mut Vec<Own>,
    ) {
        let prefix = &case.policy.prefix;
        let mine = |i: &&Incoming| self.index.snapshot_policy(i.claim).prefix == *prefix && self.exists(i);
        let first = incoming.iter().find(mine);
        let elsewhere = self.index.governing(&to.host, &to.dataset, prefix).is_some();
        if elsewhere || first.is_none_or(|i| i.claim != case.claim || i.source != case.place()) {
            return;
        }
        let mut theirs = Vec::new();
        let others = own_snapshots(there, prefix, &mut theirs);
        std::mem::swap(own, &mut theirs);
        let terms = self.terms(prefix, None, incoming);
        let peers = self.peers(&to.host, &to.dataset, prefix, incoming);
        let subject = case.subject_at(&to.host, &to.dataset);
        let verdict = self.prune(subject, Side::Destination, there, own, others, &terms, peers);
        if !own.is_empty() && verdict.kept_for_want_of_common() {
            let kind = NoticeKind::NothingInCommon { with: case.place() };
            self.note(case.claim.entry, &to.host, Some(&to.dataset), kind);
        }
        std::mem::swap(own, &mut theirs);
        self.plan.prunes.push(verdict);
    }

    /// The rules for one prefix in one place: of the policy that governs it as a source, and of all policies that
    /// send to it. A snapshot stays if any of them keeps it.
    fn terms(&self, prefix: &'a Prefix, source: Option<Claim>, incoming: &[Incoming]) -> DeleteTerms<'a> {
        let mut terms = DeleteTerms {
            prefix,
            rules: Vec::new(),
            keep_all: false,
            prune_unsent: true,
            skip_if_renamed: false,
            skip_if_cloned: false,
        };
        let as_source = source.map(|claim| (claim, Side::Source));
        let as_destination = incoming.iter().map(|i| (i.claim, Side::Destination));
        for (claim, side) in as_source.into_iter().chain(as_destination) {
            let policy = self.index.snapshot_policy(claim);
            if policy.prefix != *prefix {
                continue;
            }
            let entry = &self.policy.datasets[claim.entry];
            let retention = match side {
                Side::Source => &policy.retention,
                Side::Destination => &policy.sync_retention,
            };
            match retention {
                Some(retention) => terms.rules.extend(retention.rules()),
                None => terms.keep_all = true,
            }
            terms.prune_unsent &= side == Side::Destination || policy.prune_unsent;
            terms.skip_if_renamed |= entry.skip_if_renamed;
            terms.skip_if_cloned |= entry.skip_if_cloned;
        }
        terms
    }

    /// Every dataset whose common snapshots with this one must stay.
    fn peers(&self, host: &HostName, dataset: &DatasetName, prefix: &Prefix, incoming: &[Incoming]) -> Vec<Peer<'a>> {
        let mut roles: Vec<(Target, Role)> = Vec::new();
        for out in self.index.outgoing(host, dataset) {
            let own = self.index.snapshot_policy(out.claim).prefix == *prefix;
            roles.push((out.to, if own { Role::Destination } else { Role::OtherDestination }));
        }
        for i in incoming {
            if !matches!(self.known(&i.source), Known::Absent) {
                roles.push((i.source.clone(), Role::Source));
            }
        }
        roles.sort();
        // A destination of this and of another policy is asked once, for more.
        roles.dedup_by(|b, a| a.0 == b.0 && (a.1 == b.1 || b.1 == Role::OtherDestination));
        roles.into_iter().map(|(place, role)| Peer { known: self.known(&place), place, role }).collect()
    }

    #[allow(clippy::too_many_arguments, reason = "a verdict has these parts")]
    fn prune(
        &mut self,
        subject: Subject,
        side: Side,
        dataset: &'a DatasetInventory,
        own: &[Own],
        others: usize,
        terms: &DeleteTerms<'a>,
        peers: Vec<Peer<'a>>,
    ) -> PruneVerdict {
        let snapshots = delete::decide(dataset, own, terms, &peers, &mut self.tally);
        let going = snapshots.iter().filter(|v| !v.keep());
        let destroy: Vec<Doomed> = going
            .filter_map(|v| dataset.snapshots.get(v.index as usize))
            .map(|s| Doomed { guid: s.guid, name: s.name.clone(), used: s.used })
            .collect();
        PruneVerdict {
            subject,
            side,
            kept: snapshots.len() - destroy.len(),
            destroy,
            others,
            rules: terms.rules.iter().map(ToString::to_string).collect(),
            peers: peers.into_iter().map(|p| p.place).collect(),
            skip_if_renamed: terms.skip_if_renamed,
            skip_if_cloned: terms.skip_if_cloned,
            snapshots,
        }
    }

    fn is_listed(&self, host: &HostName) -> bool {
        self.inventory.hosts.get(host).is_some_and(|h| h.observed.is_some())
    }

    fn known(&self, place: &Target) -> Known<'a> {
        match self.inventory.hosts.get(&place.host).filter(|h| h.observed.is_some()) {
            None => Known::Unlisted,
            Some(host) => host.datasets.get(&place.dataset).map_or(Known::Absent, Known::There),
        }
    }

    fn slots_of(&mut self, schedule: &'a Schedule) -> Slots {
        let (tz, now) = (self.policy.timezone, self.now);
        *self
            .slots
            .entry(schedule)
            .or_insert_with(|| Slots { last: schedule.last_slot(tz, now), next: schedule.next_slot(tz, now) })
    }

    fn note(&mut self, entry: usize, host: &HostName, dataset: Option<&DatasetName>, kind: NoticeKind) {
        self.plan.notices.push(Notice { entry, host: host.clone(), dataset: dataset.cloned(), kind });
    }
}

const _: () = assert!(PLAUSIBLE_FUTURE.num_seconds() > UNREMARKABLE_FUTURE.num_seconds());
