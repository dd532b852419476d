//! The live status of a director, for `zsync status` and `zsync check`: what it is doing now.
//!
//! The status is a small file beside the embedded catalog, or a pair in Consul. No decision depends on it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::actions::Durations;
use crate::actions::health::{Health, Row, Underway};
use crate::catalog::open;
use crate::consul::{Consul, Op};
use crate::model::{Action, CertificateExpiry, DatasetName, HostName, Place, SnapName};
use crate::policy::{CatalogConfig, Policy};
use crate::sys::files::Mode;
use crate::sys::{files, runtime};

const FILE: &str = "live.json";
/// A director whose status is older than this no longer runs.
const STALE: chrono::TimeDelta = chrono::TimeDelta::seconds(20);

/// Where the status is kept.
#[derive(Clone)]
pub enum StatusPlace {
    /// In a file in this folder.
    Folder(PathBuf),
    /// In Consul, as the value of this key.
    Shared(Consul, String),
    /// Nowhere: Consul cannot be used at all, which is reported elsewhere.
    Nowhere,
}

impl StatusPlace {
    /// The place that belongs to a catalog.
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

    /// Replaces the status.
    pub async fn write(&self, value: Vec<u8>) -> anyhow::Result<()> {
        match self {
            Self::Folder(folder) => {
                let file = folder.join(FILE);
                let fill = move |new: &mut File| new.write_all(&value);
                runtime::blocking(move || files::write(&file, files::PRIVATE, Mode::ReplaceUnsynced, fill)).await?;
            }
            Self::Shared(consul, key) => {
                consul.commit(&[Op::Set { key: key.clone(), value }]).await?;
            }
            Self::Nowhere => {}
        }
        Ok(())
    }
}

/// An order that is running.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningTransfer {
    /// The order's action.
    pub action: Action,
    /// The host that carries it out.
    pub host: HostName,
    /// The dataset there.
    pub dataset: Option<DatasetName>,
    /// The snapshot.
    pub snapshot: Option<SnapName>,
    /// The destination of a transfer.
    pub to: Option<Place>,
    /// How long it has been running, in seconds.
    pub seconds: f64,
    /// Bytes moved so far.
    pub bytes: u64,
    /// Bytes to move in all, by ZFS' estimate; `None` if there is none.
    pub total: Option<u64>,
    /// What the order waits for before it can continue.
    #[serde(default)]
    pub waits_for: Option<String>,
}

impl RunningTransfer {
    /// Average rate since its start, in bytes per second.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        (self.seconds > 0.0 && self.bytes > 0).then(|| self.bytes as f64 / self.seconds)
    }

    /// Whether it is a transfer to the destination of a row.
    #[must_use]
    pub fn is_of(&self, row: &Row) -> bool {
        self.action == Action::SendSnapshot
            && self.host == row.host
            && self.dataset.as_ref() == Some(&row.dataset)
            && self.to == row.to
    }

    /// Time left at that rate.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.bytes) as f64 / self.rate()?;
        Duration::try_from_secs_f64(left).ok()
    }
}

/// An order that is not given again yet, because it failed several times in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestingOrder {
    /// The order's action.
    pub action: Action,
    /// The host that would carry it out.
    pub host: HostName,
    /// The dataset there.
    pub dataset: DatasetName,
    /// The destination of a transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Place>,
    /// How many times in a row it has failed.
    pub failures: u32,
    /// When it may be given again.
    pub until: DateTime<Utc>,
}

/// Adds to a report what is expected of the destinations, given what is running.
pub fn forecast(health: &mut Health, policy: &Policy, durations: &Durations, running: &[RunningTransfer]) {
    health.forecast(policy, durations, |row| {
        let transfer = running.iter().find(|transfer| transfer.is_of(row))?;
        let elapsed = Duration::try_from_secs_f64(transfer.seconds).unwrap_or_default();
        Some(Underway { elapsed, left: transfer.left() })
    });
}

/// What a director is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveStatus {
    /// When this was written.
    pub at: DateTime<Utc>,
    /// When the last pass began.
    pub began: DateTime<Utc>,
    /// When it ended; `None` while it runs.
    pub ended: Option<DateTime<Utc>>,
    /// Hosts that could not be listed, with the reason.
    pub unseen: BTreeMap<HostName, String>,
    /// The running orders.
    pub running: Vec<RunningTransfer>,
    /// The orders that have failed and are not given again yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resting: Vec<RestingOrder>,
    /// By how many seconds the clocks of hosts are behind the director's, for those that are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub clocks_behind: BTreeMap<HostName, u64>,
    /// When the certificates of the hosts expire, if they use TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateExpiry>,
}

impl LiveStatus {
    /// Whether the director that wrote this is still working.
    #[must_use]
    pub fn is_alive(&self, now: DateTime<Utc>) -> bool {
        self.ended.is_none() && now - self.at <= STALE
    }

    /// Reads what the director wrote last. The orders of a director that died are not running any more.
    pub async fn read(place: &StatusPlace, now: DateTime<Utc>) -> Option<Self> {
        let mut live: Self = serde_json::from_slice(&place.read().await?).ok()?;
        if !live.is_alive(now) {
            live.running.clear();
        }
        live.resting.retain(|order| order.until > now);
        Some(live)
    }
}
