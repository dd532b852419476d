//! Carries out forget_destination: releases the holds and destroys the cursors that transfers have left for
//! destinations that are given up. No snapshot is destroyed.

use std::collections::{BTreeMap, BTreeSet};

use crate::agent::context::{OrderContext, Success};
use crate::agent::request::ForgetRequest;
use crate::agent::service::Agent;
use crate::host::error::OrderError;
use crate::model::tags::is_received;
use crate::model::{DatasetInventory, DatasetName, ResponseStatus, SentTo, SnapName};
use crate::zfs::{Depth, Zfs, ZfsError};

/// What was removed.
#[derive(Default)]
struct Tally {
    holds: usize,
    bookmarks: usize,
}

impl<Z: Zfs> Agent<Z> {
    /// Removes what the order names. Only names that transfers give are touched, and only while no transfer uses the
    /// dataset. A dataset that cannot be worked on does not stop the others.
    pub(crate) async fn forget(&self, request: &ForgetRequest, context: &OrderContext) -> Result<Success, OrderError> {
        let (mut tally, mut failed) = (Tally::default(), Vec::new());
        for (dataset, destinations) in &request.sources {
            if let Err(error) = self.forget_destinations(dataset, destinations, &mut tally).await {
                failed.push(error.context(dataset.to_string()));
            }
            context.record_changed(dataset);
        }
        for copy in &request.copies {
            if let Err(error) = self.give_up(copy, &mut tally).await {
                failed.push(error.context(copy.to_string()));
            }
            context.record_changed(copy);
        }
        let status =
            if tally.holds + tally.bookmarks == 0 { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
        let Tally { holds, bookmarks } = tally;
        let remark = format!("holds released: {holds}, bookmarks destroyed: {bookmarks}");
        let mut failed = failed.into_iter();
        let Some(first) = failed.next() else { return Ok(Success::new(status, remark)) };
        let error = failed.fold(first, OrderError::followed_by);
        Err(error.context(format!("{remark}; some datasets failed")))
    }

    /// Removes from a source what transfers to these destinations have left.
    async fn forget_destinations(
        &self,
        dataset: &DatasetName,
        destinations: &BTreeSet<SentTo>,
        tally: &mut Tally,
    ) -> Result<(), OrderError> {
        self.local.permission_to_list(dataset)?;
        let Some(_claim) = self.locks.claim(dataset) else {
            return Err(OrderError::busy("it is being sent").with_hint("try again when the transfer has ended"));
        };
        self.cache.invalidate(dataset);
        let Some(found) = self.find(dataset).await? else { return Ok(()) };
        let is_wanted = |tag: &str| SentTo::of_hold(tag).is_some_and(|to| destinations.contains(&to));
        tally.holds += self.release_all(dataset, &found, is_wanted).await?;
        for bookmark in &found.bookmarks {
            if SentTo::of_cursor(&bookmark.name).first().is_some_and(|to| destinations.contains(to)) {
                self.zfs.destroy_bookmark(dataset, &bookmark.name).await?;
                tally.bookmarks += 1;
            }
        }
        Ok(())
    }

    /// Releases the holds that receives have left on a copy.
    async fn give_up(&self, copy: &DatasetName, tally: &mut Tally) -> Result<(), OrderError> {
        self.local.permission_to_list(copy)?;
        let Some(_claim) = self.receiver.locks.claim(copy) else {
            return Err(OrderError::busy("it is receiving").with_hint("try again when the transfer has ended"));
        };
        self.cache.invalidate(copy);
        let Some(found) = self.find(copy).await? else { return Ok(()) };
        tally.holds += self.release_all(copy, &found, is_received).await?;
        Ok(())
    }

    async fn find(&self, dataset: &DatasetName) -> Result<Option<DatasetInventory>, ZfsError> {
        let listed = self.zfs.list(std::slice::from_ref(dataset), Depth::Only).await?;
        Ok(listed.into_iter().find(|(name, _)| name == dataset).map(|(_, found)| found))
    }

    /// Releases all holds of a dataset whose tag is wanted. Returns how many there were.
    async fn release_all(
        &self,
        dataset: &DatasetName,
        found: &DatasetInventory,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<usize, ZfsError> {
        let mut by_tag: BTreeMap<String, Vec<SnapName>> = BTreeMap::new();
        for (name, tag) in self.zfs.holds(dataset, &found.held()).await? {
            if is_wanted(&tag) {
                by_tag.entry(tag).or_default().push(name);
            }
        }
        let mut released = 0;
        for (tag, names) in by_tag {
            self.zfs.release(&tag, dataset, &names).await?;
            released += names.len();
        }
        Ok(released)
    }
}
