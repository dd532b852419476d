//! What an administrator wants: which snapshots to take, where they go, how long they stay.
//!
//! A [`Policy`] is valid by construction: the configuration parser makes it, nobody else checks it again.
//! Nothing here performs I/O or reads a clock.

mod address;
pub mod bandwidth;
pub mod compression;
pub mod consul;
mod exclude;
pub mod hooks;
pub mod local;
pub mod properties;
pub mod retention;
pub mod schedule;
mod zone;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, NaiveTime, TimeDelta, TimeZone, Utc};

use crate::model::{DatasetName, HostName, OnDivergence, Place, Prefix, TlsFiles};
pub use address::{AGENT_PORT, Address, AddressError, SLAVE_PORT};
pub use bandwidth::{Bandwidth, Limit, Rate, RateError};
pub use compression::{Compression, CompressionError, Zstd};
pub use consul::{ConsulConfig, Secret};
pub use exclude::Exclude;
pub use hooks::{Hook, Hooks};
pub use local::{CloneConfig, Denied, Local, LocalDataset};
pub use properties::Properties;
pub use retention::{Retention, RetentionError};
pub use schedule::{Schedule, ScheduleError, SyncPolicy};
pub use zone::{NoSuchZone, Zone, ZoneOffset};

/// How late a missed slot is still made up for, unless the policy says otherwise.
pub const DEFAULT_CATCH_UP: Duration = Duration::from_secs(6 * 3600);

/// How long an order that fails for a reason that may pass is tried again, unless the policy says otherwise: a service
/// that its supervisor starts anew is back by then.
pub const DEFAULT_RETRY_FOR: Duration = Duration::from_secs(20);

/// The whole of `server.json`.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Consul's datacenter, unless `catalog.consul` names one; only a label with the embedded catalog.
    pub datacenter: Option<String>,
    /// The zone of cron slots and of calendar periods. UTC by default.
    pub timezone: Zone,
    /// Where the catalog is kept.
    pub catalog: CatalogConfig,
    /// What the director proves itself with to agents; `None`: it speaks to them in plaintext.
    pub tls: Option<TlsFiles>,
    /// Addresses of hosts, by name.
    pub hosts: BTreeMap<HostName, HostAddress>,
    /// The daily window (from, to) in which the catalog is checked against ZFS on every host.
    pub consul_resync: Option<(NaiveTime, NaiveTime)>,
    /// How long an order that fails for a reason that may pass is tried again, from when it was given or, if later,
    /// from when it last moved any data.
    pub retry_for: Duration,
    /// What to do with which dataset, in the order of the file.
    pub datasets: Vec<DatasetPolicy>,
}

impl Policy {
    /// The hosts that the policy speaks of, as sources and as destinations.
    #[must_use]
    pub fn hosts_named(&self) -> BTreeSet<HostName> {
        let sources = self.datasets.iter().map(|entry| &entry.hostname);
        let destinations = self.datasets.iter().flat_map(|e| &e.policies).flat_map(|p| &p.sync_on).map(|t| &t.host);
        sources.chain(destinations).cloned().collect()
    }

    /// When the window of [`Policy::consul_resync`] began that `now` lies in; `None` outside of it.
    #[must_use]
    pub fn resync_since(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (from, to) = self.consul_resync?;
        let local = now.with_timezone(&self.timezone).naive_local();
        // A window that goes past midnight began yesterday, or begins today.
        let today = local.date();
        let day = if local.time() >= from { today } else { today.pred_opt()? };
        let length = to.signed_duration_since(from);
        let length = if length < TimeDelta::zero() { length + TimeDelta::days(1) } else { length };
        let began = day.and_time(from);
        if local >= began + length {
            return None;
        }
        // In the hour that clocks skip there is no such time: the window begins now.
        let began = self.timezone.from_local_datetime(&began);
        began.earliest().map_or(Some(now), |began| Some(began.to_utc()))
    }
}

/// Where the catalog is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogConfig {
    /// A SQLite file in this folder, written by the director alone.
    Embedded {
        /// The folder.
        path: PathBuf,
    },
    /// Consul's key-value store, in which every host writes its own records.
    Consul(Box<ConsulConfig>),
}

/// Where a host is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAddress {
    /// The agent's `host:port`.
    pub address: Option<String>,
    /// The slave's `host:port`.
    pub receive_address: Option<String>,
}

/// One entry of `datasets`.
#[derive(Clone, Debug)]
pub struct DatasetPolicy {
    /// The host whose dataset it is.
    pub hostname: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// Whether everything below it is meant too.
    pub recursive: bool,
    /// `backup`, `sync` and those under `policies`, by name.
    pub policies: Vec<SnapshotPolicy>,
    /// What below the dataset is left out.
    pub exclude: Exclude,
    /// Whether a destination that was written to is rolled back to its newest snapshot, if that is the common one,
    /// and one without any snapshot is replaced.
    pub rollback_if_needed: bool,
    /// Whether such a rollback may destroy snapshots that only the destination has.
    pub rollback_may_destroy: bool,
    /// What becomes of a destination that cannot take an increment, and may not be rolled back.
    pub on_divergence: OnDivergence,
    /// Whether a renamed snapshot is left alone by destroys.
    pub skip_if_renamed: bool,
    /// Whether no snapshot is taken when nothing was written since the last one.
    pub skip_if_not_written: bool,
    /// Whether a snapshot with clones is no candidate for a destroy. Where it is one, the agent leaves it alone all
    /// the same.
    pub skip_if_cloned: bool,
}

/// One policy of a dataset: a prefix with its schedule, destinations and retention.
#[derive(Clone, Debug)]
pub struct SnapshotPolicy {
    /// Its key in the file: `backup`, `sync` or a name of the administrator's.
    pub name: String,
    /// What its snapshots' names begin with.
    pub prefix: Prefix,
    /// When snapshots are taken; `None`: never by zsync, others take them.
    pub creation: Option<Schedule>,
    /// How late a missed slot is still made up for.
    pub catch_up: Duration,
    /// Where the snapshots go; may be the same host.
    pub sync_on: Vec<Place>,
    /// When they go there.
    pub sync_policy: SyncPolicy,
    /// What stays on the source; `None`: everything.
    pub retention: Option<Retention>,
    /// What stays on each destination; `None`: everything. By default the same as `retention`.
    pub sync_retention: Option<Retention>,
    /// Whether a snapshot may be destroyed before it is on every destination.
    pub prune_unsent: bool,
    /// From when on `zsync check` finds fault.
    pub check: Thresholds,
}

/// From when on `zsync check` finds fault. What is not said goes by the schedules, or is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// The age of the newest snapshot that is worth a warning.
    pub warn_age: Option<Duration>,
    /// The age of the newest snapshot that is critical.
    pub crit_age: Option<Duration>,
    /// The age of the newest replica that is worth a warning.
    pub sync_warn_age: Option<Duration>,
    /// The age of the newest replica that is critical.
    pub sync_crit_age: Option<Duration>,
    /// How many snapshots of the policy a dataset may have, on either side.
    pub max_snapshots: Option<usize>,
    /// How old a snapshot that is held on the source may be.
    pub max_held: Option<Duration>,
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_resync_window_begins_at_its_own_time_also_past_midnight() {
        let at = |text: &str| text.parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        for (window, now, expected) in [
            (r#"["19:00", "19:10"]"#, "2026-11-25T18:05:00Z", Some("2026-11-25T18:00:00Z")),
            (r#"["19:00", "19:10"]"#, "2026-11-25T17:59:59Z", None),
            (r#"["19:00", "19:10"]"#, "2026-11-25T18:10:00Z", None),
            (r#"["19:00", "19:10"]"#, "2026-07-25T17:05:00Z", Some("2026-07-25T17:00:00Z")),
            (r#"["23:50", "00:10"]"#, "2026-11-25T22:55:00Z", Some("2026-11-25T22:50:00Z")),
            (r#"["23:50", "00:10"]"#, "2026-11-25T23:05:00Z", Some("2026-11-25T22:50:00Z")),
            (r#"["23:50", "00:10"]"#, "2026-11-25T23:15:00Z", None),
        ] {
            let text = format!(r#"{{ "timezone": "Europe/Paris", "consul_resync": {window}, "datasets": [] }}"#);
            let policy = crate::config::parse_policy("server.json", &text).unwrap();
            assert_eq!(policy.resync_since(at(now)), expected.map(at), "{window} at {now}");
        }
    }
}
