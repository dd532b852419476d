//! Defines the messages between an agent and a slave.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::{
    DatasetInventory, DatasetKind, DatasetName, DatasetStatus, Guid, HostName, KeyConflict, OnDivergence, OrderId,
    ResponseStatus, SendFlags, SnapName, SourceRecord,
};
use crate::wire::{RenamedFrom, default_protocol, text};

/// The first line from an agent to a slave, which says what it wants to send; zeplic's `ZFSOrderToSlave` (for its
/// slave, `ZFSOrderFromAgent`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OrderToSlave {
    /// The sending host.
    pub source: HostName,
    /// The director's order.
    #[serde(rename = "OrderUUID")]
    pub order_uuid: OrderId,
    /// The snapshot that the destination is to reach.
    #[serde(rename = "SnapshotUUID")]
    pub snapshot_uuid: String,
    /// Its name, without the dataset and `@`.
    pub snapshot_name: SnapName,
    /// The dataset to receive into.
    pub dest_dataset: DatasetName,
    /// The protocol's version.
    #[serde(default = "default_protocol")]
    pub protocol: u32,
    /// The dataset that is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_dataset: Option<DatasetName>,
    /// Whether the director permits a rollback.
    #[serde(default)]
    pub rollback_if_needed: bool,
    /// Whether a rollback may destroy snapshots.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback_may_destroy: bool,
    /// What to do if the dataset cannot receive an increment, and may not be rolled back.
    #[serde(default, skip_serializing_if = "OnDivergence::is_stop")]
    pub on_divergence: OnDivergence,
    /// For a clone, the snapshot that can be its origin on the receiving host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CloneOf>,
    /// The copy from before the source was renamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<RenamedFrom>,
    /// The creation of the oldest snapshot that the destination lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_unsent: Option<DateTime<Utc>>,
    /// By when the transfer has to begin to meet the deadline of its policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_by: Option<DateTime<Utc>>,
}

/// A snapshot that can be the origin of a clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CloneOf {
    /// The dataset of the snapshot.
    pub dataset: DatasetName,
    /// The guid of the snapshot.
    pub guid: Guid,
}

/// What an agent has to know about the receiving side, besides the content of the dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DestinationInfo {
    /// Whether a new dataset would be encrypted with a key of the receiving side.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encrypts: bool,
    /// Whether the slave wants the properties of the source.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub wants_properties: bool,
    /// Whether the order's `CloneOf` exists, and may be cloned.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub has_origin: bool,
    /// Whether the dataset is empty, and the slave made it only to contain others. Then it gives way to the copy.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_placeholder: bool,
    /// Whether a partial receive has created the dataset encrypted with a key that it inherits from a raw copy above.
    /// Nothing that is not raw may be received there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub has_foreign_partial: bool,
    /// Why the copy cannot take raw increments, if its key prevents that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_conflict: Option<KeyConflict>,
    /// Whether frames may be compressed with zstd.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub takes_zstd: bool,
}

/// The content of the slave's dataset, in one or more lines; zeplic's `ZFSListUUIDsToAgent` (for its agent,
/// `ZFSListUUIDsFromSlave`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ListUuids {
    /// The UUIDs of the snapshots in this line.
    #[serde(rename = "MapUUID")]
    pub map_uuid: Vec<String>,
    /// The status of the dataset; only in the first line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<DatasetStatus>,
    /// What the agent has to know about the receiving side; only in the first line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<DestinationInfo>,
    /// Why the agent may not send, for the statuses 3, 4 and 5, or why it cannot send now.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "text::text")]
    pub error: String,
    /// What an administrator can do about it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text::optional")]
    pub hint: Option<String>,
    /// The content of the dataset in this line; `None` if the dataset does not exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory: Option<DatasetInventory>,
    /// Whether another line follows.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

impl ListUuids {
    /// Whether the UUIDs are those of the snapshots in the same line. Both lists must agree, so a line in which they
    /// differ was damaged in transit.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let snapshots = self.inventory.iter().flat_map(|inventory| &inventory.snapshots);
        self.inventory.is_none() || snapshots.map(|s| s.guid.uuid().to_string()).eq(self.map_uuid.iter().cloned())
    }
}

/// A request of an agent to a slave. A conversation consists of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "Step", rename_all = "snake_case", rename_all_fields = "PascalCase")]
pub enum Step {
    /// Receive the stream that follows.
    Receive {
        /// The kind of stream: full or incremental.
        status: ResponseStatus,
        /// The snapshot that will be the newest one. Missing for a resumed stream, because only ZFS knows where it
        /// ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guid: Option<Guid>,
        /// The name of that snapshot.
        snapshot_name: SnapName,
        /// The kind of a new dataset; `None` for an increment or a resumed receive.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        create: Option<DatasetKind>,
        /// Whether an existing dataset without snapshots is replaced.
        #[serde(default)]
        overwrite: bool,
        /// Whether the dataset becomes a clone of the order's `CloneOf`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        cloned: bool,
        /// The send flags, to be recorded on the dataset.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        flags: Option<SendFlags>,
        /// Whether the receive must be one that cannot be resumed (without `-s`), because the pool refuses the other
        /// kind.
        #[serde(default, rename = "Unresumable", skip_serializing_if = "std::ops::Not::not")]
        is_unresumable: bool,
        /// The properties of the source, if the slave wants them.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        properties: BTreeMap<String, String>,
    },
    /// Roll back to the newest common snapshot.
    Rollback {
        /// The guid of that snapshot.
        guid: Guid,
        /// The newer snapshots, which the rollback destroys. If the dataset has other snapshots by then, the slave
        /// refuses.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        destroys: Vec<Guid>,
    },
    /// Rename the dataset, so that a new copy can be made. The response contains the new name.
    SetAside {
        /// The dataset's newest snapshot, if it has one. If the newest snapshot has changed by then, the slave refuses.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guid: Option<Guid>,
    },
    /// Rename the copy that the order's `RenamedFrom` describes.
    Follow,
    /// Discard the state of an interrupted receive.
    Abort,
    /// End the conversation: the dataset has everything up to `guid`, or no more can be sent.
    Finish {
        /// The result, for the slave's log.
        status: ResponseStatus,
        /// The newest common snapshot, which the slave holds until the next transfer.
        guid: Option<Guid>,
        /// The properties of the source, which the slave records on the copy.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recorded: Option<SourceRecord>,
    },
}

/// Reports that the receiver is still working while it has nothing else to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Alive {
    /// The bytes received so far.
    pub alive: u64,
    /// Whether the receiver refuses the rest of the stream. The response after the end of the stream has the reason.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// Whether the transfer waits until the receiver has a slot for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub queued: bool,
}
