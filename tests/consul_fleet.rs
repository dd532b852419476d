//! A fleet that shares its catalog in a real Consul: agents and slaves on pools in memory, over loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use zsync::agent::Agent;
use zsync::catalog::{CatalogError, CatalogRead, CatalogWrite, ConsulCatalog};
use zsync::config::{parse_local, parse_policy};
use zsync::consul::{Consul, Health, Settings};
use zsync::director::{Election, ElectionResult, Leadership, Pass, Report};
use zsync::fleet::health::ServiceHealth;
use zsync::fleet::{Dispatcher, FleetState};
use zsync::host::publish::fences::Fences;
use zsync::host::publish::presence;
use zsync::host::publish::presence::ServiceRegistration;
use zsync::host::publish::publisher::Publisher;
use zsync::model::{Action, Counter, DatasetName, HostName, ResponseStatus};
use zsync::policy::Local;
use zsync::policy::{ConsulConfig, Policy};
use zsync::slave::Slave;
use zsync::sys::runtime;
use zsync::sys::runtime::block_on;
use zsync::wire::{DirectorsOrder, Response};
use zsync::zfs::fake::Fake;

#[allow(dead_code, reason = "others use more of it")]
#[path = "consul/agent.rs"]
mod agent;
mod loopback;

use loopback::listen;

fn at(address: &str) -> Consul {
    let config = ConsulConfig { address: Some(address.to_owned()), ..ConsulConfig::default() };
    Consul::new(&Settings::with_environment(&config, |_| None).unwrap()).unwrap()
}

fn ds(text: &str) -> DatasetName {
    text.parse().unwrap()
}

fn host(text: &str) -> HostName {
    text.parse().unwrap()
}

/// Waits for something, at most half a minute.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One host with everything that it runs.
struct Host {
    fake: Fake,
    address: String,
    receive_address: String,
    publisher: Arc<Publisher>,
    _state: tempfile::TempDir,
}

/// alpha has the data, beta receives; both have published all that they hold.
struct Fleet {
    consul: Consul,
    root: String,
    alpha: Host,
    beta: Host,
    now: DateTime<Utc>,
}

fn local(datasets: &str) -> Arc<Local> {
    Arc::new(parse_local("local.json", &format!(r#"{{ "local_datasets": [ {datasets} ] }}"#)).unwrap())
}

impl Host {
    fn start(name: &str, consul: &Consul, root: &str, datasets: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let (fake, local) = (Fake::new(name.len() as u64), local(datasets));
        let datasets: &[&str] = if name == "alpha" { &["tank", "tank/data", "tank/data/child"] } else { &["pool"] };
        datasets.iter().for_each(|dataset| fake.create(&ds(dataset)));
        let catalog = || ConsulCatalog::new(consul.clone(), root);
        let publisher = Arc::new(Publisher::new(host(name), catalog(), state.path(), "agent"));
        let zfs = Arc::new(fake.clone());
        let agent = Agent::new(host(name), Arc::clone(&zfs), Arc::clone(&local))
            .fenced(Fences::new(state.path()))
            .publishing(Some(Arc::clone(&publisher)));
        let receives = Arc::new(Publisher::new(host(name), catalog(), state.path(), "slave"));
        let slave = Slave::new(Arc::clone(&zfs), Arc::clone(&local)).publishing(Some(Arc::clone(&receives)));
        let (address, receive_address) = (listen(agent, None), listen(slave, None));
        for (service, publisher, address) in
            [(presence::AGENTS, &publisher, &address), (presence::SLAVES, &receives, &receive_address)]
        {
            let mut service = presence::registration(service, &host(name), address, Some(address));
            // Other tests have a host of this name, too.
            service.id = format!("{}-{root}", service.id).replace('/', "-");
            let (post, zfs) =
                (ServiceRegistration::new(service, Arc::clone(publisher), Arc::clone(&local)), Arc::clone(&zfs));
            runtime::spawn(async move { presence::keep(&post, &*zfs).await });
        }
        Self { fake, address, receive_address, publisher, _state: state }
    }

    fn names(&self, dataset: &str) -> Vec<String> {
        let found = self.fake.dataset(&ds(dataset));
        found.map(|d| d.snapshots.iter().map(|s| s.name.to_string()).collect()).unwrap_or_default()
    }
}

impl Fleet {
    fn new(consul: Consul) -> Self {
        let root = format!("fleet/{}", uuid::Uuid::now_v7());
        let alpha = Host::start("alpha", &consul, &root, r#"{ "name": "tank" }"#);
        let beta = Host::start("beta", &consul, &root, r#"{ "name": "pool", "slave": true, "append_only": false }"#);
        let now = DateTime::from_timestamp(1_795_429_805, 0).unwrap();
        let fleet = Self { consul, root, alpha, beta, now };
        fleet.settle();
        fleet
    }

    /// Until both hosts have published all, and say so.
    fn settle(&self) {
        until("everything is published", || {
            let well = |service| {
                let found = block_on(self.consul.instances(service)).unwrap_or_default();
                let ours = [&self.alpha, &self.beta].map(|host| [&host.address, &host.receive_address]).concat();
                let ours: Vec<_> = found.into_iter().filter(|one| ours.contains(&&one.address)).collect();
                ours.len() == 2 && ours.iter().all(|one| one.health == Health::Passing)
            };
            well(presence::AGENTS) && well(presence::SLAVES)
        });
    }

    fn policy(&self) -> Arc<Policy> {
        // Others use the same Consul: the addresses are the policy's own.
        let entry = |name: &str, host: &Host| {
            format!(r#""{name}": {{ "address": "{}", "receive_address": "{}" }}"#, host.address, host.receive_address)
        };
        let text = format!(
            r#"{{ "hosts": {{ {}, {} }}, "datasets": [ {{ "hostname": "alpha", "dataset": "tank/data", "recursive": true,
                "sync": {{ "prefix": "S", "creation": "* * * * *", "sync_on": "beta", "sync_dataset": "pool/copy",
                           "retention": ["1 in last day"], "sync_retention": ["2 in last day"] }} }} ] }}"#,
            entry("alpha", &self.alpha),
            entry("beta", &self.beta)
        );
        Arc::new(parse_policy("server.json", &text).unwrap())
    }

    fn world(&self) -> FleetState<ConsulCatalog> {
        FleetState::shared(Arc::new(ConsulCatalog::new(self.consul.clone(), &self.root)))
    }

    fn pass(
        &self,
        world: &FleetState<ConsulCatalog>,
        standing: ServiceHealth,
        leadership: &Leadership,
    ) -> Result<Report, CatalogError> {
        [&self.alpha, &self.beta].into_iter().for_each(|host| host.fake.set_now(self.now));
        block_on(self.made(world, self.now).led(leadership.clone(), standing).run())
    }

    fn made(&self, world: &FleetState<ConsulCatalog>, at: DateTime<Utc>) -> Pass<Fake, ConsulCatalog> {
        let own: Result<Arc<Agent<Fake>>, String> = Err("none here".to_owned());
        let dispatcher = Arc::new(Dispatcher { here: host("director"), own, tls: None });
        Pass::new(self.policy(), dispatcher, world.clone(), at)
    }

    /// With a director that has made so many passes.
    fn after(passes: usize, consul: Consul) -> (Self, Leadership, FleetState<ConsulCatalog>) {
        let mut fleet = Self::new(consul);
        let (leadership, world) = (fleet.lead("one"), fleet.world());
        for _ in 0..passes {
            fleet.later(1);
            let report = fleet.pass(&world, ServiceHealth::default(), &leadership).unwrap();
            assert!(report.is_success(), "{report:?}");
        }
        (fleet, leadership, world)
    }

    fn later(&mut self, minutes: i64) {
        self.now += TimeDelta::minutes(minutes);
        for dataset in ["tank/data", "tank/data/child"] {
            self.alpha.fake.write(&ds(dataset), 1000);
        }
    }

    fn office(&self, name: &str) -> Election {
        Election::new(self.consul.clone(), &self.root, host(name))
    }

    fn lead(&self, name: &str) -> Leadership {
        let ElectionResult::Won(leadership) = block_on(self.office(name).try_win()).unwrap() else {
            panic!("it is taken")
        };
        leadership
    }

    fn catalog(&self) -> ConsulCatalog {
        ConsulCatalog::new(self.consul.clone(), &self.root)
    }
}

fn told(report: &Report) -> Vec<String> {
    let order = |o: &zsync::catalog::Outcome| format!("{} {}:{}", o.action, o.host, o.dataset.as_ref().unwrap());
    report.outcomes.iter().map(order).collect()
}

fn shared() -> Option<Consul> {
    agent::shared().map(at)
}

#[test]
fn what_one_pass_did_the_next_director_knows_without_asking_anybody() {
    let Some(consul) = shared() else { return };
    let (fleet, leadership, _) = Fleet::after(4, consul);
    assert_eq!(fleet.alpha.names("tank/data").len(), 1, "the policy's rules are kept");
    assert_eq!(fleet.beta.names("pool/copy/child").len(), 2);
    assert_eq!(fleet.beta.names("pool/copy").last(), fleet.alpha.names("tank/data").last());
    let listings = |host: &Host| host.fake.calls().iter().filter(|call| call.contains("list")).count();
    let before = (listings(&fleet.alpha), listings(&fleet.beta));
    let report = fleet.pass(&fleet.world(), ServiceHealth::default(), &leadership).unwrap();
    assert!(report.is_success() && report.outcomes.is_empty(), "{:?}", told(&report));
    assert_eq!((listings(&fleet.alpha), listings(&fleet.beta)), before, "nobody was asked");
    let catalog = fleet.catalog();
    assert_eq!(catalog.destroyed(100).unwrap().len(), 3 * 2 + 2 * 2, "the history of what was destroyed");
    assert!(catalog.outcomes(100).unwrap().iter().any(|o| o.action == Action::SendSnapshot && o.bytes > 0));
    // What the catalog says is what there is.
    for (name, host) in [("alpha", &fleet.alpha), ("beta", &fleet.beta)] {
        let known = catalog.host(&self::host(name)).unwrap().unwrap();
        for (dataset, known) in known.datasets {
            let names: Vec<String> = known.snapshots.iter().map(|s| s.name.to_string()).collect();
            assert_eq!(names, host.names(dataset.as_str()), "{name}:{dataset}");
        }
    }
    block_on(leadership.resign());
}

/// The catalog is lost in between: it is rebuilt from the hosts alone, and nothing is sent or destroyed wrongly.
#[test]
fn an_emptied_catalog_is_rebuilt_by_the_next_pass() {
    let Some(consul) = shared() else { return };
    let (mut fleet, leadership, world) = Fleet::after(3, consul);
    let (ours, theirs) = (fleet.alpha.names("tank/data"), fleet.beta.names("pool/copy"));
    for below in ["inventory", "generation", "inventory/beta", "inventory/alpha/tank/data"] {
        block_on(fleet.consul.delete_tree(&format!("{}/{below}", fleet.root))).unwrap();
        for world in [fleet.world(), world.clone()] {
            let report = fleet.pass(&world, ServiceHealth::default(), &leadership).unwrap();
            assert!(report.is_success() && report.outcomes.is_empty(), "{below}: {:?}", told(&report));
        }
        assert_eq!((fleet.alpha.names("tank/data"), fleet.beta.names("pool/copy")), (ours.clone(), theirs.clone()));
        let known = fleet.catalog().inventory().unwrap();
        assert!(known.hosts.values().all(|host| host.observed.is_some()), "{below}");
        assert_eq!(known.hosts.len(), 2);
    }
    fleet.later(1);
    assert_eq!(
        fleet.pass(&fleet.world(), ServiceHealth::default(), &leadership).unwrap().outcomes.len(),
        2 + 2 + 4 - 1
    );
    block_on(leadership.resign());
}

#[test]
fn a_resync_tells_every_difference_and_mends_it() {
    let Some(consul) = shared() else { return };
    let (fleet, leadership, world) = Fleet::after(1, consul);
    // Behind zsync's back: no pass sees it before the resync.
    fleet.alpha.fake.create(&ds("tank/new"));
    let quiet = fleet.pass(&world, ServiceHealth::default(), &leadership).unwrap();
    assert!(quiet.corrected.is_empty());
    let pass = fleet.made(&fleet.world(), fleet.now + TimeDelta::days(3650));
    let pass = pass.led(leadership.clone(), ServiceHealth::default()).resyncing(true);
    // Far in the future everything is due; only what it mends matters here.
    let report = block_on(pass.run()).unwrap();
    let lines: Vec<String> = report.corrected.iter().map(|(host, line)| format!("{host}: {line}")).collect();
    assert!(lines.contains(&"alpha: tank/new was not known, with 0 snapshots".to_owned()), "{lines:?}");
    assert!(fleet.catalog().inventory().unwrap().dataset(&host("alpha"), &ds("tank/new")).is_some());
    block_on(leadership.resign());
}

#[test]
fn only_one_directs_and_the_next_takes_over() {
    let Some(consul) = shared() else { return };
    let mut fleet = Fleet::new(consul);
    fleet.later(1);
    let first = fleet.lead("one");
    let ElectionResult::Lost { holder: Some(holder), index } = block_on(fleet.office("two").try_win()).unwrap() else {
        panic!()
    };
    assert!(holder.starts_with("one is the active director (process "), "{holder}");
    let old = first.fence().unwrap();
    // It ends in order: who waits has it at once.
    let (waiting, office) = (Instant::now(), fleet.office("two"));
    let watching = runtime::spawn(async move { office.changed(Some(&holder), index).await });
    block_on(first.clone().resign());
    block_on(watching).unwrap();
    let second = fleet.lead("two");
    assert!(waiting.elapsed() < Duration::from_secs(10));
    assert!(matches!(first.fence(), Err(CatalogError::LockLost(_))), "it gives no more orders");
    let new = second.fence().unwrap();
    assert!(new.catalog == old.catalog && new.index > old.index, "{old:?} {new:?}");
    // The dead one's order comes late.
    let world = fleet.world();
    assert!(fleet.pass(&world, ServiceHealth::default(), &second).unwrap().is_success());
    let name = fleet.alpha.names("tank/data").pop().unwrap();
    let guid = fleet.alpha.fake.dataset(&ds("tank/data")).unwrap().snapshots[0].guid;
    let order = |fence| DirectorsOrder {
        fence: Some(fence),
        dest_dataset: "tank/data".into(),
        snapshot_uuid: vec![format!("{}:tank/data@{name}", guid.uuid())],
        ..zsync_blank(Action::DestroySnapshot)
    };
    let (refused, heeded) = (ask(&fleet.alpha.address, &order(old)), ask(&fleet.alpha.address, &order(new)));
    assert!(!refused.is_success && refused.status == ResponseStatus::Refused, "{refused:?}");
    assert!(refused.error.contains("another director has taken over"), "{refused:?}");
    assert!(heeded.is_success && heeded.error.contains("stays"), "the newest is never destroyed: {heeded:?}");
    block_on(second.resign());
}

fn zsync_blank(action: Action) -> DirectorsOrder {
    serde_json::from_value(serde_json::json!({ "OrderUUID": uuid::Uuid::now_v7(), "Action": action })).unwrap()
}

/// Gives one order, past every director.
fn ask(address: &str, order: &DirectorsOrder) -> Response {
    let dispatcher: Dispatcher<Fake> =
        Dispatcher { here: host("by-hand"), own: Err("none here".to_owned()), tls: None };
    let text = format!(r#"{{ "hosts": {{ "it": {{ "address": "{address}" }} }}, "datasets": [] }}"#);
    let policy = parse_policy("server.json", &text).unwrap();
    block_on(dispatcher.ask(&policy, &host("it"), order, Counter::default())).0
}

#[test]
fn a_broken_lock_is_noticed_at_once_and_no_more_orders_are_given() {
    let Some(consul) = shared() else { return };
    let mut fleet = Fleet::new(consul);
    fleet.later(1);
    let leadership = fleet.lead("one");
    let begun = Instant::now();
    block_on(fleet.consul.delete_tree(&format!("{}/lock", fleet.root))).unwrap();
    let reason = block_on(leadership.lost());
    assert!(begun.elapsed() < Duration::from_secs(8), "sooner than by its time");
    assert!(reason.contains("not there any more"), "{reason}");
    let error = fleet.pass(&fleet.world(), ServiceHealth::default(), &leadership).unwrap_err();
    assert!(matches!(error, CatalogError::LockLost(_)), "{error}");
    assert!(fleet.alpha.names("tank/data").is_empty());
    // A catalog that lost its lock's pair has its id still: the next one's fence is higher all the same.
    let next = fleet.lead("two");
    next.fence().unwrap();
    block_on(next.resign());
}

#[test]
fn while_consul_is_away_agents_finish_and_publish_later() {
    let Some(mut server) = agent::Agent::start(&[]) else { return };
    let mut fleet = Fleet::new(at(&server.address));
    let leadership = fleet.lead("one");
    let world = fleet.world();
    fleet.later(1);
    assert!(fleet.pass(&world, ServiceHealth::default(), &leadership).unwrap().is_success());
    server.kill();
    fleet.later(1);
    [&fleet.alpha, &fleet.beta].into_iter().for_each(|host| host.fake.set_now(fleet.now));
    let error = fleet.pass(&world, ServiceHealth::default(), &leadership).unwrap_err();
    assert!(error.to_string().contains("Consul"), "{error}");
    assert_eq!(fleet.alpha.names("tank/data").len(), 1, "no order is made");
    // An order that was on its way is carried out.
    let order = DirectorsOrder {
        snapshot_name: "by-hand".into(),
        dest_dataset: "tank/data".into(),
        ..zsync_blank(Action::TakeSnapshot)
    };
    let response = ask(&fleet.alpha.address, &order);
    assert!(response.is_success && response.unpublished, "{response:?}");
    assert!(fleet.alpha.publisher.behind().unwrap().contains("cannot reach Consul"));
    assert!(block_on(leadership.lost()).contains("could not be renewed"), "by its own clock");
    server.start_again();
    // It has forgotten everything: the hosts tell it again by themselves.
    fleet.settle();
    let known = fleet.catalog().inventory().unwrap();
    let names: Vec<String> =
        known.dataset(&host("alpha"), &ds("tank/data")).unwrap().snapshots.iter().map(|s| s.name.to_string()).collect();
    assert_eq!(names, fleet.alpha.names("tank/data"));
    let leadership = fleet.lead("two");
    let report = fleet.pass(&fleet.world(), ServiceHealth::default(), &leadership).unwrap();
    assert!(report.is_success(), "{report:?}");
    assert_eq!(fleet.beta.names("pool/copy").last(), fleet.alpha.names("tank/data").last());
}

#[test]
fn old_marks_are_forgotten_by_age() {
    let Some(consul) = shared() else { return };
    let (fleet, leadership, _) = Fleet::after(3, consul);
    let catalog = fleet.catalog();
    let before = catalog.destroyed(100).unwrap().len();
    assert!(before > 0);
    let past = DateTime::<Utc>::UNIX_EPOCH;
    assert_eq!(catalog.forget_marks(past).unwrap(), 0);
    assert_eq!(catalog.forget_marks(DateTime::<Utc>::MAX_UTC).unwrap(), before);
    assert!(catalog.destroyed(100).unwrap().is_empty());
    assert!(catalog.inventory().unwrap().hosts.values().all(|host| host.observed.is_some()));
    block_on(leadership.resign());
}
