//! A plan in a file: made by `zsync plan --out`, carried out by `zsync director --once --plan`.
//!
//! A saved plan contains the orders that could be given when it was made, each with the guids of its snapshots. A plan
//! that is too old, or that was made with another policy, is not carried out at all. An order that is outdated, because
//! the fleet has changed since, is refused.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::actions::{HeldBack, NoticeKind, Order, Plan};
use crate::config::Fingerprint;
use crate::director::report::Report;
use crate::model::{DatasetInventory, DatasetName, Guid, HostName, Inventory, Prefix, SnapName};

/// How long a plan may be carried out after it was made.
const VALID_FOR: TimeDelta = TimeDelta::hours(24);
/// How far the clocks of two hosts may differ.
const CLOCK_SKEW: TimeDelta = TimeDelta::minutes(5);
/// The `kind` of a saved plan.
const KIND: &str = "zsync plan";

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPlan {
    /// What the file is: `zsync plan`.
    pub kind: String,
    /// Version of the format: 1.
    pub version: u32,
    /// When it was made, which is also the moment for which it was decided.
    pub made: DateTime<Utc>,
    /// The policy with which it was made.
    pub policy: Fingerprint,
    /// The orders.
    pub orders: Vec<Order>,
}

impl SavedPlan {
    /// Creates a plan of these orders.
    #[must_use]
    pub fn new(made: DateTime<Utc>, policy: Fingerprint, orders: Vec<Order>) -> Self {
        Self { kind: KIND.to_owned(), version: 1, made, policy, orders }
    }

    /// Reads a plan and checks that it may be carried out: it is recent enough, and was made with the policy in force.
    pub fn load(path: &Path, policy: Fingerprint, now: DateTime<Utc>) -> anyhow::Result<Self> {
        let read = || format!("cannot read the plan {}", path.display());
        let text = fs::read_to_string(path).with_context(read)?;
        let plan: Self = serde_json::from_str(&text).with_context(read)?;
        plan.check(policy, now).with_context(|| format!("cannot carry out the plan {}", path.display()))?;
        Ok(plan)
    }

    fn check(&self, policy: Fingerprint, now: DateTime<Utc>) -> anyhow::Result<()> {
        if self.kind != KIND || self.version != 1 {
            bail!(
                "it is a {:?} of version {}, and this zsync supports only version 1 of a {KIND:?}",
                self.kind,
                self.version
            );
        }
        let age = now - self.made;
        if age > VALID_FOR {
            bail!("it was made at {}, more than {} hours ago; hint: make a new one", self.made, VALID_FOR.num_hours());
        }
        if age < -CLOCK_SKEW {
            bail!(
                "it was made in the future, at {}; hint: correct the clock of this host or of the one that made it",
                self.made
            );
        }
        if self.policy != policy {
            bail!("it was made with another policy, or the policy was changed since; hint: make a new one");
        }
        Ok(())
    }
}

/// The datasets, each on its host, that the orders of a saved plan concern. Carrying out the plan succeeds if all is
/// well with these, whatever is wrong elsewhere in the fleet.
pub struct Scope {
    hosts: BTreeSet<HostName>,
    datasets: BTreeSet<(HostName, DatasetName)>,
}

impl Scope {
    /// The scope of these orders.
    #[must_use]
    pub fn of(orders: &[Order]) -> Self {
        let datasets: BTreeSet<(HostName, DatasetName)> = orders
            .iter()
            .flat_map(|order| match order {
                Order::Take { host, datasets, .. } => datasets.iter().map(|d| (host.clone(), d.clone())).collect(),
                Order::Send { host, dataset, to, .. } => {
                    vec![(host.clone(), dataset.clone()), (to.host.clone(), to.dataset.clone())]
                }
                Order::Destroy { host, dataset, .. } => vec![(host.clone(), dataset.clone())],
            })
            .collect();
        Self { hosts: datasets.iter().map(|(host, _)| host.clone()).collect(), datasets }
    }

    /// Removes from a report what lies outside, and what would be due besides the plan: a person has decided what is
    /// destroyed, and the next pass judges the rest.
    #[must_use]
    pub fn limit(&self, mut report: Report) -> Report {
        report.unseen.retain(|host, _| self.hosts.contains(host));
        report.notices.retain(|notice| !matches!(notice.kind, NoticeKind::TooManyDestroys { .. }));
        report.notices.retain(|notice| match &notice.dataset {
            Some(dataset) => self.datasets.contains(&(notice.host.clone(), dataset.clone())),
            None => self.hosts.contains(&notice.host),
        });
        report
    }
}

/// Why an order can no longer be carried out; `None` if it still can. `plan` is what is decided now for the order's
/// entry: a snapshot that the plan keeps must not be destroyed.
#[must_use]
pub fn outdated(order: &Order, inventory: &Inventory, plan: Option<&Plan>) -> Option<String> {
    match order {
        Order::Take { host, name, datasets, .. } => {
            datasets.iter().find_map(|dataset| newer_snapshot(inventory, host, dataset, name))
        }
        Order::Send { host, dataset, snapshot, guid, .. } => {
            let Some(present) = inventory.dataset(host, dataset) else {
                return Some(format!("{dataset} no longer exists"));
            };
            match present.by_guid(*guid) {
                None => Some(format!("{} with the guid {guid} no longer exists", dataset.at(snapshot))),
                Some(found) if found.name != *snapshot => {
                    Some(format!("{} has been renamed to @{}", dataset.at(snapshot), found.name))
                }
                Some(_) => None,
            }
        }
        Order::Destroy { host, dataset, snapshots, .. } => {
            let Some(present) = inventory.dataset(host, dataset) else {
                return Some(format!("{dataset} no longer exists"));
            };
            let kept = plan.map(|plan| kept_by(plan, host, dataset, present)).unwrap_or_default();
            let by_guid: HashMap<Guid, _> = present.snapshots.iter().map(|s| (s.guid, s)).collect();
            let by_name: BTreeMap<_, Guid> = present.snapshots.iter().map(|s| (&s.name, s.guid)).collect();
            snapshots.iter().find_map(|(guid, name)| match (by_guid.get(guid), by_name.get(name)) {
                (Some(found), _) if found.name != *name => {
                    Some(format!("{} has been renamed to @{}", dataset.at(name), found.name))
                }
                (Some(_), _) => kept.get(guid).map(|why| format!("{} would be kept now: {why}", dataset.at(name))),
                (None, Some(_)) => Some(format!("{} is a different snapshot now", dataset.at(name))),
                // It has been destroyed already.
                (None, None) => None,
            })
        }
    }
}

/// Why a snapshot must not be taken: by its name it would be older than a snapshot that exists.
fn newer_snapshot(inventory: &Inventory, host: &HostName, dataset: &DatasetName, name: &SnapName) -> Option<String> {
    let Some(present) = inventory.dataset(host, dataset) else {
        return Some(format!("{dataset} no longer exists"));
    };
    let prefix = Prefix::of(name)?;
    let slot = prefix.time_in(name)?;
    let newer = present.snapshots.iter().rfind(|s| prefix.time_in(&s.name).is_some_and(|taken| taken > slot))?;
    Some(format!("{} has been taken since", dataset.at(&newer.name)))
}

/// The snapshots of a dataset that a plan keeps, with the reasons. A snapshot that no policy decides about is kept.
fn kept_by(plan: &Plan, host: &HostName, dataset: &DatasetName, present: &DatasetInventory) -> HashMap<Guid, String> {
    let mut kept: HashMap<Guid, String> =
        present.snapshots.iter().map(|s| (s.guid, "no policy prunes it".to_owned())).collect();
    let prunes = plan.prunes.iter().filter(|p| p.subject.host == *host && p.subject.dataset == *dataset);
    for (held_back, explained) in
        prunes.flat_map(|prune| prune.explain(present).into_iter().map(|explained| (prune.held_back, explained)))
    {
        if held_back == Some(HeldBack::ClockAhead) {
            kept.insert(explained.guid, "the director's clock is ahead of others".to_owned());
        } else if explained.keep {
            let why: Vec<String> = explained.reasons.iter().map(ToString::to_string).collect();
            kept.insert(explained.guid, why.join("; "));
        } else {
            kept.remove(&explained.guid);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::actions::{Notice, Side};

    #[test]
    fn scope_of_a_plan_leaves_out_what_is_wrong_elsewhere() {
        let (alpha, beta): (HostName, HostName) = ("alpha".parse().unwrap(), "beta".parse().unwrap());
        let order = Order::Destroy {
            entry: 0,
            host: alpha.clone(),
            dataset: "tank/a".parse().unwrap(),
            side: Side::Source,
            snapshots: Vec::new(),
            keep_common_with: Vec::new(),
            skip_if_renamed: true,
            skip_if_cloned: true,
            policy: "backup".to_owned(),
            reason: String::new(),
            bytes: 0,
        };
        let notice = |host: &HostName, dataset: Option<&str>| Notice {
            entry: 0,
            host: host.clone(),
            dataset: dataset.map(|dataset| dataset.parse().unwrap()),
            kind: NoticeKind::DatasetMissing,
        };
        let report = Report {
            at: DateTime::UNIX_EPOCH,
            took: Duration::ZERO,
            unseen: [(alpha.clone(), "no answer".to_owned()), (beta.clone(), "no answer".to_owned())].into(),
            corrected: Vec::new(),
            outcomes: Vec::new(),
            resting: Vec::new(),
            notices: vec![
                notice(&alpha, Some("tank/a")),
                Notice {
                    kind: NoticeKind::TooManyDestroys { destroys: 9, snapshots: 10, limit: 50 },
                    ..notice(&alpha, Some("tank/a"))
                },
                notice(&alpha, Some("tank/b")),
                notice(&alpha, None),
                notice(&beta, Some("tank/a")),
            ],
            unsaved: None,
            interrupted: None,
        };
        let limited = Scope::of(&[order]).limit(report);
        assert_eq!(limited.unseen.keys().collect::<Vec<_>>(), [&alpha]);
        assert_eq!(limited.notices, [notice(&alpha, Some("tank/a")), notice(&alpha, None)]);
    }
}
