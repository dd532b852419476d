//! `zsync clean`: deletes old records from the catalog, as the director does by itself once a day.

use std::time::Duration;

use anyhow::Context;
use chrono::TimeDelta;
use clap::Args;

use crate::catalog::{CatalogError, Holder, open};
use crate::cli::args::{CommonArgs, PolicyArgs, duration};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::config;
use crate::sys::{clock, runtime};

/// Arguments of `zsync clean`.
#[derive(Args, Debug)]
#[command(after_help = "Also deletes what the catalog records about hosts that the policy does not name, \
                        if all of\nit is older than that. A director does this by itself once a day, for records older than 30 days.\n\n\
                        Exit status: 0 success; 2 nothing could be done.")]
pub struct CleanArgs {
    /// The policy's file, which names the catalog.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Delete records older than this
    #[arg(long, value_name = "DURATION", default_value = "30days", value_parser = duration)]
    pub older_than: Duration,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Deletes the records and hosts, and prints which hosts and how many records there were.
pub fn run(args: &CleanArgs) -> Result<(), Error> {
    let older_than = TimeDelta::from_std(args.older_than).context("--older-than").map_err(Error::unable)?;
    let policy = config::load_policy(&args.policy.config).map_err(Error::unable)?;
    let before = clock::now() - older_than;
    let deleting = runtime::blocking(move || {
        let catalog = open::writer(&policy.catalog, Holder::Pass)?;
        Ok::<_, CatalogError>((catalog.forget_hosts(&policy.hosts_named(), before)?, catalog.forget_marks(before)?))
    });
    let (hosts, records) = runtime::block_on(deleting).map_err(Error::unable)?;
    let before = before.format("%Y-%m-%dT%H:%M:%SZ");
    let hosts = hosts.iter().map(|host| format!("deleted {host}, which the policy does not name\n"));
    report::print(&format!("{}deleted {records} records older than {before}\n", hosts.collect::<String>()));
    Ok(())
}
