//! Implements the receiving side of a transfer. A slave uses it for streams from other hosts, an agent for copies
//! between pools of its own host.
//!
//! Whatever an order asks for, every step that could lose data is checked here against ZFS as it is at that moment.
//! [`Receiver`] prepares a receive and verifies what arrived; `conflict` changes a destination that cannot take the
//! next stream; `holds` keeps the newest common snapshot held; `owner` finds out whose copy a dataset is; `restore` has
//! what differs if a copy is brought back.

mod conflict;
mod holds;
mod owner;
mod restore;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::host::error::OrderError;
use crate::host::locks::DatasetLocks;
use crate::host::publish::publisher::Publisher;
use crate::host::queue::TransferQueue;
use crate::host::{clones, hooks};
use crate::model::Place;
use crate::model::tags::{EXCLUDE, FLAGS, PARENT};
use crate::model::{
    DatasetInventory, DatasetKind, DatasetName, Guid, HostName, Identity, KeyConflict, ResponseStatus, SendFlags,
    SetAside, SnapName, SnapshotId,
};
use crate::policy::properties::ReceiveTarget;
use crate::policy::{Denied, Local, LocalDataset};
use crate::wire::{CloneOf, DestinationInfo, OrderToSlave};
use crate::zfs::{Depth, Listed, ReceiveSpec, Zfs, ZfsError, ZfsRead};

pub(crate) use holds::Settled;

/// Receives streams on a host.
pub struct Receiver<Z> {
    pub(crate) zfs: Arc<Z>,
    /// What the host permits.
    pub(crate) local: Arc<Local>,
    /// The datasets that streams are received into.
    pub(crate) locks: DatasetLocks,
    /// Limits how many streams are received at once.
    /// Whether it receives from other hosts.
    is_for_others: bool,
    pub(crate) queue: TransferQueue,
    /// Publishes this host's datasets, if a shared catalog is configured.
    pub(crate) publisher: Option<Arc<Publisher>>,
    pub(crate) purpose: Purpose,
}

/// What a stream is sent and received for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To make or update a copy.
    #[default]
    Copy,
    /// To restore a dataset from a copy.
    Restore {
        /// Up to this snapshot.
        snapshot: SnapshotId,
        /// The dataset that is in the way, and is renamed immediately before the first stream is received.
        set_aside: Option<SetAside>,
    },
}

impl Purpose {
    pub(crate) fn is_restore(&self) -> bool {
        matches!(self, Self::Restore { .. })
    }
}

/// How many datasets a key conflict names at most.
const MAX_NAMED: usize = 5;

/// The datasets above a destination, as last listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Whether the nearest existing dataset above is encrypted: a new dataset inherits that, unless it is below a raw
    /// copy.
    pub(crate) encrypts: bool,
    /// Whether the nearest existing dataset above is a raw copy. Its key belongs to the source, and is usually not
    /// loaded. So what is not encrypted at the source is not encrypted below it either.
    pub(crate) is_below_raw_copy: bool,
    /// Whether the parent dataset exists.
    pub(crate) has_parent: bool,
    /// The nearest dataset above that is a copy, as far as is known.
    pub(crate) copy_above: Option<DatasetName>,
    /// Why the destination cannot take raw increments, if its key prevents that.
    pub(crate) key_conflict: Option<KeyConflict>,
}

impl Surroundings {
    /// The surroundings of a dataset in a listing with [`Depth::Around`]. Asks ZFS about the datasets below a copy that
    /// has a key.
    pub(crate) async fn of<Z: ZfsRead>(zfs: &Z, dataset: &DatasetName, listed: &[Listed]) -> Result<Self, ZfsError> {
        let mut above: Vec<_> = listed.iter().filter(|(name, _)| name != dataset && dataset.is_within(name)).collect();
        above.sort_by_key(|(name, _)| std::cmp::Reverse(name.as_str().len()));
        let around = match above.first() {
            Some((nearest, inventory)) => {
                let has_parent = dataset.parent().as_ref() == Some(nearest);
                let copy_above = above.iter().find(|(_, found)| found.flags.is_some()).map(|(name, _)| name.clone());
                Self { has_parent, copy_above, ..Self::below(inventory) }
            }
            None => Self::default(),
        };
        let copy =
            listed.iter().find(|(name, found)| name == dataset && found.encrypted && !found.snapshots.is_empty());
        let key_conflict = match copy {
            // A clone has the key of its origin, and takes a new key together with it.
            None | Some((_, DatasetInventory { origin: Some(_), .. })) => None,
            Some((_, DatasetInventory { key_from: Some(root), .. })) => {
                Some(KeyConflict::Foreign { root: root.clone() })
            }
            Some(_) => {
                let mut users = zfs.key_users(dataset).await?;
                users.truncate(MAX_NAMED);
                (!users.is_empty()).then_some(KeyConflict::Shared { users })
            }
        };
        Ok(Self { key_conflict, ..around })
    }

    /// The surroundings of a dataset that does not exist yet, below its parent.
    pub(crate) fn below(parent: &DatasetInventory) -> Self {
        let is_raw = parent.is_raw_copy();
        Self { encrypts: parent.encrypted && !is_raw, is_below_raw_copy: is_raw, has_parent: true, ..Self::default() }
    }
}

/// The reason for refusing a second order for a dataset that already receives.
pub(crate) fn occupied(dataset: &DatasetName) -> String {
    format!("another transfer into {dataset} is already running")
}

/// Describes a stream that is about to be received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncomingStream {
    /// The guid of the snapshot that will be the newest; `None` for a resumed stream, whose end only ZFS knows.
    pub(crate) guid: Option<Guid>,
    /// The name of that snapshot.
    pub(crate) name: SnapName,
    /// The kind of a new dataset; `None` for an increment or a resumed receive.
    pub(crate) create: Option<DatasetKind>,
    /// Whether an existing dataset without snapshots is replaced.
    pub(crate) overwrite: bool,
    /// Whether the dataset becomes a clone of the snapshot that the order names.
    pub(crate) cloned: bool,
    /// The flags of the stream; `None` for a resumed receive.
    pub(crate) flags: Option<SendFlags>,
    /// Whether the receive cannot be resumed, because the pool refuses one that can.
    pub(crate) is_unresumable: bool,
    /// The source's properties, where the receiver asked for them.
    pub(crate) properties: BTreeMap<String, String>,
}

impl<Z> Clone for Receiver<Z> {
    fn clone(&self) -> Self {
        let (zfs, local) = (Arc::clone(&self.zfs), Arc::clone(&self.local));
        let (locks, queue, publisher) = (self.locks.clone(), self.queue.clone(), self.publisher.clone());
        let (is_for_others, purpose) = (self.is_for_others, self.purpose.clone());
        Self { zfs, local, locks, is_for_others, queue, publisher, purpose }
    }
}

/// The dataset that an order's streams come from.
fn source_of(order: &OrderToSlave) -> Place {
    let dataset = order.source_dataset.clone().unwrap_or_else(|| order.dest_dataset.clone());
    Place { host: order.source.clone(), dataset }
}

impl<Z: Zfs> Receiver<Z> {
    /// Creates a receiver of this host's own transfers.
    pub(crate) fn new(zfs: Arc<Z>, local: Arc<Local>) -> Self {
        let queue = TransferQueue::new(local.max_receives);
        let (locks, purpose) = (DatasetLocks::default(), Purpose::Copy);
        Self { zfs, local, locks, is_for_others: false, queue, publisher: None, purpose }
    }

    /// Creates a receiver of other hosts' transfers.
    pub(crate) fn for_others(zfs: Arc<Z>, local: Arc<Local>) -> Self {
        Self { is_for_others: true, ..Self::new(zfs, Arc::clone(&local)) }.with_local(local)
    }

    /// Returns the receiver for another purpose. Both share locks and slots.
    pub(crate) fn for_purpose(&self, purpose: Purpose) -> Self {
        Self { purpose, ..self.clone() }
    }

    /// Makes the receiver publish what it receives.
    pub(crate) fn publishing(self, publisher: Option<Arc<Publisher>>) -> Self {
        Self { publisher, ..self }
    }

    /// Returns the receiver with another configuration. Running receives keep their locks and slots.
    pub(crate) fn with_local(&self, local: Arc<Local>) -> Self {
        // One host must not take all slots from the others.
        let queue = if self.is_for_others && local.has_several_sources() {
            TransferQueue::shared(local.max_receives)
        } else {
            TransferQueue::new(local.max_receives)
        };
        let queue = if queue.is_like(&self.queue) { self.queue.clone() } else { queue };
        Self { local, queue, ..self.clone() }
    }

    /// Checks that `source` may send into `dataset`, and that `peer` may act in the name of `source`.
    pub(crate) fn check_permission(
        &self,
        source: &HostName,
        peer: Option<&Identity>,
        dataset: &DatasetName,
    ) -> Result<(), Denied> {
        if !self.purpose.is_restore() {
            self.local.permission_to_speak_for(peer, source, dataset)?;
        }
        self.permission(dataset, source).map(drop)
    }

    /// Whether the dataset may receive. A restore needs no `slave`: this host itself has asked for it.
    fn permission(&self, dataset: &DatasetName, source: &HostName) -> Result<&LocalDataset, Denied> {
        match &self.purpose {
            Purpose::Copy => self.local.permission_to_receive(dataset, source),
            Purpose::Restore { .. } => self.local.permission_to_restore(dataset),
        }
    }

    /// Lists one dataset; `None` if it does not exist.
    pub(crate) async fn list(&self, dataset: &DatasetName) -> Result<Option<DatasetInventory>, ZfsError> {
        let listed = self.zfs.list(std::slice::from_ref(dataset), Depth::Only).await?;
        Ok(listed.into_iter().find(|(name, _)| name == dataset).map(|found| self.with_permission(found)))
    }

    /// The inventory of a dataset, which notes whether it is append-only: otherwise a director would have snapshots of
    /// a new copy destroyed before it has listed the copy for the first time.
    pub(crate) fn with_permission(&self, (name, inventory): (DatasetName, DatasetInventory)) -> DatasetInventory {
        let append_only = Some(self.local.permission_to_destroy(&name).is_err());
        DatasetInventory { append_only, ..inventory }
    }

    /// Lists one dataset and the datasets above it. A dataset that a restore sets aside counts as missing.
    pub(crate) async fn list_around(
        &self,
        dataset: &DatasetName,
    ) -> Result<(Option<DatasetInventory>, Surroundings), ZfsError> {
        let mut listed = self.zfs.list(std::slice::from_ref(dataset), Depth::Around).await?;
        let surroundings = Surroundings::of(&*self.zfs, dataset, &listed).await?;
        let found =
            listed.iter().position(|(name, _)| name == dataset).map(|at| self.with_permission(listed.swap_remove(at)));
        self.without_what_is_in_the_way(dataset, found, surroundings).await
    }

    /// What the sender has to know about the destination besides its snapshots.
    pub(crate) async fn place(
        &self,
        order: &OrderToSlave,
        found: Option<&DatasetInventory>,
        surroundings: &Surroundings,
    ) -> Result<DestinationInfo, ZfsError> {
        let dataset = &order.dest_dataset;
        let encrypts = found.map_or(surroundings.encrypts, |found| found.encrypted);
        let has_origin = match &order.clone_of {
            Some(of) if found.is_none_or(|found| found.snapshots.is_empty()) => {
                let origin = self.origin(order, of).await?;
                // A clone is encrypted only if its origin is. Below a raw copy whose key is not loaded, ZFS makes no
                // unencrypted clone.
                let may_be_plain = !encrypts && !surroundings.is_below_raw_copy;
                origin.is_some_and(|(_, is_encrypted)| is_encrypted || may_be_plain)
            }
            _ => false,
        };
        let is_copy = !self.purpose.is_restore();
        let wants_properties = is_copy && self.local.entry_for(dataset).is_some_and(|entry| entry.properties.asks());
        let is_placeholder = is_copy && self.is_placeholder(dataset, found).await?;
        let key_conflict = surroundings.key_conflict.clone();
        let is_new = |found: &DatasetInventory| found.snapshots.is_empty() && found.resume_token.is_some();
        let has_foreign_partial =
            surroundings.is_below_raw_copy && found.is_some_and(|found| is_new(found) && found.encrypted);
        Ok(DestinationInfo {
            encrypts,
            wants_properties,
            has_origin,
            is_placeholder,
            has_foreign_partial,
            key_conflict,
            ..DestinationInfo::default()
        })
    }

    /// Whether a dataset is one that zsync made only to contain others, and nobody has used since. Such a dataset gives
    /// way to a copy: otherwise, zsync would be in its own way.
    pub(crate) async fn is_placeholder(
        &self,
        dataset: &DatasetName,
        found: Option<&DatasetInventory>,
    ) -> Result<bool, ZfsError> {
        // ZFS does not replace an encrypted filesystem.
        let may_be = |found: &&DatasetInventory| found.snapshots.is_empty() && !found.encrypted;
        if found.filter(may_be).is_none_or(|found| found.resume_token.is_some()) {
            return Ok(false);
        }
        let properties = self.zfs.properties(dataset).await?;
        let is = |property: &str, value: &str| properties.get(property).is_some_and(|found| found == value);
        Ok(is(PARENT, dataset.as_str()) && is("canmount", "off") && is("mountpoint", "none"))
    }

    /// The local name of the snapshot that the order's clone is made of, if it exists and the sender may see it.
    /// Also returns whether it is encrypted.
    async fn origin(&self, order: &OrderToSlave, of: &CloneOf) -> Result<Option<(SnapName, bool)>, ZfsError> {
        let is_of_same_pool = of.dataset.pool() == order.dest_dataset.pool();
        if !is_of_same_pool || self.local.permission_to_receive(&of.dataset, &order.source).is_err() {
            return Ok(None);
        }
        let found = self.list(&of.dataset).await?;
        let checked = self.check_owner(&order.source, &of.dataset, found.as_ref(), &Surroundings::default()).await;
        if checked.is_err() {
            return Ok(None);
        }
        Ok(found.and_then(|found| found.by_guid(of.guid).map(|s| (s.name.clone(), found.encrypted))))
    }

    /// Prepares a receive: checks permissions, creates missing parents, and returns the arguments of `zfs receive`.
    pub(crate) async fn prepare(
        &self,
        order: &OrderToSlave,
        incoming: &IncomingStream,
        surroundings: &Surroundings,
    ) -> Result<ReceiveSpec, OrderError> {
        let dataset = &order.dest_dataset;
        let entry = self.permission(dataset, &order.source)?;
        if self.purpose.is_restore() {
            return self.prepare_restore(dataset, &order.source, incoming, surroundings).await;
        }
        if incoming.overwrite && !self.is_placeholder(dataset, self.list(dataset).await?.as_ref()).await? {
            self.local.permission_to_roll_back(dataset)?;
        }
        let origin = match &order.clone_of {
            Some(of) if incoming.cloned => {
                let gone = || {
                    let reason = format!("{} no longer has a snapshot with the guid {} to clone", of.dataset, of.guid);
                    OrderError::temporary(ResponseStatus::Refused, reason)
                };
                let (name, _) = self.origin(order, of).await?.ok_or_else(gone)?;
                Some((of.dataset.clone(), name))
            }
            _ => None,
        };
        let kind = match incoming.create {
            Some(kind) => kind,
            None if entry.properties.is_empty() => DatasetKind::default(),
            None => self.list(dataset).await?.map(|found| found.kind).unwrap_or_default(),
        };
        if incoming.create.is_some() && !surroundings.has_parent {
            self.zfs.create_ancestors(dataset).await.map_err(OrderError::receiving)?;
        }
        let target = match incoming.create {
            None => ReceiveTarget::Existing,
            Some(_) if dataset.parent().is_none() => ReceiveTarget::Pool,
            Some(_) => ReceiveTarget::New,
        };
        let mut properties = entry.properties.settings(kind, target, &incoming.properties);
        let is_plain = incoming.flags.is_some_and(|flags| flags != SendFlags::Raw);
        if incoming.create.is_some() && is_plain && surroundings.is_below_raw_copy {
            properties.insert("encryption".to_owned(), "off".to_owned());
        }
        let (overwrite, is_unresumable) = (incoming.overwrite, incoming.is_unresumable);
        Ok(ReceiveSpec { dataset: dataset.clone(), properties, origin, overwrite, is_unresumable })
    }

    /// Verifies a receive by listing the dataset, and returns the listing.
    ///
    /// The exit status of `zfs receive` is not enough: status 0 does not prove that the snapshot exists, and after
    /// another status everything may have arrived (if only the mount failed). `before` is the dataset as it was before
    /// the receive.
    pub(crate) async fn verify(
        &self,
        dataset: &DatasetName,
        incoming: &IncomingStream,
        before: Option<&DatasetInventory>,
        ended: Result<(), OrderError>,
    ) -> Result<Option<DatasetInventory>, OrderError> {
        let mut found = match before {
            // A complete increment adds snapshots and leaves everything else as it was.
            Some(before) if ended.is_ok() && incoming.create.is_none() && before.resume_token.is_none() => {
                let now = self.zfs.snapshots(dataset).await?;
                now.map(|(snapshots, bookmarks)| DatasetInventory {
                    snapshots,
                    bookmarks,
                    written: Some(0),
                    ..before.clone()
                })
            }
            _ => self.list(dataset).await?,
        };
        let newest = found.as_ref().and_then(DatasetInventory::newest);
        let arrived = match incoming.guid {
            Some(guid) => newest.is_some_and(|s| s.guid == guid),
            None => found.as_ref().is_some_and(|f| f.resume_token.is_none()) && ended.is_ok(),
        };
        match ended {
            Err(error) if arrived => log::warn!("{dataset}: the whole stream arrived despite an error: {error}"),
            Err(error) if error.is_out_of_space() => return Err(self.discard_partial(dataset, error).await),
            Err(error) => return Err(error),
            Ok(()) if arrived => {}
            Ok(()) => {
                let reason = format!("zfs receive succeeded, but {dataset}@{} does not exist", incoming.name);
                return Err(OrderError::new(ResponseStatus::Zerror, reason));
            }
        }
        if let (Some(found), Some(flags)) = (&mut found, incoming.flags) {
            self.record_flags(dataset, found, flags).await;
        }
        Ok(found)
    }

    /// Records the flags of a copy's streams in a property. The property includes the dataset's guid, because the
    /// datasets below inherit it.
    async fn record_flags(&self, dataset: &DatasetName, found: &mut DatasetInventory, flags: SendFlags) {
        let is_new = match (found.flags, flags) {
            (None, _) => true,
            // A destination with few features can refuse some of the flags later.
            (Some(made @ SendFlags::Plain { .. }), SendFlags::Plain { .. }) => made != flags,
            (Some(_), _) => false,
        };
        let (true, Some(guid)) = (is_new, found.guid) else { return };
        match self.zfs.set(dataset, FLAGS, &format!("{flags} {guid}")).await {
            Ok(()) => found.flags = Some(flags),
            // The next transfer tries again; until then the flags are derived from both sides.
            Err(error) => log::warn!("{dataset}: cannot record the flags of its streams: {error}"),
        }
    }

    /// Updates the clone and runs the hook that this host has for a received dataset. A failure here undoes nothing:
    /// the received snapshots stay.
    pub(crate) async fn after_receive(&self, order: &OrderToSlave) -> Result<(), OrderError> {
        if self.purpose.is_restore() {
            return Ok(());
        }
        let (dataset, snapshot) = (&order.dest_dataset, &order.snapshot_name);
        clones::follow(&*self.zfs, &self.local, dataset).await?;
        Ok(hooks::after_receive(&self.local, order.order_uuid, dataset, snapshot, &source_of(order)).await?)
    }

    /// Discards a partial receive after the space ran out. If it were kept for resuming, it would leave no space for
    /// anything else in the pool.
    async fn discard_partial(&self, dataset: &DatasetName, error: OrderError) -> OrderError {
        match self.zfs.abort_receive(dataset).await {
            Ok(()) => error
                .context(format!("cannot receive into {dataset} (the partial stream was discarded)"))
                .with_hint(format!(
                    "free space in the pool {}, enlarge it, or raise the quota; then the stream is sent again",
                    dataset.pool()
                )),
            Err(left) => {
                error.context(format!("cannot receive into {dataset}, and cannot discard the partial stream ({left})"))
            }
        }
    }
}
