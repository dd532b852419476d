//! What a service has done since it was started, counted.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::server::metrics::{Labels, registry, result, text};

/// What a tally is called.
#[derive(Debug)]
pub struct Names {
    ended: (&'static str, &'static str),
    bytes: (&'static str, &'static str),
    running: (&'static str, &'static str),
}

/// Of an agent. Counters get `_total` at the end.
pub const AGENT: &Names = &Names {
    ended: ("zsync_agent_orders", "Orders that this agent carried out, by how they ended"),
    bytes: ("zsync_agent_sent_bytes", "Bytes that this agent sent"),
    running: ("zsync_agent_orders_running", "Orders under way"),
};
/// Of a slave.
pub const SLAVE: &Names = &Names {
    ended: ("zsync_slave_streams", "Streams that this slave received, by how they ended"),
    bytes: ("zsync_slave_received_bytes", "Bytes that this slave received"),
    running: ("zsync_slave_streams_running", "Streams under way"),
};
/// Of a director in its loop.
pub const DIRECTOR: &Names = &Names {
    ended: ("zsync_director_orders", "Orders that this director gave, by how they ended"),
    bytes: ("zsync_director_sent_bytes", "Bytes that its orders sent"),
    running: ("zsync_director_orders_running", "Orders under way"),
};

/// Counts; clones count together.
#[derive(Clone)]
pub struct Counters {
    names: &'static Names,
    ended: Family<Labels, Counter>,
    bytes: Counter,
    running: Gauge,
}

/// Something that is under way until this is dropped.
pub struct InProgress(Gauge);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Counters {
    /// Nothing was done yet.
    #[must_use]
    pub fn new(names: &'static Names) -> Self {
        Self { names, ended: Family::default(), bytes: Counter::default(), running: Gauge::default() }
    }

    /// Something begins.
    #[must_use]
    pub fn begin(&self) -> InProgress {
        self.running.inc();
        InProgress(self.running.clone())
    }

    /// So many things are under way.
    pub fn set_running(&self, count: usize) {
        self.running.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Something of this kind has ended.
    pub fn ended(&self, action: &str, success: bool, bytes: u64) {
        let labels = vec![("action", action.to_owned()), ("result", result(success).to_owned())];
        self.ended.get_or_create(&labels).inc();
        self.moved(bytes);
    }

    /// So many bytes more went over the wire.
    pub fn moved(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    /// Has a registry tell of it.
    pub fn register(&self, registry: &mut Registry) {
        let Names { ended, bytes, running } = self.names;
        registry.register(ended.0, ended.1, self.ended.clone());
        registry.register(bytes.0, bytes.1, self.bytes.clone());
        registry.register(running.0, running.1, self.running.clone());
    }

    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut registry = registry();
        self.register(&mut registry);
        text(&registry)
    }
}
