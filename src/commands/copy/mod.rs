//! `zsync copy`: copies a dataset or a tree to another pool or host, without any configuration.

mod ends;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use glob::Pattern;
use serde::Serialize;

use crate::actions::{CopyPlan, CopyStep, CopyWanted, Tree, copy};
use crate::agent::Agent;
use crate::cli::args::{CommonArgs, duration_or_zero};
use crate::cli::exit::{Error, Exit};
use crate::cli::report::{self, Format};
use crate::cli::settings::host_name_of;
use crate::director::ordered::{self, Ended, Job};
use crate::fleet::copy as orders;
use crate::fleet::copy::Copied;
use crate::model::{Counter, DatasetName, Place, Prefix, ResponseStatus, counted, hint};
use crate::policy::{Exclude, Rate};
use crate::sys::service::Signals;
use crate::sys::{clock, runtime};
use crate::zfs::system::{Ssh, System};
use crate::zfs::{Depth, Zfs, ZfsRead};

pub use ends::{CopyEnd, Ends};

/// How many datasets are copied at a time. A server for ssh permits ten sessions on one connection by default, and each
/// copy needs up to two.
const CONCURRENT_COPIES: usize = 4;

/// Arguments of `zsync copy`.
#[derive(Args, Debug)]
#[command(after_help = "A place is DATASET, HOST:DATASET or USER@HOST:DATASET. HOST is what ssh(1) takes, and needs \
                        nothing but ZFS and ssh. Nothing at the destination is ever overwritten, rolled back or \
                        destroyed. The same command, given again, continues an interrupted copy, and later sends only \
                        what is new.\n\n\
                        Exit status: 0 success; 1 something was not copied; 2 nothing could be done.")]
pub struct CopyArgs {
    /// What to copy
    #[arg(value_name = "SOURCE")]
    pub source: CopyEnd,
    /// Where to
    #[arg(value_name = "DESTINATION")]
    pub destination: CopyEnd,
    /// Also copy everything below the dataset
    #[arg(long, short)]
    pub recursive: bool,
    /// Leave out datasets below the source whose names match, as in 'tmp' or '**/cache'
    #[arg(long, value_name = "PATTERN", num_args = 1.., requires = "recursive")]
    pub exclude: Vec<Pattern>,
    /// Copy the newest snapshot whose name matches, with all before it [default: the newest of all]
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    pub snapshots: Vec<Pattern>,
    /// First take a snapshot named PREFIX_TIME
    #[arg(long, value_name = "PREFIX", conflicts_with = "snapshots")]
    pub take: Option<Prefix>,
    /// Send no faster than this between hosts, as in 20MB/s
    #[arg(long, value_name = "RATE")]
    pub rate: Option<Rate>,
    /// How long to try again after a connection is lost, counted from when data last moved
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration_or_zero)]
    pub retry_for: Duration,
    /// The zfs program on hosts that are reached through ssh
    #[arg(long, value_name = "PROGRAM", default_value = "zfs")]
    pub far_zfs: PathBuf,
    /// An option for ssh, as in Port=2222; see ssh_config(5)
    #[arg(long, value_name = "OPTION")]
    pub ssh_option: Vec<String>,
    /// Only show what would be copied
    #[arg(long)]
    pub dry_run: bool,
    /// Output format
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// How the copy of one dataset ended, for programs.
#[derive(Debug, Serialize)]
struct Outcome {
    /// The dataset, its copy, and the snapshot.
    #[serde(flatten)]
    step: CopyStep,
    /// Whether the copy has the snapshot now.
    success: bool,
    /// How many bytes were sent.
    bytes: u64,
    /// What went wrong, or what has to be known about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    remark: String,
}

/// What would be copied, for programs.
#[derive(Serialize)]
struct Preview<'a> {
    steps: Vec<PreviewedStep<'a>>,
    current: Vec<String>,
    left_out: &'a [String],
    problems: &'a [String],
}

#[derive(Serialize)]
struct PreviewedStep<'a> {
    #[serde(flatten)]
    step: &'a CopyStep,
    bytes: Option<u64>,
}

/// Shows what would be copied, or copies it.
pub fn run(args: &CopyArgs) -> Result<(), Error> {
    let here = host_name_of(&args.common)?;
    let (from, to) = (args.source.place(&here), args.destination.place(&here));
    let near = System::new(&args.common.zfs);
    let mut signals = Signals::of_command().map_err(Error::unable)?;
    runtime::block_on(async {
        let far =
            |end: &CopyEnd| end.ssh.clone().map(|destination| Ssh { destination, options: args.ssh_option.clone() });
        let connecting = ends::connect(&near, [far(&args.source), far(&args.destination)], &args.far_zfs);
        let working = async {
            let [source, destination] = connecting.await.map_err(Error::unable)?;
            let wanted = CopyWanted {
                from,
                to,
                is_recursive: args.recursive,
                exclude: Exclude::new(args.exclude.clone()),
                snapshots: args.snapshots.clone(),
            };
            copy_between(&Ends { source, destination }, &wanted, args).await
        };
        let interrupted = || {
            report::print_error(&"interrupted; hint: the same command continues what has begun");
            Err(Error::reported())
        };
        let result = signals.until_done(working, Duration::ZERO, || {}).await.unwrap_or_else(interrupted);
        near.end().await;
        result
    })
}

async fn copy_between<Z: Zfs>(ends: &Ends<Z>, wanted: &CopyWanted, args: &CopyArgs) -> Result<(), Error> {
    let agent = Arc::new(ends.agent(wanted, args.rate));
    if let (Some(prefix), false) = (&args.take, args.dry_run) {
        let ours = list(&*ends.source, &wanted.from, wanted.is_recursive).await?;
        let is_wanted =
            |name: &&DatasetName| name.below(&wanted.from.dataset).is_some_and(|b| !wanted.exclude.covers(b));
        let datasets: Vec<DatasetName> = ours.keys().filter(is_wanted).cloned().collect();
        if !datasets.is_empty() {
            let taken = orders::take(&agent, &datasets, &prefix.stamp(clock::now())).await;
            taken.map_err(|error| Error::unable(anyhow::anyhow!(error)))?;
        }
    }
    let ours = list(&*ends.source, &wanted.from, wanted.is_recursive).await?;
    let theirs = list(&*ends.destination, &wanted.to, wanted.is_recursive).await?;
    let mut plan = copy(&ours, &theirs, wanted);
    let sizes = sizes(&agent, &mut plan).await;
    if args.dry_run {
        show(&plan, &sizes, args.format);
        return finish(&plan, true);
    }
    let (outcomes, is_success) = carry_out(&agent, &plan, &sizes, args).await;
    match args.format {
        Format::Table => {}
        Format::Json => report::print_json(&outcomes),
        Format::Ndjson => report::print_ndjson(&outcomes),
    }
    finish(&plan, is_success)
}

/// Prints what the plan could not do, and determines the exit status.
fn finish(plan: &CopyPlan, is_success: bool) -> Result<(), Error> {
    plan.problems.iter().for_each(report::print_error);
    match (plan.problems.is_empty(), is_success) {
        (true, true) => Ok(()),
        (false, _) if plan.steps.is_empty() && plan.current.is_empty() => Err(Error::exit(Exit::Unable)),
        _ => Err(Error::reported()),
    }
}

/// Lists a dataset, with everything below it if that is wanted.
async fn list(zfs: &impl ZfsRead, place: &Place, is_recursive: bool) -> Result<Tree, Error> {
    let depth = if is_recursive { Depth::Recursive } else { Depth::Only };
    let listed = zfs.list(std::slice::from_ref(&place.dataset), depth).await.map_err(Error::unable)?;
    Ok(listed.into_iter().collect())
}

/// Estimates the size of each step. Steps of which nothing can be sent become problems.
async fn sizes<Z: Zfs>(agent: &Arc<Agent<Z>>, plan: &mut CopyPlan) -> BTreeMap<DatasetName, Option<u64>> {
    let asking = plan.steps.clone().into_iter().map(|step| {
        let agent = Arc::clone(agent);
        async move {
            orders::size(&agent, &step)
                .await
                .map_err(|problem| (step.from.dataset.clone(), problem))
                .map(|size| (step.from.dataset, size))
        }
    });
    let mut sizes = BTreeMap::new();
    for answer in runtime::side_by_side(CONCURRENT_COPIES, asking).await {
        match answer {
            Ok((dataset, size)) => drop(sizes.insert(dataset, size)),
            Err((dataset, problem)) => {
                plan.steps.retain(|step| step.from.dataset != dataset);
                plan.problems.push(problem);
            }
        }
    }
    sizes
}

/// Shows what would be copied.
fn show(plan: &CopyPlan, sizes: &BTreeMap<DatasetName, Option<u64>>, format: Format) {
    let size = |step: &CopyStep| sizes.get(&step.from.dataset).copied().flatten();
    let steps = || plan.steps.iter().map(|step| PreviewedStep { step, bytes: size(step) });
    match format {
        Format::Table => report::print(&table(plan, size)),
        Format::Json => {
            let current = plan.current.iter().map(ToString::to_string).collect();
            let CopyPlan { left_out, problems, .. } = plan;
            report::print_json(&Preview { steps: steps().collect(), current, left_out, problems });
        }
        Format::Ndjson => report::print_ndjson(steps()),
    }
}

/// The table for people.
fn table(plan: &CopyPlan, size: impl Fn(&CopyStep) -> Option<u64>) -> String {
    let row = |step: &CopyStep| {
        let since = match (&step.since, &step.resume_token) {
            (_, Some(_)) => "where it was interrupted".to_owned(),
            (Some(since), None) => since.to_string(),
            (None, None) => "the beginning".to_owned(),
        };
        let bytes = size(step).map_or_else(|| "?".to_owned(), report::bytes);
        vec![step.from.to_string(), step.to.to_string(), step.snapshot.to_string(), since, bytes]
    };
    let mut text = String::new();
    if !plan.steps.is_empty() {
        let rows = plan.steps.iter().map(row).collect();
        text.push_str(&report::table(&["COPY", "TO", "SNAPSHOT", "FROM", "SIZE"], &[4], rows));
    }
    if !plan.current.is_empty() {
        text.push_str(&up_to_date(plan.current.len()));
    }
    text.extend(plan.left_out.iter().map(|line| format!("{line}\n")));
    text
}

/// Says that so many copies have everything.
fn up_to_date(copies: usize) -> String {
    match copies {
        1 => "1 copy is up to date\n".to_owned(),
        copies => format!("{copies} copies are up to date\n"),
    }
}

/// Copies everything. Returns how each dataset ended, and whether all succeeded.
async fn carry_out<Z: Zfs>(
    agent: &Arc<Agent<Z>>,
    plan: &CopyPlan,
    sizes: &BTreeMap<DatasetName, Option<u64>>,
    args: &CopyArgs,
) -> (Vec<Outcome>, bool) {
    let is_table = args.format == Format::Table;
    let job = |step: &CopyStep| {
        let counter = Counter::default();
        let (agent, step, counted, retry_for) = (Arc::clone(agent), step.clone(), counter.clone(), args.retry_for);
        Job {
            dataset: step.from.dataset.clone(),
            waits_for: step.waits_for.clone(),
            size: sizes.get(&step.from.dataset).copied().flatten(),
            counter,
            work: async move {
                let result = orders::copy(&agent, &step, retry_for, counted).await;
                match &result {
                    Ok(done) if is_table => report::print(&format!("{}\n", copied(&step, done))),
                    Err(problem) if is_table => report::print_error(problem),
                    _ => {}
                }
                result
            },
        }
    };
    let label = format!("copying {}", counted(plan.steps.len(), "dataset"));
    let ended = ordered::run(&label, CONCURRENT_COPIES, plan.steps.iter().map(job).collect()).await;
    let mut outcomes = Vec::new();
    for (step, ended) in plan.steps.iter().zip(ended) {
        let (success, bytes, remark) = match ended {
            Ended::Done(Ok(Copied { bytes, remark, .. })) => (true, bytes, remark),
            Ended::Done(Err(problem)) => (false, 0, problem),
            Ended::NotBegun(other) => {
                let problem = format!("did not copy {}, because {}:{other} was not copied", step.from, step.from.host);
                if is_table {
                    report::print_error(&problem);
                }
                (false, 0, problem)
            }
        };
        outcomes.push(Outcome { step: step.clone(), success, bytes, remark });
    }
    if is_table {
        let nothing = plan.steps.is_empty() && !plan.current.is_empty();
        if nothing {
            report::print(&up_to_date(plan.current.len()));
        }
        plan.left_out.iter().for_each(|line| report::print(&format!("{line}\n")));
    }
    let is_success = outcomes.iter().all(|outcome| outcome.success);
    (outcomes, is_success)
}

/// What is said about a dataset that was copied.
fn copied(step: &CopyStep, Copied { status, bytes, remark }: &Copied) -> String {
    let CopyStep { from, to, snapshot, .. } = step;
    if *status == ResponseStatus::NothingToDo {
        return format!("{to} has {snapshot} already");
    }
    let how = match (&step.resume_token, status) {
        (Some(_), _) => "resumed",
        (None, ResponseStatus::Full) => "full",
        (None, _) => "incremental",
    };
    let (remark, _) = hint::split(remark);
    let remark = if remark.is_empty() { String::new() } else { format!(" ({remark})") };
    format!("copied {from}@{snapshot} to {to}: {how}, {}{remark}", report::bytes(*bytes))
}
