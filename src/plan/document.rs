//! The JSON document of a plan, which zsync-plan-json(5) describes.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::actions::{Explained, Notice, Plan, Protection, PruneReason, PruneVerdict, SendVerdict, TakeVerdict};
use crate::fleet::planned::{PlannedOrder, Totals};
use crate::model::tags::held_by;
use crate::model::{HostName, Inventory, SnapName};
use crate::plan::filter::Filter;
use crate::zfs::ZfsRead;

/// A plan.
#[derive(Serialize)]
pub struct Document {
    /// The moment for which it was decided.
    pub at: DateTime<Utc>,
    /// Hosts that were polled and could not be listed, with the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unseen: BTreeMap<HostName, String>,
    /// With `--cached`: when each host of the policy was last listed; `None` if it never was.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub listed: BTreeMap<HostName, Option<DateTime<Utc>>>,
    /// The orders that a pass would give.
    pub orders: Vec<PlannedOrder>,
    /// What the orders would send and free together, if the agents were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Totals>,
    /// What an administrator should know about the policy.
    pub notices: Vec<WithReason<Notice>>,
    /// What this host is called, and the hosts that do not answer and have no address in the policy, so that they may be
    /// this host under another name; `None` if only a file counts.
    #[serde(skip)]
    pub here: Option<(HostName, BTreeSet<HostName>)>,
    /// Every verdict, if `--explain` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explain: Option<Explain>,
}

/// A value with its reason as a sentence.
#[derive(Clone, Debug, Serialize)]
pub struct WithReason<T> {
    /// The value.
    #[serde(flatten)]
    pub what: T,
    /// The reason.
    pub why: String,
}

/// Every verdict of a plan, due or not.
#[derive(Clone, Debug, Serialize)]
pub struct Explain {
    /// Whether a snapshot is due, for each dataset and policy.
    pub takes: Vec<WithReason<TakeVerdict>>,
    /// Whether a transfer is due, for each destination.
    pub sends: Vec<WithReason<SendVerdict>>,
    /// Which snapshots are kept and which are destroyed.
    pub prunes: Vec<ExplainedPrune>,
}

/// Which snapshots of one policy in one dataset are kept and which are destroyed.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedPrune {
    /// The verdict.
    #[serde(flatten)]
    pub verdict: PruneVerdict,
    /// Every snapshot of the policy, oldest first.
    pub snapshots: Vec<WithReason<Explained>>,
}

/// The notices that pass the filter, each as a sentence.
#[must_use]
pub fn notices(all: &[Notice], filter: &Filter) -> Vec<WithReason<Notice>> {
    let wanted = |n: &&Notice| filter.wants_notice(n);
    all.iter().filter(wanted).map(|n| WithReason { why: n.to_string(), what: n.clone() }).collect()
}

impl Explain {
    /// Adds the tags of the holds where nothing but a hold keeps a snapshot of this host. Nobody is asked about other
    /// hosts.
    pub async fn name_holds(&mut self, here: &HostName, zfs: &impl ZfsRead) {
        let is_held = |reason: &PruneReason| matches!(reason, PruneReason::Protected { by: Protection::Held });
        for prune in self.prunes.iter_mut().filter(|prune| prune.verdict.subject.host == *here) {
            let held = prune.snapshots.iter_mut().filter(|s| s.what.reasons.iter().all(is_held));
            let held: Vec<_> = held.collect();
            let names: Vec<SnapName> = held.iter().map(|s| s.what.name.clone()).collect();
            if names.is_empty() {
                continue;
            }
            // Without the tags, the explanation is still right.
            let holds = zfs.holds(&prune.verdict.subject.dataset, &names).await.unwrap_or_default();
            for snapshot in held {
                let on = holds.iter().filter(|(name, _)| *name == snapshot.what.name);
                snapshot.why = held_by(&on.map(|(_, tag)| tag.clone()).collect::<Vec<_>>());
            }
        }
    }

    /// Explains the part of a plan that passes the filter. `inventory` is the one for which it was decided.
    #[must_use]
    pub fn new(plan: &Plan, inventory: &Inventory, filter: &Filter) -> Self {
        let takes = plan.takes.iter().filter(|t| filter.wants(&t.subject.host, &t.subject.dataset));
        let sends = plan.sends.iter().filter(|s| filter.wants(&s.subject.host, &s.subject.dataset));
        let prunes = plan.prunes.iter().filter(|p| filter.wants(&p.subject.host, &p.subject.dataset));
        Self {
            takes: takes.map(|t| WithReason { what: t.clone(), why: t.reason.to_string() }).collect(),
            sends: sends.map(|s| WithReason { what: s.clone(), why: s.why(plan.at) }).collect(),
            prunes: prunes.map(|p| ExplainedPrune { verdict: p.clone(), snapshots: snapshots(p, inventory) }).collect(),
        }
    }
}

fn snapshots(prune: &PruneVerdict, inventory: &Inventory) -> Vec<WithReason<Explained>> {
    let present = inventory.dataset(&prune.subject.host, &prune.subject.dataset);
    let explained = present.map(|present| prune.explain(present)).unwrap_or_default();
    explained.into_iter().map(|what| WithReason { why: sentence(&what.reasons), what }).collect()
}

fn sentence(reasons: &[PruneReason]) -> String {
    let all: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    all.join("; ")
}
