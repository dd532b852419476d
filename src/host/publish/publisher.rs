//! Publishes the records of a host in the shared catalog, and keeps them consistent with its ZFS.
//!
//! The datasets that an order touched are listed again and published before the order is answered. Datasets that other
//! orders touched in the meantime are published together. While Consul is unreachable, the host is behind: marks, which
//! cannot be read from ZFS later, are kept in a file. Once Consul is back, the host is listed and published as a whole.
//!
//! The generation of the records is read before ZFS is listed. Therefore, if a host has two processes, the one with the
//! older listing never overwrites what the other one has published.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::catalog::{CatalogError, Change, ConsulCatalog, differences};
use crate::host::trash;
use crate::model::{DatasetInventory, DatasetName, HostInventory, HostListing, HostName, UnlistedPools};
use crate::policy::Local;
use crate::sys::batcher::Batcher;
use crate::sys::{clock, files, runtime};
use crate::zfs::{Depth, Known, Listed, ZfsError, ZfsRead};

/// How long the answer to an order waits for its publication.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest number of attempts to publish, if other processes of this host change the records meanwhile.
const MAX_ATTEMPTS: u32 = 12;
/// How often a host is listed to find what was changed outside zsync. Datasets whose snapshots have not changed are not
/// listed one by one.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// How many marks are kept while Consul is unreachable. The oldest are dropped first.
const MAX_KEPT: usize = 10_000;

/// The datasets of a host.
type HostDatasets = BTreeMap<DatasetName, DatasetInventory>;

/// Publishes one host.
pub struct Publisher {
    records: Arc<Records>,
    /// There is only one key, because the changes of all orders of a host are published together.
    batches: Batcher<(), PublishRequest, bool>,
}

/// What an order changed: the datasets that it touched, and marks.
struct PublishRequest {
    touched: BTreeSet<DatasetName>,
    marks: Vec<(DatasetName, Change)>,
}

/// The listing of a publication that runs.
type Running<T> = Pin<Box<dyn Future<Output = Result<T, ZfsError>> + Send>>;

/// What this process published last.
#[derive(Default)]
struct LastPublished {
    host: HostInventory,
    /// When the whole host was listed last.
    listed: Option<Instant>,
}

/// The records of a host.
struct Records {
    host: HostName,
    catalog: ConsulCatalog,
    list: Box<dyn Fn(Vec<DatasetName>) -> Running<Vec<Listed>> + Send + Sync>,
    list_pools: Box<dyn Fn(Vec<DatasetName>, Known) -> Running<HostListing> + Send + Sync>,
    last: Mutex<LastPublished>,
    file: PathBuf,
    backlog: Mutex<Backlog>,
    wake: (runtime::channel::Sender<()>, runtime::channel::Receiver<()>),
}

/// What is not published yet.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Backlog {
    /// Marks, which cannot be read from ZFS.
    marks: Vec<(DatasetName, Change)>,
    /// Why the host is behind; `None` if everything is published.
    #[serde(skip)]
    reason: Option<String>,
    /// How many times the host fell behind. A listing that was made before the last time may lack something.
    #[serde(skip)]
    lapses: u64,
}

impl Backlog {
    fn lapse(&mut self, reason: String) {
        self.reason = Some(reason);
        self.lapses += 1;
    }
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Zfs(#[from] ZfsError),
    #[error("other processes of this host keep changing its records")]
    Contended,
    #[error("publishing took longer than {}", humantime::format_duration(PUBLISH_TIMEOUT))]
    Late,
}

impl Publisher {
    /// Publishes `host`. Marks that are not published yet are kept in `folder`, in a file named after the `role`. The
    /// host is behind until it has been published as a whole.
    #[must_use]
    pub fn new<Z: ZfsRead>(host: HostName, catalog: ConsulCatalog, zfs: &Arc<Z>, folder: &Path, role: &str) -> Self {
        let file = folder.join(format!("unpublished-{role}.json"));
        let mut backlog: Backlog = files::load(&file).unwrap_or_else(|error| {
            log::warn!("cannot read {}: {error}; what was not published before is lost", file.display());
            Backlog::default()
        });
        backlog.reason = Some("the service has just started".to_owned());
        let for_datasets = Arc::clone(zfs);
        let list = move |datasets: Vec<DatasetName>| -> Running<Vec<Listed>> {
            let zfs = Arc::clone(&for_datasets);
            Box::pin(async move {
                let mut listed = zfs.list(&datasets, Depth::Only).await?;
                trash::add(&*zfs, &mut listed).await;
                Ok(listed)
            })
        };
        let zfs = Arc::clone(zfs);
        let list_pools = move |roots: Vec<DatasetName>, known: Known| -> Running<HostListing> {
            let zfs = Arc::clone(&zfs);
            Box::pin(async move { zfs.list_pools(&roots, &known).await })
        };
        let (wake, backlog) = (runtime::channel::bounded(1), Mutex::new(backlog));
        let records = Arc::new(Records {
            host,
            catalog,
            list: Box::new(list),
            list_pools: Box::new(list_pools),
            last: Mutex::default(),
            file,
            backlog,
            wake,
        });
        let batches = {
            let records = Arc::clone(&records);
            Batcher::new(move |(), requests: Vec<PublishRequest>| {
                let records = Arc::clone(&records);
                async move { vec![records.publish(&requests).await; requests.len()] }
            })
        };
        Self { records, batches }
    }

    /// The shared catalog.
    #[must_use]
    pub fn catalog(&self) -> &ConsulCatalog {
        &self.records.catalog
    }

    /// Why the records differ from what the host holds; `None` if they do not.
    #[must_use]
    pub fn behind(&self) -> Option<String> {
        self.records.behind()
    }

    /// Waits until the host falls behind, for at most `limit`.
    pub(crate) async fn wait_until_behind(&self, limit: Duration) {
        let _ = runtime::timeout(limit, self.records.wake.1.recv()).await;
    }

    /// Publishes the current state of datasets, and marks. `false` means that the host is behind.
    pub async fn publish(&self, touched: BTreeSet<DatasetName>, marks: Vec<(DatasetName, Change)>) -> bool {
        if touched.is_empty() && marks.is_empty() {
            return self.behind().is_none();
        }
        self.batches.ask((), PublishRequest { touched, marks }).await.unwrap_or_default()
    }

    /// Lists everything that local.json permits zsync to touch, and publishes it together with the kept marks. It fails
    /// only if ZFS fails; [`Publisher::behind`] returns whether everything was published.
    pub(crate) async fn publish_host(&self, local: &Local) -> Result<HostListing, ZfsError> {
        self.records.publish_host(local).await
    }

    /// Lists the host if that was not done for a while. If something outside zsync has changed it, or pools could not
    /// be listed before, the host is behind afterwards.
    pub(crate) async fn look(&self, local: &Local) -> Result<(), ZfsError> {
        self.records.look(local).await
    }

    /// Marks the host as behind, because something has changed that only listing and publishing the whole host will
    /// find.
    pub(crate) fn lapse(&self, reason: &str) {
        self.records.backlog().lapse(reason.to_owned());
        self.records.wake();
    }
}

impl Records {
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock()
    }

    fn behind(&self) -> Option<String> {
        self.backlog().reason.clone()
    }

    fn wake(&self) {
        // If the channel is full, the waiting task will wake up anyway.
        let _ = self.wake.0.try_send(());
    }

    async fn publish(&self, requests: &[PublishRequest]) -> bool {
        let touched: BTreeSet<DatasetName> = requests.iter().flat_map(|request| &request.touched).cloned().collect();
        let marks: Vec<_> = requests.iter().flat_map(|request| &request.marks).cloned().collect();
        let publishing = runtime::timeout(PUBLISH_TIMEOUT, self.try_publish(&touched, &marks)).await;
        match publishing.unwrap_or(Err(PublishError::Late)) {
            Ok(()) => self.behind().is_none(),
            Err(error) => {
                self.fall_behind(marks, &error).await;
                false
            }
        }
    }

    async fn try_publish(
        &self,
        touched: &BTreeSet<DatasetName>,
        marks: &[(DatasetName, Change)],
    ) -> Result<(), PublishError> {
        for attempt in 1..=MAX_ATTEMPTS {
            let generation = self.catalog.generation(&self.host).await?;
            let mut listed = HostDatasets::new();
            if !touched.is_empty() {
                listed.extend((self.list)(touched.iter().cloned().collect()).await?);
            }
            let datasets = touched.iter().map(|name| {
                let change = listed.remove(name).map_or(Change::Gone, Change::Listed);
                (name.clone(), change)
            });
            let changes: Vec<_> = marks.iter().cloned().chain(datasets).collect();
            if self.catalog.update_if(&self.host, generation, &changes).await? {
                let mut last = self.last.lock();
                for (name, change) in changes {
                    match change {
                        Change::Listed(inventory) => drop(last.host.datasets.insert(name, inventory)),
                        Change::Gone => drop(last.host.datasets.remove(&name)),
                        Change::Taken(_) | Change::Mark { .. } | Change::NotWritten(_) => {}
                    }
                }
                return Ok(());
            }
            runtime::sleep(Duration::from_millis(7) * attempt).await;
        }
        Err(PublishError::Contended)
    }

    async fn publish_host(&self, local: &Local) -> Result<HostListing, ZfsError> {
        let mut listed = None;
        match self.try_publish_host(local, &mut listed).await {
            Ok(()) => {}
            Err(PublishError::Zfs(error)) => return Err(error),
            Err(error) => self.fall_behind(Vec::new(), &error).await,
        }
        match listed {
            Some(listed) => Ok(listed),
            // Consul failed before ZFS was listed.
            None => self.list_host(local).await,
        }
    }

    async fn try_publish_host(&self, local: &Local, found: &mut Option<HostListing>) -> Result<(), PublishError> {
        for attempt in 1..=MAX_ATTEMPTS {
            let generation = self.catalog.generation(&self.host).await?;
            let lapses = self.backlog().lapses;
            let listed = self.list_host(local).await?;
            let marks = self.backlog().marks.clone();
            let datasets: HostDatasets = listed.datasets.iter().cloned().collect();
            let (now, unlisted) = (clock::now(), &listed.unlisted);
            let published = self.catalog.replace_if(&self.host, generation, now, &datasets, unlisted).await;
            let host = HostInventory { observed: Some(now), datasets, unlisted: unlisted.clone(), clock_behind: None };
            *found = Some(listed);
            if !published? {
                runtime::sleep(Duration::from_millis(11) * attempt).await;
                continue;
            }
            if !marks.is_empty() {
                let generation = self.catalog.generation(&self.host).await?;
                if !self.catalog.update_if(&self.host, generation, &marks).await? {
                    continue;
                }
            }
            *self.last.lock() = LastPublished { host, listed: Some(Instant::now()) };
            self.catch_up(marks.len(), lapses).await;
            return Ok(());
        }
        Err(PublishError::Contended)
    }

    /// Lists everything that local.json permits zsync to touch.
    async fn list_host(&self, local: &Local) -> Result<HostListing, ZfsError> {
        let known = Arc::new(self.last.lock().host.datasets.clone());
        let mut listed = (self.list_pools)(local.roots(), known).await?;
        local.restrict(&mut listed.datasets);
        Ok(listed)
    }

    async fn look(&self, local: &Local) -> Result<(), ZfsError> {
        if self.last.lock().listed.is_none_or(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        let HostListing { datasets, unlisted } = self.list_host(local).await?;
        let found: HostDatasets = datasets.into_iter().collect();
        let change = {
            let mut last = self.last.lock();
            last.listed = Some(Instant::now());
            let differences = differences(Some(&last.host), &found, &unlisted);
            let pools = |unlisted: &UnlistedPools| unlisted.keys().cloned().collect::<Vec<_>>();
            let other_pools =
                (pools(&last.host.unlisted) != pools(&unlisted)).then(|| "the set of listed pools changed".into());
            differences.into_iter().next().or(other_pools)
        };
        if let Some(change) = change {
            log::debug!("publishing what was changed outside zsync: {change}");
            self.backlog().lapse(change);
        }
        Ok(())
    }

    /// Records that the whole host was published, with this number of marks, as it was after this number of lapses.
    async fn catch_up(&self, published: usize, lapses: u64) {
        let (text, before) = {
            let mut backlog = self.backlog();
            let published = published.min(backlog.marks.len());
            backlog.marks.drain(..published);
            let is_all = backlog.marks.is_empty() && backlog.lapses == lapses;
            let before = if is_all { backlog.reason.take() } else { None };
            (serde_json::to_vec(&*backlog), before)
        };
        if before.is_some() {
            log::debug!("published all records of {}", self.host);
        }
        self.save(text).await;
    }

    async fn fall_behind(&self, marks: Vec<(DatasetName, Change)>, error: &PublishError) {
        let (text, is_first, has_marks) = {
            let mut backlog = self.backlog();
            let is_first = backlog.reason.is_none();
            backlog.lapse(error.to_string());
            let has_marks = !marks.is_empty();
            backlog.marks.extend(marks);
            let surplus = backlog.marks.len().saturating_sub(MAX_KEPT);
            backlog.marks.drain(..surplus);
            (serde_json::to_vec(&*backlog), is_first, has_marks)
        };
        if is_first {
            log::warn!("cannot publish the changes on this host: {error}; they will be published later");
        }
        if has_marks {
            self.save(text).await;
        }
        self.wake();
    }

    async fn save(&self, text: serde_json::Result<Vec<u8>>) {
        let file = self.file.clone();
        let is_empty = self.backlog().marks.is_empty();
        let saving = runtime::blocking(move || match text {
            Ok(_) if is_empty => files::remove(&file),
            Ok(text) => files::save(&file, &text),
            Err(error) => Err(error.into()),
        });
        if let Err(error) = saving.await {
            log::warn!(
                "cannot save unpublished records in {}: {error}; they would not survive a restart",
                self.file.display()
            );
        }
    }
}
