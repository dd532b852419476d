//! The JSON of a plan, as zsync-plan-json(5) describes it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::actions::{Explained, Notice, Plan, PruneReason, PruneVerdict, SendVerdict, TakeVerdict};
use crate::fleet::planned::{PlannedOrder, Totals};
use crate::model::{HostName, Inventory};
use crate::plan::filter::Filter;

/// A plan.
#[derive(Serialize)]
pub struct Document {
    /// The moment that it was decided for.
    pub at: DateTime<Utc>,
    /// Hosts that were asked and could not be listed, with the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unseen: BTreeMap<HostName, String>,
    /// What would be done.
    pub orders: Vec<PlannedOrder>,
    /// What the orders would send and free together, if the agents were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Totals>,
    /// What an administrator should know.
    pub notices: Vec<Told<Notice>>,
    /// Every verdict, if wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explain: Option<Explain>,
}

/// Something with its reason as a sentence.
#[derive(Clone, Debug, Serialize)]
pub struct Told<T> {
    /// What.
    #[serde(flatten)]
    pub what: T,
    /// The sentence.
    pub why: String,
}

/// Every verdict of a plan, due or not.
#[derive(Clone, Debug, Serialize)]
pub struct Explain {
    /// Is a snapshot due?
    pub takes: Vec<Told<TakeVerdict>>,
    /// Is a transfer due?
    pub sends: Vec<Told<SendVerdict>>,
    /// What stays, what goes?
    pub prunes: Vec<Prune>,
}

/// What stays and what goes of one policy in one dataset.
#[derive(Clone, Debug, Serialize)]
pub struct Prune {
    /// The verdict.
    #[serde(flatten)]
    pub verdict: PruneVerdict,
    /// Every snapshot of it, oldest first.
    pub snapshots: Vec<Told<Explained>>,
}

/// The notices that are wanted, with their sentences.
#[must_use]
pub fn notices(plan: &Plan, filter: &Filter) -> Vec<Told<Notice>> {
    let wanted = |n: &&Notice| filter.wants_notice(n);
    plan.notices.iter().filter(wanted).map(|n| Told { why: n.to_string(), what: n.clone() }).collect()
}

impl Explain {
    /// Explains the wanted part of a plan. `inventory` is what it was decided on.
    #[must_use]
    pub fn new(plan: &Plan, inventory: &Inventory, filter: &Filter) -> Self {
        let takes = plan.takes.iter().filter(|t| filter.wants(&t.subject.host, &t.subject.dataset));
        let sends = plan.sends.iter().filter(|s| filter.wants(&s.subject.host, &s.subject.dataset));
        let prunes = plan.prunes.iter().filter(|p| filter.wants(&p.subject.host, &p.subject.dataset));
        Self {
            takes: takes.map(|t| Told { what: t.clone(), why: t.reason.to_string() }).collect(),
            sends: sends.map(|s| Told { what: s.clone(), why: s.why(plan.at) }).collect(),
            prunes: prunes.map(|p| Prune { verdict: p.clone(), snapshots: snapshots(p, inventory) }).collect(),
        }
    }
}

fn snapshots(prune: &PruneVerdict, inventory: &Inventory) -> Vec<Told<Explained>> {
    let held = inventory.dataset(&prune.subject.host, &prune.subject.dataset);
    let explained = held.map(|held| prune.explain(held)).unwrap_or_default();
    explained.into_iter().map(|what| Told { why: sentence(&what.reasons), what }).collect()
}

fn sentence(reasons: &[PruneReason]) -> String {
    let all: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    all.join("; ")
}
