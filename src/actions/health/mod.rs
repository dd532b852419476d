//! How well the policy is kept: of every dataset the newest snapshot, of every destination the newest replica and how
//! far it lags behind; judged by the policy's thresholds, or by its schedules where it has none.

mod finding;
mod judge;
mod listed;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Serialize, Serializer};

use crate::actions::common::{ByGuid, Common, Own, own_snapshots};
use crate::actions::health::judge::Judge;
use crate::actions::plan::{SendVerdict, TakeVerdict};
use crate::actions::reason::{SendReason, TakeReason};
use crate::actions::{Notice, decide};
use crate::model::{DatasetInventory, DatasetName, HostName, Inventory, SnapName};
use crate::policy::{Policy, SnapshotPolicy, Target};
pub use finding::{Finding, Severity, span};

/// A snapshot, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Point {
    /// Its name after `@`.
    pub name: SnapName,
    /// When it was taken.
    pub creation: DateTime<Utc>,
}

/// One dataset of one policy, and one of the places that it is sent to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The index of the entry in `policy.datasets`.
    pub entry: usize,
    /// The policy's name: `backup`, `sync`, ...
    pub policy: String,
    /// The host that has the dataset.
    pub host: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// Its newest snapshot of the policy.
    pub newest: Option<Point>,
    /// How old that is, in seconds.
    pub age_seconds: Option<i64>,
    /// How many snapshots of the policy it has.
    pub snapshots: usize,
    /// Where it is sent to; `None` where the policy sends it nowhere.
    pub to: Option<Target>,
    /// The newest of its snapshots of the policy that is there.
    pub replica: Option<Point>,
    /// How many of its snapshots of the policy are not there yet; `None` where nobody knows.
    pub behind: Option<usize>,
    /// Since when something is to go there: the creation of the oldest snapshot that is not there yet.
    pub unsent_since: Option<DateTime<Utc>>,
    /// For how long that has been so, in seconds; 0 where all is there.
    pub lag_seconds: Option<i64>,
    /// How many bytes are to go there, about; `None` where that was not asked, or nobody can tell.
    pub unsent_bytes: Option<u64>,
    /// How old what is known of both sides is: when the one that was listed longer ago was listed.
    pub observed: Option<DateTime<Utc>>,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

/// A host of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostState {
    /// Its name.
    pub host: HostName,
    /// When its ZFS was listed last.
    pub observed: Option<DateTime<Utc>>,
    /// Why it could not be looked at, if so.
    pub unseen: Option<String>,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

/// How well the policy is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The moment that it is judged for.
    pub at: DateTime<Utc>,
    /// How bad it is: the worst of all findings.
    pub severity: Severity,
    /// The hosts, by name.
    pub hosts: Vec<HostState>,
    /// Datasets with their destinations, in the order of the policy.
    pub rows: Vec<Row>,
    /// What the policy asks for and cannot be.
    #[serde(serialize_with = "in_words")]
    pub notices: Vec<Notice>,
}

fn in_words<S: Serializer>(notices: &[Notice], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(notices.iter().map(ToString::to_string))
}

impl Row {
    /// How old the newest snapshot is.
    #[must_use]
    pub fn age(&self) -> Option<TimeDelta> {
        self.age_seconds.map(TimeDelta::seconds)
    }

    /// How far the destination lags behind: how long ago the oldest snapshot was taken that is not there. Zero where
    /// all is there.
    #[must_use]
    pub fn lag(&self) -> Option<TimeDelta> {
        self.lag_seconds.map(TimeDelta::seconds)
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        worst(&self.findings)
    }
}

impl Health {
    /// Leaves what concerns this host, and this dataset or what is below it.
    pub fn narrow(&mut self, host: Option<&HostName>, dataset: Option<&DatasetName>) {
        let of_host = |name: &HostName| host.is_none_or(|host| host == name);
        let within = |name: &DatasetName| dataset.is_none_or(|root| name.is_within(root));
        self.rows.retain(|row| {
            let to = row.to.as_ref();
            (of_host(&row.host) || to.is_some_and(|to| of_host(&to.host)))
                && (within(&row.dataset) || to.is_some_and(|to| within(&to.dataset)))
        });
        let named: BTreeSet<&HostName> =
            self.rows.iter().flat_map(|row| [Some(&row.host), row.to.as_ref().map(|to| &to.host)]).flatten().collect();
        self.hosts.retain(|state| match dataset {
            None => of_host(&state.host),
            Some(_) => named.contains(&state.host),
        });
        self.notices.retain(|n| of_host(&n.host) && n.dataset.as_ref().is_none_or(within));
        self.judge();
    }

    fn judge(&mut self) {
        let rows = self.rows.iter().map(Row::severity);
        let worst = rows.chain(self.hosts.iter().map(HostState::severity)).max().unwrap_or_default();
        self.severity = if self.notices.is_empty() { worst } else { Severity::Critical };
    }
}

impl HostState {
    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        worst(&self.findings)
    }
}

fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(Finding::severity).max().unwrap_or_default()
}

/// Judges everything that is known, as of `now`. `unseen` are hosts that could not be looked at, with the reason.
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
        let mut own = Vec::new();
        own_snapshots(dataset, &of.prefix, &mut own);
        let case = Case { take, policy: of, dataset, own: &own };
        let source = case.source(inventory, &mut judge);
        let to = sends.get(&(subject.entry, subject.policy_index, &subject.dataset)).map(Vec::as_slice);
        match to.unwrap_or_default() {
            [] => rows.push(source),
            sends => {
                // What is wrong with the source is told once.
                let mut findings = source.findings.clone();
                for send in sends {
                    let bare = Row { findings: std::mem::take(&mut findings), ..source.clone() };
                    rows.push(case.destination(bare, send, inventory, &mut judge));
                }
            }
        }
    }
    let hosts = hosts(policy, inventory, unseen);
    let notices: Vec<Notice> = plan.notices.into_iter().filter(|notice| notice.kind.is_failure()).collect();
    let mut health = Health { at: now, severity: Severity::Ok, hosts, rows, notices };
    health.judge();
    health
}

fn hosts(policy: &Policy, inventory: &Inventory, unseen: &BTreeMap<HostName, String>) -> Vec<HostState> {
    let state = |host: HostName| {
        let observed = inventory.hosts.get(&host).and_then(|known| known.observed);
        let reason = unseen.get(&host).cloned();
        let finding = match (&reason, observed) {
            (Some(reason), since) => Some(Finding::OutOfReach { since, reason: reason.clone() }),
            (None, None) => Some(Finding::NeverListed),
            (None, Some(_)) => None,
        };
        HostState { host, observed, unseen: reason, findings: finding.into_iter().collect() }
    };
    policy.hosts_named().into_iter().map(state).collect()
}

/// One dataset with one policy.
struct Case<'p, 's> {
    take: &'s TakeVerdict,
    policy: &'p SnapshotPolicy,
    dataset: &'s DatasetInventory,
    own: &'s [Own],
}

impl<'p> Case<'p, '_> {
    fn point(&self, own: &Own) -> Option<Point> {
        let snapshot = self.dataset.snapshots.get(own.index as usize)?;
        Some(Point { name: snapshot.name.clone(), creation: own.creation })
    }

    /// When it was last found to be as it should: the newest snapshot, or the newest slot in which nothing was written.
    fn last_good(&self) -> Option<DateTime<Utc>> {
        let marks = self.dataset.not_written.iter().filter(|m| self.policy.prefix.time_in(&m.name).is_some());
        marks.map(|m| m.at).chain(self.own.last().map(|s| s.creation)).max()
    }

    fn source(&self, inventory: &Inventory, judge: &mut Judge<'p>) -> Row {
        let subject = &self.take.subject;
        let mut row = Row {
            entry: subject.entry,
            policy: subject.policy.clone(),
            host: subject.host.clone(),
            dataset: subject.dataset.clone(),
            newest: self.own.last().and_then(|s| self.point(s)),
            age_seconds: self.own.last().map(|s| (judge.now() - s.creation).num_seconds()),
            snapshots: self.own.len(),
            to: None,
            replica: None,
            behind: None,
            unsent_since: None,
            lag_seconds: None,
            unsent_bytes: None,
            observed: inventory.hosts.get(&subject.host).and_then(|h| h.observed),
            findings: Vec::new(),
        };
        // What it receives is judged where it comes from.
        if !matches!(self.take.reason, TakeReason::Receives { .. }) {
            row.findings.extend(judge.snapshot_age(self.policy, self.last_good()));
        }
        row.findings.extend(judge.too_many(self.policy, self.own.len(), None));
        let held = self.own.iter().filter_map(|s| self.dataset.snapshots.get(s.index as usize));
        row.findings.extend(judge.held(self.policy, held.filter(|s| s.userrefs > 0)));
        row
    }

    fn destination(&self, mut row: Row, send: &SendVerdict, inventory: &Inventory, judge: &mut Judge<'p>) -> Row {
        row.to = Some(send.to.clone());
        if matches!(send.reason, SendReason::ToItself | SendReason::NameTooLong | SendReason::DestinationTaken { .. }) {
            // The policy itself is at fault, which a notice tells.
            return row;
        }
        let Some(observed) = inventory.hosts.get(&send.to.host).and_then(|h| h.observed) else { return row };
        row.observed = row.observed.map(|source| source.min(observed));
        let there = inventory.dataset(&send.to.host, &send.to.dataset);
        let held = there.map(ByGuid::of).unwrap_or_default();
        let on_both = self.own.iter().rfind(|s| held.has(s.guid));
        row.replica = on_both.and_then(|s| self.point(s));
        // What is older than the newest common point, snapshot or bookmark, is not sent any more.
        let base = Common::of(self.dataset, &held).any.map(|b| b.createtxg);
        let unsent = self.own.iter().filter(|s| base.is_none_or(|base| s.createtxg > base) && !held.has(s.guid));
        row.behind = Some(unsent.clone().count());
        row.unsent_since = unsent.map(|s| s.creation).min();
        row.lag_seconds = Some(row.unsent_since.map_or(0, |since| (judge.now() - since).num_seconds()));
        if let Some(there) = there
            && row.unsent_since.is_some()
        {
            row.findings.extend(diverged(self.dataset, there));
        }
        let fresh_until = if row.unsent_since.is_none() { self.last_good() } else { None };
        row.findings.extend(judge.replica_age(self.policy, &row, fresh_until));
        let copies =
            there.map_or(0, |t| t.snapshots.iter().filter(|s| self.policy.prefix.time_in(&s.name).is_some()).count());
        row.findings.extend(judge.too_many(self.policy, copies, row.to.clone()));
        row
    }
}

/// What a destination has that stands in the way of the next increment.
fn diverged(ours: &DatasetInventory, theirs: &DatasetInventory) -> Option<Finding> {
    let here = ByGuid::of(ours);
    let common = |guid| here.has(guid) || ours.bookmarks.iter().any(|b| b.guid == guid);
    let newest = theirs.newest()?;
    if common(newest.guid) {
        return None;
    }
    let base = theirs.snapshots.iter().rev().find(|s| common(s.guid)).map(|s| s.name.clone());
    Some(Finding::Diverged { newest: newest.name.clone(), base })
}
