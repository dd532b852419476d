//! What goes from a fake send to a fake receive.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_lite::io::AsyncWrite;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::model::{DatasetKind, Guid, Marks, Origin, SnapName, Snapshot};
use crate::zfs::fake::{Fake, error};
use crate::zfs::{ErrorKind, ReceiveSpec, SendFrom, SendSpec, ZfsError};

/// What a fake stream says: the snapshots that it brings and what they build on.
#[derive(Serialize, Deserialize)]
pub struct Stream {
    pub kind: DatasetKind,
    pub base: Option<Guid>,
    pub snapshots: Vec<Snapshot>,
}

/// The input of a fake receive.
#[derive(Clone, Default)]
pub struct Gathered(Arc<Mutex<Vec<u8>>>);

impl Gathered {
    /// What was written so far.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Fake {
    /// What a send gives.
    pub(super) fn stream_of(&self, spec: &SendSpec, call: &str) -> Result<Stream, ZfsError> {
        let state = self.call(call)?;
        let SendSpec::Snapshot { dataset, to, from, .. } = spec else {
            return Err(error(ErrorKind::StaleToken, call, "cannot resume send: the fake makes no tokens"));
        };
        let inventory = state.dataset(call, dataset)?;
        let position = |name: &SnapName| inventory.snapshots.iter().position(|s| s.name == *name);
        let missing = || error(ErrorKind::NotFound, call, "snapshot does not exist");
        let to = position(to).ok_or_else(missing)?;
        let (base, first) = match from {
            SendFrom::Nothing => (None, to),
            SendFrom::Snapshot(name) | SendFrom::Before(name) => {
                let base = position(name).ok_or_else(missing)?;
                let first = if matches!(from, SendFrom::Before(_)) { to } else { base + 1 };
                (Some(inventory.snapshots[base].guid), first)
            }
            SendFrom::Bookmark(name) => {
                let base = inventory.bookmarks.iter().find(|b| b.name == *name).ok_or_else(missing)?;
                (Some(base.guid), to)
            }
            SendFrom::Origin(of, name) => {
                let base = state.dataset(call, of)?.snapshots.iter().find(|s| s.name == *name).ok_or_else(missing)?;
                (Some(base.guid), to)
            }
        };
        Ok(Stream { kind: inventory.kind, base, snapshots: inventory.snapshots[first..=to].to_vec() })
    }

    /// What a receive makes of it.
    pub(super) fn apply(&self, spec: &ReceiveSpec, stream: Stream, call: &str) -> Result<(), ZfsError> {
        let mut state = self.call(call)?;
        let existing = state.datasets.get(&spec.dataset);
        let origin = spec.origin.as_ref().and_then(|(dataset, name)| {
            let of = state.datasets.get(dataset)?.snapshots.iter().find(|s| s.name == *name)?;
            Some((of.guid, Origin { dataset: dataset.clone(), name: name.clone() }))
        });
        match (stream.base, existing) {
            (Some(base), None) if origin.as_ref().is_some_and(|(guid, _)| *guid == base) => {}
            (None, Some(existing)) if !(spec.overwrite && existing.snapshots.is_empty()) => {
                return Err(error(ErrorKind::Exists, call, "destination exists, must specify -F to overwrite it"));
            }
            (Some(_), None) => return Err(error(ErrorKind::NotFound, call, "destination does not exist")),
            (Some(base), Some(existing)) => {
                let fits = existing.newest().is_some_and(|newest| newest.guid == base);
                if !fits || existing.written.unwrap_or(0) > 0 {
                    let words = "destination has been modified since most recent snapshot";
                    return Err(error(ErrorKind::Modified, call, words));
                }
            }
            (None, _) => {
                if spec.dataset.parent().is_some_and(|parent| !state.datasets.contains_key(&parent)) {
                    return Err(error(ErrorKind::NotFound, call, "parent does not exist"));
                }
            }
        }
        state.guids += 1;
        let own = Guid(state.guids);
        let mut txg = state.txg;
        let inventory = state.datasets.entry(spec.dataset.clone()).or_default();
        inventory.guid.get_or_insert(own);
        inventory.kind = stream.kind;
        inventory.written = Some(0);
        inventory.origin = origin.as_ref().map(|(_, origin)| origin.clone()).or(inventory.origin.take());
        for mut snapshot in stream.snapshots {
            txg += 1;
            snapshot.createtxg = txg;
            snapshot.userrefs = 0;
            snapshot.marks = Marks::default();
            inventory.snapshots.push(snapshot);
        }
        state.txg = txg;
        if let Some((_, origin)) = origin {
            state.clones.insert((origin.dataset, origin.name));
        }
        state.properties.entry(spec.dataset.clone()).or_default().extend(spec.properties.clone());
        Ok(())
    }
}
