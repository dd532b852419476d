//! A host's records in the shared catalog, kept in step with its ZFS.
//!
//! What an order touched is listed again and published before the order is answered; what several orders touched
//! meanwhile is published together. While Consul is away the host is behind: what it cannot tell from ZFS later (marks)
//! is kept in a file, and once Consul is back the host is listed and published as a whole. The generation is read
//! before ZFS is listed, so of two processes of one host the one that looked earlier never writes over what the other
//! found later.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::catalog::{CatalogError, Change, ConsulCatalog};
use crate::model::{DatasetInventory, DatasetName, HostName};
use crate::policy::Local;
use crate::sys::runtime::Batcher;
use crate::sys::{clock, files, runtime};
use crate::zfs::{Depth, Zfs, ZfsError, ZfsRead};

/// How long an order's answer waits for its publication.
const WITHIN: Duration = Duration::from_secs(30);
/// How often somebody else of this host may come between.
const TRIES: u32 = 12;
/// How many marks are kept while Consul is away; the oldest go first.
const MOST_KEPT: usize = 10_000;

/// What a host holds.
pub type Whole = BTreeMap<DatasetName, DatasetInventory>;

/// Publishes one host.
pub struct Publisher {
    host: HostName,
    catalog: ConsulCatalog,
    file: PathBuf,
    behind: Mutex<Behind>,
    together: Batcher<Changed, bool>,
    wake: (runtime::channel::Sender<()>, runtime::channel::Receiver<()>),
}

/// The datasets that something touched, and marks.
type Changed = (BTreeSet<DatasetName>, Vec<(DatasetName, Change)>);

/// What is not published yet.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Behind {
    /// Marks that ZFS does not know.
    marks: Vec<(DatasetName, Change)>,
    /// Why; `None`: nothing is missing.
    #[serde(skip)]
    reason: Option<String>,
    /// How often it fell behind: what was listed before the last time may lack something.
    #[serde(skip)]
    lapses: u64,
}

impl Behind {
    fn lapse(&mut self, reason: String) {
        self.reason = Some(reason);
        self.lapses += 1;
    }
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
enum Fail {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Zfs(#[from] ZfsError),
    #[error("other processes of this host publish all the time")]
    Contended,
    #[error("it was not done within {}", humantime::format_duration(WITHIN))]
    Late,
}

impl Publisher {
    /// Publishes `host`; what is kept lies in `folder`, under a name of the `role`. Until the host was published as
    /// a whole it is behind.
    #[must_use]
    pub fn new(host: HostName, catalog: ConsulCatalog, folder: &Path, role: &str) -> Self {
        let file = folder.join(format!("unpublished-{role}.json"));
        let mut behind: Behind = files::load(&file).unwrap_or_else(|error| {
            log::warn!("{}: what was not published before is lost: {error}", file.display());
            Behind::default()
        });
        behind.reason = Some("it has just started".to_owned());
        Self {
            host,
            catalog,
            file,
            behind: Mutex::new(behind),
            together: Batcher::default(),
            wake: runtime::channel::bounded(1),
        }
    }

    /// The shared catalog.
    #[must_use]
    pub fn catalog(&self) -> &ConsulCatalog {
        &self.catalog
    }

    /// Whose records these are.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.host
    }

    fn state(&self) -> MutexGuard<'_, Behind> {
        self.behind.lock()
    }

    /// Why the records are not what the host holds; `None`: they are.
    #[must_use]
    pub fn behind(&self) -> Option<String> {
        self.state().reason.clone()
    }

    /// Waits until there is something to catch up with, at most so long.
    pub async fn woken(&self, at_most: Duration) {
        let _ = runtime::timeout(at_most, self.wake.1.recv()).await;
    }

    /// Publishes datasets as they are now, and marks. `false`: the host's records are behind.
    pub async fn publish<Z: Zfs>(
        self: &Arc<Self>,
        zfs: &Arc<Z>,
        touched: BTreeSet<DatasetName>,
        marks: Vec<(DatasetName, Change)>,
    ) -> bool {
        if touched.is_empty() && marks.is_empty() {
            return self.behind().is_none();
        }
        let (this, zfs) = (Arc::clone(self), Arc::clone(zfs));
        let answer = move |changed: Vec<Changed>| {
            let (this, zfs) = (Arc::clone(&this), Arc::clone(&zfs));
            async move { vec![this.publish_all(&*zfs, &changed).await; changed.len()] }
        };
        self.together.ask("", (touched, marks), || Duration::ZERO, answer).await.unwrap_or_default()
    }

    async fn publish_all<Z: ZfsRead>(&self, zfs: &Z, changed: &[Changed]) -> bool {
        let touched: BTreeSet<DatasetName> = changed.iter().flat_map(|(touched, _)| touched).cloned().collect();
        let marks: Vec<_> = changed.iter().flat_map(|(_, marks)| marks).cloned().collect();
        let trying = runtime::timeout(WITHIN, self.try_publish(zfs, &touched, &marks)).await;
        match trying.unwrap_or(Err(Fail::Late)) {
            Ok(()) => self.behind().is_none(),
            Err(error) => {
                self.fall_behind(marks, &error).await;
                false
            }
        }
    }

    async fn try_publish<Z: ZfsRead>(
        &self,
        zfs: &Z,
        touched: &BTreeSet<DatasetName>,
        marks: &[(DatasetName, Change)],
    ) -> Result<(), Fail> {
        let names: Vec<DatasetName> = touched.iter().cloned().collect();
        for tried in 1..=TRIES {
            let generation = self.catalog.generation(&self.host).await?;
            let mut listed: Whole = match names.as_slice() {
                [] => Whole::new(),
                names => zfs.list(names, Depth::Only).await?.into_iter().collect(),
            };
            let now = names.iter().map(|name| {
                let change = listed.remove(name).map_or(Change::Gone, Change::Listed);
                (name.clone(), change)
            });
            let changes: Vec<_> = marks.iter().cloned().chain(now).collect();
            if self.catalog.update_if(&self.host, generation, &changes).await? {
                return Ok(());
            }
            runtime::sleep(Duration::from_millis(7) * tried).await;
        }
        Err(Fail::Contended)
    }

    /// Lists everything that local.json lets zsync touch, and publishes it and what was kept. The listing is an error
    /// only if ZFS fails; whether it was published is [`Publisher::behind`].
    pub async fn whole<Z: ZfsRead>(&self, zfs: &Z, local: &Local) -> Result<Whole, ZfsError> {
        let mut listed = None;
        let failed = match self.try_whole(zfs, local, &mut listed).await {
            Ok(()) => None,
            Err(Fail::Zfs(error)) => return Err(error),
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            self.fall_behind(Vec::new(), &error).await;
        }
        match listed {
            Some(listed) => Ok(listed),
            // Consul failed before ZFS was looked at.
            None => everything(zfs, local).await,
        }
    }

    async fn try_whole<Z: ZfsRead>(&self, zfs: &Z, local: &Local, found: &mut Option<Whole>) -> Result<(), Fail> {
        for tried in 1..=TRIES {
            let generation = self.catalog.generation(&self.host).await?;
            let lapses = self.state().lapses;
            let listed = everything(zfs, local).await?;
            let marks = self.state().marks.clone();
            let published = self.catalog.replace_if(&self.host, generation, clock::now(), &listed).await;
            *found = Some(listed);
            if !published? {
                runtime::sleep(Duration::from_millis(11) * tried).await;
                continue;
            }
            if !marks.is_empty() {
                let generation = self.catalog.generation(&self.host).await?;
                if !self.catalog.update_if(&self.host, generation, &marks).await? {
                    continue;
                }
            }
            return self.caught_up(marks.len(), lapses).await;
        }
        Err(Fail::Contended)
    }

    async fn caught_up(&self, published: usize, lapses: u64) -> Result<(), Fail> {
        let (text, before) = {
            let mut state = self.state();
            let published = published.min(state.marks.len());
            state.marks.drain(..published);
            let is_all = state.marks.is_empty() && state.lapses == lapses;
            let before = if is_all { state.reason.take() } else { None };
            (serde_json::to_vec(&*state), before)
        };
        if before.is_some() {
            log::debug!("{} is published as a whole", self.host);
        }
        self.save(text).await;
        Ok(())
    }

    /// Something changed that has to be looked for: the host is listed and published as a whole.
    pub fn lapse(&self, why: &str) {
        self.state().lapse(why.to_owned());
        // One word is enough.
        let _ = self.wake.0.try_send(());
    }

    async fn fall_behind(&self, marks: Vec<(DatasetName, Change)>, error: &Fail) {
        let (text, first, any) = {
            let mut state = self.state();
            let first = state.reason.is_none();
            state.lapse(error.to_string());
            let any = !marks.is_empty();
            state.marks.extend(marks);
            let surplus = state.marks.len().saturating_sub(MOST_KEPT);
            state.marks.drain(..surplus);
            (serde_json::to_vec(&*state), first, any)
        };
        if first {
            log::warn!("what changed on this host will be published later: {error}");
        }
        if any {
            self.save(text).await;
        }
        // One word is enough.
        let _ = self.wake.0.try_send(());
    }

    async fn save(&self, text: serde_json::Result<Vec<u8>>) {
        let file = self.file.clone();
        let empty = self.state().marks.is_empty();
        let saving = runtime::blocking(move || match text {
            Ok(_) if empty => files::remove(&file),
            Ok(text) => files::save(&file, &text),
            Err(error) => Err(error.into()),
        });
        if let Err(error) = saving.await {
            log::warn!(
                "{}: marks that are not published yet would not survive a restart: {error}",
                self.file.display()
            );
        }
    }
}

/// Everything that local.json lets zsync touch.
pub async fn everything<Z: ZfsRead>(zfs: &Z, local: &Local) -> Result<Whole, ZfsError> {
    let listed = zfs.list(&local.roots(), Depth::Recursive).await?;
    Ok(listed.into_iter().filter(|(name, _)| local.permission_to_take(name).is_ok()).collect())
}
