//! `zsync director`: decides, has agents carry out, records.

mod board;
mod dispatch;
mod live;
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

pub use board::{Board, Running};
pub use dispatch::{AGENT_PORT, Dispatcher, fitting, wire_order};
pub use live::{Live, Transfer};
pub use look::{ask_all, look};
pub use pass::{Pass, Report, hosts};
pub use saved::SavedPlan;
pub use world::World;

use super::agent::Agent;
use crate::catalog::{CatalogError, CatalogWrite, EmbeddedCatalog, Holder};
use crate::config;
use crate::model::{HostName, PeerRole};
use crate::policy::{CatalogConfig, Policy};
use crate::report;
use crate::runtime;
use crate::service::{self, Signals};
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
    /// How long the one pass may take.
    pub timeout: Option<Duration>,
    /// How long orders under way may go on once the process is asked to end.
    pub grace: Duration,
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
        && is_own(&policy, &settings.host)
        && hosts(&policy).iter().all(|host| *host == settings.host)
    {
        // Nobody else is there to do anything.
        return Err(error::Error::unable(anyhow::anyhow!("{reason}")));
    }
    let holder = if settings.once { Holder::Pass } else { Holder::Director };
    let world = match open_catalog(&policy, holder).await {
        Ok(world) => world,
        // As it should be where a pass takes longer than the time between two of cron's.
        Err(CatalogError::Locked { pid, holder: Some(Holder::Pass), .. }) if settings.once && saved.is_none() => {
            let pid = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
            let text = format!("the pass before this one{pid} has not ended yet: this one makes way");
            log::info!("{text}");
            if settings.verbose {
                report::complain(&text);
            }
            return Ok(());
        }
        Err(error) => return Err(error::Error::unable(error)),
    };
    if settings.once {
        let CatalogConfig::Embedded { path } = &policy.catalog;
        let folder = path.clone();
        let pass = Pass::new(policy, dispatcher, world, clock::now());
        let report = once(&settings, pass, saved, &folder).await?;
        tell(&settings, &report);
        return if report.is_success() { Ok(()) } else { Err(error::Error::told()) };
    }
    direct(&settings, policy, dispatcher, world, zfs).await
}

/// Makes the one pass, within its time.
async fn once<Z: Zfs, C: CatalogWrite + 'static>(
    settings: &Settings,
    pass: Pass<Z, C>,
    saved: Option<SavedPlan>,
    folder: &Path,
) -> Result<Report, error::Error> {
    let mut signals = Signals::of_command().map_err(error::Error::unable)?;
    let began = std::time::Instant::now();
    let board = pass.board();
    let work = async {
        match saved {
            None => pass.clone().run().await,
            Some(saved) => pass.clone().run_saved(saved.orders).await,
        }
    };
    let began_at = clock::now();
    let work = future::or(work, live::publish(folder, &board, began_at));
    let passing = signals.until_done(work, settings.grace, || board.stop());
    let passed = match settings.timeout {
        Some(limit) => runtime::timeout(limit, passing).await.ok().flatten(),
        None => passing.await,
    };
    let reason = match (signals.end(), settings.timeout) {
        (Some(signal), _) => format!("it was ended by {signal}"),
        (None, Some(limit)) => format!("it did not end within {}", humantime::format_duration(limit)),
        (None, None) => String::new(),
    };
    live::publish_end(folder, &board, began_at).await;
    let report = match passed {
        Some(Ok(report)) if signals.end().is_some() => Ok(Report { broken_off: Some(reason), ..report }),
        Some(result) => result,
        None => pass.broken_off(began.elapsed(), reason).await,
    };
    report.map_err(error::Error::unable)
}

/// The policy's catalog, open for writing.
pub async fn open_catalog(policy: &Policy, holder: Holder) -> Result<World<EmbeddedCatalog>, CatalogError> {
    let CatalogConfig::Embedded { path } = &policy.catalog;
    let path = path.clone();
    Ok(World::new(runtime::blocking(move || EmbeddedCatalog::open_as(&path, holder)).await?))
}

/// Sets up orders for this host within the process, where the policy has any.
pub async fn dispatcher<Z: Zfs>(
    here: &HostName,
    local: &Path,
    policy: &Policy,
    tls: Option<Arc<Tls>>,
    zfs: Arc<Z>,
) -> Dispatcher<Z> {
    let own = if is_own(policy, here) {
        own_agent(here, local, policy, zfs).await.map(Arc::new).map_err(|error| format!("{error:#}"))
    } else {
        Err(format!("{here} is not this process' to act on"))
    };
    Dispatcher { here: here.clone(), own, tls }
}

/// Whether orders for this host are carried out in the director's process.
fn is_own(policy: &Policy, here: &HostName) -> bool {
    policy.hosts.get(here).is_none_or(|h| h.address.is_none()) && hosts(policy).contains(here)
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

/// Passes, one after the other, each at its time, until the process is asked to end.
async fn direct<Z: Zfs>(
    settings: &Settings,
    mut policy: Arc<Policy>,
    mut dispatcher: Arc<Dispatcher<Z>>,
    world: World<EmbeddedCatalog>,
    zfs: Arc<Z>,
) -> Result<(), error::Error> {
    let mut signals = Signals::of_service().map_err(error::Error::unable)?;
    service::ready("makes its first pass");
    drop(runtime::spawn(service::watchdog()));
    // Where the catalog is does not change while it runs.
    let CatalogConfig::Embedded { path: folder } = &policy.catalog.clone();
    let mut said = Said::default();
    while signals.end().is_none() {
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
        let (host, local) = (&settings.host, &settings.local);
        if signals.take_reload() {
            service::reloading();
            let renewed = self::dispatcher(host, local, &policy, tls, Arc::clone(&zfs)).await;
            match &renewed.own {
                Err(reason) if dispatcher.own.is_ok() && is_own(&policy, host) => {
                    failures.insert("this host".to_owned(), format!("what it lets in stays as it was: {reason}"));
                }
                _ => dispatcher = Arc::new(renewed),
            }
            service::ready(failures.values().next().map_or("its configuration was read again", |wrong| wrong));
        } else if let Ok(agent) = &dispatcher.own {
            if let Err(error) = agent.reload_tls() {
                failures.insert("TLS".to_owned(), format!("{error}; what was read before stays in force"));
            }
            dispatcher = Arc::new(Dispatcher { tls, here: dispatcher.here.clone(), own: dispatcher.own.clone() });
        } else {
            // What was missing on this host may be there by now, or the host be new in the policy.
            dispatcher = Arc::new(self::dispatcher(host, local, &policy, tls, Arc::clone(&zfs)).await);
        }
        let pass = Pass::new(Arc::clone(&policy), Arc::clone(&dispatcher), world.clone(), clock::now());
        let board = pass.board();
        let began_at = clock::now();
        let work = future::or(pass.clone().run(), live::publish(folder, &board, began_at));
        let passed = signals.until_done(work, settings.grace, || {
            service::stopping("ends; lets the orders under way end");
            board.stop();
        });
        let passed = passed.await;
        live::publish_end(folder, &board, began_at).await;
        let passed = match passed {
            Some(passed) => passed,
            None => pass.broken_off(began.elapsed(), "the director was ended".to_owned()).await,
        };
        match passed {
            Ok(report) => {
                let summary = summary::in_a_line(&report);
                failures.extend(summary::failures(&report).map(|f| (f.about(), f.to_string())));
                said.tell(failures);
                for outcome in report.outcomes.iter().filter(|o| o.success) {
                    log::info!("{}", summary::outcome_line(outcome));
                }
                service::status(&summary);
            }
            // Of hosts and orders nothing new is known: what was said of them stays said.
            Err(error) => {
                failures.extend(said.0.clone());
                let text = format!("no orders are made: {:#}", anyhow::Error::from(error));
                service::status(&text);
                failures.insert("the catalog".to_owned(), text);
                said.tell(failures);
            }
        }
        log::debug!("the pass took {:.1?}", began.elapsed());
        signals.idle(settings.interval.saturating_sub(began.elapsed()).max(Duration::from_secs(1))).await;
    }
    log::info!("ends on {}", signals.end().unwrap_or("a signal"));
    Ok(())
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
