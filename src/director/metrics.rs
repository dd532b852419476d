//! The metrics of a director: of its last pass, and of all since it was started.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::actions::health::{Finding, Health, Row, Severity};
use crate::director::progress::PassProgress;
use crate::director::report::Report;
use crate::server::metrics::{Gauges, Labels, registry, result, signed, text};
use crate::server::{Counters, DIRECTOR};

/// What the last pass came to.
#[derive(Clone, Debug)]
pub struct PassMetrics {
    /// When it began.
    pub began: DateTime<Utc>,
    /// When it ended.
    pub ended: DateTime<Utc>,
    /// Whether everything went well.
    pub is_success: bool,
    /// The action of each order, and whether it was carried out.
    pub orders: Vec<(String, bool)>,
    /// Bytes that it moved.
    pub bytes: u64,
    /// How well the policy is kept after it.
    pub health: Health,
}

impl PassMetrics {
    /// Of a pass that has just ended.
    #[must_use]
    pub fn of(report: &Report, health: Health, began: DateTime<Utc>) -> Self {
        Self {
            began,
            ended: health.at,
            is_success: report.is_success(),
            orders: report.outcomes.iter().map(|o| (o.action.to_string(), o.success)).collect(),
            bytes: report.outcomes.iter().map(|o| o.bytes).sum(),
            health,
        }
    }

    /// For the textfile collector.
    #[must_use]
    pub fn text(&self) -> String {
        let mut registry = registry();
        self.register(&mut registry);
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
            ("zsync_last_pass_success", "Whether all went well in the last pass", i64::from(self.is_success)),
            ("zsync_last_pass_sent_bytes", "Bytes that the last pass sent", signed(self.bytes)),
        ] {
            registry.register(name, help, single(value));
        }
        let orders = Gauges::default();
        for (action, success) in &self.orders {
            orders.get_or_create(&vec![("action", action.clone()), ("result", result(*success).to_owned())]).inc();
        }
        registry.register("zsync_last_pass_orders", "Orders of the last pass, by how they ended", orders);
    }

    fn register_datasets(&self, registry: &mut Registry) {
        let [count, newest, replica, unsent, oldest] = std::array::from_fn(|_| Gauges::default());
        for row in &self.health.rows {
            let labels = of(row);
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
            if let Some(behind) = row.behind {
                unsent.get_or_create(&labels).set(signed(behind as u64));
            }
            if let Some(since) = row.unsent_since {
                oldest.get_or_create(&labels).set(since.timestamp());
            }
        }
        registry.register("zsync_snapshots", "Snapshots of the policy that a dataset has", count);
        registry.register("zsync_snapshot_newest_timestamp_seconds", "When the newest of them was taken", newest);
        registry.register(
            "zsync_replica_newest_timestamp_seconds",
            "When the newest of them was taken that is on a destination",
            replica,
        );
        registry.register("zsync_replica_unsent_snapshots", "How many of them a destination lacks", unsent);
        registry.register(
            "zsync_replica_unsent_oldest_timestamp_seconds",
            "When the oldest of them was taken that a destination lacks; missing where it lacks none",
            oldest,
        );
    }

    fn register_hosts(&self, registry: &mut Registry) {
        let [up, listed, findings] = std::array::from_fn(|_| Gauges::default());
        for state in &self.health.hosts {
            let labels = vec![("host", state.host.to_string())];
            up.get_or_create(&labels).set(i64::from(state.unseen.is_none()));
            if let Some(observed) = state.observed {
                listed.get_or_create(&labels).set(observed.timestamp());
            }
        }
        let rows = self.health.rows.iter().flat_map(|row| &row.findings);
        let found: Vec<Severity> = rows
            .chain(self.health.hosts.iter().flat_map(|host| &host.findings))
            .map(Finding::severity)
            .chain(self.health.notices.iter().map(|_| Severity::Critical))
            .collect();
        for severity in [Severity::Critical, Severity::Warning, Severity::Unknown] {
            let labels = vec![("severity", severity.to_string().to_lowercase())];
            findings.get_or_create(&labels).set(signed(found.iter().filter(|s| **s == severity).count() as u64));
        }
        registry.register("zsync_host_up", "Whether the last pass could look at a host", up);
        registry.register("zsync_host_listed_timestamp_seconds", "When a host was looked at last", listed);
        registry.register("zsync_findings", "What zsync check would find, by how bad it is", findings);
    }
}

fn of(row: &Row) -> Labels {
    vec![("host", row.host.to_string()), ("dataset", row.dataset.to_string()), ("policy", row.policy.clone())]
}

/// Keeps what there is to tell between two passes; clones share it.
#[derive(Clone)]
pub struct DirectorMetrics(Arc<Mutex<State>>);

struct State {
    tally: Counters,
    passes: Family<Labels, Counter>,
    board: Option<PassProgress>,
    last: Option<PassMetrics>,
}

impl Default for DirectorMetrics {
    fn default() -> Self {
        let (tally, passes) = (Counters::new(DIRECTOR), Family::default());
        Self(Arc::new(Mutex::new(State { tally, passes, board: None, last: None })))
    }
}

impl DirectorMetrics {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// A pass begins; its board tells what is under way.
    pub fn begins(&self, board: PassProgress) {
        self.state().board = Some(board);
    }

    /// It has ended; `None` where it could not even decide.
    pub fn ended(&self, passed: Option<PassMetrics>) {
        let mut state = self.state();
        state.board = None;
        let success = passed.as_ref().is_some_and(|passed| passed.is_success);
        state.passes.get_or_create(&vec![("result", result(success).to_owned())]).inc();
        let Some(passed) = passed else { return };
        for (action, success) in &passed.orders {
            state.tally.ended(action, *success, 0);
        }
        state.tally.moved(passed.bytes);
        state.last = Some(passed);
    }

    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        let state = self.state();
        state.tally.set_running(state.board.as_ref().map_or(0, |board| board.running().len()));
        let mut registry = registry();
        registry.register("zsync_director_passes", "Passes that this director made", state.passes.clone());
        state.tally.register(&mut registry);
        if let Some(last) = &state.last {
            last.register(&mut registry);
        }
        text(&registry)
    }
}
