//! Defines the interface to ZFS as two traits: [`ZfsRead`] reads, [`Zfs`] also changes.
//!
//! Code that must not change anything gets a `ZfsRead`, or a [`ReadOnly`] where it uses code that could. There are two
//! implementations: `system` runs the `zfs` command, `fake` keeps pools in memory for tests. Only `argv` knows the flags of the command, and only `parse` knows its
//! output.

mod argv;
mod error;
#[cfg(any(test, feature = "test-support"))]
pub mod fake;
pub mod inspect;
pub mod parse;
mod pipe;
mod read_only;
pub mod records;
mod snapshot_files;
pub mod system;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::io::{AsyncRead, AsyncWrite};

use crate::model::{
    Bookmark, Counter, DatasetInventory, DatasetName, Guid, HostListing, KeyState, SendFlags, SnapName, Snapshot,
};
pub use error::{ErrorKind, ZfsError};
pub use inspect::{ExpectedStream, Inspect};
pub use read_only::ReadOnly;
pub use snapshot_files::{Open, open_snapshot};

/// Which datasets a listing covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Only the named datasets.
    Only,
    /// The named datasets and everything below them.
    Recursive,
    /// The named datasets, without their snapshots and bookmarks.
    Bare,
    /// The named datasets, and the datasets that contain them, the latter without snapshots and bookmarks.
    Around,
}

/// Which columns a listing of datasets has besides the fixed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatasetColumns {
    /// The time when the dataset's snapshots last changed. OpenZFS has that property from 2.2 on.
    pub changed: bool,
    /// The user properties of zsync.
    pub user: bool,
}

/// Where a send starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendFrom {
    /// From nothing: a full send.
    Nothing,
    /// From a snapshot, including every snapshot in between (`-I`).
    Snapshot(SnapName),
    /// From the snapshot directly before the one to send (`-i`). This costs ZFS less at both ends than `-I`.
    Before(SnapName),
    /// From a bookmark to exactly one snapshot (`-i`).
    Bookmark(SnapName),
    /// From the origin of a clone, a snapshot of another dataset, to exactly one snapshot (`-i`).
    Origin(DatasetName, SnapName),
}

impl SendFrom {
    /// From a snapshot, including the intermediate snapshots if there are any.
    #[must_use]
    pub fn since(base: SnapName, intermediates: bool) -> Self {
        if intermediates { Self::Snapshot(base) } else { Self::Before(base) }
    }
}

/// One `zfs send`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendSpec {
    /// A send of a snapshot.
    Snapshot {
        /// The dataset of the snapshot.
        dataset: DatasetName,
        /// The snapshot to send.
        to: SnapName,
        /// What the receiver already has.
        from: SendFrom,
        /// The representation of the blocks in the stream.
        flags: SendFlags,
    },
    /// The rest of an interrupted receive.
    Resume {
        /// The receiver's `receive_resume_token`.
        token: String,
    },
}

/// The contents of a `receive_resume_token`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumable {
    /// The dataset that is sent, by its current name.
    pub dataset: DatasetName,
    /// The snapshot that the resumed receive completes.
    pub guid: Guid,
    /// Whether the stream is raw (`-w`).
    pub raw: bool,
}

/// One `zfs receive`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveSpec {
    /// The dataset to receive into.
    pub dataset: DatasetName,
    /// The properties to set on it (`-o`).
    pub properties: BTreeMap<String, String>,
    /// The local snapshot of which it becomes a clone.
    pub origin: Option<(DatasetName, SnapName)>,
    /// Whether to replace an existing dataset that has no snapshots (`-F`), which only the policy can allow.
    pub overwrite: bool,
    /// Whether the receive cannot be resumed (without `-s`). ZFS requires the pool's feature `extensible_dataset` for
    /// one that can.
    pub is_unresumable: bool,
}

/// A snapshot identified by its name and its guid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name after `@`.
    pub name: SnapName,
    /// The guid. A snapshot of this name with another guid is another snapshot.
    pub guid: Guid,
}

/// The result of destroying one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The snapshot was destroyed.
    Destroyed,
    /// No snapshot has this name.
    Gone,
    /// The name belongs to another snapshot, which was not destroyed.
    Another,
    /// It is held.
    Held,
    /// It has clones.
    Cloned,
    /// It is in use: mounted below `.zfs/snapshot`, where somebody is looking at it, or open as a volume.
    Busy,
    /// It could have been destroyed, but a guard was missing, or another snapshot could not be destroyed and the caller
    /// wanted all or none.
    Spared,
    /// ZFS failed with this error.
    Failed(String),
}

/// Completes when the process that reads or writes a stream has ended.
pub type End = Pin<Box<dyn Future<Output = Result<(), ZfsError>> + Send>>;

/// A running `zfs send`. Dropping it kills the process.
pub struct SendStream {
    /// The stream.
    pub data: Box<dyn AsyncRead + Send + Unpin>,
    /// The end of the process. Await it after the end of `data`.
    pub end: End,
}

/// A running `zfs receive`. Dropping it kills the process; the receive can be resumed.
pub struct ReceiveStream {
    /// The stream.
    pub data: Box<dyn AsyncWrite + Send + Unpin>,
    /// The end of the process. Await it after closing `data`.
    pub end: End,
}

/// A dataset with the contents of a listing.
pub type Listed = (DatasetName, DatasetInventory);

/// The datasets of an earlier listing.
pub type Known = Arc<BTreeMap<DatasetName, DatasetInventory>>;

/// The snapshots and bookmarks of one dataset, oldest first.
pub type History = (Vec<Snapshot>, Vec<Bookmark>);

/// Reads the state of ZFS.
pub trait ZfsRead: Send + Sync + 'static {
    /// Lists datasets with their snapshots and bookmarks. Datasets that do not exist are left out.
    fn list(&self, roots: &[DatasetName], depth: Depth) -> impl Future<Output = Result<Vec<Listed>, ZfsError>> + Send;

    /// Lists datasets with everything below them. If `known` was listed not long ago, and the snapshots of a dataset
    /// have not changed since then according to ZFS, they are taken from `known`. In that case, the bookmarks and holds
    /// of the dataset may be outdated.
    ///
    /// Pools are listed one by one. The call fails only if `zfs` itself cannot be used.
    fn list_pools(
        &self,
        roots: &[DatasetName],
        known: &Known,
    ) -> impl Future<Output = Result<HostListing, ZfsError>> + Send;

    /// Lists the snapshots and bookmarks of one dataset, for half the cost of [`list`](Self::list); `None` if the
    /// dataset does not exist.
    fn snapshots(&self, dataset: &DatasetName) -> impl Future<Output = Result<Option<History>, ZfsError>> + Send;

    /// Returns those of these snapshots of one dataset that have clones.
    fn cloned(
        &self,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> impl Future<Output = Result<Vec<SnapName>, ZfsError>> + Send;

    /// Returns the tags of the holds on these snapshots of one dataset.
    fn holds(
        &self,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> impl Future<Output = Result<Vec<(SnapName, String)>, ZfsError>> + Send;

    /// Returns how many bytes were written to each dataset since its snapshot of this name (`written@`). Datasets
    /// without such a snapshot are left out.
    fn written_since(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> impl Future<Output = Result<Vec<(DatasetName, u64)>, ZfsError>> + Send;

    /// Returns the contents of a `receive_resume_token`. An unusable token is an [`ErrorKind::StaleToken`].
    fn resumable(&self, token: &str) -> impl Future<Output = Result<Resumable, ZfsError>> + Send;

    /// Returns the properties that were set on this dataset itself, or received with it.
    fn properties(
        &self,
        dataset: &DatasetName,
    ) -> impl Future<Output = Result<BTreeMap<String, String>, ZfsError>> + Send;

    /// Returns the values of `zsync:arrived` of the snapshots of one dataset, where this host set them itself. A value
    /// that was received does not count.
    fn arrivals(
        &self,
        dataset: &DatasetName,
    ) -> impl Future<Output = Result<BTreeMap<SnapName, String>, ZfsError>> + Send;

    /// Returns the datasets below an encryption root that use its key.
    fn key_users(&self, root: &DatasetName) -> impl Future<Output = Result<Vec<DatasetName>, ZfsError>> + Send;

    /// Returns the keys of the encrypted datasets within a dataset, and above it.
    fn keys(
        &self,
        root: &DatasetName,
    ) -> impl Future<Output = Result<BTreeMap<DatasetName, KeyState>, ZfsError>> + Send;

    /// Estimates the size of a send in bytes; `None` if ZFS cannot. Nothing is sent.
    fn size_of_send(&self, spec: &SendSpec) -> impl Future<Output = Result<Option<u64>, ZfsError>> + Send;

    /// Returns how many bytes destroying these snapshots of one dataset would free; `None` if ZFS does not know.
    /// Nothing is destroyed.
    fn size_of_destroy(
        &self,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> impl Future<Output = Result<Option<u64>, ZfsError>> + Send;

    /// Returns the version of the `zfs` command, or an error if it is too old.
    fn check_version(&self) -> impl Future<Output = Result<String, ZfsError>> + Send;
}

/// Changes the state of ZFS. Operations are idempotent, or fail with an error that shows that there was nothing to do.
pub trait Zfs: ZfsRead {
    /// Takes one snapshot of each dataset atomically, and returns the snapshots and bookmarks of each. The datasets
    /// must belong to one pool.
    fn snapshot(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> impl Future<Output = Result<Vec<(DatasetName, History)>, ZfsError>> + Send;

    /// Writes the pending data of a dataset's pool to disk, because `written` does not count data that is still in
    /// memory. Does nothing if the user has no permission.
    fn sync(&self, dataset: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Destroys those of these snapshots of one dataset that have these guids and are neither held nor cloned, all
    /// checked at the moment of the destroy. If one of the `guards` does not exist, nothing is destroyed. With `all`,
    /// either all snapshots are destroyed or none. Returns one fate for each victim.
    fn destroy(
        &self,
        dataset: &DatasetName,
        victims: &[Named],
        guards: &[Named],
        all: bool,
    ) -> impl Future<Output = Result<Vec<Fate>, ZfsError>> + Send;

    /// Holds snapshots. Snapshots that already have the tag are no error.
    fn hold(
        &self,
        tag: &str,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Releases holds. Snapshots without this hold, or that do not exist, are no error.
    fn release(
        &self,
        tag: &str,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Makes a bookmark of a snapshot. An existing bookmark of this name is an error unless it is of the same snapshot.
    fn bookmark(
        &self,
        dataset: &DatasetName,
        snapshot: &Named,
        bookmark: &SnapName,
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Destroys a bookmark. A missing bookmark is no error.
    fn destroy_bookmark(
        &self,
        dataset: &DatasetName,
        bookmark: &SnapName,
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Rolls a dataset back to the snapshot `to`. Fails if that would destroy a newer snapshot or bookmark.
    fn rollback(&self, dataset: &DatasetName, to: &SnapName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Discards the partial state of an interrupted receive.
    fn abort_receive(&self, dataset: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Creates the missing ancestors of a dataset, unmounted.
    fn create_ancestors(&self, dataset: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Renames a dataset with everything below it. An existing dataset is never replaced.
    fn rename(&self, dataset: &DatasetName, to: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Makes a clone of a snapshot. The clone has these properties from the beginning. If it cannot be mounted, that is
    /// no error.
    fn make_clone(
        &self,
        dataset: &DatasetName,
        of: &SnapName,
        clone: &DatasetName,
        properties: &[(&str, &str)],
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Destroys a dataset that has no snapshots and nothing below it. The caller makes sure that it is the right clone.
    fn destroy_clone(&self, clone: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Sets one property of a dataset.
    fn set(
        &self,
        dataset: &DatasetName,
        property: &str,
        value: &str,
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Makes a dataset inherit a property again, or have its default.
    fn inherit(&self, dataset: &DatasetName, property: &str) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Makes a dataset with a key of its own use the key of the dataset above it. Both keys have to be loaded.
    fn inherit_key(&self, dataset: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Mounts a filesystem where its property `mountpoint` says. A filesystem that is mounted already is no error.
    fn mount(&self, dataset: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Sets `zsync:arrived` of snapshots of one dataset.
    fn set_arrivals(
        &self,
        dataset: &DatasetName,
        names: &[SnapName],
        value: &str,
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Starts a send.
    fn send(&self, spec: &SendSpec) -> impl Future<Output = Result<SendStream, ZfsError>> + Send;

    /// Starts a receive.
    fn receive(&self, spec: &ReceiveSpec) -> impl Future<Output = Result<ReceiveStream, ZfsError>> + Send;

    /// An inspector for a stream from another host, which must be as `expected`.
    fn inspector(&self, expected: ExpectedStream) -> Box<dyn Inspect>;

    /// Sends and receives on this host, and counts the bytes. If no byte moves for `stall`, both processes are killed,
    /// which is an error.
    fn copy(
        &self,
        send: &SendSpec,
        receive: &ReceiveSpec,
        counter: &Counter,
        stall: Duration,
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;
}
