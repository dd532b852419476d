//! Carries out estimate_send and estimate_destroy: estimates how many bytes an order would send or free.
//!
//! An estimate passes the same checks as the real order. The code that computes it gets only a `ZfsRead`, so it cannot
//! change anything.

use crate::actions::steps::{Base, Resume, Step, Transfer, steps};
use crate::agent::context::Success;
use crate::agent::destroy::{Judged, judge};
use crate::agent::request::{DestroyRequest, EstimateSendRequest};
use crate::agent::service::Agent;
use crate::agent::transfer::record::record_of;
use crate::agent::transfer::request::find_snapshot;
use crate::host::error::OrderError;
use crate::model::{DatasetInventory, DatasetName, Guid, Marks, Place, ResponseStatus, SendFlags, SnapName, Snapshot};
use crate::sys::clock;
use crate::zfs::{ErrorKind, SendFrom, SendSpec, Zfs, ZfsError, ZfsRead};

impl<Z: Zfs> Agent<Z> {
    /// Estimates how many bytes a send_snapshot would send.
    pub(crate) async fn estimate_send(&self, request: &EstimateSendRequest) -> Result<Success, OrderError> {
        let source = self.dataset_of(request.dataset.as_ref(), request.snapshot, &request.to.host).await?;
        let ours = self.list_source(&source, &request.to.host, &request.purpose).await?;
        let target = find_snapshot(&source, &ours, request.snapshot)?.guid;
        if request.to.host == self.host && !request.purpose.is_restore() {
            self.local.permission_to_receive(&request.to.dataset, &self.host)?;
        }
        let transfer =
            PlannedTransfer { zfs: &*self.zfs, source: &source, to: &request.to.dataset, ours: &ours, target };
        let estimate = transfer.size(request.common, request.resume_token.as_deref()).await?;
        let status = if estimate == Some(0) { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
        let recorded = match request.purpose.is_restore() {
            true => record_of(&*self.zfs, Place { host: self.host.clone(), dataset: source.clone() }, &ours).await?,
            false => None,
        };
        Ok(Success { estimate, recorded, ..Success::new(status, "") })
    }

    /// Estimates how many bytes a destroy_snapshot would free, and reports which snapshots would be kept.
    pub(crate) async fn estimate_destroy(&self, request: &DestroyRequest) -> Result<Success, OrderError> {
        let (mut estimate, mut all_kept) = (Some(0u64), Vec::new());
        for (dataset, wanted) in &request.snapshots {
            self.local.permission_to_destroy(dataset)?;
            let judged = judge(&*self.zfs, &self.local, dataset, wanted, request, clock::now()).await?;
            let Judged { victims, doomed, kept, .. } = judged;
            all_kept.extend(kept);
            if !doomed.is_empty() {
                all_kept.push(format!("{dataset}: {} would go to the trash first", doomed.len()));
            }
            let mut names: Vec<SnapName> = victims.into_iter().map(|s| s.name).collect();
            // ZFS gives no size for a list that contains a snapshot with clones.
            let cloned = self.zfs.cloned(dataset, &names).await?;
            all_kept.extend(cloned.iter().map(|name| format!("{} stays: it has clones", dataset.at(name))));
            names.retain(|name| !cloned.contains(name));
            if !names.is_empty() {
                let size = self.zfs.size_of_destroy(dataset, &names).await?;
                estimate = estimate.zip(size).map(|(all, size)| all.saturating_add(size));
            }
        }
        Ok(Success { estimate, ..Success::new(ResponseStatus::Done, all_kept.join("; ")) })
    }
}

/// A transfer that is only estimated.
struct PlannedTransfer<'a, Z> {
    zfs: &'a Z,
    source: &'a DatasetName,
    to: &'a DatasetName,
    ours: &'a DatasetInventory,
    target: Guid,
}

impl<Z: ZfsRead> PlannedTransfer<'_, Z> {
    /// The size in bytes of all streams to a destination whose newest common snapshot is `common`, including the rest
    /// of an interrupted stream; `None` if ZFS cannot estimate it.
    async fn size(&self, common: Option<Guid>, token: Option<&str>) -> Result<Option<u64>, OrderError> {
        let mut total = Some(0u64);
        let mut add = |size: Option<u64>| total = total.zip(size).map(|(all, size)| all.saturating_add(size));
        let mut there = common;
        if let Some((token, arrives)) = self.resumable(token).await? {
            let resume = Resume { token: token.clone(), to: Some(arrives) };
            if self.steps(there, Some(&resume))?.contains(&Step::Resume { token: token.clone() }) {
                add(self.size_of(&SendSpec::Resume { token }).await?);
                there = Some(arrives);
            }
        }
        for step in self.steps(there, None)? {
            let (from, to) = match step {
                Step::Resume { .. } | Step::Discard { .. } => continue,
                Step::Full { to } => (SendFrom::Nothing, to),
                Step::Incremental { from: Base::Snapshot(base), to, intermediates } => {
                    (SendFrom::since(base.name, intermediates), to)
                }
                Step::Incremental { from: Base::Bookmark(base), to, .. } => (SendFrom::Bookmark(base.name), to),
                Step::Incremental { from: Base::Origin(of, _), to, .. } => (SendFrom::Origin(of.dataset, of.name), to),
            };
            let (dataset, flags) = (self.source.clone(), SendFlags::for_encrypted(self.ours.encrypted));
            add(self.size_of(&SendSpec::Snapshot { dataset, to: to.name, from, flags }).await?);
        }
        Ok(total)
    }

    /// The streams to a destination whose newest common snapshot is `there`.
    fn steps(&self, there: Option<Guid>, resume: Option<&Resume>) -> Result<Vec<Step>, OrderError> {
        let theirs: Vec<Snapshot> = there.and_then(|guid| self.snapshot_there(guid)).into_iter().collect();
        match steps(self.to, &self.ours.snapshots, &self.ours.bookmarks, &theirs, resume, None, self.target) {
            Ok(Transfer::Steps { steps }) => Ok(steps),
            Ok(_) => Ok(Vec::new()),
            Err(conflict) => Err(OrderError::refused(format!("{}: {conflict}", self.source))),
        }
    }

    /// The destination's snapshot with this guid, with the properties that the source's snapshot or bookmark of it has.
    fn snapshot_there(&self, guid: Guid) -> Option<Snapshot> {
        let bookmark = || {
            let of = self.ours.bookmarks.iter().find(|b| b.guid == guid)?;
            Some(Snapshot {
                name: of.name.clone(),
                guid,
                createtxg: of.createtxg,
                creation: of.creation,
                userrefs: 0,
                has_clones: false,
                used: 0,
                marks: Marks::default(),
            })
        };
        self.ours.by_guid(guid).cloned().or_else(bookmark)
    }

    /// The token of an interrupted receive, if it is valid and belongs to this dataset, and the guid of the snapshot
    /// that it completes.
    async fn resumable(&self, token: Option<&str>) -> Result<Option<(String, Guid)>, OrderError> {
        let Some(token) = token else { return Ok(None) };
        match self.zfs.resumable(token).await {
            Ok(of) => Ok((of.dataset == *self.source).then(|| (token.to_owned(), of.guid))),
            Err(error) if error.kind == ErrorKind::StaleToken => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The size of one stream in bytes. Some versions of ZFS cannot estimate a stream from a bookmark.
    async fn size_of(&self, spec: &SendSpec) -> Result<Option<u64>, ZfsError> {
        match self.zfs.size_of_send(spec).await {
            Err(error) if matches!(spec, SendSpec::Snapshot { from: SendFrom::Bookmark(_), .. }) => {
                log::debug!("the size of a stream from a bookmark is unknown: {error}");
                Ok(None)
            }
            size => size,
        }
    }
}
