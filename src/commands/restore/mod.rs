//! `zsync restore`: brings datasets back from their copies, and joins their encryption keys again.

pub mod files;
pub mod keys;
mod settings;
mod side_by_side;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use clap::Args;
use futures_lite::future;

use crate::actions::{
    Lost, RestorePlan, RestoreStep, RestoredProperties, Wanted, restore_lost, restored_key, restored_properties,
};
use crate::catalog::open;
use crate::cli::args::{CommonArgs, PolicyArgs, StateArgs, moment, place};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::cli::settings::{host_name, host_name_of, local_if_exists, policy_if_exists};
use crate::commands::restore::files::FilesSettings;
use crate::commands::restore::settings::{confirm, connect};
use crate::director::bars;
use crate::fleet::Dispatcher;
use crate::fleet::known::{self, Asked};
use crate::fleet::restore as orders;
use crate::model::path_pattern::PathPattern;
use crate::model::{Counter, DatasetName, HostName, Place, SourceRecord};
use crate::policy::Policy;
use crate::sys::runtime::channel;
use crate::sys::{clock, runtime};
use crate::zfs::Zfs;
use crate::zfs::system::System;

pub use settings::RestoreSettings;

/// How many copies are asked at a time what they would send.
const CONCURRENT_QUESTIONS: usize = 8;

/// Arguments of `zsync restore`.
#[derive(Args, Debug)]
#[command(
    after_help = "Nothing is ever overwritten: a dataset that exists is not touched, or only renamed. An interrupted \
                        restore continues if the same command is given again.\n\n\
                        Exit status: 0 success; 1 not everything could be restored; 2 nothing could be done."
)]
pub struct RestoreArgs {
    /// The dataset that was lost; everything that was below it is restored as well
    #[arg(value_name = "HOST:DATASET", value_parser = place, required_unless_present = "host")]
    pub source: Option<Place>,
    /// Restore all datasets that the policy has of this host
    #[arg(long, value_name = "HOST", conflicts_with_all = ["source", "name", "to", "from", "set_aside", "join_keys"])]
    pub host: Option<HostName>,
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
    /// Restore only files with these paths below the dataset, as in 'docs/**', into a folder of this host
    #[arg(long, value_name = "PATTERN", num_args = 1.., requires = "into",
          conflicts_with_all = ["host", "name", "to", "set_aside", "no_properties", "join_keys", "dry_run", "yes"])]
    pub files: Vec<PathPattern>,
    /// Restore files into this folder
    #[arg(long, value_name = "FOLDER", requires = "files")]
    pub into: Option<PathBuf>,
    /// Rename what exists in the place of a dataset first
    #[arg(long)]
    pub set_aside: bool,
    /// Do not set the properties that were set on the lost dataset
    #[arg(long)]
    pub no_properties: bool,
    /// Restore nothing; have the restored datasets within this one use the same encryption keys as before
    #[arg(long, conflicts_with_all = ["name", "to", "from", "at", "set_aside", "no_properties"])]
    pub join_keys: bool,
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

/// A decided restore, with the connections to the hosts.
pub struct Prepared<Z> {
    policy: Arc<Policy>,
    agents: Arc<Dispatcher<Z>>,
    plan: RestorePlan,
    /// The size of each step, if it is known.
    sizes: Vec<Option<u64>>,
    lost: Lost,
}

/// Shows what would be restored, and restores it.
pub fn run(args: RestoreArgs) -> Result<(), Error> {
    if let (false, Some(source), Some(into)) = (args.files.is_empty(), args.source.clone(), args.into.clone()) {
        return restore_files(args, source, into);
    }
    let zfs = Arc::new(System::new(&args.common.zfs));
    let host_name = host_name_of(&args.common)?;
    let RestoreArgs { source, host, name, to, from, at, set_aside, no_properties, join_keys, dry_run, yes, .. } = args;
    let set_aside = set_aside.then(clock::now);
    let lost = match (source, host) {
        (Some(source), _) => {
            let beside = name.map(|dataset| Place { host: source.host.clone(), dataset });
            let to = to.or(beside).unwrap_or_else(|| source.clone());
            Lost::Tree(Wanted { source, to, from, at, set_aside })
        }
        (None, Some(host)) => Lost::Host { host, at },
        (None, None) => return Err(Error::unable(anyhow!("nothing to restore was named"))),
    };
    let settings = RestoreSettings {
        config: args.policy.config,
        local_file: args.common.local,
        state: args.state.state,
        host_name,
        lost,
        with_properties: !no_properties,
    };
    if let (true, Lost::Tree(Wanted { source, .. })) = (join_keys, &settings.lost) {
        return keys::run(&settings, source, zfs, dry_run, yes);
    }
    runtime::block_on(async {
        let prepared = prepare(&settings, zfs).await.map_err(Error::unable)?;
        prepared.plan.problems.iter().for_each(report::print_error);
        report::print(&prepared.text());
        let is_possible = prepared.plan.problems.is_empty();
        if dry_run || prepared.plan.steps.is_empty() {
            return if is_possible { Ok(()) } else { Err(Error::reported()) };
        }
        if !yes {
            confirm("Restore", prepared.plan.steps.len()).map_err(Error::unable)?;
        }
        let problems = prepared.restore(|line| report::print(&format!("{line}\n"))).await;
        problems.iter().for_each(report::print_error);
        if is_possible && problems.is_empty() { Ok(()) } else { Err(Error::reported()) }
    })
}

/// Restores files into this folder.
fn restore_files(args: RestoreArgs, source: Place, into: PathBuf) -> Result<(), Error> {
    let local = local_if_exists(&args.common)?;
    let settings = FilesSettings {
        host_name: host_name(&args.common, local.as_ref()).map_err(Error::unable)?,
        local,
        config: policy_if_exists(&args.policy),
        source,
        from: args.from,
        patterns: args.files,
        at: args.at,
        into,
    };
    files::run(&settings, &System::new(&args.common.zfs))
}

/// Asks the hosts what they have, and decides what to restore. Nothing is changed.
pub async fn prepare<Z: Zfs>(settings: &RestoreSettings, zfs: Arc<Z>) -> anyhow::Result<Prepared<Z>> {
    let (policy, agents, absent) = connect(settings, zfs).await?;
    // A user waits for the answers. Transfers are retried for as long as the policy says.
    let impatient = Arc::new(Policy { retry_for: Duration::ZERO, ..(*policy).clone() });
    let remembered = open::inventory(&policy.catalog).await?;
    let asked = Counter::default();
    let asking = known::from_hosts(&impatient, &agents, remembered, absent, &asked);
    let Asked { inventory, obstacles } = bars::counted("hosts asked", &asked, asking).await;
    let mut plan = restore_lost(&policy, &inventory, &obstacles.unseen, &settings.lost);
    let (steps, asked) = (std::mem::take(&mut plan.steps), Counter::default());
    asked.expect(steps.len() as u64);
    let asking = steps.iter().cloned().map(|step| {
        let (policy, agents, asked) = (Arc::clone(&impatient), Arc::clone(&agents), asked.clone());
        async move {
            let offer = orders::ask(&policy, &agents, &step).await;
            asked.add(1);
            offer
        }
    });
    let asking = runtime::side_by_side(CONCURRENT_QUESTIONS, asking);
    let offers = bars::counted("copies asked", &asked, asking).await;
    let mut sizes = Vec::new();
    for (step, offer) in steps.into_iter().zip(offers) {
        match offer {
            Ok(offer) => {
                sizes.push(offer.size);
                plan.steps.push(completed(step, offer.recorded.as_ref(), settings));
            }
            Err(problem) => plan.problems.push(problem),
        }
    }
    Ok(Prepared { policy, agents, plan, sizes, lost: settings.lost.clone() })
}

/// Adds to a step what is set on what it restores.
fn completed(mut step: RestoreStep, recorded: Option<&SourceRecord>, settings: &RestoreSettings) -> RestoreStep {
    let elsewhere = match &settings.lost {
        Lost::Tree(Wanted { source, to, .. }) => Some(to).filter(|to| *to != source),
        Lost::Host { .. } => None,
    };
    let is_in_place = elsewhere.is_none();
    step.key_from = recorded.and_then(|recorded| restored_key(recorded, &step.to, elsewhere));
    if settings.with_properties {
        let RestoredProperties { set, notes } = restored_properties(recorded, is_in_place);
        step.properties = set;
        step.notes.extend(notes);
    }
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
            text.push_str(&match &self.lost {
                Lost::Tree(Wanted { source, .. }) => format!(
                    "nothing is missing of {source}; hint: to get what was changed or deleted since, restore it under \
                     another name (--as), and copy from there\n"
                ),
                Lost::Host { host, .. } => format!("nothing is missing of {host}\n"),
            });
        }
        text
    }

    /// What stands in the way.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.plan.problems
    }

    /// Restores the datasets, several at a time, each after the one that contains it. `tell` gets a line for each.
    /// Returns what went wrong.
    pub async fn restore(&self, tell: impl Fn(String)) -> Vec<String> {
        let (lines, said) = channel::unbounded();
        let steps = self.plan.steps.iter().cloned().zip(self.sizes.iter().copied()).collect();
        let restoring = side_by_side::restore(&self.policy, &self.agents, steps, lines);
        let telling = async {
            while let Ok(line) = said.recv().await {
                tell(line);
            }
        };
        future::zip(restoring, telling).await.0
    }
}
