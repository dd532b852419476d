//! The values of the two configuration files.
//!
//! [`Policy`] has those of `server.json`: which snapshots to take, where to send them, and how long to keep them.
//! [`Local`] has those of `local.json`: what one host permits. Both are valid by construction: the configuration parser
//! checks each value when it builds them, and nothing needs to check them again.
//!
//! Nothing here performs I/O or reads a clock.

mod address;
pub mod bandwidth;
pub mod compression;
pub mod consul;
mod denied;
mod exclude;
pub mod hooks;
pub mod local;
mod open;
mod permitted;
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
pub use denied::Denied;
pub use exclude::Exclude;
pub use hooks::{Hook, Hooks};
pub use local::{CloneConfig, Local, LocalDataset};
pub use open::Opening;
pub use permitted::Forbidden;
pub use properties::Properties;
pub use retention::{Retention, RetentionError};
pub use schedule::{Schedule, ScheduleError, SyncPolicy};
pub use zone::{NoSuchZone, Zone, ZoneOffset};

/// The default of `catch_up`: how late a missed snapshot is still taken.
pub const DEFAULT_CATCH_UP: Duration = Duration::from_secs(6 * 3600);

/// The default of `retry_for`: how long an order that failed for a temporary reason is retried. It is long enough for a
/// service to be restarted by its supervisor.
pub const DEFAULT_RETRY_FOR: Duration = Duration::from_secs(20);

/// The default of `max_destroys`: what part of a dataset's snapshots a pass destroys at most, in percent.
pub const DEFAULT_MAX_DESTROYS: u8 = 50;

/// The policy: everything in `server.json`.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Consul's datacenter, unless `catalog.consul` names one. With the embedded catalog, it is only a label.
    pub datacenter: Option<String>,
    /// The time zone of cron slots and of calendar periods. UTC by default.
    pub timezone: Zone,
    /// Where the catalog is stored.
    pub catalog: CatalogConfig,
    /// The director's certificate and key for connections to agents; `None` for plaintext.
    pub tls: Option<TlsFiles>,
    /// Addresses of hosts, by name.
    pub hosts: BTreeMap<HostName, HostAddress>,
    /// The daily window (start, end) in which the catalog is compared with ZFS on every host.
    pub consul_resync: Option<(NaiveTime, NaiveTime)>,
    /// How long an order that failed for a temporary reason is retried, counted from when it was given or, if later,
    /// from when it last moved data.
    pub retry_for: Duration,
    /// What part of a dataset's snapshots a pass destroys at most, in percent. With 100 there is no limit.
    pub max_destroys: u8,
    /// The entries, in the order of the file.
    pub datasets: Vec<DatasetPolicy>,
}

impl Policy {
    /// The hosts that the policy names as sources and destinations.
    #[must_use]
    pub fn hosts_named(&self) -> BTreeSet<HostName> {
        let sources = self.datasets.iter().map(|entry| &entry.hostname);
        let destinations = self.datasets.iter().flat_map(|e| &e.policies).flat_map(|p| &p.sync_on).map(|t| &t.host);
        sources.chain(destinations).cloned().collect()
    }

    /// When the window of [`Policy::consul_resync`] that contains `now` began; `None` outside of the window.
    #[must_use]
    pub fn resync_since(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (from, to) = self.consul_resync?;
        let local = now.with_timezone(&self.timezone).naive_local();
        // A window across midnight began yesterday or today.
        let today = local.date();
        let day = if local.time() >= from { today } else { today.pred_opt()? };
        let length = to.signed_duration_since(from);
        let length = if length < TimeDelta::zero() { length + TimeDelta::days(1) } else { length };
        let began = day.and_time(from);
        if local >= began + length {
            return None;
        }
        // If the window begins in an hour that the clock skips, it counts as beginning now.
        let began = self.timezone.from_local_datetime(&began);
        began.earliest().map_or(Some(now), |began| Some(began.to_utc()))
    }
}

/// Where the catalog is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogConfig {
    /// In a SQLite file, which only the director writes.
    Embedded {
        /// The folder of the file.
        path: PathBuf,
    },
    /// In Consul's key-value store, to which every host writes its own records.
    Consul(Box<ConsulConfig>),
}

/// The addresses of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAddress {
    /// The agent's `host:port`.
    pub address: Option<String>,
    /// The slave's `host:port`.
    pub receive_address: Option<String>,
}

impl HostAddress {
    /// The addresses of a host, with the default ports. The address of the agent is also the address of the host, so it
    /// applies to the slave as well, unless the slave has its own.
    #[must_use]
    pub fn new(address: Option<&Address>, receive_address: Option<&Address>) -> Self {
        let of_slave = receive_address.map(|slave| slave.with_default_port(SLAVE_PORT));
        Self {
            receive_address: of_slave.or_else(|| address.map(|agent| format!("{}:{SLAVE_PORT}", agent.host()))),
            address: address.map(|agent| agent.with_default_port(AGENT_PORT)),
        }
    }
}

/// One entry of `datasets`.
#[derive(Clone, Debug)]
pub struct DatasetPolicy {
    /// The host of the dataset.
    pub hostname: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// Whether the entry also covers all datasets below it.
    pub recursive: bool,
    /// The policies `backup`, `sync` and those under `policies`, sorted by name.
    pub policies: Vec<SnapshotPolicy>,
    /// The datasets below it that are left out.
    pub exclude: Exclude,
    /// Whether to roll back a destination that was written to, if its newest snapshot is also the newest common one,
    /// and to replace a destination without snapshots.
    pub rollback_if_needed: bool,
    /// Whether a rollback may destroy snapshots that only the destination has.
    pub rollback_may_destroy: bool,
    /// What to do about a destination that cannot take an increment and may not be rolled back.
    pub on_divergence: OnDivergence,
    /// Whether a renamed snapshot is never destroyed.
    pub skip_if_renamed: bool,
    /// Whether to take no snapshot if nothing was written since the last one.
    pub skip_if_not_written: bool,
    /// Whether snapshots that have clones are kept. In this version they are never destroyed, even if this is false.
    pub skip_if_cloned: bool,
}

/// One policy of a dataset: a prefix with its schedule, destinations and retention.
#[derive(Clone, Debug)]
pub struct SnapshotPolicy {
    /// Its key in the file: `backup`, `sync`, or a name under `policies`.
    pub name: String,
    /// The prefix of its snapshots' names.
    pub prefix: Prefix,
    /// When to take snapshots; `None` if they are taken by other means.
    pub creation: Option<Schedule>,
    /// How late a missed snapshot is still taken.
    pub catch_up: Duration,
    /// The destinations of the entry's dataset, which may be on the same host. Datasets below it keep their relative
    /// names there.
    pub sync_on: Vec<Place>,
    /// When to send the snapshots.
    pub sync_policy: SyncPolicy,
    /// What to keep on the source; `None` for everything.
    pub retention: Option<Retention>,
    /// What to keep on each destination; `None` for everything. By default the same as `retention`.
    pub sync_retention: Option<Retention>,
    /// Whether a snapshot may be destroyed before it is on every destination.
    pub prune_unsent: bool,
    /// How old the newest snapshot on a destination may be; `None` for no limit.
    pub lag: Option<Duration>,
    /// The thresholds of `zsync check`.
    pub check: Thresholds,
}

/// The thresholds of `zsync check`. Ages that are not configured follow from the schedules; other limits are not
/// checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// The age above which the newest snapshot is worth a warning.
    pub warn_age: Option<Duration>,
    /// The age above which the newest snapshot is critical.
    pub crit_age: Option<Duration>,
    /// The age above which the newest replica is worth a warning.
    pub sync_warn_age: Option<Duration>,
    /// The age above which the newest replica is critical.
    pub sync_crit_age: Option<Duration>,
    /// The largest number of snapshots of the policy that a dataset may have, on either side.
    pub max_snapshots: Option<usize>,
    /// The largest age of a held snapshot on the source.
    pub max_held: Option<Duration>,
}

#[cfg(test)]
mod tests {
    #[test]
    fn resync_since_finds_start_of_window_across_midnight() {
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
