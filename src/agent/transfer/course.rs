//! What an order to send is about, and how far it came.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use crate::actions::divergence::Allowed;
use crate::actions::steps::Transfer;
use crate::host::locks::Claim;
use crate::host::queue::QueueSlot;
use crate::model::{DatasetName, Guid, Origin, Place, ResponseStatus, SnapName, Snapshot};
use crate::sys::runtime;
use crate::zfs::ZfsError;

/// What one order sends.
pub(crate) struct SendRequest {
    pub(crate) dataset: DatasetName,
    pub(crate) target: Snapshot,
    pub(crate) to: Place,
    pub(crate) allowed: Allowed,
    /// The snapshot that the dataset is a clone of, where the destination may have it too.
    pub(crate) origin: Option<(Origin, Guid)>,
    /// Every place that the dataset is sent to, where the order says so.
    pub(crate) destinations: Vec<Place>,
}

/// What a send keeps over all its tries.
#[derive(Default)]
pub(crate) struct RetryState {
    /// Nobody else gets at its dataset meanwhile.
    pub(crate) claim: Option<(DatasetName, Claim)>,
    /// Whether the last try was planned by what was known, without a look.
    pub(crate) unseen: bool,
    /// Whether it failed: from then on all is looked at.
    pub(crate) failed: bool,
}

/// How far a transfer came.
pub(crate) struct TransferState {
    /// What it comes to; of a full copy and the increments after it: full.
    pub(crate) status: ResponseStatus,
    pub(crate) streams: usize,
    /// What was done about a destination that could not take the next stream; each at the most once.
    pub(crate) rolled_back: bool,
    pub(crate) set_aside: bool,
    pub(crate) resumed: bool,
    /// Whether every snapshot of the source that is older than the order's was seen.
    pub(crate) sees_all: bool,
    /// What the stream that is under way needs on the source.
    pub(crate) needed: Vec<SnapName>,
    /// Since when the oldest data waits, and the place for the next stream, where there is one already.
    pub(crate) since: DateTime<Utc>,
    pub(crate) slot: Option<QueueSlot>,
    /// What this order holds on the source, or is about to.
    pub(crate) held: BTreeSet<SnapName>,
    /// Holds that are being made: never left in the midst, for then they would come after they were released.
    pub(crate) holding: Vec<runtime::JoinHandle<Result<(), ZfsError>>>,
    /// What the director should be told of an order that ended well.
    pub(crate) remarks: Vec<String>,
}

impl TransferState {
    pub(crate) fn new(since: DateTime<Utc>, slot: QueueSlot) -> Self {
        Self {
            since,
            slot: Some(slot),
            status: ResponseStatus::NothingToDo,
            streams: 0,
            rolled_back: false,
            set_aside: false,
            resumed: false,
            sees_all: true,
            needed: Vec::new(),
            held: BTreeSet::new(),
            holding: Vec::new(),
            remarks: Vec::new(),
        }
    }

    pub(crate) fn sends(&mut self, status: ResponseStatus) {
        self.streams += 1;
        if self.status != ResponseStatus::Full {
            self.status = status;
        }
    }

    /// The destination has the snapshot, or a newer one: how that is called where nothing was sent.
    pub(crate) fn arrived(&mut self, how: &Transfer) {
        if self.streams == 0 {
            self.status = match how {
                Transfer::MostActual { .. } => ResponseStatus::MostActual,
                Transfer::WasRenamed { .. } => ResponseStatus::WasRenamed,
                Transfer::NothingToDo | Transfer::Steps { .. } => ResponseStatus::NothingToDo,
            };
        }
    }
}
