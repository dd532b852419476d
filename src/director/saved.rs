//! A plan in a file: made by `zsync plan --out`, carried out by `zsync director --once --plan`.
//!
//! It has the orders that could be given when it was made, each with the guids of the snapshots that it means. A
//! plan that is old, or was made by another policy, is not carried out at all; an order whose world has moved since
//! is refused.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::actions::{Order, Plan};
use crate::config::Fingerprint;
use crate::model::{DatasetInventory, DatasetName, Guid, HostName, Inventory, Prefix, SnapName};

/// For how long a plan may be carried out.
const GOOD_FOR: TimeDelta = TimeDelta::hours(24);
/// How far the clocks of two hosts may be apart.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);
/// What a file says that it is.
const KIND: &str = "zsync plan";

/// A plan as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPlan {
    /// What the file is: `zsync plan`.
    pub kind: String,
    /// The form of the file: 1.
    pub version: u32,
    /// When it was made; it was decided for this moment.
    pub made: DateTime<Utc>,
    /// The policy that it was made by.
    pub policy: Fingerprint,
    /// What to do.
    pub orders: Vec<Order>,
}

impl SavedPlan {
    /// A plan of these orders.
    #[must_use]
    pub fn new(made: DateTime<Utc>, policy: Fingerprint, orders: Vec<Order>) -> Self {
        Self { kind: KIND.to_owned(), version: 1, made, policy, orders }
    }

    /// Reads a plan and checks that it may be carried out: it is young enough, and made by the policy in force.
    pub fn load(path: &Path, policy: Fingerprint, now: DateTime<Utc>) -> anyhow::Result<Self> {
        let read = || format!("cannot read the plan {}", path.display());
        let text = fs::read_to_string(path).with_context(read)?;
        let plan: Self = serde_json::from_str(&text).with_context(read)?;
        plan.check(policy, now).with_context(|| format!("the plan {} is not carried out", path.display()))?;
        Ok(plan)
    }

    fn check(&self, policy: Fingerprint, now: DateTime<Utc>) -> anyhow::Result<()> {
        if self.kind != KIND || self.version != 1 {
            bail!("it is a {:?} of version {}, and this zsync knows version 1 of a {KIND:?}", self.kind, self.version);
        }
        let age = now - self.made;
        if age > GOOD_FOR {
            bail!("it was made at {}, more than {} hours ago; make another one", self.made, GOOD_FOR.num_hours());
        }
        if age < -TOLERANCE {
            bail!("it was made in the future, {}; one of two clocks is wrong", self.made);
        }
        if self.policy != policy {
            bail!("it was made by another policy, or this one was changed since; make another one");
        }
        Ok(())
    }
}

/// Why an order is not right any more, if so. `now` is what is decided for its entry now: what it would keep is not
/// destroyed.
#[must_use]
pub fn moved(order: &Order, inventory: &Inventory, now: Option<&Plan>) -> Option<String> {
    match order {
        Order::Take { host, name, datasets, .. } => {
            datasets.iter().find_map(|dataset| taken_since(inventory, host, dataset, name))
        }
        Order::Send { host, dataset, snapshot, guid, .. } => {
            let Some(held) = inventory.dataset(host, dataset) else {
                return Some(format!("{dataset} does not exist any more"));
            };
            match held.by_guid(*guid) {
                None => Some(format!("{} with the guid {guid} is gone", dataset.at(snapshot))),
                Some(found) if found.name != *snapshot => {
                    Some(format!("{} is called @{} now", dataset.at(snapshot), found.name))
                }
                Some(_) => None,
            }
        }
        Order::Destroy { host, dataset, snapshots, .. } => {
            let Some(held) = inventory.dataset(host, dataset) else {
                return Some(format!("{dataset} does not exist any more"));
            };
            let kept = now.map(|plan| kept_now(order, plan, held)).unwrap_or_default();
            let by_guid: HashMap<Guid, _> = held.snapshots.iter().map(|s| (s.guid, s)).collect();
            let by_name: BTreeMap<_, Guid> = held.snapshots.iter().map(|s| (&s.name, s.guid)).collect();
            snapshots.iter().find_map(|(guid, name)| match (by_guid.get(guid), by_name.get(name)) {
                (Some(found), _) if found.name != *name => {
                    Some(format!("{} is called @{} now", dataset.at(name), found.name))
                }
                (Some(_), _) => kept.get(guid).map(|why| format!("{} would stay now: {why}", dataset.at(name))),
                (None, Some(_)) => Some(format!("{} is another snapshot now", dataset.at(name))),
                // It is gone, which is what was wanted.
                (None, None) => None,
            })
        }
    }
}

/// Why a snapshot is not to be taken any more: it would be called older than one that is there.
fn taken_since(inventory: &Inventory, host: &HostName, dataset: &DatasetName, name: &SnapName) -> Option<String> {
    let Some(held) = inventory.dataset(host, dataset) else {
        return Some(format!("{dataset} does not exist any more"));
    };
    let prefix = Prefix::of(name)?;
    let slot = prefix.time_in(name)?;
    let newer = held.snapshots.iter().rfind(|s| prefix.time_in(&s.name).is_some_and(|taken| taken > slot))?;
    Some(format!("{} has been taken since", dataset.at(&newer.name)))
}

/// What would stay of the order's dataset if it were decided now, with the reasons. What nobody decides about stays.
fn kept_now(order: &Order, now: &Plan, held: &DatasetInventory) -> HashMap<Guid, String> {
    let Order::Destroy { host, dataset, .. } = order else { return HashMap::new() };
    let mut kept: HashMap<Guid, String> =
        held.snapshots.iter().map(|s| (s.guid, "no policy prunes it".to_owned())).collect();
    let prunes = now.prunes.iter().filter(|p| p.subject.host == *host && p.subject.dataset == *dataset);
    for explained in prunes.flat_map(|prune| prune.explain(held)) {
        if explained.keep {
            let why: Vec<String> = explained.reasons.iter().map(ToString::to_string).collect();
            kept.insert(explained.guid, why.join("; "));
        } else {
            kept.remove(&explained.guid);
        }
    }
    kept
}
