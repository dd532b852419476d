//! What the director remembers between passes: every host's snapshots, marks that ZFS does not know, and how
//! orders ended.
//!
//! ZFS itself is the truth; a catalog is a cache that can be deleted and is rebuilt from the hosts. The embedded one
//! is written by the director alone; in Consul every host writes what it knows of itself, by the same calls. All calls
//! block: asynchronous callers make them on a thread of their own. Nothing here reads a clock.

pub mod consul;
mod dataset;
mod difference;
pub mod embedded;
mod error;
pub mod file;
#[cfg(any(test, feature = "test-support"))]
pub mod memory;
mod merge;
pub mod open;
mod rows;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::{
    Action, DatasetInventory, DatasetName, Guid, HostInventory, HostName, Inventory, Marks, NotWritten, OrderId, Place,
    Record, ResponseStatus, SnapName, Snapshot,
};
pub use consul::{ConsulCatalog, Generations, Published};
pub use dataset::apply;
pub use difference::differences;
pub use embedded::{EmbeddedCatalog, EmbeddedReader, Holder};
pub use error::CatalogError;
#[cfg(any(test, feature = "test-support"))]
pub use memory::MemoryCatalog;

/// How old a mark is when the director forgets it: older than any `catch_up`, and than most people look back for.
pub const FORGET_AFTER: TimeDelta = TimeDelta::days(30);
/// How many outcomes a catalog keeps; the oldest go first.
pub const MAX_OUTCOMES: usize = 10_000;
/// How many records of destroyed snapshots a catalog keeps; the oldest go first.
pub const MAX_DESTROYED: usize = 100_000;

/// Reading a catalog.
pub trait CatalogRead: Send + Sync {
    /// Everything known of every host, as it was at one instant. Snapshots destroyed by an order are not in it.
    fn inventory(&self) -> Result<Inventory, CatalogError>;

    /// What is known of one host; `None` if it was never seen.
    fn host(&self, host: &HostName) -> Result<Option<HostInventory>, CatalogError>;

    /// What hosts have written themselves since `since`, which is brought up to date; `None`: hosts do not write to
    /// this catalog, and each has to be asked.
    fn published(
        &self,
        _wanted: &BTreeSet<HostName>,
        _since: &mut Generations,
    ) -> Result<Option<Published>, CatalogError> {
        Ok(None)
    }

    /// How the latest orders ended, newest first, at most `limit`.
    fn outcomes(&self, limit: usize) -> Result<Vec<Outcome>, CatalogError>;

    /// The `#deleted` records of snapshots destroyed by an order, newest first, at most `limit`.
    fn destroyed(&self, limit: usize) -> Result<Vec<Destroyed>, CatalogError>;

    /// What agents estimated for the latest plan, by the question that they were asked. A catalog need not keep it.
    fn estimates(&self) -> Result<BTreeMap<Uuid, Estimated>, CatalogError> {
        Ok(BTreeMap::new())
    }
}

/// Writing a catalog. Each call happens as a whole or not at all, also when the process is killed.
pub trait CatalogWrite: CatalogRead {
    /// Replaces what is known of a host by a whole listing of its ZFS, which was made at `observed`.
    ///
    /// What only the catalog knows stays: `#sent` and `#sync` by guid, and the `#NotWritten` marks of datasets
    /// that still exist. Marks that the listing carries are added.
    fn replace_host(
        &self,
        host: &HostName,
        observed: DateTime<Utc>,
        datasets: Vec<(DatasetName, DatasetInventory)>,
    ) -> Result<(), CatalogError>;

    /// Makes changes to datasets of one host, in this order; marks stay as above.
    fn update(&self, host: &HostName, changes: Vec<(DatasetName, Change)>) -> Result<(), CatalogError>;

    /// Forgets `#deleted` records and `#NotWritten` marks made before `older_than`, and marks of that age whose
    /// snapshots are not there any more. Returns how many.
    fn forget_marks(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError>;

    /// Remembers how an order ended.
    fn record_outcome(&self, outcome: &Outcome) -> Result<(), CatalogError>;

    /// Writes what was only noted down so far, durably. A catalog may collect outcomes until then.
    fn flush(&self) -> Result<(), CatalogError> {
        Ok(())
    }

    /// Remembers what agents estimated for a plan, instead of what is remembered of an earlier one.
    fn replace_estimates(&self, _estimates: &BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        Ok(())
    }
}

/// One change to what is known of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The dataset as it was listed. Snapshots that an order destroyed are to be marked first, while their names are
    /// known.
    Listed(DatasetInventory),
    /// It does not exist any more. Nothing happens if it was not known.
    Gone,
    /// A snapshot was taken, and nothing was written since.
    Taken(Snapshot),
    /// Adds marks to a snapshot, also to one that no listing has shown yet; what is `false` stays as it is.
    ///
    /// `deleted` moves the snapshot from the inventory to the history. One that is not in the inventory has no
    /// name and leaves no record.
    Mark {
        /// The snapshot.
        guid: Guid,
        /// What is added.
        marks: Marks,
        /// Since when.
        at: DateTime<Utc>,
    },
    /// A slot made no snapshot because nothing had been written.
    NotWritten(NotWritten),
}

/// What an order would send or free, as an agent answered when it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimated {
    /// When.
    pub at: DateTime<Utc>,
    /// Bytes; `None` where nobody could tell.
    pub bytes: Option<u64>,
    /// Why nobody could, or what the agent would leave out.
    pub remark: String,
}

/// How one order ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The order.
    pub order_id: OrderId,
    /// When it ended.
    pub at: DateTime<Utc>,
    /// The host that carried it out, or was to.
    pub host: HostName,
    /// What it asked for.
    pub action: Action,
    /// The dataset on that host; `None` for a listing of everything.
    pub dataset: Option<DatasetName>,
    /// The snapshot taken, sent, or destroyed; `None` when there was none or there were several.
    pub snapshot: Option<SnapName>,
    /// Where it was sent to.
    pub to: Option<Place>,
    /// Whether what was asked for is so.
    pub success: bool,
    /// How, beyond that.
    pub status: Option<ResponseStatus>,
    /// Bytes that went over the wire or through the pipe.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// What went wrong.
    pub error: Option<String>,
}

/// A snapshot that an order destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destroyed {
    /// The host that it was on.
    pub host: HostName,
    /// The snapshot with its last marks, `#deleted` among them.
    pub record: Record,
    /// When it was destroyed.
    pub at: DateTime<Utc>,
}

#[cfg(test)]
mod tests;
