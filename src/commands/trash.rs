//! `zsync trash`: lists the snapshots of a host that orders would have destroyed and that `destroy_after` keeps, and
//! destroys those of this host before their time.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;

use crate::cli::args::{CommonArgs, PolicyArgs, duration};
use crate::cli::exit::Error;
use crate::cli::report::{self, Format};
use crate::cli::settings::{host_name_of, local_if_exists};
use crate::director::connect::way_to;
use crate::fleet::trash::{TrashEntry, Way};
use crate::model::HostName;
use crate::policy::Local;
use crate::sys::{clock, runtime};
use crate::zfs::Zfs;
use crate::zfs::system::System;

/// Arguments of `zsync trash`.
#[derive(Args, Debug)]
#[command(after_help = "This host's trash is listed without an agent; another host's agent is asked, as a director \
                        asks it. Only this host's trash can be emptied.\n\n\
                        Exit status: 0 success; 1 a pool could not be listed, or something could not be destroyed; \
                        2 nothing could be done.")]
pub struct TrashArgs {
    /// The host whose trash is listed [default: this host]
    #[arg(value_name = "HOST")]
    pub host: Option<HostName>,
    /// Destroy what is in the trash of this host now
    #[arg(long)]
    pub empty: bool,
    /// With --empty, destroy only what has been in the trash for longer than this
    #[arg(long, value_name = "DURATION", requires = "empty", value_parser = duration)]
    pub older_than: Option<Duration>,
    /// With --empty, do not ask
    #[arg(long, requires = "empty")]
    pub yes: bool,
    /// Output format
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
    /// The policy's file, for the addresses of other hosts.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The settings of `zsync trash`.
#[derive(Clone, Debug)]
pub struct TrashSettings {
    /// The path of `server.json`.
    pub config: PathBuf,
    /// What this host permits.
    pub local: Option<Local>,
    /// This host's name.
    pub host_name: HostName,
    /// The host whose trash is listed.
    pub host: HostName,
}

/// Lists the trash, or empties it.
pub fn run(args: TrashArgs) -> Result<(), Error> {
    let zfs = Arc::new(System::new(&args.common.zfs));
    let host_name = host_name_of(&args.common)?;
    let settings = TrashSettings {
        host: args.host.unwrap_or_else(|| host_name.clone()),
        host_name,
        local: local_if_exists(&args.common)?,
        config: args.policy.config,
    };
    if args.empty && settings.host != settings.host_name {
        return Err(Error::unable(anyhow!(
            "cannot empty the trash of {}: that is done on the host itself; hint: run zsync trash --empty there",
            settings.host
        )));
    }
    let (way, (mut found, problems)) = runtime::block_on(open(&settings, zfs)).map_err(Error::unable)?;
    if !args.empty {
        report::print(&render(&settings.host, &found, args.format));
        return ended(&problems);
    }
    if let Some(age) = args.older_than {
        let age = TimeDelta::from_std(age).context("--older-than").map_err(Error::unable)?;
        let before = clock::now() - age;
        found.retain(|entry| entry.since <= before);
    }
    if found.is_empty() {
        report::print("there is nothing to destroy in the trash\n");
        return ended(&problems);
    }
    if !args.yes && !confirm(&summary(&settings.host, &found)).map_err(Error::unable)? {
        report::print("nothing was destroyed\n");
        return ended(&problems);
    }
    let emptied = runtime::block_on(way.empty(&found)).map(|(remark, failed)| (remark, [problems, failed].concat()));
    let (remark, problems) = emptied.unwrap_or_default();
    if !remark.is_empty() {
        report::print(&format!("{remark}\n"));
    }
    ended(&problems)
}

fn ended(problems: &[String]) -> Result<(), Error> {
    problems.iter().for_each(report::print_error);
    if problems.is_empty() { Ok(()) } else { Err(Error::reported()) }
}

/// The way to the host, with what is in its trash, and the pools that could not be listed.
async fn open<Z: Zfs>(
    settings: &TrashSettings,
    zfs: Arc<Z>,
) -> anyhow::Result<(Way<Z>, (Vec<TrashEntry>, Vec<String>))> {
    let TrashSettings { config, local, host_name, host } = settings;
    let way = way_to(host, host_name, local.clone(), config, zfs).await?;
    let found = way.list(host).await.map_err(|error| anyhow!(error))?;
    Ok((way, found))
}

/// Asks a question on the terminal.
fn confirm(question: &str) -> anyhow::Result<bool> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(anyhow!("cannot ask whether to destroy {question}: this is no terminal; hint: add --yes"));
    }
    eprint!("destroy {question} for good? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// How much there is.
fn summary(host: &HostName, found: &[TrashEntry]) -> String {
    let used = found.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.used));
    let what = if found.len() == 1 { "1 snapshot".to_owned() } else { format!("{} snapshots", found.len()) };
    format!("{what} in the trash of {host} (at least {})", report::bytes(used))
}

/// What is in the trash, for people or for programs.
#[must_use]
pub fn render(host: &HostName, found: &[TrashEntry], format: Format) -> String {
    match format {
        Format::Json => return report::json(&found),
        Format::Ndjson => return report::ndjson(found),
        Format::Table if found.is_empty() => return format!("nothing is in the trash of {host}\n"),
        Format::Table => {}
    }
    let time = |at: DateTime<Utc>| at.format("%Y-%m-%d %H:%M").to_string();
    let row = |entry: &TrashEntry| {
        let until = entry.until.map_or_else(|| "emptied".to_owned(), time);
        vec![time(entry.since), until, report::bytes(entry.used), entry.dataset.at(&entry.snapshot)]
    };
    let table = report::table(&["SINCE (UTC)", "UNTIL", "SIZE", "SNAPSHOT"], &[2], found.iter().map(row).collect());
    format!("{table}{}\n", summary(host, found))
}
