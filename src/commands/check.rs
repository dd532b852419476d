//! `zsync check`: how well the policy is kept, in one line and an exit status, as monitoring plug-ins have it.
//!
//! It looks at the catalog and at this host's ZFS, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use chrono::TimeDelta;

use crate::actions::health::{Finding, Health, HostState, Row, Severity, health, span};
use crate::cli::exit::{Error, Exit};
use crate::cli::report;
use crate::config;
use crate::fleet::known;
use crate::fleet::known::Overview;
use crate::model::{DatasetName, HostName};
use crate::policy::Local;
use crate::sys::clock;
use crate::zfs::ZfsRead;

/// What `zsync check` is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `server.json`.
    pub config: PathBuf,
    /// `local.json`.
    pub local: PathBuf,
    /// This host's name in the policy.
    pub here: Result<HostName, String>,
    /// What this host lets in, if it says so.
    pub opened: Option<Local>,
    /// Whether only the files are looked at.
    pub config_only: bool,
    /// Only datasets of this host, and what is sent there.
    pub host: Option<HostName>,
    /// Only this dataset and what is below it.
    pub dataset: Option<DatasetName>,
    /// Whether everything is told.
    pub verbose: bool,
    /// Whether it is told as JSON.
    pub json: bool,
}

/// The exit status for how bad it is.
fn ended(severity: Severity) -> Result<(), Error> {
    match severity {
        Severity::Ok => Ok(()),
        Severity::Warning => Err(Error::exit(Exit::WARNING)),
        Severity::Critical => Err(Error::exit(Exit::CRITICAL)),
        Severity::Unknown => Err(Error::exit(Exit::UNKNOWN)),
    }
}

/// Tells it as a plug-in does: the summary in the first line, whatever else below.
fn tell(severity: Severity, text: &str) -> Result<(), Error> {
    report::print(&format!("ZSYNC {severity}: {}\n", text.trim_end()));
    ended(severity)
}

/// Checks.
pub async fn run(settings: Settings, zfs: &impl ZfsRead) -> Result<(), Error> {
    if settings.config_only {
        return files(&settings);
    }
    match judge(&settings, zfs).await {
        Ok(health) if settings.json => {
            report::print(&report::json(&health));
            ended(health.severity)
        }
        Ok(health) => tell(health.severity, &told(&health, settings.verbose)),
        Err(error) => tell(Severity::Unknown, &plain(&format!("{error:#}"))),
    }
}

/// Judges what the catalog and this host's ZFS tell.
async fn judge(settings: &Settings, zfs: &impl ZfsRead) -> anyhow::Result<Health> {
    let here = settings.here.clone().map_err(anyhow::Error::msg)?;
    let policy = config::load_policy(&settings.config)?;
    let Overview { inventory, unseen, live: _ } = known::glance(&policy, &here, settings.opened.as_ref(), zfs).await?;
    let mut health = health(&policy, &inventory, &unseen, clock::now());
    health.narrow(settings.host.as_ref(), settings.dataset.as_ref());
    Ok(health)
}

/// Looks at the configuration files, and at nothing else.
fn files(settings: &Settings) -> Result<(), Error> {
    let named = [(&settings.config, config::DEFAULT_SERVER_FILE), (&settings.local, config::DEFAULT_LOCAL_FILE)];
    // A host has one of them or both; one that was named has to be there.
    let there = named.into_iter().filter(|(path, default)| path.exists() || *path != Path::new(default));
    let there: Vec<&PathBuf> = there.map(|(path, _)| path).collect();
    let mut problems = Vec::new();
    for path in &there {
        let wrong =
            if *path == &settings.config { config::load_policy(path).err() } else { config::load_local(path).err() };
        problems.extend(wrong.map(|error| error.to_string()));
    }
    let shown: Vec<String> = there.iter().map(|path| path.display().to_string()).collect();
    match (shown.as_slice(), problems.as_slice()) {
        ([], _) => tell(
            Severity::Unknown,
            &format!("there is neither {} nor {}", settings.config.display(), settings.local.display()),
        ),
        ([one], []) => tell(Severity::Ok, &format!("{one} is valid")),
        (all, []) => tell(Severity::Ok, &format!("{} are valid", all.join(" and "))),
        (_, wrong) => tell(Severity::Critical, &wrong.join("\n")),
    }
}

/// What is before the performance data has no `|`.
fn plain(text: &str) -> String {
    text.replace('|', "/").replace('\n', "; ")
}

/// What a finding is about.
enum About<'a> {
    Host(&'a HostState),
    Row(&'a Row),
}

impl fmt::Display for About<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(state) => write!(f, "{}", state.host),
            Self::Row(row) => {
                write!(f, "{}:{} ({})", row.host, row.dataset, row.policy)?;
                match &row.to {
                    Some(to) => write!(f, " to {}:{}", to.host, to.dataset),
                    None => Ok(()),
                }
            }
        }
    }
}

/// Everything that is wrong, the worst first.
pub(crate) fn findings(health: &Health) -> Vec<(Severity, String)> {
    let hosts = health.hosts.iter().flat_map(|h| h.findings.iter().map(move |f| (About::Host(h), f)));
    let rows = health.rows.iter().flat_map(|r| r.findings.iter().map(move |f| (About::Row(r), f)));
    let told = |(about, finding): (About<'_>, &Finding)| (finding.severity(), format!("{about}: {finding}"));
    let mut all: Vec<(Severity, String)> = hosts.chain(rows).map(told).collect();
    all.extend(health.notices.iter().map(|notice| (Severity::Critical, notice.to_string())));
    all.sort_by_key(|(severity, _)| std::cmp::Reverse(*severity));
    all
}

/// The summary with performance data, and, if wanted, everything.
fn told(health: &Health, verbose: bool) -> String {
    let all = findings(health);
    let summary = match all.as_slice() {
        [] => all_well(health),
        [(_, only)] => only.clone(),
        [(_, worst), rest @ ..] => {
            let of = |severity| rest.iter().filter(|(s, _)| *s == severity).count();
            let counts =
                [(Severity::Critical, "critical"), (Severity::Warning, "warning"), (Severity::Unknown, "unknown")];
            let counts: Vec<String> = counts
                .into_iter()
                .map(|(severity, name)| (of(severity), name))
                .filter(|(count, _)| *count > 0)
                .map(|(count, name)| format!("{count} {name}"))
                .collect();
            format!("{worst}; and {} more ({})", rest.len(), counts.join(", "))
        }
    };
    let mut text = format!("{} | {}", plain(&summary), performance(health));
    if verbose {
        for (severity, finding) in &all {
            text.push_str(&format!("\n{severity}: {}", plain(finding)));
        }
    }
    text
}

fn all_well(health: &Health) -> String {
    let oldest = health.rows.iter().filter_map(Row::age).max();
    let lag = health.rows.iter().filter_map(Row::lag).max();
    let datasets = datasets(health);
    let mut text = format!("{datasets} dataset{}", if datasets == 1 { "" } else { "s" });
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

/// In the form of the Monitoring Plugins' guidelines: `'label'=value[unit]`.
fn performance(health: &Health) -> String {
    let seconds =
        |span: Option<TimeDelta>| span.map_or_else(|| "U".to_owned(), |s| format!("{}s", s.num_seconds().max(0)));
    let snapshots: BTreeMap<_, usize> =
        health.rows.iter().map(|row| ((&row.host, &row.dataset, &row.policy), row.snapshots)).collect();
    let all = findings(health);
    let of = |severity| all.iter().filter(|(s, _)| *s == severity).count();
    let values = [
        ("critical", of(Severity::Critical).to_string()),
        ("warning", of(Severity::Warning).to_string()),
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
