//! Defines a transfer and its progress.

use std::collections::BTreeSet;

use crate::actions::divergence::Allowed;
use crate::actions::steps;
use crate::agent::context::OrderContext;
use crate::agent::service::Agent;
use crate::agent::transfer::peer::{Destination, Peer};
use crate::host::error::OrderError;
use crate::host::locks::Claim;
use crate::host::queue::QueueSlot;
use crate::model::{
    DatasetInventory, DatasetName, Guid, Origin, ResponseStatus, SendFlags, SnapName, Snapshot, SourceRecord, Turn,
};
use crate::model::{Place, tags};
use crate::slave::receive::Purpose;
use crate::sys::runtime;
use crate::wire::RenamedFrom;
use crate::zfs::ZfsError;

/// What the attempts of a send share.
#[derive(Default)]
pub(crate) struct RetryState {
    /// The lock on the source.
    pub(super) claim: Option<(DatasetName, Claim)>,
    /// Whether the last attempt was planned from the cache, without a listing.
    pub(super) from_cache: bool,
    /// Whether an attempt failed. From then on everything is listed.
    pub(super) has_failed: bool,
}

/// What is sent, and to which destination.
pub(super) struct SendPlan {
    pub(super) source: DatasetName,
    /// The snapshot that the destination is to have at the end.
    pub(super) target: Snapshot,
    pub(super) to: Place,
    /// What may be done to a destination that cannot take the next stream.
    pub(super) allowed: Allowed,
    /// The snapshot that the source is a clone of, if the destination may have it as well.
    pub(super) origin: Option<(Origin, Guid)>,
    /// The copy that was made before the source was renamed, if there is one.
    pub(super) renamed_from: Option<RenamedFrom>,
    /// Every destination of the source, if the order names them.
    pub(super) destinations: Vec<Place>,
    pub(super) purpose: Purpose,
}

/// A transfer of one snapshot, and of the snapshots before it that the destination lacks, to one destination.
pub(super) struct Transfer<'a, Z> {
    pub(super) agent: &'a Agent<Z>,
    pub(super) context: &'a OrderContext,
    pub(super) plan: SendPlan,
    pub(super) peer: Peer<'a, Z>,
    /// The source as listed at the beginning. It may gain snapshots meanwhile.
    pub(super) ours: DatasetInventory,
    /// The destination after the last step.
    pub(super) theirs: Destination,
    /// Whether `ours` has every snapshot that is older than the target.
    pub(super) sees_all: bool,
    pub(super) progress: TransferProgress,
    pub(super) holds: SourceHolds,
    /// Its turn in the queue.
    pub(super) turn: Turn,
    /// The slot for the next stream, if there is one already.
    pub(super) slot: Option<QueueSlot>,
    /// What the destination is to record of the source. It is found out while the first stream is running.
    pub(super) recording: Option<runtime::JoinHandle<Option<SourceRecord>>>,
}

/// The progress of a transfer.
pub(super) struct TransferProgress {
    /// The status of the order so far. A full stream with increments after it is `Full`.
    pub(super) status: ResponseStatus,
    pub(super) streams: usize,
    /// Whether the destination has been rolled back. Each remedy is applied at most once.
    pub(super) rolled_back: bool,
    /// Whether the destination has been set aside.
    pub(super) set_aside: bool,
    /// Whether the last stream was a resumed one, and failed.
    pub(super) resumed: bool,
    /// The flags for the next stream, after the destination has refused a stream because of its flags.
    pub(super) flags: Option<SendFlags>,
    /// The flags that the destination has refused, each with its error.
    pub(super) refused: Vec<(SendFlags, OrderError)>,
    /// The properties of the source that the destination has refused.
    pub(super) left_out: BTreeSet<String>,
    /// Whether another transfer made a placeholder of the destination while this one was about to create it.
    pub(super) met_placeholder: bool,
    /// Whether the destination's pool refuses receives that can be resumed.
    pub(super) unresumable: bool,
    /// Remarks for the director, which it gets if the order succeeds.
    pub(super) remarks: Vec<String>,
}

/// The holds of a transfer on its source.
pub(super) struct SourceHolds {
    pub(super) dataset: DatasetName,
    pub(super) tag: String,
    /// The snapshots that the current stream needs, and that are not held yet.
    pub(super) needed: Vec<SnapName>,
    /// The snapshots that this order holds, or is about to.
    pub(super) held: BTreeSet<SnapName>,
    /// Holds in progress. They are always awaited: a hold must not come after its release.
    pub(super) pending: Vec<runtime::JoinHandle<Result<(), ZfsError>>>,
}

impl Default for TransferProgress {
    fn default() -> Self {
        Self {
            status: ResponseStatus::NothingToDo,
            streams: 0,
            rolled_back: false,
            set_aside: false,
            resumed: false,
            flags: None,
            refused: Vec::new(),
            left_out: BTreeSet::new(),
            met_placeholder: false,
            unresumable: false,
            remarks: Vec::new(),
        }
    }
}

impl TransferProgress {
    /// Counts a stream that is about to be sent.
    pub(super) fn count_stream(&mut self, status: ResponseStatus) {
        self.streams += 1;
        if self.status != ResponseStatus::Full {
            self.status = status;
        }
    }

    /// Records that the destination has the snapshot, or a newer one. If no stream was needed, this determines the
    /// order's status.
    pub(super) fn arrived(&mut self, how: &steps::Transfer) {
        if self.streams == 0 {
            self.status = match how {
                steps::Transfer::MostActual { .. } => ResponseStatus::MostActual,
                steps::Transfer::WasRenamed { .. } => ResponseStatus::WasRenamed,
                steps::Transfer::NothingToDo | steps::Transfer::Steps { .. } => ResponseStatus::NothingToDo,
            };
        }
    }
}

impl SourceHolds {
    pub(super) fn new(dataset: &DatasetName, to: &Place) -> Self {
        Self {
            dataset: dataset.clone(),
            tag: tags::sending(to),
            needed: Vec::new(),
            held: BTreeSet::new(),
            pending: Vec::new(),
        }
    }
}
