//! `zsync plan`: previews the orders that the director would give.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;

use crate::cli::args::{CommonArgs, PolicyArgs, duration, moment};
use crate::cli::exit::Error;
use crate::cli::report::Format;
use crate::cli::settings::{host_name, host_name_of, local_if_exists};
use crate::model::{DatasetName, HostName};
use crate::plan::{self, Filter, InventorySource, PlanMode, PlanSettings};
use crate::sys::runtime;
use crate::zfs::system::System;

/// How far ahead a policy can be simulated.
const MAX_SIMULATED: Duration = Duration::from_secs(20 * 366 * 86_400);

fn simulated_duration(text: &str) -> Result<Duration, String> {
    let length = duration(text)?;
    if length > MAX_SIMULATED { Err("the duration is longer than 20 years".into()) } else { Ok(length) }
}

/// Arguments of `zsync plan`.
#[derive(Args, Debug)]
#[command(after_help = "Exit status: 0 success; 1 a host could not be listed; 2 nothing could be done; \
                        3 with --exit-code: there are orders (with --compare: differences).\n\n\
                        JSON: see zsync-plan-json(5)")]
pub struct PlanArgs {
    /// The policy's file.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Ask the hosts, but change and write nothing. Without this option, the answers of the hosts are also written to
    /// the catalog; no dataset is changed either way
    #[arg(long)]
    pub dry_run: bool,
    /// Ask no hosts and write nothing: decide from the catalog and from this host's own ZFS, and show how old each
    /// host's part of the catalog is
    #[arg(long, conflicts_with = "catalog")]
    pub cached: bool,
    /// Decide only from this exported catalog (- for standard input); change nothing
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// Show only orders to this host
    #[arg(long, value_name = "NAME")]
    pub host: Option<HostName>,
    /// Show only orders for this dataset and its descendants
    #[arg(long, value_name = "DATASET")]
    pub dataset: Option<DatasetName>,
    /// Output format; ndjson prints orders as agents accept them
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Explain every snapshot that is kept or destroyed, and every snapshot or transfer that is not due
    #[arg(long)]
    pub explain: bool,
    /// Decide as of this moment instead of now
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub at: Option<DateTime<Utc>>,
    /// Exit with status 3 if there are orders (with --compare: differences)
    #[arg(long)]
    pub exit_code: bool,
    /// Simulate the policy for this long, and show what would be done each day and what would be kept
    #[arg(long, value_name = "DURATION", value_parser = simulated_duration, conflicts_with = "explain")]
    pub simulate: Option<Duration>,
    /// Show what this other policy would destroy, keep, take or send differently; with --simulate, simulate both and
    /// show them side by side
    #[arg(long, value_name = "OTHER")]
    pub compare: Option<PathBuf>,
    /// Save the plan for zsync director --once --plan; it is valid for 24 hours and for this policy
    #[arg(long, value_name = "FILE", conflicts_with_all = ["catalog", "at", "simulate", "compare"])]
    pub out: Option<PathBuf>,
    /// Only write the catalog and this host's snapshots to a file for --catalog (- for standard output)
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-",
          conflicts_with_all = ["simulate", "compare", "out", "explain", "exit_code", "at", "host", "dataset", "format"])]
    pub export_catalog: Option<PathBuf>,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Prints the preview.
pub fn run(args: PlanArgs) -> Result<(), Error> {
    let zfs = System::new(&args.common.zfs);
    let settings = settings(args)?;
    match settings.source {
        InventorySource::Agents => runtime::block_on(plan::survey(settings, Arc::new(zfs))),
        // These previews can only read from ZFS.
        InventorySource::Hosts => runtime::block_on(plan::ask(settings, zfs)),
        InventorySource::Catalog | InventorySource::File(_) => runtime::block_on(plan::preview(settings, &zfs)),
    }
}

fn settings(args: PlanArgs) -> Result<PlanSettings, Error> {
    let exports = args.export_catalog.is_some();
    if args.exit_code && args.simulate.is_some() && args.compare.is_none() {
        let text = "--exit-code cannot be used with --simulate alone; hint: add --compare, so that it reports whether the two policies differ";
        return Err(Error::unable(anyhow!(text)));
    }
    let (source, local) = match args.catalog {
        Some(file) => (InventorySource::File(file), None),
        None if args.cached || exports => (InventorySource::Catalog, local_if_exists(&args.common)?),
        None if args.dry_run => (InventorySource::Hosts, None),
        None => (InventorySource::Agents, None),
    };
    let host = match (&source, &args.common.hostname) {
        (_, Some(name)) => name.clone(),
        // Only the file is read, so the preview is the same on every host.
        (InventorySource::File(_), None) => "localhost".parse().map_err(Error::unable)?,
        (InventorySource::Catalog, None) => host_name(&args.common, local.as_ref()).map_err(Error::unable)?,
        (InventorySource::Hosts | InventorySource::Agents, None) => host_name_of(&args.common)?,
    };
    let mode = match (args.export_catalog, args.simulate, args.compare) {
        (Some(file), _, _) => PlanMode::Export(file),
        (None, Some(length), other) => {
            PlanMode::Simulate { length: TimeDelta::from_std(length).map_err(Error::unable)?, other }
        }
        (None, None, Some(other)) => PlanMode::Compare { other, explain: args.explain },
        (None, None, None) => PlanMode::Orders { explain: args.explain, out: args.out },
    };
    Ok(PlanSettings {
        config: args.policy.config,
        local_file: args.common.local,
        local,
        host,
        source,
        mode,
        filter: Filter { host: args.host, dataset: args.dataset },
        format: args.format,
        at: args.at,
        exit_code: args.exit_code,
    })
}
