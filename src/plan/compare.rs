//! `plan --compare`: what another policy would do otherwise, with the same world at the same moment.
//!
//! Pure: both policies decide, nothing is carried out.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::actions::{Order, Plan, PruneVerdict, decide};
use crate::model::{DatasetName, Guid, HostName, Inventory, Place, SnapName};
use crate::policy::Policy;

/// Everything that differs, seen from the policy in force.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The moment that both decided for.
    pub at: DateTime<Utc>,
    /// What differs.
    pub differences: Vec<Difference>,
}

/// What the other policy would do otherwise with one dataset.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "difference", rename_all = "snake_case")]
pub enum Difference {
    /// It would take a snapshot that this one does not.
    Takes(Take),
    /// It would not take a snapshot that this one does.
    DoesNotTake(Take),
    /// It would send what this one does not.
    Sends(Send),
    /// It would not send what this one does.
    DoesNotSend(Send),
    /// It would destroy what this one keeps.
    Destroys(Snapshots),
    /// It would keep what this one destroys.
    Keeps(Snapshots),
}

/// A snapshot that only one of both takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Take {
    /// Where.
    pub host: HostName,
    /// Of what.
    pub dataset: DatasetName,
    /// Its name.
    pub name: SnapName,
    /// Why this policy takes it, or does not.
    pub this: String,
    /// Why the other one does, or does not.
    pub other: String,
}

/// A transfer that only one of both makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Send {
    /// The sending host.
    pub host: HostName,
    /// The dataset there.
    pub dataset: DatasetName,
    /// What it comes to.
    pub snapshot: SnapName,
    /// Where it goes.
    pub to: Place,
    /// Why this policy sends it, or does not.
    pub this: String,
    /// Why the other one does, or does not.
    pub other: String,
}

/// Snapshots of one dataset that only one of both destroys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshots {
    /// Where.
    pub host: HostName,
    /// Of what.
    pub dataset: DatasetName,
    /// Which, oldest first.
    pub snapshots: Vec<Snapshot>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Its name.
    pub name: SnapName,
    /// Its identity.
    pub guid: Guid,
    /// When it was taken.
    pub creation: DateTime<Utc>,
    /// Why the policy that keeps it keeps it.
    pub kept_because: String,
}

impl Difference {
    /// The host and dataset that it is about.
    #[must_use]
    pub fn place(&self) -> (&HostName, &DatasetName) {
        match self {
            Self::Takes(Take { host, dataset, .. }) | Self::DoesNotTake(Take { host, dataset, .. }) => (host, dataset),
            Self::Sends(Send { host, dataset, .. }) | Self::DoesNotSend(Send { host, dataset, .. }) => (host, dataset),
            Self::Destroys(Snapshots { host, dataset, .. }) | Self::Keeps(Snapshots { host, dataset, .. }) => {
                (host, dataset)
            }
        }
    }
}

/// Compares what two policies decide.
#[must_use]
pub fn compare(this: &Policy, other: &Policy, inventory: &Inventory, at: DateTime<Utc>) -> Comparison {
    let (mine, theirs) = (decide(this, inventory, at), decide(other, inventory, at));
    let mut differences = Vec::new();
    let (my_takes, their_takes) = (takes(&mine.orders(this)), takes(&theirs.orders(other)));
    for take in only_in(&their_takes, &my_takes) {
        let this = why_no_take(&mine, take);
        differences.push(Difference::Takes(Take { this, ..take.clone() }));
    }
    for take in only_in(&my_takes, &their_takes) {
        let (this, other) = (take.other.clone(), why_no_take(&theirs, take));
        differences.push(Difference::DoesNotTake(Take { this, other, ..take.clone() }));
    }
    let (my_sends, their_sends) = (sends(&mine), sends(&theirs));
    for send in only_in(&their_sends, &my_sends) {
        let this = why_no_send(&mine, send);
        differences.push(Difference::Sends(Send { this, ..send.clone() }));
    }
    for send in only_in(&my_sends, &their_sends) {
        let (this, other) = (send.other.clone(), why_no_send(&theirs, send));
        differences.push(Difference::DoesNotSend(Send { this, other, ..send.clone() }));
    }
    differences.extend(destroyed_only_by(&theirs, &mine, inventory).map(Difference::Destroys));
    differences.extend(destroyed_only_by(&mine, &theirs, inventory).map(Difference::Keeps));
    Comparison { at, differences }
}

fn only_in<'a, K: Ord, V>(these: &'a BTreeMap<K, V>, those: &'a BTreeMap<K, V>) -> impl Iterator<Item = &'a V> {
    these.iter().filter(|(key, _)| !those.contains_key(*key)).map(|(_, value)| value)
}

type TakeKey = (HostName, DatasetName, SnapName);

/// By what they would leave behind; the reason stands in `other`.
fn takes(orders: &[Order]) -> BTreeMap<TakeKey, Take> {
    let mut all = BTreeMap::new();
    for order in orders {
        let Order::Take { host, name, datasets, reason, .. } = order else { continue };
        for dataset in datasets {
            let (host, dataset, name) = (host.clone(), dataset.clone(), name.clone());
            let take = Take { this: String::new(), other: reason.clone(), host, dataset, name };
            all.insert((take.host.clone(), take.dataset.clone(), take.name.clone()), take);
        }
    }
    all
}

/// What a plan says of a dataset of which it takes no such snapshot: the reasons of all policies, or that there is none.
fn why_no_take(plan: &Plan, take: &Take) -> String {
    let of = |t: &&crate::actions::TakeVerdict| t.subject.host == take.host && t.subject.dataset == take.dataset;
    let said = plan.takes.iter().filter(of).map(|t| match &t.due {
        Some(name) => format!("{}: takes {name}", t.subject.policy),
        None => format!("{}: {}", t.subject.policy, t.reason),
    });
    or_no_policy(said)
}

type SendKey = (HostName, DatasetName, Guid, Place);

fn sends(plan: &Plan) -> BTreeMap<SendKey, Send> {
    let due = plan.sends.iter().filter_map(|verdict| {
        let due = verdict.due.as_ref()?;
        let (host, dataset) = (verdict.subject.host.clone(), verdict.subject.dataset.clone());
        let key = (host.clone(), dataset.clone(), due.guid, verdict.to.clone());
        let (snapshot, to, other) = (due.snapshot.clone(), verdict.to.clone(), verdict.why(plan.at));
        Some((key, Send { host, dataset, snapshot, to, this: String::new(), other }))
    });
    due.collect()
}

fn why_no_send(plan: &Plan, send: &Send) -> String {
    let of = |s: &&crate::actions::SendVerdict| {
        s.subject.host == send.host && s.subject.dataset == send.dataset && s.to == send.to
    };
    let said = plan.sends.iter().filter(of).map(|s| match &s.due {
        Some(due) => format!("{}: sends {}", s.subject.policy, due.snapshot),
        None => format!("{}: {}", s.subject.policy, s.reason),
    });
    or_no_policy(said)
}

fn or_no_policy(said: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = said.collect();
    if all.is_empty() { "no policy says so".to_owned() } else { all.join("; ") }
}

type ByPlace<'p> = BTreeMap<(&'p HostName, &'p DatasetName), Vec<&'p PruneVerdict>>;

fn by_place(plan: &Plan) -> ByPlace<'_> {
    let mut all = ByPlace::new();
    for prune in &plan.prunes {
        all.entry((&prune.subject.host, &prune.subject.dataset)).or_default().push(prune);
    }
    all
}

/// What one plan destroys and the other keeps, with the other's reasons.
fn destroyed_only_by<'a>(
    one: &'a Plan,
    other: &'a Plan,
    inventory: &'a Inventory,
) -> impl Iterator<Item = Snapshots> + 'a {
    let others = by_place(other);
    by_place(one).into_iter().filter_map(move |((host, dataset), prunes)| {
        let keepers = others.get(&(host, dataset)).map(Vec::as_slice).unwrap_or_default();
        let also: HashSet<Guid> = keepers.iter().flat_map(|k| &k.destroy).map(|d| d.guid).collect();
        let doomed: Vec<_> = prunes.iter().flat_map(|p| &p.destroy).filter(|d| !also.contains(&d.guid)).collect();
        if doomed.is_empty() {
            return None;
        }
        let held = inventory.dataset(host, dataset)?;
        let mut reasons: HashMap<Guid, String> = HashMap::new();
        for explained in keepers.iter().flat_map(|keeper| keeper.explain(held)) {
            let why: Vec<String> = explained.reasons.iter().map(ToString::to_string).collect();
            reasons.insert(explained.guid, why.join("; "));
        }
        let created: HashMap<Guid, DateTime<Utc>> = held.snapshots.iter().map(|s| (s.guid, s.creation)).collect();
        let snapshot = |d: &&crate::actions::Doomed| {
            let kept_because = reasons.remove(&d.guid).unwrap_or_else(|| "no policy prunes it".to_owned());
            let creation = created.get(&d.guid).copied().unwrap_or_default();
            Snapshot { name: d.name.clone(), guid: d.guid, creation, kept_because }
        };
        let snapshots = doomed.iter().map(snapshot).collect();
        Some(Snapshots { host: host.clone(), dataset: dataset.clone(), snapshots })
    })
}
