//! Derives the orders from the verdicts of a plan.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::actions::order::Order;
use crate::actions::plan::Plan;
use crate::actions::prune::{HeldBack, PruneVerdict};
use crate::actions::verdict::SendVerdict;
use crate::policy::Policy;

impl Plan {
    /// The orders that a pass gives to carry the plan out: takes, then sends, then destroys.
    #[must_use]
    pub fn orders(&self, policy: &Policy) -> Vec<Order> {
        self.orders_with(policy, |prune| prune.held_back.is_none())
    }

    /// The orders that carry the plan out if somebody has approved it: also destroys that are too many for a pass.
    #[must_use]
    pub fn approved_orders(&self, policy: &Policy) -> Vec<Order> {
        self.orders_with(policy, |prune| prune.held_back != Some(HeldBack::ClockAhead))
    }

    fn orders_with(&self, policy: &Policy, may_prune: impl Fn(&PruneVerdict) -> bool) -> Vec<Order> {
        let mut orders = takes(self, policy);
        orders.extend(self.sends.iter().filter_map(|verdict| send(verdict, policy, self.at)));
        orders.extend(self.prunes.iter().filter(|p| !p.destroy.is_empty() && may_prune(p)).map(destroy));
        orders
    }
}

/// Makes one order for all datasets of a pool that need a snapshot of the same name: `zfs snapshot` takes them in one
/// step.
fn takes(plan: &Plan, policy: &Policy) -> Vec<Order> {
    let mut orders: Vec<Order> = Vec::new();
    let mut order_of = HashMap::new();
    for verdict in &plan.takes {
        let (Some(name), Some(entry)) = (&verdict.due, policy.datasets.get(verdict.subject.entry)) else { continue };
        let subject = &verdict.subject;
        let key = (subject.entry, subject.policy_index, &subject.host, subject.dataset.pool(), name);
        let index = *order_of.entry(key).or_insert(orders.len());
        if let Some(Order::Take { datasets, .. }) = orders.get_mut(index) {
            datasets.push(subject.dataset.clone());
            continue;
        }
        orders.push(Order::Take {
            entry: subject.entry,
            host: subject.host.clone(),
            name: name.clone(),
            datasets: vec![subject.dataset.clone()],
            policy: subject.policy.clone(),
            skip_if_not_written: entry.skip_if_not_written,
            reason: verdict.reason.to_string(),
        });
    }
    for order in &mut orders {
        if let Order::Take { datasets, .. } = order {
            // A parent's name is a prefix of its children's names, so it sorts before them.
            datasets.sort();
        }
    }
    orders
}

fn send(verdict: &SendVerdict, policy: &Policy, at: DateTime<Utc>) -> Option<Order> {
    let due = verdict.due.clone()?;
    let subject = verdict.subject.clone();
    let of = policy.datasets.get(subject.entry).and_then(|entry| entry.policies.get(subject.policy_index));
    let lag = of.and_then(|policy| policy.lag).and_then(|lag| TimeDelta::from_std(lag).ok());
    // A destination without a snapshot lags since the first one that it lacks was taken.
    let deadline = lag.and_then(|lag| due.newest_there.unwrap_or(due.oldest_unsent).checked_add_signed(lag));
    Some(Order::Send {
        entry: subject.entry,
        host: subject.host,
        dataset: subject.dataset,
        snapshot: due.snapshot,
        guid: due.guid,
        to: verdict.to.clone(),
        allowed: verdict.allowed,
        route: verdict.route.clone(),
        policy: subject.policy,
        reason: verdict.why(at),
        oldest_unsent: due.oldest_unsent,
        deadline,
    })
}

fn destroy(verdict: &PruneVerdict) -> Order {
    let subject = verdict.subject.clone();
    Order::Destroy {
        entry: subject.entry,
        host: subject.host,
        dataset: subject.dataset,
        side: verdict.side,
        snapshots: verdict.destroy.iter().map(|d| (d.guid, d.name.clone())).collect(),
        keep_common_with: verdict.peers.clone(),
        skip_if_renamed: verdict.skip_if_renamed,
        skip_if_cloned: verdict.skip_if_cloned,
        policy: subject.policy,
        reason: why_destroy(verdict),
        // What goes to the trash frees nothing.
        bytes: verdict
            .destroy
            .iter()
            .filter(|d| verdict.destroy_after.is_none() || d.in_trash)
            .fold(0, |sum, d| sum.saturating_add(d.used)),
    }
}

fn why_destroy(verdict: &PruneVerdict) -> String {
    let why = format!("no rule keeps them ({})", verdict.rules.join("; "));
    let in_trash = verdict.destroy.iter().filter(|going| going.in_trash).count();
    let Some(after) = verdict.destroy_after.map(Duration::from_secs) else { return why };
    let after = humantime::format_duration(after);
    match verdict.destroy.len() - in_trash {
        0 => format!("{why}; they have been in the trash for {after}"),
        _ if in_trash == 0 => format!("{why}; they stay in the trash for {after} first"),
        new => format!("{why}; {in_trash} have been in the trash for {after}, {new} stay there first"),
    }
}
