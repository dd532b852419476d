//! `zsync director`: decides, has agents carry out, records.

mod dispatch;
mod look;
mod pass;
pub mod saved;
mod summary;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_lite::future;

pub use dispatch::{AGENT_PORT, Dispatcher, fitting, wire_order};
pub use look::look;
pub use pass::{Pass, Report, hosts};
pub use saved::SavedPlan;
pub use world::World;

use super::agent::Agent;
use super::serve::Stop;
use crate::catalog::EmbeddedCatalog;
use crate::config;
use crate::model::{HostName, PeerRole};
use crate::policy::{CatalogConfig, Policy};
use crate::report;
use crate::runtime;
use crate::transport::tls::{Tls, TlsError};
use crate::zfs::Zfs;
use crate::{clock, error};

/// What `zsync director` is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `server.json`.
    pub config: PathBuf,
    /// `local.json`, for orders to this host.
    pub local: PathBuf,
    /// This host's name in the policy.
    pub host: HostName,
    /// One pass instead of a loop.
    pub once: bool,
    /// From the beginning of one pass to that of the next.
    pub interval: Duration,
    /// Whether a pass without failures is told too.
    pub verbose: bool,
    /// How it is told.
    pub format: report::Format,
    /// With `once`: a plan to carry out instead of what is due.
    pub plan: Option<PathBuf>,
}

/// Directs until the end of the pass, or of the process.
pub async fn run<Z: Zfs>(settings: Settings, zfs: Arc<Z>) -> Result<(), error::Error> {
    let (policy, fingerprint) = config::load_policy_with_fingerprint(&settings.config).map_err(error::Error::unable)?;
    let policy = Arc::new(policy);
    let saved = match &settings.plan {
        None => None,
        Some(path) => Some(SavedPlan::load(path, fingerprint, clock::now()).map_err(error::Error::unable)?),
    };
    let tls = load_tls(&policy).map_err(error::Error::unable)?;
    if let Some(tls) = &tls {
        warn_of(tls, &settings);
    }
    let dispatcher = Arc::new(dispatcher(&settings.host, &settings.local, &policy, tls, Arc::clone(&zfs)).await);
    if let Err(reason) = &dispatcher.own
        && hosts(&policy).iter().all(|host| *host == settings.host)
    {
        // Nobody else is there to do anything.
        return Err(error::Error::unable(anyhow::anyhow!("{reason}")));
    }
    let world = open_catalog(&policy).await?;
    if settings.once {
        let pass = Pass::new(policy, dispatcher, world, clock::now());
        let report = match saved {
            None => pass.run().await,
            Some(saved) => pass.run_saved(saved.orders).await,
        };
        let report = report.map_err(error::Error::unable)?;
        tell(&settings, &report);
        return if report.is_success() { Ok(()) } else { Err(error::Error::told()) };
    }
    let stop = Stop::new().map_err(error::Error::unable)?;
    let directing = direct(&settings, policy, dispatcher, world, zfs);
    let stopping = async { stop.asked().await.map_err(error::Error::unable) };
    future::or(directing, stopping).await
}

/// The policy's catalog, open for writing.
pub async fn open_catalog(policy: &Policy) -> Result<World<EmbeddedCatalog>, error::Error> {
    let CatalogConfig::Embedded { path } = &policy.catalog;
    let path = path.clone();
    let catalog = runtime::blocking(move || EmbeddedCatalog::open(&path)).await.map_err(error::Error::unable)?;
    Ok(World::new(catalog))
}

/// Sets up orders for this host within the process, where the policy has any.
pub async fn dispatcher<Z: Zfs>(
    here: &HostName,
    local: &Path,
    policy: &Policy,
    tls: Option<Arc<Tls>>,
    zfs: Arc<Z>,
) -> Dispatcher<Z> {
    let elsewhere = policy.hosts.get(here).is_some_and(|h| h.address.is_some()) || !hosts(policy).contains(here);
    let own = if elsewhere {
        Err(format!("{here} is not this process' to act on"))
    } else {
        own_agent(here, local, policy, zfs).await.map(Arc::new).map_err(|error| format!("{error:#}"))
    };
    Dispatcher { here: here.clone(), own, tls }
}

/// What the director proves itself with to agents.
pub fn load_tls(policy: &Policy) -> Result<Option<Arc<Tls>>, TlsError> {
    policy.tls.as_ref().map(|files| Tls::load(files).map(Arc::new)).transpose()
}

/// Warns of what is wrong with it by now or will be; from cron, where that would be a mail at each pass, only of what
/// lets others use it.
fn warn_of(tls: &Tls, settings: &Settings) {
    let warnings = if settings.once && !settings.verbose {
        tls.loose_key().into_iter().collect()
    } else {
        tls.warnings(clock::now(), &settings.host, PeerRole::Director)
    };
    for warning in warnings {
        log::warn!("{warning}");
    }
}

async fn own_agent<Z: Zfs>(here: &HostName, local: &Path, policy: &Policy, zfs: Arc<Z>) -> anyhow::Result<Agent<Z>> {
    let local = config::load_local(local)
        .with_context(|| format!("{here} is this host, whose own local configuration is needed"))?;
    zfs.check_version().await?;
    // What it proves itself with to slaves: of this host, whose director and agent may have one certificate.
    let files = local.tls.as_ref().or(policy.tls.as_ref());
    let tls = files.map(Tls::load).transpose()?.map(Arc::new);
    Ok(Agent::new(here.clone(), zfs, Arc::new(local)).with_tls(tls))
}

/// Passes, one after the other, each at its time.
async fn direct<Z: Zfs>(
    settings: &Settings,
    mut policy: Arc<Policy>,
    mut dispatcher: Arc<Dispatcher<Z>>,
    world: World<EmbeddedCatalog>,
    zfs: Arc<Z>,
) -> Result<(), error::Error> {
    let mut said = Said::default();
    loop {
        let began = std::time::Instant::now();
        let mut failures = BTreeMap::new();
        match config::load_policy(&settings.config) {
            Ok(read) => policy = Arc::new(read),
            Err(error) => {
                failures.insert("the policy".to_owned(), format!("the policy before it stays in force: {error}"));
            }
        }
        // Certificates are renewed while the director runs.
        let tls = load_tls(&policy).unwrap_or_else(|error| {
            failures.insert("TLS".to_owned(), format!("{error}; what was read before stays in force"));
            dispatcher.tls.clone()
        });
        if let Ok(agent) = &dispatcher.own {
            if let Err(error) = agent.reload_tls() {
                failures.insert("TLS".to_owned(), format!("{error}; what was read before stays in force"));
            }
            dispatcher = Arc::new(Dispatcher { tls, here: dispatcher.here.clone(), own: dispatcher.own.clone() });
        } else {
            // What was missing on this host may be there by now, or the host be new in the policy.
            let (host, local) = (&settings.host, &settings.local);
            dispatcher = Arc::new(self::dispatcher(host, local, &policy, tls, Arc::clone(&zfs)).await);
        }
        let pass = Pass::new(Arc::clone(&policy), Arc::clone(&dispatcher), world.clone(), clock::now());
        match pass.run().await {
            Ok(report) => {
                failures.extend(summary::failures(&report).map(|f| (f.about(), f.to_string())));
                said.tell(failures);
                for outcome in report.outcomes.iter().filter(|o| o.success) {
                    log::info!("{}", summary::outcome_line(outcome));
                }
            }
            // Of hosts and orders nothing new is known: what was said of them stays said.
            Err(error) => {
                failures.extend(said.0.clone());
                let text = format!("no orders are made: {:#}", anyhow::Error::from(error));
                failures.insert("the catalog".to_owned(), text);
                said.tell(failures);
            }
        }
        log::debug!("the pass took {:.1?}", began.elapsed());
        runtime::sleep(settings.interval.saturating_sub(began.elapsed()).max(Duration::from_secs(1))).await;
    }
}

fn tell(settings: &Settings, report: &Report) {
    if settings.verbose || settings.format != report::Format::Table {
        report::print(&summary::pass(report, settings.format));
    }
    for failure in summary::failures(report) {
        report::complain(&failure);
    }
}

/// What was said already: a failure that stays the same is told once, not at each pass.
#[derive(Default)]
struct Said(BTreeMap<String, String>);

impl Said {
    /// Tells what is new among the failures, and what is none any more.
    fn tell(&mut self, failures: BTreeMap<String, String>) {
        for about in self.0.keys().filter(|about| !failures.contains_key(*about)) {
            log::info!("{about}: all is well again");
        }
        for (about, text) in &failures {
            if self.0.get(about) != Some(text) {
                log::error!("{text}");
            }
        }
        self.0 = failures;
    }
}
