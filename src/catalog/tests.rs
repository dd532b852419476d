//! Tests of what a director relies on in every kind of catalog, and of what a killed process leaves in the embedded
//! one.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rusqlite::Connection;
use uuid::Uuid;

use super::*;
use crate::consul::{Consul, ConsulSettings};
use crate::model::Trashed;
use crate::model::{Bookmark, DatasetKind, HostInventory, Origin, SendFlags, Snapshot};
use crate::policy::ConsulConfig;

#[allow(dead_code, clippy::disallowed_methods, reason = "other tests use more of it; it starts a Consul")]
#[path = "../../tests/common/consul.rs"]
mod agent;

pub(super) fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

pub(super) fn dataset(name: &str) -> DatasetName {
    name.parse().unwrap()
}

pub(super) fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

/// A snapshot whose fields all derive from one number.
pub(super) fn snapshot(number: u64) -> Snapshot {
    Snapshot {
        name: format!("BACKUP_{number}").parse().unwrap(),
        guid: Guid(number),
        createtxg: number * 10,
        creation: at(i64::try_from(number % 1_000_000).unwrap()),
        userrefs: 1,
        has_clones: number.is_multiple_of(2),
        used: 4096,
        marks: Marks::default(),
    }
}

pub(super) fn listing(numbers: impl IntoIterator<Item = u64>) -> DatasetInventory {
    DatasetInventory {
        guid: Some(Guid(u64::MAX)),
        written: Some(0),
        snapshots: numbers.into_iter().map(snapshot).collect(),
        ..DatasetInventory::default()
    }
}

fn not_written(slot: &str, seconds: i64) -> NotWritten {
    NotWritten { name: slot.parse().unwrap(), at: at(seconds) }
}

const SENT: Marks = Marks { sent: true, sync: false, deleted: false };
const SYNC: Marks = Marks { sent: false, sync: true, deleted: false };
const DELETED: Marks = Marks { sent: false, sync: false, deleted: true };

/// Runs a test with a new catalog of each kind.
fn on_each(test: impl Fn(&dyn CatalogWrite)) {
    test(&MemoryCatalog::new());
    let folder = tempfile::tempdir().unwrap();
    test(&EmbeddedCatalog::open(folder.path()).unwrap());
    if let Some(catalog) = in_consul() {
        test(&catalog);
    }
}

/// An empty catalog in a real Consul; `None` if no Consul is installed.
pub(super) fn in_consul() -> Option<ConsulCatalog> {
    let config = ConsulConfig { address: Some(agent::shared()?.to_owned()), ..ConsulConfig::default() };
    let settings = ConsulSettings::with_environment(&config, |_| None).unwrap();
    Some(ConsulCatalog::new(Consul::new(&settings).unwrap(), &format!("test/{}", Uuid::now_v7())))
}

/// Shorthands for a single change.
trait SingleChange {
    fn change(&self, host: &HostName, dataset: &DatasetName, change: Change) -> Result<(), CatalogError>;

    fn put_dataset(&self, host: &HostName, dataset: &DatasetName, now: DatasetInventory) -> Result<(), CatalogError> {
        self.change(host, dataset, Change::Listed(now))
    }

    fn remove_dataset(&self, host: &HostName, dataset: &DatasetName) -> Result<(), CatalogError> {
        self.change(host, dataset, Change::Gone)
    }

    fn mark(
        &self,
        host: &HostName,
        dataset: &DatasetName,
        guid: Guid,
        marks: Marks,
        at: DateTime<Utc>,
    ) -> Result<(), CatalogError> {
        self.change(host, dataset, Change::Mark { guid, marks, at })
    }

    fn add_not_written(&self, host: &HostName, dataset: &DatasetName, mark: NotWritten) -> Result<(), CatalogError> {
        self.change(host, dataset, Change::NotWritten(mark))
    }
}

impl<C: CatalogWrite + ?Sized> SingleChange for C {
    fn change(&self, host: &HostName, dataset: &DatasetName, change: Change) -> Result<(), CatalogError> {
        self.update(host, vec![(dataset.clone(), change)])
    }
}

/// The snapshots of a dataset with their marks, as in `1 2#sent 5#sent#sync`; `-` if the dataset is not known.
fn snapshots_of(catalog: &dyn CatalogRead, of: &str, name: &str) -> String {
    let inventory = catalog.inventory().unwrap();
    assert_eq!(
        catalog.host(&host(of)).unwrap().as_ref(),
        inventory.hosts.get(&host(of)),
        "host() and inventory() agree"
    );
    let Some(found) = inventory.dataset(&host(of), &dataset(name)) else { return "-".to_owned() };
    let mark = |set: bool, flag: &'static str| if set { flag } else { "" };
    let snapshots = found.snapshots.iter().map(|one| {
        let Marks { sent, sync, deleted } = one.marks;
        format!("{}{}{}{}", one.guid, mark(sent, "#sent"), mark(sync, "#sync"), mark(deleted, "#deleted"))
    });
    snapshots.collect::<Vec<_>>().join(" ")
}

#[test]
fn inventory_returns_every_listed_field() {
    on_each(|catalog| {
        let whole = DatasetInventory {
            kind: DatasetKind::Volume,
            guid: Some(Guid(u64::MAX)),
            written: Some(u64::MAX - 1),
            encrypted: true,
            key_from: None,
            transfer_holds: vec!["zsync:to:beta:tank/a b".to_owned(), "zsync:to:gamma:usb".to_owned()],
            resume_token: Some("1-abc-token".to_owned()),
            origin: Some(Origin { dataset: dataset("tank/with blank"), name: "a".parse().unwrap() }),
            excluded: true,
            append_only: Some(true),
            destroy_after: Some(604_800),
            trashed: Some(vec![Trashed { guid: Guid(7), since: at(8), used: u64::MAX }]),
            flags: Some(SendFlags::Raw),
            unchanged: None,
            snapshots: vec![
                snapshot(7),
                Snapshot { guid: Guid(1 << 63), userrefs: u32::MAX, used: u64::MAX, marks: SENT, ..snapshot(8) },
                Snapshot { createtxg: u64::MAX, marks: Marks { sync: true, ..SENT }, ..snapshot(9) },
            ],
            bookmarks: ["a", "b"]
                .map(|name| Bookmark { name: name.parse().unwrap(), guid: Guid(7), createtxg: 70, creation: at(7) })
                .to_vec(),
            not_written: vec![not_written("BACKUP_x", 5)],
        };
        let only = dataset("tank/with blank");
        catalog.replace_host(&host("alpha"), at(0), vec![(only.clone(), whole.clone())]).unwrap();
        let expected =
            HostInventory { observed: Some(at(0)), datasets: [(only, whole)].into(), ..HostInventory::default() };
        assert_eq!(catalog.inventory().unwrap().hosts, [(host("alpha"), expected)].into());
    });
}

#[test]
fn replace_host_leaves_other_hosts_unchanged() {
    on_each(|catalog| {
        let (alpha, beta) = (host("alpha"), host("beta"));
        let both = |a, b| vec![(dataset("tank/a"), listing(a)), (dataset("tank/b"), listing(b))];
        catalog.replace_host(&alpha, at(0), both(1..4, 4..6)).unwrap();
        catalog.replace_host(&beta, at(0), both(1..2, 1..2)).unwrap();
        catalog.replace_host(&alpha, at(9), vec![(dataset("tank/a"), listing([2, 3, 9]))]).unwrap();
        assert_eq!(snapshots_of(catalog, "alpha", "tank/a"), "2 3 9");
        assert_eq!(snapshots_of(catalog, "alpha", "tank/b"), "-");
        assert_eq!(snapshots_of(catalog, "beta", "tank/a"), "1");
        let observed = |name| catalog.inventory().unwrap().hosts[&host(name)].observed;
        assert_eq!((observed("alpha"), observed("beta")), (Some(at(9)), Some(at(0))));
        catalog.replace_host(&alpha, at(10), Vec::new()).unwrap();
        assert!(catalog.inventory().unwrap().hosts[&alpha].datasets.is_empty());
    });
}

#[test]
fn update_leaves_other_datasets_unchanged() {
    on_each(|catalog| {
        let (alpha, a, b) = (host("alpha"), dataset("tank/a"), dataset("tank/b"));
        catalog.put_dataset(&alpha, &a, listing([1])).unwrap();
        assert_eq!(catalog.inventory().unwrap().hosts[&alpha].observed, None, "the host was never listed as a whole");
        catalog.replace_host(&alpha, at(0), vec![(a.clone(), listing([1])), (b.clone(), listing([1]))]).unwrap();
        let renamed = Snapshot { name: "by_hand".parse().unwrap(), ..snapshot(1) };
        catalog
            .put_dataset(&alpha, &a, DatasetInventory { snapshots: vec![renamed.clone(), snapshot(2)], ..listing([]) })
            .unwrap();
        let inventory = catalog.inventory().unwrap();
        assert_eq!(inventory.dataset(&alpha, &a).unwrap().snapshots, [renamed, snapshot(2)]);
        assert_eq!(inventory.dataset(&alpha, &b), Some(&listing([1])));
        catalog.remove_dataset(&alpha, &a).unwrap();
        catalog.remove_dataset(&alpha, &dataset("tank/never")).unwrap();
        assert_eq!(snapshots_of(catalog, "alpha", "tank/a"), "-");
        assert_eq!(snapshots_of(catalog, "alpha", "tank/b"), "1");
        assert_eq!(catalog.inventory().unwrap().hosts[&alpha].observed, Some(at(0)));
    });
}

#[test]
fn marks_survive_listings_and_absence_of_dataset() {
    on_each(|catalog| {
        let (alpha, a) = (host("alpha"), dataset("tank/a"));
        catalog.mark(&alpha, &a, Guid(2), SENT, at(1)).unwrap();
        assert!(catalog.inventory().unwrap().hosts.is_empty(), "a mark alone does not make a host known");
        let list = |numbers: &[u64]| {
            catalog.replace_host(&alpha, at(2), vec![(a.clone(), listing(numbers.iter().copied()))]).unwrap();
        };
        list(&[1, 2]);
        assert_eq!(snapshots_of(catalog, "alpha", "tank/a"), "1 2#sent");
        catalog.mark(&alpha, &a, Guid(2), SYNC, at(3)).unwrap();
        catalog.mark(&alpha, &a, Guid(1), SYNC, at(3)).unwrap();
        catalog.put_dataset(&alpha, &a, listing([1, 2, 3])).unwrap();
        assert_eq!(snapshots_of(catalog, "alpha", "tank/a"), "1#sync 2#sent#sync 3");
        catalog.replace_host(&alpha, at(4), Vec::new()).unwrap();
        list(&[2, 3]);
        assert_eq!(snapshots_of(catalog, "alpha", "tank/a"), "2#sent#sync 3", "the pool was imported again");
    });
}

#[test]
fn destroyed_snapshot_moves_to_history() {
    on_each(|catalog| {
        let (alpha, a) = (host("alpha"), dataset("tank/a"));
        catalog.put_dataset(&alpha, &a, listing(1..4)).unwrap();
        catalog.mark(&alpha, &a, Guid(1), SENT, at(5)).unwrap();
        catalog.mark(&alpha, &a, Guid(1), DELETED, at(6)).unwrap();
        catalog.mark(&alpha, &a, Guid(3), DELETED, at(7)).unwrap();
        catalog.mark(&alpha, &a, Guid(99), DELETED, at(8)).unwrap();
        assert_eq!(snapshots_of(catalog, "alpha", "tank/a"), "2");
        let history = |limit| {
            let rendered =
                |one: Destroyed| format!("{} {} {}", one.host, one.record, one.at.timestamp() - at(0).timestamp());
            catalog.destroyed(limit).unwrap().into_iter().map(rendered).collect::<Vec<_>>()
        };
        let third = format!("alpha {}:tank/a@BACKUP_3#deleted 7", Guid(3).uuid());
        let first = format!("alpha {}:tank/a@BACKUP_1#sent#deleted 6", Guid(1).uuid());
        assert_eq!(history(10), [third.clone(), first]);
        assert_eq!(history(1), std::slice::from_ref(&third));
        assert_eq!(catalog.forget_marks(at(7)).unwrap(), 1);
        assert_eq!(history(10), [third]);
    });
}

#[test]
fn not_written_marks_end_with_dataset_or_age() {
    on_each(|catalog| {
        let (alpha, a, b) = (host("alpha"), dataset("tank/a"), dataset("tank/b"));
        let list = |names: &[&DatasetName]| {
            let datasets = names.iter().map(|name| ((*name).clone(), listing([1]))).collect();
            catalog.replace_host(&alpha, at(0), datasets).unwrap();
        };
        let marks = |name| {
            let inventory = catalog.inventory().unwrap();
            let found = inventory.dataset(&alpha, name).map(|found| found.not_written.clone()).unwrap_or_default();
            found
                .iter()
                .map(|mark| format!("{} {}", mark.name, mark.at.timestamp() - at(0).timestamp()))
                .collect::<Vec<_>>()
        };
        list(&[&a, &b]);
        for (name, mark) in [(&a, not_written("P_1", 1)), (&a, not_written("P_2", 2)), (&b, not_written("P_1", 1))] {
            catalog.add_not_written(&alpha, name, mark).unwrap();
        }
        catalog.add_not_written(&alpha, &a, not_written("P_1", 3)).unwrap();
        list(&[&a]);
        list(&[&a, &b]);
        assert_eq!(marks(&a), ["P_1 3", "P_2 2"]);
        assert!(marks(&b).is_empty(), "the dataset had been gone");
        assert_eq!(catalog.forget_marks(at(3)).unwrap(), 1);
        assert_eq!(marks(&a), ["P_1 3"]);
    });
}

/// A policy with a yearly schedule would otherwise seem to have missed its slot.
#[test]
fn newest_not_written_mark_of_each_prefix_is_not_forgotten() {
    on_each(|catalog| {
        let (alpha, a) = (host("alpha"), dataset("tank/a"));
        catalog.replace_host(&alpha, at(0), vec![(a.clone(), listing([1]))]).unwrap();
        let names =
            ["H_2026-01-01_00:00:00", "H_2026-01-01_01:00:00", "Y_2025-01-01_00:00:00", "Y_2024-01-01_00:00:00"];
        for (name, when) in names.iter().zip(1..) {
            catalog.add_not_written(&alpha, &a, not_written(name, when)).unwrap();
        }
        // Of each prefix, the mark that was made last.
        assert_eq!(catalog.forget_marks(at(1000)).unwrap(), 2);
        let inventory = catalog.inventory().unwrap();
        let left: Vec<_> = inventory.dataset(&alpha, &a).unwrap().not_written.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(left, [names[1], names[3]]);
    });
}

#[test]
fn forget_marks_keeps_marks_of_existing_snapshots() {
    on_each(|catalog| {
        let (alpha, a) = (host("alpha"), dataset("tank/a"));
        catalog.put_dataset(&alpha, &a, listing([1])).unwrap();
        for guid in [1, 2, 3] {
            catalog.mark(&alpha, &a, Guid(guid), SENT, at(i64::try_from(guid).unwrap())).unwrap();
        }
        assert_eq!(catalog.forget_marks(at(3)).unwrap(), 1);
        catalog.put_dataset(&alpha, &a, listing([1, 2, 3])).unwrap();
        assert_eq!(snapshots_of(catalog, "alpha", "tank/a"), "1#sent 2 3#sent");
    });
}

#[test]
fn hosts_that_are_not_named_are_forgotten_by_age() {
    on_each(|catalog| {
        let a = dataset("tank/a");
        // Each of them was last heard of at 10, in its own way.
        for (name, observed) in [("named", 10), ("gone", 10), ("again", 10), ("busy", 10)] {
            catalog.replace_host(&host(name), at(observed), vec![(a.clone(), listing([1, 2]))]).unwrap();
        }
        catalog.mark(&host("marked"), &a, Guid(1), SENT, at(10)).unwrap();
        catalog.record_outcome(&Outcome { host: host("ordered"), ..outcome(10) }).unwrap();
        // Nothing of this has a time, and what is not known is not old.
        catalog.put_dataset(&host("timeless"), &a, listing([1])).unwrap();
        catalog.record_outcome(&Outcome { host: host("busy"), ..outcome(20) }).unwrap();
        catalog.record_outcome(&Outcome { host: host("gone"), ..outcome(9) }).unwrap();
        catalog.mark(&host("gone"), &a, Guid(2), DELETED, at(9)).unwrap();

        let named = BTreeSet::from([host("named"), host("never-seen")]);
        let forget = |older_than| {
            let hosts = catalog.forget_hosts(&named, at(older_than)).unwrap();
            hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(forget(10), "", "not older than that");
        catalog.replace_host(&host("again"), at(20), vec![(a.clone(), listing([1, 2]))]).unwrap();
        assert_eq!(forget(11), "gone marked ordered");
        let left: Vec<String> = catalog.inventory().unwrap().hosts.keys().map(ToString::to_string).collect();
        assert_eq!(left.join(" "), "again busy named timeless");
        assert_eq!(catalog.host(&host("gone")).unwrap(), None);
        assert_eq!(snapshots_of(catalog, "named", "tank/a"), "1 2");
        assert!(catalog.destroyed(10).unwrap().is_empty());
        assert_eq!(catalog.outcomes(10).unwrap(), [Outcome { host: host("busy"), ..outcome(20) }]);
        assert_eq!(forget(11), "");
        // A host that comes back is known as before.
        catalog.replace_host(&host("gone"), at(30), vec![(a.clone(), listing([2]))]).unwrap();
        assert_eq!(snapshots_of(catalog, "gone", "tank/a"), "2");
    });
}

pub(super) fn outcome(number: u64) -> Outcome {
    Outcome {
        order_id: OrderId(Uuid::from_u128(u128::from(number))),
        at: at(i64::try_from(number).unwrap()),
        host: host("alpha"),
        action: Action::SendSnapshot,
        dataset: Some(dataset("tank/a")),
        snapshot: Some("BACKUP_1".parse().unwrap()),
        to: Some(Place { host: host("beta"), dataset: dataset("tank/copy") }),
        success: false,
        status: Some(ResponseStatus::Unreachable),
        bytes: u64::MAX,
        seconds: 1.5,
        error: Some("beta went away".to_owned()),
        hint: Some("start it".to_owned()),
    }
}

#[test]
fn outcomes_are_complete_and_newest_first() {
    on_each(|catalog| {
        let bare = Outcome {
            action: Action::KvResync,
            dataset: None,
            snapshot: None,
            to: None,
            success: true,
            status: None,
            error: None,
            hint: None,
            ..outcome(2)
        };
        catalog.record_outcome(&outcome(1)).unwrap();
        catalog.record_outcome(&bare).unwrap();
        assert_eq!(catalog.outcomes(10).unwrap(), [bare.clone(), outcome(1)]);
        assert_eq!(catalog.outcomes(1).unwrap(), [bare]);
    });
}

#[test]
fn embedded_outcomes_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = EmbeddedCatalog::open(folder.path()).unwrap();
    let most = i64::try_from(MAX_OUTCOMES).unwrap();
    catalog.record_outcome(&outcome(1)).unwrap();
    let file = Connection::open(folder.path().join("catalog.sqlite")).unwrap();
    file.execute("UPDATE outcome SET id = ?1", [100]).unwrap();
    let copy =
        "INSERT INTO outcome SELECT 100 + value, order_id, at, host, action, dataset, snapshot, to_host, to_dataset,
                success, status, bytes, seconds, error, hint FROM outcome, (WITH RECURSIVE n(value) AS
                (VALUES (1) UNION ALL SELECT value + 1 FROM n WHERE value < ?1) SELECT value FROM n)";
    file.execute(copy, [most + 5]).unwrap();
    catalog.record_outcome(&outcome(2)).unwrap();
    let kept = catalog.outcomes(usize::MAX).unwrap();
    assert_eq!((kept.len(), &kept[0]), (MAX_OUTCOMES, &outcome(2)));
}

#[test]
fn replace_estimates_discards_earlier_ones() {
    let estimated = |bytes| Estimated { at: at(7), bytes, remark: "why".to_owned() };
    let first: BTreeMap<Uuid, Estimated> =
        [(1, Some(u64::MAX)), (2, None)].map(|(n, bytes)| (Uuid::from_u128(n), estimated(bytes))).into();
    on_each(|catalog| {
        assert!(catalog.estimates().unwrap().is_empty());
        catalog.replace_estimates(&first).unwrap();
        assert_eq!(catalog.estimates().unwrap(), first);
        let second = BTreeMap::from([(Uuid::from_u128(3), estimated(Some(0)))]);
        catalog.replace_estimates(&second).unwrap();
        assert_eq!(catalog.estimates().unwrap(), second);
    });
}

/// Only the embedded catalog stores `unchanged`: hosts that write to a shared catalog remember it themselves.
#[test]
fn embedded_stores_range_for_which_listing_is_current() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = EmbeddedCatalog::open(folder.path()).unwrap();
    for unchanged in [Some(crate::model::Unchanged { from: i64::MIN, to: 1, listed: i64::MAX }), None] {
        let listed = DatasetInventory { unchanged, snapshots: vec![snapshot(7)], ..DatasetInventory::default() };
        let name = dataset("tank/a");
        catalog.replace_host(&host("alpha"), at(1), vec![(name.clone(), listed.clone())]).unwrap();
        assert_eq!(catalog.inventory().unwrap().dataset(&host("alpha"), &name), Some(&listed));
    }
}

/// `plan --dry-run` may read a catalog before a director of this version has opened it.
#[test]
fn embedded_of_version_1_is_read_and_migrated() {
    let folder = tempfile::tempdir().unwrap();
    drop(EmbeddedCatalog::open(folder.path()).unwrap());
    let of_dataset = "origin_dataset origin_name excluded flags unchanged_from unchanged_to listed append_only transfer_holds \
         destroy_after trashed";
    let added =
        of_dataset.split(' ').map(|column| ("dataset", column)).chain([("outcome", "hint"), ("host", "unlisted")]);
    let drop_columns: String =
        added.map(|(table, column)| format!("ALTER TABLE {table} DROP COLUMN {column};")).collect();
    database(folder.path(), &format!("DROP TABLE estimate; {drop_columns} PRAGMA user_version = 1"));
    let reader = EmbeddedReader::new(folder.path());
    assert!(reader.estimates().unwrap().is_empty() && reader.inventory().unwrap().hosts.is_empty());
    let catalog = EmbeddedCatalog::open(folder.path()).unwrap();
    catalog.replace_estimates(&BTreeMap::new()).unwrap();
    assert!(reader.estimates().unwrap().is_empty());
}

#[test]
fn memory_refuses_writes_on_request() {
    let catalog = MemoryCatalog::new();
    catalog.refuse_writes(true);
    assert!(matches!(catalog.record_outcome(&outcome(1)), Err(CatalogError::Full { .. })));
    catalog.refuse_writes(false);
    catalog.record_outcome(&outcome(1)).unwrap();
}

#[derive(Clone, Debug)]
enum CatalogCall {
    Replace(u8, Vec<(u8, Vec<u64>)>),
    Put(u8, u8, Vec<u64>),
    Remove(u8, u8),
    Taken(u8, u8, u64),
    Mark(u8, u8, u64, Marks, i64),
    NotWritten(u8, u8, u8, i64),
    Forget(i64),
    ForgetHosts(Option<u8>, i64),
}

fn calls() -> impl Strategy<Value = Vec<CatalogCall>> {
    let numbers = || prop::collection::btree_set(0..6_u64, 0..5).prop_map(|set| set.into_iter().collect::<Vec<_>>());
    let datasets = prop::collection::btree_map(0..3_u8, numbers(), 0..3).prop_map(|map| map.into_iter().collect());
    let marks =
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(sent, sync, deleted)| Marks { sent, sync, deleted });
    let call = prop_oneof![
        (0..2_u8, datasets).prop_map(|(h, d)| CatalogCall::Replace(h, d)),
        (0..2_u8, 0..3_u8, numbers()).prop_map(|(h, d, n)| CatalogCall::Put(h, d, n)),
        (0..2_u8, 0..3_u8).prop_map(|(h, d)| CatalogCall::Remove(h, d)),
        (0..2_u8, 0..3_u8, 0..6_u64).prop_map(|(h, d, n)| CatalogCall::Taken(h, d, n)),
        (0..2_u8, 0..3_u8, 0..6_u64, marks, 0..9_i64).prop_map(|(h, d, g, m, t)| CatalogCall::Mark(h, d, g, m, t)),
        (0..2_u8, 0..3_u8, 0..3_u8, 0..9_i64).prop_map(|(h, d, n, t)| CatalogCall::NotWritten(h, d, n, t)),
        (0..9_i64).prop_map(CatalogCall::Forget),
        (prop::option::of(0..2_u8), 0..9_i64).prop_map(|(named, t)| CatalogCall::ForgetHosts(named, t)),
    ];
    prop::collection::vec(call, 1..25)
}

fn perform(catalog: &dyn CatalogWrite, call: &CatalogCall) -> usize {
    let (h, d) = (|h: u8| host(&format!("h{h}")), |d: u8| dataset(&format!("tank/d{d}")));
    match call.clone() {
        CatalogCall::Taken(of, name, number) => {
            catalog.change(&h(of), &d(name), Change::Taken(snapshot(number))).unwrap();
        }
        CatalogCall::Replace(of, datasets) => {
            let datasets = datasets.into_iter().map(|(name, numbers)| (d(name), listing(numbers))).collect();
            catalog.replace_host(&h(of), at(0), datasets).unwrap();
        }
        CatalogCall::Put(of, name, numbers) => catalog.put_dataset(&h(of), &d(name), listing(numbers)).unwrap(),
        CatalogCall::Remove(of, name) => catalog.remove_dataset(&h(of), &d(name)).unwrap(),
        CatalogCall::Mark(of, name, guid, marks, when) => {
            catalog.mark(&h(of), &d(name), Guid(guid), marks, at(when)).unwrap();
        }
        CatalogCall::NotWritten(of, name, slot, when) => {
            catalog.add_not_written(&h(of), &d(name), not_written(&format!("P_{slot}"), when)).unwrap();
        }
        CatalogCall::Forget(before) => return catalog.forget_marks(at(before)).unwrap(),
        CatalogCall::ForgetHosts(named, before) => {
            return catalog.forget_hosts(&named.map(h).into_iter().collect(), at(before)).unwrap().len();
        }
    }
    0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn embedded_equals_memory_after_any_calls(calls in calls()) {
        let folder = tempfile::tempdir().unwrap();
        let (memory, embedded) = (MemoryCatalog::new(), EmbeddedCatalog::open(folder.path()).unwrap());
        for call in &calls {
            prop_assert_eq!(perform(&memory, call), perform(&embedded, call), "{:?}", call);
        }
        prop_assert_eq!(memory.inventory().unwrap(), embedded.inventory().unwrap());
        prop_assert_eq!(memory.destroyed(99).unwrap(), embedded.destroyed(99).unwrap());
        drop(embedded);
        prop_assert_eq!(memory.inventory().unwrap(), EmbeddedReader::new(folder.path()).inventory().unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn consul_equals_memory_after_any_calls(calls in calls()) {
        let Some(consul) = in_consul() else { return Ok(()) };
        let memory = MemoryCatalog::new();
        for call in &calls {
            prop_assert_eq!(perform(&memory, call), perform(&consul, call), "{:?}", call);
        }
        prop_assert_eq!(memory.inventory().unwrap(), consul.inventory().unwrap());
        let history = |catalog: &dyn CatalogRead| {
            let mut all: Vec<String> = catalog.destroyed(99).unwrap().iter().map(|one| format!("{one:?}")).collect();
            all.sort();
            all
        };
        prop_assert_eq!(history(&memory), history(&consul));
    }
}

#[test]
fn reader_of_missing_catalog_creates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("not/there");
    let reader = EmbeddedReader::new(&path);
    assert!(reader.inventory().unwrap().hosts.is_empty());
    assert!(reader.outcomes(5).unwrap().is_empty());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn second_writer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = EmbeddedCatalog::open(folder.path()).unwrap();
    let error = EmbeddedCatalog::open(folder.path()).unwrap_err();
    assert!(matches!(&error, CatalogError::Locked { pid: Some(pid), .. } if *pid == std::process::id()), "{error:?}");
    let message = error.to_string();
    assert!(
        message.contains("another director (process ") && message.contains("wait until it ends, or stop it"),
        "{message}"
    );
    EmbeddedReader::new(folder.path()).inventory().unwrap();
    drop(first);
    EmbeddedCatalog::open(folder.path()).unwrap();
}

#[test]
fn starting_child_does_not_keep_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let first = EmbeddedCatalog::open(folder.path()).unwrap();
    let _inherited = first.inherited_lock();
    drop(first);
    EmbeddedCatalog::open(folder.path()).unwrap();
}

#[test]
fn folder_is_created_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lib/zsync/catalog");
    EmbeddedCatalog::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn reader_sees_last_commit_during_a_write() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = EmbeddedCatalog::open(folder.path()).unwrap();
    catalog.put_dataset(&host("alpha"), &dataset("tank"), listing([1])).unwrap();
    let writer = Connection::open(folder.path().join("catalog.sqlite")).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE; DELETE FROM snapshot; DELETE FROM dataset").unwrap();
    let reader = EmbeddedReader::new(folder.path());
    let begin = Instant::now();
    assert_eq!(snapshots_of(&reader, "alpha", "tank"), "1");
    assert!(begin.elapsed() < Duration::from_secs(5), "the reader does not wait for the writer");
    writer.execute_batch("COMMIT").unwrap();
    assert_eq!(snapshots_of(&reader, "alpha", "tank"), "-");
}

#[test]
fn reader_never_sees_partial_listing() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, done) = (EmbeddedCatalog::open(folder.path()).unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let passes = scope.spawn(|| {
            let more = |pass: &u64| *pass < 40 || !done.load(Ordering::Relaxed);
            (1..).take_while(more).map(|pass| write_pass(&catalog, pass)).count()
        });
        let reader = EmbeddedReader::new(folder.path());
        let mut seen = BTreeSet::new();
        while seen.len() < 10 && !passes.is_finished() {
            seen.insert(complete_pass(&reader.inventory().unwrap()));
        }
        done.store(true, Ordering::Relaxed);
        assert!(seen.len() > 1);
        assert!(passes.join().unwrap() >= seen.len() - 1, "the reader may also have seen the empty catalog");
    });
}

#[test]
fn reader_during_creation_succeeds() {
    for _ in 0..100 {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let creating = scope.spawn(|| drop(EmbeddedCatalog::open(folder.path()).unwrap()));
            let reader = EmbeddedReader::new(folder.path());
            while !creating.is_finished() {
                reader.inventory().unwrap();
            }
        });
    }
}

fn open_error(prepare: impl FnOnce(&Path)) -> (CatalogError, CatalogError) {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let reading = EmbeddedReader::new(folder.path()).inventory().unwrap_err();
    (EmbeddedCatalog::open(folder.path()).unwrap_err(), reading)
}

fn database(folder: &Path, sql: &str) {
    Connection::open(folder.join("catalog.sqlite")).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn unusable_file_is_refused_with_hint() {
    let (writing, reading) = open_error(|folder| fs::write(folder.join("catalog.sqlite"), [b'x'; 5000]).unwrap());
    for error in [writing, reading] {
        assert!(matches!(error, CatalogError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains("stop the director and move the folder"), "{error}");
    }
    let (writing, reading) = open_error(|folder| database(folder, "CREATE TABLE cookies (a); PRAGMA user_version = 7"));
    for error in [writing, reading] {
        assert!(matches!(error, CatalogError::Foreign { .. }), "{error:?}");
        assert!(error.to_string().contains("set another catalog.embedded.path"), "{error}");
    }
    let (writing, reading) = open_error(|folder| {
        drop(EmbeddedCatalog::open(folder).unwrap());
        database(folder, "PRAGMA user_version = 99");
    });
    for error in [writing, reading] {
        assert!(matches!(error, CatalogError::Newer { found: 99, .. }), "{error:?}");
        assert!(error.to_string().contains("use the newer zsync, or move the folder"), "{error}");
    }
}

#[test]
fn foreign_database_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    database(folder.path(), "CREATE TABLE cookies (a)");
    let before = fs::read(folder.path().join("catalog.sqlite")).unwrap();
    EmbeddedCatalog::open(folder.path()).unwrap_err();
    assert_eq!(fs::read(folder.path().join("catalog.sqlite")).unwrap(), before);
}

#[test]
fn overwritten_page_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = EmbeddedCatalog::open(folder.path()).unwrap();
    catalog.put_dataset(&host("alpha"), &dataset("tank"), listing(0..2000)).unwrap();
    drop(catalog);
    let file = folder.path().join("catalog.sqlite");
    let mut bytes = fs::read(&file).unwrap();
    bytes[4096 * 3..].fill(0xa5);
    fs::write(&file, bytes).unwrap();
    let error = EmbeddedReader::new(folder.path()).inventory().unwrap_err();
    assert!(matches!(error, CatalogError::Damaged { .. }), "{error:?}");
}

#[test]
fn impossible_value_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = EmbeddedCatalog::open(folder.path()).unwrap();
    catalog.put_dataset(&host("alpha"), &dataset("tank"), listing([1])).unwrap();
    for (sql, word) in [
        ("UPDATE snapshot SET name = 'a/b'", "not a snapshot name"),
        ("UPDATE snapshot SET name = 'a', creation = 9223372036854775807", "not a valid time"),
        ("UPDATE snapshot SET creation = 0; DROP TABLE mark", "no such table"),
    ] {
        database(folder.path(), sql);
        let error = catalog.inventory().unwrap_err();
        assert!(matches!(&error, CatalogError::Damaged { detail, .. } if detail.contains(word)), "{sql}: {error:?}");
    }
}

#[test]
fn impossible_folder_is_a_folder_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below"), "/proc/nothing/here".into()] {
        let error = EmbeddedCatalog::open(&path).unwrap_err();
        assert!(matches!(error, CatalogError::Folder { .. }), "{}: {error:?}", path.display());
        assert!(error.to_string().contains("set another catalog.embedded.path in server.json"), "{error}");
    }
}

#[test]
fn full_disk_leaves_catalog_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = EmbeddedCatalog::open(folder.path()).unwrap();
    catalog.put_dataset(&host("alpha"), &dataset("tank"), listing([1])).unwrap();
    catalog.limit_pages(20);
    let error = catalog.put_dataset(&host("alpha"), &dataset("tank"), listing(0..10_000)).unwrap_err();
    assert!(matches!(error, CatalogError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("no space left on its filesystem"), "{error}");
    assert_eq!(snapshots_of(&catalog, "alpha", "tank"), "1");
    catalog.put_dataset(&host("alpha"), &dataset("tank"), listing([1, 2])).unwrap();
}

#[test]
fn full_disk_keeps_catalog_of_a_pass_in_memory_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = EmbeddedCatalog::open_with_spare(folder.path(), Holder::Pass).unwrap();
    catalog.put_dataset(&host("alpha"), &dataset("tank"), listing([1])).unwrap();
    assert_eq!(catalog.unsaved(), None);
    catalog.limit_pages(20);
    catalog.put_dataset(&host("alpha"), &dataset("tank"), listing(0..10_000)).unwrap();
    let reason = catalog.unsaved().unwrap();
    assert!(reason.contains("no space left on its filesystem; hint: "), "{reason}");
    catalog.put_dataset(&host("alpha"), &dataset("usb"), listing([7])).unwrap();
    let both = catalog.inventory().unwrap();
    assert_eq!(both.hosts[&host("alpha")].datasets.len(), 2);
    assert_eq!(both.dataset(&host("alpha"), &dataset("tank")).unwrap().snapshots.len(), 10_000);
    let reader = EmbeddedReader::new(folder.path());
    assert_eq!(reader.host(&host("alpha")).unwrap().unwrap().datasets[&dataset("tank")].snapshots.len(), 1);
    // The limit ends with the connection, so there is room again.
    catalog.flush().unwrap();
    assert_eq!(catalog.unsaved(), None);
    assert_eq!(reader.inventory().unwrap(), both);
    catalog.put_dataset(&host("alpha"), &dataset("usb"), listing([8])).unwrap();
    assert_eq!(reader.inventory().unwrap(), catalog.inventory().unwrap());
}

/// Writes what one pass of a director writes, in three calls. Each has to take effect completely or not at all.
fn write_pass(catalog: &EmbeddedCatalog, pass: u64) {
    let a = DatasetInventory { written: Some(pass), ..listing(pass..pass + 50) };
    let datasets = ["tank/a", "tank/b", "tank/c"].map(|name| (dataset(name), a.clone())).to_vec();
    catalog.replace_host(&host("alpha"), at(i64::try_from(pass).unwrap()), datasets).unwrap();
    catalog.mark(&host("alpha"), &dataset("tank/a"), Guid(pass), DELETED, at(0)).unwrap();
    catalog.record_outcome(&outcome(pass)).unwrap();
}

/// Checks that an inventory shows one complete pass, and returns its number.
fn complete_pass(inventory: &Inventory) -> u64 {
    let Some(alpha) = inventory.hosts.get(&host("alpha")) else { return 0 };
    let pass = u64::try_from(alpha.observed.unwrap().timestamp() - at(0).timestamp()).unwrap();
    assert_eq!(alpha.datasets.len(), 3);
    for (name, found) in &alpha.datasets {
        assert_eq!(found.written, Some(pass), "{name}");
        let guids: Vec<u64> = found.snapshots.iter().map(|one| one.guid.0).collect();
        let missing = u64::from(guids[0] != pass);
        assert!(missing == 0 || name.as_str() == "tank/a", "{name}");
        assert_eq!(guids, (pass + missing..pass + 50).collect::<Vec<_>>(), "{name}");
    }
    pass
}

const CHILD: &str = "ZSYNC_TEST_CATALOG_TO_WRITE";

/// This is not a test by itself, but the process that the test below kills.
#[test]
fn writer_process_to_be_killed() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let catalog = EmbeddedCatalog::open(Path::new(&folder)).unwrap();
    let first = complete_pass(&catalog.inventory().unwrap()) + 1;
    for pass in first.. {
        write_pass(&catalog, pass);
    }
}

/// Kills a process when it is dropped, so that a failing test leaves none behind.
struct KillOnDrop(std::process::Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "kill -9 needs a process to kill")]
fn kill_9_leaves_complete_catalog() {
    let folder = tempfile::tempdir().unwrap();
    let (mut reached, mut recorded_before) = (0, 0);
    for round in 0..12 {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "catalog::tests::writer_process_to_be_killed"])
            .env(CHILD, folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let child = KillOnDrop(child);
        let reader = EmbeddedReader::new(folder.path());
        let begin = Instant::now();
        while complete_pass(&reader.inventory().unwrap()) <= reached {
            assert!(begin.elapsed() < Duration::from_secs(60), "the process writes nothing");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(round * 7));
        drop(child);
        // A reader opens the catalog first, as `plan` may. It has to cope with what the dead writer left.
        let found = complete_pass(&reader.inventory().unwrap());
        let catalog = EmbeddedCatalog::open(folder.path()).unwrap();
        assert_eq!(complete_pass(&catalog.inventory().unwrap()), found);
        assert!(found > reached, "committed passes are still there");
        let outcomes = catalog.outcomes(1).unwrap();
        // There is no outcome if the process was killed after its first listing and before its first outcome.
        let recorded = outcomes.first().map_or(0, |outcome| outcome.at.timestamp() - at(0).timestamp());
        let behind = i64::try_from(found).unwrap() - recorded;
        // A process that got no further than its first listing has added no outcome to those of its predecessor.
        let none_added = found == reached + 1 && recorded == recorded_before;
        assert!((0..=1).contains(&behind) || none_added, "{recorded} beside {found}");
        (reached, recorded_before) = (found, recorded);
    }
}
