//! Defines a ZFS that refuses every change, for previews.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{Counter, DatasetName, HostListing, KeyState, SnapName};
use crate::zfs::inspect::{ExpectedStream, Inspect, StreamInspector};
use crate::zfs::{
    Depth, ErrorKind, Fate, History, Known, Listed, Named, ReceiveSpec, ReceiveStream, Resumable, SendSpec, SendStream,
    Zfs, ZfsError, ZfsRead,
};

/// A ZFS that reads, and refuses every change. It has only a [`ZfsRead`] inside, so whatever uses it cannot change
/// anything. With it, a preview runs the same agent as the director, with the same checks.
#[derive(Clone, Debug)]
pub struct ReadOnly<Z>(Z);

impl<Z: ZfsRead> ReadOnly<Z> {
    /// Limits a ZFS to reading.
    #[must_use]
    pub fn new(zfs: Z) -> Self {
        Self(zfs)
    }
}

/// The error for a change.
fn refused(change: &str) -> ZfsError {
    ZfsError {
        kind: ErrorKind::Other,
        command: format!("zfs {change}"),
        status: "did not run".into(),
        stderr: "a preview changes nothing".into(),
    }
}

impl<Z: ZfsRead> ZfsRead for ReadOnly<Z> {
    async fn holds(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<(SnapName, String)>, ZfsError> {
        self.0.holds(dataset, names).await
    }

    async fn list(&self, roots: &[DatasetName], depth: Depth) -> Result<Vec<Listed>, ZfsError> {
        self.0.list(roots, depth).await
    }

    async fn list_pools(&self, roots: &[DatasetName], known: &Known) -> Result<HostListing, ZfsError> {
        self.0.list_pools(roots, known).await
    }

    async fn snapshots(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        self.0.snapshots(dataset).await
    }

    async fn cloned(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<SnapName>, ZfsError> {
        self.0.cloned(dataset, names).await
    }

    async fn written_since(
        &self,
        datasets: &[DatasetName],
        name: &SnapName,
    ) -> Result<Vec<(DatasetName, u64)>, ZfsError> {
        self.0.written_since(datasets, name).await
    }

    async fn resumable(&self, token: &str) -> Result<Resumable, ZfsError> {
        self.0.resumable(token).await
    }

    async fn properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, String>, ZfsError> {
        self.0.properties(dataset).await
    }

    async fn arrivals(&self, dataset: &DatasetName) -> Result<BTreeMap<SnapName, String>, ZfsError> {
        self.0.arrivals(dataset).await
    }

    async fn key_users(&self, root: &DatasetName) -> Result<Vec<DatasetName>, ZfsError> {
        self.0.key_users(root).await
    }

    async fn keys(&self, root: &DatasetName) -> Result<BTreeMap<DatasetName, KeyState>, ZfsError> {
        self.0.keys(root).await
    }

    async fn size_of_send(&self, spec: &SendSpec) -> Result<Option<u64>, ZfsError> {
        self.0.size_of_send(spec).await
    }

    async fn size_of_destroy(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Option<u64>, ZfsError> {
        self.0.size_of_destroy(dataset, names).await
    }

    async fn check_version(&self) -> Result<String, ZfsError> {
        self.0.check_version().await
    }
}

impl<Z: ZfsRead> Zfs for ReadOnly<Z> {
    async fn snapshot(&self, _: &[DatasetName], _: &SnapName) -> Result<Vec<(DatasetName, History)>, ZfsError> {
        Err(refused("snapshot"))
    }

    async fn sync(&self, _: &DatasetName) -> Result<(), ZfsError> {
        Err(refused("sync"))
    }

    async fn destroy(&self, _: &DatasetName, _: &[Named], _: &[Named], _: bool) -> Result<Vec<Fate>, ZfsError> {
        Err(refused("destroy"))
    }

    async fn hold(&self, _: &str, _: &DatasetName, _: &[SnapName]) -> Result<(), ZfsError> {
        Err(refused("hold"))
    }

    async fn release(&self, _: &str, _: &DatasetName, _: &[SnapName]) -> Result<(), ZfsError> {
        Err(refused("release"))
    }

    async fn bookmark(&self, _: &DatasetName, _: &Named, _: &SnapName) -> Result<(), ZfsError> {
        Err(refused("bookmark"))
    }

    async fn destroy_bookmark(&self, _: &DatasetName, _: &SnapName) -> Result<(), ZfsError> {
        Err(refused("destroy"))
    }

    async fn rollback(&self, _: &DatasetName, _: &SnapName) -> Result<(), ZfsError> {
        Err(refused("rollback"))
    }

    async fn abort_receive(&self, _: &DatasetName) -> Result<(), ZfsError> {
        Err(refused("receive -A"))
    }

    async fn create_ancestors(&self, _: &DatasetName) -> Result<(), ZfsError> {
        Err(refused("create"))
    }

    async fn rename(&self, _: &DatasetName, _: &DatasetName) -> Result<(), ZfsError> {
        Err(refused("rename"))
    }

    async fn make_clone(
        &self,
        _: &DatasetName,
        _: &SnapName,
        _: &DatasetName,
        _: &[(&str, &str)],
    ) -> Result<(), ZfsError> {
        Err(refused("clone"))
    }

    async fn destroy_clone(&self, _: &DatasetName) -> Result<(), ZfsError> {
        Err(refused("destroy"))
    }

    async fn set(&self, _: &DatasetName, _: &str, _: &str) -> Result<(), ZfsError> {
        Err(refused("set"))
    }

    async fn inherit(&self, _: &DatasetName, _: &str) -> Result<(), ZfsError> {
        Err(refused("inherit"))
    }

    async fn inherit_key(&self, _: &DatasetName) -> Result<(), ZfsError> {
        Err(refused("change-key"))
    }

    async fn mount(&self, _: &DatasetName) -> Result<(), ZfsError> {
        Err(refused("mount"))
    }

    async fn set_arrivals(&self, _: &DatasetName, _: &[SnapName], _: &str) -> Result<(), ZfsError> {
        Err(refused("set"))
    }

    async fn send(&self, _: &SendSpec) -> Result<SendStream, ZfsError> {
        Err(refused("send"))
    }

    async fn receive(&self, _: &ReceiveSpec) -> Result<ReceiveStream, ZfsError> {
        Err(refused("receive"))
    }

    fn inspector(&self, expected: ExpectedStream) -> Box<dyn Inspect> {
        Box::new(StreamInspector::new(expected))
    }

    async fn copy(&self, _: &SendSpec, _: &ReceiveSpec, _: &Counter, _: Duration) -> Result<(), ZfsError> {
        Err(refused("receive"))
    }
}
