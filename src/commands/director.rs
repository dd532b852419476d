//! `zsync director`: makes one pass, or passes at intervals until it is ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::cli::args::{CommonArgs, PolicyArgs, StateArgs, duration, duration_or_zero};
use crate::cli::exit::Error;
use crate::cli::report::Format;
use crate::cli::settings::{host_name_of, metrics_address, warn_if_others_can_write};
use crate::commands::daemon;
use crate::director::{self, DirectorSettings};
use crate::sys::runtime;
use crate::zfs::system::System;

/// Arguments of `zsync director`.
#[derive(Args, Debug)]
#[command(after_help = "Exit status: 0 success; 1 an order failed, a host or a pool could not be listed, or the \
                        policy asks for something impossible; 2 nothing could be done.\n\n\
                        In a crontab whose PATH has zsync and zfs:\n  \
                        */5 * * * * root zsync director --once")]
pub struct DirectorArgs {
    /// The policy's file.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Make one pass and exit; print nothing if all is well
    #[arg(long)]
    pub once: bool,
    /// In the first pass, ask every host for a listing, and report where the catalog was wrong
    #[arg(long)]
    pub resync: bool,
    /// Time from the start of one pass to the start of the next
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration, conflicts_with = "once")]
    pub interval: Duration,
    /// With --once: interrupt the pass after this time; the next pass does the rest
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "once")]
    pub timeout: Option<Duration>,
    /// How long to wait for running orders after SIGTERM before interrupting them (they resume later)
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration_or_zero)]
    pub grace: Duration,
    /// With --once: print what was done even if all is well
    #[arg(long, short)]
    pub verbose: bool,
    /// With --once: output format (json and ndjson imply --verbose)
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Serve Prometheus metrics at http://HOST:PORT/metrics (HOST defaults to 127.0.0.1)
    #[arg(long, value_name = "[HOST:]PORT", conflicts_with = "once")]
    pub metrics: Option<String>,
    /// With --once: write metrics to this file, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE", requires = "once")]
    pub metrics_file: Option<PathBuf>,
    /// With --once: carry out only this plan, which zsync plan --out saved
    #[arg(long, value_name = "FILE", requires = "once")]
    pub plan: Option<PathBuf>,
    /// The folder for state that must survive restarts.
    #[command(flatten)]
    pub state: StateArgs,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Makes one pass, or passes until SIGTERM.
pub fn run(args: DirectorArgs) -> Result<(), Error> {
    let zfs = Arc::new(System::new(&args.common.zfs));
    let settings = settings(args)?;
    runtime::block_on(daemon::ending(Arc::clone(&zfs), director::run(settings, zfs)))
}

fn settings(args: DirectorArgs) -> Result<DirectorSettings, Error> {
    let host = host_name_of(&args.common)?;
    warn_if_others_can_write(&args.policy.config);
    warn_if_others_can_write(&args.common.local);
    Ok(DirectorSettings {
        config: args.policy.config,
        local: args.common.local,
        state: args.state.state,
        host,
        once: args.once,
        resync: args.resync,
        interval: args.interval,
        timeout: args.timeout,
        grace: args.grace,
        verbose: args.verbose,
        format: args.format,
        metrics: metrics_address(args.metrics.as_deref()).map_err(Error::unable)?,
        metrics_file: args.metrics_file,
        plan: args.plan,
    })
}
