//! `zsync undelete`: takes snapshots back from the trash of their host.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;

use crate::cli::args::{CommonArgs, PolicyArgs};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::cli::settings::{host_name_of, local_if_exists};
use crate::director::connect::way_to;
use crate::model::{DatasetName, HostName, SnapName};
use crate::sys::runtime;
use crate::zfs::system::System;

/// A snapshot of a host, as it is typed: `HOST:DATASET@SNAPSHOT`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotOfHost {
    /// The host.
    pub host: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// The name after `@`.
    pub name: SnapName,
}

impl FromStr for SnapshotOfHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(host, full)| Some((host, full.split_once('@')?)));
        let (host, (dataset, name)) = parts.ok_or("write it like alpha:tank/home@BACKUP_2026-11-23_10:30:00")?;
        let wrong = |error: crate::model::NameError| error.to_string();
        Ok(Self {
            host: host.parse().map_err(wrong)?,
            dataset: dataset.parse().map_err(wrong)?,
            name: name.parse().map_err(wrong)?,
        })
    }
}

/// Arguments of `zsync undelete`.
#[derive(Args, Debug)]
#[command(after_help = "Each snapshot gets the hold zsync:undeleted, so that no order moves it to the trash again. \
                        To let go of it: zfs release zsync:undeleted DATASET@SNAPSHOT on its host.\n\n\
                        Exit status: 0 success; 1 a snapshot could not be taken back; 2 nothing could be done.")]
pub struct UndeleteArgs {
    /// The snapshots, as zsync trash HOST lists them
    #[arg(value_name = "HOST:DATASET@SNAPSHOT", required = true)]
    pub snapshots: Vec<SnapshotOfHost>,
    /// The policy's file, for the addresses of other hosts.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Takes the snapshots back, host by host.
pub fn run(args: UndeleteArgs) -> Result<(), Error> {
    let zfs = Arc::new(System::new(&args.common.zfs));
    let (here, local) = (host_name_of(&args.common)?, local_if_exists(&args.common)?);
    let mut by_host: BTreeMap<HostName, Vec<SnapshotOfHost>> = BTreeMap::new();
    for snapshot in args.snapshots {
        by_host.entry(snapshot.host.clone()).or_default().push(snapshot);
    }
    let (mut lines, mut problems) = (Vec::new(), Vec::new());
    for (host, wanted) in by_host {
        let taking = async {
            let way = way_to(&host, &here, local.clone(), &args.policy.config, Arc::clone(&zfs)).await?;
            let (found, _) = way.list(&host).await.map_err(|error| anyhow::anyhow!(error))?;
            let is_it = |wanted: &SnapshotOfHost| {
                let SnapshotOfHost { dataset, name, .. } = wanted;
                found.iter().find(|entry| entry.dataset == *dataset && entry.snapshot == *name)
            };
            let missing = wanted.iter().filter(|wanted| is_it(wanted).is_none());
            let missing = missing.map(|SnapshotOfHost { dataset, name, .. }| {
                format!("{host}:{} is not in the trash; hint: see zsync trash {host}", dataset.at(name))
            });
            let missing: Vec<String> = missing.collect();
            let there: Vec<_> = wanted.iter().filter_map(is_it).cloned().collect();
            let (lines, failed) = way.undelete(&host, &there).await;
            anyhow::Ok((lines, [missing, failed].concat()))
        };
        match runtime::block_on(taking) {
            Ok((done, failed)) => {
                lines.extend(done);
                problems.extend(failed);
            }
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    report::print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    problems.iter().for_each(report::print_error);
    match (lines.is_empty(), problems.is_empty()) {
        (_, true) => Ok(()),
        (..) => Err(Error::reported()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_of_host_is_parsed_with_colons_in_names() {
        let parsed: SnapshotOfHost = "alpha:tank/a:b@BACKUP_2026-11-23_10:30:00".parse().unwrap();
        assert_eq!((parsed.host.as_str(), parsed.dataset.as_str()), ("alpha", "tank/a:b"));
        assert_eq!(parsed.name.as_str(), "BACKUP_2026-11-23_10:30:00");
        for wrong in ["", "alpha", "alpha:tank/a", "tank/a@S", "alpha:@S", "alpha:tank/a@"] {
            assert!(wrong.parse::<SnapshotOfHost>().is_err(), "{wrong}");
        }
    }
}
