//! `zsync migrate`: takes over what the ancestor, zeplic, kept in Consul.
//!
//! Its pairs are `zeplic/HOST/UUID` with the value `dataset@name` and flags. Its UUIDs are its own, so a pair is found
//! again by host, dataset and name, and only what ZFS does not know is taken over: the flags. Nothing of zeplic's is
//! changed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::{DateTime, Utc};

use crate::catalog::open;
use crate::catalog::{CatalogError, CatalogRead, CatalogWrite, Change};
use crate::cli::exit::Error;
use crate::cli::report;
use crate::config;
use crate::consul::Pair;
use crate::model::{DatasetName, HostInventory, HostName, Marks, NotWritten, SnapName};
use crate::policy::CatalogConfig;
use crate::sys::{clock, runtime};

/// Where the ancestor's pairs are.
const ROOT: &str = "zeplic/";

/// What `zsync migrate` is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `server.json`.
    pub config: PathBuf,
}

/// One pair of the ancestor's.
#[derive(Debug, PartialEq, Eq)]
struct Ancestral {
    host: HostName,
    dataset: DatasetName,
    name: SnapName,
    marks: Marks,
    not_written: bool,
}

/// Understands a pair; `None` if it is none of the ancestor's.
fn read(pair: &Pair) -> Option<Ancestral> {
    let (host, _) = pair.key.strip_prefix(ROOT)?.split_once('/')?;
    let value = std::str::from_utf8(&pair.value).ok()?;
    let mut words = value.split('#');
    let (dataset, name) = words.next()?.split_once('@')?;
    let mut found = Ancestral {
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

/// What the ancestor's pairs of one host add to what is known of it.
fn additions(known: &HostInventory, pairs: &[Ancestral], at: DateTime<Utc>) -> Vec<(DatasetName, Change)> {
    let mut changes = Vec::new();
    for pair in pairs {
        let Some(dataset) = known.datasets.get(&pair.dataset) else { continue };
        if pair.not_written {
            let mark = NotWritten { name: pair.name.clone(), at };
            if !dataset.not_written.iter().any(|known| known.name == mark.name) {
                changes.push((pair.dataset.clone(), Change::NotWritten(mark)));
            }
        }
        // What is marked as deleted and is there all the same is not history.
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

/// Takes them over.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let policy = config::load_policy(&settings.config).map_err(Error::unable)?;
    let CatalogConfig::Consul(consul) = &policy.catalog else {
        return Err(Error::unable(anyhow::anyhow!(
            "{} has no \"consul\" in \"catalog\"; zeplic's pairs are taken over into a catalog in Consul",
            settings.config.display()
        )));
    };
    let catalog = open::shared(consul).map_err(Error::unable)?;
    let pairs = catalog.consul().list(ROOT).await.map_err(Error::unable)?;
    let mut by_host: BTreeMap<HostName, Vec<Ancestral>> = BTreeMap::new();
    let mut strange = 0;
    for pair in &pairs {
        match read(pair) {
            Some(found) => by_host.entry(found.host.clone()).or_default().push(found),
            None => strange += 1,
        }
    }
    let text = runtime::blocking(move || {
        let mut text = String::new();
        for (host, pairs) in by_host {
            let Some(known) = catalog.host(&host)?.filter(|known| known.observed.is_some()) else {
                text.push_str(&format!(
                    "{host}: {} pairs; it has published nothing yet: start its agent, then try again\n",
                    pairs.len()
                ));
                continue;
            };
            let changes = additions(&known, &pairs, clock::now());
            text.push_str(&format!("{host}: {} pairs, {} flags taken over\n", pairs.len(), changes.len()));
            catalog.update(&host, changes)?;
        }
        Ok::<_, CatalogError>(text)
    });
    let mut text = text.await.map_err(Error::unable)?;
    if strange > 0 {
        text.push_str(&format!("{strange} pairs below {ROOT} are not zeplic's, and were left out\n"));
    }
    if pairs.is_empty() {
        text.push_str(&format!("there is nothing below {ROOT}\n"));
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
    fn the_ancestors_pairs_are_understood_and_nothing_else() {
        let found = read(&pair(
            "zeplic/alpha/9b2c1c4e-1111-4222-8333-0123456789ab",
            "tank/a@BACKUP_2017-July-01_10:30:00#sent#deleted",
        ));
        let found = found.unwrap();
        assert_eq!((found.host.as_str(), found.dataset.as_str()), ("alpha", "tank/a"));
        assert!(found.marks.sent && found.marks.deleted && !found.marks.sync && !found.not_written);
        assert!(read(&pair("zeplic/alpha/u", "tank/a@S#NotWritten")).unwrap().not_written);
        for (key, value) in [
            ("zeplic/alpha", "tank/a@S"),
            ("zeplic/alpha/u", "hello"),
            ("zeplic/alpha/u", "tank/a@S#what"),
            ("x/alpha/u", "tank/a@S"),
        ] {
            assert_eq!(read(&pair(key, value)), None, "{key} {value}");
        }
    }

    #[test]
    fn only_flags_of_what_is_there_are_taken_over_and_only_once() {
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
        let mut known = HostInventory { observed: None, datasets: [("tank/a".parse().unwrap(), inventory)].into() };
        let pairs: Vec<Ancestral> = [
            "tank/a@S_1#sent",
            "tank/a@S_2",
            "tank/a@S_3#NotWritten",
            "tank/a@S_9#sent",
            "tank/b@S_1#sent",
            "tank/a@S_2#deleted",
        ]
        .iter()
        .filter_map(|value| read(&pair("zeplic/alpha/u", value)))
        .collect();
        let changes = additions(&known, &pairs, DateTime::UNIX_EPOCH);
        assert_eq!(changes.len(), 2, "{changes:?}");
        for (name, change) in changes {
            crate::catalog::apply(&mut known, &name, change);
        }
        assert_eq!(additions(&known, &pairs, DateTime::UNIX_EPOCH), []);
    }
}
