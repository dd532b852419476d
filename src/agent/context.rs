//! The context of one order: it reports facts to the director, counts bytes, and records what the order changes on this
//! host. [`Success`] is the result of an order that succeeded.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::catalog::Change;
use crate::model::{Counter, DatasetName, HostName, KeyJoin, Marks, ResponseStatus, SourceRecord};
use crate::sys::{clock, runtime};
use crate::wire::Facts;

/// The channel for an order's facts. They go to the director, over the wire or within the process.
pub type FactSink = runtime::channel::Sender<Facts>;

/// The result of an order that succeeded.
pub(crate) struct Success {
    pub(crate) status: ResponseStatus,
    pub(crate) remark: String,
    /// The result of an estimate in bytes; `None` if ZFS cannot estimate it.
    pub(crate) estimate: Option<u64>,
    /// For a listing, the number of datasets that it has.
    pub(crate) datasets: Option<u64>,
    /// For an estimate of a restore, what the copy has recorded of its source.
    pub(crate) recorded: Option<SourceRecord>,
    /// For an order to join keys, the datasets whose keys are joined.
    pub(crate) joins: Vec<KeyJoin>,
}

impl Success {
    pub(crate) fn new(status: ResponseStatus, remark: impl Into<String>) -> Self {
        Self { status, remark: remark.into(), estimate: None, datasets: None, recorded: None, joins: Vec::new() }
    }
}

/// The context of one order.
pub(crate) struct OrderContext {
    facts: FactSink,
    /// Counts the bytes of a transfer.
    pub(crate) counter: Counter,
    changes: Mutex<LocalChanges>,
    host: HostName,
}

/// What an order changed on this host, to be published.
#[derive(Default)]
pub(crate) struct LocalChanges {
    pub(crate) datasets: BTreeSet<DatasetName>,
    pub(crate) marks: Vec<(DatasetName, Change)>,
}

impl OrderContext {
    pub(crate) fn new(host: HostName, facts: FactSink, counter: Counter) -> Self {
        Self { facts, counter, changes: Mutex::default(), host }
    }

    /// Reports facts to the director, and records what they say about this host.
    pub(crate) async fn report(&self, facts: Facts) {
        self.record(&facts);
        // Fails if the director has disconnected. The catalog then gets these facts from the next listing.
        drop(self.facts.send(facts).await);
    }

    fn record(&self, facts: &Facts) {
        let mut changes = self.changes.lock();
        let deleted = Marks { deleted: true, ..Marks::default() };
        for (name, guid) in &facts.destroyed {
            let change = Change::Mark { guid: *guid, marks: deleted, at: clock::now() };
            changes.marks.push((name.clone(), change));
            changes.datasets.insert(name.clone());
        }
        for (name, mark) in &facts.not_written {
            changes.marks.push((name.clone(), Change::NotWritten(mark.clone())));
        }
        changes.datasets.extend(facts.taken.iter().map(|(name, _)| name.clone()));
        if let Some(listing) = facts.listing.as_ref().filter(|listing| listing.host == self.host) {
            changes.datasets.insert(listing.dataset.clone());
        }
    }

    /// Records that a dataset changed in a way that no fact describes.
    pub(crate) fn record_changed(&self, dataset: &DatasetName) {
        self.changes.lock().datasets.insert(dataset.clone());
    }

    /// Takes the recorded changes.
    pub(crate) fn take_changes(&self) -> LocalChanges {
        std::mem::take(&mut *self.changes.lock())
    }
}
