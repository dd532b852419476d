//! estimate_send and estimate_destroy: what an order would send or free.
//!
//! They are checked as the real orders are, and nothing here is handed a ZFS that could change anything.

use crate::actions::steps::{Base, Resume, Step, Transfer, steps};
use crate::agent::destroy::{Judged, judge, wanted};
use crate::agent::transfer::request::{errand, named};
use crate::agent::{Agent, Failure, Success};
use crate::model::{DatasetInventory, DatasetName, Guid, Marks, ResponseStatus, SendFlags, SnapName, Snapshot};
use crate::wire::DirectorsOrder;
use crate::zfs::{ErrorKind, SendFrom, SendSpec, Zfs, ZfsError, ZfsRead};

impl<Z: Zfs> Agent<Z> {
    /// Tells about how many bytes a send_snapshot would send.
    pub(crate) async fn estimate_send(&self, order: &DirectorsOrder) -> Result<Success, Failure> {
        let (id, to) = errand(order)?;
        let (source, ours) = self.find(order, id).await?;
        let target = named(&source, &ours, id)?.guid;
        if to.host == self.host {
            let permission = self.local.permission_to_receive(&to.dataset, &self.host);
            permission.map_err(|denied| Failure::refused(denied.to_string()))?;
        }
        let course = Course { zfs: &*self.zfs, source: &source, ours: &ours, target };
        let common = order.keep_common_with.iter().find(|base| base.host == to.host && base.dataset == to.dataset);
        let estimate = course.size(common.map(|base| base.guid), order.resume_token.as_deref()).await?;
        let status = if estimate == Some(0) { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
        Ok(Success { estimate, ..Success::new(status, "") })
    }

    /// Tells how many bytes a destroy_snapshot would free, and what it would leave.
    pub(crate) async fn estimate_destroy(&self, order: &DirectorsOrder) -> Result<Success, Failure> {
        let (mut estimate, mut all_stayed) = (Some(0u64), Vec::new());
        for (dataset, wanted) in wanted(order)? {
            self.local.permission_to_destroy(&dataset).map_err(|denied| Failure::refused(denied.to_string()))?;
            let Judged { going, guards: _, stayed } = judge(&*self.zfs, &dataset, &wanted, order).await?;
            all_stayed.extend(stayed);
            let mut names: Vec<SnapName> = going.into_iter().map(|s| s.name).collect();
            // ZFS gives no size for a list of which one cannot go.
            let cloned = self.zfs.cloned(&dataset, &names).await?;
            all_stayed.extend(cloned.iter().map(|name| format!("{} stays: it has clones", dataset.at(name))));
            names.retain(|name| !cloned.contains(name));
            if !names.is_empty() {
                let size = self.zfs.size_of_destroy(&dataset, &names).await?;
                estimate = estimate.zip(size).map(|(all, size)| all.saturating_add(size));
            }
        }
        Ok(Success { estimate, ..Success::new(ResponseStatus::Done, all_stayed.join("; ")) })
    }
}

/// A transfer that is only thought of.
struct Course<'a, Z> {
    zfs: &'a Z,
    source: &'a DatasetName,
    ours: &'a DatasetInventory,
    target: Guid,
}

impl<Z: ZfsRead> Course<'_, Z> {
    /// The size of all streams to a destination whose newest common snapshot is `common`, the rest of one that broke
    /// off first; `None` where ZFS cannot tell.
    async fn size(&self, common: Option<Guid>, token: Option<&str>) -> Result<Option<u64>, Failure> {
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

    fn steps(&self, there: Option<Guid>, resume: Option<&Resume>) -> Result<Vec<Step>, Failure> {
        let theirs: Vec<Snapshot> = there.and_then(|guid| self.point(guid)).into_iter().collect();
        match steps(&self.ours.snapshots, &self.ours.bookmarks, &theirs, resume, None, self.target) {
            Ok(Transfer::Steps { steps }) => Ok(steps),
            Ok(_) => Ok(Vec::new()),
            Err(conflict) => Err(Failure::refused(format!("{}: {conflict}", self.source))),
        }
    }

    /// What the destination has, as far as its guid says so.
    fn point(&self, guid: Guid) -> Option<Snapshot> {
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

    /// What the destination can go on with, if it is of this dataset and still leads somewhere.
    async fn resumable(&self, token: Option<&str>) -> Result<Option<(String, Guid)>, Failure> {
        let Some(token) = token else { return Ok(None) };
        match self.zfs.resumable(token).await {
            Ok(of) => Ok((of.dataset == *self.source).then(|| (token.to_owned(), of.guid))),
            Err(error) if error.kind == ErrorKind::StaleToken => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// One stream's size. Not every version of ZFS knows that of a stream from a bookmark.
    async fn size_of(&self, spec: &SendSpec) -> Result<Option<u64>, ZfsError> {
        match self.zfs.size_of_send(spec).await {
            Err(error) if matches!(spec, SendSpec::Snapshot { from: SendFrom::Bookmark(_), .. }) => {
                log::debug!("the size of a stream from a bookmark is not known: {error}");
                Ok(None)
            }
            size => size,
        }
    }
}
