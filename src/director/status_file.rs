//! What the director is doing, in a small file beside the catalog or in a pair of a shared one, for `status` and
//! `check`.
//!
//! It is a convenience: it is replaced as a whole, never fsynced, and nobody decides anything by it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::catalog::open;
use crate::consul::{Consul, Op};
use crate::director::progress::PassProgress;
use crate::model::{self, Action, DatasetName, HostName, SnapName};
use crate::policy::CatalogConfig;
use crate::sys::files::Mode;
use crate::sys::{clock, files, runtime};

const FILE: &str = "live.json";
/// How often it is written while a pass runs.
const EVERY: Duration = Duration::from_secs(2);
/// A director that has not written for so long does not run any more.
const STALE: chrono::TimeDelta = chrono::TimeDelta::seconds(20);

/// Where that is written.
#[derive(Clone)]
pub enum Place {
    /// A file in this folder.
    Folder(PathBuf),
    /// A pair below this key.
    Shared(Consul, String),
    /// Nowhere: Consul cannot be used at all, which others say.
    Nowhere,
}

impl Place {
    /// The one that belongs to a catalog.
    #[must_use]
    pub fn of(config: &CatalogConfig) -> Self {
        match config {
            CatalogConfig::Embedded { path } => Self::Folder(path.clone()),
            CatalogConfig::Consul(config) => open::shared(config).map_or(Self::Nowhere, |catalog| {
                Self::Shared(catalog.consul().clone(), format!("{}/live", catalog.root()))
            }),
        }
    }

    async fn read(&self) -> Option<Vec<u8>> {
        match self {
            Self::Folder(folder) => {
                let file = folder.join(FILE);
                runtime::blocking(move || fs::read(file)).await.ok()
            }
            Self::Shared(consul, key) => Some(consul.get(key).await.ok()?.0?.value),
            Self::Nowhere => None,
        }
    }

    async fn write(&self, value: Vec<u8>) -> anyhow::Result<()> {
        match self {
            Self::Folder(folder) => {
                let file = folder.join(FILE);
                let fill = move |new: &mut File| new.write_all(&value);
                runtime::blocking(move || files::write(&file, files::PUBLIC, Mode::ReplaceUnsynced, fill)).await?;
            }
            Self::Shared(consul, key) => {
                consul.commit(&[Op::Set { key: key.clone(), value }]).await?;
            }
            Self::Nowhere => {}
        }
        Ok(())
    }
}

/// An order that is being carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// What it does.
    pub action: Action,
    /// The host that does it.
    pub host: HostName,
    /// The dataset there.
    pub dataset: Option<DatasetName>,
    /// The snapshot.
    pub snapshot: Option<SnapName>,
    /// Where it is sent to.
    pub to: Option<model::Place>,
    /// For how long it has been under way, in seconds.
    pub seconds: f64,
    /// The bytes that it has moved.
    pub bytes: u64,
    /// The bytes that it is to move, as far as ZFS can tell.
    pub total: Option<u64>,
}

impl Transfer {
    /// Bytes a second, on average since it began.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        (self.seconds > 0.0 && self.bytes > 0).then(|| self.bytes as f64 / self.seconds)
    }

    /// How long it still takes at that rate.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.bytes) as f64 / self.rate()?;
        Duration::try_from_secs_f64(left).ok()
    }
}

/// What the director is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveStatus {
    /// When this was written.
    pub at: DateTime<Utc>,
    /// When the last pass began.
    pub began: DateTime<Utc>,
    /// When it ended; `None` while it runs.
    pub ended: Option<DateTime<Utc>>,
    /// Hosts that it could not look at, with the reason.
    pub unseen: BTreeMap<HostName, String>,
    /// What is under way.
    pub running: Vec<Transfer>,
}

impl LiveStatus {
    /// Whether the director that wrote it is at work still.
    #[must_use]
    pub fn is_alive(&self, now: DateTime<Utc>) -> bool {
        self.ended.is_none() && now - self.at <= STALE
    }

    /// What the director of this catalog wrote last. What a director that died left under way is not under way any
    /// more.
    pub async fn read(place: &Place, now: DateTime<Utc>) -> Option<Self> {
        let mut live: Self = serde_json::from_slice(&place.read().await?).ok()?;
        if !live.is_alive(now) {
            live.running.clear();
        }
        Some(live)
    }

    fn of(board: &PassProgress, began: DateTime<Utc>) -> Self {
        let transfer = |running: crate::director::RunningOrder| Transfer {
            action: running.outcome.action,
            host: running.outcome.host,
            dataset: running.outcome.dataset,
            snapshot: running.outcome.snapshot,
            to: running.outcome.to,
            seconds: running.since.elapsed().as_secs_f64(),
            bytes: running.counter.get(),
            total: running.counter.expected(),
        };
        Self {
            at: clock::now(),
            began,
            ended: None,
            unseen: board.hosts_unseen(),
            running: board.running().into_iter().map(transfer).collect(),
        }
    }
}

/// Writes what a pass does, again and again until this is dropped.
pub(crate) async fn publish<T>(place: &Place, board: &PassProgress, began: DateTime<Utc>) -> T {
    loop {
        put(place, LiveStatus::of(board, began)).await;
        runtime::sleep(EVERY).await;
    }
}

/// Writes that a pass has ended.
pub(crate) async fn publish_end(place: &Place, board: &PassProgress, began: DateTime<Utc>) {
    let live = LiveStatus::of(board, began);
    put(place, LiveStatus { ended: Some(live.at), running: Vec::new(), ..live }).await;
}

async fn put(place: &Place, live: LiveStatus) {
    let written = match serde_json::to_vec(&live) {
        Ok(value) => place.write(value).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = written {
        log::debug!("what is under way cannot be told to zsync status: {error}");
    }
}
