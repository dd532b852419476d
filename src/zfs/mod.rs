//! What zsync asks of ZFS, as two traits: reading ([`ZfsRead`]) and changing ([`Zfs`]).
//!
//! Whoever must not change anything is handed a `ZfsRead` only. `system` runs the `zfs` command, `fake` keeps
//! pools in memory; `argv` alone knows the command's flags, `parse` its output.

pub mod argv;
mod error;
#[cfg(any(test, feature = "test-support"))]
pub mod fake;
pub mod parse;
mod pipe;
pub mod system;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::io::{AsyncRead, AsyncWrite};

use std::collections::BTreeMap;

use crate::model::{Bookmark, Counter, DatasetInventory, DatasetName, Guid, SendFlags, SnapName, Snapshot};
pub use error::{ErrorKind, ZfsError};

/// How far below the named datasets a listing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The datasets themselves.
    Only,
    /// They and everything below.
    Recursive,
    /// The datasets themselves, without their snapshots and bookmarks.
    Bare,
    /// The datasets themselves, and bare those that contain them.
    Around,
}

/// Where a send starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendFrom {
    /// From nothing: the whole snapshot.
    Nothing,
    /// From a snapshot, with every snapshot between (`-I`).
    Snapshot(SnapName),
    /// From the very snapshot before it (`-i`): ZFS, at both ends, does with less than for one with those between.
    Before(SnapName),
    /// From a bookmark to exactly one snapshot (`-i`).
    Bookmark(SnapName),
    /// A clone, from the snapshot of another dataset that it was made of, to exactly one snapshot (`-i`).
    Origin(DatasetName, SnapName),
}

impl SendFrom {
    /// From a snapshot, with those between, as far as there are any.
    #[must_use]
    pub fn since(base: SnapName, intermediates: bool) -> Self {
        if intermediates { Self::Snapshot(base) } else { Self::Before(base) }
    }
}

/// One `zfs send`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendSpec {
    /// A snapshot, from somewhere.
    Snapshot {
        /// Whose snapshot.
        dataset: DatasetName,
        /// The snapshot to arrive at.
        to: SnapName,
        /// Where the receiver stands.
        from: SendFrom,
        /// What the blocks look like.
        flags: SendFlags,
    },
    /// What an interrupted receive still lacks.
    Resume {
        /// The receiver's `receive_resume_token`.
        token: String,
    },
}

/// What a `receive_resume_token` goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumable {
    /// The dataset, by its name now.
    pub dataset: DatasetName,
    /// The snapshot that will be complete then.
    pub guid: Guid,
    /// Whether the stream is raw (`-w`).
    pub raw: bool,
}

/// One `zfs receive`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveSpec {
    /// The dataset to receive into.
    pub dataset: DatasetName,
    /// What is set on it (`-o`).
    pub properties: BTreeMap<String, String>,
    /// The snapshot here of which it becomes a clone.
    pub origin: Option<(DatasetName, SnapName)>,
    /// Replace an existing dataset that has no snapshots (`-F`); only on the policy's word.
    pub overwrite: bool,
}

/// A snapshot to be destroyed, or to be there while others are: by its name, but only if it has this guid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name after `@`.
    pub name: SnapName,
    /// The guid that it must have.
    pub guid: Guid,
}

/// What became of a snapshot that was to be destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is destroyed.
    Destroyed,
    /// There is none of this name.
    Gone,
    /// The name is that of another snapshot by now; that one stays.
    Another,
    /// It is held.
    Held,
    /// It has clones.
    Cloned,
    /// It would have gone, had nothing else been in the way.
    Spared,
    /// ZFS refused, with this error number.
    Failed(String),
}

/// The end of a process at the other side of a stream: its success or its complaint.
pub type End = Pin<Box<dyn Future<Output = Result<(), ZfsError>> + Send>>;

/// A running `zfs send`. Dropping it ends the process.
pub struct SendStream {
    /// Its output.
    pub data: Box<dyn AsyncRead + Send + Unpin>,
    /// To be awaited once `data` has ended.
    pub end: End,
}

/// A running `zfs receive`. Dropping it ends the process; what arrived stays resumable.
pub struct ReceiveStream {
    /// Its input.
    pub data: Box<dyn AsyncWrite + Send + Unpin>,
    /// To be awaited once `data` is closed.
    pub end: End,
}

/// A dataset with everything that a listing tells of it.
pub type Listed = (DatasetName, DatasetInventory);

/// What datasets held when they were listed.
pub type Known = Arc<BTreeMap<DatasetName, DatasetInventory>>;

/// The snapshots and bookmarks of one dataset, oldest first.
pub type History = (Vec<Snapshot>, Vec<Bookmark>);

/// Reading.
pub trait ZfsRead: Send + Sync + 'static {
    /// Lists datasets with their snapshots and bookmarks. Roots that do not exist are left out.
    fn list(&self, roots: &[DatasetName], depth: Depth) -> impl Future<Output = Result<Vec<Listed>, ZfsError>> + Send;

    /// Lists datasets with all below them. Where ZFS tells that a dataset's snapshots have not changed since `known` was
    /// listed, and that was not long ago, they are not listed again: its bookmarks and holds are those of then.
    fn list_changed(
        &self,
        roots: &[DatasetName],
        known: &Known,
    ) -> impl Future<Output = Result<Vec<Listed>, ZfsError>> + Send {
        let _ = known;
        self.list(roots, Depth::Recursive)
    }

    /// Lists the snapshots and bookmarks of one dataset: half of what [`list`](Self::list) costs. `None`
    /// where the dataset does not exist.
    fn snapshots(&self, dataset: &DatasetName) -> impl Future<Output = Result<Option<History>, ZfsError>> + Send;

    /// Which of these snapshots of one dataset have clones.
    fn cloned(
        &self,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> impl Future<Output = Result<Vec<SnapName>, ZfsError>> + Send;

    /// Bytes written to each of these datasets since its snapshot of this name (`written@`).
    fn written_since(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> impl Future<Output = Result<Vec<(DatasetName, u64)>, ZfsError>> + Send;

    /// What a `receive_resume_token` goes on with. A token that leads nowhere is a [`ErrorKind::StaleToken`].
    fn resumable(&self, token: &str) -> impl Future<Output = Result<Resumable, ZfsError>> + Send;

    /// The properties that were set on this dataset itself, or were received with it, and their values.
    fn properties(
        &self,
        dataset: &DatasetName,
    ) -> impl Future<Output = Result<BTreeMap<String, String>, ZfsError>> + Send;

    /// About how many bytes a send would be; `None` where ZFS cannot tell. Nothing is sent.
    fn size_of_send(&self, spec: &SendSpec) -> impl Future<Output = Result<Option<u64>, ZfsError>> + Send;

    /// How many bytes destroying these snapshots of one dataset would free; `None` where ZFS cannot tell. Nothing is
    /// destroyed.
    fn size_of_destroy(
        &self,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> impl Future<Output = Result<Option<u64>, ZfsError>> + Send;

    /// The version of ZFS' command, checked to be new enough.
    fn check_version(&self) -> impl Future<Output = Result<String, ZfsError>> + Send;
}

/// Changing. Every operation is idempotent or says that it was not needed.
pub trait Zfs: ZfsRead {
    /// Takes one snapshot of each dataset (all of one pool), atomically, and lists then what each has.
    fn snapshot(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> impl Future<Output = Result<Vec<(DatasetName, History)>, ZfsError>> + Send;

    /// Has a pool write out what is still in memory: until then `written` does not count it. A user who may not do
    /// that waits for nothing.
    fn sync(&self, dataset: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Destroys those of these snapshots of one dataset that are neither held nor cloned, and have these guids at that
    /// very moment; none of them if one of the `guards` is not there. With `all`, all of them go or none. One fate for
    /// each comes back.
    fn destroy(
        &self,
        dataset: &DatasetName,
        victims: &[Named],
        guards: &[Named],
        all: bool,
    ) -> impl Future<Output = Result<Vec<Fate>, ZfsError>> + Send;

    /// Holds snapshots. One that has the tag already is fine.
    fn hold(
        &self,
        tag: &str,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Releases a tag. A snapshot that has no such hold, or is gone, is fine.
    fn release(
        &self,
        tag: &str,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// The tags on these snapshots of one dataset.
    fn holds(
        &self,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> impl Future<Output = Result<Vec<(SnapName, String)>, ZfsError>> + Send;

    /// Makes a bookmark of a snapshot. One of that name that is of this very snapshot is fine, of another one an error.
    fn bookmark(
        &self,
        dataset: &DatasetName,
        snapshot: &Named,
        bookmark: &SnapName,
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Destroys a bookmark. One that is gone is fine.
    fn destroy_bookmark(
        &self,
        dataset: &DatasetName,
        bookmark: &SnapName,
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Rolls a dataset back to its newest snapshot; refuses where a newer snapshot or bookmark would go.
    fn rollback(&self, dataset: &DatasetName, to: &SnapName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Throws away what an interrupted receive left.
    fn abort_receive(&self, dataset: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Creates the missing ancestors of a dataset, unmounted.
    fn create_ancestors(&self, dataset: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Renames a dataset, with all below it. One that exists is never replaced.
    fn rename(&self, dataset: &DatasetName, to: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Makes a clone of a snapshot, with these properties from its first moment. One that cannot be mounted is made
    /// all the same.
    fn make_clone(
        &self,
        dataset: &DatasetName,
        of: &SnapName,
        clone: &DatasetName,
        properties: &[(&str, &str)],
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Destroys a clone that has no snapshots and nothing below it. Whoever asks for it has made sure what it is.
    fn destroy_clone(&self, clone: &DatasetName) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Sets one property of a dataset.
    fn set(
        &self,
        dataset: &DatasetName,
        property: &str,
        value: &str,
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;

    /// Starts a send.
    fn send(&self, spec: &SendSpec) -> impl Future<Output = Result<SendStream, ZfsError>> + Send;

    /// Starts a receive.
    fn receive(&self, spec: &ReceiveSpec) -> impl Future<Output = Result<ReceiveStream, ZfsError>> + Send;

    /// Sends and receives on this host: one process' pipe handed to the other. Where no byte moves for `stall`, both
    /// are ended.
    fn copy(
        &self,
        send: &SendSpec,
        receive: &ReceiveSpec,
        counter: &Counter,
        stall: Duration,
    ) -> impl Future<Output = Result<(), ZfsError>> + Send;
}
