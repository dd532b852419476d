//! `zsync status`: the fleet at a glance.
//!
//! What the catalog remembers, with what the director is doing and what reachable agents tell now. It changes nothing:
//! agents are only asked what they hold, and how much they would send.

mod outstanding;
mod shown;

pub use shown::{as_lines, as_text};

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::actions::health::{Health, health};
use crate::catalog::open;
use crate::catalog::{CatalogError, Outcome};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::cli::report::Format;
use crate::config;
use crate::director::{LiveStatus, Own, dispatcher, load_tls, with_services};
use crate::fleet::known;
use crate::fleet::known::Overview;
use crate::fleet::{Dispatcher, ask_all};
use crate::model::{DatasetName, HostName, Place};
use crate::policy::{Local, Policy};
use crate::sys::{clock, runtime};
use crate::zfs::Zfs;

/// How many outcomes are looked through for the last failure of each dataset.
const OUTCOMES: usize = 2000;

/// What `zsync status` is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `server.json`.
    pub config: PathBuf,
    /// `local.json`, for what is asked of this host.
    pub local: PathBuf,
    /// What it says, where there is one.
    pub opened: Option<Local>,
    /// This host's name in the policy.
    pub here: HostName,
    /// Only datasets of this host, and what is sent there.
    pub host: Option<HostName>,
    /// Only this dataset and what is below it.
    pub dataset: Option<DatasetName>,
    /// Whether agents are left alone.
    pub offline: bool,
    /// How often it is shown anew.
    pub watch: Option<Duration>,
    /// How it is shown.
    pub format: Format,
}

/// A failure that nothing has made good since.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LastError {
    /// When.
    pub at: DateTime<Utc>,
    /// The host that was to do it.
    pub host: HostName,
    /// The dataset there.
    pub dataset: Option<DatasetName>,
    /// Where it was to be sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Place>,
    /// What went wrong.
    pub error: String,
}

/// Everything that is shown.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Datasets, destinations and hosts, and what is wrong with them.
    #[serde(flatten)]
    pub health: Health,
    /// The last pass, and what is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<LiveStatus>,
    /// Orders that failed.
    pub errors: Vec<LastError>,
}

/// Shows it, once or again and again.
pub async fn run<Z: Zfs>(settings: Settings, zfs: Arc<Z>) -> Result<(), Error> {
    let mut said: Option<String> = None;
    let mut shown = false;
    loop {
        match look(&settings, Arc::clone(&zfs)).await {
            Ok(status) => {
                said = None;
                if !show(&settings, &status) {
                    // Nobody reads it any more.
                    return Ok(());
                }
            }
            Err(error) if !shown => return Err(Error::unable(error)),
            // What cannot be told now may be told the next time.
            Err(error) => {
                let error = format!("{error:#}");
                if said.as_ref() != Some(&error) {
                    report::complain(&error);
                }
                said = Some(error);
            }
        }
        shown = true;
        let Some(every) = settings.watch else { return Ok(()) };
        runtime::sleep(every).await;
    }
}

/// Looks at everything once.
pub async fn look<Z: Zfs>(settings: &Settings, zfs: Arc<Z>) -> anyhow::Result<Status> {
    // Who only wants to see does not wait for what may pass.
    let policy = Arc::new(Policy { retry_for: Duration::ZERO, ..config::load_policy(&settings.config)? });
    let config = policy.catalog.clone();
    let remembered = runtime::blocking(move || {
        let reader = open::reader(&config)?;
        Ok::<_, CatalogError>((reader.outcomes(OUTCOMES)?, reader.estimates()?))
    });
    let (outcomes, estimates) = remembered.await?;
    let errors = last_errors(outcomes);
    let Overview { mut inventory, mut unseen, live } =
        known::glance(&policy, &settings.here, settings.opened.as_ref(), &*zfs).await?;
    let (agents, policy): (Option<Arc<Dispatcher<Z>>>, _) = if settings.offline {
        (None, policy)
    } else {
        let tls = load_tls(&policy)?;
        let own = Own { here: &settings.here, local: &settings.local, state: None };
        let agents = Arc::new(dispatcher(own, &policy, tls, zfs).await);
        let (policy, _) = with_services(policy, &agents).await?;
        (Some(agents), policy)
    };
    if let Some(agents) = &agents {
        for (host, answer) in ask_all(&policy, agents).await {
            match answer {
                Ok(now) => {
                    unseen.remove(&host);
                    known::renew(&mut inventory, &host, now);
                }
                Err(reason) => {
                    unseen.insert(host, reason);
                }
            }
        }
    }
    let mut health = health(&policy, &inventory, &unseen, clock::now());
    health.narrow(settings.host.as_ref(), settings.dataset.as_ref());
    match &agents {
        Some(agents) => outstanding::ask(&mut health, &policy, &inventory, agents).await,
        None => outstanding::recall(&mut health, &policy, &inventory, &estimates),
    }
    let wanted = |error: &LastError| concerns(settings, &error.host, error.dataset.as_ref(), error.to.as_ref());
    let errors = errors.into_iter().filter(wanted).collect();
    let pass = live.map(|mut live| {
        live.running.retain(|t| concerns(settings, &t.host, t.dataset.as_ref(), t.to.as_ref()));
        live
    });
    Ok(Status { health, pass, errors })
}

/// Whether something is about what was asked for.
fn concerns(settings: &Settings, host: &HostName, dataset: Option<&DatasetName>, to: Option<&Place>) -> bool {
    let of_host = |name: &HostName| settings.host.as_ref().is_none_or(|wanted| wanted == name);
    let within = |name: &DatasetName| settings.dataset.as_ref().is_none_or(|root| name.is_within(root));
    (of_host(host) || to.is_some_and(|to| of_host(&to.host)))
        && (dataset.is_none_or(within) || to.is_some_and(|to| within(&to.dataset)))
}

/// The failures that no success of the same kind came after, newest first. `outcomes` come newest first.
fn last_errors(outcomes: Vec<Outcome>) -> Vec<LastError> {
    let mut seen = BTreeSet::new();
    let newest = outcomes.into_iter().filter(|o| {
        let to = o.to.as_ref().map(|to| (to.host.clone(), to.dataset.clone()));
        seen.insert((o.host.clone(), o.action.to_string(), o.dataset.clone(), to))
    });
    let failed = newest.filter(|o| !o.success).map(|o| LastError {
        at: o.at,
        host: o.host,
        dataset: o.dataset,
        to: o.to,
        error: o.error.unwrap_or_default(),
    });
    failed.collect()
}

/// Shows it; whether anybody still reads it.
fn show(settings: &Settings, status: &Status) -> bool {
    let text = match settings.format {
        Format::Table => shown::as_text(status, report::width()),
        Format::Json => report::json(status),
        Format::Ndjson => shown::as_lines(status),
    };
    if settings.watch.is_some() && settings.format == Format::Table && std::io::stdout().is_terminal() {
        // From the top left, what was there before erased.
        report::refresh(&format!("\x1b[H\x1b[2J{text}"))
    } else {
        report::refresh(&text)
    }
}
