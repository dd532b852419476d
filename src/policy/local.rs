//! What one host permits zsync to do with its datasets, as configured in `local.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::{DatasetInventory, DatasetName, HostName, Identity, PeerRole, TlsFiles};
use crate::policy::{Address, Bandwidth, Compression, ConsulConfig, Denied, Hooks, Properties, Retention, Zone};

/// How many datasets are sent at once, unless `local.json` sets another number. It is enough to keep disks and network
/// busy while one transfer waits for its pool.
pub const DEFAULT_MAX_SENDS: usize = 8;
/// How many datasets are received at once, unless `local.json` sets another number. A receiving host often has several
/// senders.
pub const DEFAULT_MAX_RECEIVES: usize = 8;
/// How long a transfer may make no progress, unless `local.json` sets another time. ZFS may read much metadata before
/// it sends the first byte.
pub const DEFAULT_STALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Everything in `local.json`. zsync never touches a dataset that no entry covers, or whose entry is disabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The file's name in messages.
    pub file: String,
    /// Where the agent or the slave listens. An address without a port is for both, each on its own default port.
    pub listen: Option<Address>,
    /// The host's name in the policy; `None`: the system's own host name.
    pub hostname: Option<HostName>,
    /// The shared catalog in which this host publishes its datasets; `None`: it publishes nothing.
    pub consul: Option<ConsulConfig>,
    /// The certificate and key of agent and slave; `None`: they speak plaintext.
    pub tls: Option<TlsFiles>,
    /// The hosts whose directors the agent takes orders from; only with `tls`.
    pub directors: Vec<HostName>,
    /// How many datasets are sent at once.
    pub max_sends: usize,
    /// How many datasets are received at once.
    pub max_receives: usize,
    /// How long a transfer may make no progress before it is ended.
    pub stall_timeout: Duration,
    /// The bandwidth limits towards other hosts.
    pub bandwidth: Bandwidth,
    /// How streams to other hosts are compressed.
    pub compression: Compression,
    /// The time zone of the calendar periods of `keep`, and of the limits.
    pub timezone: Zone,
    /// The entries; each covers its dataset and everything below it.
    pub datasets: BTreeMap<DatasetName, LocalDataset>,
}

/// One entry of `local_datasets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalDataset {
    /// The dataset that the entry covers, with everything below it.
    pub name: DatasetName,
    /// Whether zsync may touch it at all.
    pub enable: bool,
    /// Whether it is open for receiving.
    pub slave: bool,
    /// The hosts that may send into it; `None`: every host.
    pub sources: Option<Vec<HostName>>,
    /// The hosts to which it may be sent; `None`: every host. A copy on this host counts as sent to this host.
    pub destinations: Option<Vec<HostName>>,
    /// The hosts that may ask for its copies, besides the host that a copy came from.
    pub readers: Vec<HostName>,
    /// Whether orders may take snapshots of it. The default is the opposite of `slave`.
    pub take: bool,
    /// Whether orders must not destroy, roll back or replace anything in it. The default is the value of `slave`.
    pub append_only: bool,
    /// Whether an order may restore it, or a dataset below it, from a copy. The dataset must not exist.
    pub restore: bool,
    /// Whether a transfer may roll it back or replace it, if the policy allows that. Only without `append_only`.
    pub rollback: bool,
    /// The snapshots that no order destroys.
    pub keep: Option<Retention>,
    /// How long a snapshot stays in the trash that an order would destroy; `None`: it is destroyed at once.
    pub destroy_after: Option<Duration>,
    /// The properties of received datasets.
    pub properties: Properties,
    /// The commands that run around snapshots and after a receive.
    pub hooks: Hooks,
    /// The clone that follows the newest snapshot, as in zeplic.
    pub clone: Option<CloneConfig>,
}

/// A clone that follows the newest snapshot of the entry's own dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneConfig {
    /// Whether zsync keeps such a clone.
    pub enable: bool,
    /// The clone's dataset.
    pub name: Option<DatasetName>,
    /// Whether it is destroyed and created again when there is a newer snapshot.
    pub delete: bool,
}

impl Local {
    /// What a host permits according to these entries, with the defaults for everything else. `file` is the file's name
    /// in messages.
    #[must_use]
    pub fn of_entries(file: String, entries: impl IntoIterator<Item = LocalDataset>) -> Self {
        Self {
            file,
            listen: None,
            hostname: None,
            consul: None,
            tls: None,
            directors: Vec::new(),
            max_sends: DEFAULT_MAX_SENDS,
            max_receives: DEFAULT_MAX_RECEIVES,
            stall_timeout: DEFAULT_STALL_TIMEOUT,
            bandwidth: Bandwidth::default(),
            compression: Compression::default(),
            timezone: Zone::UTC,
            datasets: entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect(),
        }
    }

    /// The entry that covers a dataset: its own, or that of the nearest dataset above it.
    #[must_use]
    pub fn entry_for(&self, dataset: &DatasetName) -> Option<&LocalDataset> {
        let mut above = Some(dataset.clone());
        while let Some(name) = above {
            if let Some(entry) = self.datasets.get(&name) {
                return Some(entry);
            }
            above = name.parent();
        }
        None
    }

    /// Whether several hosts may send into datasets of this host.
    #[must_use]
    pub fn has_several_sources(&self) -> bool {
        let receiving = || self.datasets.values().filter(|entry| entry.enable && entry.slave);
        let named: BTreeSet<&HostName> = receiving().filter_map(|entry| entry.sources.as_ref()).flatten().collect();
        named.len() > 1 || receiving().any(|entry| entry.sources.is_none())
    }

    /// The datasets of enabled entries that lie below no other such dataset. A recursive listing of them shows every
    /// dataset that zsync may touch.
    #[must_use]
    pub fn roots(&self) -> Vec<DatasetName> {
        let enabled = || self.datasets.values().filter(|entry| entry.enable).map(|entry| &entry.name);
        let covered = |name: &DatasetName| enabled().any(|other| other != name && name.is_within(other));
        enabled().filter(|name| !covered(name)).cloned().collect()
    }

    /// The director that a peer has proven to be; `None` if it is not among the directors, or connected in plaintext.
    #[must_use]
    pub fn director(&self, peer: Option<&Identity>) -> Option<&HostName> {
        let peer = peer?;
        self.directors.iter().find(|director| peer.is(director))
    }

    /// Whether orders of a peer are carried out. A peer that connected in plaintext has no identity, and is
    /// allowed, because anyone may use a plaintext port.
    pub fn permission_to_order(&self, peer: Option<&Identity>) -> Result<(), Denied> {
        let Some(peer) = peer else { return Ok(()) };
        if self.director(Some(peer)).is_none() {
            return Err(Denied::NotDirector { file: self.file.clone(), peer: peer.to_string() });
        }
        has_role(peer, PeerRole::Director)
    }

    /// Whether a peer may send into the dataset in the name of the host that it claims to be.
    pub fn permission_to_speak_for(
        &self,
        peer: Option<&Identity>,
        source: &HostName,
        dataset: &DatasetName,
    ) -> Result<(), Denied> {
        let Some(peer) = peer else { return Ok(()) };
        if !peer.is(source) {
            return Err(Denied::NotThatHost { peer: peer.to_string(), claimed: source.clone() });
        }
        has_role(peer, PeerRole::Agent)?;
        match self.entry_for(dataset) {
            // A company's CA may issue certificates to any of its machines.
            Some(entry) if entry.sources.is_none() && peer.roles.is_none() => Err(Denied::SourceNotNamed {
                file: self.file.clone(),
                dataset: dataset.clone(),
                entry: entry.name.clone(),
                source_host: source.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether the dataset may be listed.
    pub fn permission_to_list(&self, dataset: &DatasetName) -> Result<&LocalDataset, Denied> {
        self.enabled(dataset, false)
    }

    /// Whether a snapshot of the dataset may be taken.
    pub fn permission_to_take(&self, dataset: &DatasetName) -> Result<&LocalDataset, Denied> {
        let entry = self.enabled(dataset, false)?;
        if !entry.take {
            let (file, dataset) = (self.file.clone(), dataset.clone());
            return Err(Denied::NoTake { file, dataset, entry: entry.name.clone() });
        }
        Ok(entry)
    }

    /// Whether snapshots of the dataset may be sent to a host. Copies within this host are no exception: otherwise, the
    /// data could be copied to a dataset that may be sent anywhere.
    pub fn permission_to_send(&self, dataset: &DatasetName, to: &HostName) -> Result<&LocalDataset, Denied> {
        let entry = self.enabled(dataset, false)?;
        if entry.destinations.as_ref().is_some_and(|destinations| !destinations.contains(to)) {
            let (file, dataset, entry) = (self.file.clone(), dataset.clone(), entry.name.clone());
            return Err(Denied::DestinationNotAllowed { file, dataset, entry, destination: to.clone() });
        }
        Ok(entry)
    }

    /// Whether the dataset may receive from a host.
    pub fn permission_to_receive(&self, dataset: &DatasetName, source: &HostName) -> Result<&LocalDataset, Denied> {
        let entry = self.enabled(dataset, true)?;
        let (file, dataset, name) = (self.file.clone(), dataset.clone(), entry.name.clone());
        if !entry.slave {
            return Err(Denied::NotOpenForReceiving { file, dataset, entry: name });
        }
        if entry.sources.as_ref().is_some_and(|sources| !sources.contains(source)) {
            return Err(Denied::SourceNotAllowed { file, dataset, entry: name, source_host: source.clone() });
        }
        Ok(entry)
    }

    /// Whether a dataset may be restored here by an order. What is restored is mounted, so whoever gives such an order and
    /// controls the copy decides what files appear on this host.
    pub fn permission_to_restore(&self, dataset: &DatasetName) -> Result<&LocalDataset, Denied> {
        let entry = self.enabled(dataset, false)?;
        if !entry.restore {
            let (file, dataset) = (self.file.clone(), dataset.clone());
            return Err(Denied::NoRestore { file, dataset, entry: entry.name.clone() });
        }
        Ok(entry)
    }

    /// Whether `dataset` may be sent to a host that asks for it, to restore it there. `has_come_from_there` says whether
    /// it is a copy of a dataset of that host.
    pub fn permission_to_send_back(
        &self,
        dataset: &DatasetName,
        to: &HostName,
        has_come_from_there: bool,
    ) -> Result<&LocalDataset, Denied> {
        let entry = self.enabled(dataset, false)?;
        let is_destination = entry.destinations.as_ref().is_some_and(|destinations| destinations.contains(to));
        if has_come_from_there || is_destination || entry.readers.contains(to) {
            return Ok(entry);
        }
        let (file, dataset, entry) = (self.file.clone(), dataset.clone(), entry.name.clone());
        Err(Denied::NotReader { file, dataset, entry, reader: to.clone() })
    }

    /// Whether a peer may ask for copies in the name of the host that it claims to be.
    pub fn permission_to_ask_back(&self, peer: Option<&Identity>, host: &HostName) -> Result<(), Denied> {
        let Some(peer) = peer else { return Ok(()) };
        if !peer.is(host) {
            return Err(Denied::NotThatHost { peer: peer.to_string(), claimed: host.clone() });
        }
        has_role(peer, PeerRole::Agent)
    }

    /// Whether a peer may read files in the name of the host that it claims to be. What it may read is another question,
    /// see [`Self::permission_to_read`].
    pub fn permission_to_speak_as(&self, peer: Option<&Identity>, host: &HostName) -> Result<(), Denied> {
        match peer {
            Some(peer) if !peer.is(host) => Err(Denied::NotThatHost { peer: peer.to_string(), claimed: host.clone() }),
            _ => Ok(()),
        }
    }

    /// Whether a peer may read the files of a dataset in the name of a host. `is_copy` says whether it is a copy of a
    /// dataset of that host. The certificate of an agent stands for its host. That of a director does not, so that a
    /// director reads nothing, unless the entry names its host among the readers.
    pub fn permission_to_read(
        &self,
        peer: Option<&Identity>,
        dataset: &DatasetName,
        host: &HostName,
        is_copy: bool,
    ) -> Result<&LocalDataset, Denied> {
        let entry = self.permission_to_send_back(dataset, host, is_copy)?;
        match peer {
            Some(peer) if !entry.readers.contains(host) => has_role(peer, PeerRole::Agent)?,
            Some(peer) if !peer.may_be(PeerRole::Director) => has_role(peer, PeerRole::Agent)?,
            _ => {}
        }
        Ok(entry)
    }

    /// Whether an order may destroy snapshots of the dataset.
    pub fn permission_to_destroy(&self, dataset: &DatasetName) -> Result<&LocalDataset, Denied> {
        let entry = self.enabled(dataset, false)?;
        if entry.append_only {
            let (file, dataset) = (self.file.clone(), dataset.clone());
            return Err(Denied::AppendOnly { file, dataset, entry: entry.name.clone() });
        }
        Ok(entry)
    }

    /// Whether a transfer may roll the dataset back, or replace it.
    pub fn permission_to_roll_back(&self, dataset: &DatasetName) -> Result<&LocalDataset, Denied> {
        let entry = self.enabled(dataset, true)?;
        if entry.append_only || !entry.rollback {
            let (file, dataset) = (self.file.clone(), dataset.clone());
            let is_append_only = entry.append_only;
            return Err(Denied::NoRollback { file, dataset, entry: entry.name.clone(), is_append_only });
        }
        Ok(entry)
    }

    /// Reduces a listing to the datasets that zsync may touch, and notes of each whether it is append-only, and how long
    /// what orders destroy stays in the trash.
    pub fn restrict(&self, listed: &mut Vec<(DatasetName, DatasetInventory)>) {
        listed.retain(|(name, _)| self.permission_to_list(name).is_ok());
        for (name, inventory) in listed {
            inventory.append_only = Some(self.permission_to_destroy(name).is_err());
            inventory.destroy_after = Some(self.destroy_after(name).map_or(0, |after| after.as_secs()));
        }
    }

    /// How long what orders destroy in a dataset stays in the trash; `None`: it is destroyed at once.
    #[must_use]
    pub fn destroy_after(&self, dataset: &DatasetName) -> Option<Duration> {
        self.entry_for(dataset)?.destroy_after
    }

    /// Whether a dataset may be renamed: only if this file protects it as well under the new name, or if no order may
    /// touch it there.
    pub fn permission_to_rename(&self, dataset: &DatasetName, to: &DatasetName) -> Result<(), Denied> {
        let entry = self.enabled(dataset, true)?;
        let Some(there) = self.entry_for(to).filter(|there| there.enable) else { return Ok(()) };
        let Some(key) = entry.protection_lacking_in(there) else { return Ok(()) };
        Err(Denied::LessProtected {
            file: self.file.clone(),
            dataset: dataset.clone(),
            to: to.clone(),
            entry: entry.name.clone(),
            there: there.name.clone(),
            key,
        })
    }

    fn enabled(&self, dataset: &DatasetName, receiving: bool) -> Result<&LocalDataset, Denied> {
        let (file, dataset) = (|| self.file.clone(), || dataset.clone());
        match self.entry_for(&dataset()) {
            None => Err(Denied::NotConfigured { file: file(), dataset: dataset(), receiving }),
            Some(entry) if !entry.enable => {
                Err(Denied::Disabled { file: file(), dataset: dataset(), entry: entry.name.clone() })
            }
            Some(entry) => Ok(entry),
        }
    }
}

impl LocalDataset {
    /// An entry in which only these are set: whether its dataset is open for receiving, and the defaults that follow
    /// from that.
    #[must_use]
    pub fn new(name: DatasetName, slave: bool) -> Self {
        Self {
            name,
            enable: true,
            slave,
            sources: None,
            destinations: None,
            readers: Vec::new(),
            take: !slave,
            append_only: slave,
            restore: false,
            rollback: false,
            keep: None,
            destroy_after: None,
            properties: Properties::default(),
            hooks: Hooks::default(),
            clone: None,
        }
    }

    /// The first key with which this entry protects its datasets, but another entry does not protect those that it
    /// covers.
    fn protection_lacking_in(&self, other: &Self) -> Option<&'static str> {
        let is_lacking = [
            ("append_only", self.append_only && !other.append_only),
            ("keep", self.keep.is_some() && self.keep != other.keep && !other.append_only),
            ("destroy_after", self.destroy_after > other.destroy_after && !other.append_only),
            ("rollback", other.rollback && !self.rollback),
            ("destinations", self.destinations.is_some() && self.destinations != other.destinations),
        ];
        is_lacking.into_iter().find_map(|(key, is_lacking)| is_lacking.then_some(key))
    }
}

/// Whether a peer's certificate permits a role.
fn has_role(peer: &Identity, wanted: PeerRole) -> Result<(), Denied> {
    if peer.may_be(wanted) {
        return Ok(());
    }
    Err(Denied::WrongRole { peer: peer.to_string(), roles: peer.roles_in_words(), wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A director that was taken over reads no files, unless its host is among the readers.
    #[test]
    fn files_are_read_by_agents_and_by_readers() {
        let entry = |name: &str, readers: &[&str]| LocalDataset {
            readers: readers.iter().map(|reader| reader.parse().unwrap()).collect(),
            ..LocalDataset::new(name.parse().unwrap(), true)
        };
        let local = Local::of_entries("local.json".to_owned(), [entry("a", &[]), entry("b", &["delta"])]);
        let peer = |name: &str, role: &str| Identity::new([name], [format!("zsync:role:{role}").as_str()]);
        let may = |peer: Option<&Identity>, dataset: &str, host: &str, is_copy: bool| {
            let (dataset, host) = (dataset.parse().unwrap(), host.parse().unwrap());
            let allowed = local.permission_to_read(peer, &dataset, &host, is_copy).map(drop);
            local.permission_to_speak_as(peer, &host).and(allowed).map_err(|error| error.to_string())
        };
        let (agent, director, other) = (peer("alpha", "agent"), peer("delta", "director"), peer("gamma", "agent"));
        assert_eq!(may(Some(&agent), "a", "alpha", true), Ok(()));
        assert!(may(Some(&agent), "a", "alpha", false).unwrap_err().contains("\"readers\""));
        assert!(may(Some(&director), "a", "delta", false).unwrap_err().contains("\"readers\""));
        // Not even what comes from its own host.
        assert!(may(Some(&director), "a", "delta", true).unwrap_err().contains("is for director, not for agent"));
        assert_eq!(may(Some(&director), "b", "delta", false), Ok(()));
        assert!(may(Some(&director), "a", "alpha", true).unwrap_err().contains("does not name that host"));
        assert!(may(Some(&other), "a", "alpha", true).unwrap_err().contains("does not name that host"));
        assert!(may(Some(&peer("delta", "slave")), "b", "delta", true).is_err());
        assert_eq!(may(None, "a", "alpha", true), Ok(()), "in plaintext, everybody may say to be anybody");
    }
}
