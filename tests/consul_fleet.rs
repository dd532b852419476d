//! Runs a fleet that shares its catalog in a real Consul: agents and slaves over loopback, on pools in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use zsync::agent::Agent;
use zsync::catalog::{CatalogError, CatalogRead, CatalogWrite, Change, ConsulCatalog};
use zsync::config::{parse_local, parse_policy};
use zsync::consul::{Consul, Health, Op};
use zsync::director::{Election, ElectionResult, Leadership, Pass, Report};
use zsync::fleet::health::ServiceHealth;
use zsync::fleet::{Dispatcher, FleetState};
use zsync::host::publish::fences::Fences;
use zsync::host::publish::presence;
use zsync::host::publish::presence::ServiceRegistration;
use zsync::host::publish::publisher::Publisher;
use zsync::model::{Action, Counter, Guid, HostListing, Marks, ResponseStatus, UnlistedPools};
use zsync::policy::Local;
use zsync::policy::Policy;
use zsync::slave::Slave;
use zsync::sys::runtime;
use zsync::sys::runtime::block_on;
use zsync::wire::{DirectorsOrder, Fence, Response};
use zsync::zfs::fake::Fake;

mod common;

use common::consul;
use common::loopback::listen;
use common::{consul_at, ds, host, order, wait_until};

/// One host with its services.
struct Host {
    fake: Fake,
    address: String,
    receive_address: String,
    publisher: Arc<Publisher>,
    _state: tempfile::TempDir,
}

/// A fleet: alpha has the data, beta receives it. Both have published what they hold.
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
        let zfs = Arc::new(fake.clone());
        let publisher = Arc::new(Publisher::new(host(name), catalog(), &zfs, state.path(), "agent"));
        let agent = Agent::new(host(name), Arc::clone(&zfs), Arc::clone(&local))
            .fenced(Fences::new(state.path()))
            .publishing(Some(Arc::clone(&publisher)));
        let receives = Arc::new(Publisher::new(host(name), catalog(), &zfs, state.path(), "slave"));
        let slave = Slave::new(Arc::clone(&zfs), Arc::clone(&local)).publishing(Some(Arc::clone(&receives)));
        let (address, receive_address) = (listen(agent, None), listen(slave, None));
        for (service, publisher, address) in
            [(presence::AGENTS, &publisher, &address), (presence::SLAVES, &receives, &receive_address)]
        {
            let mut service = presence::registration(service, &host(name), address, Some(address));
            // Other tests use the same host name.
            service.id = format!("{}-{root}", service.id).replace('/', "-");
            let post = ServiceRegistration::new(service, Arc::clone(publisher), Arc::clone(&local));
            runtime::spawn(async move { presence::keep_registered(&post).await });
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
        let (alpha, beta) = (consul.clone(), consul.clone());
        Self::with(consul, root, &alpha, &beta)
    }

    /// A fleet whose director and hosts have tokens of their own.
    fn with(consul: Consul, root: String, alpha: &Consul, beta: &Consul) -> Self {
        let alpha = Host::start("alpha", alpha, &root, r#"{ "name": "tank" }"#);
        let beta = Host::start("beta", beta, &root, r#"{ "name": "pool", "slave": true, "append_only": false }"#);
        let now = DateTime::from_timestamp(1_795_429_805, 0).unwrap();
        let fleet = Self { consul, root, alpha, beta, now };
        fleet.settle();
        fleet
    }

    /// Waits until both hosts have published everything and are healthy.
    fn settle(&self) {
        wait_until("everything is published", || {
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
        // Other tests use the same Consul, so the policy names the addresses.
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

    /// A fleet after this many passes of a director.
    fn after(passes: usize, consul: Consul) -> (Self, Leadership, FleetState<ConsulCatalog>) {
        Self::new(consul).passes(passes)
    }

    /// The fleet after this many passes of a director.
    fn passes(mut self, passes: usize) -> (Self, Leadership, FleetState<ConsulCatalog>) {
        let fleet = &mut self;
        let (leadership, world) = (fleet.lead("one"), fleet.world());
        for _ in 0..passes {
            fleet.later(1);
            let report = fleet.pass(&world, ServiceHealth::default(), &leadership).unwrap();
            assert!(report.is_success(), "{report:?}");
        }
        (self, leadership, world)
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
            panic!("another director is the leader")
        };
        leadership
    }

    fn catalog(&self) -> ConsulCatalog {
        ConsulCatalog::new(self.consul.clone(), &self.root)
    }
}

fn outcomes(report: &Report) -> Vec<String> {
    let order = |o: &zsync::catalog::Outcome| format!("{} {}:{}", o.action, o.host, o.dataset.as_ref().unwrap());
    report.outcomes.iter().map(order).collect()
}

fn shared() -> Option<Consul> {
    consul::shared().map(consul_at)
}

#[test]
fn next_director_knows_last_pass_without_listing() {
    let Some(consul) = shared() else { return };
    let (fleet, leadership, _) = Fleet::after(4, consul);
    assert_eq!(fleet.alpha.names("tank/data").len(), 1, "the retention is applied");
    assert_eq!(fleet.beta.names("pool/copy/child").len(), 2);
    assert_eq!(fleet.beta.names("pool/copy").last(), fleet.alpha.names("tank/data").last());
    let listings = |host: &Host| host.fake.calls().iter().filter(|call| call.contains("list")).count();
    let before = (listings(&fleet.alpha), listings(&fleet.beta));
    let report = fleet.pass(&fleet.world(), ServiceHealth::default(), &leadership).unwrap();
    assert!(report.is_success() && report.outcomes.is_empty(), "{:?}", outcomes(&report));
    assert_eq!((listings(&fleet.alpha), listings(&fleet.beta)), before, "no host was listed");
    let catalog = fleet.catalog();
    assert_eq!(
        catalog.destroyed(100).unwrap().len(),
        3 * 2 + 2 * 2,
        "the catalog keeps the history of destroyed snapshots"
    );
    assert!(catalog.outcomes(100).unwrap().iter().any(|o| o.action == Action::SendSnapshot && o.bytes > 0));
    // The catalog agrees with the pools.
    for (name, host) in [("alpha", &fleet.alpha), ("beta", &fleet.beta)] {
        let known = catalog.host(&self::host(name)).unwrap().unwrap();
        for (dataset, known) in known.datasets {
            let names: Vec<String> = known.snapshots.iter().map(|s| s.name.to_string()).collect();
            assert_eq!(names, host.names(dataset.as_str()), "{name}:{dataset}");
        }
    }
    block_on(leadership.resign());
}

/// The catalog is lost between two passes. It is rebuilt from the hosts alone, and nothing is sent or destroyed
/// wrongly.
#[test]
fn pass_rebuilds_emptied_catalog() {
    let Some(consul) = shared() else { return };
    let (mut fleet, leadership, world) = Fleet::after(3, consul);
    let (ours, theirs) = (fleet.alpha.names("tank/data"), fleet.beta.names("pool/copy"));
    for below in ["inventory", "generation", "inventory/beta", "inventory/alpha/tank/data"] {
        block_on(fleet.consul.delete_tree(&format!("{}/{below}", fleet.root))).unwrap();
        for world in [fleet.world(), world.clone()] {
            let report = fleet.pass(&world, ServiceHealth::default(), &leadership).unwrap();
            assert!(report.is_success() && report.outcomes.is_empty(), "{below}: {:?}", outcomes(&report));
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
fn resync_reports_and_fixes_every_difference() {
    let Some(consul) = shared() else { return };
    let (fleet, leadership, world) = Fleet::after(1, consul);
    // Created without zsync, so that no pass sees it before the resync.
    fleet.alpha.fake.create(&ds("tank/new"));
    let quiet = fleet.pass(&world, ServiceHealth::default(), &leadership).unwrap();
    assert!(quiet.corrected.is_empty());
    let pass = fleet.made(&fleet.world(), fleet.now + TimeDelta::days(3650));
    let pass = pass.led(leadership.clone(), ServiceHealth::default()).resyncing(true);
    // Far in the future, everything is due. Here only the fixes count.
    let report = block_on(pass.run()).unwrap();
    let lines: Vec<String> = report.corrected.iter().map(|(host, line)| format!("{host}: {line}")).collect();
    assert!(lines.contains(&"alpha: tank/new (with 0 snapshots) was not in the catalog".to_owned()), "{lines:?}");
    assert!(fleet.catalog().inventory().unwrap().dataset(&host("alpha"), &ds("tank/new")).is_some());
    block_on(leadership.resign());
}

#[test]
fn next_director_takes_over_after_resignation() {
    let Some(consul) = shared() else { return };
    let mut fleet = Fleet::new(consul);
    fleet.later(1);
    let first = fleet.lead("one");
    let ElectionResult::Lost { holder: Some(holder), index } = block_on(fleet.office("two").try_win()).unwrap() else {
        panic!()
    };
    assert!(holder.starts_with("one is the active director (process "), "{holder}");
    let old = first.fence().unwrap();
    // The leader resigns: the next one takes over at once.
    let (waiting, office) = (Instant::now(), fleet.office("two"));
    let watching = runtime::spawn(async move { office.changed(Some(&holder), index).await });
    block_on(first.clone().resign());
    block_on(watching).unwrap();
    let second = fleet.lead("two");
    assert!(waiting.elapsed() < Duration::from_secs(10));
    assert!(matches!(first.fence(), Err(CatalogError::LockLost(_))), "the former leader gives no more orders");
    let new = second.fence().unwrap();
    assert!(new.catalog == old.catalog && new.index > old.index, "{old:?} {new:?}");
    // An order of the former leader arrives late.
    let world = fleet.world();
    assert!(fleet.pass(&world, ServiceHealth::default(), &second).unwrap().is_success());
    let name = fleet.alpha.names("tank/data").pop().unwrap();
    let guid = fleet.alpha.fake.dataset(&ds("tank/data")).unwrap().snapshots[0].guid;
    let order = |fence| DirectorsOrder {
        fence,
        dest_dataset: "tank/data".into(),
        snapshot_uuid: vec![format!("{}:tank/data@{name}", guid.uuid())],
        ..order(Action::DestroySnapshot)
    };
    let give = |fence| ask(&fleet.alpha.address, &order(fence));
    let unfenced = give(None);
    assert!(!unfenced.is_success && unfenced.error.contains("the order has no fence"), "{unfenced:?}");
    assert!(
        unfenced.error.contains("takes orders of") && unfenced.hint.unwrap().contains("zsync fences --forget on alpha")
    );
    let forgotten = ask(&fleet.alpha.address, &self::order(Action::ForgetDestination));
    assert!(forgotten.is_success, "zsync forget has no fence: {forgotten:?}");
    let impossible = give(Some(Fence { index: 1 << 63, ..new.clone() }));
    assert!(!impossible.is_success && impossible.error.contains("no Consul can have issued"), "{impossible:?}");
    let (refused, heeded) = (give(Some(old)), give(Some(new)));
    assert!(!refused.is_success && refused.status == ResponseStatus::Refused, "{refused:?}");
    assert!(refused.error.contains("another director has taken over"), "{refused:?}");
    assert!(heeded.is_success && heeded.error.contains("stays"), "the newest is never destroyed: {heeded:?}");
    block_on(second.resign());
}

/// Gives one order without a director.
fn ask(address: &str, order: &DirectorsOrder) -> Response {
    let dispatcher: Dispatcher<Fake> =
        Dispatcher { here: host("by-hand"), own: Err("none here".to_owned()), tls: None };
    let text = format!(r#"{{ "hosts": {{ "it": {{ "address": "{address}" }} }}, "datasets": [] }}"#);
    let policy = parse_policy("server.json", &text).unwrap();
    block_on(dispatcher.ask(&policy, &host("it"), order, Counter::default())).0
}

#[test]
fn director_stops_at_once_when_its_lock_is_deleted() {
    let Some(consul) = shared() else { return };
    let mut fleet = Fleet::new(consul);
    fleet.later(1);
    let leadership = fleet.lead("one");
    let begun = Instant::now();
    block_on(fleet.consul.delete_tree(&format!("{}/lock", fleet.root))).unwrap();
    let reason = block_on(leadership.lost());
    assert!(begun.elapsed() < Duration::from_secs(8), "the loss is noticed before the session expires");
    assert!(reason.contains("its key was deleted"), "{reason}");
    let error = fleet.pass(&fleet.world(), ServiceHealth::default(), &leadership).unwrap_err();
    assert!(matches!(error, CatalogError::LockLost(_)), "{error}");
    assert!(fleet.alpha.names("tank/data").is_empty());
    // The lock's key is lost, but the catalog keeps its id, and the next leader has a higher fence.
    let next = fleet.lead("two");
    next.fence().unwrap();
    block_on(next.resign());
}

#[test]
fn agents_finish_orders_without_consul_and_publish_later() {
    let Some(mut server) = consul::Agent::start(&[]) else { return };
    let mut fleet = Fleet::new(consul_at(&server.address));
    let leadership = fleet.lead("one");
    let world = fleet.world();
    fleet.later(1);
    assert!(fleet.pass(&world, ServiceHealth::default(), &leadership).unwrap().is_success());
    server.kill();
    fleet.later(1);
    [&fleet.alpha, &fleet.beta].into_iter().for_each(|host| host.fake.set_now(fleet.now));
    let error = fleet.pass(&world, ServiceHealth::default(), &leadership).unwrap_err();
    assert!(error.to_string().contains("Consul"), "{error}");
    assert_eq!(fleet.alpha.names("tank/data").len(), 1, "no order is given");
    // An order that was given before is still carried out.
    let order = DirectorsOrder {
        snapshot_name: "by-hand".into(),
        dest_dataset: "tank/data".into(),
        ..order(Action::TakeSnapshot)
    };
    let response = ask(&fleet.alpha.address, &order);
    assert!(response.is_success && response.unpublished, "{response:?}");
    assert!(fleet.alpha.publisher.behind().unwrap().contains("cannot reach Consul"));
    assert!(block_on(leadership.lost()).contains("could not be renewed"), "the leader stops by its own clock");
    server.start_again();
    // Consul has lost everything: the hosts publish again by themselves.
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
fn catalog_forgets_old_marks_by_age() {
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

const MASTER: &str = "11111111-2222-3333-4444-555555555555";

/// A Consul with access control lists.
struct Guarded(consul::Agent);

impl Guarded {
    fn start() -> Option<Self> {
        let acl = format!(r#"acl {{ enabled = true, default_policy = "deny", tokens {{ master = "{MASTER}" }} }}"#);
        let this = Self(consul::Agent::start(&[&acl])?);
        wait_until("the first token works", || {
            let answer = consul::ask_with(&this.0.address, "GET", "/v1/acl/policies", MASTER, "");
            answer.is_some_and(|(status, _)| status == 200)
        });
        Some(this)
    }

    fn put(&self, path: &str, body: &serde_json::Value) {
        let answer = consul::ask_with(&self.0.address, "PUT", path, MASTER, &body.to_string());
        assert!(answer.as_ref().is_some_and(|(status, _)| *status == 200), "{path}: {answer:?}");
    }

    /// A client whose token has these rules.
    fn with_rules(&self, rules: &[String]) -> Consul {
        let id = uuid::Uuid::now_v7().to_string();
        self.put("/v1/acl/policy", &serde_json::json!({ "Name": id, "Rules": rules.join("\n") }));
        self.put("/v1/acl/token", &serde_json::json!({ "SecretID": id, "Policies": [{ "Name": id }] }));
        let config = zsync::policy::ConsulConfig {
            address: Some(self.0.address.clone()),
            token: Some(zsync::policy::Secret::new(&id)),
            ..zsync::policy::ConsulConfig::default()
        };
        Consul::new(&zsync::consul::ConsulSettings::with_environment(&config, |_| None).unwrap()).unwrap()
    }
}

/// The rules of the directors and of one host, as zsync-director(8) has them.
fn rules_of_the_page(root: &str, name: &str) -> (Vec<String>, Vec<String>) {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/man/zsync-director.8")).unwrap();
    let section = page.split(".Ss Access control lists\n").nth(1).unwrap().split("\n.Sh ").next().unwrap();
    let blocks = section.split(".Bd -literal -offset indent\n").skip(1);
    let mut blocks = blocks.map(|block| {
        let lines = block.split(".Ed\n").next().unwrap().lines();
        let ours = |line: &str| line.replace("\"zsync/", &format!("\"{root}/")).replace("alpha", name);
        lines.map(ours).collect::<Vec<String>>()
    });
    (blocks.next().unwrap(), blocks.next().unwrap())
}

#[test]
fn policies_of_the_manual_suffice_for_a_fleet_and_permit_no_more() {
    let Some(consul) = Guarded::start() else { return };
    let root = "fleet/guarded";
    let (director, alpha) = rules_of_the_page(root, "alpha");
    let (_, beta) = rules_of_the_page(root, "beta");
    let (as_alpha, as_beta) = (consul.with_rules(&alpha), consul.with_rules(&beta));
    let fleet = Fleet::with(consul.with_rules(&director), root.to_owned(), &as_alpha, &as_beta);
    let (fleet, leadership, _) = fleet.passes(4);
    assert_eq!(fleet.alpha.names("tank/data").len(), 1, "the retention is applied");
    assert_eq!(fleet.beta.names("pool/copy").last(), fleet.alpha.names("tank/data").last());
    assert!(fleet.catalog().forget_marks(DateTime::<Utc>::MAX_UTC).unwrap() > 0);
    block_on(leadership.resign());

    // A host can change nothing of another host, of the director or of the catalog.
    let set = |key: &str| Op::Set { key: format!("{root}/{key}"), value: b"x".to_vec() };
    for key in [
        "generation/alpha",
        "generation/beta2",
        "inventory/alpha/tank",
        "destroyed/alpha",
        "outcomes/alpha",
        "outcomes/beta",
        "lock/director",
        "catalog",
        "live",
        "estimates",
    ] {
        let error = block_on(as_beta.commit(&[set("generation/beta"), set(key)])).unwrap_err().to_string();
        assert!(error.contains(&format!("the token lacks key:write on {root}/{key}")), "{error}");
    }
    let session = as_beta.create_session("x", Duration::from_secs(10), Duration::from_secs(1));
    let error = block_on(session).unwrap_err().to_string();
    assert!(error.contains("the token lacks session:write"), "{error}");
    let unknown = ConsulCatalog::new(as_beta.clone(), root).inventory().unwrap_err().to_string();
    assert!(unknown.contains(&format!("the token lacks key:read on {root}/generation/")), "{unknown}");

    // Without any one of its rules, a host gets an error that names what is missing.
    for (missing, expected) in [
        (0, format!("on {root}/generation/gamma")),
        (1, format!("on {root}/inventory/gamma/")),
        (3, "service:write on zsync-agent".to_owned()),
        (4, "service:write on zsync-slave".to_owned()),
    ] {
        let (_, mut rules) = rules_of_the_page(root, "gamma");
        assert_eq!(rules.len(), 5);
        let without = rules.remove(missing);
        let error = whole_work(&consul.with_rules(&rules), root).unwrap_err();
        assert!(error.contains(&expected), "without {without}: {error}");
    }
    let (_, rules) = rules_of_the_page(root, "gamma");
    whole_work(&consul.with_rules(&rules), root).unwrap();

    // So does a director.
    for (missing, expected) in [(0, format!("key:read on {root}/lock/director")), (1, "session:write".to_owned())] {
        let mut rules = director.clone();
        rules.remove(missing);
        let office = Election::new(consul.with_rules(&rules), root, host("two"));
        let error = block_on(office.try_win()).err().unwrap().to_string();
        assert!(error.contains(&expected) && error.contains("zsync-director(8)"), "{error}");
    }
}

/// Everything that a host does in Consul.
fn whole_work(consul: &Consul, root: &str) -> Result<(), String> {
    let (catalog, gamma) = (ConsulCatalog::new(consul.clone(), root), host("gamma"));
    let fake = Fake::new(7);
    fake.create(&ds("tank"));
    let datasets = vec![(ds("tank"), fake.dataset(&ds("tank")).unwrap())];
    let listing = HostListing { datasets, unlisted: UnlistedPools::default() };
    let working = || {
        catalog.replace_pools(&gamma, Utc::now(), listing.clone())?;
        let marks = Marks { deleted: true, ..Marks::default() };
        catalog.update(&gamma, vec![(ds("tank"), Change::Mark { guid: Guid(1), marks, at: Utc::now() })])?;
        for service in [presence::AGENTS, presence::SLAVES] {
            let service = presence::registration(service, &gamma, "10.0.0.1:7711", None);
            block_on(consul.register(&service))?;
            assert!(block_on(consul.report(&service.id, Health::Passing, ""))?);
            block_on(consul.deregister(&service.id))?;
        }
        Ok::<_, CatalogError>(())
    };
    working().map_err(|error| error.to_string())
}
