//! The types that every other module shares: names, snapshots, inventories, places, orders.
//!
//! Values are checked once, when they are made, and trusted afterwards. Nothing here performs I/O or
//! reads a clock.

pub mod count;
pub mod counter;
pub mod expiry;
pub mod flags;
pub mod hint;
pub mod identity;
pub mod inventory;
pub mod key;
pub mod moment;
pub mod name;
pub mod order;
pub mod path_pattern;
pub mod place;
pub mod sent_to;
pub mod snapshot;
pub mod source_record;
pub mod tags;
pub mod turn;

pub use count::{counted, some_of};
pub use counter::Counter;
pub use expiry::CertificateExpiry;
pub use flags::SendFlags;
pub use identity::{Identity, PeerRole, TlsFiles};
pub use inventory::{
    DatasetInventory, DatasetKind, HostInventory, HostListing, Inventory, NotWritten, Origin, Trashed, Unchanged,
    UnlistedPools,
};
pub use key::{KeyConflict, KeyJoin, KeyState};
pub use moment::in_utc;
pub use name::{DatasetName, HostName, NameError, Prefix, SnapName};
pub use order::{Action, DatasetStatus, OnDivergence, OrderId, ResponseStatus};
pub use place::{Place, SetAside};
pub use sent_to::SentTo;
pub use snapshot::{Bookmark, Guid, Marks, Record, Snapshot, SnapshotId};
pub use source_record::SourceRecord;
pub use turn::Turn;
