//! What one host permits zsync to do with its datasets: the meaning of `local.json`.

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use crate::model::{DatasetName, DatasetStatus, HostName, Identity, PeerRole, TlsFiles};
use crate::policy::{Address, Bandwidth, Compression, ConsulConfig, Hooks, Properties};

/// How many datasets are sent and received at once, unless local.json says otherwise: enough to keep disks and network
/// busy while one of them waits for its pool.
pub const DEFAULT_MAX_SENDS: usize = 8;
/// See [`DEFAULT_MAX_SENDS`]; a host that receives often does so from several.
pub const DEFAULT_MAX_RECEIVES: usize = 8;
/// How long a transfer may not move, unless local.json says otherwise: ZFS may have much to look through in silence.
pub const DEFAULT_STALL_TIMEOUT: Duration = Duration::from_secs(600);

/// The whole of `local.json`. What it does not list, or lists as disabled, zsync never touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The file's name in messages.
    pub file: String,
    /// Where the agent or the slave listens. Without a port it serves both, each on its own default port.
    pub listen: Option<Address>,
    /// The host's name in the policy; `None`: what the system calls itself.
    pub hostname: Option<HostName>,
    /// The shared catalog in which this host publishes what it holds; `None`: it does not.
    pub consul: Option<ConsulConfig>,
    /// What agent and slave prove themselves with; `None`: they speak plaintext.
    pub tls: Option<TlsFiles>,
    /// The hosts whose directors the agent takes orders from; only with `tls`.
    pub directors: Vec<HostName>,
    /// How many datasets are sent at once.
    pub max_sends: usize,
    /// How many datasets are received at once.
    pub max_receives: usize,
    /// How long a transfer may not move before it is ended.
    pub stall_timeout: Duration,
    /// How much is sent to other hosts, and when.
    pub bandwidth: Bandwidth,
    /// How streams to other hosts are compressed.
    pub compression: Compression,
    /// The entries, each covering its dataset and what is below it.
    pub datasets: BTreeMap<DatasetName, LocalDataset>,
}

/// One entry of `local_datasets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalDataset {
    /// The dataset that the entry covers, with what is below it.
    pub name: DatasetName,
    /// Whether zsync may touch it at all.
    pub enable: bool,
    /// Whether it is open for receiving.
    pub slave: bool,
    /// The hosts that may send into it; `None`: every host.
    pub sources: Option<Vec<HostName>>,
    /// Whether nothing in it is destroyed, rolled back or replaced by any order: by default where it receives.
    pub append_only: bool,
    /// What is set on what it receives.
    pub properties: Properties,
    /// What is run around snapshots and after a receive.
    pub hooks: Hooks,
    /// The ancestor's clone of the newest snapshot.
    pub clone: Option<CloneConfig>,
}

/// A clone that follows the newest snapshot of the entry's own dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneConfig {
    /// Whether it is kept.
    pub enable: bool,
    /// The clone's dataset.
    pub name: Option<DatasetName>,
    /// Whether it is destroyed and made anew when there is a newer snapshot.
    pub delete: bool,
}

/// Why this host's configuration does not let something happen to a dataset. Displayed, it shows the way out.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// No entry covers the dataset.
    #[error(
        "{dataset} is not listed in local_datasets of {file}; to allow it add {{ \"enable\": true, \"slave\": {receiving}, \"name\": \"{dataset}\" }}"
    )]
    NotConfigured {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// Whether it was asked for to receive.
        receiving: bool,
    },
    /// The entry that covers the dataset is disabled.
    #[error("{dataset} is disabled by the entry {entry:?} in {file}; to allow it set \"enable\": true there")]
    Disabled {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
    },
    /// The entry that covers the dataset does not say `slave: true`.
    #[error(
        "{dataset} is not open for receiving, says the entry {entry:?} in {file}; to open it set \"slave\": true there, or add an entry for what may be received"
    )]
    NotOpenForReceiving {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
    },
    /// The sending host is not among the entry's sources.
    #[error(
        "{dataset} does not receive from {source_host}, says the entry {entry:?} in {file}; to allow it add {source_host:?} to its \"sources\""
    )]
    SourceNotAllowed {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
        /// The host that wants to send.
        source_host: HostName,
    },
    /// The one who gives the order is not among the directors.
    #[error(
        "orders are not taken from {peer}, says {file}; to take them add one of its certificate's names to \"directors\" there"
    )]
    NotDirector {
        /// The configuration's file.
        file: String,
        /// Who gave the order.
        peer: String,
    },
    /// The certificate is for something else.
    #[error(
        "the certificate of {peer} is for {roles}, not for {wanted}; issue it another one (zsync tls issue --role {wanted})"
    )]
    WrongRole {
        /// Who it was shown by.
        peer: String,
        /// What it is for.
        roles: String,
        /// What it was used for.
        wanted: PeerRole,
    },
    /// The certificate does not name the host that its holder says it is.
    #[error(
        "{peer} says that it is {claimed}, and its certificate does not; name hosts in the policy as their certificates do"
    )]
    NotThatHost {
        /// Whom the certificate names.
        peer: String,
        /// Who it says that it is.
        claimed: HostName,
    },
    /// The certificate has no mark of zsync, and the configuration does not name its holder.
    #[error(
        "{dataset} does not receive from {source_host}: the CA of its certificate does not say that it is an agent, and the entry {entry:?} in {file} has no \"sources\" that name it"
    )]
    SourceNotNamed {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
        /// The host that wants to send.
        source_host: HostName,
    },
    /// Nothing in the dataset is ever destroyed by an order.
    #[error(
        "{dataset} is append-only by the entry {entry:?} in {file}, as what receives is unless it says otherwise: no order destroys snapshots there, rolls back or replaces; to let the policy do so set \"append_only\": false there"
    )]
    AppendOnly {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
    },
}

impl Denied {
    /// What a slave answers on the wire in this case.
    #[must_use]
    pub fn status(&self) -> DatasetStatus {
        match self {
            Self::NotConfigured { .. } => DatasetStatus::NotConf,
            Self::Disabled { .. } => DatasetStatus::Disable,
            Self::NotOpenForReceiving { .. }
            | Self::SourceNotAllowed { .. }
            | Self::SourceNotNamed { .. }
            | Self::NotDirector { .. }
            | Self::WrongRole { .. }
            | Self::NotThatHost { .. }
            | Self::AppendOnly { .. } => DatasetStatus::Docker,
        }
    }
}

impl Local {
    /// The entry that covers a dataset: that of the dataset itself or of the nearest one above it.
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

    /// The datasets of the enabled entries that lie below no other one: what to list to see everything allowed.
    #[must_use]
    pub fn roots(&self) -> Vec<DatasetName> {
        let enabled = || self.datasets.values().filter(|entry| entry.enable).map(|entry| &entry.name);
        let covered = |name: &DatasetName| enabled().any(|other| other != name && name.is_within(other));
        enabled().filter(|name| !covered(name)).cloned().collect()
    }

    /// Whether orders of a peer are carried out; one without an identity came in by a port that anyone may use.
    pub fn permission_to_order(&self, peer: Option<&Identity>) -> Result<(), Denied> {
        let Some(peer) = peer else { return Ok(()) };
        if !self.directors.iter().any(|director| peer.is(director)) {
            return Err(Denied::NotDirector { file: self.file.clone(), peer: peer.to_string() });
        }
        has_role(peer, PeerRole::Director)
    }

    /// Whether a peer may speak for the host that it says it is, to send into the dataset.
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
            // Any machine of a company may have a certificate of its CA.
            Some(entry) if entry.sources.is_none() && peer.roles.is_none() => Err(Denied::SourceNotNamed {
                file: self.file.clone(),
                dataset: dataset.clone(),
                entry: entry.name.clone(),
                source_host: source.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether a snapshot of the dataset may be taken.
    pub fn permission_to_take(&self, dataset: &DatasetName) -> Result<&LocalDataset, Denied> {
        self.enabled(dataset, false)
    }

    /// Whether a snapshot of the dataset may be sent elsewhere.
    pub fn permission_to_send(&self, dataset: &DatasetName) -> Result<&LocalDataset, Denied> {
        self.enabled(dataset, false)
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

    /// Whether snapshots of the dataset may be destroyed, and what was written to it be lost.
    pub fn permission_to_destroy(&self, dataset: &DatasetName) -> Result<&LocalDataset, Denied> {
        let entry = self.enabled(dataset, false)?;
        if entry.append_only {
            let (file, dataset) = (self.file.clone(), dataset.clone());
            return Err(Denied::AppendOnly { file, dataset, entry: entry.name.clone() });
        }
        Ok(entry)
    }

    /// Whether a dataset may be renamed. What is append-only may, but only to where no order destroys it either.
    pub fn permission_to_rename(&self, dataset: &DatasetName, to: &DatasetName) -> Result<(), Denied> {
        let entry = self.enabled(dataset, true)?;
        let is_as_safe = self.entry_for(to).is_none_or(|there| there.append_only || !there.enable);
        if !entry.append_only || is_as_safe {
            return Ok(());
        }
        let (file, dataset) = (self.file.clone(), dataset.clone());
        Err(Denied::AppendOnly { file, dataset, entry: entry.name.clone() })
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

/// Whether a peer's certificate may be used as this.
fn has_role(peer: &Identity, wanted: PeerRole) -> Result<(), Denied> {
    if peer.may_be(wanted) {
        return Ok(());
    }
    Err(Denied::WrongRole { peer: peer.to_string(), roles: peer.roles_in_words(), wanted })
}
