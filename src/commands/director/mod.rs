//! `zsync director`: decides, has agents carry out, records.

mod dispatch;
mod pass;
mod summary;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_lite::future;

pub use dispatch::{AGENT_PORT, Dispatcher, wire_order};
pub use pass::{Pass, Report, hosts};
pub use world::World;

use super::agent::Agent;
use super::serve::stopped;
use crate::catalog::EmbeddedCatalog;
use crate::config;
use crate::model::HostName;
use crate::policy::{CatalogConfig, Policy};
use crate::report;
use crate::runtime;
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
}

/// Directs until the end of the pass, or of the process.
pub async fn run<Z: Zfs>(settings: Settings, zfs: Arc<Z>) -> Result<(), error::Error> {
    let policy = Arc::new(load_policy(&settings)?);
    let dispatcher = Arc::new(dispatcher(&settings, &policy, zfs).await);
    let CatalogConfig::Embedded { path } = &policy.catalog;
    let path = path.clone();
    let catalog = runtime::blocking(move || EmbeddedCatalog::open(&path)).await.map_err(error::Error::unable)?;
    let world = World::new(catalog);
    if settings.once {
        let pass = Pass::new(policy, dispatcher, world, clock::now());
        let report = pass.run().await.map_err(error::Error::unable)?;
        tell(&settings, &report);
        return if report.is_success() { Ok(()) } else { Err(error::Error::told()) };
    }
    let directing = direct(&settings, policy, dispatcher, world);
    let stopping = async { stopped().await.map_err(error::Error::unable) };
    future::or(directing, stopping).await
}

fn load_policy(settings: &Settings) -> Result<Policy, error::Error> {
    config::load_policy(&settings.config).map_err(error::Error::unable)
}

/// Sets up orders for this host within the process, where the policy has any.
async fn dispatcher<Z: Zfs>(settings: &Settings, policy: &Policy, zfs: Arc<Z>) -> Dispatcher<Z> {
    let here = settings.host.clone();
    let elsewhere = policy.hosts.get(&here).is_some_and(|h| h.address.is_some()) || !hosts(policy).contains(&here);
    let own = if elsewhere {
        Err(format!("{here} is not this process' to act on"))
    } else {
        own_agent(settings, zfs).await.map(Arc::new).map_err(|error| format!("{error:#}"))
    };
    Dispatcher { here, own }
}

async fn own_agent<Z: Zfs>(settings: &Settings, zfs: Arc<Z>) -> anyhow::Result<Agent<Z>> {
    let local = config::load_local(&settings.local)
        .with_context(|| format!("{} is this host, and its own local configuration is missing", settings.host))?;
    zfs.check_version().await?;
    Ok(Agent::new(settings.host.clone(), zfs, Arc::new(local)))
}

/// Passes, one after the other, each at its time.
async fn direct<Z: Zfs>(
    settings: &Settings,
    mut policy: Arc<Policy>,
    dispatcher: Arc<Dispatcher<Z>>,
    world: World<EmbeddedCatalog>,
) -> Result<(), error::Error> {
    let mut said = Said::default();
    loop {
        let began = std::time::Instant::now();
        match config::load_policy(&settings.config) {
            Ok(read) => policy = Arc::new(read),
            Err(error) => said.warn("policy", &format!("the policy before it stays in force: {error}")),
        }
        let pass = Pass::new(Arc::clone(&policy), Arc::clone(&dispatcher), world.clone(), clock::now());
        match pass.run().await {
            Ok(report) => said.report(&report),
            Err(error) => said.warn("catalog", &format!("no orders are made: {:#}", anyhow::Error::from(error))),
        }
        runtime::sleep(settings.interval.saturating_sub(began.elapsed()).max(Duration::from_secs(1))).await;
    }
}

fn tell(settings: &Settings, report: &Report) {
    if settings.verbose || settings.format != report::Format::Table {
        report::print(&summary::pass(report, settings.format));
    }
    for failure in summary::failures(report) {
        eprintln!("zsync: {failure}");
    }
}

/// What was said already: a failure that stays the same is told once, not at each pass.
#[derive(Default)]
struct Said(BTreeMap<String, String>);

impl Said {
    fn warn(&mut self, about: &str, text: &str) {
        if self.0.get(about).is_none_or(|before| before != text) {
            log::error!("{text}");
            self.0.insert(about.to_owned(), text.to_owned());
        }
    }

    fn report(&mut self, report: &Report) {
        let failures: BTreeMap<String, String> =
            summary::failures(report).map(|f| (f.about(), f.to_string())).collect();
        self.0.retain(|about, _| {
            let still = failures.contains_key(about);
            if !still {
                log::info!("{about}: all is well again");
            }
            still
        });
        for (about, text) in failures {
            self.warn(&about, &text);
        }
        for outcome in report.outcomes.iter().filter(|o| o.success) {
            log::info!("{}", summary::outcome_line(outcome));
        }
    }
}
