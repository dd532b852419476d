//! `zsync plan`: the orders that the director would give, and why.
//!
//! A dry run is handed a catalog that can only be read and a ZFS that can only be listed.

use std::collections::BTreeSet;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::director::wire_order;
use crate::actions::{Order, Plan, decide};
use crate::catalog::{CatalogRead, EmbeddedReader};
use crate::error::{Error, Exit};
use crate::model::{DatasetName, HostInventory, HostName, Inventory};
use crate::policy::{CatalogConfig, Policy};
use crate::report::{self, Format};
use crate::zfs::{Depth, ZfsRead};
use crate::{clock, config};

/// What `zsync plan` is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `server.json`.
    pub config: PathBuf,
    /// This host's name in the policy.
    pub here: HostName,
    /// Only orders to this host.
    pub host: Option<HostName>,
    /// Only orders about this dataset and what is below it.
    pub dataset: Option<DatasetName>,
    /// How to print.
    pub format: Format,
    /// Whether everything is explained.
    pub explain: bool,
    /// The moment to decide for.
    pub at: Option<DateTime<Utc>>,
    /// Whether orders make the exit status 3.
    pub exit_code: bool,
}

/// The datasets of a policy on one host, as sources and as destinations.
fn roots(policy: &Policy, host: &HostName) -> Vec<DatasetName> {
    let sources = policy.datasets.iter().filter(|e| e.hostname == *host).map(|e| e.dataset.clone());
    let targets = policy.datasets.iter().flat_map(|e| &e.policies).flat_map(|p| &p.sync_on);
    let all: BTreeSet<DatasetName> =
        sources.chain(targets.filter(|t| t.host == *host).map(|t| t.dataset.clone())).collect();
    all.into_iter().collect()
}

/// Reads what there is to know, without changing anything.
async fn observe(policy: &Policy, here: &HostName, zfs: &impl ZfsRead) -> Result<Inventory, Error> {
    let CatalogConfig::Embedded { path } = &policy.catalog;
    let mut inventory = EmbeddedReader::new(path).inventory().map_err(Error::unable)?;
    let roots = roots(policy, here);
    if !roots.is_empty() && policy.hosts.get(here).is_none_or(|h| h.address.is_none()) {
        let listed = zfs.list(&roots, Depth::Recursive).await.map_err(Error::unable)?;
        let known = inventory.hosts.remove(here).unwrap_or_default();
        let mut now = HostInventory { observed: Some(clock::now()), datasets: listed.into_iter().collect() };
        for (name, dataset) in &mut now.datasets {
            // Marks are the catalog's alone.
            if let Some(remembered) = known.datasets.get(name) {
                dataset.not_written.clone_from(&remembered.not_written);
            }
        }
        inventory.hosts.insert(here.clone(), now);
    }
    Ok(inventory)
}

/// Previews.
pub async fn run(settings: Settings, zfs: &impl ZfsRead) -> Result<(), Error> {
    let policy = config::load_policy(&settings.config).map_err(Error::unable)?;
    let inventory = observe(&policy, &settings.here, zfs).await?;
    let plan = decide(&policy, &inventory, settings.at.unwrap_or_else(clock::now));
    let orders: Vec<Order> = plan.orders(&policy).into_iter().filter(|o| wanted(&settings, o)).collect();
    report::print(&match settings.format {
        Format::Table => as_table(&plan, &orders),
        Format::Json => {
            report::json(&Document { at: plan.at, orders: &orders, plan: settings.explain.then_some(&plan) })
        }
        Format::Ndjson => report::ndjson(orders.iter().map(|o| wire_order(o, &policy, &inventory))),
    });
    if settings.exit_code && !orders.is_empty() {
        return Err(Error::exit(Exit::Orders));
    }
    Ok(())
}

#[derive(Serialize)]
struct Document<'a> {
    at: DateTime<Utc>,
    orders: &'a [Order],
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'a Plan>,
}

fn wanted(settings: &Settings, order: &Order) -> bool {
    let (host, datasets): (_, &[DatasetName]) = match order {
        Order::Take { host, datasets, .. } => (host, datasets),
        Order::Send { host, dataset, .. } | Order::Destroy { host, dataset, .. } => {
            (host, std::slice::from_ref(dataset))
        }
    };
    settings.host.as_ref().is_none_or(|wanted| wanted == host)
        && settings.dataset.as_ref().is_none_or(|root| datasets.iter().any(|d| d.is_within(root)))
}

fn as_table(plan: &Plan, orders: &[Order]) -> String {
    let rows = orders.iter().map(|order| match order {
        Order::Take { host, datasets, name, reason, .. } => {
            let first = datasets.first().map(ToString::to_string).unwrap_or_default();
            let more = if datasets.len() > 1 { format!(" and {} below", datasets.len() - 1) } else { String::new() };
            ["take".into(), format!("{host}:{first}{more}"), name.to_string(), String::new(), reason.clone()]
        }
        Order::Send { host, dataset, snapshot, to, reason, .. } => [
            "send".into(),
            format!("{host}:{dataset}"),
            snapshot.to_string(),
            format!("{}:{}", to.host, to.dataset),
            reason.clone(),
        ],
        Order::Destroy { host, dataset, snapshots, reason, .. } => {
            let named = match snapshots.as_slice() {
                [(_, only)] => only.to_string(),
                many => format!("{} snapshots", many.len()),
            };
            ["destroy".into(), format!("{host}:{dataset}"), named, String::new(), reason.clone()]
        }
    });
    let mut text = if orders.is_empty() {
        "nothing to do\n".to_owned()
    } else {
        report::table(&["ACTION", "DATASET", "SNAPSHOT", "TO", "WHY"], &[], rows.map(Vec::from).collect())
    };
    for notice in &plan.notices {
        text.push_str(&format!("note: {notice}\n"));
    }
    text
}
