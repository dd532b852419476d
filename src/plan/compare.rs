//! `plan --compare`: what another policy would do differently for the same inventory at the same moment.
//!
//! This is pure: the engine decides for both policies, and nothing is carried out.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::actions::{Doomed, Order, Plan, PruneVerdict, SendVerdict, TakeVerdict, decide};
use crate::model::Place;
use crate::model::{DatasetName, Guid, HostName, Inventory, SnapName};
use crate::policy::Policy;

/// Every difference of another policy from the policy in force.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// The moment for which both decided.
    pub at: DateTime<Utc>,
    /// The differences.
    pub differences: Vec<Difference>,
}

/// What the other policy would do differently with one dataset.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "difference", rename_all = "snake_case")]
pub enum Difference {
    /// It would take a snapshot that the policy in force does not take.
    Takes(TakeDifference),
    /// It would not take a snapshot that the policy in force takes.
    DoesNotTake(TakeDifference),
    /// It would send what the policy in force does not send.
    Sends(SendDifference),
    /// It would not send what the policy in force sends.
    DoesNotSend(SendDifference),
    /// It would destroy snapshots that the policy in force keeps.
    Destroys(SnapshotsDifference),
    /// It would keep snapshots that the policy in force destroys.
    Keeps(SnapshotsDifference),
}

/// A snapshot that only one of the two policies takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TakeDifference {
    /// The host.
    pub host: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// Its name.
    pub name: SnapName,
    /// Why the policy in force takes it or does not.
    pub this: String,
    /// Why the other policy takes it or does not.
    pub other: String,
}

/// A transfer that only one of the two policies makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SendDifference {
    /// The sending host.
    pub host: HostName,
    /// The dataset there.
    pub dataset: DatasetName,
    /// The newest snapshot that is sent.
    pub snapshot: SnapName,
    /// The destination.
    pub to: Place,
    /// Why the policy in force sends it or does not.
    pub this: String,
    /// Why the other policy sends it or does not.
    pub other: String,
}

/// Snapshots of one dataset that only one of the two policies destroys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotsDifference {
    /// The host.
    pub host: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// The snapshots, oldest first.
    pub snapshots: Vec<SnapshotDifference>,
}

/// A snapshot that only one of the two policies destroys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotDifference {
    /// Its name.
    pub name: SnapName,
    /// Its guid.
    pub guid: Guid,
    /// When it was taken.
    pub creation: DateTime<Utc>,
    /// The reasons of the policy that keeps it.
    pub kept_because: String,
}

impl Difference {
    /// The host and the dataset of the difference.
    #[must_use]
    pub fn place(&self) -> (&HostName, &DatasetName) {
        match self {
            Self::Takes(TakeDifference { host, dataset, .. })
            | Self::DoesNotTake(TakeDifference { host, dataset, .. }) => (host, dataset),
            Self::Sends(SendDifference { host, dataset, .. })
            | Self::DoesNotSend(SendDifference { host, dataset, .. }) => (host, dataset),
            Self::Destroys(SnapshotsDifference { host, dataset, .. })
            | Self::Keeps(SnapshotsDifference { host, dataset, .. }) => (host, dataset),
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
        differences.push(Difference::Takes(TakeDifference { this, ..take.clone() }));
    }
    for take in only_in(&my_takes, &their_takes) {
        let (this, other) = (take.other.clone(), why_no_take(&theirs, take));
        differences.push(Difference::DoesNotTake(TakeDifference { this, other, ..take.clone() }));
    }
    let (my_sends, their_sends) = (sends(&mine), sends(&theirs));
    for send in only_in(&their_sends, &my_sends) {
        let this = why_no_send(&mine, send);
        differences.push(Difference::Sends(SendDifference { this, ..send.clone() }));
    }
    for send in only_in(&my_sends, &their_sends) {
        let (this, other) = (send.other.clone(), why_no_send(&theirs, send));
        differences.push(Difference::DoesNotSend(SendDifference { this, other, ..send.clone() }));
    }
    differences.extend(destroyed_only_by(&theirs, &mine, inventory).map(Difference::Destroys));
    differences.extend(destroyed_only_by(&mine, &theirs, inventory).map(Difference::Keeps));
    Comparison { at, differences }
}

fn only_in<'a, K: Ord, V>(these: &'a BTreeMap<K, V>, those: &'a BTreeMap<K, V>) -> impl Iterator<Item = &'a V> {
    these.iter().filter(|(key, _)| !those.contains_key(*key)).map(|(_, value)| value)
}

type TakeKey = (HostName, DatasetName, SnapName);

/// The snapshots that a policy takes. The policy's reason is in `other`.
fn takes(orders: &[Order]) -> BTreeMap<TakeKey, TakeDifference> {
    let mut all = BTreeMap::new();
    for order in orders {
        let Order::Take { host, name, datasets, reason, .. } = order else { continue };
        for dataset in datasets {
            let (host, dataset, name) = (host.clone(), dataset.clone(), name.clone());
            let take = TakeDifference { this: String::new(), other: reason.clone(), host, dataset, name };
            all.insert((take.host.clone(), take.dataset.clone(), take.name.clone()), take);
        }
    }
    all
}

/// Why a plan does not take this snapshot: what each of its policies does instead, with the reason.
fn why_no_take(plan: &Plan, take: &TakeDifference) -> String {
    let of = |t: &&TakeVerdict| t.subject.host == take.host && t.subject.dataset == take.dataset;
    let reasons = plan.takes.iter().filter(of).map(|t| match &t.due {
        Some(name) => format!("{}: takes {name}", t.subject.policy),
        None => format!("{}: {}", t.subject.policy, t.reason),
    });
    joined_reasons(reasons)
}

type SendKey = (HostName, DatasetName, Guid, Place);

/// The transfers that a policy makes. The policy's reason is in `other`.
fn sends(plan: &Plan) -> BTreeMap<SendKey, SendDifference> {
    let due = plan.sends.iter().filter_map(|verdict| {
        let due = verdict.due.as_ref()?;
        let (host, dataset) = (verdict.subject.host.clone(), verdict.subject.dataset.clone());
        let key = (host.clone(), dataset.clone(), due.guid, verdict.to.clone());
        let (snapshot, to, other) = (due.snapshot.clone(), verdict.to.clone(), verdict.why(plan.at));
        Some((key, SendDifference { host, dataset, snapshot, to, this: String::new(), other }))
    });
    due.collect()
}

/// Why a plan does not make this transfer: what each of its policies does instead, with the reason.
fn why_no_send(plan: &Plan, send: &SendDifference) -> String {
    let of = |s: &&SendVerdict| s.subject.host == send.host && s.subject.dataset == send.dataset && s.to == send.to;
    let reasons = plan.sends.iter().filter(of).map(|s| match &s.due {
        Some(due) => format!("{}: sends {}", s.subject.policy, due.snapshot),
        None => format!("{}: {}", s.subject.policy, s.reason),
    });
    joined_reasons(reasons)
}

fn joined_reasons(reasons: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = reasons.collect();
    if all.is_empty() { "no policy applies".to_owned() } else { all.join("; ") }
}

type ByPlace<'p> = BTreeMap<(&'p HostName, &'p DatasetName), Vec<&'p PruneVerdict>>;

fn by_place(plan: &Plan) -> ByPlace<'_> {
    let mut all = ByPlace::new();
    for prune in &plan.prunes {
        all.entry((&prune.subject.host, &prune.subject.dataset)).or_default().push(prune);
    }
    all
}

/// The snapshots that one plan destroys and the other keeps, with the reasons of the other.
fn destroyed_only_by<'a>(
    one: &'a Plan,
    other: &'a Plan,
    inventory: &'a Inventory,
) -> impl Iterator<Item = SnapshotsDifference> + 'a {
    let others = by_place(other);
    by_place(one).into_iter().filter_map(move |((host, dataset), prunes)| {
        let keepers = others.get(&(host, dataset)).map(Vec::as_slice).unwrap_or_default();
        let destroyed_by_both: HashSet<Guid> = keepers.iter().flat_map(|k| &k.destroy).map(|d| d.guid).collect();
        let doomed: Vec<_> =
            prunes.iter().flat_map(|p| &p.destroy).filter(|d| !destroyed_by_both.contains(&d.guid)).collect();
        if doomed.is_empty() {
            return None;
        }
        let present = inventory.dataset(host, dataset)?;
        let mut reasons: HashMap<Guid, String> = HashMap::new();
        for explained in keepers.iter().flat_map(|keeper| keeper.explain(present)) {
            let why: Vec<String> = explained.reasons.iter().map(ToString::to_string).collect();
            reasons.insert(explained.guid, why.join("; "));
        }
        let created: HashMap<Guid, DateTime<Utc>> = present.snapshots.iter().map(|s| (s.guid, s.creation)).collect();
        let snapshot = |d: &&Doomed| {
            let kept_because = reasons.remove(&d.guid).unwrap_or_else(|| "no policy prunes it".to_owned());
            let creation = created.get(&d.guid).copied().unwrap_or_default();
            SnapshotDifference { name: d.name.clone(), guid: d.guid, creation, kept_because }
        };
        let snapshots = doomed.iter().map(snapshot).collect();
        Some(SnapshotsDifference { host: host.clone(), dataset: dataset.clone(), snapshots })
    })
}
