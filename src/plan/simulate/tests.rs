//! Tests that compare the simulation, which takes shortcuts, with a director that makes a pass every minute.

use super::*;
use crate::config::parse_policy;
use crate::model::{DatasetInventory, HostInventory};

fn inventory(places: &[(&str, &str)], from: DateTime<Utc>) -> Inventory {
    let mut inventory = Inventory::default();
    for (host, dataset) in places {
        let host = inventory.hosts.entry(host.parse().unwrap()).or_insert_with(HostInventory::default);
        host.observed = Some(from);
        if !dataset.is_empty() {
            host.datasets.insert(dataset.parse().unwrap(), DatasetInventory::default());
        }
    }
    inventory
}

/// Simulates a pass every minute, with the steps of the director.
fn minute_by_minute(policy: &Policy, inventory: Inventory, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<Day> {
    let mut fleet = PredictedFleet::new(policy, inventory, from);
    let (mut days, mut day, mut now) = (Vec::new(), Day::new(local_date(policy, from)), from);
    let alive = |fleet: &PredictedFleet<'_>, now| {
        let mut alive = BTreeMap::new();
        for PruneVerdict { subject, snapshots, .. } in &fleet.decide(now).prunes {
            *alive.entry(format!("{}:{}", subject.host, subject.dataset)).or_default() += snapshots.len();
        }
        alive
    };
    while now <= to {
        let date = local_date(policy, now);
        if date != day.date {
            day.alive = alive(&fleet, now - TimeDelta::minutes(1));
            days.push(std::mem::replace(&mut day, Day::new(date)));
        }
        for entry in 0..policy.datasets.len() {
            let orders = fleet.carry_out_entry(entry, now);
            for order in orders.takes.iter().chain(&orders.sends).chain(&orders.destroys) {
                match order {
                    Order::Take { datasets, .. } => day.takes += datasets.len(),
                    Order::Send { .. } => day.sends += 1,
                    Order::Destroy { snapshots, .. } => day.destroys += snapshots.len(),
                }
            }
        }
        now += TimeDelta::minutes(1);
    }
    day.alive = alive(&fleet, to);
    days.push(day);
    days
}

#[test]
fn simulate_agrees_with_a_pass_every_minute() {
    let policies = [
        r#"{ "timezone": "Europe/Paris", "datasets": [ { "hostname": "a", "dataset": "t/x",
            "backup": { "prefix": "B", "creation": "0 * * * *", "sync_on": "b", "sync_dataset": "t/copy", "sync_policy": "0 1 * * *",
                        "retention": ["12 in last day", "1/day in last week"], "sync_retention": ["1/day in last week"] },
            "sync": { "prefix": "S", "creation": "*/15 * * * *", "sync_on": "c", "sync_dataset": "t/live", "retention": ["12 in last day"] },
            "policies": { "hand": { "prefix": "H", "retention": ["all in last year"] } } } ] }"#,
        r#"{ "datasets": [
            { "hostname": "a", "dataset": "t", "recursive": true,
              "backup": { "prefix": "B", "creation": "*/20 9-17 * * *", "sync_on": "b", "sync_dataset": "u", "sync_policy": "30 */6 * * *",
                          "retention": ["2/hour in last day"], "sync_retention": ["1/day in last 2 days", "3 in last hour"] } },
            { "hostname": "b", "dataset": "u", "recursive": true,
              "policies": { "onward": { "prefix": "B", "sync_on": "c", "sync_dataset": "v" } } } ] }"#,
        // More snapshots than are decided about at every full hour.
        r#"{ "datasets": [ { "hostname": "a", "dataset": "t/x", "sync": { "prefix": "S", "creation": "* * * * *",
            "sync_on": "b", "sync_dataset": "u/x", "retention": ["1500 in last 2 days"] } } ] }"#,
    ];
    let places = [("a", "t"), ("a", "t/x"), ("a", "t/y"), ("b", ""), ("c", "")];
    // Begins within an hour, and includes a night in which the clock is put back.
    let from: DateTime<Utc> = "2026-10-23T10:17:00Z".parse().unwrap();
    let to = from + TimeDelta::days(4);
    for text in policies {
        let policy = parse_policy("server.json", text).unwrap_or_else(|error| panic!("{error}"));
        let quick = simulate(&policy, inventory(&places, from), from, to - from, |_, _| true);
        let slow = minute_by_minute(&policy, inventory(&places, from), from, to);
        assert_eq!(quick.days.len(), slow.len());
        for (quick, slow) in quick.days.iter().zip(&slow) {
            assert_eq!((quick.date, quick.takes, quick.sends), (slow.date, slow.takes, slow.sends));
            assert_eq!(quick.alive, slow.alive, "{}", slow.date);
        }
        // Snapshots taken since the last step are not pruned before they are sent, so a few more arrive at the
        // destination and are destroyed there.
        let destroys = |days: &[Day]| -> usize { days.iter().map(|day| day.destroys).sum() };
        let (quick, slow) = (destroys(&quick.days), destroys(&slow));
        assert!(quick >= slow && (quick - slow) * 50 <= slow, "{quick} {slow}");
    }
}

#[test]
fn a_filter_changes_only_the_counts() {
    let text = r#"{ "datasets": [ { "hostname": "a", "dataset": "t/x", "backup": { "prefix": "B", "creation": "0 * * * *",
        "sync_on": "b", "sync_dataset": "t/copy", "retention": ["3 in last day"], "sync_retention": ["5 in last day"] } } ] }"#;
    let policy = parse_policy("server.json", text).unwrap_or_else(|error| panic!("{error}"));
    let from: DateTime<Utc> = "2026-11-23T00:00:00Z".parse().unwrap();
    let first_day = |is_shown: fn(&HostName, &DatasetName) -> bool| {
        let inventory = inventory(&[("a", "t/x"), ("b", "")], from);
        simulate(&policy, inventory, from, TimeDelta::days(1), is_shown).days.remove(0)
    };
    let (all, there) = (first_day(|_, _| true), first_day(|host, _| host.as_str() == "b"));
    assert_eq!((all.takes, all.sends, all.destroys), (24, 24, 21 + 19));
    assert_eq!((there.takes, there.sends, there.destroys), (0, 0, 19));
    assert_eq!(there.alive, BTreeMap::from([("b:t/copy".to_owned(), 5)]));
}
