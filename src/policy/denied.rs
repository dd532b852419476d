//! The reasons why `local.json` forbids something, each with the change that would permit it.

use thiserror::Error;

use crate::model::{DatasetName, DatasetStatus, HostName, PeerRole};

/// Why this host's configuration forbids something. `Display` gives the reason, [`Denied::hint`] the way out.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// No entry covers the dataset.
    #[error("{dataset} is not listed in local_datasets of {file}")]
    NotConfigured {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// Whether it was to receive.
        receiving: bool,
    },
    /// The entry that covers the dataset is disabled.
    #[error("{dataset} is disabled by the entry {entry:?} in {file}")]
    Disabled {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
    },
    /// The entry that covers the dataset does not set `slave: true`.
    #[error("{dataset} is not open for receiving: the entry {entry:?} in {file} lacks \"slave\": true")]
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
        "{dataset} does not receive from {source_host}: \"sources\" of the entry {entry:?} in {file} does not list it"
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
    /// The peer that gives an order is not among the directors.
    #[error("orders are not taken from {peer}: \"directors\" in {file} does not list it")]
    NotDirector {
        /// The configuration's file.
        file: String,
        /// The peer, as its certificate names it.
        peer: String,
    },
    /// The peer's certificate was issued for another role.
    #[error("the certificate of {peer} is for {roles}, not for {wanted}")]
    WrongRole {
        /// The peer, as its certificate names it.
        peer: String,
        /// The roles in its certificate.
        roles: String,
        /// The role that it needs here.
        wanted: PeerRole,
    },
    /// The peer's certificate does not name the host that the peer claims to be.
    #[error("{peer} says that it is {claimed}, but its certificate does not name that host")]
    NotThatHost {
        /// The peer, as its certificate names it.
        peer: String,
        /// The host that it claims to be.
        claimed: HostName,
    },
    /// The peer's certificate carries no role of zsync, and the configuration does not name the peer.
    #[error(
        "{dataset} does not receive from {source_host}: its certificate names no role of zsync, and the entry {entry:?} in {file} has no \"sources\" that name it"
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
    /// The dataset, or one above it, is the copy of another host, and no `sources` permit a second host.
    #[error(
        "{dataset} does not receive from {source_host}: {copy} is another host's copy (it has the hold {tag}), and the entry {entry:?} in {file} has no \"sources\""
    )]
    SourceTaken {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
        /// The host that wants to send.
        source_host: HostName,
        /// The other host's copy: the dataset itself, or one above it.
        copy: DatasetName,
        /// The tag of the other host's hold.
        tag: String,
    },
    /// No order takes a snapshot of the dataset, because it receives.
    #[error(
        "no snapshot is taken of {dataset}, because it receives: the entry {entry:?} in {file} has no \"take\": true"
    )]
    NoTake {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
    },
    /// No order destroys anything in the dataset.
    #[error(
        "{dataset} is append-only: no order destroys its snapshots, rolls it back or replaces it; the entry {entry:?} in {file} sets \"append_only\": true, or sets \"slave\": true without \"append_only\": false"
    )]
    AppendOnly {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
    },
    /// No transfer rolls the dataset back or replaces it.
    #[error(
        "{dataset} must not be rolled back or replaced: the entry {entry:?} in {file} lacks \"rollback\": true{}",
        if *is_append_only { ", and it is append-only" } else { "" }
    )]
    NoRollback {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
        /// Whether the entry is also append-only.
        is_append_only: bool,
    },
    /// The entry does not permit orders to restore datasets.
    #[error("{dataset} must not be restored by an order: the entry {entry:?} in {file} does not set \"restore\": true")]
    NoRestore {
        /// The configuration's file.
        file: String,
        /// The dataset that was to be restored.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
    },
    /// The host that asks for a copy is not the one that the copy came from, and is not among the entry's readers.
    #[error(
        "{dataset} must not be sent back to {reader}: it is not a copy of a dataset of {reader}, and \"readers\" of the entry {entry:?} in {file} does not list that host"
    )]
    NotReader {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
        /// The host that asks.
        reader: HostName,
    },
    /// The receiving host is not among the entry's destinations.
    #[error(
        "{dataset} must not be sent to {destination}: \"destinations\" of the entry {entry:?} in {file} does not list it"
    )]
    DestinationNotAllowed {
        /// The configuration's file.
        file: String,
        /// The dataset that was asked for.
        dataset: DatasetName,
        /// The entry's name.
        entry: DatasetName,
        /// The host that was to receive.
        destination: HostName,
    },
    /// Under its new name, the dataset would be less protected.
    #[error(
        "{dataset} must not be renamed to {to}: the entry {there:?} in {file}, which covers the new name, does not protect \
         it by \"{key}\" as the entry {entry:?} does"
    )]
    LessProtected {
        /// The configuration's file.
        file: String,
        /// The dataset that was to be renamed.
        dataset: DatasetName,
        /// The new name.
        to: DatasetName,
        /// The name of the entry that covers the dataset now.
        entry: DatasetName,
        /// The name of the entry that covers the new name.
        there: DatasetName,
        /// The key in which the entries differ.
        key: &'static str,
    },
}

impl Denied {
    /// What an administrator can change to permit it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NotConfigured { file, dataset, receiving: false } => format!(
                "to allow this, add {{ \"enable\": true, \"name\": \"{dataset}\" }} to local_datasets of {file}; an entry also \
                 covers what is below its dataset"
            ),
            Self::NotConfigured { file, receiving: true, .. } => format!(
                "to allow this, add {{ \"enable\": true, \"slave\": true, \"name\": \"...\" }} to local_datasets of {file}, with the \
                 dataset that sync_dataset of server.json names: the entry also covers all copies below it"
            ),
            Self::Disabled { file, entry, .. } => {
                format!("to allow this, set \"enable\": true in the entry {entry:?} of {file}")
            }
            Self::NotOpenForReceiving { file, entry, .. } => format!(
                "to allow this, set \"slave\": true in the entry {entry:?} of {file}, or add an entry for the dataset alone"
            ),
            Self::SourceNotAllowed { file, entry, source_host, .. }
            | Self::SourceNotNamed { file, entry, source_host, .. } => {
                format!("to allow this, add {source_host:?} to \"sources\" of the entry {entry:?} in {file}")
            }
            Self::SourceTaken { file, dataset, entry, source_host, .. } => format!(
                "send it to a dataset of its own (\"sync_dataset\"); to permit {source_host:?} to send into {dataset}, list it \
                 and every other host that sends there in \"sources\" of the entry {entry:?} in {file}"
            ),
            Self::NotDirector { file, .. } => {
                format!("to allow this, add one of the names in its certificate to \"directors\" in {file}")
            }
            Self::WrongRole { wanted, .. } => {
                format!("issue it another certificate (zsync tls issue --role {wanted})")
            }
            Self::NotThatHost { .. } => "name hosts in server.json as their certificates do".to_owned(),
            Self::AppendOnly { file, entry, .. } => {
                format!("to allow this, set \"append_only\": false in the entry {entry:?} of {file}")
            }
            Self::NoTake { file, dataset, .. } => format!(
                "a snapshot that is taken of a copy makes it diverge from its source; if nothing is sent into {dataset}, \
                 give it an entry of its own in {file}, without \"slave\" or with \"take\": true"
            ),
            Self::NoRollback { file, entry, is_append_only, .. } => {
                let first = if *is_append_only { "\"append_only\": false and " } else { "" };
                format!(
                    "to let its source roll it back, and so destroy what is newer, set {first}\"rollback\": true in the \
                     entry {entry:?} of {file}"
                )
            }
            Self::DestinationNotAllowed { file, entry, destination, .. } => {
                format!("to allow this, add {destination:?} to \"destinations\" of the entry {entry:?} in {file}")
            }
            Self::LessProtected { file, entry, there, key, .. } => {
                format!("to allow this, give the entry {there:?} in {file} the same {key:?} as the entry {entry:?}")
            }
            Self::NoRestore { file, entry, .. } => format!(
                "set \"restore\": true in the entry {entry:?} of {file}, reload the agent (SIGHUP), and remove the key when \
                 the restore has ended"
            ),
            Self::NotReader { file, entry, reader, .. } => {
                format!("to allow this, add {reader:?} to \"readers\" of the entry {entry:?} in {file}")
            }
        }
    }

    /// The status that a slave answers.
    #[must_use]
    pub fn status(&self) -> DatasetStatus {
        match self {
            Self::NotConfigured { .. } => DatasetStatus::NotConf,
            Self::Disabled { .. } => DatasetStatus::Disable,
            Self::NotOpenForReceiving { .. }
            | Self::SourceNotAllowed { .. }
            | Self::SourceNotNamed { .. }
            | Self::SourceTaken { .. }
            | Self::NotDirector { .. }
            | Self::WrongRole { .. }
            | Self::NotThatHost { .. }
            | Self::AppendOnly { .. }
            | Self::NoTake { .. }
            | Self::NoRollback { .. }
            | Self::NoRestore { .. }
            | Self::NotReader { .. }
            | Self::DestinationNotAllowed { .. }
            | Self::LessProtected { .. } => DatasetStatus::Docker,
        }
    }
}
