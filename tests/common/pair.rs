//! Sets up a source and a destination on pools in memory.

use std::sync::Arc;

use zsync::agent::Agent;
use zsync::model::{Action, Counter, Guid};
use zsync::server::acceptor::Acceptor;
use zsync::slave::Slave;
use zsync::sys::runtime;
use zsync::wire::{DirectorsOrder, Facts, Response};
use zsync::zfs::Zfs;
use zsync::zfs::fake::Fake;

use super::loopback::Server;
use super::{ds, guids, host, local, order, snap};

/// A source host, alpha, and a destination host, beta, whose slave listens on loopback.
pub struct Pair {
    pub alpha: Fake,
    pub beta: Fake,
    pub agent: Arc<Agent<Fake>>,
    pub slave: Server,
}

impl Pair {
    pub fn new() -> Self {
        Self::with_destination(
            r#"{ "local_datasets": [ { "name": "pool/copy", "slave": true, "sources": ["alpha"], "append_only": false, "rollback": true } ] }"#,
        )
    }

    pub fn with_destination(destination: &str) -> Self {
        let (alpha, beta) = (Fake::new(1), Fake::new(2));
        alpha.create(&ds("tank"));
        alpha.create(&ds("tank/data"));
        beta.create(&ds("pool"));
        let source =
            local(r#"{ "local_datasets": [ { "name": "tank/data" }, { "name": "tank/copy", "slave": true } ] }"#);
        let agent = Arc::new(Agent::new(host("alpha"), Arc::new(alpha.clone()), source));
        let slave = Arc::new(Slave::new(Arc::new(beta.clone()), local(destination)));
        Self { alpha, beta, agent, slave: Server::start(Acceptor::new(slave, None)) }
    }

    pub fn carry_out(&self, order: &DirectorsOrder) -> (Response, Vec<Facts>) {
        Self::carry_out_by(&self.agent, order)
    }

    pub fn carry_out_by(agent: &Agent<Fake>, order: &DirectorsOrder) -> (Response, Vec<Facts>) {
        let (sender, received) = runtime::channel::unbounded();
        let response = runtime::block_on(super::carry_out(agent, order, sender, Counter::default()));
        let mut facts = Vec::new();
        while let Ok(fact) = received.try_recv() {
            facts.push(fact);
        }
        (response, facts)
    }

    /// Another source host, with the dataset `tank/data` and one snapshot of it, S_1, whose guid is returned.
    pub fn another_source(name: &str) -> (Arc<Agent<Fake>>, Fake, Guid) {
        let zfs = Fake::new(3);
        zfs.create(&ds("tank"));
        zfs.create(&ds("tank/data"));
        let source = local(r#"{ "local_datasets": [ { "name": "tank/data" } ] }"#);
        let agent = Arc::new(Agent::new(host(name), Arc::new(zfs.clone()), source));
        runtime::block_on(zfs.snapshot(&[ds("tank/data")], &snap("S_1"))).unwrap();
        let guid = guids(&zfs, "tank/data")[0];
        (agent, zfs, guid)
    }

    pub fn take(&self, name: &str) -> Guid {
        self.alpha.write(&ds("tank/data"), 1000);
        let order = DirectorsOrder {
            snapshot_name: name.into(),
            dest_dataset: "tank/data".into(),
            ..order(Action::TakeSnapshot)
        };
        let (response, facts) = self.carry_out(&order);
        assert!(response.is_success, "{response:?}");
        facts[0].taken[0].1.guid
    }

    pub fn send_order(&self, guid: Guid) -> DirectorsOrder {
        DirectorsOrder {
            destination: "beta".into(),
            destination_address: Some(self.slave.address.clone()),
            snapshot_uuid: vec![guid.uuid().to_string()],
            dest_dataset: "pool/copy".into(),
            ..order(Action::SendSnapshot)
        }
    }

    pub fn send(&self, guid: Guid) -> Response {
        self.carry_out(&self.send_order(guid)).0
    }

    pub fn source(&self) -> Vec<Guid> {
        guids(&self.alpha, "tank/data")
    }

    pub fn copy(&self) -> Vec<Guid> {
        guids(&self.beta, "pool/copy")
    }
}
