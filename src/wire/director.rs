//! Defines the messages between a director and an agent.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::{
    Action, DatasetInventory, DatasetName, Guid, HostName, NotWritten, OnDivergence, OrderId, SentTo, SetAside,
    Snapshot, SnapshotId, UnlistedPools,
};
use crate::wire::{PER_LINE, Response, default_protocol, text};

/// An order of a director to an agent; zeplic's `ZFSDirectorsOrder`. "ORDERS" in zsync(8) describes the fields of each
/// action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DirectorsOrder {
    /// The order's identity.
    #[serde(rename = "OrderUUID")]
    pub order_uuid: OrderId,
    /// The action.
    pub action: Action,
    /// The receiving host.
    #[serde(default)]
    pub destination: String,
    /// UUIDs, or records `uuid:dataset@name`.
    #[serde(default, rename = "SnapshotUUID")]
    pub snapshot_uuid: Vec<String>,
    /// The snapshot's name, without the dataset and `@`.
    #[serde(default)]
    pub snapshot_name: String,
    /// The dataset to take a snapshot of, to receive into, or to list.
    #[serde(default)]
    pub dest_dataset: String,
    /// Whether a diverged destination may be rolled back.
    #[serde(default)]
    pub rollback_if_needed: bool,
    /// Whether snapshots that were renamed are not destroyed.
    #[serde(default)]
    pub skip_if_renamed: bool,
    /// Whether no snapshot is taken of datasets to which nothing was written.
    #[serde(default)]
    pub skip_if_not_written: bool,
    /// Whether snapshots with clones are not destroyed.
    #[serde(default)]
    pub skip_if_cloned: bool,
    /// The protocol's version.
    #[serde(default = "default_protocol")]
    pub protocol: u32,
    /// take_snapshot: datasets to take a snapshot of in the same transaction group as `DestDataset`.
    /// join_keys: the datasets whose keys are to be joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<DatasetName>,
    /// send_snapshot: the dataset of the snapshot. If it is missing, the agent searches for the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetName>,
    /// send_snapshot: the slave's `host:port`. The default is the destination's name and the default port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_address: Option<String>,
    /// send_snapshot: whether a rollback may destroy snapshots that only the destination has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback_may_destroy: bool,
    /// send_snapshot: what to do if the destination cannot receive an increment, and may not be rolled back.
    #[serde(default, skip_serializing_if = "OnDivergence::is_stop")]
    pub on_divergence: OnDivergence,
    /// send_snapshot: for a clone, the dataset on the destination that receives from the origin's dataset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_dataset: Option<DatasetName>,
    /// send_snapshot: the copy on the destination from before the source was renamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<RenamedFrom>,
    /// send_snapshot: whether the destination is still the copy of another dataset, which another order renames. Until
    /// then, nothing is done to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub awaits_rename: bool,
    /// send_snapshot: all destinations of the dataset, if they are known. Holds for any other destination are obsolete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<(HostName, DatasetName)>,
    /// The director that gives the order, if several directors share a catalog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// destroy_snapshot: the snapshots that must stay in common with other hosts, which the agent checks.
    /// estimate_send: the newest common snapshot of the destination; if it is missing, the destination has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep_common_with: Vec<CommonBase>,
    /// destroy_snapshot: how the director knows the snapshots. The agent keeps those that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<ExpectedSnapshot>,
    /// estimate_destroy: whether other orders are carried out first, so that the newest snapshot and the holds of
    /// transfers are different by then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follows: bool,
    /// For how many seconds the order is retried after a temporary failure. The default is 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_for: Option<u64>,
    /// send_snapshot: the creation of the oldest snapshot that the destination lacks. The dataset for which this is
    /// earliest is sent first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_unsent: Option<DateTime<Utc>>,
    /// send_snapshot: by when the transfer has to begin to meet the deadline of its policy. The dataset for which this is
    /// earliest is sent first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_by: Option<DateTime<Utc>>,
    /// estimate_send: the token from which the destination can resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_token: Option<String>,
    /// forget_destination: what transfers have left on sources. `Datasets` has the copies that are given up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forget: Vec<Forgotten>,
    /// restore_dataset: the copy that is brought back. estimate_send: the estimate is for restoring this copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreFrom>,
    /// kv_resync: list all datasets, even those that are unchanged according to ZFS.
    #[serde(default, rename = "Anew", skip_serializing_if = "std::ops::Not::not")]
    pub from_scratch: bool,
    /// kv_resync: only answer, and publish nothing in a shared catalog. join_keys: only answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// The rank of a director among those that share its catalog. The director that has the lock has the highest index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Fence {
    /// Identifies the catalog. Changes when Consul has lost all of its data.
    pub catalog: uuid::Uuid,
    /// Consul's index when the director acquired the lock.
    pub index: u64,
    /// The host of the director. With TLS, agents use the name in the director's certificate instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub director: Option<HostName>,
}

/// A destination of a dataset that is given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Forgotten {
    /// The source.
    pub dataset: DatasetName,
    /// The destination, as the names of holds and bookmarks show it.
    pub to: SentTo,
}

/// A copy that is brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RestoreFrom {
    /// The host of the copy.
    pub host: HostName,
    /// The copy.
    pub dataset: DatasetName,
    /// The `host:port` of the agent there. The default is the host's name and the default port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What is in the way, and is renamed first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<SetAside>,
    /// The properties that are set on what is restored.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// The dataset above it whose key it is to use again, once that is possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_from: Option<DatasetName>,
}

/// The first line from an agent that restores a dataset to the agent of the host that has the copy. The copy is sent
/// back on the same connection, on which the host that asked then acts as a slave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SendBack {
    /// The director's order.
    #[serde(rename = "OrderUUID")]
    pub order_uuid: OrderId,
    /// The host that asks. Its certificate must name it.
    pub host: HostName,
    /// The copy.
    pub dataset: DatasetName,
    /// The UUID of the snapshot that is wanted.
    #[serde(rename = "SnapshotUUID")]
    pub snapshot_uuid: SnapshotId,
    /// The dataset that receives on the host that asks.
    pub dest_dataset: DatasetName,
    /// The protocol's version.
    #[serde(default = "default_protocol")]
    pub protocol: u32,
}

/// The first line of a conversation with an agent that is not an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AskBack {
    /// What is asked for.
    pub send_back: SendBack,
}

/// A copy of the source that was made before the source was renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RenamedFrom {
    /// The dataset of the copy.
    pub dataset: DatasetName,
    /// The source's name when the copy was made.
    pub source_dataset: DatasetName,
    /// The guid of a snapshot that source and copy have in common.
    pub guid: Guid,
    /// Whether the destination is the copy of another dataset, whose name was exchanged with the source's. The two
    /// copies then exchange their names as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exchange: bool,
    /// Whether the destination is the copy of another dataset, which gives way: it gets a name in between, and another
    /// order renames it from there. So more than two copies can exchange their names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub displace: bool,
}

/// A snapshot that is to be destroyed, as the director knows it from a listing. The listing may have come from another
/// host than the one that has the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExpectedSnapshot {
    /// Its guid.
    pub guid: Guid,
    /// The transaction group of its host's pool in which it was made.
    pub createtxg: u64,
    /// When it was taken.
    #[serde(with = "chrono::serde::ts_seconds")]
    pub creation: DateTime<Utc>,
}

/// The newest snapshot that a dataset has in common with another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CommonBase {
    /// The other host.
    pub host: HostName,
    /// The dataset there.
    pub dataset: DatasetName,
    /// The common snapshot's guid.
    pub guid: Guid,
    /// Whether newer snapshots are still to be sent there, and therefore must be kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub awaits: bool,
}

/// One line from an agent to a director.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AgentLine {
    /// The result of the order. Always the last line.
    Response(Response),
    /// The order is running.
    Progress {
        /// The progress so far.
        #[serde(rename = "Progress")]
        progress: Progress,
    },
    /// Something to be recorded in the catalog.
    Facts {
        /// The facts.
        #[serde(rename = "Facts")]
        facts: Box<Facts>,
    },
}

/// The progress of a transfer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Progress {
    /// The bytes of the stream sent so far.
    pub bytes: u64,
    /// The approximate total, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
    /// What the order waits for before it can continue, such as a slot.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text::optional")]
    pub waits_for: Option<String>,
}

/// Changes that an order made or found. An order may send several lines of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Facts {
    /// Snapshots that were taken, or that already existed with the order's name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<(DatasetName, Snapshot)>,
    /// Datasets of which no snapshot was taken, because nothing was written to them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_written: Vec<(DatasetName, NotWritten)>,
    /// Snapshots that no longer exist.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destroyed: Vec<(DatasetName, Guid)>,
    /// The listing of a dataset, or a part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listing: Option<Listing>,
    /// Pools that could not be listed, each with the reason.
    #[serde(skip_serializing_if = "UnlistedPools::is_empty", deserialize_with = "text::by_pool")]
    pub unlisted: UnlistedPools,
    /// What local.json of the host permits, if the order only asks (`ReadOnly`): every entry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub permits: Vec<Permit>,
}

/// What an entry of local.json permits for its dataset and those below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Permit {
    /// The entry's dataset.
    pub dataset: DatasetName,
    /// Whether it may be touched at all.
    pub enable: bool,
    /// Whether it may receive.
    pub slave: bool,
    /// Whether snapshots of it may be taken.
    pub take: bool,
    /// Whether its snapshots must not be destroyed.
    pub append_only: bool,
    /// Whether it may be rolled back and replaced.
    pub rollback: bool,
    /// The hosts that it may receive from; if missing, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<HostName>>,
    /// The hosts that it may be sent to; if missing, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destinations: Option<Vec<HostName>>,
}

/// The listing of a dataset, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listing {
    /// The host that has the dataset.
    pub host: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// Whether this continues the previous line, with more of the same dataset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continued: bool,
    /// The content of the dataset.
    pub inventory: DatasetInventory,
}

impl Listing {
    /// Divides the listing of a dataset into parts that each fit into a line.
    #[must_use]
    pub fn parts(host: &HostName, dataset: &DatasetName, mut inventory: DatasetInventory) -> Vec<Self> {
        let mut parts = Vec::new();
        loop {
            let mut rest = DatasetInventory::default();
            if inventory.snapshots.len() > PER_LINE {
                rest.snapshots = inventory.snapshots.split_off(PER_LINE);
                // What is in the trash goes with its snapshots.
                if let Some(trashed) = &mut inventory.trashed {
                    let here: BTreeSet<Guid> = inventory.snapshots.iter().map(|s| s.guid).collect();
                    rest.trashed = Some(trashed.extract_if(.., |of| !here.contains(&of.guid)).collect());
                }
            }
            let remaining = PER_LINE - inventory.snapshots.len();
            if inventory.bookmarks.len() > remaining {
                rest.bookmarks = inventory.bookmarks.split_off(remaining);
            }
            let more = !rest.snapshots.is_empty() || !rest.bookmarks.is_empty();
            let continued = !parts.is_empty();
            parts.push(Self { host: host.clone(), dataset: dataset.clone(), continued, inventory });
            if !more {
                return parts;
            }
            inventory = rest;
        }
    }
}
