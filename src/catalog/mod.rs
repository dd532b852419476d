//! The catalog is what the director remembers between passes: every host's snapshots, marks that ZFS does not store,
//! and how orders ended.
//!
//! ZFS holds the truth. A catalog is a cache: it can be deleted, and the next pass rebuilds it from the hosts. There
//! are three kinds, all behind [`CatalogRead`] and [`CatalogWrite`]:
//!
//! - [`embedded`]: a SQLite file that only the director writes;
//! - [`consul`]: pairs in Consul, where every host publishes its own datasets;
//! - `memory`: for one process and for tests.
//!
//! [`mod@file`] reads and writes a catalog as text. For catalogs that store whole datasets, `dataset` has the rules by
//! which a [`Change`] alters a dataset. [`open`] opens the catalog that a policy names.
//!
//! All calls block, so asynchronous callers make them on a separate thread. Nothing here reads a clock.

pub mod consul;
mod dataset;
mod difference;
pub mod embedded;
mod error;
pub mod file;
mod holder;
#[cfg(any(test, feature = "test-support"))]
pub mod memory;
pub mod open;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::{
    Action, DatasetInventory, DatasetName, Guid, HostInventory, HostListing, HostName, Inventory, Marks, NotWritten,
    OrderId, Place, Record, ResponseStatus, SnapName, Snapshot,
};
pub use consul::ConsulCatalog;
pub(crate) use dataset::apply;
pub use difference::differences;
pub use embedded::{EmbeddedCatalog, EmbeddedReader};
pub use error::CatalogError;
pub use holder::Holder;
#[cfg(any(test, feature = "test-support"))]
pub use memory::MemoryCatalog;

/// Marks older than this are forgotten, and hosts that the policy no longer names. It is longer than the default `catch_up`, and longer than most administrators
/// look back.
pub(crate) const FORGET_AFTER: TimeDelta = TimeDelta::days(30);
/// How many outcomes the catalog of a director keeps. The oldest are dropped first.
pub(crate) const MAX_OUTCOMES: usize = 10_000;
/// How many records of destroyed snapshots the catalog of a director keeps. The oldest are dropped first.
pub(crate) const MAX_DESTROYED: usize = 100_000;

/// The generation of each host that was read: Consul's index of the pair that stores it.
pub type Generations = BTreeMap<HostName, u64>;

/// What hosts have published in a shared catalog.
#[derive(Debug, Default)]
pub struct Published {
    /// Current state of the hosts that changed since the last call. If the records of a host are not reliable, its
    /// `observed` is `None`.
    pub changed: BTreeMap<HostName, HostInventory>,
    /// Hosts whose records are complete, changed or not.
    pub whole: BTreeSet<HostName>,
}

/// Read access to a catalog.
pub trait CatalogRead: Send + Sync {
    /// Returns everything known of every host, as of one instant, without the snapshots that orders destroyed.
    fn inventory(&self) -> Result<Inventory, CatalogError>;

    /// Returns what is known of one host, or `None` if the host was never seen.
    fn host(&self, host: &HostName) -> Result<Option<HostInventory>, CatalogError>;

    /// Returns what the hosts themselves have written since `since`, and updates `since`. `None` means that hosts do
    /// not write to this catalog, so that each of them has to be polled.
    fn published(
        &self,
        _wanted: &BTreeSet<HostName>,
        _since: &mut Generations,
    ) -> Result<Option<Published>, CatalogError> {
        Ok(None)
    }

    /// Returns how the latest orders ended, newest first, at most `limit` of them.
    fn outcomes(&self, limit: usize) -> Result<Vec<Outcome>, CatalogError>;

    /// Returns the `#deleted` records of snapshots that an order destroyed, newest first, at most `limit` of them.
    fn destroyed(&self, limit: usize) -> Result<Vec<Destroyed>, CatalogError>;

    /// Returns the agents' estimates for the latest plan, by the UUID of the question to the agent. A catalog need not
    /// keep them.
    fn estimates(&self) -> Result<BTreeMap<Uuid, Estimated>, CatalogError> {
        Ok(BTreeMap::new())
    }
}

/// Write access to a catalog. Each call takes effect completely or not at all, even if the process is killed.
pub trait CatalogWrite: CatalogRead {
    /// Replaces what is known of a host with a complete listing of its ZFS, made at `observed`.
    ///
    /// The marks that only the catalog stores are kept: `#sent` and `#sync` by guid, and the `#NotWritten` marks of
    /// datasets that still exist. Marks in the listing are added to them.
    ///
    /// The datasets of pools that could not be listed stay as they are.
    fn replace_pools(&self, host: &HostName, observed: DateTime<Utc>, listing: HostListing)
    -> Result<(), CatalogError>;

    /// [`Self::replace_pools`] for a host whose pools were all listed.
    fn replace_host(
        &self,
        host: &HostName,
        observed: DateTime<Utc>,
        datasets: Vec<(DatasetName, DatasetInventory)>,
    ) -> Result<(), CatalogError> {
        self.replace_pools(host, observed, datasets.into())
    }

    /// Applies changes to datasets of one host, in the given order. [`Self::replace_host`] describes which marks
    /// are kept.
    fn update(&self, host: &HostName, changes: Vec<(DatasetName, Change)>) -> Result<(), CatalogError>;

    /// Deletes `#deleted` records and `#NotWritten` marks made before `older_than`, and marks of that age whose
    /// snapshots no longer exist. Returns how many were deleted.
    fn forget_marks(&self, older_than: DateTime<Utc>) -> Result<usize, CatalogError>;

    /// Deletes everything about the hosts that are not in `named`, if the newest of it is older than `older_than`:
    /// listings, marks, `#deleted` records and outcomes. Hosts about which no time is known are kept. Returns the hosts
    /// that were deleted.
    fn forget_hosts(
        &self,
        named: &BTreeSet<HostName>,
        older_than: DateTime<Utc>,
    ) -> Result<BTreeSet<HostName>, CatalogError>;

    /// Records how an order ended.
    fn record_outcome(&self, outcome: &Outcome) -> Result<(), CatalogError>;

    /// Makes everything recorded so far durable. A catalog may buffer outcomes until this call.
    fn flush(&self) -> Result<(), CatalogError> {
        Ok(())
    }

    /// Why what is written is kept in memory only, if there is no room for the catalog on the disk.
    fn unsaved(&self) -> Option<String> {
        None
    }

    /// Replaces the stored estimates with those of a new plan.
    fn replace_estimates(&self, _estimates: &BTreeMap<Uuid, Estimated>) -> Result<(), CatalogError> {
        Ok(())
    }
}

/// One change to what is known of a dataset.
#[allow(clippy::large_enum_variant, reason = "most changes are listings")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The dataset was listed. Snapshots that an order destroyed have to be marked before this change, while the
    /// catalog still knows their names.
    Listed(DatasetInventory),
    /// The dataset no longer exists. Has no effect if the dataset was not known.
    Gone,
    /// A snapshot was taken, and nothing has been written to the dataset since.
    Taken(Snapshot),
    /// Adds marks to a snapshot, even to one that no listing has shown yet. Marks that are `false` are left unchanged.
    ///
    /// `deleted` moves the snapshot from the inventory to the history. A snapshot that is not in the inventory has no
    /// known name, and leaves no record.
    Mark {
        /// The snapshot to mark.
        guid: Guid,
        /// The marks to add.
        marks: Marks,
        /// When the marks were made.
        at: DateTime<Utc>,
    },
    /// No snapshot was taken in a slot, because nothing had been written.
    NotWritten(NotWritten),
}

/// An agent's estimate of how much an order would send or free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimated {
    /// When the agent answered.
    pub at: DateTime<Utc>,
    /// The number of bytes; `None` if ZFS reported none.
    pub bytes: Option<u64>,
    /// Why the number is unknown, or what the agent would leave out.
    pub remark: String,
}

/// How one order ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The order's identity.
    pub order_id: OrderId,
    /// When the order ended.
    pub at: DateTime<Utc>,
    /// The host that carried the order out, or should have.
    pub host: HostName,
    /// The action that was ordered.
    pub action: Action,
    /// The dataset on that host; `None` for a listing of the whole host.
    pub dataset: Option<DatasetName>,
    /// The snapshot taken, sent, or destroyed; `None` if there was none, or more than one.
    pub snapshot: Option<SnapName>,
    /// Where the snapshot was sent.
    pub to: Option<Place>,
    /// Whether the order succeeded.
    pub success: bool,
    /// The status that the agent reported.
    pub status: Option<ResponseStatus>,
    /// Bytes transferred over the network, or through the pipe within the host.
    pub bytes: u64,
    /// How long the order took.
    pub seconds: f64,
    /// The error if the order failed, or the remark of a success.
    pub error: Option<String>,
    /// What an administrator can do about the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A snapshot that an order destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destroyed {
    /// The host that had the snapshot.
    pub host: HostName,
    /// The snapshot with its last marks, `#deleted` among them.
    pub record: Record,
    /// When the snapshot was destroyed.
    pub at: DateTime<Utc>,
}

#[cfg(test)]
mod tests;
