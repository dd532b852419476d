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
use zsync::fleet::obstacles::Obstacles;
use zsync::fleet::planned::{After, PlannedOrder};
use zsync::model::{Counter, HostName, SnapName};
use zsync::plan::foresee::foresee;
use zsync::plan::{Filter, InventorySource, PlanMode, PlanSettings};
use zsync::sys::runtime;
use zsync::zfs::Zfs;
use zsync::zfs::fake::Fake;
use zsync::{director, plan};

use super::assert_valid;
use super::common::{ds, schema};

/// One host, for which snapshots are due to be taken, sent and destroyed.
struct Fixture {
    folder: TempDir,
    fake: Fake,
    hour: DateTime<Utc>,
}

impl Fixture {
    fn new() -> Self {
        let (folder, fake) = (tempfile::tempdir().unwrap(), Fake::new(1));
        let now = Utc::now();
        let hour = now.duration_trunc(TimeDelta::hours(1)).unwrap();
        let fixture = Self { folder, fake, hour };
        for dataset in ["tank", "tank/data", "tank/sent", "spare"] {
            fixture.fake.create(&ds(dataset));
        }
        for dataset in ["tank/data", "tank/sent"] {
            for hours in (1..=5).rev() {
                fixture.fake.write(&ds(dataset), 1000);
                fixture.fake.set_now(hour - TimeDelta::hours(hours));
                runtime::block_on(fixture.fake.snapshot(&[ds(dataset)], &fixture.name(hours))).unwrap();
            }
            fixture.fake.write(&ds(dataset), 1000);
        }
        fixture.fake.set_now(now);
        fixture.write_policy("2 in last day", "");
        let local = r#"{ "local_datasets": [ { "name": "tank" }, { "name": "spare", "slave": true } ] }"#;
        fs::write(fixture.path("local.json"), local).unwrap();
        fixture
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
        let settings = PlanSettings {
            config: self.path("server.json"),
            local_file: self.path("local.json"),
            local: None,
            host: "alpha".parse().unwrap(),
            source: InventorySource::Agents,
            mode: PlanMode::Orders { explain: false, out: Some(self.path("plan.json")) },
            filter: Filter::default(),
            format: Format::Table,
            at: None,
            exit_code: false,
        };
        runtime::block_on(plan::survey(settings, Arc::new(self.fake.clone())))
    }

    fn carry_out(&self) -> Result<(), Error> {
        let settings = director::DirectorSettings {
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
    let fixture = Fixture::new();
    let before = (fixture.names("tank/data"), fixture.names("tank/sent"), fixture.fake.calls().len());
    fixture.survey().unwrap();
    assert_eq!((fixture.names("tank/data"), fixture.names("tank/sent")), (before.0, before.1));
    let calls = &fixture.fake.calls()[before.2..];
    assert!(calls.is_empty(), "{calls:?}");
    let inventory = EmbeddedReader::new(&fixture.path("catalog")).inventory().unwrap();
    let known = inventory.dataset(&"alpha".parse().unwrap(), &ds("tank/data")).unwrap();
    assert_eq!(known.snapshots.len(), 5);
    assert_valid(&schema("saved-plan.schema.json"), None, "plan.json", [&fixture.saved()]);
    let actions: Vec<Value> =
        fixture.saved()["orders"].as_array().unwrap().iter().map(|o| o["action"].clone()).collect();
    assert_eq!(actions, ["take", "send", "destroy"]);
}

#[test]
fn dry_run_asks_hosts_and_writes_nothing() {
    let fixture = Fixture::new();
    let calls = fixture.fake.calls().len();
    // A director that holds the catalog is not in the way.
    let _director = EmbeddedCatalog::open(&fixture.path("catalog")).unwrap();
    let settings = PlanSettings {
        config: fixture.path("server.json"),
        local_file: fixture.path("local.json"),
        local: None,
        host: "alpha".parse().unwrap(),
        source: InventorySource::Hosts,
        mode: PlanMode::Orders { explain: false, out: None },
        filter: Filter::default(),
        format: Format::Table,
        at: None,
        exit_code: true,
    };
    assert_eq!(runtime::block_on(plan::ask(settings, fixture.fake.clone())).unwrap_err().exit, Exit::Orders);
    assert!(fixture.fake.calls()[calls..].is_empty(), "{:?}", &fixture.fake.calls()[calls..]);
    let catalog = EmbeddedReader::new(&fixture.path("catalog"));
    assert!(catalog.inventory().unwrap().hosts.is_empty() && catalog.estimates().unwrap().is_empty());
}

#[test]
fn plan_estimates_bytes_sent_and_freed() {
    let fixture = Fixture::new();
    let policy = Arc::new(config::load_policy(&fixture.path("server.json")).unwrap());
    let here: HostName = "alpha".parse().unwrap();
    let calls = fixture.fake.calls().len();
    let orders = runtime::block_on(async {
        let zfs = Arc::new(fixture.fake.clone());
        let own = director::connect::OwnHost { name: &here, local: &fixture.path("local.json"), state: None };
        let dispatcher = Arc::new(director::connect::dispatcher(own, &policy, None, zfs).await);
        let catalog = director::connect::open_catalog(&policy, zsync::catalog::Holder::Director).await.unwrap();
        let asked = Counter::default();
        let looking = zsync::fleet::poll::poll_all(
            &policy,
            &dispatcher,
            &catalog,
            zsync::fleet::poll::PollOptions::default(),
            &asked,
        );
        assert!(looking.await.unwrap().unseen.is_empty());
        let (inventory, at) = (catalog.inventory().clone(), Utc::now());
        let now = decide(&policy, &inventory, at).orders(&policy);
        let mut orders = foresee(&policy, inventory.clone(), now, at, &Obstacles::default()).orders;
        let questions = Questions::about(&mut orders, &policy, &inventory);
        let answers = questions.ask(&policy, &dispatcher, &Counter::default()).await;
        let totals = questions.put(&mut orders, &answers);
        // The catalog gives them back for the same questions.
        catalog.store_estimates(answers.clone()).await.unwrap();
        assert_eq!(catalog.catalog().estimates().unwrap(), answers);
        let mut again = orders.clone();
        assert_eq!(Questions::about(&mut again, &policy, &inventory).put(&mut again, &answers), totals);
        assert_eq!(again, orders);
        (orders, totals)
    });
    let (orders, totals) = orders;
    let estimated: Vec<_> = orders
        .iter()
        .map(|PlannedOrder { order, after, estimate, .. }| {
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
            ("destroy", Some(After::Take), Some(Some(whole + 4000))),
            ("destroy", Some(After::Send), Some(Some(whole + 3000))),
            ("destroy", Some(After::Send), Some(None)),
        ]
    );
    assert_eq!((totals.send, totals.free, totals.unknown), (whole + 5000, 2 * whole + 7000, 1));
    let copy = orders.last().unwrap().estimate.as_ref().unwrap();
    assert_eq!(copy.remark, "the snapshots do not exist yet");
    assert!(fixture.fake.calls()[calls..].is_empty(), "{:?}", &fixture.fake.calls()[calls..]);
}

#[test]
fn saved_plan_is_carried_out_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.survey().unwrap();
    // These orders have become due since the plan was made, but they are not in it.
    fixture.fake.create(&ds("spare/copy"));
    fixture.fake.destroy_by_hand(&ds("tank/data"), &[fixture.name(5)]);
    fixture.fake.write(&ds("tank/sent"), 1000);
    let result = fixture.carry_out();
    // The destination was created meanwhile, without snapshots: the agent refuses to overwrite it.
    assert_eq!(result.unwrap_err().exit, Exit::Failed);
    assert_eq!(fixture.names("tank/data"), [fixture.name(2), fixture.name(1), fixture.name(0)]);
    assert_eq!(
        fixture.names("tank/sent").len(),
        5,
        "the plan contains nothing that can be destroyed only after the transfer"
    );
    // Orders that were carried out before do no harm.
    assert_eq!(fixture.carry_out().unwrap_err().exit, Exit::Failed);
    assert_eq!(fixture.names("tank/data").len(), 3);
    assert!(fixture.errors().iter().all(|error| error.contains("spare/copy")), "{:?}", fixture.errors());
}

#[test]
fn saved_plan_can_be_carried_out_twice() {
    let fixture = Fixture::new();
    fixture.survey().unwrap();
    fixture.carry_out().unwrap();
    assert_eq!(fixture.names("spare/copy").len(), 5);
    let after = (fixture.names("tank/data"), fixture.names("tank/sent"), fixture.names("spare/copy"));
    fixture.carry_out().unwrap();
    assert_eq!((fixture.names("tank/data"), fixture.names("tank/sent"), fixture.names("spare/copy")), after);
}

#[test]
fn saved_destroy_is_refused_as_a_whole_after_changes() {
    type Move = fn(&Fixture);
    let moves: [(Move, &str); 3] = [
        (
            |fixture| {
                let name = fixture.name(4);
                fixture.fake.destroy_by_hand(&ds("tank/data"), std::slice::from_ref(&name));
                runtime::block_on(fixture.fake.snapshot(&[ds("tank/data")], &name)).unwrap();
            },
            "is a different snapshot now",
        ),
        (
            |fixture| runtime::block_on(fixture.fake.hold("mine", &ds("tank/data"), &[fixture.name(4)])).unwrap(),
            "would be kept now: it is held",
        ),
        (
            |fixture| {
                // The snapshots of the last day are gone, so the rule keeps older ones.
                let newer = [fixture.name(1), fixture.name(2), fixture.name(3)];
                fixture.fake.destroy_by_hand(&ds("tank/data"), &newer);
            },
            "would be kept now: kept by \"2 in last day\"",
        ),
    ];
    for (move_it, words) in moves {
        let fixture = Fixture::new();
        fixture.survey().unwrap();
        move_it(&fixture);
        let before: Vec<SnapName> = fixture.names("tank/data");
        assert_eq!(fixture.carry_out().unwrap_err().exit, Exit::Failed);
        let after: Vec<SnapName> = fixture.names("tank/data");
        assert!(before.iter().all(|name| after.contains(name)), "{before:?} {after:?}");
        assert!(fixture.errors().iter().any(|error| error.contains(words)), "{words}: {:?}", fixture.errors());
    }
}

#[test]
fn saved_take_is_refused_after_newer_snapshot() {
    let fixture = Fixture::new();
    fixture.survey().unwrap();
    // Another pass took a snapshot with a later time in its name.
    runtime::block_on(fixture.fake.snapshot(&[ds("tank/data")], &fixture.name(-1))).unwrap();
    assert_eq!(fixture.carry_out().unwrap_err().exit, Exit::Failed);
    assert!(!fixture.names("tank/data").contains(&fixture.name(0)));
    let words = format!("tank/data@{} has been taken since", fixture.name(-1));
    assert!(fixture.errors().contains(&words), "{:?}", fixture.errors());
}

#[test]
fn saved_transfer_of_destroyed_snapshot_is_refused() {
    let fixture = Fixture::new();
    fixture.survey().unwrap();
    fixture.fake.destroy_by_hand(&ds("tank/sent"), &[fixture.name(1)]);
    assert_eq!(fixture.carry_out().unwrap_err().exit, Exit::Failed);
    assert!(fixture.names("spare/copy").is_empty());
    assert!(fixture.errors().iter().any(|error| error.contains("no longer exists")), "{:?}", fixture.errors());
}

#[test]
fn saved_plan_is_refused_if_old_or_of_other_policy() {
    let fixture = Fixture::new();
    fixture.survey().unwrap();
    let before = fixture.names("tank/data");
    let made = |shift: TimeDelta| json!((Utc::now() + shift).to_rfc3339());
    fixture.edit(|saved| saved["made"] = made(TimeDelta::hours(-25)));
    refused(fixture.carry_out(), "more than 24 hours ago; hint: make a new one");
    fixture.edit(|saved| saved["made"] = made(TimeDelta::hours(1)));
    refused(fixture.carry_out(), "it was made in the future");
    fixture.edit(|saved| saved["made"] = made(TimeDelta::zero()));
    fixture.write_policy("3 in last day", "");
    refused(fixture.carry_out(), "it was made with another policy, or the policy was changed since");
    fixture.write_policy("2 in last day", "");
    fixture.edit(|saved| saved["version"] = json!(2));
    refused(fixture.carry_out(), "of version 2");
    fixture.edit(|saved| saved["colour"] = json!("red"));
    refused(fixture.carry_out(), "unknown field `colour`");
    fs::write(fixture.path("plan.json"), "").unwrap();
    refused(fixture.carry_out(), "cannot read the plan");
    assert_eq!(fixture.names("tank/data"), before);
    // White space in the policy's file does not matter.
    fixture.survey().unwrap();
    let text = fs::read_to_string(fixture.path("server.json")).unwrap();
    fs::write(fixture.path("server.json"), text.replace("  ", "\t").replace("{ ", "{\n")).unwrap();
    fixture.carry_out().unwrap();
}

#[test]
fn plan_reports_unreachable_host_and_covers_the_rest() {
    let fixture = Fixture::new();
    fixture.write_policy("2 in last day", r#""beta": { "address": "127.0.0.1:1" }"#);
    assert_eq!(fixture.survey().unwrap_err().exit, Exit::Failed);
    let saved = fixture.saved();
    let actions: Vec<&str> =
        saved["orders"].as_array().unwrap().iter().map(|o| o["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["take", "send", "destroy"], "beta was not listed, but its slave will tell what it has");
}

#[test]
fn plan_from_agents_is_refused_while_director_runs() {
    let fixture = Fixture::new();
    let _director = EmbeddedCatalog::open(&fixture.path("catalog")).unwrap();
    refused(fixture.survey(), "another zsync");
}
