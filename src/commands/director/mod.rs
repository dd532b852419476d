//! `zsync director`: decides, has agents carry out, records.

mod dispatch;
mod leader;
mod look;
mod pass;
pub mod saved;
mod standing;
mod summary;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use futures_lite::future;

pub use dispatch::{AGENT_PORT, Dispatcher, fitting, wire_order};
pub use leader::{Leadership, Office, Sought};
pub use look::look;
pub use pass::{Pass, Report, hosts};
pub use saved::SavedPlan;
pub use standing::Standing;
pub use world::World;

use super::agent::Agent;
use super::publisher::Publisher;
use super::serve::Stop;
use super::{catalogs, clean};
use crate::catalog::{CatalogError, CatalogWrite};
use crate::config;
use crate::consul::{Consul, ConsulError};
use crate::model::{HostName, PeerRole};
use crate::policy::{CatalogConfig, Policy};
use crate::report;
use crate::runtime;
use crate::transport::tls::{Tls, TlsError};
use crate::zfs::Zfs;
use crate::{clock, error};

/// How often one pass alone looks for a lock that is free in a moment, a second apart.
const FREE_WITHIN: usize = 10;
/// After how long Consul is asked again when it cannot be.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How often old marks are forgotten.
const CLEAN_EVERY: Duration = Duration::from_secs(24 * 3600);

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
    /// Whether the first pass asks every host and tells how what it holds differs from what was known.
    pub resync: bool,
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
    let office = match &policy.catalog {
        CatalogConfig::Embedded { .. } => None,
        CatalogConfig::Consul(config) => {
            let catalog = catalogs::shared(config).map_err(error::Error::unable)?;
            Some(Office::new(catalog.consul().clone(), catalog.root(), settings.host.clone()))
        }
    };
    let world = open_catalog(&policy).await?;
    if settings.once {
        return once(&settings, policy, dispatcher, world, saved, office).await;
    }
    let stop = Stop::new().map_err(error::Error::unable)?;
    let stopping = async { stop.asked().await.map_err(error::Error::unable) };
    let Some(office) = office else {
        return future::or(direct(&settings, policy, dispatcher, world, zfs, None), stopping).await;
    };
    let held: Mutex<Option<Leadership>> = Mutex::default();
    let hold = |leadership| std::mem::replace(&mut *held.lock().unwrap_or_else(PoisonError::into_inner), leadership);
    let directing = async {
        loop {
            let leadership = stand_by(&office).await;
            drop(hold(Some(leadership.clone())));
            // What was known before is from before somebody else directed.
            let world = open_catalog(&policy).await?;
            let (policy, dispatcher) = (Arc::clone(&policy), Arc::clone(&dispatcher));
            let directing = direct(&settings, policy, dispatcher, world, Arc::clone(&zfs), Some(leadership.clone()));
            let losing = async {
                log::error!("{}", CatalogError::LockLost(leadership.lost().await));
                Ok(())
            };
            future::or(directing, losing).await?;
        }
    };
    let ended = future::or(directing, stopping).await;
    if let Some(leadership) = hold(None) {
        leadership.resign().await;
    }
    ended
}

/// One pass.
async fn once<Z: Zfs>(
    settings: &Settings,
    policy: Arc<Policy>,
    dispatcher: Arc<Dispatcher<Z>>,
    world: World<dyn CatalogWrite>,
    saved: Option<SavedPlan>,
    office: Option<Office>,
) -> Result<(), error::Error> {
    let leadership = match &office {
        None => None,
        Some(office) => match seek(office).await.map_err(error::Error::unable)? {
            Ok(leadership) => Some(leadership),
            Err(holder) => {
                report::print(&format!("{holder}; nothing is done here\n"));
                return Ok(());
            }
        },
    };
    let report = async {
        let now = clock::now();
        let pass = match &leadership {
            None => Pass::new(policy, dispatcher, world.clone(), now),
            Some(leadership) => led_pass(policy, dispatcher, world.clone(), now, leadership).await?,
        };
        let pass = pass.resyncing(settings.resync);
        match saved {
            None => pass.run().await,
            Some(saved) => pass.run_saved(saved.orders).await,
        }
    };
    let report = report.await;
    if let Some(leadership) = leadership {
        leadership.resign().await;
    }
    let report = report.map_err(error::Error::unable)?;
    tell(settings, &report);
    if report.is_success() { Ok(()) } else { Err(error::Error::told()) }
}

/// A pass of the director in office: with the addresses that services have, and what they say of themselves.
async fn led_pass<Z: Zfs>(
    policy: Arc<Policy>,
    dispatcher: Arc<Dispatcher<Z>>,
    world: World<dyn CatalogWrite>,
    now: DateTime<Utc>,
    leadership: &Leadership,
) -> Result<Pass<Z, dyn CatalogWrite>, CatalogError> {
    let (policy, standing) = located(leadership.consul(), policy, &dispatcher).await?;
    Ok(Pass::new(policy, dispatcher, world, now).led(leadership.clone(), standing))
}

/// The policy with the addresses that services have.
async fn located<Z: Zfs>(
    consul: &Consul,
    policy: Arc<Policy>,
    dispatcher: &Dispatcher<Z>,
) -> Result<(Arc<Policy>, Standing), CatalogError> {
    let (agents, slaves) = standing::services(consul).await?;
    let mut policy = Arc::unwrap_or_clone(policy);
    let own = dispatcher.own.is_ok().then_some(&dispatcher.here);
    let standing = standing::stand(&mut policy, &agents, &slaves, own);
    Ok((Arc::new(policy), standing))
}

/// The same for who gives no orders, with any catalog.
pub async fn with_services<Z: Zfs>(
    policy: Arc<Policy>,
    dispatcher: &Dispatcher<Z>,
) -> Result<Arc<Policy>, CatalogError> {
    let CatalogConfig::Consul(config) = &policy.catalog else { return Ok(policy) };
    let consul = catalogs::shared(config)?.consul().clone();
    Ok(located(&consul, policy, dispatcher).await?.0)
}

/// Takes the lock, or says who has it. One whose holder has just died is waited for.
async fn seek(office: &Office) -> Result<Result<Leadership, String>, ConsulError> {
    for _ in 0..FREE_WITHIN {
        match office.seek().await? {
            Sought::Ours(leadership) => return Ok(Ok(leadership)),
            Sought::Taken { holder: Some(holder), .. } => return Ok(Err(holder)),
            Sought::Taken { holder: None, index } => office.changed(None, index).await?,
        }
    }
    Ok(Err("another director has just ended without a word, and its lock is not free yet".to_owned()))
}

/// Waits until this director is the one.
async fn stand_by(office: &Office) -> Leadership {
    let mut said = String::new();
    loop {
        let waited = match office.seek().await {
            Ok(Sought::Ours(leadership)) => {
                log::info!("directs from now on");
                return leadership;
            }
            Ok(Sought::Taken { holder, index }) => {
                if let Some(holder) = holder.as_ref().filter(|holder| said != **holder) {
                    log::info!("stands by: {holder}");
                    said.clone_from(holder);
                }
                office.changed(holder.as_ref(), index).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = waited {
            let gist = error.gist();
            if said != gist {
                log::error!("no orders are made: {gist}");
                said = gist;
            }
            runtime::sleep(AGAIN_AFTER).await;
        }
    }
}

/// The policy's catalog, open for writing.
pub async fn open_catalog(policy: &Policy) -> Result<World<dyn CatalogWrite>, error::Error> {
    let config = policy.catalog.clone();
    let catalog = runtime::blocking(move || catalogs::writer(&config)).await.map_err(error::Error::unable)?;
    Ok(World::over(catalog))
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
    let publisher = match &policy.catalog {
        CatalogConfig::Embedded { .. } => None,
        CatalogConfig::Consul(config) => {
            let catalog = catalogs::shared(config)?;
            Some(Arc::new(Publisher::new(here.clone(), catalog, &local.state, "director")))
        }
    };
    // What it proves itself with to slaves: of this host, whose director and agent may have one certificate.
    let files = local.tls.as_ref().or(policy.tls.as_ref());
    let tls = files.map(Tls::load).transpose()?.map(Arc::new);
    Ok(Agent::new(here.clone(), zfs, Arc::new(local)).with_tls(tls).publishing(publisher))
}

/// Passes, one after the other, each at its time.
async fn direct<Z: Zfs>(
    settings: &Settings,
    mut policy: Arc<Policy>,
    mut dispatcher: Arc<Dispatcher<Z>>,
    world: World<dyn CatalogWrite>,
    zfs: Arc<Z>,
    leadership: Option<Leadership>,
) -> Result<(), error::Error> {
    let mut said = Said::default();
    let mut resync = settings.resync;
    let mut cleaned: Option<std::time::Instant> = None;
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
        let (now, of_pass) = (clock::now(), (Arc::clone(&policy), Arc::clone(&dispatcher), world.clone()));
        let passing = async {
            let (policy, dispatcher, world) = of_pass;
            let pass = match &leadership {
                None => Pass::new(policy, dispatcher, world, now),
                Some(leadership) => led_pass(policy, dispatcher, world, now, leadership).await?,
            };
            pass.resyncing(resync).run().await
        };
        match passing.await {
            Ok(report) => {
                resync = false;
                for (host, line) in &report.mended {
                    log::info!("{host}: {line}: mended");
                }
                if cleaned.is_none_or(|before| before.elapsed() >= CLEAN_EVERY) {
                    cleaned = Some(began);
                    match world.forget(now - clean::FORGET_AFTER).await {
                        Ok(0) => {}
                        Ok(marks) => log::info!("forgot {marks} old marks"),
                        Err(error) => log::warn!("old marks stay: {:#}", anyhow::Error::from(error)),
                    }
                }
                failures.extend(summary::failures(&report).map(|f| (f.about(), f.to_string())));
                said.tell(failures);
                for outcome in report.outcomes.iter().filter(|o| o.success) {
                    log::info!("{}", summary::outcome_line(outcome));
                }
            }
            // Of hosts and orders nothing new is known: what was said of them stays said.
            Err(error) => {
                failures.extend(said.0.clone());
                let text = match error {
                    // The same while it lasts, whatever was asked.
                    CatalogError::Consul(error) => format!("no orders are made: {}", error.gist()),
                    error => format!("no orders are made: {:#}", anyhow::Error::from(error)),
                };
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
    if settings.resync && settings.format == report::Format::Table {
        let lines = report.mended.iter().map(|(host, line)| format!("{host}: {line}: mended\n"));
        report::print(&lines.collect::<String>());
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
