//! `zsync check`: reports to a monitoring system, in one line and an exit status, whether the fleet meets the policy.
//!
//! The command reads the catalog and this host's ZFS, and changes nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use chrono::TimeDelta;
use clap::Args;

use crate::actions::health::{Health, Row, Severity, health, span};
use crate::actions::{Notice, check_names, forbidden};
use crate::cli::args::{CommonArgs, PolicyArgs};
use crate::cli::exit::{Error, Exit};
use crate::cli::report;
use crate::cli::settings::{consul_of, host_name, host_name_of, local_if_exists, readable_secrets};
use crate::config;
use crate::fleet::known::{self, Overview};
use crate::fleet::{durations, live_status};
use crate::model::expiry::{Urgency, urgency};
use crate::model::{DatasetName, HostName, TlsFiles, counted, hint};
use crate::policy::{Local, Opening};
use crate::sys::{clock, runtime};
use crate::transport::tls::Tls;
use crate::zfs::ZfsRead;
use crate::zfs::system::System;

/// Arguments of `zsync check`.
#[derive(Args, Debug)]
#[command(after_help = "Exit status, as for other monitoring plug-ins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.")]
pub struct CheckArgs {
    /// The policy's file.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Check only whether the configuration files are valid
    #[arg(long, conflicts_with_all = ["host", "dataset", "format"])]
    pub config_only: bool,
    /// Check only datasets of this host, and datasets that are sent to it
    #[arg(long, value_name = "NAME")]
    pub host: Option<HostName>,
    /// Check only this dataset and its descendants
    #[arg(long, value_name = "DATASET")]
    pub dataset: Option<DatasetName>,
    /// Print every finding, one per line, after the summary
    #[arg(long, short)]
    pub verbose: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: CheckFormat,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Output format of `zsync check`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CheckFormat {
    /// One line with performance data, in the format of monitoring plug-ins
    #[default]
    Nagios,
    /// One JSON document
    Json,
}

/// Ends with the exit status of a severity.
fn exit(severity: Severity) -> Result<(), Error> {
    match severity {
        Severity::Ok => Ok(()),
        Severity::Warning => Err(Error::exit(Exit::WARNING)),
        Severity::Critical => Err(Error::exit(Exit::CRITICAL)),
        Severity::Unknown => Err(Error::exit(Exit::UNKNOWN)),
    }
}

/// Prints the result as a plug-in does: a summary in the first line, details below.
fn print(severity: Severity, text: &str) -> Result<(), Error> {
    report::print(&format!("ZSYNC {severity}: {}\n", text.trim_end()));
    exit(severity)
}

/// Checks, and prints the result.
pub fn run(args: &CheckArgs) -> Result<(), Error> {
    if args.config_only {
        return check_files(args);
    }
    // The check gets a ZFS that can only be read.
    let zfs = System::new(&args.common.zfs);
    match runtime::block_on(judge(args, &zfs)) {
        Ok(health) if args.format == CheckFormat::Json => {
            report::print(&report::json(&health));
            exit(health.severity)
        }
        Ok(health) => print(health.severity, &summary(&health, args.verbose)),
        Err(error) => print(Severity::Unknown, &plain(&format!("{error:#}"))),
    }
}

/// Judges from the catalog and this host's ZFS whether the fleet meets the policy.
async fn judge(args: &CheckArgs, zfs: &impl ZfsRead) -> anyhow::Result<Health> {
    let here = host_name_of(&args.common).map_err(|error| anyhow::anyhow!("{error}"))?;
    let local = local_if_exists(&args.common).ok().flatten();
    let policy = config::load_policy(&args.policy.config)?;
    let Overview { inventory, unseen, live, certificates, list_until } =
        known::overview(&policy, &here, local.as_ref(), zfs).await?;
    check_names(&policy, &inventory, args.host.as_ref(), args.dataset.as_ref())?;
    let mut health = health(&policy, &inventory, &unseen, clock::now());
    let running = live.as_ref().map(|live| live.running.as_slice()).unwrap_or_default();
    live_status::forecast(&mut health, &policy, &durations::read(&policy).await?, running);
    health.judge_certificates(certificates);
    health.judge_revocations(&here, list_until);
    if let Some(live) = live.filter(|live| !live.is_alive(health.at)) {
        health.judge_pass(live.ended.unwrap_or(live.at));
    }
    health.add_notices(local.iter().flat_map(|local| forbidden(&policy, &here, local)).collect());
    health.open = local.iter().flat_map(Local::openings).chain(policy.openings(Some(&here))).collect();
    health.narrow(args.host.as_ref(), args.dataset.as_ref());
    known::add_own_knowledge(&mut health, &here, zfs).await;
    Ok(health)
}

/// Checks whether the configuration files are valid.
fn check_files(args: &CheckArgs) -> Result<(), Error> {
    let (server, local) = (&args.policy.config, &args.common.local);
    let named = [(server, config::DEFAULT_SERVER_FILE), (local, config::DEFAULT_LOCAL_FILE)];
    // A host has one of the two files or both. A file that was named on the command line has to exist.
    let files = named.into_iter().filter(|(path, default)| path.exists() || *path != Path::new(default));
    let files: Vec<&PathBuf> = files.map(|(path, _)| path).collect();
    let mut problems: Vec<(Severity, String)> = Vec::new();
    let mut tls = Vec::new();
    for path in &files {
        let loaded = if *path == server {
            config::load_policy(path).map(|policy| (readable_secrets(path, consul_of(&policy)), policy.tls))
        } else {
            config::load_local(path).map(|local| (readable_secrets(path, local.consul.as_ref()), local.tls))
        };
        match loaded {
            Ok((readable, files)) => {
                problems.extend(readable.into_iter().map(|text| (Severity::Warning, text)));
                tls.extend(files);
            }
            Err(error) => problems.push((Severity::Critical, error.to_string())),
        }
    }
    tls.dedup();
    problems.extend(tls.iter().flat_map(problems_of_tls));
    problems.extend(contradictions(args, &files).into_iter().map(|text| (Severity::Critical, text)));
    problems.sort_by_key(|(severity, _)| Reverse(*severity));
    let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    match (names.as_slice(), problems.as_slice()) {
        ([], _) => print(Severity::Unknown, &format!("neither {} nor {} exists", server.display(), local.display())),
        ([one], []) => print(Severity::Ok, &format!("{one} is valid{}", notes(args, &files))),
        (all, []) => print(Severity::Ok, &format!("{} are valid{}", all.join(" and "), notes(args, &files))),
        (_, problems @ [(worst, _), ..]) => {
            let texts: Vec<&str> = problems.iter().map(|(_, text)| text.as_str()).collect();
            print(*worst, &texts.join("\n"))
        }
    }
}

/// What is wrong with the files that a configuration file names for TLS.
fn problems_of_tls(files: &TlsFiles) -> Vec<(Severity, String)> {
    let tls = match Tls::load(files) {
        Ok(tls) => tls,
        Err(error) => return vec![(Severity::Critical, error.to_string())],
    };
    let now = clock::now();
    let left = tls.own().until.map(|until| until - now);
    let severity = match left.and_then(urgency) {
        Some(Urgency::Urgent) => Severity::Critical,
        Some(Urgency::Soon) | None => Severity::Warning,
    };
    let expiry = tls.trouble(now).map(|text| (severity, text));
    let list_severity = match tls.list_until().and_then(|until| urgency(until - now)) {
        Some(Urgency::Urgent) => Severity::Critical,
        Some(Urgency::Soon) | None => Severity::Warning,
    };
    let list = tls.list_trouble(now).map(|text| (list_severity, text));
    let key = tls.loose_key().map(|text| (Severity::Warning, text));
    expiry.into_iter().chain(list).chain(key).collect()
}

/// What the policy asks of this host, but its own local.json forbids, if both files exist and are valid.
fn contradictions(args: &CheckArgs, files: &[&PathBuf]) -> Vec<String> {
    let (server, local) = (&args.policy.config, &args.common.local);
    if !files.contains(&server) || !files.contains(&local) {
        return Vec::new();
    }
    let (Ok(policy), Ok(local)) = (config::load_policy(server), config::load_local(local)) else { return Vec::new() };
    // Without a name, this host is not one that the policy names.
    let Ok(here) = host_name(&args.common, Some(&local)) else { return Vec::new() };
    let text = |notice: Notice| hint::join(&notice, notice.kind.hint());
    forbidden(&policy, &here, &local).into_iter().map(text).collect()
}

/// The notes about what the valid ones of these files leave open, one per line.
fn notes(args: &CheckArgs, files: &[&PathBuf]) -> String {
    let (server, local) = (&args.policy.config, &args.common.local);
    let local = files.contains(&local).then(|| config::load_local(local).ok()).flatten();
    let policy = files.contains(&server).then(|| config::load_policy(server).ok()).flatten();
    let here = host_name(&args.common, local.as_ref()).ok();
    let open = local.iter().flat_map(Local::openings);
    let open = open.chain(policy.iter().flat_map(|policy| policy.openings(here.as_ref())));
    open.map(|opening| format!("\n{}", note(&opening))).collect()
}

fn note(opening: &Opening) -> String {
    plain(&format!("note: {opening}; hint: {}", opening.hint()))
}

/// The text in one line and without `|`, which separates the performance data.
fn plain(text: &str) -> String {
    text.replace('|', "/").replace('\n', "; ")
}

/// The summary with performance data; with `verbose`, every finding as well.
fn summary(health: &Health, verbose: bool) -> String {
    let all = health.findings();
    let summary = match all.as_slice() {
        [] => all_well(health),
        [(_, only)] => only.clone(),
        [(_, worst), rest @ ..] => {
            let count = |severity| rest.iter().filter(|(s, _)| *s == severity).count();
            let counts =
                [(Severity::Critical, "critical"), (Severity::Warning, "warning"), (Severity::Unknown, "unknown")];
            let counts: Vec<String> = counts
                .into_iter()
                .map(|(severity, name)| (count(severity), name))
                .filter(|(count, _)| *count > 0)
                .map(|(count, name)| format!("{count} {name}"))
                .collect();
            format!("{worst}; and {} more ({})", rest.len(), counts.join(", "))
        }
    };
    let open = match health.open.len() {
        0 => String::new(),
        1 => "; 1 note (--verbose)".to_owned(),
        n => format!("; {n} notes (--verbose)"),
    };
    let mut text = format!("{}{open} | {}", plain(&summary), performance(health));
    if verbose {
        for (severity, finding) in &all {
            text.push_str(&format!("\n{severity}: {}", plain(finding)));
        }
        for reminder in &health.reminders {
            text.push_str(&format!("\nnote: {}", plain(&reminder.to_string())));
        }
        for opening in &health.open {
            text.push_str(&format!("\n{}", note(opening)));
        }
    }
    text
}

fn all_well(health: &Health) -> String {
    let oldest = health.rows.iter().filter_map(Row::age).max();
    let lag = health.rows.iter().filter_map(Row::lag).max();
    let datasets = datasets(health);
    let mut text = counted(datasets, "dataset");
    if let Some(oldest) = oldest {
        text = format!("{text}, newest snapshots at most {} old", span(oldest));
    }
    if let Some(lag) = lag {
        text = format!("{text}, replicas at most {} behind", span(lag));
    }
    text
}

fn datasets(health: &Health) -> usize {
    health.rows.iter().map(|row| (&row.host, &row.dataset)).collect::<BTreeSet<_>>().len()
}

/// Performance data in the format of the Monitoring Plugins' guidelines: `'label'=value[unit]`.
fn performance(health: &Health) -> String {
    let seconds =
        |span: Option<TimeDelta>| span.map_or_else(|| "U".to_owned(), |s| format!("{}s", s.num_seconds().max(0)));
    let snapshots: BTreeMap<_, usize> =
        health.rows.iter().map(|row| ((&row.host, &row.dataset, &row.policy), row.snapshots)).collect();
    let all = health.findings();
    let count = |severity| all.iter().filter(|(s, _)| *s == severity).count();
    let values = [
        ("critical", count(Severity::Critical).to_string()),
        ("warning", count(Severity::Warning).to_string()),
        ("datasets", datasets(health).to_string()),
        ("destinations", health.rows.iter().filter(|row| row.to.is_some()).count().to_string()),
        ("snapshots", snapshots.values().sum::<usize>().to_string()),
        ("oldest_snapshot", seconds(health.rows.iter().filter_map(Row::age).max())),
        ("longest_lag", seconds(health.rows.iter().filter_map(Row::lag).max())),
        ("unsent", health.rows.iter().filter_map(|row| row.behind).sum::<usize>().to_string()),
        ("hosts_out_of_reach", health.hosts.iter().filter(|h| h.unseen.is_some()).count().to_string()),
    ];
    values.map(|(label, value)| format!("{label}={value}")).join(" ")
}
