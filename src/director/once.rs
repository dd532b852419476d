//! A single pass, for `zsync director --once`.

use std::sync::Arc;
use std::time::Instant;

use futures_lite::future;

use crate::actions::Order;
use crate::catalog::{CatalogError, CatalogWrite};
use crate::cli::exit::Error;
use crate::cli::report::{self, Format};
use crate::config::{self, Fingerprint};
use crate::director::connect::load_tls;
use crate::director::lanes::Lanes;
use crate::director::leader::Leadership;
use crate::director::leader_loop::{new_pass, while_leading};
use crate::director::report::{Report, reported};
use crate::director::rounds::Rounds;
use crate::director::saved::{SavedPlan, Scope};
use crate::director::settings::DirectorSettings;
use crate::director::{bars, status_file, summary};
use crate::fleet::live_status::StatusPlace;
use crate::fleet::{Dispatcher, FleetState};
use crate::policy::Policy;
use crate::sys::service::Signals;
use crate::sys::{clock, runtime};
use crate::zfs::Zfs;

/// What a single pass works with. Passes that follow it while its transfers run have it, too.
pub(crate) struct Once<'a, Z> {
    pub settings: &'a DirectorSettings,
    pub policy: (Arc<Policy>, Fingerprint),
    pub dispatcher: Arc<Dispatcher<Z>>,
    pub state: FleetState<dyn CatalogWrite>,
    pub leadership: Option<&'a Leadership>,
}

impl<Z: Zfs> Once<'_, Z> {
    /// Makes the pass. `--timeout` or a signal interrupts it.
    pub(crate) async fn run(mut self, saved: Option<SavedPlan>) -> Result<Report, Error> {
        let settings = self.settings;
        let mut signals = Signals::of_command().map_err(Error::unable)?;
        let (began, began_at) = (Instant::now(), clock::now());
        let place = StatusPlace::of(&self.policy.0.catalog);
        let mut rounds = Rounds::default();
        let progress = rounds.lanes().progress().clone();
        let leadership = self.leadership;
        let scope = saved.as_ref().map(|saved| Scope::of(&saved.orders));
        let work = self.passes(&mut rounds, saved.map(|saved| saved.orders));
        let work = bars::for_pass(&progress, while_leading(leadership, work));
        let work = future::or(work, status_file::publish(&place, &progress, began_at));
        let running = signals.until_done(work, settings.grace, || progress.stop());
        let finished = match settings.timeout {
            Some(limit) => runtime::timeout(limit, running).await.ok().flatten(),
            None => running.await,
        };
        let reason = match (signals.end(), settings.timeout) {
            (Some(signal), _) => format!("it was ended by {signal}"),
            (None, Some(limit)) => format!("it did not end within {}", humantime::format_duration(limit)),
            (None, None) => String::new(),
        };
        status_file::publish_stop(&place, &progress, began_at).await;
        let took = began.elapsed();
        let report = match finished {
            Some(Ok(report)) => {
                let interrupted = signals.end().map(|_| reason).or(report.interrupted);
                Ok(Report { at: began_at, took, interrupted, ..report })
            }
            Some(Err(error)) => Err(error),
            None => match rounds.interrupt(took, reason.clone()).await {
                Some(report) => report,
                None => return Err(Error::unable(anyhow::anyhow!("the pass was interrupted: {reason}"))),
            },
        };
        let report = report.map_err(Error::unable)?;
        Ok(match scope {
            Some(scope) => scope.limit(report),
            None => report,
        })
    }

    /// Makes a pass, and further ones as long as anything is left that was due at its beginning.
    async fn passes(
        &mut self,
        rounds: &mut Rounds<Z, dyn CatalogWrite>,
        saved: Option<Vec<Order>>,
    ) -> Result<Report, CatalogError> {
        let interval = self.settings.interval;
        let (mut is_first, mut resync) = (true, self.settings.resync);
        let next = async |lanes: &Lanes| {
            if !std::mem::take(&mut is_first) {
                self.reload(lanes);
            }
            let (policy, dispatcher) = (Arc::clone(&self.policy.0), Arc::clone(&self.dispatcher));
            let pass = new_pass(policy, dispatcher, self.state.clone(), self.leadership).await?;
            Ok(pass.resyncing(std::mem::take(&mut resync)))
        };
        rounds.single(interval, saved, next).await
    }

    /// Reads the policy and the certificate again. What cannot be read stays in force as it was.
    fn reload(&mut self, lanes: &Lanes) {
        match config::load_policy_with_fingerprint(&self.settings.config) {
            Ok((policy, fingerprint)) if fingerprint != self.policy.1 => {
                self.policy = (Arc::new(policy), fingerprint);
                lanes.policy_changed();
            }
            Ok(_) => {}
            Err(error) => log::warn!("the previous policy stays in force: {error}"),
        }
        match load_tls(&self.policy.0) {
            Ok(tls) => {
                let (here, own) = (self.dispatcher.here.clone(), self.dispatcher.own.clone());
                self.dispatcher = Arc::new(Dispatcher { tls, here, own });
            }
            Err(error) => log::warn!("{error}; the previous certificate stays in use"),
        }
    }
}

/// Prints failures to standard error, and the report to standard output if the settings ask for it.
pub(crate) fn print(settings: &DirectorSettings, report: &Report) {
    if settings.verbose || settings.format != Format::Table {
        report::print(&summary::pass(report, settings.format));
    }
    if settings.resync && settings.format == Format::Table {
        let lines = report.corrected.iter().map(|(host, line)| format!("{host}: {line}: corrected\n"));
        report::print(&lines.collect::<String>());
    }
    for (_, text) in reported(report) {
        report::print_error(&text);
    }
}
