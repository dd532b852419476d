//! Makes plans from the listings of agents, saves them and carries them out, on pools in memory with an embedded
//! catalog.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use serde_json::{Value, json};
use tempfile::TempDir;
use zsync::actions::{Order, decide};
use zsync::catalog::{CatalogRead, EmbeddedCatalog, EmbeddedReader};
use zsync::cli::exit::{Error, Exit};
use zsync::cli::report::Format;
use zsync::config;
use zsync::fleet::estimate::Questions;
use zsync::model::{Counter, HostName, SnapName};
use zsync::plan::foresee::{After, PlannedOrder, foresee};
use zsync::plan::{Filter, Question, Settings, Source};
use zsync::sys::runtime;
use zsync::zfs::Zfs;
use zsync::zfs::fake::Fake;
use zsync::{director, plan};

use super::assert_valid;
use super::common::{ds, schema};

/// One host, for which snapshots are due to be taken, sent and destroyed.
struct FleetState {
    folder: TempDir,
    fake: Fake,
    hour: DateTime<Utc>,
}

impl FleetState {
    fn new() -> Self {
        let (folder, fake) = (tempfile::tempdir().unwrap(), Fake::new(1));
        let now = Utc::now();
        let hour = now.duration_trunc(TimeDelta::hours(1)).unwrap();
        let world = Self { folder, fake, hour };
        for dataset in ["tank", "tank/data", "tank/sent", "spare"] {
            world.fake.create(&ds(dataset));
        }
        for dataset in ["tank/data", "tank/sent"] {
            for hours in (1..=5).rev() {
                world.fake.write(&ds(dataset), 1000);
                world.fake.set_now(hour - TimeDelta::hours(hours));
                runtime::block_on(world.fake.snapshot(&[ds(dataset)], &world.name(hours))).unwrap();
            }
            world.fake.write(&ds(dataset), 1000);
        }
        world.fake.set_now(now);
        world.write_policy("2 in last day", "");
        let local = r#"{ "local_datasets": [ { "name": "tank" }, { "name": "spare", "slave": true } ] }"#;
        fs::write(world.path("local.json"), local).unwrap();
        world
    }

    fn write_policy(&self, retention: &str, hosts: &str) {
        let policy = format!(
            r#"{{ "catalog": {{ "embedded": {{ "path": "{}" }} }}, "hosts": {{ {hosts} }}, "datasets": [
                {{ "hostname": "alpha", "dataset": "tank/data",
                   "backup": {{ "prefix": "BACKUP", "creation": "0 * * * *", "catch_up": "12h", "retention": ["{retention}"] }} }},
                {{ "hostname": "alpha", "dataset": "tank/sent",
                   "backup": {{ "prefix": "BACKUP", "retention": ["{retention}"], "sync_on": "{}", "sync_dataset": "spare/copy" }} }}
            ] }}"#,
            self.path("catalog").display(),
            if hosts.is_empty() { "alpha" } else { "beta" }
        );
        fs::write(self.path("server.json"), policy).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn name(&self, hours_ago: i64) -> SnapName {
        let at = self.hour - TimeDelta::hours(hours_ago);
        at.format("BACKUP_%Y-%m-%d_%H:%M:%S").to_string().parse().unwrap()
    }

    fn names(&self, dataset: &str) -> Vec<SnapName> {
        let found = self.fake.dataset(&ds(dataset)).unwrap_or_default();
        found.snapshots.into_iter().map(|s| s.name).collect()
    }

    fn survey(&self) -> Result<(), Error> {
        let settings = Settings {
            config: self.path("server.json"),
            local: self.path("local.json"),
            opened: None,
            here: "alpha".parse().unwrap(),
            source: Source::Agents,
            question: Question::Orders { explain: false, out: Some(self.path("plan.json")) },
            filter: Filter::default(),
            format: Format::Table,
            at: None,
            exit_code: false,
        };
        runtime::block_on(plan::survey(settings, Arc::new(self.fake.clone())))
    }

    fn carry_out(&self) -> Result<(), Error> {
        let settings = director::Settings {
            config: self.path("server.json"),
            local: self.path("local.json"),
            state: self.path("state"),
            host: "alpha".parse().unwrap(),
            once: true,
            resync: false,
            timeout: None,
            grace: std::time::Duration::from_secs(10),
            interval: std::time::Duration::from_secs(60),
            verbose: false,
            format: Format::Table,
            metrics: None,
            metrics_file: None,
            plan: Some(self.path("plan.json")),
        };
        runtime::block_on(director::run(settings, Arc::new(self.fake.clone())))
    }

    fn saved(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path("plan.json")).unwrap()).unwrap()
    }

    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut saved = self.saved();
        change(&mut saved);
        fs::write(self.path("plan.json"), saved.to_string()).unwrap();
    }

    /// The errors of failed orders in the catalog.
    fn errors(&self) -> Vec<String> {
        let outcomes = EmbeddedReader::new(&self.path("catalog")).outcomes(100).unwrap();
        outcomes.into_iter().filter(|o| !o.success).map(|o| o.error.unwrap_or_default()).collect()
    }
}

fn refused(result: Result<(), Error>, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.exit, Exit::Unable, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn plan_from_agents_fills_catalog_and_gives_no_order() {
    let world = FleetState::new();
    let before = (world.names("tank/data"), world.names("tank/sent"), world.fake.calls().len());
    world.survey().unwrap();
    assert_eq!((world.names("tank/data"), world.names("tank/sent")), (before.0, before.1));
    let calls = &world.fake.calls()[before.2..];
    assert!(calls.is_empty(), "{calls:?}");
    let inventory = EmbeddedReader::new(&world.path("catalog")).inventory().unwrap();
    let known = inventory.dataset(&"alpha".parse().unwrap(), &ds("tank/data")).unwrap();
    assert_eq!(known.snapshots.len(), 5);
    assert_valid(&schema("saved-plan.schema.json"), None, "plan.json", [&world.saved()]);
    let actions: Vec<Value> = world.saved()["orders"].as_array().unwrap().iter().map(|o| o["action"].clone()).collect();
    assert_eq!(actions, ["take", "send", "destroy"]);
}

#[test]
fn plan_estimates_bytes_sent_and_freed() {
    let world = FleetState::new();
    let policy = Arc::new(config::load_policy(&world.path("server.json")).unwrap());
    let here: HostName = "alpha".parse().unwrap();
    let calls = world.fake.calls().len();
    let orders = runtime::block_on(async {
        let zfs = Arc::new(world.fake.clone());
        let own = director::Own { here: &here, local: &world.path("local.json"), state: None };
        let dispatcher = Arc::new(director::dispatcher(own, &policy, None, zfs).await);
        let catalog = director::open_catalog(&policy, zsync::catalog::Holder::Director).await.unwrap();
        let asked = Counter::default();
        let looking = zsync::fleet::poll::look(
            &policy,
            &dispatcher,
            &catalog,
            zsync::fleet::poll::PollOptions::default(),
            &asked,
        );
        assert!(looking.await.unwrap().unseen.is_empty());
        let (inventory, at) = (catalog.inventory().clone(), Utc::now());
        let now = decide(&policy, &inventory, at).orders(&policy);
        let mut orders = foresee(&policy, inventory.clone(), now, at);
        let questions = Questions::about(&mut orders, &policy, &inventory);
        let answers = questions.ask(&policy, &dispatcher, &Counter::default()).await;
        let totals = questions.put(&mut orders, &answers);
        // The catalog gives them back for the same questions.
        catalog.estimated(answers.clone()).await.unwrap();
        assert_eq!(catalog.catalog().estimates().unwrap(), answers);
        let mut again = orders.clone();
        assert_eq!(Questions::about(&mut again, &policy, &inventory).put(&mut again, &answers), totals);
        assert_eq!(again, orders);
        (orders, totals)
    });
    let (orders, totals) = orders;
    let estimated: Vec<_> = orders
        .iter()
        .map(|PlannedOrder { order, after, estimate }| {
            let action = match order {
                Order::Take { .. } => "take",
                Order::Send { .. } => "send",
                Order::Destroy { .. } => "destroy",
            };
            (action, *after, estimate.as_ref().map(|e| e.bytes))
        })
        .collect();
    // Five snapshots have 1000 bytes each; the oldest also has the 1 MiB that the dataset was created with.
    let whole = 1 << 20;
    assert_eq!(
        estimated,
        [
            ("take", None, None),
            ("send", None, Some(Some(whole + 5000))),
            ("destroy", None, Some(Some(whole + 3000))),
            ("destroy", Some(After::Take), Some(Some(1000))),
            ("destroy", Some(After::Send), Some(Some(whole + 3000))),
            ("destroy", Some(After::Send), Some(None)),
        ]
    );
    assert_eq!((totals.send, totals.free, totals.unknown), (whole + 5000, 2 * whole + 7000, 1));
    let copy = orders.last().unwrap().estimate.as_ref().unwrap();
    assert_eq!(copy.remark, "what goes has yet to come");
    assert!(world.fake.calls()[calls..].is_empty(), "{:?}", &world.fake.calls()[calls..]);
}

#[test]
fn saved_plan_is_carried_out_and_nothing_else() {
    let world = FleetState::new();
    world.survey().unwrap();
    // Due since the plan was made, but not in it.
    world.fake.create(&ds("spare/copy"));
    world.fake.destroy_by_hand(&ds("tank/data"), &[world.name(5)]);
    world.fake.write(&ds("tank/sent"), 1000);
    let result = world.carry_out();
    // The destination was created meanwhile, without snapshots: the agent refuses to overwrite it.
    assert_eq!(result.unwrap_err().exit, Exit::Failed);
    assert_eq!(world.names("tank/data"), [world.name(2), world.name(1), world.name(0)]);
    assert_eq!(
        world.names("tank/sent").len(),
        5,
        "the plan contains nothing that can be destroyed only after the transfer"
    );
    // Orders that were carried out before do no harm.
    assert_eq!(world.carry_out().unwrap_err().exit, Exit::Failed);
    assert_eq!(world.names("tank/data").len(), 3);
    assert!(world.errors().iter().all(|error| error.contains("spare/copy")), "{:?}", world.errors());
}

#[test]
fn saved_plan_can_be_carried_out_twice() {
    let world = FleetState::new();
    world.survey().unwrap();
    world.carry_out().unwrap();
    assert_eq!(world.names("spare/copy").len(), 5);
    let after = (world.names("tank/data"), world.names("tank/sent"), world.names("spare/copy"));
    world.carry_out().unwrap();
    assert_eq!((world.names("tank/data"), world.names("tank/sent"), world.names("spare/copy")), after);
}

#[test]
fn saved_destroy_is_refused_as_a_whole_after_changes() {
    type Move = fn(&FleetState);
    let moves: [(Move, &str); 3] = [
        (
            |world| {
                let name = world.name(4);
                world.fake.destroy_by_hand(&ds("tank/data"), std::slice::from_ref(&name));
                runtime::block_on(world.fake.snapshot(&[ds("tank/data")], &name)).unwrap();
            },
            "is another snapshot now",
        ),
        (
            |world| runtime::block_on(world.fake.hold("mine", &ds("tank/data"), &[world.name(4)])).unwrap(),
            "would stay now: it is held",
        ),
        (
            |world| {
                // The snapshots of the last day are gone, so the rule keeps older ones.
                let newer = [world.name(1), world.name(2), world.name(3)];
                world.fake.destroy_by_hand(&ds("tank/data"), &newer);
            },
            "would stay now: kept by \"2 in last day\"",
        ),
    ];
    for (move_it, words) in moves {
        let world = FleetState::new();
        world.survey().unwrap();
        move_it(&world);
        let before: Vec<SnapName> = world.names("tank/data");
        assert_eq!(world.carry_out().unwrap_err().exit, Exit::Failed);
        let after: Vec<SnapName> = world.names("tank/data");
        assert!(before.iter().all(|name| after.contains(name)), "{before:?} {after:?}");
        assert!(world.errors().iter().any(|error| error.contains(words)), "{words}: {:?}", world.errors());
    }
}

#[test]
fn saved_take_is_refused_after_newer_snapshot() {
    let world = FleetState::new();
    world.survey().unwrap();
    // Another pass took a snapshot with a later time in its name.
    runtime::block_on(world.fake.snapshot(&[ds("tank/data")], &world.name(-1))).unwrap();
    assert_eq!(world.carry_out().unwrap_err().exit, Exit::Failed);
    assert!(!world.names("tank/data").contains(&world.name(0)));
    let words = format!("tank/data@{} has been taken since", world.name(-1));
    assert!(world.errors().contains(&words), "{:?}", world.errors());
}

#[test]
fn saved_transfer_of_destroyed_snapshot_is_refused() {
    let world = FleetState::new();
    world.survey().unwrap();
    world.fake.destroy_by_hand(&ds("tank/sent"), &[world.name(1)]);
    assert_eq!(world.carry_out().unwrap_err().exit, Exit::Failed);
    assert!(world.names("spare/copy").is_empty());
    assert!(world.errors().iter().any(|error| error.contains("is gone")), "{:?}", world.errors());
}

#[test]
fn saved_plan_is_refused_if_old_or_of_other_policy() {
    let world = FleetState::new();
    world.survey().unwrap();
    let before = world.names("tank/data");
    let made = |shift: TimeDelta| json!((Utc::now() + shift).to_rfc3339());
    world.edit(|saved| saved["made"] = made(TimeDelta::hours(-25)));
    refused(world.carry_out(), "more than 24 hours ago; make another one");
    world.edit(|saved| saved["made"] = made(TimeDelta::hours(1)));
    refused(world.carry_out(), "it was made in the future");
    world.edit(|saved| saved["made"] = made(TimeDelta::zero()));
    world.write_policy("3 in last day", "");
    refused(world.carry_out(), "it was made by another policy, or this one was changed since");
    world.write_policy("2 in last day", "");
    world.edit(|saved| saved["version"] = json!(2));
    refused(world.carry_out(), "of version 2");
    world.edit(|saved| saved["colour"] = json!("red"));
    refused(world.carry_out(), "unknown field `colour`");
    fs::write(world.path("plan.json"), "").unwrap();
    refused(world.carry_out(), "cannot read the plan");
    assert_eq!(world.names("tank/data"), before);
    // White space in the policy's file does not matter.
    world.survey().unwrap();
    let text = fs::read_to_string(world.path("server.json")).unwrap();
    fs::write(world.path("server.json"), text.replace("  ", "\t").replace("{ ", "{\n")).unwrap();
    world.carry_out().unwrap();
}

#[test]
fn plan_reports_unreachable_host_and_covers_the_rest() {
    let world = FleetState::new();
    world.write_policy("2 in last day", r#""beta": { "address": "127.0.0.1:1" }"#);
    assert_eq!(world.survey().unwrap_err().exit, Exit::Failed);
    let saved = world.saved();
    let actions: Vec<&str> =
        saved["orders"].as_array().unwrap().iter().map(|o| o["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["take", "send", "destroy"], "beta was not listed, but its slave will tell what it has");
}

#[test]
fn plan_from_agents_is_refused_while_director_runs() {
    let world = FleetState::new();
    let _director = EmbeddedCatalog::open(&world.path("catalog")).unwrap();
    refused(world.survey(), "another director");
}
