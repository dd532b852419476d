//! The two ends of a copy: how they are named, and how they are reached.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::actions::CopyWanted;
use crate::agent::Agent;
use crate::model::{DatasetName, HostName, Place};
use crate::policy::{Bandwidth, Limit, Local, LocalDataset, Rate, Zone};
use crate::slave::Slave;
use crate::zfs::system::{Ssh, System};
use crate::zfs::{Zfs, ZfsError};

/// A place as it is typed: `DATASET`, `HOST:DATASET` or `USER@HOST:DATASET`. A host that is an IPv6 address stands in
/// brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyEnd {
    /// The destination for `ssh`; `None`: this host.
    pub ssh: Option<String>,
    /// The name of the host in holds and bookmarks; `None`: this host's.
    host: Option<HostName>,
    /// The dataset.
    pub dataset: DatasetName,
}

impl FromStr for CopyEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let dataset = |text: &str| text.parse::<DatasetName>().map_err(|error| error.to_string());
        // A colon after a slash belongs to the name of a dataset.
        let end = text.find('/').unwrap_or(text.len());
        let colon = match text.find('[').filter(|at| *at < end) {
            Some(bracket) => text[bracket..].find("]:").map(|at| bracket + at + 1),
            None => text[..end].find(':'),
        };
        let Some(colon) = colon else { return Ok(Self { ssh: None, host: None, dataset: dataset(text)? }) };
        let (target, name) = (&text[..colon], dataset(&text[colon + 1..])?);
        let (user, machine) = target.rsplit_once('@').map_or((None, target), |(user, host)| (Some(user), host));
        let machine = machine.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(machine);
        if machine.is_empty() || user.is_some_and(str::is_empty) || target.starts_with('-') {
            return Err("write it like tank/home, beta:tank/home or root@beta:tank/home".to_owned());
        }
        let host = machine.replace(':', "-").parse::<HostName>().map_err(|error| error.to_string())?;
        let ssh = user.map_or_else(|| machine.to_owned(), |user| format!("{user}@{machine}"));
        Ok(Self { ssh: Some(ssh), host: Some(host), dataset: name })
    }
}

impl CopyEnd {
    /// The place, where `here` is the name of this host.
    #[must_use]
    pub fn place(&self, here: &HostName) -> Place {
        Place { host: self.host.clone().unwrap_or_else(|| here.clone()), dataset: self.dataset.clone() }
    }
}

/// Reaches the ZFS of both ends. Two ends on one host share one.
pub async fn connect(near: &System, ends: [Option<Ssh>; 2], program: &Path) -> Result<[Arc<System>; 2], ZfsError> {
    let [source, destination] = ends;
    let is_same = source == destination;
    let source = reach(near, source, program).await?;
    let destination = if is_same { Arc::clone(&source) } else { reach(near, destination, program).await? };
    Ok([source, destination])
}

async fn reach(near: &System, ssh: Option<Ssh>, program: &Path) -> Result<Arc<System>, ZfsError> {
    use crate::zfs::ZfsRead;
    match ssh {
        Some(ssh) => near.over(ssh, program).await.map(Arc::new),
        None => near.check_version().await.map(|_| Arc::new(near.clone())),
    }
}

/// The ZFS of both ends.
pub struct Ends<Z> {
    /// The source's.
    pub source: Arc<Z>,
    /// The destination's.
    pub destination: Arc<Z>,
}

impl<Z: Zfs> Ends<Z> {
    /// An agent that may do what the copy needs: take snapshots of the source, send it, and receive the copy. If the
    /// ends are on two hosts, streams between them are no faster than `rate`.
    pub fn agent(&self, wanted: &CopyWanted, rate: Option<Rate>) -> Agent<Z> {
        let CopyWanted { from, to, .. } = wanted;
        let local = |entries: Vec<LocalDataset>| Local::of_entries("the command line".to_owned(), entries);
        let (source, copy) =
            (LocalDataset::new(from.dataset.clone(), false), LocalDataset::new(to.dataset.clone(), true));
        if from.host == to.host {
            return Agent::new(from.host.clone(), Arc::clone(&self.source), Arc::new(local(vec![source, copy])));
        }
        let limits = rate.map(|rate| Limit { rate, destination: None, hours: None, days: Vec::new() });
        let bandwidth = Bandwidth { timezone: Zone::UTC, limits: limits.into_iter().collect() };
        let sending = Local { bandwidth, ..local(vec![source]) };
        let slave = Slave::new(Arc::clone(&self.destination), Arc::new(local(vec![copy])));
        Agent::new(from.host.clone(), Arc::clone(&self.source), Arc::new(sending))
            .sending_within(BTreeMap::from([(to.host.clone(), Arc::new(slave))]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_is_as_for_scp() {
        let shown = |text: &str| match text.parse::<CopyEnd>() {
            Ok(CopyEnd { ssh, host, dataset }) => format!(
                "{} {} {dataset}",
                ssh.unwrap_or_else(|| "-".into()),
                host.map_or_else(|| "-".into(), |host| host.to_string())
            ),
            Err(error) => error,
        };
        assert_eq!(shown("tank/home"), "- - tank/home");
        assert_eq!(shown("tank/with:colon"), "- - tank/with:colon");
        assert_eq!(shown("beta:tank/home"), "beta beta tank/home");
        assert_eq!(shown("root@beta.example.org:tank"), "root@beta.example.org beta.example.org tank");
        assert_eq!(shown("a@b@beta:tank"), "a@b@beta beta tank");
        assert_eq!(shown("root@[fe80::1]:tank/x"), "root@fe80::1 fe80--1 tank/x");
        for bad in ["", ":tank", "@beta:tank", "root@:tank", "-oProxyCommand=x:tank", "beta:", "tank@snap", "[::1:tank"]
        {
            assert!(bad.parse::<CopyEnd>().is_err(), "{bad}");
        }
    }
}
