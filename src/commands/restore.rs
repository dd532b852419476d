//! `zsync restore`: brings datasets back from their copies.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use chrono::{DateTime, Utc};
use clap::Args;

use crate::actions::{RestorePlan, RestoreStep, RestoredProperties, Wanted, restore, restored_properties};
use crate::catalog::open;
use crate::cli::args::{CommonArgs, PolicyArgs, StateArgs, moment, place};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::cli::settings::host_name_of;
use crate::config;
use crate::director::bars;
use crate::director::connect::{OwnHost, dispatcher, load_tls, with_services};
use crate::fleet::Dispatcher;
use crate::fleet::known::{self, Asked};
use crate::fleet::restore::{self as orders, Offer};
use crate::model::{Counter, DatasetName, HostName, Place};
use crate::policy::Policy;
use crate::sys::{clock, runtime};
use crate::zfs::Zfs;
use crate::zfs::system::System;

/// Arguments of `zsync restore`.
#[derive(Args, Debug)]
#[command(
    after_help = "Nothing is ever overwritten: a dataset that exists is not touched, or only renamed. An interrupted \
                        restore continues if the same command is given again.\n\n\
                        Exit status: 0 success; 1 not everything could be restored; 2 nothing could be done."
)]
pub struct RestoreArgs {
    /// The dataset that was lost; everything that was below it is restored as well
    #[arg(value_name = "HOST:DATASET", value_parser = place)]
    pub source: Place,
    /// Restore it under this name on the same host
    #[arg(long = "as", value_name = "DATASET", conflicts_with = "to")]
    pub name: Option<DatasetName>,
    /// Restore it on another host
    #[arg(long, value_name = "HOST:DATASET", value_parser = place)]
    pub to: Option<Place>,
    /// Use this copy [default: the copy of the policy that has the newest snapshot]
    #[arg(long, value_name = "HOST:DATASET", value_parser = place)]
    pub from: Option<Place>,
    /// Restore the newest snapshot that was taken until this moment [default: the newest of all]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub at: Option<DateTime<Utc>>,
    /// Rename what exists in the place of a dataset first
    #[arg(long)]
    pub set_aside: bool,
    /// Do not set the properties that were set on the lost dataset
    #[arg(long)]
    pub no_properties: bool,
    /// Only show what would be restored, and from where
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
    /// The policy's file.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// The folder for state that must survive restarts.
    #[command(flatten)]
    pub state: StateArgs,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The settings of `zsync restore`.
#[derive(Clone, Debug)]
pub struct RestoreSettings {
    /// The path of `server.json`.
    pub config: PathBuf,
    /// The path of `local.json`, for this host's own agent.
    pub local_file: PathBuf,
    /// The folder for state that must survive restarts.
    pub state: PathBuf,
    /// This host's name in the policy.
    pub host_name: HostName,
    /// What is restored.
    pub wanted: Wanted,
    /// Whether the properties of the lost dataset are set again.
    pub with_properties: bool,
}

/// A decided restore, with the connections to the hosts.
pub struct Prepared<Z> {
    policy: Arc<Policy>,
    agents: Arc<Dispatcher<Z>>,
    plan: RestorePlan,
    /// The size of each step, if it is known.
    sizes: Vec<Option<u64>>,
    source: Place,
}

/// Shows what would be restored, and restores it.
pub fn run(args: RestoreArgs) -> Result<(), Error> {
    let zfs = Arc::new(System::new(&args.common.zfs));
    let host_name = host_name_of(&args.common)?;
    let RestoreArgs { source, name, to, from, at, set_aside, no_properties, dry_run, yes, .. } = args;
    let set_aside = set_aside.then(clock::now);
    let beside = name.map(|dataset| Place { host: source.host.clone(), dataset });
    let to = to.or(beside).unwrap_or_else(|| source.clone());
    let settings = RestoreSettings {
        config: args.policy.config,
        local_file: args.common.local,
        state: args.state.state,
        host_name,
        wanted: Wanted { source, to, from, at, set_aside },
        with_properties: !no_properties,
    };
    runtime::block_on(async {
        let prepared = prepare(&settings, zfs).await.map_err(Error::unable)?;
        prepared.plan.problems.iter().for_each(report::print_error);
        report::print(&prepared.text());
        let is_possible = prepared.plan.problems.is_empty();
        if dry_run || prepared.plan.steps.is_empty() {
            return if is_possible { Ok(()) } else { Err(Error::reported()) };
        }
        if !yes {
            confirm(prepared.plan.steps.len()).map_err(Error::unable)?;
        }
        let problems = prepared.restore(|line| report::print(&format!("{line}\n"))).await;
        problems.iter().for_each(report::print_error);
        if is_possible && problems.is_empty() { Ok(()) } else { Err(Error::reported()) }
    })
}

/// Asks the user whether to begin.
fn confirm(count: usize) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        bail!("nothing was restored: there is nobody to confirm it; hint: pass --yes, or --dry-run to only look");
    }
    let what = if count == 1 { "this dataset".to_owned() } else { format!("these {count} datasets") };
    write!(io::stderr(), "Restore {what}? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(anyhow!("nothing was restored")),
    }
}

/// Asks the hosts what they have, and decides what to restore. Nothing is changed.
pub async fn prepare<Z: Zfs>(settings: &RestoreSettings, zfs: Arc<Z>) -> anyhow::Result<Prepared<Z>> {
    let policy = Arc::new(config::load_policy(&settings.config)?);
    let own = OwnHost { name: &settings.host_name, local: &settings.local_file, state: Some(&settings.state) };
    let agents = Arc::new(dispatcher(own, &policy, load_tls(&policy)?, zfs).await);
    let (policy, services) = with_services(policy, &agents).await?;
    // A user waits for the answers. Transfers are retried for as long as the policy says.
    let impatient = Arc::new(Policy { retry_for: Duration::ZERO, ..(*policy).clone() });
    let remembered = open::inventory(&policy.catalog).await?;
    let asked = Counter::default();
    let asking = known::from_hosts(&impatient, &agents, remembered, services.absent, &asked);
    let Asked { inventory, obstacles } = bars::counted("hosts asked", &asked, asking).await;
    let mut plan = restore(&policy, &inventory, &obstacles.unseen, &settings.wanted);
    let (mut steps, mut sizes) = (Vec::new(), Vec::new());
    for step in plan.steps {
        match orders::ask(&impatient, &agents, &step).await {
            Ok(offer) => {
                sizes.push(offer.size);
                steps.push(if settings.with_properties {
                    with_properties(step, &offer, &settings.wanted)
                } else {
                    step
                });
            }
            Err(problem) => plan.problems.push(problem),
        }
    }
    plan.steps = steps;
    Ok(Prepared { policy, agents, plan, sizes, source: settings.wanted.source.clone() })
}

/// Adds to a step the properties that are set on what it restores.
fn with_properties(mut step: RestoreStep, offer: &Offer, wanted: &Wanted) -> RestoreStep {
    let RestoredProperties { set, notes } = restored_properties(offer.recorded.as_ref(), wanted.to == wanted.source);
    step.properties = set;
    step.notes.extend(notes);
    step
}

impl<Z: Zfs> Prepared<Z> {
    /// The plan for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let size = |size: &Option<u64>| size.map_or_else(|| "?".to_owned(), report::bytes);
        let row = |(step, bytes): (&RestoreStep, &Option<u64>)| {
            let RestoreStep { to, from, snapshot, .. } = step;
            let taken = snapshot.creation.format("%F %T UTC").to_string();
            let properties = step.properties.len().to_string();
            vec![to.to_string(), format!("{from}@{}", snapshot.name), taken, size(bytes), properties]
        };
        let rows: Vec<Vec<String>> = self.plan.steps.iter().zip(&self.sizes).map(row).collect();
        if !rows.is_empty() {
            text.push_str(&report::table(&["RESTORE", "FROM", "TAKEN", "SIZE", "PROPERTIES"], &[3, 4], rows));
            text.push('\n');
        }
        let notes = self.plan.steps.iter().flat_map(|s| s.notes.iter().map(move |note| format!("{}: {note}\n", s.to)));
        text.extend(notes);
        text.extend(self.plan.present.iter().chain(&self.plan.left_out).map(|line| format!("{line}\n")));
        if self.plan.steps.is_empty() && !self.plan.present.is_empty() {
            text.push_str(&format!(
                "nothing is missing of {}; hint: to get what was changed or deleted since, restore it under another \
                 name (--as), and copy from there\n",
                self.source
            ));
        }
        text
    }

    /// What stands in the way.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.plan.problems
    }

    /// Restores one dataset after the other. `tell` gets a line for each. Returns what went wrong.
    pub async fn restore(&self, tell: impl Fn(String)) -> Vec<String> {
        let (mut problems, mut failed) = (Vec::new(), BTreeSet::<DatasetName>::new());
        for (step, size) in self.plan.steps.iter().zip(&self.sizes) {
            let RestoreStep { to, from, snapshot, .. } = step;
            if let Some(above) = to.dataset.ancestors().find(|above| failed.contains(above)) {
                problems.push(format!("did not restore {to}, because {above} was not restored"));
                failed.insert(to.dataset.clone());
                continue;
            }
            let counter = Counter::default();
            counter.expect(size.unwrap_or_default());
            let label = to.to_string();
            match bars::transfer(&label, &counter, orders::restore(&self.policy, &self.agents, step, counter.clone()))
                .await
            {
                Ok(response) => {
                    let remark =
                        if response.error.is_empty() { String::new() } else { format!(" ({})", response.error) };
                    let bytes = report::bytes(response.bytes);
                    tell(format!("restored {to} from {from}@{}, {bytes}{remark}", snapshot.name));
                }
                Err(problem) => {
                    problems.push(problem);
                    failed.insert(to.dataset.clone());
                }
            }
        }
        problems
    }
}
