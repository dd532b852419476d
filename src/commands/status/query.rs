//! Gathers what `zsync status` shows, and changes nothing: agents are asked only for their snapshots and for the size
//! of transfers.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::actions::health::{Health, Row, health};
use crate::actions::{check_names, forbidden};
use crate::catalog::{CatalogError, Outcome, open};
use crate::cli::causes;
use crate::commands::status::unsent;
use crate::config;
use crate::director::connect::{OwnHost, dispatcher, load_tls, with_services};
use crate::fleet::durations::learned;
use crate::fleet::known::{self, Overview};
use crate::fleet::live_status::{self, LiveStatus, RestingOrder};
use crate::fleet::{Dispatcher, ask_all};
use crate::model::{Action, DatasetName, HostName, Place};
use crate::policy::{Local, Policy};
use crate::sys::{clock, runtime};
use crate::zfs::Zfs;

/// The settings of `zsync status`, from its arguments and `local.json`.
#[derive(Clone, Debug)]
pub struct StatusSettings {
    /// The path of `server.json`.
    pub config: PathBuf,
    /// The path of `local.json`, for this host's own agent.
    pub local_file: PathBuf,
    /// Its content, if the file exists.
    pub local: Option<Local>,
    /// This host's name in the policy.
    pub host_name: HostName,
    /// Show only datasets of this host, and what is sent to it.
    pub host: Option<HostName>,
    /// Show only this dataset and its descendants.
    pub dataset: Option<DatasetName>,
    /// Whether no agent is asked.
    pub offline: bool,
}

/// An order that failed, after which no order of the same kind has succeeded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FailedOrder {
    /// When it failed.
    pub at: DateTime<Utc>,
    /// The host that received the order.
    pub host: HostName,
    /// The dataset there.
    pub dataset: Option<DatasetName>,
    /// The destination of a transfer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Place>,
    /// The error.
    pub error: String,
    /// What an administrator can do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Before when the director does not try it again, if it has failed several times in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<DateTime<Utc>>,
    /// The order's action.
    #[serde(skip)]
    pub action: Action,
}

impl FailedOrder {
    /// What decides whether it has the same cause as another failure.
    pub(super) fn for_grouping(&self) -> causes::FailedOrder<'_> {
        let Self { host, dataset, to, error, hint, .. } = self;
        let (dataset, to, hint) = (dataset.as_ref(), to.as_ref(), hint.as_deref());
        causes::FailedOrder { action: None, host, dataset, to, error, hint }
    }

    /// Before when the director does not try it again.
    fn rests_until(&self, live: Option<&LiveStatus>) -> Option<DateTime<Utc>> {
        let is_this = |order: &&RestingOrder| {
            (order.action, &order.host, Some(&order.dataset), &order.to)
                == (self.action, &self.host, self.dataset.as_ref(), &self.to)
        };
        live?.resting.iter().find(is_this).map(|order| order.until)
    }

    /// Whether it is about the dataset of a row, or about its transfer to a destination.
    pub(super) fn is_of(&self, row: &Row, to: Option<&Place>) -> bool {
        self.host == row.host && self.dataset.as_ref() == Some(&row.dataset) && self.to.as_ref() == to
    }
}

/// The state of the fleet.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Datasets, destinations and hosts, each with its findings.
    #[serde(flatten)]
    pub health: Health,
    /// The last pass, and what is running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<LiveStatus>,
    /// Orders that failed.
    pub errors: Vec<FailedOrder>,
}

/// Gathers the state of the fleet once.
pub async fn query<Z: Zfs>(settings: &StatusSettings, zfs: Arc<Z>) -> anyhow::Result<Status> {
    // An overview does not wait for temporary errors to pass.
    let policy = Arc::new(Policy { retry_for: Duration::ZERO, ..config::load_policy(&settings.config)? });
    let config = policy.catalog.clone();
    let remembered = runtime::blocking(move || {
        let reader = open::reader(&config)?;
        // A failure can be older than any number of later outcomes, so all are read.
        Ok::<_, CatalogError>((reader.outcomes(usize::MAX)?, reader.estimates()?))
    });
    let (outcomes, estimates) = remembered.await?;
    let durations = learned(&outcomes);
    let mut errors = failed_orders(outcomes);
    let Overview { mut inventory, mut unseen, live, certificates, list_until } =
        known::overview(&policy, &settings.host_name, settings.local.as_ref(), &*zfs).await?;
    errors.iter_mut().for_each(|failed| failed.not_before = failed.rests_until(live.as_ref()));
    let own_zfs = Arc::clone(&zfs);
    let (agents, policy): (Option<Arc<Dispatcher<Z>>>, _) = if settings.offline {
        (None, policy)
    } else {
        let tls = load_tls(&policy)?;
        let own = OwnHost { name: &settings.host_name, local: &settings.local_file, state: None };
        let agents = Arc::new(dispatcher(own, &policy, tls, zfs).await);
        let (policy, _) = with_services(policy, &agents).await?;
        (Some(agents), policy)
    };
    if let Some(agents) = &agents {
        for (host, answer) in ask_all(&policy, agents).await {
            match answer {
                Ok(now) => {
                    unseen.remove(&host);
                    known::replace(&mut inventory, &host, now);
                }
                Err(reason) => {
                    unseen.insert(host, reason);
                }
            }
        }
    }
    check_names(&policy, &inventory, settings.host.as_ref(), settings.dataset.as_ref())?;
    let mut health = health(&policy, &inventory, &unseen, clock::now());
    let running = live.as_ref().map(|live| live.running.as_slice()).unwrap_or_default();
    live_status::forecast(&mut health, &policy, &durations, running);
    health.judge_certificates(certificates);
    health.judge_revocations(&settings.host_name, list_until);
    // A failed transfer to a destination that the policy no longer has concerns nobody.
    let is_of_policy = |failed: &FailedOrder| {
        let known = failed.dataset.as_ref().and_then(|dataset| inventory.dataset(&failed.host, dataset));
        failed.to.is_none() || known.is_none() || health.rows.iter().any(|row| failed.is_of(row, row.to.as_ref()))
    };
    let errors: Vec<FailedOrder> = errors.into_iter().filter(is_of_policy).collect();
    let own = settings.local.iter().flat_map(|local| forbidden(&policy, &settings.host_name, local));
    health.add_notices(own.collect());
    health.narrow(settings.host.as_ref(), settings.dataset.as_ref());
    known::add_own_knowledge(&mut health, &settings.host_name, &*own_zfs).await;
    match &agents {
        Some(agents) => unsent::estimate(&mut health, &policy, &inventory, agents).await,
        None => unsent::recall(&mut health, &policy, &inventory, &estimates),
    }
    let wanted = |error: &FailedOrder| concerns(settings, &error.host, error.dataset.as_ref(), error.to.as_ref());
    let errors = errors.into_iter().filter(wanted).collect();
    let pass = live.map(|mut live| {
        live.running.retain(|t| concerns(settings, &t.host, t.dataset.as_ref(), t.to.as_ref()));
        live.resting.retain(|t| concerns(settings, &t.host, Some(&t.dataset), t.to.as_ref()));
        live
    });
    Ok(Status { health, pass, errors })
}

/// Whether something concerns the hosts and datasets that the settings select.
fn concerns(settings: &StatusSettings, host: &HostName, dataset: Option<&DatasetName>, to: Option<&Place>) -> bool {
    let of_host = |name: &HostName| settings.host.as_ref().is_none_or(|wanted| wanted == name);
    let within = |name: &DatasetName| settings.dataset.as_ref().is_none_or(|root| name.is_within(root));
    (of_host(host) || to.is_some_and(|to| of_host(&to.host)))
        && (dataset.is_none_or(within) || to.is_some_and(|to| within(&to.dataset)))
}

/// The failures after which no order of the same kind succeeded, newest first. `outcomes` are newest first.
fn failed_orders(outcomes: Vec<Outcome>) -> Vec<FailedOrder> {
    let mut seen = BTreeSet::new();
    let newest = outcomes.into_iter().filter(|o| {
        let to = o.to.as_ref().map(|to| (to.host.clone(), to.dataset.clone()));
        seen.insert((o.host.clone(), o.action.to_string(), o.dataset.clone(), to))
    });
    let failed = newest.filter(|o| !o.success).map(|o| FailedOrder {
        at: o.at,
        host: o.host,
        dataset: o.dataset,
        to: o.to,
        error: o.error.unwrap_or_default(),
        hint: o.hint,
        not_before: None,
        action: o.action,
    });
    failed.collect()
}
