//! Defines orders as an agent carries them out: with one type for each kind of order, and checked for everything that
//! can be checked without ZFS.
//!
//! A [`CheckedOrder`] is made from a [`DirectorsOrder`], the message that zeplic defined. Only this module reads that
//! message; everything else in the agent works with the [`Request`] of the checked order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::actions::divergence::Allowed;
use crate::host::error::OrderError;
use crate::model::Place;
use crate::model::snapshot::SNAPSHOT_NAMESPACE;
use crate::model::{
    Action, DatasetName, Guid, HostName, OnDivergence, OrderId, Record, SentTo, SetAside, SnapName, SnapshotId,
};
use crate::policy::DEFAULT_RETRY_FOR;
use crate::slave::receive::Purpose;
use crate::wire::{CommonBase, DirectorsOrder, ExpectedSnapshot, Fence, Forgotten, PROTOCOL, RenamedFrom, RestoreFrom};

/// How many names one order may contain. Directors split larger orders.
const MAX_NAMES: usize = 20_000;

/// An order whose fields are valid and fit together.
#[derive(Clone, Debug)]
pub struct CheckedOrder {
    pub(crate) id: OrderId,
    /// The fence of the director that gives the order, if several directors share a catalog. If the director has
    /// authenticated itself, the fence has the name that it has proven.
    pub(crate) fence: Option<Fence>,
    /// How long the order is retried after temporary failures.
    pub(crate) retry_for: Duration,
    pub(crate) request: Request,
}

/// What an order asks for.
#[derive(Clone, Debug)]
pub enum Request {
    /// Take snapshots.
    Take(TakeRequest),
    /// Send a snapshot, and the snapshots before it that the destination lacks.
    Send(Box<SendRequest>),
    /// Destroy snapshots.
    Destroy(DestroyRequest),
    /// List datasets.
    List(ListRequest),
    /// Estimate how much a send would transfer.
    EstimateSend(EstimateSendRequest),
    /// Estimate how much a destroy would free.
    EstimateDestroy(DestroyRequest),
    /// Remove what transfers have left for destinations that are given up.
    Forget(ForgetRequest),
    /// Take snapshots back from the trash.
    Undelete(UndeleteRequest),
    /// Bring a copy back.
    Restore(Box<RestoreRequest>),
    /// Have restored datasets use the keys that the lost ones used.
    JoinKeys(JoinKeysRequest),
}

/// A request to take one snapshot of several datasets at once.
#[derive(Clone, Debug)]
pub struct TakeRequest {
    pub(crate) name: SnapName,
    /// At least one, sorted, without duplicates, all of one pool.
    pub(crate) datasets: Vec<DatasetName>,
    /// Leave out datasets without changes since their last snapshot.
    pub(crate) skip_if_not_written: bool,
}

/// A request to send a snapshot.
#[derive(Clone, Debug)]
pub struct SendRequest {
    pub(crate) snapshot: SnapshotId,
    /// The snapshot's dataset; `None` if the agent has to search for it.
    pub(crate) dataset: Option<DatasetName>,
    pub(crate) to: Place,
    /// The address of the destination's slave, if the order names one.
    pub(crate) address: Option<String>,
    /// What may be done to a destination that cannot take the next stream.
    pub(crate) allowed: Allowed,
    /// If the dataset is a clone: the dataset on the destination that the origin's dataset is sent to.
    pub(crate) origin_dataset: Option<DatasetName>,
    /// The copy that was made before the source was renamed, if there is one.
    pub(crate) renamed_from: Option<RenamedFrom>,
    /// Whether the destination is left alone while it is the copy of another dataset.
    pub(crate) awaits_rename: bool,
    /// Every destination of the dataset; empty if they are unknown. If they are known, holds for other destinations are
    /// released.
    pub(crate) destinations: Vec<Place>,
    /// The creation time of the oldest snapshot that the destination lacks.
    pub(crate) oldest_unsent: Option<DateTime<Utc>>,
    /// By when the transfer has to begin to meet its deadline.
    pub(crate) start_by: Option<DateTime<Utc>>,
    /// What the snapshot is sent for.
    pub(crate) purpose: Purpose,
}

/// A request to bring a copy back.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The copy.
    pub(crate) from: Place,
    /// The address of the agent of the copy's host, if the order names one.
    pub(crate) address: Option<String>,
    /// The snapshot to restore.
    pub(crate) snapshot: SnapshotId,
    /// Its name.
    pub(crate) name: SnapName,
    /// The dataset that receives.
    pub(crate) to: DatasetName,
    /// The dataset that is in the way, and is renamed first.
    pub(crate) set_aside: Option<SetAside>,
    /// The properties that are set on what is restored.
    pub(crate) properties: BTreeMap<String, String>,
    /// The dataset above it whose key the lost dataset used.
    pub(crate) key_from: Option<DatasetName>,
}

/// A request to have restored datasets use the keys that the lost ones used.
#[derive(Clone, Debug)]
pub struct JoinKeysRequest {
    /// They are within this dataset.
    pub(crate) root: DatasetName,
    /// Those whose keys are joined.
    pub(crate) datasets: Vec<DatasetName>,
    /// Only say which ones could be.
    pub(crate) read_only: bool,
}

impl SendRequest {
    /// A request to send a copy back, up to a snapshot. Nothing may be done to what exists there, but what `set_aside`
    /// names may be renamed.
    pub(crate) fn back(copy: DatasetName, snapshot: SnapshotId, to: Place, set_aside: Option<SetAside>) -> Self {
        Self {
            snapshot,
            dataset: Some(copy),
            to,
            address: None,
            allowed: Allowed::default(),
            origin_dataset: None,
            renamed_from: None,
            awaits_rename: false,
            destinations: Vec::new(),
            oldest_unsent: None,
            start_by: None,
            purpose: Purpose::Restore { snapshot, set_aside },
        }
    }
}

/// A request to destroy snapshots.
#[derive(Clone, Debug)]
pub struct DestroyRequest {
    pub(crate) snapshots: BTreeMap<DatasetName, Vec<SnapshotToDestroy>>,
    /// The snapshots in common with other hosts, which must be kept.
    pub(crate) keep_common_with: Vec<CommonBase>,
    /// Keep snapshots that no longer have the name in the order.
    pub(crate) skip_if_renamed: bool,
    /// The destroy is only estimated, and follows other orders. By then, a newer snapshot exists, and the holds of
    /// transfers have moved on.
    pub(crate) follows: bool,
}

/// A snapshot that an order names.
#[derive(Clone, Debug)]
pub struct SnapshotToDestroy {
    pub(crate) id: SnapshotId,
    /// The name that the director knows, if the order contains it.
    pub(crate) name: Option<SnapName>,
    /// What the director knows about it, if the order says so. Older directors do not.
    pub(crate) expected: Option<ExpectedSnapshot>,
}

/// A request to take snapshots back from the trash.
#[derive(Clone, Debug)]
pub struct UndeleteRequest {
    pub(crate) snapshots: BTreeMap<DatasetName, Vec<SnapshotToDestroy>>,
}

/// A request to remove what transfers have left for destinations that are given up.
#[derive(Clone, Debug)]
pub struct ForgetRequest {
    /// The destinations by source.
    pub(crate) sources: BTreeMap<DatasetName, BTreeSet<SentTo>>,
    /// Copies on this host that are given up.
    pub(crate) copies: Vec<DatasetName>,
}

/// A request to list datasets.
#[derive(Clone, Debug)]
pub struct ListRequest {
    /// The dataset to list with everything below it; `None`: all that local.json permits.
    pub(crate) root: Option<DatasetName>,
    /// Also list datasets that, according to ZFS, have not changed.
    pub(crate) relist: bool,
    /// Only answer: publish nothing.
    pub(crate) read_only: bool,
}

/// A request to estimate a send.
#[derive(Clone, Debug)]
pub struct EstimateSendRequest {
    pub(crate) snapshot: SnapshotId,
    /// The snapshot's dataset; `None` if the agent has to search for it.
    pub(crate) dataset: Option<DatasetName>,
    pub(crate) to: Place,
    /// The newest snapshot that the destination has in common with the source.
    pub(crate) common: Option<Guid>,
    /// The token of an interrupted receive at the destination.
    pub(crate) resume_token: Option<String>,
    /// What the snapshot would be sent for.
    pub(crate) purpose: Purpose,
}

impl Request {
    /// The action's name, for metrics and logs.
    pub(crate) fn action(&self) -> Action {
        match self {
            Self::Take(_) => Action::TakeSnapshot,
            Self::Send(_) => Action::SendSnapshot,
            Self::Destroy(_) => Action::DestroySnapshot,
            Self::List(_) => Action::KvResync,
            Self::EstimateSend(_) => Action::EstimateSend,
            Self::EstimateDestroy(_) => Action::EstimateDestroy,
            Self::Forget(_) => Action::ForgetDestination,
            Self::Undelete(_) => Action::UndeleteSnapshot,
            Self::Restore(_) => Action::RestoreDataset,
            Self::JoinKeys(_) => Action::JoinKeys,
        }
    }

    /// Whether the request may destroy snapshots or written data.
    pub(crate) fn may_lose_data(&self) -> bool {
        match self {
            // Without a cursor, the next transfer may have to be a full copy.
            Self::Destroy(_) | Self::Forget(_) => true,
            Self::Send(send) => send.allowed.rollback || send.allowed.on_divergence != OnDivergence::Stop,
            Self::Take(_)
            | Self::List(_)
            | Self::EstimateSend(_)
            | Self::EstimateDestroy(_)
            | Self::Undelete(_)
            | Self::Restore(_)
            | Self::JoinKeys(_) => false,
        }
    }

    /// Whether only the director that holds the lock of its catalog may request this. `zsync forget`, which people run,
    /// holds no lock.
    pub(crate) fn needs_fence(&self) -> bool {
        self.may_lose_data() && !matches!(self, Self::Forget(_))
    }
}

impl CheckedOrder {
    /// Replaces the name that the director claims to have by the one that it has proven.
    pub(crate) fn given_by(mut self, director: Option<&HostName>) -> Self {
        if let (Some(fence), Some(director)) = (&mut self.fence, director) {
            fence.director = Some(director.clone());
        }
        self
    }
}

impl TryFrom<DirectorsOrder> for CheckedOrder {
    type Error = OrderError;

    fn try_from(order: DirectorsOrder) -> Result<Self, OrderError> {
        if order.protocol > PROTOCOL {
            let reason = format!("protocol {} is newer than this agent's, {PROTOCOL}", order.protocol);
            return Err(OrderError::refused(reason));
        }
        let lists = [
            order.snapshot_uuid.len(),
            order.datasets.len(),
            order.keep_common_with.len(),
            order.expected.len(),
            order.forget.len(),
        ];
        let names = lists.into_iter().max().unwrap_or_default();
        if names > MAX_NAMES {
            let reason = format!("the order names {names} snapshots or datasets; {MAX_NAMES} are allowed in one order");
            return Err(OrderError::refused(reason));
        }
        Ok(Self {
            id: order.order_uuid,
            fence: order.fence.clone(),
            retry_for: order.retry_for.map_or(DEFAULT_RETRY_FOR, Duration::from_secs),
            request: Request::try_from(order)?,
        })
    }
}

impl TryFrom<DirectorsOrder> for Request {
    type Error = OrderError;

    fn try_from(order: DirectorsOrder) -> Result<Self, OrderError> {
        match order.action {
            Action::TakeSnapshot => take(order).map(Self::Take),
            Action::SendSnapshot => send(order).map(Box::new).map(Self::Send),
            // Only an estimate may leave out what protects snapshots now.
            Action::DestroySnapshot => destroy(DirectorsOrder { follows: false, ..order }).map(Self::Destroy),
            Action::KvResync => list(&order).map(Self::List),
            Action::EstimateSend => estimate_send(order).map(Self::EstimateSend),
            Action::EstimateDestroy => destroy(order).map(Self::EstimateDestroy),
            Action::ForgetDestination => Ok(Self::Forget(forget(order))),
            Action::UndeleteSnapshot => {
                destroy(order).map(|named| Self::Undelete(UndeleteRequest { snapshots: named.snapshots }))
            }
            Action::RestoreDataset => restore(order).map(Box::new).map(Self::Restore),
            Action::JoinKeys => {
                let root = field("DestDataset", &order.dest_dataset)?;
                Ok(Self::JoinKeys(JoinKeysRequest { root, datasets: order.datasets, read_only: order.read_only }))
            }
        }
    }
}

/// Parses a field of an order.
fn field<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, OrderError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| OrderError::refused(format!("{name}: {error}")))
}

fn take(order: DirectorsOrder) -> Result<TakeRequest, OrderError> {
    let name = field("SnapshotName", &order.snapshot_name)?;
    let mut datasets = vec![field("DestDataset", &order.dest_dataset)?];
    datasets.extend(order.datasets);
    datasets.sort();
    datasets.dedup();
    let first: &DatasetName = &datasets[0];
    if let Some(other) = datasets.iter().find(|dataset| dataset.pool() != first.pool()) {
        return Err(OrderError::refused(format!("{first} and {other} are in different pools")));
    }
    Ok(TakeRequest { name, datasets, skip_if_not_written: order.skip_if_not_written })
}

/// The snapshot that an order sends, and its destination.
fn snapshot_and_target(order: &DirectorsOrder) -> Result<(SnapshotId, Place), OrderError> {
    let host = field("Destination", &order.destination)?;
    let dataset = field("DestDataset", &order.dest_dataset)?;
    Ok((only_snapshot(order)?, Place { host, dataset }))
}

/// The one snapshot that an order names.
fn only_snapshot(order: &DirectorsOrder) -> Result<SnapshotId, OrderError> {
    let [snapshot] = order.snapshot_uuid.as_slice() else {
        return Err(OrderError::refused("SnapshotUUID: it must name exactly one snapshot"));
    };
    let uuid = snapshot.split(':').next().unwrap_or(snapshot);
    Ok(SnapshotId(field("SnapshotUUID", uuid)?))
}

fn restore(order: DirectorsOrder) -> Result<RestoreRequest, OrderError> {
    let snapshot = only_snapshot(&order)?;
    let name = field("SnapshotName", &order.snapshot_name)?;
    let to: DatasetName = field("DestDataset", &order.dest_dataset)?;
    let RestoreFrom { host, dataset, address, set_aside, properties, key_from } =
        order.restore.ok_or_else(|| OrderError::refused("Restore: it must name the copy"))?;
    if let Some(other) = key_from.as_ref().filter(|root| !to.ancestors().any(|above| above == **root)) {
        return Err(OrderError::refused(format!("KeyFrom: {to} is not below {other}")));
    }
    Ok(RestoreRequest { from: Place { host, dataset }, address, snapshot, name, to, set_aside, properties, key_from })
}

fn send(order: DirectorsOrder) -> Result<SendRequest, OrderError> {
    let (snapshot, to) = snapshot_and_target(&order)?;
    Ok(SendRequest {
        snapshot,
        dataset: order.dataset,
        to,
        address: order.destination_address,
        allowed: Allowed {
            rollback: order.rollback_if_needed,
            may_destroy: order.rollback_may_destroy,
            on_divergence: order.on_divergence,
        },
        origin_dataset: order.origin_dataset,
        renamed_from: order.renamed_from,
        awaits_rename: order.awaits_rename,
        destinations: order.destinations.into_iter().map(|(host, dataset)| Place { host, dataset }).collect(),
        oldest_unsent: order.oldest_unsent,
        start_by: order.start_by,
        purpose: Purpose::Copy,
    })
}

fn destroy(order: DirectorsOrder) -> Result<DestroyRequest, OrderError> {
    let expected: BTreeMap<SnapshotId, ExpectedSnapshot> =
        order.expected.into_iter().map(|expected| (expected.guid.uuid(), expected)).collect();
    let mut snapshots: BTreeMap<DatasetName, Vec<SnapshotToDestroy>> = BTreeMap::new();
    for text in &order.snapshot_uuid {
        let (dataset, id, name) = match text.parse::<Record>() {
            Ok(record) => (record.dataset, record.uuid, Some(record.name)),
            Err(error) => {
                let Ok(uuid) = text.parse() else {
                    return Err(OrderError::refused(format!("SnapshotUUID: {error}")));
                };
                let dataset = field("a UUID alone needs DestDataset", &order.dest_dataset)?;
                (dataset, SnapshotId(uuid), None)
            }
        };
        let snapshot = SnapshotToDestroy { id, name, expected: expected.get(&id).cloned() };
        snapshots.entry(dataset).or_default().push(snapshot);
    }
    let (keep_common_with, skip_if_renamed) = (order.keep_common_with, order.skip_if_renamed);
    Ok(DestroyRequest { snapshots, keep_common_with, skip_if_renamed, follows: order.follows })
}

fn forget(order: DirectorsOrder) -> ForgetRequest {
    let mut sources: BTreeMap<DatasetName, BTreeSet<SentTo>> = BTreeMap::new();
    for Forgotten { dataset, to } in order.forget {
        sources.entry(dataset).or_default().insert(to);
    }
    ForgetRequest { sources, copies: order.datasets }
}

fn list(order: &DirectorsOrder) -> Result<ListRequest, OrderError> {
    let root = match order.dest_dataset.as_str() {
        "" => None,
        name => Some(field("DestDataset", name)?),
    };
    Ok(ListRequest { root, relist: order.from_scratch, read_only: order.read_only })
}

fn estimate_send(order: DirectorsOrder) -> Result<EstimateSendRequest, OrderError> {
    let (snapshot, to) = snapshot_and_target(&order)?;
    let common = order.keep_common_with.iter().find(|base| base.host == to.host && base.dataset == to.dataset);
    let common = common.map(|base| base.guid);
    let purpose = if order.restore.is_some() { Purpose::Restore { snapshot, set_aside: None } } else { Purpose::Copy };
    Ok(EstimateSendRequest { snapshot, dataset: order.dataset, to, common, resume_token: order.resume_token, purpose })
}

/// Identifies an order, so that an order that arrives again is recognised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrderKey {
    pub(crate) id: OrderId,
    /// Two orders with the same content have the same fingerprint.
    pub(crate) fingerprint: Uuid,
    /// Whether the order changes anything, so that its answer is worth remembering.
    pub(crate) has_effects: bool,
}

impl From<&DirectorsOrder> for OrderKey {
    fn from(order: &DirectorsOrder) -> Self {
        let content = serde_json::to_vec(order).unwrap_or_default();
        Self {
            id: order.order_uuid,
            fingerprint: Uuid::new_v5(&SNAPSHOT_NAMESPACE, &content),
            has_effects: match order.action {
                Action::TakeSnapshot
                | Action::SendSnapshot
                | Action::DestroySnapshot
                | Action::ForgetDestination
                | Action::UndeleteSnapshot
                | Action::RestoreDataset
                | Action::JoinKeys => true,
                Action::KvResync | Action::EstimateSend | Action::EstimateDestroy => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fields: &str) -> Result<Request, String> {
        let text = format!(r#"{{"OrderUUID":"9b2c1c4e-1111-4222-8333-0123456789ab",{fields}}}"#);
        let order: DirectorsOrder = serde_json::from_str(&text).unwrap();
        CheckedOrder::try_from(order).map(|order| order.request).map_err(|error| error.to_string())
    }

    #[test]
    fn take_sorts_datasets_and_refuses_two_pools() {
        let take = r#""Action":"take_snapshot","SnapshotName":"S","DestDataset":"tank/b","Datasets":"#;
        let Ok(Request::Take(request)) = check(&format!(r#"{take}["tank/a","tank/b"]"#)) else { panic!() };
        assert_eq!(request.datasets.iter().map(DatasetName::as_str).collect::<Vec<_>>(), ["tank/a", "tank/b"]);
        let error = check(&format!(r#"{take}["other/a"]"#)).unwrap_err();
        assert_eq!(error, "other/a and tank/b are in different pools");
    }

    #[test]
    fn destroy_accepts_records_and_bare_uuids() {
        let uuid = Guid(7).uuid();
        let records = format!(r#""Action":"destroy_snapshot","SnapshotUUID":["{uuid}","{uuid}:tank/a@S"]"#);
        let error = check(&records).unwrap_err();
        assert!(error.starts_with("a UUID alone needs DestDataset: "), "{error}");
        let Ok(Request::Destroy(request)) = check(&format!(r#"{records},"DestDataset":"tank/a""#)) else { panic!() };
        let names: Vec<bool> = request.snapshots.values().flatten().map(|s| s.name.is_some()).collect();
        assert_eq!(names, [false, true]);
    }

    #[test]
    fn send_names_exactly_one_snapshot() {
        let send = r#""Action":"send_snapshot","Destination":"beta","DestDataset":"pool/copy","SnapshotUUID":"#;
        assert!(check(&format!(r#"{send}["{}"]"#, Guid(7).uuid())).is_ok());
        for uuids in ["[]", r#"["x"]"#, r#"["x","y"]"#] {
            let error = check(&format!("{send}{uuids}")).unwrap_err();
            assert!(error.starts_with("SnapshotUUID: "), "{error}");
        }
    }
}
