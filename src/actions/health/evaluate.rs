//! Builds the health report from the policy and the inventory.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};

use crate::actions::common::{NewestCommon, PolicySnapshot, SnapshotsByGuid, policy_snapshots};
use crate::actions::engine::decide;
use crate::actions::health::finding::{Finding, Severity};
use crate::actions::health::judge::Judge;
use crate::actions::health::report::{DatedSnapshot, Health, HostState, Row};
use crate::actions::notice::{Notice, NoticeKind};
use crate::actions::reason::{SendReason, TakeReason};
use crate::actions::verdict::{SendVerdict, TakeVerdict};
use crate::model::{DatasetInventory, DatasetName, HostName, Inventory, Snapshot};
use crate::policy::{Policy, SnapshotPolicy};

/// Judges the whole policy as of `now`. `unseen` has the hosts that could not be listed, with the reasons.
#[must_use]
pub fn health(
    policy: &Policy,
    inventory: &Inventory,
    unseen: &BTreeMap<HostName, String>,
    now: DateTime<Utc>,
) -> Health {
    let plan = decide(policy, inventory, now);
    let mut sends: HashMap<(usize, usize, &DatasetName), Vec<&SendVerdict>> = HashMap::new();
    for send in &plan.sends {
        let subject = &send.subject;
        sends.entry((subject.entry, subject.policy_index, &subject.dataset)).or_default().push(send);
    }
    let mut judge = Judge::new(policy, now);
    let mut rows = Vec::new();
    for take in &plan.takes {
        let subject = &take.subject;
        let of = &policy.datasets[subject.entry].policies[subject.policy_index];
        let Some(dataset) = inventory.dataset(&subject.host, &subject.dataset) else { continue };
        let mut snapshots = Vec::new();
        policy_snapshots(dataset, &of.prefix, &mut snapshots);
        let subject_dataset = PolicyDataset { take, policy: of, dataset, snapshots: &snapshots };
        let source = subject_dataset.source(inventory, &mut judge);
        let to = sends.get(&(subject.entry, subject.policy_index, &subject.dataset)).map(Vec::as_slice);
        match to.unwrap_or_default() {
            [] => rows.push(source),
            sends => {
                // Findings about the source appear once, in the row of the first destination.
                let mut findings = source.findings.clone();
                for send in sends {
                    let row = Row { findings: std::mem::take(&mut findings), ..source.clone() };
                    rows.push(subject_dataset.destination(row, send, inventory, &mut judge));
                }
            }
        }
    }
    let mut hosts = hosts(policy, inventory, unseen);
    for notice in &plan.notices {
        if let NoticeKind::Leftovers(left) = &notice.kind {
            let of_host = hosts.iter_mut().filter(|state| state.host == notice.host);
            of_host.for_each(|state| state.findings.push(Finding::Leftovers(left.clone())));
        }
    }
    let reminders: Vec<Notice> = plan.notices.iter().filter(|notice| notice.kind.is_reminder()).cloned().collect();
    let notices: Vec<Notice> = plan.notices.into_iter().filter(|notice| notice.kind.is_failure()).collect();
    let (certificates, open) = (Vec::new(), Vec::new());
    let mut health =
        Health { at: now, severity: Severity::Ok, hosts, certificates, rows, pass: None, notices, reminders, open };
    health.update_severity();
    health
}

fn hosts(policy: &Policy, inventory: &Inventory, unseen: &BTreeMap<HostName, String>) -> Vec<HostState> {
    let state = |host: HostName| {
        let observed = inventory.hosts.get(&host).and_then(|known| known.observed);
        let reason = unseen.get(&host).cloned();
        let finding = match (&reason, observed) {
            (Some(reason), since) => Some(Finding::Unreachable { since, reason: reason.clone() }),
            (None, None) => Some(Finding::NeverListed { here: None }),
            (None, Some(_)) => None,
        };
        HostState { host, observed, unseen: reason, findings: finding.into_iter().collect() }
    };
    policy.hosts_named().into_iter().map(state).collect()
}

/// A dataset with one of its policies.
struct PolicyDataset<'p, 's> {
    take: &'s TakeVerdict,
    policy: &'p SnapshotPolicy,
    dataset: &'s DatasetInventory,
    snapshots: &'s [PolicySnapshot],
}

impl<'p> PolicyDataset<'p, '_> {
    fn dated(&self, own: &PolicySnapshot) -> Option<DatedSnapshot> {
        let snapshot = self.dataset.snapshots.get(own.index as usize)?;
        Some(DatedSnapshot { name: snapshot.name.clone(), creation: own.creation })
    }

    /// When the source was last up to date: when its newest snapshot was taken or, if later, when a slot was last
    /// skipped because nothing had been written.
    fn last_good(&self) -> Option<DateTime<Utc>> {
        let marks = self.dataset.not_written.iter().filter(|m| self.policy.prefix.time_in(&m.name).is_some());
        marks.map(|m| m.at).chain(self.snapshots.last().map(|s| s.creation)).max()
    }

    fn source(&self, inventory: &Inventory, judge: &mut Judge<'p>) -> Row {
        let subject = &self.take.subject;
        let mut row = Row {
            entry: subject.entry,
            policy: subject.policy.clone(),
            host: subject.host.clone(),
            dataset: subject.dataset.clone(),
            newest: self.snapshots.last().and_then(|s| self.dated(s)),
            age_seconds: self.snapshots.last().map(|s| (judge.now() - s.creation).num_seconds()),
            snapshots: self.snapshots.len(),
            to: None,
            replica: None,
            behind: None,
            unsent_since: None,
            lag_seconds: None,
            limit_seconds: None,
            forecast_seconds: None,
            fresh_since: None,
            unsent_bytes: None,
            observed: inventory.hosts.get(&subject.host).and_then(|h| h.observed),
            findings: Vec::new(),
        };
        // A dataset that receives takes no snapshots of its own; its source is judged instead.
        if !matches!(self.take.reason, TakeReason::Receives { .. }) {
            row.findings.extend(judge.snapshot_age(self.policy, self.last_good()));
        }
        // What is in the trash takes no place in a rule either.
        let kept = self.snapshots.iter().filter(|s| self.dataset.trashed(s.guid).is_none()).count();
        row.findings.extend(judge.too_many(self.policy, kept, None));
        let held = self.snapshots.iter().filter_map(|s| self.dataset.snapshots.get(s.index as usize));
        row.findings.extend(judge.held(self.policy, held.filter(|s| self.dataset.other_holds(s) > 0)));
        row
    }

    fn destination(&self, mut row: Row, send: &SendVerdict, inventory: &Inventory, judge: &mut Judge<'p>) -> Row {
        row.to = Some(send.to.clone());
        row.limit_seconds = self.policy.lag.and_then(|lag| i64::try_from(lag.as_secs()).ok());
        if matches!(send.reason, SendReason::ToItself | SendReason::NameTooLong | SendReason::DestinationTaken { .. }) {
            // The policy itself is at fault, which a notice reports.
            return row;
        }
        let listed = inventory.hosts.get(&send.to.host).filter(|h| h.covers(&send.to.dataset));
        let Some(observed) = listed.and_then(|h| h.observed) else { return row };
        row.observed = row.observed.map(|source| source.min(observed));
        let there = inventory.dataset(&send.to.host, &send.to.dataset);
        let there_by_guid = there.map(SnapshotsByGuid::of).unwrap_or_default();
        let on_both = self.snapshots.iter().rfind(|s| there_by_guid.has(s.guid));
        row.replica = on_both.and_then(|s| self.dated(s));
        // Snapshots older than the newest common point (snapshot or bookmark) will never be sent.
        let base = NewestCommon::of(self.dataset, &there_by_guid).any.map(|b| b.createtxg);
        let unsent =
            self.snapshots.iter().filter(|s| base.is_none_or(|base| s.createtxg > base) && !there_by_guid.has(s.guid));
        row.behind = Some(unsent.clone().count());
        row.unsent_since = unsent.map(|s| s.creation).min();
        row.lag_seconds = Some(row.unsent_since.map_or(0, |since| (judge.now() - since).num_seconds()));
        if let Some(there) = there
            && row.unsent_since.is_some()
        {
            row.findings.extend(diverged(self.dataset, there));
        }
        row.fresh_since = match row.unsent_since {
            Some(unsent) => Some(row.replica.as_ref().map_or(unsent, |replica| replica.creation)),
            // A destination that lacks nothing is as up to date as its source.
            None => self.last_good(),
        };
        row.findings.extend(judge.replica_age(self.policy, &row));
        let is_kept = |there: &DatasetInventory, s: &Snapshot| {
            self.policy.prefix.time_in(&s.name).is_some() && there.trashed(s.guid).is_none()
        };
        let count = there.map_or(0, |t| t.snapshots.iter().filter(|s| is_kept(t, s)).count());
        row.findings.extend(judge.too_many(self.policy, count, row.to.clone()));
        row
    }
}

/// Whether the destination's newest snapshot is one that the source does not have, which prevents the next increment.
fn diverged(ours: &DatasetInventory, theirs: &DatasetInventory) -> Option<Finding> {
    let here = SnapshotsByGuid::of(ours);
    let common = |guid| here.has(guid) || ours.bookmarks.iter().any(|b| b.guid == guid);
    let newest = theirs.newest()?;
    if common(newest.guid) {
        return None;
    }
    let base = theirs.snapshots.iter().rev().find(|s| common(s.guid)).map(|s| s.name.clone());
    Some(Finding::Diverged { newest: newest.name.clone(), base })
}
