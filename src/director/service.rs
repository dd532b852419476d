//! The director as a service: it runs a pass at regular intervals until it is asked to end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_lite::future;

use crate::actions::health::Finding;
use crate::catalog::{CatalogError, CatalogWrite, Holder};
use crate::cli::exit::Error;
use crate::config::{self, Fingerprint};
use crate::director::connect::{OwnHost, dispatcher, has_own_work, load_tls, open_catalog};
use crate::director::failure_log::{FailureLog, Failures};
use crate::director::heartbeat::Heartbeat;
use crate::director::lanes::Lanes;
use crate::director::leader::{Election, Leadership};
use crate::director::leader_loop::{new_pass, stand_by, while_leading};
use crate::director::metrics::{DirectorMetrics, PassMetrics};
use crate::director::pass::Pass;
use crate::director::report::{Report, reported, resting_subject, subject};
use crate::director::rounds::Rounds;
use crate::director::settings::DirectorSettings;
use crate::director::{old_records, status_file, summary};
use crate::fleet::live_status::StatusPlace;
use crate::fleet::{Dispatcher, FleetState};
use crate::model::CertificateExpiry;
use crate::model::expiry::Daily;
use crate::policy::Policy;
use crate::sys::service::Signals;
use crate::sys::{clock, service};
use crate::transport::tls::Tls;
use crate::zfs::Zfs;

/// How often old records are deleted from the catalog.
const CLEAN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// The service. It keeps its policy and its connections from pass to pass, unless they have changed.
pub(crate) struct Service<'a, Z> {
    settings: &'a DirectorSettings,
    zfs: Arc<Z>,
    metrics: DirectorMetrics,
    failures: FailureLog,
    signals: &'a mut Signals,
    /// The policy in force.
    policy: Arc<Policy>,
    fingerprint: Option<Fingerprint>,
    dispatcher: Arc<Dispatcher<Z>>,
    /// Whether the next pass lists every host and reports where the catalog differed.
    resync: bool,
    /// When old records were last deleted from the catalog.
    cleaned: Option<Instant>,
    heartbeat: Heartbeat,
    /// When certificates that expire soon were last warned of.
    reminder: Daily,
}

impl<'a, Z: Zfs> Service<'a, Z> {
    /// Creates a service that has made no pass yet.
    pub(crate) fn new(
        settings: &'a DirectorSettings,
        zfs: Arc<Z>,
        metrics: DirectorMetrics,
        signals: &'a mut Signals,
        policy: Arc<Policy>,
        dispatcher: Arc<Dispatcher<Z>>,
        heartbeat: Heartbeat,
    ) -> Self {
        let (failures, resync, cleaned, fingerprint) = (FailureLog::default(), settings.resync, None, None);
        let reminder = Daily::default();
        Self {
            settings,
            zfs,
            metrics,
            failures,
            signals,
            policy,
            fingerprint,
            dispatcher,
            resync,
            cleaned,
            heartbeat,
            reminder,
        }
    }

    /// Gives orders while this director holds the lock, and stands by while another one does, until the process is
    /// asked to end.
    pub(crate) async fn run_elected(&mut self, election: &Election) -> Result<(), Error> {
        while self.signals.end().is_none() {
            service::ready("waiting for the director's lock");
            self.metrics.set_active(false);
            self.heartbeat.wait(None);
            // There is nothing to finish while standing by, so a signal ends it at once.
            let standing_by = stand_by(election, &mut self.failures);
            let Some(leadership) = self.signals.until_done(standing_by, Duration::ZERO, || {}).await else { break };
            self.heartbeat.step();
            // The catalog is read again, because another director may have written it in the meantime.
            let state = open_catalog(&self.policy, Holder::Director).await.map_err(Error::unable)?;
            self.run(state, Some(&leadership)).await;
            leadership.resign().await;
        }
        Ok(())
    }

    /// Runs a pass at regular intervals until the process is asked to end or the lock is lost.
    pub(crate) async fn run(&mut self, state: FleetState<dyn CatalogWrite>, leadership: Option<&Leadership>) {
        service::ready("making its first pass");
        self.metrics.set_active(true);
        // A running director keeps its catalog, so the place of its status never changes.
        let place = StatusPlace::of(&self.policy.catalog);
        // If the lock is lost, this is dropped, and with it all running orders.
        let mut rounds = Rounds::default();
        let mut began_at = clock::now();
        while self.signals.end().is_none() {
            let began = Instant::now();
            self.heartbeat.step();
            let failures = self.reload(&state, rounds.lanes()).await;
            began_at = clock::now();
            let Some(result) = self.pass(&state, leadership, &place, &mut rounds, began_at).await else { break };
            if self.settings.metrics.is_some() {
                self.metrics.ended(match &result {
                    Ok(report) => pass_metrics(&self.policy, &state, report, began_at).await.ok(),
                    Err(_) => None,
                });
            }
            match result {
                Ok(report) => self.passed(&state, &report, failures, rounds.lanes()).await,
                Err(error @ CatalogError::LockLost(_)) => {
                    log::error!("{error}");
                    return;
                }
                // Nothing new is known about hosts and orders, so their failures have not ended.
                Err(error) => {
                    let text = match error {
                        // This text stays the same while Consul is unreachable, whatever the request was, so that it is
                        // logged once.
                        CatalogError::Consul(error) => format!("no orders are given: {}", error.gist()),
                        error => format!("no orders are given: {:#}", anyhow::Error::from(error)),
                    };
                    service::status(&text);
                    self.failures.update_catalog(Some(text), failures);
                    rounds.rest();
                }
            }
            log::debug!("the pass took {:.1?}", began.elapsed());
            let pause = self.settings.interval.saturating_sub(began.elapsed()).max(Duration::from_secs(1));
            self.heartbeat.wait(Some(pause));
            let progress = rounds.lanes().progress().clone();
            let pausing = future::or(self.signals.idle(pause), rounds.at_slots());
            let pausing = future::or(pausing, status_file::publish_pause(&place, &progress, began_at));
            let pausing = async {
                pausing.await;
                Ok(())
            };
            if let Err(error) = while_leading(leadership, pausing).await {
                log::error!("{error}");
                return;
            }
        }
        self.finish(&state, leadership, &mut rounds).await;
        status_file::publish_stop(&place, rounds.lanes().progress(), began_at).await;
    }

    /// Gives running orders time to end, and then interrupts them.
    async fn finish(
        &mut self,
        state: &FleetState<dyn CatalogWrite>,
        leadership: Option<&Leadership>,
        rounds: &mut Rounds<Z, dyn CatalogWrite>,
    ) {
        let began = Instant::now();
        rounds.lanes().progress().stop();
        let mut ended = Some(Ok(()));
        if !rounds.is_quiet() {
            service::stopping("ending; waiting for running orders");
            let quiet = rounds.quiet();
            let quiet = while_leading(leadership, async {
                quiet.await;
                Ok(())
            });
            ended = self.signals.grace(self.settings.grace, quiet).await;
        }
        let report = match ended {
            Some(Ok(())) => rounds.last_report(began.elapsed()).await,
            Some(Err(error)) => Some(Err(error)),
            None => rounds.interrupt(began.elapsed(), "the director was ended".to_owned()).await,
        };
        match report {
            Some(Ok(report)) => self.passed(state, &report, Failures::default(), rounds.lanes()).await,
            Some(Err(error)) => log::error!("{:#}", anyhow::Error::from(error)),
            None => {}
        }
    }

    /// Reads the policy, the certificates and, after SIGHUP, `local.json` again. If one of them cannot be read, its
    /// previous content stays in force, and a failure is returned.
    async fn reload(&mut self, state: &FleetState<dyn CatalogWrite>, lanes: &Lanes) -> Failures {
        let mut failures = Failures::default();
        match config::load_policy_with_fingerprint(&self.settings.config) {
            Ok((policy, fingerprint)) => {
                self.policy = Arc::new(policy);
                if self.fingerprint.replace(fingerprint).is_some_and(|former| former != fingerprint) {
                    lanes.policy_changed();
                }
            }
            Err(error) => {
                failures.add("the policy", format!("the previous policy stays in force: {error}"));
            }
        }
        // Certificates are renewed while the director runs.
        let tls = load_tls(&self.policy).unwrap_or_else(|error| {
            failures.add("TLS", format!("{error}; the previous certificate stays in use"));
            self.dispatcher.tls.clone()
        });
        let host = &self.settings.host;
        let own = OwnHost { name: host, local: &self.settings.local, state: Some(&self.settings.state) };
        if self.signals.take_reload() {
            service::reloading();
            state.wake_silent();
            lanes.wake();
            let renewed = dispatcher(own, &self.policy, tls, Arc::clone(&self.zfs)).await;
            match &renewed.own {
                Err(reason) if self.dispatcher.own.is_ok() && has_own_work(&self.policy, host) => {
                    let text = format!("the previous local.json stays in force on this host: {reason}");
                    failures.add("this host", text);
                }
                _ => {
                    // Its transfers may run for days, and count among those that local.json permits.
                    let own = match (&renewed.own, &self.dispatcher.own) {
                        (Ok(new), Ok(former)) => Ok(Arc::new(former.renewed(new))),
                        (own, _) => own.clone(),
                    };
                    self.dispatcher = Arc::new(Dispatcher { own, ..renewed });
                }
            }
            service::ready(failures.first().unwrap_or("configuration reloaded"));
        } else if let Ok(agent) = &self.dispatcher.own {
            if let Err(error) = agent.reload_tls() {
                failures.add("TLS", format!("{error}; the previous certificate stays in use"));
            }
            let (here, own) = (self.dispatcher.here.clone(), self.dispatcher.own.clone());
            self.dispatcher = Arc::new(Dispatcher { tls, here, own });
        } else {
            // This host had no agent. What it lacked may exist by now, or the policy may name the host only now.
            self.dispatcher = Arc::new(dispatcher(own, &self.policy, tls, Arc::clone(&self.zfs)).await);
        }
        failures
    }

    /// Makes one pass; `None` if the process was asked to end before the pass began. Transfers that run longer than the
    /// interval do not delay the next pass.
    async fn pass(
        &mut self,
        state: &FleetState<dyn CatalogWrite>,
        leadership: Option<&Leadership>,
        place: &StatusPlace,
        rounds: &mut Rounds<Z, dyn CatalogWrite>,
        began_at: DateTime<Utc>,
    ) -> Option<Result<Report, CatalogError>> {
        let began = Instant::now();
        let progress = rounds.lanes().progress().clone();
        let preparing = new_pass(Arc::clone(&self.policy), Arc::clone(&self.dispatcher), state.clone(), leadership);
        // No order of this pass is running yet, so this ends at once.
        let preparing = while_leading(leadership, preparing);
        let pass: Pass<Z, _> = match self.signals.until_done(preparing, Duration::ZERO, || {}).await? {
            Ok(pass) => pass.resyncing(self.resync),
            Err(error) => return Some(Err(error)),
        };
        self.metrics.begins(progress.clone());
        self.heartbeat.works(progress.clone());
        let interval = self.settings.interval;
        let work = async {
            let begun = rounds.pass(pass, None, Some(interval)).await?;
            if progress.is_stopped() {
                rounds.quiet().await;
            }
            begun.report().await
        };
        let work = while_leading(leadership, work);
        let work = future::or(work, status_file::publish(place, &progress, began_at));
        let running = self.signals.until_done(work, self.settings.grace, || {
            service::stopping("ending; waiting for running orders");
            progress.stop();
        });
        match running.await {
            Some(result) => Some(result),
            None => rounds.interrupt(began.elapsed(), "the director was ended".to_owned()).await,
        }
    }

    /// Logs the report of a pass, and deletes old records once a day.
    async fn passed(
        &mut self,
        state: &FleetState<dyn CatalogWrite>,
        report: &Report,
        mut all_failures: Failures,
        lanes: &Lanes,
    ) {
        self.resync = false;
        for (host, line) in &report.corrected {
            log::info!("{host}: {line}: corrected");
        }
        if self.cleaned.is_none_or(|before| before.elapsed() >= CLEAN_EVERY) {
            self.cleaned = Some(Instant::now());
            old_records::delete(&self.policy, state, report.at).await;
        }
        if self.reminder.is_due(clock::now()) {
            warn_of_certificates(state.certificates().all(), self.dispatcher.tls.as_deref());
        }
        for (failure, text) in reported(report) {
            all_failures.add(&failure.subject(), text);
        }
        // A transfer that failed and runs again has not succeeded yet.
        for running in lanes.progress().running() {
            self.failures.keep(&subject(&running.outcome), &mut all_failures);
        }
        // Nor has one that is not tried again yet.
        for resting in &report.resting {
            self.failures.keep(&resting_subject(resting), &mut all_failures);
        }
        self.failures.update(all_failures);
        for outcome in report.outcomes.iter().filter(|outcome| outcome.success) {
            log::info!("{}", summary::outcome_line(outcome));
        }
        service::status(&summary::in_a_line(report));
    }
}

/// Logs a warning for each certificate of the fleet that has expired or expires soon, and for the director's list of
/// revoked certificates.
pub(crate) fn warn_of_certificates(certificates: Vec<CertificateExpiry>, tls: Option<&Tls>) {
    let now = clock::now();
    if let Some(warning) = tls.and_then(|tls| tls.list_trouble(now)) {
        log::warn!("{warning}");
    }
    for certificate in certificates {
        if let Some(finding) = Finding::of_certificate(&certificate, now) {
            log::warn!("{}: {finding}", certificate.host);
        }
    }
}

/// The metrics of a pass that has just ended.
pub(crate) async fn pass_metrics<C: CatalogWrite + ?Sized + 'static>(
    policy: &Arc<Policy>,
    state: &FleetState<C>,
    report: &Report,
    began: DateTime<Utc>,
) -> Result<PassMetrics, CatalogError> {
    let inventory = state.remembered().await?;
    let mut health = crate::actions::health::health(policy, &inventory, &report.unseen, clock::now());
    health.judge_certificates(state.certificates().all());
    Ok(PassMetrics::of(report, health, began).forecasting(Arc::clone(policy), state.durations().clone()))
}
