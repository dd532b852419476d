//! Tests of destroys that are held back.

use std::time::Duration;

use super::*;
use crate::actions::{Destroyed, Engine, HeldBack, predict};

const NOW: &str = "11-23T12:00";

/// A dataset with so many old snapshots and a new one.
fn old(dataset: &str, count: usize) -> String {
    let snapshots: Vec<String> = (0..count).map(|n| format!("B@11-01T{:02}:{:02}", n / 60, n % 60)).collect();
    format!("{dataset} {} B@11-23T12:00", snapshots.join(" "))
}

fn limited(max_destroys: u8, datasets: impl IntoIterator<Item = DatasetPolicy>) -> Policy {
    Policy { max_destroys, ..policy(datasets) }
}

#[test]
fn pass_destroys_no_more_of_a_dataset_than_permitted_and_a_saved_plan_does() {
    let policy = limited(50, [entry("alpha:tank/many", &[]), entry("alpha:tank/few", &[])]);
    let text = format!("{}\n{}", old("alpha:tank/many", 20), old("alpha:tank/few", 10));
    let plan = decide(&policy, &world(&text), utc(NOW));
    let destroys = |orders: Vec<Order>| -> Vec<String> {
        orders
            .iter()
            .filter(|o| matches!(o, Order::Destroy { .. }))
            .map(|o| render(std::slice::from_ref(o)))
            .map(|o| o[0].split(": ").next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(destroys(plan.orders(&policy)), ["destroy alpha:tank/few"]);
    assert_eq!(destroys(plan.approved_orders(&policy)), ["destroy alpha:tank/many", "destroy alpha:tank/few"]);
    let notices: Vec<_> = plan.notices.iter().filter(|n| n.kind.is_failure()).map(ToString::to_string).collect();
    assert_eq!(
        notices,
        ["alpha:tank/many keeps 20 of its 21 snapshots that retention would destroy, because max_destroys permits a \
          pass to destroy 50%"]
    );
    assert!(
        decide(&limited(100, policy.datasets), &world(&text), utc(NOW)).prunes.iter().all(|p| p.held_back.is_none())
    );
}

/// A destination that is sent to once a day may keep one of the day's snapshots.
#[test]
fn young_snapshots_do_not_count() {
    let text = old("alpha:tank/many", 20).replace("@11-01", "@11-22");
    let plan = decide(&limited(50, [entry("alpha:tank/many", &[])]), &world(&text), utc(NOW));
    assert_eq!(plan.prunes.iter().map(|p| (p.destroy.len(), p.held_back)).collect::<Vec<_>>(), [(20, None)]);
}

#[test]
fn snapshots_of_all_policies_of_a_dataset_count_together() {
    let two = with(entry("alpha:tank/many", &[]), |e| {
        let mut other = e.policies[0].clone();
        (other.name, other.prefix) = ("sync".to_owned(), "C".parse().unwrap());
        e.policies.push(other);
    });
    let snapshots = |prefix: &str| (0..8).map(|n| format!("{prefix}@11-01T{n:02}:00 ")).collect::<String>();
    let text = format!("alpha:tank/many {}{}B@11-23T12:00 C@11-23T12:00", snapshots("B"), snapshots("C"));
    let plan = decide(&limited(50, [two]), &world(&text), utc(NOW));
    assert_eq!(plan.prunes.iter().map(|p| p.held_back).collect::<Vec<_>>(), [Some(HeldBack::TooMany); 2]);
}

#[test]
fn nothing_is_destroyed_where_the_clock_is_behind() {
    let policy = limited(50, [entry("alpha:tank/a", &[]), entry("beta:tank/a", &[]), entry("gamma:tank/a", &[])]);
    let mut inventory = world(&["alpha:tank/a", "beta:tank/a", "gamma:tank/a"].map(|name| old(name, 3)).join("\n"));
    let orders = |inventory: &Inventory| {
        let plan = decide(&policy, inventory, utc(NOW));
        assert_eq!(plan.orders(&policy), plan.approved_orders(&policy));
        let hosts: Vec<String> = plan.orders(&policy).iter().map(|order| order.host().to_string()).collect();
        (hosts, plan.notices.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(orders(&inventory).0, ["alpha", "beta", "gamma"]);
    let mut set = |host: &str, behind| {
        inventory.hosts.get_mut(&host.parse().unwrap()).unwrap().clock_behind = Some(Duration::from_secs(behind));
        inventory.clone()
    };
    set("gamma", 0);
    let (hosts, notices) = orders(&set("beta", 7200));
    assert_eq!(hosts, ["alpha", "gamma"]);
    assert_eq!(notices, ["beta has a clock that is 120 minutes behind the director's, so nothing is destroyed there"]);
    // The clock of alpha, which runs the director, is the wrong one.
    let (hosts, notices) = orders(&set("gamma", 7300));
    assert!(hosts.is_empty());
    assert_eq!(
        notices[0],
        "alpha loses no snapshot, because the director's clock is 120 minutes ahead of most other hosts' clocks"
    );
}

#[test]
fn all_entries_of_a_dataset_together_destroy_no_more_than_permitted() {
    let (first, mut second) = (entry("alpha:tank/many", &[]), entry("alpha:tank/many", &[]));
    second.policies[0].prefix = "C".parse().unwrap();
    let policy = limited(50, [first, second]);
    let snapshots = |prefix: &str, count: usize| -> String {
        (0..count).map(|n| format!(" {prefix}@11-{:02}T{:02}:00", 1 + n / 24, n % 24)).collect()
    };
    let text = format!("alpha:tank/many{}{} B@11-23T11:00 C@11-23T11:00", snapshots("B", 27), snapshots("C", 29));
    let mut inventory = world(&text);
    let of_plan = |plan: &Plan| -> Vec<usize> {
        plan.prunes.iter().filter(|p| p.held_back.is_none()).map(|p| p.destroy.len()).collect()
    };
    let plan = decide(&policy, &inventory, utc(NOW));
    assert_eq!(of_plan(&plan), [27], "29 more would be 56 of 58");

    // The director decides the second entry after it has carried out the first.
    let mut destroyed = Destroyed::default();
    for order in plan.orders(&policy).iter().filter(|order| matches!(order, Order::Destroy { .. })) {
        destroyed.add(order, &inventory, utc(NOW));
        predict(&mut inventory, std::slice::from_ref(order), utc(NOW));
    }
    let engine = Engine::new(&policy);
    let later = engine.decide_entry_after(1, &inventory, utc(NOW), &destroyed);
    assert_eq!(later.prunes.iter().map(|p| p.held_back).collect::<Vec<_>>(), [Some(HeldBack::TooMany)]);
    let next_pass = engine.decide_entry(1, &inventory, utc(NOW));
    assert_eq!(next_pass.prunes[0].held_back, Some(HeldBack::TooMany), "29 of 31");
}
