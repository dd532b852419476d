//! `zsync snapshots`: shows where in the fleet each snapshot of a dataset exists, as far as the catalog knows.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::bail;
use chrono::{DateTime, Utc};
use clap::Args;

use crate::actions::health::span;
use crate::actions::{PlaceRole, PlaceState, Presence, Selection, SnapshotState, Unlisted, Whereabouts, whereabouts};
use crate::cli::args::{CommonArgs, PolicyArgs, moment, place};
use crate::cli::exit::Error;
use crate::cli::report::{self, Format};
use crate::cli::settings::{host_name_of, local_if_exists};
use crate::config;
use crate::fleet::known::{self, Overview};
use crate::model::{HostName, Place, some_of};
use crate::policy::Local;
use crate::sys::{clock, runtime};
use crate::zfs::ZfsRead;
use crate::zfs::system::System;

/// Below the tables: what the letters in them mean.
const LEGEND: &str = "x there  h there, and held  t in the trash  . not there  ? unknown\n";

/// How many hosts are named that were never listed.
const NAMED: usize = 5;

/// Arguments of `zsync snapshots`.
#[derive(Args, Debug)]
#[command(after_help = "No agent is asked, and nothing is changed: what is shown is what the last pass found.\n\n\
                        Exit status: 0 success; 2 nothing could be done.")]
pub struct SnapshotsArgs {
    /// The dataset, at its source or at any of its copies; it need not exist any more
    #[arg(value_name = "HOST:DATASET", value_parser = place)]
    pub dataset: Place,
    /// Show only snapshots that were taken at this moment or later
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<DateTime<Utc>>,
    /// Show only snapshots that were taken until this moment
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<DateTime<Utc>>,
    /// Show only this host, and only snapshots that are there or may be there
    #[arg(long, value_name = "NAME")]
    pub host: Option<HostName>,
    /// Output format
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,
    /// The policy's file.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The settings of `zsync snapshots`.
#[derive(Clone, Debug)]
pub struct SnapshotsSettings {
    /// The path of `server.json`.
    pub config: PathBuf,
    /// What this host permits, if it says so.
    pub local: Option<Local>,
    /// This host's name in the policy.
    pub host_name: HostName,
    /// The dataset.
    pub dataset: Place,
    /// What is shown of it.
    pub selection: Selection,
}

/// Shows where the snapshots are.
pub fn run(args: SnapshotsArgs) -> Result<(), Error> {
    let zfs = System::new(&args.common.zfs);
    let settings = SnapshotsSettings {
        host_name: host_name_of(&args.common)?,
        local: local_if_exists(&args.common)?,
        config: args.policy.config,
        dataset: args.dataset,
        selection: Selection { since: args.since, until: args.until, host: args.host },
    };
    let found = runtime::block_on(snapshots(&settings, &zfs)).map_err(Error::unable)?;
    match args.format {
        Format::Table => report::print(&render(&found, clock::now())),
        Format::Json => report::print_json(&found),
        Format::Ndjson => report::print_ndjson(&found.snapshots),
    }
    Ok(())
}

/// Finds out where the snapshots are, from the catalog and this host's ZFS.
pub async fn snapshots(settings: &SnapshotsSettings, zfs: &impl ZfsRead) -> anyhow::Result<Whereabouts> {
    let SnapshotsSettings { config, local, host_name, dataset, selection } = settings;
    let policy = config::load_policy(config)?;
    let Overview { inventory, unseen, .. } = known::overview(&policy, host_name, local.as_ref(), zfs).await?;
    let mut found = whereabouts(&policy, &inventory, &unseen, dataset);
    if !found.is_known() {
        bail!(
            "cannot show the snapshots of {dataset}: neither the policy nor the catalog has this dataset; hint: check \
             the name; zsync status lists the datasets of the policy"
        );
    }
    let hosts: BTreeSet<String> = found.places.iter().map(|place| place.host.to_string()).collect();
    found.select(selection);
    if let (Some(host), true) = (&selection.host, found.places.is_empty()) {
        let hosts = Vec::from_iter(hosts).join(", ");
        bail!("cannot show the snapshots of {dataset} on {host}: no place of it is there; hint: use one of {hosts}");
    }
    Ok(found)
}

/// The tables for people: the places, then the snapshots with a column for each place.
#[must_use]
pub fn render(found: &Whereabouts, now: DateTime<Utc>) -> String {
    let rows = found.places.iter().enumerate().map(|(at, place)| place_row(found, at, place, now));
    let headings = ["", "SNAPSHOTS", "NEWEST", "LISTED", "ROLE", "PLACE"];
    let mut text = report::table(&headings, &[0, 1, 2, 3], rows.collect());
    text.push_str(&notes(found));
    text.push('\n');
    if found.snapshots.is_empty() {
        text.push_str("no snapshot is known\n");
        return text;
    }
    let numbers: Vec<String> = (1..=found.places.len()).map(|number| number.to_string()).collect();
    let mut headings = vec!["TAKEN (UTC)", "AGE", "USED"];
    headings.extend(numbers.iter().map(String::as_str));
    headings.push("SNAPSHOT");
    let rows = found.snapshots.iter().map(|snapshot| snapshot_row(snapshot, now));
    text.push_str(&report::table(&headings, &[1, 2], rows.collect()));
    text.push_str(LEGEND);
    text
}

fn place_row(found: &Whereabouts, at: usize, place: &PlaceState, now: DateTime<Utc>) -> Vec<String> {
    let there =
        |snapshot: &&SnapshotState| matches!(snapshot.places.get(at).map(|p| &p.presence), Some(Presence::Present(_)));
    let count = found.snapshots.iter().filter(there).count();
    let newest = found.snapshots.iter().find(there).map_or_else(|| "-".to_owned(), |newest| span(now - newest.taken));
    let count = match place.exists {
        Some(true) => count.to_string(),
        Some(false) => "gone".to_owned(),
        // What an earlier listing had is known, but not what was added since.
        None if count > 0 => format!("{count}+?"),
        None => "?".to_owned(),
    };
    let listed = match place.listed {
        Some(listed) if place.is_pool_unlisted => format!("> {}", span(now - listed)),
        Some(listed) => span(now - listed),
        None => "never".to_owned(),
    };
    let role = match place.role {
        PlaceRole::Source => "source",
        PlaceRole::Copy => "copy",
        PlaceRole::Other => "other",
    };
    vec![(at + 1).to_string(), count, newest, listed, role.to_owned(), format!("{}:{}", place.host, place.dataset)]
}

fn snapshot_row(snapshot: &SnapshotState, now: DateTime<Utc>) -> Vec<String> {
    let taken = snapshot.taken.format("%Y-%m-%d %H:%M").to_string();
    let used = snapshot.places.iter().filter_map(|at| match &at.presence {
        Presence::Present(found) => Some(found.used),
        Presence::Absent | Presence::Unknown => None,
    });
    let mut row = vec![taken, span(now - snapshot.taken), report::bytes(used.max().unwrap_or_default())];
    row.extend(snapshot.places.iter().map(|at| letter(&at.presence).to_owned()));
    row.push(snapshot.name.to_string());
    row
}

/// The letter of a snapshot in the column of a place.
fn letter(presence: &Presence) -> &'static str {
    match presence {
        Presence::Present(found) if found.trashed_since.is_some() => "t",
        Presence::Present(found) if found.holds > 0 => "h",
        Presence::Present(_) => "x",
        Presence::Absent => ".",
        Presence::Unknown => "?",
    }
}

/// What could not be listed: a line for each place of which that is known, and one for all other hosts.
fn notes(found: &Whereabouts) -> String {
    let has_place = |unlisted: &Unlisted| {
        let is_of_pool = |place: &PlaceState| unlisted.pool.as_ref().is_none_or(|pool| place.dataset.pool() == pool);
        found.places.iter().any(|place| place.host == unlisted.host && is_of_pool(place))
    };
    let (here, elsewhere): (Vec<&Unlisted>, Vec<&Unlisted>) = found.unlisted.iter().partition(|u| has_place(u));
    let mut text = String::new();
    for Unlisted { host, pool, reason } in here {
        match (pool, reason) {
            (Some(pool), Some(reason)) => text.push_str(&format!("cannot list the pool {pool} of {host}: {reason}\n")),
            (None, Some(reason)) => text.push_str(&format!("cannot list {host}: {reason}\n")),
            // The table says that it was never listed.
            (_, None) => {}
        }
    }
    if !elsewhere.is_empty() {
        let name = |unlisted: &&Unlisted| match &unlisted.pool {
            Some(pool) => format!("the pool {pool} of {}", unlisted.host),
            None => unlisted.host.to_string(),
        };
        let names: Vec<String> = elsewhere.iter().map(name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let line = format!("could not be listed, and may have other copies: {}", some_of(&names, NAMED));
        text.push_str(report::wrap(&line, 0, Some(80)).as_str());
    }
    text
}
