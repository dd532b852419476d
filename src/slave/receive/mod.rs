//! The receiving side of a transfer: the slave's, and that of a copy within one host.
//!
//! Whatever could cost something there is proven here, at the moment that it is done, whatever the sender says.

mod conflict;
mod holds;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::host::locks::DatasetLocks;
use crate::host::publish::publisher::Publisher;
use crate::host::queue::TransferQueue;
use crate::host::{clones, hooks};
use crate::model::tags;
use crate::model::{
    DatasetInventory, DatasetKind, DatasetName, Guid, HostName, Identity, Place, ResponseStatus, SendFlags, SnapName,
};
use crate::policy::{Denied, Local};
use crate::wire::{self, CloneOf, OrderToSlave};
use crate::zfs::{Depth, ErrorKind, Listed, ReceiveSpec, Zfs, ZfsError};

/// What a host does to receive.
pub struct Receiving<Z> {
    /// Its ZFS.
    pub zfs: Arc<Z>,
    /// What it lets in.
    pub local: Arc<Local>,
    /// The datasets being received into.
    pub busy: DatasetLocks,
    /// Places for receives.
    pub slots: TransferQueue,
    /// Where what this host holds is published, if anywhere.
    pub publisher: Option<Arc<Publisher>>,
}

/// What surrounds a dataset, when it was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// Whether what is created there inherits encryption, as it does from the nearest one above it.
    pub encrypts: bool,
    /// Whether the dataset that contains it exists.
    pub has_parent: bool,
}

impl Around {
    /// From a listing with the datasets that contain it.
    #[must_use]
    pub fn of(dataset: &DatasetName, listed: &[Listed]) -> Self {
        let above = listed.iter().filter(|(name, _)| name != dataset && dataset.is_within(name));
        let nearest = above.max_by_key(|(name, _)| name.as_str().len());
        Self {
            encrypts: nearest.is_some_and(|(_, inventory)| inventory.encrypted),
            has_parent: nearest.is_some_and(|(name, _)| dataset.parent().as_ref() == Some(name)),
        }
    }
}

/// How a step failed.
#[derive(Debug)]
pub struct StepError {
    /// For the wire.
    pub status: ResponseStatus,
    /// In words.
    pub reason: String,
    /// Whether trying again later may help.
    pub temporary: bool,
    /// Whether it was for lack of space.
    pub no_space: bool,
}

impl StepError {
    /// What a failure means that is not one of ZFS.
    #[must_use]
    pub fn new(status: ResponseStatus, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), temporary: false, no_space: false }
    }

    /// The same, where trying again later may help.
    #[must_use]
    pub fn temporary(status: ResponseStatus, reason: impl Into<String>) -> Self {
        Self { temporary: true, ..Self::new(status, reason) }
    }
}

/// What is said to who comes second.
#[must_use]
pub fn occupied(dataset: &DatasetName) -> String {
    format!("{dataset} is being received into already")
}

/// What it means that a process at one end of a stream does nothing for too long.
#[must_use]
pub fn stalled(what: &str, limit: Duration) -> StepError {
    let limit = humantime::format_duration(limit);
    let reason = format!("{what} for {limit} (stall_timeout); is the pool suspended? see zpool status");
    StepError::temporary(ResponseStatus::Zerror, reason)
}

impl From<ZfsError> for StepError {
    fn from(error: ZfsError) -> Self {
        let status = match error.kind {
            ErrorKind::Modified => ResponseStatus::WasWritten,
            ErrorKind::Exists => ResponseStatus::NotEmpty,
            _ => ResponseStatus::Zerror,
        };
        let (temporary, no_space) = (error.kind.is_temporary(), error.kind == ErrorKind::NoSpace);
        Self { status, reason: error.to_string(), temporary, no_space }
    }
}

impl From<Denied> for StepError {
    fn from(denied: Denied) -> Self {
        Self::new(ResponseStatus::Refused, denied.to_string())
    }
}

/// What a stream will bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The guid of the snapshot that will be the newest; `None` for a resumed stream, whose end only ZFS knows.
    pub guid: Option<Guid>,
    /// Its name.
    pub name: SnapName,
    /// What a new dataset becomes; `None` for an increment or a resumed receive.
    pub create: Option<DatasetKind>,
    /// Whether an existing dataset without snapshots is replaced.
    pub overwrite: bool,
    /// Whether it becomes a clone of what the order names.
    pub cloned: bool,
    /// What its blocks look like; `None` for a resumed receive.
    pub flags: Option<SendFlags>,
    /// The source's properties, where they were asked for.
    pub properties: BTreeMap<String, String>,
}

impl<Z> Clone for Receiving<Z> {
    fn clone(&self) -> Self {
        let (zfs, local) = (Arc::clone(&self.zfs), Arc::clone(&self.local));
        let (busy, slots, publisher) = (self.busy.clone(), self.slots.clone(), self.publisher.clone());
        Self { zfs, local, busy, slots, publisher }
    }
}

/// Where an order's stream comes from.
#[must_use]
pub fn sender(order: &OrderToSlave) -> Place {
    let dataset = order.source_dataset.clone().unwrap_or_else(|| order.dest_dataset.clone());
    Place { host: order.source.clone(), dataset }
}

impl<Z: Zfs> Receiving<Z> {
    /// Nothing is being received yet.
    #[must_use]
    pub fn new(zfs: Arc<Z>, local: Arc<Local>) -> Self {
        let slots = TransferQueue::new(local.max_receives);
        Self { zfs, local, busy: DatasetLocks::default(), slots, publisher: None }
    }

    /// The same, of a host that publishes what it holds.
    #[must_use]
    pub fn publishing(self, publisher: Option<Arc<Publisher>>) -> Self {
        Self { publisher, ..self }
    }

    /// The same with another configuration; what is under way keeps its claims on datasets and its places.
    #[must_use]
    pub fn with_local(&self, local: Arc<Local>) -> Self {
        let slots = if local.max_receives == self.local.max_receives {
            self.slots.clone()
        } else {
            TransferQueue::new(local.max_receives)
        };
        Self { local, slots, ..self.clone() }
    }

    /// Checks that `source` may send into `dataset`, and that a peer may speak for it.
    pub fn permit(&self, source: &HostName, peer: Option<&Identity>, dataset: &DatasetName) -> Result<(), Denied> {
        self.local.permission_to_speak_for(peer, source, dataset)?;
        self.local.permission_to_receive(dataset, source).map(drop)
    }

    /// The dataset as it is; `None` if it does not exist.
    pub async fn look(&self, dataset: &DatasetName) -> Result<Option<DatasetInventory>, ZfsError> {
        let listed = self.zfs.list(std::slice::from_ref(dataset), Depth::Only).await?;
        Ok(listed.into_iter().find(|(name, _)| name == dataset).map(|(_, inventory)| inventory))
    }

    /// The dataset as it is, and its surroundings.
    pub async fn look_around(&self, dataset: &DatasetName) -> Result<(Option<DatasetInventory>, Around), ZfsError> {
        let mut listed = self.zfs.list(std::slice::from_ref(dataset), Depth::Around).await?;
        let around = Around::of(dataset, &listed);
        let at = listed.iter().position(|(name, _)| name == dataset);
        Ok((at.map(|at| listed.swap_remove(at).1), around))
    }

    /// What the sender has to know of the place, besides what is there.
    pub async fn place(
        &self,
        order: &OrderToSlave,
        found: Option<&DatasetInventory>,
        around: Around,
    ) -> Result<wire::Place, ZfsError> {
        let dataset = &order.dest_dataset;
        let encrypts = found.map_or(around.encrypts, |found| found.encrypted);
        let has_origin = match &order.clone_of {
            Some(of) if found.is_none_or(|found| found.snapshots.is_empty()) => self.origin(order, of).await?.is_some(),
            _ => false,
        };
        let wants_properties = self.local.entry_for(dataset).is_some_and(|entry| entry.properties.asks());
        Ok(wire::Place { encrypts, wants_properties, has_origin, ..wire::Place::default() })
    }

    /// The name here of the snapshot that a clone is to be made of, if it is there and the sender may know of it.
    async fn origin(&self, order: &OrderToSlave, of: &CloneOf) -> Result<Option<SnapName>, ZfsError> {
        let is_of_same_pool = of.dataset.pool() == order.dest_dataset.pool();
        if !is_of_same_pool || self.local.permission_to_receive(&of.dataset, &order.source).is_err() {
            return Ok(None);
        }
        let found = self.look(&of.dataset).await?;
        Ok(found.and_then(|found| found.by_guid(of.guid).map(|s| s.name.clone())))
    }

    /// Makes ready for a stream, and says how it is to be received.
    pub async fn prepare(
        &self,
        order: &OrderToSlave,
        incoming: &Incoming,
        around: Around,
    ) -> Result<ReceiveSpec, StepError> {
        let dataset = &order.dest_dataset;
        let entry = self.local.permission_to_receive(dataset, &order.source)?;
        if incoming.overwrite {
            self.local.permission_to_destroy(dataset)?;
        }
        let origin = match &order.clone_of {
            Some(of) if incoming.cloned => {
                let gone = || {
                    let reason = format!("{} has no snapshot with the guid {} any more to clone", of.dataset, of.guid);
                    StepError::temporary(ResponseStatus::Refused, reason)
                };
                Some((of.dataset.clone(), self.origin(order, of).await?.ok_or_else(gone)?))
            }
            _ => None,
        };
        let kind = match incoming.create {
            Some(kind) => kind,
            None if entry.properties.is_empty() => DatasetKind::default(),
            None => self.look(dataset).await?.map(|found| found.kind).unwrap_or_default(),
        };
        if incoming.create.is_some() && !around.has_parent {
            self.zfs.create_ancestors(dataset).await?;
        }
        let properties = entry.properties.settings(kind, incoming.create.is_some(), &incoming.properties);
        Ok(ReceiveSpec { dataset: dataset.clone(), properties, origin, overwrite: incoming.overwrite })
    }

    /// Verifies what came by listing it: neither a zero exit status alone is a success nor another one alone a
    /// failure (a mount may fail after everything arrived). `before` is the dataset as it was then.
    pub async fn verify(
        &self,
        dataset: &DatasetName,
        incoming: &Incoming,
        before: Option<&DatasetInventory>,
        ended: Result<(), StepError>,
    ) -> Result<Option<DatasetInventory>, StepError> {
        let mut found = match before {
            // An increment that came in one piece adds snapshots and leaves the rest as it was.
            Some(before) if ended.is_ok() && incoming.create.is_none() && before.resume_token.is_none() => {
                let now = self.zfs.snapshots(dataset).await?;
                now.map(|(snapshots, bookmarks)| DatasetInventory {
                    snapshots,
                    bookmarks,
                    written: Some(0),
                    ..before.clone()
                })
            }
            _ => self.look(dataset).await?,
        };
        let newest = found.as_ref().and_then(DatasetInventory::newest);
        let arrived = match incoming.guid {
            Some(guid) => newest.is_some_and(|s| s.guid == guid),
            None => found.as_ref().is_some_and(|f| f.resume_token.is_none()) && ended.is_ok(),
        };
        match ended {
            Err(error) if arrived => log::warn!("{dataset}: all arrived, but: {}", error.reason),
            Err(error) if error.no_space => return Err(self.give_back(dataset, error).await),
            Err(error) => return Err(error),
            Ok(()) if arrived => {}
            Ok(()) => {
                let reason = format!("zfs receive ended well, but {dataset}@{} is not there", incoming.name);
                return Err(StepError::new(ResponseStatus::Zerror, reason));
            }
        }
        if let (Some(found), Some(flags)) = (&mut found, incoming.flags) {
            self.note_flags(dataset, found, flags).await;
        }
        Ok(found)
    }

    /// Notes on a copy how it was sent, once. Datasets below inherit the note from ZFS: it names its own.
    async fn note_flags(&self, dataset: &DatasetName, found: &mut DatasetInventory, flags: SendFlags) {
        let (None, Some(guid)) = (found.flags, found.guid) else { return };
        match self.zfs.set(dataset, tags::FLAGS, &format!("{flags} {guid}")).await {
            Ok(()) => found.flags = Some(flags),
            // The next transfer tries again; until then the flags are found out from both sides.
            Err(error) => log::warn!("{dataset}: how it was sent could not be noted: {error}"),
        }
    }

    /// What this host does when an order's stream has arrived: its clone follows, its hook is told. What arrived stays,
    /// whatever comes of that.
    pub async fn arrived(&self, order: &OrderToSlave) -> Result<(), StepError> {
        let (dataset, snapshot) = (&order.dest_dataset, &order.snapshot_name);
        let refused = |reason: String| StepError::new(ResponseStatus::Refused, reason);
        clones::follow(&*self.zfs, &self.local, dataset).await.map_err(|error| refused(error.to_string()))?;
        hooks::after_receive(&self.local, order.order_uuid, dataset, snapshot, &sender(order))
            .await
            .map_err(|error| refused(error.to_string()))
    }

    /// Throws away what arrived before the space ran out: kept for going on later, it would leave no space to
    /// anything else in the pool until then.
    async fn give_back(&self, dataset: &DatasetName, error: StepError) -> StepError {
        let pool = dataset.pool();
        let advice = match self.zfs.abort_receive(dataset).await {
            Ok(()) => format!(
                "what had arrived was thrown away; free space in the pool {pool}, enlarge it, or raise the quota, and it \
                 will be sent again"
            ),
            Err(left) => format!("what had arrived is still there: {left}"),
        };
        StepError { reason: format!("{}; {advice}", error.reason), ..error }
    }
}
