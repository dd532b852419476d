//! `zsync find`: shows the versions of files in all snapshots of a dataset and of its copies.

use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use clap::Args;

use crate::cli::args::{CommonArgs, PolicyArgs, moment, place};
use crate::cli::exit::Error;
use crate::cli::report::{self, Format};
use crate::cli::settings::{host_name, local_if_exists, policy_if_exists};
use crate::director::bars;
use crate::director::connect::own_certificate;
use crate::fleet::files::{
    FileVersion, InSnapshot, Open, Period, Reached, Seeker, Versions, find as find_in, reachable,
};
use crate::model::path_pattern::PathPattern;
use crate::model::{Counter, HostName, Place, counted};
use crate::policy::Local;
use crate::sys::runtime;
use crate::zfs::system::System;
use crate::zfs::{ZfsRead, open_snapshot};

/// Arguments of `zsync find`.
#[derive(Args, Debug)]
#[command(after_help = "Snapshots of other hosts are searched through their agents. It needs root, and changes \
                        nothing.\n\n\
                        Exit status: 0 success; 1 something could not be read; 2 nothing could be done.")]
pub struct FindArgs {
    /// The dataset, at its source or at a copy; it need not exist any more
    #[arg(value_name = "HOST:DATASET", value_parser = place)]
    pub dataset: Place,
    /// The paths of the files below the dataset, as in 'docs/**/*.odt'
    #[arg(value_name = "PATTERN")]
    pub pattern: PathPattern,
    /// Search only snapshots that were taken at this moment or later
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<DateTime<Utc>>,
    /// Search only snapshots that were taken until this moment
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<DateTime<Utc>>,
    /// Search only this copy [default: the dataset, and its copies by the policy]
    #[arg(long, value_name = "HOST:DATASET", value_parser = place)]
    pub from: Option<Place>,
    /// Output format
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
    /// The policy's file, if there is one.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The settings of `zsync find`.
#[derive(Clone, Debug)]
pub struct FindSettings {
    /// The path of `server.json`, if it exists.
    pub config: Option<PathBuf>,
    /// What this host permits, if it says so.
    pub local: Option<Local>,
    /// This host's name.
    pub host_name: HostName,
    /// The dataset.
    pub dataset: Place,
    /// The only place that is searched.
    pub from: Option<Place>,
    /// The paths of the files.
    pub pattern: PathPattern,
    /// When the snapshots were taken.
    pub period: Period,
}

/// Shows the versions.
pub fn run(args: FindArgs) -> Result<(), Error> {
    let zfs = System::new(&args.common.zfs);
    let local = local_if_exists(&args.common)?;
    let settings = FindSettings {
        host_name: host_name(&args.common, local.as_ref()).map_err(Error::unable)?,
        local,
        config: policy_if_exists(&args.policy),
        dataset: args.dataset,
        from: args.from,
        pattern: args.pattern,
        period: Period { since: args.since, until: args.until },
    };
    let open: Open = Arc::new(open_snapshot);
    let counter = Counter::default();
    let finding = bars::counted("snapshots searched", &counter, find(&settings, &zfs, open, &counter));
    let found = runtime::block_on(finding).map_err(Error::unable)?;
    match args.format {
        Format::Table => report::print(&render(&found, &settings.host_name)),
        Format::Json => report::print_json(&found.versions),
        Format::Ndjson => report::print_ndjson(&found.versions),
    }
    found.problems.iter().chain(&found.notes).for_each(report::print_error);
    if found.problems.is_empty() { Ok(()) } else { Err(Error::reported()) }
}

/// Searches the snapshots of this host and of others. `counter` counts them.
pub async fn find(
    settings: &FindSettings,
    zfs: &impl ZfsRead,
    open: Open,
    counter: &Counter,
) -> anyhow::Result<Versions> {
    let FindSettings { config, local, host_name: here, dataset, from, pattern, period } = settings;
    let policy = config.as_deref().map(crate::config::load_policy).transpose()?;
    let tls = own_certificate(local.as_ref(), policy.as_ref())?;
    let seeker = Seeker { here, policy: policy.as_ref(), local: local.as_ref(), tls, zfs };
    let Reached { trees, notes, problems } = reachable(&seeker, dataset, from.as_ref()).await?;
    let mut found = find_in(&open, (here, &trees), pattern, *period, counter).await;
    found.problems.splice(..0, problems);
    found.notes = notes;
    Ok(found)
}

/// The table for people.
#[must_use]
pub fn render(found: &Versions, here: &HostName) -> String {
    let searched = counted(found.searched, "snapshot");
    if found.versions.is_empty() {
        return format!("no file matches in the {searched} that were searched\n");
    }
    let snapshot = |of: &InSnapshot| {
        let name = of.dataset.at(&of.snapshot);
        if of.host == *here { name } else { format!("{}:{name}", of.host) }
    };
    let row = |version: &FileVersion| {
        let time = |at: DateTime<Utc>| at.format("%Y-%m-%d %H:%M").to_string();
        let size = if version.kind == "file" { report::bytes(version.size) } else { version.kind.to_owned() };
        vec![
            time(version.modified),
            size,
            version.snapshots.to_string(),
            time(version.oldest.taken),
            snapshot(&version.newest),
            // A name may contain anything, which must not confuse a terminal.
            version.path.to_string_lossy().escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\""),
        ]
    };
    let headings = ["WRITTEN (UTC)", "SIZE", "SNAPSHOTS", "SINCE", "NEWEST SNAPSHOT WITH IT", "PATH"];
    let table = report::table(&headings, &[1, 2], found.versions.iter().map(row).collect());
    format!("{table}{} in {searched}\n", counted(found.versions.len(), "version"))
}
