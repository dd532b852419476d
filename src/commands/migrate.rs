//! `zsync migrate`: imports the flags that zeplic, zsync's predecessor, kept in Consul.
//!
//! zeplic's pairs have keys like `zeplic/HOST/UUID` and values like `dataset@name#sent`. Its UUIDs mean nothing to ZFS,
//! so a pair is matched to a snapshot by host, dataset and name. Only the flags are imported, because ZFS knows the
//! rest. zeplic's own data is not changed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::Args;

use crate::catalog::open;
use crate::catalog::{CatalogError, CatalogRead, CatalogWrite, Change};
use crate::cli::args::{CommonArgs, PolicyArgs};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::config;
use crate::consul::Pair;
use crate::model::{DatasetName, HostInventory, HostName, Marks, NotWritten, SnapName};
use crate::policy::CatalogConfig;
use crate::sys::{clock, runtime};

/// The prefix of zeplic's keys.
const ROOT: &str = "zeplic/";

/// Arguments of `zsync migrate`.
#[derive(Args, Debug)]
#[command(
    after_help = "Run this once, after every host's agent has published its records. zeplic's own data is not changed.\n\n\
                        Exit status: 0 success; 2 nothing could be done."
)]
pub struct MigrateArgs {
    /// The policy's file, which names the catalog.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// One pair that zeplic wrote.
#[derive(Debug, PartialEq, Eq)]
struct ZeplicPair {
    host: HostName,
    dataset: DatasetName,
    name: SnapName,
    marks: Marks,
    not_written: bool,
}

/// Parses a pair; `None` if zeplic did not write it.
fn parse(pair: &Pair) -> Option<ZeplicPair> {
    let (host, _) = pair.key.strip_prefix(ROOT)?.split_once('/')?;
    let value = std::str::from_utf8(&pair.value).ok()?;
    let mut words = value.split('#');
    let (dataset, name) = words.next()?.split_once('@')?;
    let mut found = ZeplicPair {
        host: host.parse().ok()?,
        dataset: dataset.parse().ok()?,
        name: name.parse().ok()?,
        marks: Marks::default(),
        not_written: false,
    };
    for flag in words {
        match flag {
            "sent" => found.marks.sent = true,
            "sync" => found.marks.sync = true,
            "deleted" => found.marks.deleted = true,
            "NotWritten" => found.not_written = true,
            _ => return None,
        }
    }
    Some(found)
}

/// The changes of the catalog that zeplic's pairs of one host require.
fn additions(known: &HostInventory, pairs: &[ZeplicPair], at: DateTime<Utc>) -> Vec<(DatasetName, Change)> {
    let mut changes = Vec::new();
    for pair in pairs {
        let Some(dataset) = known.datasets.get(&pair.dataset) else { continue };
        if pair.not_written {
            let mark = NotWritten { name: pair.name.clone(), at };
            if !dataset.not_written.iter().any(|known| known.name == mark.name) {
                changes.push((pair.dataset.clone(), Change::NotWritten(mark)));
            }
        }
        // A snapshot that exists has not been deleted, whatever its flag is.
        let marks = Marks { deleted: false, ..pair.marks };
        let snapshot = dataset.snapshots.iter().find(|snapshot| snapshot.name == pair.name);
        if let Some(snapshot) = snapshot
            && (marks.sent && !snapshot.marks.sent || marks.sync && !snapshot.marks.sync)
        {
            changes.push((pair.dataset.clone(), Change::Mark { guid: snapshot.guid, marks, at }));
        }
    }
    changes
}

/// Imports the flags, and prints how many were imported for each host.
pub fn run(args: MigrateArgs) -> Result<(), Error> {
    runtime::block_on(migrate(args.policy.config))
}

async fn migrate(file: PathBuf) -> Result<(), Error> {
    let policy = config::load_policy(&file).map_err(Error::unable)?;
    let CatalogConfig::Consul(consul) = &policy.catalog else {
        return Err(Error::unable(anyhow::anyhow!(
            "cannot import from zeplic: {} has no \"consul\" in \"catalog\", and zeplic's flags can be imported only into a catalog in Consul",
            file.display()
        )));
    };
    let catalog = open::shared(consul).map_err(Error::unable)?;
    let pairs = catalog.consul().list(ROOT).await.map_err(Error::unable)?;
    let mut by_host: BTreeMap<HostName, Vec<ZeplicPair>> = BTreeMap::new();
    let mut unrecognized = 0;
    for pair in &pairs {
        match parse(pair) {
            Some(found) => by_host.entry(found.host.clone()).or_default().push(found),
            None => unrecognized += 1,
        }
    }
    let text = runtime::blocking(move || {
        let mut text = String::new();
        for (host, pairs) in by_host {
            let Some(known) = catalog.host(&host)?.filter(|known| known.observed.is_some()) else {
                text.push_str(&format!(
                    "{host}: {} pairs skipped: the host has published nothing yet; hint: start its agent, then try again\n",
                    pairs.len()
                ));
                continue;
            };
            let changes = additions(&known, &pairs, clock::now());
            text.push_str(&format!("{host}: {} pairs, {} flags imported\n", pairs.len(), changes.len()));
            catalog.update(&host, changes)?;
        }
        Ok::<_, CatalogError>(text)
    });
    let mut text = text.await.map_err(Error::unable)?;
    if unrecognized > 0 {
        text.push_str(&format!("{unrecognized} pairs below {ROOT} are not zeplic's and were skipped\n"));
    }
    if pairs.is_empty() {
        text.push_str(&format!("there are no pairs below {ROOT}\n"));
    }
    report::print(&text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DatasetInventory, Guid, Snapshot};

    fn pair(key: &str, value: &str) -> Pair {
        Pair { key: key.into(), value: value.into(), ..Pair::default() }
    }

    #[test]
    fn parse_accepts_pairs_of_zeplic_only() {
        let found = parse(&pair(
            "zeplic/alpha/9b2c1c4e-1111-4222-8333-0123456789ab",
            "tank/a@BACKUP_2017-July-01_10:30:00#sent#deleted",
        ));
        let found = found.unwrap();
        assert_eq!((found.host.as_str(), found.dataset.as_str()), ("alpha", "tank/a"));
        assert!(found.marks.sent && found.marks.deleted && !found.marks.sync && !found.not_written);
        assert!(parse(&pair("zeplic/alpha/u", "tank/a@S#NotWritten")).unwrap().not_written);
        for (key, value) in [
            ("zeplic/alpha", "tank/a@S"),
            ("zeplic/alpha/u", "hello"),
            ("zeplic/alpha/u", "tank/a@S#what"),
            ("x/alpha/u", "tank/a@S"),
        ] {
            assert_eq!(parse(&pair(key, value)), None, "{key} {value}");
        }
    }

    #[test]
    fn additions_have_each_flag_of_an_existing_snapshot_once() {
        let snapshot = |name: &str, guid| Snapshot {
            name: name.parse().unwrap(),
            guid: Guid(guid),
            createtxg: guid,
            creation: DateTime::UNIX_EPOCH,
            userrefs: 0,
            has_clones: false,
            used: 0,
            marks: Marks::default(),
        };
        let inventory =
            DatasetInventory { snapshots: vec![snapshot("S_1", 1), snapshot("S_2", 2)], ..DatasetInventory::default() };
        let mut known = HostInventory {
            observed: None,
            datasets: [("tank/a".parse().unwrap(), inventory)].into(),
            ..HostInventory::default()
        };
        let pairs: Vec<ZeplicPair> = [
            "tank/a@S_1#sent",
            "tank/a@S_2",
            "tank/a@S_3#NotWritten",
            "tank/a@S_9#sent",
            "tank/b@S_1#sent",
            "tank/a@S_2#deleted",
        ]
        .iter()
        .filter_map(|value| parse(&pair("zeplic/alpha/u", value)))
        .collect();
        let changes = additions(&known, &pairs, DateTime::UNIX_EPOCH);
        assert_eq!(changes.len(), 2, "{changes:?}");
        for (name, change) in changes {
            crate::catalog::apply(&mut known, &name, change);
        }
        assert_eq!(additions(&known, &pairs, DateTime::UNIX_EPOCH), []);
    }
}
