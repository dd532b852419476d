//! The director as a service: pass after pass, until it is asked to end or loses the lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_lite::future;

use crate::catalog::{CatalogError, CatalogWrite, FORGET_AFTER, Holder};
use crate::cli::exit::Error;
use crate::config;
use crate::director::connect::{OwnHost, dispatcher, has_own_work, load_tls, open_catalog};
use crate::director::failure_log::{CATALOG, FailureLog};
use crate::director::leader::{Election, Leadership};
use crate::director::leader_loop::{new_pass, stand_by, while_leading};
use crate::director::metrics::{DirectorMetrics, PassMetrics};
use crate::director::pass::Pass;
use crate::director::report::{Report, failures};
use crate::director::settings::DirectorSettings;
use crate::director::{status_file, summary};
use crate::fleet::live_status::StatusPlace;
use crate::fleet::{Dispatcher, FleetState};
use crate::policy::Policy;
use crate::sys::service::Signals;
use crate::sys::{clock, service};
use crate::zfs::Zfs;

/// How often old records are deleted from the catalog.
const CLEAN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// The service. What it knows of the policy and of this host is kept from pass to pass.
pub(crate) struct Service<'a, Z> {
    settings: &'a DirectorSettings,
    zfs: Arc<Z>,
    metrics: DirectorMetrics,
    failures: FailureLog,
    signals: &'a mut Signals,
    /// The policy in force.
    policy: Arc<Policy>,
    dispatcher: Arc<Dispatcher<Z>>,
    /// Whether the next pass lists every host and reports where the catalog differed.
    resync: bool,
    cleaned: Option<Instant>,
}

/// Failures of one pass, by subject.
type Failures = BTreeMap<String, String>;

impl<'a, Z: Zfs> Service<'a, Z> {
    /// A service that has read the policy and has made no pass yet.
    pub(crate) fn new(
        settings: &'a DirectorSettings,
        zfs: Arc<Z>,
        metrics: DirectorMetrics,
        signals: &'a mut Signals,
        policy: Arc<Policy>,
        dispatcher: Arc<Dispatcher<Z>>,
    ) -> Self {
        let (failures, resync, cleaned) = (FailureLog::default(), settings.resync, None);
        Self { settings, zfs, metrics, failures, signals, policy, dispatcher, resync, cleaned }
    }

    /// Gives orders while this director holds the lock, and stands by while another one does, until the process is asked
    /// to end.
    pub(crate) async fn run_elected(&mut self, election: &Election) -> Result<(), Error> {
        while self.signals.end().is_none() {
            service::ready("waiting for the director's lock");
            // Standing by has nothing to finish, so it ends at once.
            let waiting = stand_by(election, &mut self.failures);
            let Some(leadership) = self.signals.until_done(waiting, Duration::ZERO, || {}).await else { break };
            // The catalog is read again: another director may have written it meanwhile.
            let state = open_catalog(&self.policy, Holder::Director).await.map_err(Error::unable)?;
            self.run(state, Some(&leadership)).await;
            leadership.resign().await;
        }
        Ok(())
    }

    /// Makes passes, each at its time, until the process is asked to end or the lock is lost.
    pub(crate) async fn run(&mut self, state: FleetState<dyn CatalogWrite>, leadership: Option<&Leadership>) {
        service::ready("making its first pass");
        // The catalog of a running director never changes, so its status stays where it is.
        let place = StatusPlace::of(&self.policy.catalog);
        while self.signals.end().is_none() {
            let began = Instant::now();
            let mut failures = self.reload().await;
            let began_at = clock::now();
            let Some(result) = self.pass(&state, leadership, &place, began_at).await else { break };
            if self.settings.metrics.is_some() {
                self.metrics.ended(match &result {
                    Ok(report) => pass_metrics(&self.policy, &state, report, began_at).await.ok(),
                    Err(_) => None,
                });
            }
            match result {
                Ok(report) => self.passed(&state, &report, failures, began).await,
                Err(error @ CatalogError::LockLost(_)) => {
                    log::error!("{error}");
                    return;
                }
                // Nothing new is known of hosts and orders: their failures last.
                Err(error) => {
                    failures.extend(self.failures.current().clone());
                    let text = match error {
                        // One text for as long as Consul is away, whatever was asked of it.
                        CatalogError::Consul(error) => format!("no orders are given: {}", error.gist()),
                        error => format!("no orders are given: {:#}", anyhow::Error::from(error)),
                    };
                    service::status(&text);
                    failures.insert(CATALOG.to_owned(), text);
                    self.failures.update(failures);
                }
            }
            log::debug!("the pass took {:.1?}", began.elapsed());
            let idle = self.settings.interval.saturating_sub(began.elapsed()).max(Duration::from_secs(1));
            let idle = self.signals.idle(idle);
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

    /// Reads policy, certificates and, after SIGHUP, `local.json` again. What cannot be read stays as it was, which is
    /// among the failures.
    async fn reload(&mut self) -> Failures {
        let mut failures = Failures::new();
        match config::load_policy(&self.settings.config) {
            Ok(policy) => self.policy = Arc::new(policy),
            Err(error) => {
                failures.insert("the policy".to_owned(), format!("the previous policy stays in force: {error}"));
            }
        }
        // Certificates are renewed while the director runs.
        let tls = load_tls(&self.policy).unwrap_or_else(|error| {
            failures.insert("TLS".to_owned(), format!("{error}; the previous certificate stays in use"));
            self.dispatcher.tls.clone()
        });
        let host = &self.settings.host;
        let own = OwnHost { name: host, local: &self.settings.local, state: Some(&self.settings.state) };
        if self.signals.take_reload() {
            service::reloading();
            let renewed = dispatcher(own, &self.policy, tls, Arc::clone(&self.zfs)).await;
            match &renewed.own {
                Err(reason) if self.dispatcher.own.is_ok() && has_own_work(&self.policy, host) => {
                    let text = format!("the previous local.json stays in force on this host: {reason}");
                    failures.insert("this host".to_owned(), text);
                }
                _ => self.dispatcher = Arc::new(renewed),
            }
            service::ready(failures.values().next().map_or("configuration reloaded", |failure| failure));
        } else if let Ok(agent) = &self.dispatcher.own {
            if let Err(error) = agent.reload_tls() {
                failures.insert("TLS".to_owned(), format!("{error}; the previous certificate stays in use"));
            }
            let (here, own) = (self.dispatcher.here.clone(), self.dispatcher.own.clone());
            self.dispatcher = Arc::new(Dispatcher { tls, here, own });
        } else {
            // What was missing on this host may exist by now, or the host may be new in the policy.
            self.dispatcher = Arc::new(dispatcher(own, &self.policy, tls, Arc::clone(&self.zfs)).await);
        }
        failures
    }

    /// Makes one pass; `None` if the process was asked to end before it began.
    async fn pass(
        &mut self,
        state: &FleetState<dyn CatalogWrite>,
        leadership: Option<&Leadership>,
        place: &StatusPlace,
        began_at: DateTime<Utc>,
    ) -> Option<Result<Report, CatalogError>> {
        let began = Instant::now();
        let preparing = new_pass(Arc::clone(&self.policy), Arc::clone(&self.dispatcher), state.clone(), leadership);
        // No order is running yet, so this ends at once.
        let preparing = while_leading(leadership, preparing);
        let pass: Pass<Z, _> = match self.signals.until_done(preparing, Duration::ZERO, || {}).await? {
            Ok(pass) => pass.resyncing(self.resync),
            Err(error) => return Some(Err(error)),
        };
        let progress = pass.progress();
        self.metrics.begins(progress.clone());
        let work = while_leading(leadership, pass.clone().run());
        let work = future::or(work, status_file::publish(place, &progress, began_at));
        let running = self.signals.until_done(work, self.settings.grace, || {
            service::stopping("ending; waiting for running orders");
            progress.stop();
        });
        let finished = running.await;
        if !matches!(finished, Some(Err(CatalogError::LockLost(_)))) {
            status_file::publish_end(place, &progress, began_at).await;
        }
        Some(match finished {
            Some(result) => result,
            None => pass.interrupted(began.elapsed(), "the director was ended".to_owned()).await,
        })
    }

    /// Logs the report of a pass, and deletes old records once a day.
    async fn passed(
        &mut self,
        state: &FleetState<dyn CatalogWrite>,
        report: &Report,
        mut all_failures: Failures,
        began: Instant,
    ) {
        self.resync = false;
        for (host, line) in &report.corrected {
            log::info!("{host}: {line}: corrected");
        }
        if self.cleaned.is_none_or(|before| before.elapsed() >= CLEAN_EVERY) {
            self.cleaned = Some(began);
            match state.forget(report.at - FORGET_AFTER).await {
                Ok(0) => {}
                Ok(records) => log::info!("deleted {records} old records from the catalog"),
                Err(error) => {
                    log::warn!("cannot delete old records from the catalog: {:#}", anyhow::Error::from(error));
                }
            }
        }
        all_failures.extend(failures(report).map(|failure| (failure.subject(), failure.to_string())));
        self.failures.update(all_failures);
        for outcome in report.outcomes.iter().filter(|outcome| outcome.success) {
            log::info!("{}", summary::outcome_line(outcome));
        }
        service::status(&summary::in_a_line(report));
    }
}

/// The metrics of a pass that has just ended.
pub(crate) async fn pass_metrics<C: CatalogWrite + ?Sized + 'static>(
    policy: &Policy,
    state: &FleetState<C>,
    report: &Report,
    began: DateTime<Utc>,
) -> Result<PassMetrics, CatalogError> {
    let inventory = state.remembered().await?;
    let health = crate::actions::health::health(policy, &inventory, &report.unseen, clock::now());
    Ok(PassMetrics::of(report, health, began))
}
