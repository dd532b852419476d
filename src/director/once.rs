//! A single pass, for `zsync director --once`.

use std::sync::Arc;
use std::time::Instant;

use futures_lite::future;

use crate::catalog::CatalogWrite;
use crate::cli::exit::Error;
use crate::cli::report::{self, Format};
use crate::director::leader::Leadership;
use crate::director::leader_loop::{new_pass, while_leading};
use crate::director::report::{Report, reported};
use crate::director::saved::SavedPlan;
use crate::director::settings::DirectorSettings;
use crate::director::{bars, status_file, summary};
use crate::fleet::live_status::StatusPlace;
use crate::fleet::{Dispatcher, FleetState};
use crate::policy::Policy;
use crate::sys::service::Signals;
use crate::sys::{clock, runtime};
use crate::zfs::Zfs;

/// Makes the pass. `--timeout` or a signal interrupts it.
pub(crate) async fn once<Z: Zfs>(
    settings: &DirectorSettings,
    policy: Arc<Policy>,
    dispatcher: Arc<Dispatcher<Z>>,
    state: FleetState<dyn CatalogWrite>,
    saved: Option<SavedPlan>,
    leadership: Option<&Leadership>,
) -> Result<Report, Error> {
    let mut signals = Signals::of_command().map_err(Error::unable)?;
    let began = Instant::now();
    let place = StatusPlace::of(&policy.catalog);
    let pass = new_pass(policy, dispatcher, state, leadership).await.map_err(Error::unable)?;
    let pass = pass.resyncing(settings.resync);
    let progress = pass.progress();
    let work = async {
        match saved {
            None => pass.clone().run().await,
            Some(saved) => pass.clone().run_saved(saved.orders).await,
        }
    };
    let began_at = clock::now();
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
    status_file::publish_end(&place, &progress, began_at).await;
    let report = match finished {
        Some(Ok(report)) if signals.end().is_some() => Ok(Report { interrupted: Some(reason), ..report }),
        Some(result) => result,
        None => pass.interrupted(began.elapsed(), reason).await,
    };
    report.map_err(Error::unable)
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
