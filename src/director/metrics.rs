//! The metrics of a director: about its last pass, and totals since it was started.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::actions::health::{CertificateState, Finding, Health, Row, Severity};
use crate::director::progress::PassProgress;
use crate::director::report::Report;
use crate::director::status_file;
use crate::fleet::durations::KnownDurations;
use crate::fleet::live_status::{self, RunningTransfer};
use crate::policy::Policy;
use crate::server::metrics::{CERTIFICATE_EXPIRY, Gauges, Labels, certificate_labels, registry, result, signed, text};
use crate::server::{Counters, DIRECTOR};
use crate::sys::clock;

/// The result of the last pass.
#[derive(Clone, Debug)]
pub struct PassMetrics {
    /// When it began.
    pub began: DateTime<Utc>,
    /// When it ended.
    pub ended: DateTime<Utc>,
    /// Whether everything went well.
    pub is_success: bool,
    /// The action of each order, and whether it succeeded.
    pub orders: Vec<(String, bool)>,
    /// Bytes that it moved.
    pub bytes: u64,
    /// How well the fleet met the policy after the pass.
    pub health: Health,
    forecaster: Option<Forecaster>,
}

/// What a forecast is based on, besides how well the fleet meets the policy and what is running.
#[derive(Clone, Debug)]
struct Forecaster {
    policy: Arc<Policy>,
    durations: KnownDurations,
}

impl PassMetrics {
    /// The metrics of a pass that has just ended.
    #[must_use]
    pub fn of(report: &Report, health: Health, began: DateTime<Utc>) -> Self {
        Self {
            began,
            ended: health.at,
            is_success: report.is_success(),
            orders: report.outcomes.iter().map(|o| (o.action.to_string(), o.success)).collect(),
            bytes: report.outcomes.iter().map(|o| o.bytes).sum(),
            health,
            forecaster: None,
        }
    }

    /// These metrics with a forecast of how old copies will be. It is made whenever the metrics are rendered, because
    /// transfers begin and end between passes, and their rates change.
    #[must_use]
    pub fn forecasting(self, policy: Arc<Policy>, durations: KnownDurations) -> Self {
        Self { forecaster: Some(Forecaster { policy, durations }), ..self }
    }

    /// These metrics with the forecast as of `now`, while these orders are running.
    fn at(&self, now: DateTime<Utc>, running: &[RunningTransfer]) -> Self {
        let mut current = self.clone();
        if let Some(Forecaster { policy, durations }) = &self.forecaster {
            current.health.at = now;
            live_status::forecast(&mut current.health, policy, &durations.known(), running);
        }
        current
    }

    /// Renders the metrics for the textfile collector of `node_exporter`.
    #[must_use]
    pub fn text(&self) -> String {
        let mut registry = registry();
        self.at(self.ended, &[]).register(&mut registry);
        register_success(&mut registry, self.is_success);
        text(&registry)
    }

    fn register(&self, registry: &mut Registry) {
        self.register_pass(registry);
        self.register_datasets(registry);
        self.register_hosts(registry);
    }

    fn register_pass(&self, registry: &mut Registry) {
        let single = |value: i64| {
            let gauge: Gauge = Gauge::default();
            gauge.set(value);
            gauge
        };
        for (name, help, value) in [
            ("zsync_last_pass_start_timestamp_seconds", "When the last pass began", self.began.timestamp()),
            ("zsync_last_pass_end_timestamp_seconds", "When the last pass ended", self.ended.timestamp()),
            ("zsync_last_pass_sent_bytes", "Number of bytes that the last pass sent", signed(self.bytes)),
        ] {
            registry.register(name, help, single(value));
        }
        let orders = Gauges::default();
        for (action, success) in &self.orders {
            orders.get_or_create(&vec![("action", action.clone()), ("result", result(*success).to_owned())]).inc();
        }
        registry.register("zsync_last_pass_orders", "Number of orders in the last pass, by action and result", orders);
    }

    fn register_datasets(&self, registry: &mut Registry) {
        let [count, newest, replica, unsent, oldest, lag, limit, forecast] = std::array::from_fn(|_| Gauges::default());
        for row in &self.health.rows {
            let labels = labels_of(row);
            count.get_or_create(&labels).set(signed(row.snapshots as u64));
            if let Some(point) = &row.newest {
                newest.get_or_create(&labels).set(point.creation.timestamp());
            }
            let Some(to) = &row.to else { continue };
            let mut labels = labels;
            labels.extend([("to_host", to.host.to_string()), ("to_dataset", to.dataset.to_string())]);
            if let Some(point) = &row.replica {
                replica.get_or_create(&labels).set(point.creation.timestamp());
            }
            if let Some(limit_seconds) = row.limit_seconds {
                limit.get_or_create(&labels).set(limit_seconds);
            }
            if let Some(forecast_seconds) = row.forecast_seconds {
                forecast.get_or_create(&labels).set(forecast_seconds);
            }
            if let Some(lag_seconds) = row.lag_seconds {
                lag.get_or_create(&labels).set(lag_seconds);
            }
            if let Some(behind) = row.behind {
                unsent.get_or_create(&labels).set(signed(behind as u64));
            }
            if let Some(since) = row.unsent_since {
                oldest.get_or_create(&labels).set(since.timestamp());
            }
        }
        registry.register("zsync_snapshots", "Number of snapshots of a policy in a dataset", count);
        registry.register(
            "zsync_snapshot_newest_timestamp_seconds",
            "When the newest snapshot of a policy in a dataset was taken",
            newest,
        );
        registry.register(
            "zsync_replica_newest_timestamp_seconds",
            "When the newest snapshot of a policy on a destination was taken",
            replica,
        );
        registry.register(
            "zsync_replica_lag_seconds",
            "Age of the oldest snapshot of a policy that a destination lacks, 0 if it lacks none",
            lag,
        );
        registry.register(
            "zsync_replica_lag_limit_seconds",
            "How old the newest snapshot on a destination may be, by the policy's lag",
            limit,
        );
        registry.register(
            "zsync_replica_lag_forecast_seconds",
            "How old the newest snapshot on a destination is expected to be when the next one arrives",
            forecast,
        );
        registry.register(
            "zsync_replica_unsent_snapshots",
            "Number of snapshots of a policy that a destination lacks",
            unsent,
        );
        registry.register(
            "zsync_replica_unsent_oldest_timestamp_seconds",
            "When the oldest snapshot of a policy that a destination lacks was taken; absent if it lacks none",
            oldest,
        );
    }

    fn register_hosts(&self, registry: &mut Registry) {
        let [up, listed, findings] = std::array::from_fn(|_| Gauges::default());
        for host in &self.health.hosts {
            let labels = vec![("host", host.host.to_string())];
            up.get_or_create(&labels).set(i64::from(host.unseen.is_none()));
            if let Some(observed) = host.observed {
                listed.get_or_create(&labels).set(observed.timestamp());
            }
        }
        let rows = self.health.rows.iter().flat_map(|row| &row.findings);
        let certificates = self.health.certificates.iter().flat_map(|certificate| &certificate.findings);
        let severities: Vec<Severity> = rows
            .chain(self.health.hosts.iter().flat_map(|host| &host.findings))
            .chain(certificates)
            .map(Finding::severity)
            .chain(self.health.notices.iter().map(|_| Severity::Critical))
            .collect();
        for severity in [Severity::Critical, Severity::Warning, Severity::Unknown] {
            let labels = vec![("severity", severity.to_string().to_lowercase())];
            findings.get_or_create(&labels).set(signed(severities.iter().filter(|s| **s == severity).count() as u64));
        }
        let expiries = Gauges::default();
        for CertificateState { expiry, .. } in &self.health.certificates {
            expiries.get_or_create(&certificate_labels(&expiry.host, expiry.role)).set(expiry.until.timestamp());
        }
        registry.register(CERTIFICATE_EXPIRY.0, CERTIFICATE_EXPIRY.1, expiries);
        registry.register("zsync_host_up", "1 if the last pass could list the host, otherwise 0", up);
        registry.register("zsync_host_listed_timestamp_seconds", "When the host was last listed", listed);
        registry.register("zsync_findings", "Number of problems that zsync check would report, by severity", findings);
    }
}

/// The name of the metric that says whether the last pass had no failures.
pub(crate) const LAST_PASS_SUCCESS: &str = "zsync_last_pass_success";

/// The metrics of a pass that could do nothing.
pub(crate) fn failed_pass() -> String {
    let mut registry = Registry::default();
    register_success(&mut registry, false);
    text(&registry)
}

fn register_success(registry: &mut Registry, success: bool) {
    let gauge: Gauge = Gauge::default();
    gauge.set(i64::from(success));
    registry.register(LAST_PASS_SUCCESS, "1 if the last pass had no failures, otherwise 0", gauge);
}

fn labels_of(row: &Row) -> Labels {
    vec![("host", row.host.to_string()), ("dataset", row.dataset.to_string()), ("policy", row.policy.clone())]
}

/// The metrics of a running director. Clones share one state.
#[derive(Clone)]
pub struct DirectorMetrics(Arc<Mutex<MetricsState>>);

struct MetricsState {
    counters: Counters,
    passes: Family<Labels, Counter>,
    /// Whether this director gives orders, and does not stand by for another one.
    is_active: bool,
    /// The orders that are running.
    progress: Option<PassProgress>,
    last: Option<PassMetrics>,
    /// Whether the last pass of this director had no failures; `None` before its first pass.
    success: Option<bool>,
}

impl Default for DirectorMetrics {
    fn default() -> Self {
        let (counters, passes) = (Counters::new(DIRECTOR), Family::default());
        Self(Arc::new(Mutex::new(MetricsState {
            counters,
            passes,
            is_active: false,
            progress: None,
            last: None,
            success: None,
        })))
    }
}

impl DirectorMetrics {
    fn state(&self) -> MutexGuard<'_, MetricsState> {
        self.0.lock()
    }

    /// Records that this director gives orders from now on, or stands by. A director that stands by knows nothing of
    /// the fleet, so what it knew before is no longer reported.
    pub fn set_active(&self, is_active: bool) {
        let mut state = self.state();
        state.is_active = is_active;
        if !is_active {
            (state.last, state.success, state.progress) = (None, None, None);
        }
    }

    /// Records that a pass begins. The metrics count the running orders of its `progress`.
    pub fn begins(&self, progress: PassProgress) {
        self.state().progress = Some(progress);
    }

    /// Records that a pass has ended; `None` if the catalog failed, so that no report of the pass is available.
    pub fn ended(&self, pass: Option<PassMetrics>) {
        let mut state = self.state();
        let success = pass.as_ref().is_some_and(|pass| pass.is_success);
        state.success = Some(success);
        state.passes.get_or_create(&vec![("result", result(success).to_owned())]).inc();
        let Some(pass) = pass else { return };
        for (action, success) in &pass.orders {
            state.counters.ended(action, *success, 0);
        }
        state.counters.moved(pass.bytes);
        state.last = Some(pass);
    }

    /// Renders the metrics in the text format of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        let state = self.state();
        state.counters.set_running(state.progress.as_ref().map_or(0, |progress| progress.running().len()));
        let mut registry = registry();
        registry.register(
            "zsync_director_passes",
            "Number of passes of this director, by result",
            state.passes.clone(),
        );
        state.counters.register(&mut registry);
        let active: Gauge = Gauge::default();
        active.set(i64::from(state.is_active));
        registry.register("zsync_director_active", "1 if this director gives orders, 0 if it stands by", active);
        if let Some(last) = &state.last {
            let running = state.progress.as_ref().map(status_file::running).unwrap_or_default();
            last.at(clock::now(), &running).register(&mut registry);
        }
        if let Some(success) = state.success {
            register_success(&mut registry, success);
        }
        text(&registry)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::actions::health::health;
    use crate::catalog::Outcome;
    use crate::config::parse_policy;
    use crate::director::progress::RunningOrder;
    use crate::model::{self, Action, DatasetInventory, Inventory, OrderId, Place, Prefix, Snapshot};

    #[test]
    fn forecast_counts_what_a_transfer_has_sent_since_the_last_pass() {
        let policy = r#"{ "datasets": [ { "hostname": "alpha", "dataset": "tank/a",
            "sync": { "prefix": "S", "creation": "@hourly", "sync_on": "beta:pool/a", "lag": "2h" } } ] }"#;
        let policy = Arc::new(parse_policy("server.json", policy).unwrap());
        let now = clock::now();
        let snapshot = |hours: i64| Snapshot {
            name: "S".parse::<Prefix>().unwrap().stamp(now - chrono::TimeDelta::hours(hours)),
            guid: model::Guid(9 - hours as u64),
            createtxg: 9 - hours as u64,
            creation: now - chrono::TimeDelta::hours(hours),
            userrefs: 0,
            has_clones: false,
            used: 0,
            marks: model::Marks::default(),
        };
        let mut inventory = Inventory::default();
        let to = Place { host: "beta".parse().unwrap(), dataset: "pool/a".parse().unwrap() };
        for (host, dataset, hours) in [("alpha", "tank/a", &[1_i64, 0][..]), ("beta", "pool/a", &[1])] {
            let host = inventory.hosts.entry(host.parse().unwrap()).or_default();
            host.observed = Some(now);
            let snapshots = hours.iter().map(|hours| snapshot(*hours)).collect();
            let of = DatasetInventory { snapshots, ..DatasetInventory::default() };
            host.datasets.insert(dataset.parse().unwrap(), of);
        }
        let health = health(&policy, &inventory, &BTreeMap::new(), now);
        let report = Report {
            at: now,
            took: Duration::ZERO,
            unseen: BTreeMap::new(),
            corrected: Vec::new(),
            outcomes: Vec::new(),
            resting: Vec::new(),
            notices: Vec::new(),
            unsaved: None,
            interrupted: None,
        };
        let passed = PassMetrics::of(&report, health, now).forecasting(policy, KnownDurations::default());
        let metrics = DirectorMetrics::default();
        metrics.ended(Some(passed));
        let forecast = || {
            let text = metrics.text();
            let line = text.lines().find(|line| line.starts_with("zsync_replica_lag_forecast_seconds{"));
            line.map(|line| line.split_once("} ").unwrap().1.parse::<i64>().unwrap())
        };
        assert_eq!(forecast(), None, "nothing is known of how long it takes");
        // It begins after the pass. 1 % was sent in a minute.
        let (progress, counter) = (PassProgress::default(), crate::model::Counter::default());
        metrics.begins(progress.clone());
        counter.expect(1000);
        counter.add(10);
        let outcome = Outcome {
            order_id: OrderId(uuid::Uuid::nil()),
            at: now,
            host: "alpha".parse().unwrap(),
            action: Action::SendSnapshot,
            dataset: Some("tank/a".parse().unwrap()),
            snapshot: None,
            to: Some(to),
            success: false,
            status: None,
            bytes: 0,
            seconds: 0.0,
            error: None,
            hint: None,
        };
        let since = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        progress.begin(RunningOrder { outcome, since, counter: counter.clone() });
        let expected = 3600 + 99 * 60;
        assert!(forecast().is_some_and(|seconds| (seconds - expected).abs() < 10), "{:?}", forecast());
        assert!(metrics.text().contains("zsync_findings{severity=\"warning\"} 1"), "{}", metrics.text());
        // It has become faster.
        counter.add(490);
        assert!(forecast().is_some_and(|seconds| (seconds - 3660).abs() < 10), "{:?}", forecast());
    }
}
