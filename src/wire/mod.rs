//! What directors, agents and slaves say to each other: one JSON object a line, streams in frames.
//!
//! The types and fields of the ancestor keep their names and meaning; newer fields are optional, and unknown ones
//! are ignored, so that a plain order piped in with `nc` works.
//!
//! - director to agent: one [`DirectorsOrder`]; back: any number of [`AgentLine::Progress`] and
//!   [`AgentLine::Facts`], then one [`Response`].
//! - agent to slave: one [`OrderToSlave`]; back: [`ListUuids`]. Then, until the agent says `finish`: a [`Step`],
//!   for `receive` followed by the stream's frames; back: any number of [`Alive`], one [`Response`], [`ListUuids`].

pub mod codec;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::{
    Action, DatasetInventory, DatasetKind, DatasetName, DatasetStatus, Guid, HostName, NotWritten, OnDivergence,
    OrderId, ResponseStatus, SendFlags, SnapName, Snapshot,
};

/// Version 1: the ancestor's messages, on one connection, with listings, steps and framed streams.
pub const PROTOCOL: u32 = 1;

/// The longest line, in bytes.
pub const LONGEST_LINE: usize = 1 << 20;
/// How many snapshots or datasets one line tells of at the most, to stay below [`LONGEST_LINE`]: at worst 700 bytes
/// each.
pub const PER_LINE: usize = 1000;

fn protocol() -> u32 {
    PROTOCOL
}

/// The ancestor's `ZFSDirectorsOrder`. What the fields mean for each action: zsync(8), "ORDERS".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DirectorsOrder {
    /// The order's identity.
    #[serde(rename = "OrderUUID")]
    pub order_uuid: OrderId,
    /// What to do.
    pub action: Action,
    /// The receiving host.
    #[serde(default)]
    pub destination: String,
    /// UUIDs, or records `uuid:dataset@name`.
    #[serde(default, rename = "SnapshotUUID")]
    pub snapshot_uuid: Vec<String>,
    /// The name after `@`.
    #[serde(default)]
    pub snapshot_name: String,
    /// The dataset to snapshot, to receive into, or to list.
    #[serde(default)]
    pub dest_dataset: String,
    /// Whether a diverged destination may be rolled back.
    #[serde(default)]
    pub rollback_if_needed: bool,
    /// Whether renamed snapshots are left alone.
    #[serde(default)]
    pub skip_if_renamed: bool,
    /// Whether unwritten datasets get no snapshot.
    #[serde(default)]
    pub skip_if_not_written: bool,
    /// Whether snapshots with clones are left alone.
    #[serde(default)]
    pub skip_if_cloned: bool,
    /// The protocol's version.
    #[serde(default = "protocol")]
    pub protocol: u32,
    /// take_snapshot: datasets to snapshot in the same step, besides `DestDataset`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<DatasetName>,
    /// send_snapshot: the dataset that the snapshot is of; looked for when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetName>,
    /// send_snapshot: the slave's `host:port`; by default the destination's name and the usual port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_address: Option<String>,
    /// send_snapshot: whether a rollback may destroy snapshots that only the destination has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback_may_destroy: bool,
    /// send_snapshot: what becomes of a destination that cannot take an increment, and may not be rolled back.
    #[serde(default, skip_serializing_if = "OnDivergence::is_stop")]
    pub on_divergence: OnDivergence,
    /// send_snapshot: for a clone, the dataset there that has what the origin's dataset sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_dataset: Option<DatasetName>,
    /// send_snapshot: where the destination has what came from the source before that was renamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<RenamedFrom>,
    /// send_snapshot: every place that the dataset is sent to, if known: holds for others are left over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<(HostName, DatasetName)>,
    /// Which director gives the order, where several share a catalog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// destroy_snapshot: what must stay common with other hosts, checked where the destroy runs. estimate_send: what the
    /// destination has; nothing without it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep_common_with: Vec<CommonBase>,
    /// How many seconds it is tried again when it fails for a reason that may pass; 20 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_for: Option<u64>,
    /// send_snapshot: when the oldest snapshot was taken that the destination lacks. Who waits longest goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_unsent: Option<DateTime<Utc>>,
    /// estimate_send: what the destination can go on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_token: Option<String>,
    /// kv_resync: list all anew, also what has not changed by ZFS' word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anew: bool,
}

/// A director's place among those of the same catalog: who has the lock has the highest index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Fence {
    /// The catalog: another one when Consul has lost everything.
    pub catalog: uuid::Uuid,
    /// Consul's index of the moment at which the lock was taken.
    pub index: u64,
}

/// A copy under the name that its source had before it was renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RenamedFrom {
    /// The copy.
    pub dataset: DatasetName,
    /// The source's name when the copy was made.
    pub source_dataset: DatasetName,
    /// A snapshot that both have.
    pub guid: Guid,
}

/// A snapshot from which a clone can be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CloneOf {
    /// Its dataset.
    pub dataset: DatasetName,
    /// Its guid.
    pub guid: Guid,
}

/// What an agent has to know of the place that receives, besides what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Place {
    /// Whether a new dataset would be encrypted there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encrypts: bool,
    /// Whether the source's properties are asked for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub wants_properties: bool,
    /// Whether the order's `CloneOf` is there, and may be cloned.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub has_origin: bool,
    /// Whether frames may be compressed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub takes_zstd: bool,
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
    /// Whether what is newer than it is still to come there, and stays until then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub awaits: bool,
}

/// What an agent says to a director.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AgentLine {
    /// How the order ended; the last line.
    Response(Response),
    /// The order is being carried out.
    Progress {
        /// How far it is.
        #[serde(rename = "Progress")]
        progress: Progress,
    },
    /// Something that the catalog should know.
    Facts {
        /// What.
        #[serde(rename = "Facts")]
        facts: Box<Facts>,
    },
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Progress {
    /// Bytes of the stream so far.
    pub bytes: u64,
    /// Bytes that there are to be in all, about; missing where nobody can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
}

/// Changes that an order made or found; several lines of them add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Facts {
    /// Snapshots that were taken, or were there already under the order's name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<(DatasetName, Snapshot)>,
    /// Datasets left out because nothing was written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_written: Vec<(DatasetName, NotWritten)>,
    /// Snapshots that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destroyed: Vec<(DatasetName, Guid)>,
    /// A dataset, or a part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listing: Option<Listing>,
}

/// A dataset as it was listed, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listing {
    /// Whose dataset.
    pub host: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// Whether further snapshots of the same dataset were told before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continued: bool,
    /// What it holds.
    pub inventory: DatasetInventory,
}

impl Listing {
    /// A dataset as listings that each fit on a line.
    #[must_use]
    pub fn parts(host: &HostName, dataset: &DatasetName, mut inventory: DatasetInventory) -> Vec<Self> {
        let mut parts = Vec::new();
        loop {
            let mut rest = DatasetInventory::default();
            if inventory.snapshots.len() > PER_LINE {
                rest.snapshots = inventory.snapshots.split_off(PER_LINE);
            }
            let room = PER_LINE - inventory.snapshots.len();
            if inventory.bookmarks.len() > room {
                rest.bookmarks = inventory.bookmarks.split_off(room);
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

/// The ancestor's `ZFSOrderToSlave` (there `ZFSOrderFromAgent` at the other end).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OrderToSlave {
    /// The sending host.
    pub source: HostName,
    /// The order that this is part of.
    #[serde(rename = "OrderUUID")]
    pub order_uuid: OrderId,
    /// The snapshot to arrive at.
    #[serde(rename = "SnapshotUUID")]
    pub snapshot_uuid: String,
    /// Its name after `@`.
    pub snapshot_name: SnapName,
    /// The dataset to receive into.
    pub dest_dataset: DatasetName,
    /// The protocol's version.
    #[serde(default = "protocol")]
    pub protocol: u32,
    /// The dataset that it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_dataset: Option<DatasetName>,
    /// Whether the director allowed a rollback.
    #[serde(default)]
    pub rollback_if_needed: bool,
    /// Whether it may destroy snapshots.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback_may_destroy: bool,
    /// What becomes of a dataset that cannot take an increment otherwise.
    #[serde(default, skip_serializing_if = "OnDivergence::is_stop")]
    pub on_divergence: OnDivergence,
    /// For a clone: what its origin may be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CloneOf>,
    /// Where the copy may be under the name that the source had before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<RenamedFrom>,
    /// When the oldest snapshot was taken that the destination lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_unsent: Option<DateTime<Utc>>,
}

/// The ancestor's `ZFSListUUIDsToAgent` (there `ZFSListUUIDsFromSlave` at the other end), in as many lines as it
/// takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ListUuids {
    /// The snapshots' UUIDs, as far as this line goes.
    #[serde(rename = "MapUUID")]
    pub map_uuid: Vec<String>,
    /// The state of the dataset; only on the first line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<DatasetStatus>,
    /// What the agent has to know of the place; only on the first line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Why it is not open, for 3, 4 and 5.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// The way out of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What the dataset holds, as far as this line goes; `None` where it does not exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory: Option<DatasetInventory>,
    /// Whether another line follows.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// What an agent asks of a slave within a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "Step", rename_all = "snake_case", rename_all_fields = "PascalCase")]
pub enum Step {
    /// Receive the stream that follows.
    Receive {
        /// Full, Incremental.
        status: ResponseStatus,
        /// The snapshot that will be the dataset's newest; missing for a resumed stream, whose end only ZFS knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guid: Option<Guid>,
        /// Its name.
        snapshot_name: SnapName,
        /// What a new dataset becomes; `None` for an increment or a resumed receive.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        create: Option<DatasetKind>,
        /// Whether an existing dataset without snapshots is replaced.
        #[serde(default)]
        overwrite: bool,
        /// Whether it becomes a clone of what the order says in `CloneOf`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        cloned: bool,
        /// What the blocks look like, to be noted on the dataset.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        flags: Option<SendFlags>,
        /// The source's properties, where they were asked for.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        properties: BTreeMap<String, String>,
    },
    /// Roll back to the newest common snapshot.
    Rollback {
        /// The snapshot's guid.
        guid: Guid,
        /// The newer ones, which are lost by that; if there are others by now, nothing is done.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        destroys: Vec<Guid>,
    },
    /// Rename the dataset, so that the copy can begin anew. The answer tells the new name.
    SetAside {
        /// Its newest snapshot, if it has any; if that is another one by now, nothing is done.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guid: Option<Guid>,
    },
    /// Rename the copy as the source was renamed: the order's `RenamedFrom`.
    Follow,
    /// Throw away what an interrupted receive left.
    Abort,
    /// The end: everything up to `guid` is there, or nothing more is to come.
    Finish {
        /// How it ended, for the slave's log.
        status: ResponseStatus,
        /// The newest common snapshot, to be held until the next transfer.
        guid: Option<Guid>,
    },
}

/// Says that a receiver still works while it has nothing else to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Alive {
    /// Bytes received so far.
    pub alive: u64,
    /// Whether the rest of the stream is not wanted; why is told after its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
}

/// The ancestor's `ZFSResponseToAgent` (there `ZFSResponseFromSlave` at the other end): how an order or a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Response {
    /// The order.
    #[serde(rename = "OrderUUID")]
    pub order_uuid: Option<OrderId>,
    /// Whether what was wanted is so now.
    pub is_success: bool,
    /// How.
    pub status: ResponseStatus,
    /// What went wrong, or a remark.
    #[serde(default)]
    pub error: String,
    /// The way out of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether trying again later may help.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub temporary: bool,
    /// Whether the agent could not write what it did to the shared catalog yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unpublished: bool,
    /// Bytes that were transferred.
    #[serde(default)]
    pub bytes: u64,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub millis: u64,
    /// Bytes that would be sent, or freed, of an estimate; missing where ZFS cannot tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<u64>,
}

impl Response {
    /// A success.
    #[must_use]
    pub fn success(order: OrderId, status: ResponseStatus, remark: impl Into<String>) -> Self {
        Self {
            order_uuid: Some(order),
            is_success: true,
            status,
            error: remark.into(),
            hint: None,
            temporary: false,
            unpublished: false,
            bytes: 0,
            millis: 0,
            estimate: None,
        }
    }

    /// A failure.
    #[must_use]
    pub fn failure(order: Option<OrderId>, status: ResponseStatus, error: impl Into<String>) -> Self {
        Self {
            order_uuid: order,
            is_success: false,
            status,
            error: error.into(),
            hint: None,
            temporary: false,
            unpublished: false,
            bytes: 0,
            millis: 0,
            estimate: None,
        }
    }

    /// The error or remark, with the hint after it: for where there is one text for both.
    #[must_use]
    pub fn message(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}; {hint}", self.error),
            None => self.error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ancestors_order_is_understood() {
        let order: DirectorsOrder = serde_json::from_str(
            r#"{"OrderUUID":"9b2c1c4e-1111-4222-8333-0123456789ab","Action":"take_snapshot","Destination":"",
                "SnapshotUUID":[],"SnapshotName":"BACKUP_2017-July-01_10:30:00","DestDataset":"tank/foo",
                "RollbackIfNeeded":false,"SkipIfRenamed":true,"SkipIfNotWritten":true,"SkipIfCloned":true}"#,
        )
        .unwrap();
        assert_eq!((order.action, order.protocol, order.skip_if_cloned), (Action::TakeSnapshot, 1, true));
        assert!(order.datasets.is_empty() && order.dataset.is_none());
    }

    #[test]
    fn the_ancestors_field_names_are_kept() {
        let response = Response::success(OrderId(uuid::Uuid::nil()), ResponseStatus::NothingToDo, "");
        assert_eq!(
            serde_json::to_string(&response).unwrap(),
            r#"{"OrderUUID":"00000000-0000-0000-0000-000000000000","IsSuccess":true,"Status":3,"Error":"","Bytes":0,"Millis":0}"#
        );
        let list = ListUuids { status: Some(DatasetStatus::False), ..ListUuids::default() };
        assert_eq!(serde_json::to_string(&list).unwrap(), r#"{"MapUUID":[],"Status":2}"#);
    }

    #[test]
    fn hint_is_a_field_of_its_own_and_optional() {
        let failure = Response::failure(None, ResponseStatus::Refused, "no");
        assert!(!serde_json::to_string(&failure).unwrap().contains("Hint"));
        let failure = Response { hint: Some("ask again".into()), ..failure };
        let text = serde_json::to_string(&failure).unwrap();
        assert!(text.contains(r#""Error":"no","Hint":"ask again""#), "{text}");
        assert_eq!(serde_json::from_str::<Response>(&text).unwrap().message(), "no; ask again");
    }

    #[test]
    fn agent_lines_are_told_apart() {
        for line in [
            AgentLine::Progress { progress: Progress { bytes: 7, expected: None } },
            AgentLine::Facts { facts: Box::default() },
            AgentLine::Response(Response::failure(None, ResponseStatus::Refused, "no")),
        ] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<AgentLine>(&text).unwrap(), line, "{text}");
        }
    }

    #[test]
    fn a_listing_of_any_size_goes_in_lines_that_fit() {
        let snapshot = |n: u64| Snapshot {
            name: format!("S_{n}_{}", "x".repeat(200)).parse().unwrap(),
            guid: Guid(u64::MAX - n),
            createtxg: u64::MAX,
            creation: chrono::DateTime::UNIX_EPOCH,
            userrefs: u32::MAX,
            has_clones: true,
            used: u64::MAX,
            marks: crate::model::Marks { sent: true, sync: true, deleted: true },
        };
        let inventory =
            DatasetInventory { snapshots: (0..2500).map(snapshot).collect(), ..DatasetInventory::default() };
        let parts = Listing::parts(&"alpha".parse().unwrap(), &"tank/a".parse().unwrap(), inventory.clone());
        let lengths: Vec<usize> = parts.iter().map(|p| p.inventory.snapshots.len()).collect();
        assert_eq!(lengths, [1000, 1000, 500]);
        assert_eq!(parts.iter().map(|p| p.continued).collect::<Vec<_>>(), [false, true, true]);
        for part in &parts {
            assert!(serde_json::to_vec(part).unwrap().len() < LONGEST_LINE);
        }
    }
}
