//! Tests `zsync copy` between pools in memory: an agent and a slave in one process, as for a host that is reached through
//! ssh. `tests/lab/scenarios/copy` and `ssh` do the same on real ZFS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "it may panic")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{ds, guids};
use zsync::actions::{CopyPlan, CopyWanted, Tree, copy};
use zsync::commands::copy::{CopyEnd, Ends};
use zsync::fleet::copy as orders;
use zsync::model::{Counter, ResponseStatus};
use zsync::policy::Exclude;
use zsync::sys::runtime;
use zsync::zfs::fake::{Fake, Fault};
use zsync::zfs::{Depth, Zfs, ZfsRead};

fn wanted(from: &str, to: &str) -> CopyWanted {
    let here = "here".parse().unwrap();
    let place = |text: &str| text.parse::<CopyEnd>().unwrap().place(&here);
    CopyWanted {
        from: place(from),
        to: place(to),
        is_recursive: true,
        exclude: Exclude::default(),
        snapshots: Vec::new(),
    }
}

fn tree(zfs: &Fake, root: &str) -> Tree {
    runtime::block_on(zfs.list(&[ds(root)], Depth::Recursive)).unwrap().into_iter().collect()
}

fn plan(ends: &Ends<Fake>, wanted: &CopyWanted) -> CopyPlan {
    let (from, to) = (wanted.from.dataset.as_str(), wanted.to.dataset.as_str());
    copy(&tree(&ends.source, from), &tree(&ends.destination, to), wanted)
}

/// Copies everything, and returns how each dataset was sent or what went wrong.
fn copied(ends: &Ends<Fake>, wanted: &CopyWanted) -> Vec<Result<ResponseStatus, String>> {
    let (agent, plan) = (ends.agent(wanted, None), plan(ends, wanted));
    assert_eq!(plan.problems, Vec::<String>::new());
    let send = |step| runtime::block_on(orders::copy(&agent, step, Duration::ZERO, Counter::default()));
    plan.steps.iter().map(|step| send(step).map(|response| response.status)).collect()
}

fn snapshot(zfs: &Fake, dataset: &str, name: &str) {
    zfs.write(&ds(dataset), 1000);
    runtime::block_on(zfs.snapshot(&[ds(dataset)], &name.parse().unwrap())).unwrap();
}

fn ends() -> Ends<Fake> {
    let (source, destination) = (Fake::new(1), Fake::new(2));
    for dataset in ["tank", "tank/one", "tank/two"] {
        source.create(&ds(dataset));
        snapshot(&source, dataset, "first");
        snapshot(&source, dataset, "second");
    }
    destination.create(&ds("pool"));
    Ends { source: Arc::new(source), destination: Arc::new(destination) }
}

#[test]
fn tree_arrives_and_later_only_what_is_new() {
    let (ends, wanted) = (ends(), wanted("tank", "root@beta:pool/copy"));
    assert_eq!(copied(&ends, &wanted), vec![Ok(ResponseStatus::Full); 3]);
    for below in ["", "/one", "/two"] {
        assert_eq!(
            guids(&ends.source, &format!("tank{below}")),
            guids(&ends.destination, &format!("pool/copy{below}"))
        );
    }
    assert_eq!(plan(&ends, &wanted).current.len(), 3);
    snapshot(&ends.source, "tank/two", "third");
    assert_eq!(copied(&ends, &wanted), [Ok(ResponseStatus::Incremental)]);
    assert_eq!(guids(&ends.source, "tank/two"), guids(&ends.destination, "pool/copy/two"));
}

#[test]
fn failed_receive_is_reported_with_both_places_and_can_be_repeated() {
    let (ends, wanted) = (ends(), CopyWanted { is_recursive: false, ..wanted("tank/one", "root@beta:pool/copy") });
    ends.destination.disturb_next("receive", Fault::Killed(700));
    let failed = copied(&ends, &wanted);
    let error = failed[0].as_ref().unwrap_err();
    assert!(error.starts_with("cannot copy here:tank/one to beta:pool/copy: "), "{error}");
    assert_eq!(copied(&ends, &wanted), [Ok(ResponseStatus::Full)]);
    assert_eq!(guids(&ends.source, "tank/one"), guids(&ends.destination, "pool/copy"));
}
