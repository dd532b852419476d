//! The receiving side of a transfer: the slave's, and that of a copy within one host.

use std::sync::Arc;

use super::busy::{Busy, Claim};
use super::marks;
use crate::config::Local;
use crate::model::{
    DatasetInventory, DatasetKind, DatasetName, DatasetStatus, Guid, HostName, Identity, ResponseStatus, SnapName,
};
use crate::policy::Target;
use crate::zfs::{Depth, ErrorKind, ReceiveSpec, Zfs, ZfsError};

/// What a host does to receive.
pub struct Receiving<Z> {
    /// Its ZFS.
    pub zfs: Arc<Z>,
    /// What it lets in.
    pub local: Arc<Local>,
    /// The datasets being received into.
    pub busy: Busy,
}

/// Why a transfer does not begin.
#[derive(Debug)]
pub struct NotOpen {
    /// As the ancestor numbered it, where the configuration says no.
    pub status: Option<DatasetStatus>,
    /// In words.
    pub reason: String,
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
}

impl<Z> Clone for Receiving<Z> {
    fn clone(&self) -> Self {
        Self { zfs: Arc::clone(&self.zfs), local: Arc::clone(&self.local), busy: self.busy.clone() }
    }
}

impl<Z: Zfs> Receiving<Z> {
    /// Checks that `source` may send into `dataset`, and that a peer may speak for it, and claims the dataset.
    pub fn open(&self, source: &HostName, peer: Option<&Identity>, dataset: &DatasetName) -> Result<Claim, NotOpen> {
        let may_speak = self.local.permission_to_speak_for(peer, source, dataset);
        if let Err(denied) = may_speak.and_then(|()| self.local.permission_to_receive(dataset, source).map(drop)) {
            return Err(NotOpen { status: Some(denied.status()), reason: denied.to_string() });
        }
        self.busy
            .claim(dataset)
            .ok_or_else(|| NotOpen { status: None, reason: format!("{dataset} is being received into already") })
    }

    /// The dataset as it is; `None` if it does not exist.
    pub async fn look(&self, dataset: &DatasetName) -> Result<Option<DatasetInventory>, ZfsError> {
        let listed = self.zfs.list(std::slice::from_ref(dataset), Depth::Only).await?;
        Ok(listed.into_iter().find(|(name, _)| name == dataset).map(|(_, inventory)| inventory))
    }

    /// Makes ready for a stream, and says how it is to be received.
    pub async fn prepare(&self, dataset: &DatasetName, incoming: &Incoming) -> Result<ReceiveSpec, StepError> {
        if incoming.overwrite {
            self.may_lose(dataset)?;
        }
        if incoming.create.is_some() {
            self.zfs.create_ancestors(dataset).await?;
        }
        Ok(ReceiveSpec { dataset: dataset.clone(), create: incoming.create, overwrite: incoming.overwrite })
    }

    /// Verifies what came by listing it: neither a zero exit status alone is a success nor another one alone a
    /// failure (a mount may fail after everything arrived).
    pub async fn verify(
        &self,
        dataset: &DatasetName,
        incoming: &Incoming,
        ended: Result<(), StepError>,
    ) -> Result<Option<DatasetInventory>, StepError> {
        let found = self.look(dataset).await?;
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
        Ok(found)
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

    /// Whether something in the dataset may be lost, says the host's configuration.
    fn may_lose(&self, dataset: &DatasetName) -> Result<(), StepError> {
        let denied = self.local.permission_to_destroy(dataset).err();
        denied.map_or(Ok(()), |denied| Err(StepError::new(ResponseStatus::Refused, denied.to_string())))
    }

    /// Rolls back to the newest snapshot, which must have this guid: no snapshot is lost by that.
    pub async fn rollback(&self, dataset: &DatasetName, guid: Guid) -> Result<(), StepError> {
        self.may_lose(dataset)?;
        let found = self.look(dataset).await?;
        let Some(newest) = found.as_ref().and_then(|f| f.newest()).filter(|s| s.guid == guid) else {
            let reason = format!("{dataset} is not rolled back: its newest snapshot is not the common one");
            return Err(StepError::new(ResponseStatus::NotEmpty, reason));
        };
        log::warn!("{dataset} was written to and is rolled back to @{}, as the policy allows", newest.name);
        Ok(self.zfs.rollback(dataset, &newest.name).await?)
    }

    /// Holds the newest common snapshot, then releases older holds of the same source: there is always one.
    pub async fn settle(&self, dataset: &DatasetName, from: &Target, guid: Guid) -> Result<(), ZfsError> {
        let Some(inventory) = self.look(dataset).await? else { return Ok(()) };
        let Some(common) = inventory.by_guid(guid) else { return Ok(()) };
        let tag = marks::received(from);
        let held: Vec<SnapName> =
            inventory.snapshots.iter().filter(|s| s.userrefs > 0).map(|s| s.name.clone()).collect();
        let holds = self.zfs.holds(dataset, &held).await?;
        let ours: Vec<SnapName> = holds.into_iter().filter(|(_, t)| *t == tag).map(|(name, _)| name).collect();
        if !ours.contains(&common.name) {
            self.zfs.hold(&tag, dataset, std::slice::from_ref(&common.name)).await?;
        }
        let older: Vec<SnapName> = ours.into_iter().filter(|name| *name != common.name).collect();
        self.zfs.release(&tag, dataset, &older).await
    }
}
