//! Tests of what is specific to the catalog in Consul: generations, large datasets, foreign writes, concurrent writers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use chrono::{DateTime, Utc};

use super::*;
use crate::catalog::dataset::CatalogDataset;
use crate::catalog::tests::{at, dataset, host, in_consul, listing, outcome, snapshot};
use crate::catalog::{CatalogRead, CatalogWrite, Change, Generations, Outcome, Published};
use crate::consul::{Committed, Consul, ConsulSettings, Op};
use crate::model::{DatasetInventory, DatasetName, Guid, HostName, Marks};
use crate::policy::ConsulConfig;
use crate::sys::runtime;

fn all(names: &[&str]) -> BTreeSet<HostName> {
    names.iter().map(|name| host(name)).collect()
}

fn listed(numbers: impl IntoIterator<Item = u64>) -> Vec<(DatasetName, DatasetInventory)> {
    vec![(dataset("tank/a"), listing(numbers))]
}

fn put(catalog: &ConsulCatalog, of: &str, name: &str, numbers: impl IntoIterator<Item = u64>) {
    catalog.update(&host(of), vec![(dataset(name), Change::Listed(listing(numbers)))]).unwrap();
}

/// All pairs below a key.
fn pairs(catalog: &ConsulCatalog, below: &str) -> Vec<crate::consul::Pair> {
    runtime::block_on(catalog.consul().list(&format!("{}/{below}", catalog.root()))).unwrap()
}

fn write_by_hand(catalog: &ConsulCatalog, op: Op) {
    assert!(matches!(runtime::block_on(catalog.consul().commit(&[op])).unwrap(), Committed::At(_)));
}

fn key(catalog: &ConsulCatalog, below: &str) -> String {
    format!("{}/{below}", catalog.root())
}

#[test]
fn published_reads_only_hosts_with_new_generation() {
    let Some(catalog) = in_consul() else { return };
    let (wanted, mut since) = (all(&["alpha", "beta", "gamma"]), Generations::new());
    let mut read = || {
        let Published { changed, whole } = catalog.published(&wanted, &mut since).unwrap().unwrap();
        let names = |hosts: Vec<&HostName>| hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        (names(changed.keys().collect()), names(whole.iter().collect()))
    };
    let expected = |changed: &str, whole: &str| (changed.to_owned(), whole.to_owned());
    assert_eq!(read(), expected("", ""), "nobody has published anything");
    catalog.replace_host(&host("alpha"), at(0), listed([1])).unwrap();
    catalog.replace_host(&host("beta"), at(0), listed([1])).unwrap();
    put(&catalog, "gamma", "tank/a", [1]);
    assert_eq!(read(), expected("alpha beta gamma", "alpha beta"), "gamma was never listed as a whole");
    assert_eq!(read(), expected("gamma", "alpha beta"));
    put(&catalog, "alpha", "tank/a", [1, 2]);
    assert_eq!(read(), expected("alpha gamma", "alpha beta"));
    put(&catalog, "alpha", "tank/a", [1, 2]);
    assert_eq!(read(), expected("gamma", "alpha beta"), "unchanged datasets are not written again");
    // As many datasets as before, observed at the same time: Consul would not raise the index for an equal value.
    catalog.replace_host(&host("alpha"), at(0), vec![(dataset("tank/b"), listing([1]))]).unwrap();
    assert_eq!(read(), expected("alpha gamma", "alpha beta"));
}

#[test]
fn large_dataset_is_never_seen_partially() {
    let Some(catalog) = in_consul() else { return };
    // Random guids, names and times do not compress, so that they need more than one pair.
    let large = |seed: u64, count: u64| {
        let random = |n: u64| {
            (seed << 32 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17).wrapping_mul(0xd6e8_feb8_6659_fd93)
        };
        let one = |n: u64| crate::model::Snapshot {
            name: format!("S_{:x}", random(n)).parse().unwrap(),
            guid: Guid(random(n + count)),
            ..snapshot(n)
        };
        DatasetInventory { snapshots: (0..count).map(one).collect(), ..listing([]) }
    };
    let name = dataset("tank/large");
    let write =
        |inventory: DatasetInventory| catalog.update(&host("alpha"), vec![(name.clone(), Change::Listed(inventory))]);
    let read = |from: &ConsulCatalog| from.host(&host("alpha")).unwrap().unwrap().datasets.remove(&name).unwrap();
    let (first, second) = (large(1, 30_000), large(2, 40_000));
    catalog.replace_host(&host("alpha"), at(0), vec![(name.clone(), first.clone())]).unwrap();
    assert_eq!(read(&catalog), first);
    let parts = pairs(&catalog, "inventory/alpha/tank/large@").len();
    assert!(parts > 1, "{parts}");
    std::thread::scope(|scope| {
        let reader = ConsulCatalog::new(catalog.consul().clone(), catalog.root());
        let (first, second, read) = (&first, &second, &read);
        let reads = scope.spawn(move || {
            let mut seen = 0;
            while seen < 100 {
                let record = reader.host(&host("alpha")).unwrap().unwrap();
                assert!(record.observed.is_some(), "the record is complete at every moment");
                let now = read(&reader);
                assert!(now == *first || now == *second, "either the old or the new dataset");
                if now == *second {
                    return true;
                }
                seen += 1;
            }
            false
        });
        write(second.clone()).unwrap();
        assert!(reads.join().unwrap());
    });
    assert_eq!(pairs(&catalog, "inventory/alpha/tank/large@").len(), referred_parts(&catalog));
    write(listing([1])).unwrap();
    assert!(pairs(&catalog, "inventory/alpha/tank/large@").is_empty(), "the parts are deleted with their dataset");
    assert_eq!(read(&catalog), listing([1]));
    catalog.update(&host("alpha"), vec![(name.clone(), Change::Gone)]).unwrap();
    assert!(pairs(&catalog, "inventory/alpha/").is_empty());
}

/// The number of parts that the pair refers to.
fn referred_parts(catalog: &ConsulCatalog) -> usize {
    let head = runtime::block_on(catalog.consul().get(&key(catalog, "inventory/alpha/tank/large"))).unwrap().0.unwrap();
    match codec::decode(&head.value).unwrap() {
        codec::Value::Parts(parts) => parts.count,
        codec::Value::Whole(_) => 0,
    }
}

#[test]
fn all_pairs_of_forgotten_host_are_deleted() {
    let Some(catalog) = in_consul() else { return };
    let many = (0..150).map(|number| (dataset(&format!("tank/{number}")), listing([1]))).collect();
    catalog.replace_host(&host("alpha"), at(0), many).unwrap();
    let destroyed = Change::Mark { guid: Guid(1), marks: Marks { deleted: true, ..Marks::default() }, at: at(1) };
    catalog.update(&host("alpha"), vec![(dataset("tank/1"), destroyed)]).unwrap();
    catalog.record_outcome(&Outcome { host: host("alpha"), ..outcome(1) }).unwrap();
    // Its name begins with that of the forgotten host.
    catalog.replace_host(&host("alpha2"), at(9), listed([1])).unwrap();
    let undecodable = Op::Set { key: key(&catalog, "generation/newer"), value: b"?".to_vec() };
    write_by_hand(&catalog, undecodable);
    catalog.record_outcome(&Outcome { host: host("newer"), ..outcome(1) }).unwrap();

    let forgotten = catalog.forget_hosts(&BTreeSet::new(), at(5)).unwrap();
    assert_eq!(forgotten, all(&["alpha"]), "a generation that cannot be decoded may be that of a newer version");
    let left: Vec<String> = pairs(&catalog, "").into_iter().map(|pair| pair.key).collect();
    let expected = ["generation/alpha2", "generation/newer", "inventory/alpha2/tank/a", "outcomes/newer"];
    assert_eq!(left, expected.map(|below| key(&catalog, below)));
    assert_eq!(catalog.published(&all(&["alpha"]), &mut Generations::new()).unwrap().unwrap().whole, all(&[]));
}

#[test]
fn many_datasets_fit_into_transactions() {
    let Some(catalog) = in_consul() else { return };
    let datasets: BTreeMap<DatasetName, DatasetInventory> =
        (0..300).map(|n| (dataset(&format!("tank/d {n}:x")), listing(1..40))).collect();
    catalog.replace_host(&host("alpha"), at(0), datasets.clone().into_iter().collect()).unwrap();
    let found = catalog.host(&host("alpha")).unwrap().unwrap();
    assert_eq!((found.observed, found.datasets), (Some(at(0)), datasets));
    catalog.replace_host(&host("alpha"), at(1), listed([1])).unwrap();
    assert_eq!(catalog.host(&host("alpha")).unwrap().unwrap().datasets.len(), 1);
}

/// When the host was observed. The director does not act on a host that was not.
fn observed(catalog: &ConsulCatalog) -> Option<DateTime<Utc>> {
    catalog.inventory().unwrap().hosts.get(&host("alpha")).and_then(|host| host.observed)
}

#[test]
fn foreign_write_makes_host_incomplete_until_listed() {
    type Damage = (&'static str, fn(&ConsulCatalog));
    let damages: [Damage; 8] = [
        ("a dataset's pair is deleted", |c| {
            runtime::block_on(c.consul().delete_tree(&key(c, "inventory/alpha/tank/a"))).unwrap();
        }),
        ("all of the host's datasets are deleted", |c| {
            runtime::block_on(c.consul().delete_tree(&key(c, "inventory/alpha"))).unwrap();
        }),
        ("the generation is deleted", |c| {
            runtime::block_on(c.consul().delete_tree(&key(c, "generation/alpha"))).unwrap();
        }),
        ("everything is deleted", |c| runtime::block_on(c.consul().delete_tree(c.root())).unwrap()),
        ("a pair is overwritten", |c| {
            write_by_hand(c, Op::Set { key: key(c, "inventory/alpha/tank/a"), value: b"hello".to_vec() });
        }),
        ("a pair is overwritten with a valid one", |c| {
            let value = codec::encode(&CatalogDataset::default());
            write_by_hand(c, Op::Set { key: key(c, "inventory/alpha/tank/a"), value });
        }),
        ("a pair is added", |c| {
            write_by_hand(c, Op::Set { key: key(c, "inventory/alpha/no@dataset%"), value: Vec::new() });
        }),
        ("the generation is overwritten", |c| {
            write_by_hand(c, Op::Set { key: key(c, "generation/alpha"), value: b"{".to_vec() });
        }),
    ];
    for (what, damage) in damages {
        let Some(catalog) = in_consul() else { return };
        let both = || vec![(dataset("tank/a"), listing(1..4)), (dataset("tank/b"), listing(1..4))];
        catalog.replace_host(&host("alpha"), at(0), both()).unwrap();
        assert_eq!(observed(&catalog), Some(at(0)), "{what}");
        damage(&catalog);
        // A stray part does no harm, because nothing refers to it.
        if what != "a pair is added" {
            assert_eq!(observed(&catalog), None, "{what}");
            let (wanted, mut since) = (all(&["alpha"]), Generations::new());
            assert!(catalog.published(&wanted, &mut since).unwrap().unwrap().whole.is_empty(), "{what}");
            // A change by an order does not make the host complete.
            catalog.update(&host("alpha"), vec![(dataset("tank/a"), Change::Taken(snapshot(9)))]).unwrap();
            assert_eq!(observed(&catalog), None, "{what}, then an order");
        }
        catalog.replace_host(&host("alpha"), at(1), both()).unwrap();
        let found = catalog.host(&host("alpha")).unwrap().unwrap();
        assert_eq!((found.observed, found.datasets), (Some(at(1)), both().into_iter().collect()), "{what}");
        assert_eq!(pairs(&catalog, "inventory/alpha/").len(), 2, "{what}");
    }
}

#[test]
fn concurrent_writers_lose_no_changes() {
    let Some(catalog) = in_consul() else { return };
    catalog.replace_host(&host("alpha"), at(0), listed([])).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4_u64 {
            let catalog = ConsulCatalog::new(catalog.consul().clone(), catalog.root());
            scope.spawn(move || {
                for n in 0..8 {
                    let taken = Change::Taken(snapshot(writer * 100 + n));
                    // Two of the writers change the same dataset.
                    let name = dataset(&format!("tank/{}", writer % 2));
                    while catalog.update(&host("alpha"), vec![(name.clone(), taken.clone())]).is_err() {}
                }
            });
        }
    });
    let found = catalog.host(&host("alpha")).unwrap().unwrap();
    assert_eq!(found.observed, Some(at(0)));
    let counts: Vec<usize> = found.datasets.values().map(|dataset| dataset.snapshots.len()).collect();
    assert_eq!(counts, [16, 16, 0]);
}

#[test]
fn outdated_listing_is_not_written() {
    let Some(catalog) = in_consul() else { return };
    catalog.replace_host(&host("alpha"), at(0), listed([1])).unwrap();
    let before = runtime::block_on(catalog.generation(&host("alpha"))).unwrap();
    put(&catalog, "alpha", "tank/a", [1, 2]);
    let old: BTreeMap<_, _> = listed([1]).into_iter().collect();
    let tried = runtime::block_on(catalog.replace_if(&host("alpha"), before, at(1), &old, &BTreeMap::new()));
    assert!(!tried.unwrap());
    let change = [(dataset("tank/a"), Change::Listed(listing([1])))];
    assert!(!runtime::block_on(catalog.update_if(&host("alpha"), before, &change)).unwrap());
    let now = runtime::block_on(catalog.generation(&host("alpha"))).unwrap();
    assert!(runtime::block_on(catalog.update_if(&host("alpha"), now, &change)).unwrap());
}

#[test]
fn destroyed_history_is_bounded() {
    let Some(catalog) = in_consul() else { return };
    catalog.replace_host(&host("alpha"), at(0), listed(1..1500)).unwrap();
    let deleted = Marks { deleted: true, ..Marks::default() };
    let gone = |n: u64| (dataset("tank/a"), Change::Mark { guid: Guid(n), marks: deleted, at: at(n as i64) });
    catalog.update(&host("alpha"), (1..1400).map(gone).collect()).unwrap();
    let history = catalog.destroyed(5000).unwrap();
    assert_eq!(history.len(), 1000);
    assert_eq!(history[0].record.name.as_str(), "BACKUP_1399");
    let found = catalog.host(&host("alpha")).unwrap().unwrap();
    assert_eq!(found.datasets[&dataset("tank/a")].snapshots.len(), 100);
}

/// The address of a server that responds as a Consul without pairs does, but fails to write pairs of `broken`.
fn consul_that_fails_for(broken: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (mut line, mut length, mut input) = (String::new(), 0, BufReader::new(stream.try_clone().unwrap()));
            input.read_line(&mut line).unwrap();
            let is_put = line.starts_with("PUT");
            while line != "\r\n" {
                line.clear();
                input.read_line(&mut line).unwrap();
                let header = line.to_lowercase();
                length = header.strip_prefix("content-length:").map_or(length, |value| value.trim().parse().unwrap());
            }
            let mut body = vec![0; length];
            input.read_exact(&mut body).unwrap();
            let (status, text) = match String::from_utf8(body).unwrap() {
                _ if !is_put => ("404 Not Found", ""),
                body if body.contains(&format!("outcomes/{broken}")) => ("500 Internal Server Error", "no"),
                _ => ("200 OK", r#"{"Results":[{"KV":{"Key":"k","ModifyIndex":7}}],"Errors":null}"#),
            };
            let length = text.len();
            let headers = format!("X-Consul-Index: 7\r\nContent-Length: {length}\r\nConnection: close");
            drop(write!(stream, "HTTP/1.1 {status}\r\n{headers}\r\n\r\n{text}"));
        }
    });
    address
}

#[test]
fn failed_write_of_one_hosts_outcomes_loses_none() {
    let config = ConsulConfig { address: Some(consul_that_fails_for("beta")), ..ConsulConfig::default() };
    let settings = ConsulSettings::with_environment(&config, |_| None).unwrap();
    let catalog = ConsulCatalog::new(Consul::new(&settings).unwrap(), "test");
    for name in ["gamma", "beta", "alpha", "beta"] {
        catalog.record_outcome(&Outcome { host: host(name), ..outcome(1) }).unwrap();
    }
    for _ in 0..2 {
        assert!(catalog.flush().is_err());
        let kept: Vec<String> = catalog.buffered().iter().map(|outcome| outcome.host.to_string()).collect();
        assert_eq!(kept, ["beta", "beta"], "the others are written, and these are attempted again");
    }
}

#[test]
fn outcomes_that_do_not_fit_replace_older_ones() {
    let Some(catalog) = in_consul() else { return };
    // Random digits hardly compress.
    let random = |seed: u64| -> String {
        let digit = |n: u64| (seed << 20 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ (n << 40);
        (0..400).map(|n| format!("{:016x}", digit(n).wrapping_mul(0xd6e8_feb8_6659_fd93))).collect()
    };
    for number in 1..=200 {
        catalog.record_outcome(&Outcome { error: Some(random(number)), ..outcome(number) }).unwrap();
    }
    catalog.flush().unwrap();
    let found = catalog.outcomes(1000).unwrap();
    assert!((50..200).contains(&found.len()), "{}", found.len());
    assert_eq!(found[0].at, at(200));
    catalog.record_outcome(&outcome(201)).unwrap();
    assert_eq!(catalog.outcomes(1).unwrap()[0].at, at(201));
}
