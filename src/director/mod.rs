//! `zsync director`: decides, has agents carry out, records.

pub mod bars;
mod leader;
mod leader_loop;
mod metrics;
mod pass;
mod progress;
pub mod saved;
mod status_file;
mod summary;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use futures_lite::future;

pub use leader::{Election, Leadership, Sought};
pub use leader_loop::with_services;
use leader_loop::{pass, while_leading};
pub use metrics::{DirectorMetrics, PassMetrics};
pub use pass::{Pass, Report};
pub use progress::{PassProgress, RunningOrder};
pub use saved::SavedPlan;
pub use status_file::{LiveStatus, Place, Transfer};

use crate::actions::health::health;
use crate::agent::Agent;
use crate::catalog::{CatalogError, CatalogWrite, FORGET_AFTER, Holder, open};
use crate::cli::{exit, report};
use crate::config;
use crate::fleet::{Dispatcher, FleetState};
use crate::host::publish::publisher::Publisher;
use crate::model::{HostName, PeerRole};
use crate::policy::{CatalogConfig, Policy};
use crate::server::http;
use crate::sys::files::Mode;
use crate::sys::service::Signals;
use crate::sys::{clock, files, runtime, service};
use crate::transport::tls::{Tls, TlsError};
use crate::zfs::Zfs;

/// How often old marks are forgotten.
const CLEAN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// What `zsync director` is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `server.json`.
    pub config: PathBuf,
    /// `local.json`, for orders to this host.
    pub local: PathBuf,
    /// The folder of what has to survive restarts.
    pub state: PathBuf,
    /// This host's name in the policy.
    pub host: HostName,
    /// One pass instead of a loop.
    pub once: bool,
    /// Whether the first pass asks every host and tells how what it holds differs from what was known.
    pub resync: bool,
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
    /// Where metrics are told, as `host:port`.
    pub metrics: Option<String>,
    /// With `once`: where metrics are written.
    pub metrics_file: Option<PathBuf>,
    /// With `once`: a plan to carry out instead of what is due.
    pub plan: Option<PathBuf>,
}

/// Directs until the end of the pass, or of the process.
pub async fn run<Z: Zfs>(settings: Settings, zfs: Arc<Z>) -> Result<(), exit::Error> {
    let (policy, fingerprint) = config::load_policy_with_fingerprint(&settings.config).map_err(exit::Error::unable)?;
    let policy = Arc::new(policy);
    let saved = match &settings.plan {
        None => None,
        Some(path) => Some(SavedPlan::load(path, fingerprint, clock::now()).map_err(exit::Error::unable)?),
    };
    let tls = load_tls(&policy).map_err(exit::Error::unable)?;
    if let Some(tls) = &tls {
        warn_of(tls, &settings);
    }
    let own = Own { here: &settings.host, local: &settings.local, state: Some(&settings.state) };
    let holder = if settings.once { Holder::Pass } else { Holder::Director };
    // Side by side: the one waits for a process, the other for a disk.
    let setting_up = dispatcher(own, &policy, tls, Arc::clone(&zfs));
    let (dispatcher, world) = future::zip(setting_up, open_catalog(&policy, holder)).await;
    let dispatcher = Arc::new(dispatcher);
    if let Err(reason) = &dispatcher.own
        && is_own(&policy, &settings.host)
        && policy.hosts_named().iter().all(|host| *host == settings.host)
    {
        // Nobody else is there to do anything.
        return Err(exit::Error::unable(anyhow::anyhow!("{reason}")));
    }
    let office = match &policy.catalog {
        CatalogConfig::Embedded { .. } => None,
        CatalogConfig::Consul(config) => {
            let catalog = open::shared(config).map_err(exit::Error::unable)?;
            Some(Election::new(catalog.consul().clone(), catalog.root(), settings.host.clone()))
        }
    };
    let world = match world {
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
        Err(error) => return Err(exit::Error::unable(error)),
    };
    if settings.once {
        let leadership = match &office {
            None => None,
            Some(office) => match leader_loop::seek(office).await.map_err(exit::Error::unable)? {
                Ok(leadership) => Some(leadership),
                Err(holder) => {
                    report::print(&format!("{holder}; nothing is done here\n"));
                    return Ok(());
                }
            },
        };
        let began = clock::now();
        let made = once(&settings, Arc::clone(&policy), dispatcher, world.clone(), saved, leadership.as_ref()).await;
        if let Some(leadership) = leadership {
            leadership.resign().await;
        }
        let report = made?;
        tell(&settings, &report);
        let written = match &settings.metrics_file {
            Some(file) => write_metrics(file, &policy, &world, &report, began).await,
            None => Ok(()),
        };
        if let Err(error) = &written {
            report::complain(&format_args!("{error:#}"));
        }
        return if report.is_success() && written.is_ok() { Ok(()) } else { Err(exit::Error::told()) };
    }
    let watch = DirectorMetrics::default();
    if let Some(address) = &settings.metrics {
        let watch = watch.clone();
        let served = http::serve(address, Arc::new(move || watch.text())).await;
        served.map_err(exit::Error::unable)?;
    }
    let mut signals = Signals::of_service().map_err(exit::Error::unable)?;
    drop(runtime::spawn(service::watchdog()));
    let mut service = Service { settings: &settings, zfs, watch, said: Said::default(), signals: &mut signals };
    match office {
        None => service.direct(policy, dispatcher, world, None).await,
        Some(office) => service.take_turns(&office, policy, dispatcher).await?,
    }
    log::info!("ends on {}", signals.end().unwrap_or("a signal"));
    Ok(())
}

/// Makes the one pass, within its time.
async fn once<Z: Zfs>(
    settings: &Settings,
    policy: Arc<Policy>,
    dispatcher: Arc<Dispatcher<Z>>,
    world: FleetState<dyn CatalogWrite>,
    saved: Option<SavedPlan>,
    leadership: Option<&Leadership>,
) -> Result<Report, exit::Error> {
    let mut signals = Signals::of_command().map_err(exit::Error::unable)?;
    let began = std::time::Instant::now();
    let place = Place::of(&policy.catalog);
    let pass = pass(policy, dispatcher, world, leadership).await.map_err(exit::Error::unable)?;
    let pass = pass.resyncing(settings.resync);
    let board = pass.board();
    let work = async {
        match saved {
            None => pass.clone().run().await,
            Some(saved) => pass.clone().run_saved(saved.orders).await,
        }
    };
    let began_at = clock::now();
    let work = bars::passing(&board, while_leading(leadership, work));
    let work = future::or(work, status_file::publish(&place, &board, began_at));
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
    status_file::publish_end(&place, &board, began_at).await;
    let report = match passed {
        Some(Ok(report)) if signals.end().is_some() => Ok(Report { broken_off: Some(reason), ..report }),
        Some(result) => result,
        None => pass.broken_off(began.elapsed(), reason).await,
    };
    report.map_err(exit::Error::unable)
}

/// A pass that has just ended, for metrics.
async fn passed<C: CatalogWrite + ?Sized + 'static>(
    policy: &Policy,
    world: &FleetState<C>,
    report: &Report,
    began: DateTime<Utc>,
) -> Result<PassMetrics, CatalogError> {
    let inventory = world.remembered().await?;
    Ok(PassMetrics::of(report, health(policy, &inventory, &report.unseen, clock::now()), began))
}

async fn write_metrics<C: CatalogWrite + ?Sized + 'static>(
    file: &Path,
    policy: &Policy,
    world: &FleetState<C>,
    report: &Report,
    began: DateTime<Utc>,
) -> anyhow::Result<()> {
    let text = passed(policy, world, report, began).await?.text();
    files::write(file, files::PUBLIC, Mode::ReplaceUnsynced, |new| new.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write metrics to {}", file.display()))
}

/// The policy's catalog, open for writing.
pub async fn open_catalog(policy: &Policy, holder: Holder) -> Result<FleetState<dyn CatalogWrite>, CatalogError> {
    let config = policy.catalog.clone();
    Ok(FleetState::over(runtime::blocking(move || open::writer(&config, holder)).await?))
}

/// How this host is directed within the process.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    /// Its name.
    pub here: &'a HostName,
    /// Its `local.json`.
    pub local: &'a Path,
    /// The folder of what has to survive restarts; `None`: nothing is published in a shared catalog.
    pub state: Option<&'a Path>,
}

/// Sets up orders for this host within the process, where the policy has any.
pub async fn dispatcher<Z: Zfs>(own: Own<'_>, policy: &Policy, tls: Option<Arc<Tls>>, zfs: Arc<Z>) -> Dispatcher<Z> {
    let here = own.here;
    let own = if is_own(policy, here) {
        own_agent(own, policy, zfs).await.map(Arc::new).map_err(|error| format!("{error:#}"))
    } else {
        Err(format!("{here} is not this process' to act on"))
    };
    Dispatcher { here: here.clone(), own, tls }
}

/// Whether orders for this host are carried out in the director's process.
fn is_own(policy: &Policy, here: &HostName) -> bool {
    policy.hosts.get(here).is_none_or(|h| h.address.is_none()) && policy.hosts_named().contains(here)
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

async fn own_agent<Z: Zfs>(own: Own<'_>, policy: &Policy, zfs: Arc<Z>) -> anyhow::Result<Agent<Z>> {
    let Own { here, local, state } = own;
    let local = config::load_local(local)
        .with_context(|| format!("{here} is this host, whose own local configuration is needed"))?;
    zfs.check_version().await?;
    let publisher = match (&policy.catalog, state) {
        (CatalogConfig::Consul(config), Some(state)) => {
            let catalog = open::shared(config)?;
            Some(Arc::new(Publisher::new(here.clone(), catalog, &zfs, state, "director")))
        }
        _ => None,
    };
    // What it proves itself with to slaves: of this host, whose director and agent may have one certificate.
    let files = local.tls.as_ref().or(policy.tls.as_ref());
    let tls = files.map(Tls::load).transpose()?.map(Arc::new);
    Ok(Agent::new(here.clone(), zfs, Arc::new(local)).with_tls(tls).publishing(publisher))
}

/// A director in its loop.
struct Service<'a, Z> {
    settings: &'a Settings,
    zfs: Arc<Z>,
    watch: DirectorMetrics,
    said: Said,
    signals: &'a mut Signals,
}

impl<Z: Zfs> Service<'_, Z> {
    /// Passes, one after the other, each at its time, until the process is asked to end, or the lock is lost.
    async fn direct(
        &mut self,
        mut policy: Arc<Policy>,
        mut dispatcher: Arc<Dispatcher<Z>>,
        world: FleetState<dyn CatalogWrite>,
        leadership: Option<&Leadership>,
    ) {
        let Self { settings, zfs, watch, said, signals } = self;
        service::ready("makes its first pass");
        // Where the catalog is does not change while it runs.
        let place = Place::of(&policy.catalog);
        let mut resync = settings.resync;
        let mut cleaned: Option<std::time::Instant> = None;
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
            let host = &settings.host;
            let own = Own { here: host, local: &settings.local, state: Some(&settings.state) };
            if signals.take_reload() {
                service::reloading();
                let renewed = crate::director::dispatcher(own, &policy, tls, Arc::clone(zfs)).await;
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
                dispatcher = Arc::new(crate::director::dispatcher(own, &policy, tls, Arc::clone(zfs)).await);
            }
            let made = pass(Arc::clone(&policy), Arc::clone(&dispatcher), world.clone(), leadership);
            // Nothing is in hand yet.
            let made = signals.until_done(while_leading(leadership, made), Duration::ZERO, || {}).await;
            let Some(made) = made else { break };
            let began_at = clock::now();
            let passed = match made {
                Err(error) => Err(error),
                Ok(pass) => {
                    let pass = pass.resyncing(resync);
                    let board = pass.board();
                    watch.begins(board.clone());
                    let work = while_leading(leadership, pass.clone().run());
                    let work = future::or(work, status_file::publish(&place, &board, began_at));
                    let passed = signals.until_done(work, settings.grace, || {
                        service::stopping("ends; lets the orders under way end");
                        board.stop();
                    });
                    let passed = passed.await;
                    if !matches!(passed, Some(Err(CatalogError::LockLost(_)))) {
                        status_file::publish_end(&place, &board, began_at).await;
                    }
                    match passed {
                        Some(passed) => passed,
                        None => pass.broken_off(began.elapsed(), "the director was ended".to_owned()).await,
                    }
                }
            };
            if settings.metrics.is_some() {
                watch.ended(match &passed {
                    Ok(report) => crate::director::passed(&policy, &world, report, began_at).await.ok(),
                    Err(_) => None,
                });
            }
            match passed {
                Ok(report) => {
                    resync = false;
                    for (host, line) in &report.mended {
                        log::info!("{host}: {line}: mended");
                    }
                    if cleaned.is_none_or(|before| before.elapsed() >= CLEAN_EVERY) {
                        cleaned = Some(began);
                        match world.forget(report.at - FORGET_AFTER).await {
                            Ok(0) => {}
                            Ok(marks) => log::info!("forgot {marks} old marks"),
                            Err(error) => log::warn!("old marks stay: {:#}", anyhow::Error::from(error)),
                        }
                    }
                    let summary = summary::in_a_line(&report);
                    failures.extend(summary::failures(&report).map(|f| (f.about(), f.to_string())));
                    said.tell(failures);
                    for outcome in report.outcomes.iter().filter(|o| o.success) {
                        log::info!("{}", summary::outcome_line(outcome));
                    }
                    service::status(&summary);
                }
                Err(error @ CatalogError::LockLost(_)) => {
                    log::error!("{error}");
                    return;
                }
                // Of hosts and orders nothing new is known: what was said of them stays said.
                Err(error) => {
                    failures.extend(said.0.clone());
                    let text = match error {
                        // The same while it lasts, whatever was asked.
                        CatalogError::Consul(error) => format!("no orders are made: {}", error.gist()),
                        error => format!("no orders are made: {:#}", anyhow::Error::from(error)),
                    };
                    service::status(&text);
                    failures.insert(CATALOG.to_owned(), text);
                    said.tell(failures);
                }
            }
            log::debug!("the pass took {:.1?}", began.elapsed());
            let idle = signals.idle(settings.interval.saturating_sub(began.elapsed()).max(Duration::from_secs(1)));
            let idle = async {
                idle.await;
                Ok(())
            };
            if let Err(error) = while_leading(leadership, idle).await {
                log::error!("{error}");
                return;
            }
        }
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

/// What a failure is about that is not a host's or an order's.
const CATALOG: &str = "the catalog";

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

    /// Tells only of the catalog: `None`, it is as it should be.
    fn tell_of_catalog(&mut self, failure: Option<String>) {
        let mut failures = self.0.clone();
        failures.remove(CATALOG);
        failures.extend(failure.map(|text| (CATALOG.to_owned(), text)));
        self.tell(failures);
    }

    /// Others tell of hosts and orders from now on.
    fn forget(&mut self) {
        self.0.clear();
    }
}
