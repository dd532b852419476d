//! Publishes the records of a host in the shared catalog, and keeps them in step with its ZFS.
//!
//! The datasets that an order touched are listed again and published before the order is answered. Datasets that other
//! orders touched in the meantime are published together. While Consul is unreachable, the host is behind: marks, which
//! cannot be read from ZFS later, are kept in a file. Once Consul is back, the host is listed and published as a whole.
//!
//! The generation of the records is read before ZFS is listed. So of two processes of one host, the one with the older
//! listing never overwrites what the other one has published.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::catalog::{CatalogError, Change, ConsulCatalog};
use crate::model::{DatasetInventory, DatasetName, HostName};
use crate::policy::Local;
use crate::sys::batcher::Batcher;
use crate::sys::{clock, files, runtime};
use crate::zfs::{Depth, Listed, ZfsError, ZfsRead};

/// How long the answer to an order waits for its publication.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);
/// How often other processes of this host may change the records while they are being published.
const MAX_ATTEMPTS: u32 = 12;
/// How many marks are kept while Consul is unreachable. The oldest are dropped first.
const MAX_KEPT: usize = 10_000;

/// The datasets of a host.
type HostDatasets = BTreeMap<DatasetName, DatasetInventory>;

/// Publishes one host.
pub struct Publisher {
    records: Arc<Records>,
    /// One key: all orders of a host share their publications.
    batches: Batcher<(), PublishRequest, bool>,
}

/// What an order changed: the datasets that it touched, and marks.
struct PublishRequest {
    touched: BTreeSet<DatasetName>,
    marks: Vec<(DatasetName, Change)>,
}

type Listing = Pin<Box<dyn Future<Output = Result<Vec<Listed>, ZfsError>> + Send>>;

/// The records of a host.
struct Records {
    host: HostName,
    catalog: ConsulCatalog,
    list: Box<dyn Fn(Vec<DatasetName>, Depth) -> Listing + Send + Sync>,
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
    /// How often the host fell behind. A listing from before the last time may lack something.
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
    #[error("other processes of this host change its records all the time")]
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
        let zfs = Arc::clone(zfs);
        let list = move |roots: Vec<DatasetName>, depth: Depth| -> Listing {
            let zfs = Arc::clone(&zfs);
            Box::pin(async move { zfs.list(&roots, depth).await })
        };
        let (wake, backlog) = (runtime::channel::bounded(1), Mutex::new(backlog));
        let records = Arc::new(Records { host, catalog, list: Box::new(list), file, backlog, wake });
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
    /// only if ZFS fails; [`Publisher::behind`] tells whether everything was published.
    pub(crate) async fn publish_host(&self, local: &Local) -> Result<HostDatasets, ZfsError> {
        self.records.publish_host(local).await
    }

    /// Makes the host behind: something has changed, and only listing and publishing the whole host will find it.
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
                listed.extend((self.list)(touched.iter().cloned().collect(), Depth::Only).await?);
            }
            let datasets = touched.iter().map(|name| {
                let change = listed.remove(name).map_or(Change::Gone, Change::Listed);
                (name.clone(), change)
            });
            let changes: Vec<_> = marks.iter().cloned().chain(datasets).collect();
            if self.catalog.update_if(&self.host, generation, &changes).await? {
                return Ok(());
            }
            runtime::sleep(Duration::from_millis(7) * attempt).await;
        }
        Err(PublishError::Contended)
    }

    async fn publish_host(&self, local: &Local) -> Result<HostDatasets, ZfsError> {
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

    async fn try_publish_host(&self, local: &Local, found: &mut Option<HostDatasets>) -> Result<(), PublishError> {
        for attempt in 1..=MAX_ATTEMPTS {
            let generation = self.catalog.generation(&self.host).await?;
            let lapses = self.backlog().lapses;
            let listed = self.list_host(local).await?;
            let marks = self.backlog().marks.clone();
            let published = self.catalog.replace_if(&self.host, generation, clock::now(), &listed).await;
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
            self.catch_up(marks.len(), lapses).await;
            return Ok(());
        }
        Err(PublishError::Contended)
    }

    /// Lists everything that local.json permits zsync to touch.
    async fn list_host(&self, local: &Local) -> Result<HostDatasets, ZfsError> {
        let listed = (self.list)(local.roots(), Depth::Recursive).await?;
        Ok(listed.into_iter().filter(|(name, _)| local.permission_to_take(name).is_ok()).collect())
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
