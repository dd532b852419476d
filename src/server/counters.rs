//! Counts what a service has done since its start.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::server::metrics::{Labels, registry, result, text};

/// The names and descriptions of a role's metrics. The encoder adds `_total` to the names of counters.
#[derive(Debug)]
pub struct CounterNames {
    ended: (&'static str, &'static str),
    bytes: (&'static str, &'static str),
    running: (&'static str, &'static str),
}

/// The metrics of an agent.
pub const AGENT: &CounterNames = &CounterNames {
    ended: ("zsync_agent_orders", "Number of orders that this agent has carried out, by action and result"),
    bytes: ("zsync_agent_sent_bytes", "Number of bytes that this agent has sent"),
    running: ("zsync_agent_orders_running", "Number of running orders"),
};
/// The metrics of a slave.
pub const SLAVE: &CounterNames = &CounterNames {
    ended: ("zsync_slave_streams", "Number of streams that this slave has received, by action and result"),
    bytes: ("zsync_slave_received_bytes", "Number of bytes that this slave has received"),
    running: ("zsync_slave_streams_running", "Number of running streams"),
};
/// The metrics of a director that runs as a service.
pub const DIRECTOR: &CounterNames = &CounterNames {
    ended: ("zsync_director_orders", "Number of orders that this director has given, by action and result"),
    bytes: ("zsync_director_sent_bytes", "Number of bytes that the orders of this director have sent"),
    running: ("zsync_director_orders_running", "Number of running orders"),
};

/// The counters of a role. Clones share them.
#[derive(Clone)]
pub struct Counters {
    names: &'static CounterNames,
    ended: Family<Labels, Counter>,
    bytes: Counter,
    running: Gauge,
}

/// Counts an order or a stream as running until it is dropped.
pub struct InProgress(Gauge);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Counters {
    /// Creates counters that start from zero.
    #[must_use]
    pub fn new(names: &'static CounterNames) -> Self {
        Self { names, ended: Family::default(), bytes: Counter::default(), running: Gauge::default() }
    }

    /// Counts an order or a stream as running.
    #[must_use]
    pub fn begin(&self) -> InProgress {
        self.running.inc();
        InProgress(self.running.clone())
    }

    /// Sets the number of running orders.
    pub fn set_running(&self, count: usize) {
        self.running.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts an order or a stream that has ended, with its bytes.
    pub fn ended(&self, action: &str, success: bool, bytes: u64) {
        let labels = vec![("action", action.to_owned()), ("result", result(success).to_owned())];
        self.ended.get_or_create(&labels).inc();
        self.moved(bytes);
    }

    /// Counts bytes that were sent or received.
    pub fn moved(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    /// Adds the counters to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let CounterNames { ended, bytes, running } = self.names;
        registry.register(ended.0, ended.1, self.ended.clone());
        registry.register(bytes.0, bytes.1, self.bytes.clone());
        registry.register(running.0, running.1, self.running.clone());
    }

    /// The counters in the text format of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        self.text_with(|_| {})
    }

    /// The counters and what `add` registers, in the text format of Prometheus.
    #[must_use]
    pub fn text_with(&self, add: impl FnOnce(&mut Registry)) -> String {
        let mut registry = registry();
        self.register(&mut registry);
        add(&mut registry);
        text(&registry)
    }
}
