//! Starts a director: reads the policy, opens the catalog, then makes one pass or runs as a service.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use chrono::{DateTime, Utc};
use futures_lite::future;

use crate::catalog::{CatalogError, CatalogWrite, Holder, open};
use crate::cli::exit::{Error, Exit};
use crate::cli::report::{self, Format};
use crate::cli::settings::{consul_of, readable_secrets};
use crate::config::{self, Fingerprint};
use crate::director::connect::{OwnHost, dispatcher, has_own_work, load_tls, open_catalog};
use crate::director::heartbeat::Heartbeat;
use crate::director::leader::Election;
use crate::director::leader_loop::{Lock, acquire};
use crate::director::metrics::{DirectorMetrics, LAST_PASS_SUCCESS, failed_pass};
use crate::director::old_records;
use crate::director::once::{Once, print};
use crate::director::report::Report;
use crate::director::saved::SavedPlan;
use crate::director::service::{Service, pass_metrics, warn_of_certificates};
use crate::director::settings::DirectorSettings;
use crate::fleet::live_status::{LiveStatus, StatusPlace};
use crate::fleet::{Dispatcher, FleetState};
use crate::model::PeerRole;
use crate::policy::{CatalogConfig, Policy};
use crate::server::http;
use crate::sys::files::Mode;
use crate::sys::service::Signals;
use crate::sys::{clock, files, service};
use crate::transport::tls::Tls;
use crate::zfs::Zfs;

/// Runs a director: for one pass with `once`, otherwise until the process is asked to end.
pub async fn run<Z: Zfs>(settings: DirectorSettings, zfs: Arc<Z>) -> Result<(), Error> {
    let file = settings.metrics_file.clone().filter(|_| settings.once);
    let result = start(settings, zfs).await;
    // If the pass could do nothing, the metrics of the pass before would look like success for ever.
    if let (Err(Error { exit: Exit::Unable, .. }), Some(file)) = (&result, file)
        && let Err(error) = write_failure(&file)
    {
        report::print_error(&format_args!("{error:#}"));
    }
    result
}

/// Writes into a metrics file that the last pass failed. Everything else in the file stays: it describes the last pass
/// that could do its work, and says when that pass ran.
fn write_failure(file: &Path) -> anyhow::Result<()> {
    let before = std::fs::read_to_string(file).unwrap_or_default();
    let is_other = |line: &&str| !line.contains(LAST_PASS_SUCCESS) && *line != "# EOF";
    let mut text: String = before.lines().filter(is_other).map(|line| format!("{line}\n")).collect();
    text.push_str(&failed_pass());
    write_metrics_file(file, &text)
}

fn write_metrics_file(file: &Path, text: &str) -> anyhow::Result<()> {
    files::write(file, files::PUBLIC, Mode::ReplaceUnsynced, |new| new.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write metrics to {}", file.display()))
}

async fn start<Z: Zfs>(settings: DirectorSettings, zfs: Arc<Z>) -> Result<(), Error> {
    let (policy, fingerprint) = config::load_policy_with_fingerprint(&settings.config).map_err(Error::unable)?;
    let policy = Arc::new(policy);
    readable_secrets(&settings.config, consul_of(&policy)).iter().for_each(|warning| log::warn!("{warning}"));
    let saved = match &settings.plan {
        None => None,
        Some(path) => Some(SavedPlan::load(path, fingerprint, clock::now()).map_err(Error::unable)?),
    };
    let tls = load_tls(&policy).map_err(Error::unable)?;
    if let Some(tls) = &tls {
        warn_of_certificate(tls, &settings);
    }
    let own = OwnHost { name: &settings.host, local: &settings.local, state: Some(&settings.state) };
    let holder = if settings.once { Holder::Pass } else { Holder::Director };
    // Both at once: one waits for a process, the other for a disk.
    let connecting = dispatcher(own, &policy, tls, Arc::clone(&zfs));
    let (dispatcher, state) = future::zip(connecting, open_catalog(&policy, holder)).await;
    let dispatcher = Arc::new(dispatcher);
    if let Err(reason) = &dispatcher.own
        && has_own_work(&policy, &settings.host)
        && policy.hosts_named().iter().all(|host| *host == settings.host)
    {
        // The policy names no other host that could do anything.
        return Err(Error::unable(anyhow!("{reason}")));
    }
    let election = election(&policy, &settings)?;
    let state = match state {
        Ok(state) => state,
        // Normal if a pass takes longer than cron's interval. It carries out what becomes due meanwhile.
        Err(CatalogError::Locked { pid, holder: Some(Holder::Pass), .. }) if settings.once && saved.is_none() => {
            let pid = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
            let text = format!(
                "the previous pass{pid} is still running and carries out what becomes due, so this one does nothing"
            );
            make_way(&settings, &text);
            return Ok(());
        }
        Err(error) => return Err(Error::unable(error)),
    };
    if settings.once {
        return run_once(&settings, (policy, fingerprint), dispatcher, state, saved, election).await;
    }
    let mut signals = Signals::of_service().map_err(Error::unable)?;
    let metrics = DirectorMetrics::default();
    if let Some(address) = &settings.metrics {
        let metrics = metrics.clone();
        http::serve(address, Arc::new(move || metrics.text())).await.map_err(Error::unable)?;
    }
    let heartbeat = Heartbeat::default();
    let mut director = Service::new(&settings, zfs, metrics, &mut signals, policy, dispatcher, heartbeat.clone());
    let main_loop = async {
        match election {
            None => {
                director.run(state, None).await;
                Ok(())
            }
            Some(election) => director.run_elected(&election).await,
        }
    };
    service::watched(main_loop, || heartbeat.is_alive(Instant::now())).await?;
    log::info!("ended by {}", signals.end().unwrap_or("a signal"));
    Ok(())
}

/// Reports why a pass does nothing. This is no failure, so that cron has nothing to mail; and standard output stays free
/// for the report of a pass, which may have to be valid JSON.
fn make_way(settings: &DirectorSettings, reason: &str) {
    log::info!("{reason}");
    if settings.verbose || settings.format != Format::Table {
        report::print_error(&reason);
    }
}

/// The election among the directors that share the catalog; `None` with an embedded catalog.
fn election(policy: &Policy, settings: &DirectorSettings) -> Result<Option<Election>, Error> {
    match &policy.catalog {
        CatalogConfig::Embedded { .. } => Ok(None),
        CatalogConfig::Consul(config) => {
            let catalog = open::shared(config).map_err(Error::unable)?;
            Ok(Some(Election::new(catalog.consul().clone(), catalog.root(), settings.host.clone())))
        }
    }
}

async fn run_once<Z: Zfs>(
    settings: &DirectorSettings,
    (policy, fingerprint): (Arc<Policy>, Fingerprint),
    dispatcher: Arc<Dispatcher<Z>>,
    state: FleetState<dyn CatalogWrite>,
    saved: Option<SavedPlan>,
    election: Option<Election>,
) -> Result<(), Error> {
    let leadership = match &election {
        None => None,
        Some(election) => match acquire(election).await.map_err(Error::unable)? {
            Lock::Held(leadership) => Some(leadership),
            Lock::Taken(holder) => {
                make_way(settings, &format!("{holder}; this director does nothing"));
                return Ok(());
            }
        },
    };
    let began = clock::now();
    let before = LiveStatus::read(&StatusPlace::of(&policy.catalog), began).await;
    let is_first_today = before.is_none_or(|live| live.began.date_naive() != began.date_naive());
    let tls = dispatcher.tls.clone();
    let once = Once {
        settings,
        policy: (Arc::clone(&policy), fingerprint),
        dispatcher,
        state: state.clone(),
        leadership: leadership.as_ref(),
    };
    let result = once.run(saved).await;
    if let Some(leadership) = leadership {
        leadership.resign().await;
    }
    let report = result?;
    if is_first_today {
        old_records::delete(&policy, &state, began).await;
        warn_of_certificates(state.certificates().all(), tls.as_deref());
    }
    let written = match &settings.metrics_file {
        Some(file) => write_metrics(file, &policy, &state, &report, began).await,
        None => Ok(()),
    };
    // The catalog is closed before anything is printed: a pager may keep this process waiting for hours, and meanwhile
    // each pass from cron would do nothing.
    drop(state);
    print(settings, &report);
    if let Err(error) = &written {
        report::print_error(&format_args!("{error:#}"));
    }
    if report.is_success() && written.is_ok() { Ok(()) } else { Err(Error::reported()) }
}

async fn write_metrics(
    file: &Path,
    policy: &Arc<Policy>,
    state: &FleetState<dyn CatalogWrite>,
    report: &Report,
    began: DateTime<Utc>,
) -> anyhow::Result<()> {
    let text = pass_metrics(policy, state, report, began).await?.text();
    write_metrics_file(file, &text)
}

/// Warns of a certificate that is unusable or will be soon. A pass from cron, which would send mail each time, warns
/// only of a key that other users can read, and the first one of a day of certificates that expire soon.
fn warn_of_certificate(tls: &Tls, settings: &DirectorSettings) {
    let warnings = if settings.once && !settings.verbose {
        tls.loose_key().into_iter().collect()
    } else {
        tls.warnings(clock::now(), &settings.host, PeerRole::Director)
    };
    for warning in warnings {
        log::warn!("{warning}");
    }
}
