//! The simulation takes short cuts: here it is compared with a director that makes a pass every minute.

use super::*;
use crate::config::parse_policy;
use crate::model::{DatasetInventory, HostInventory};

fn world(places: &[(&str, &str)], from: DateTime<Utc>) -> Inventory {
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

/// Every minute, as the director does it.
fn minute_by_minute(policy: &Policy, inventory: Inventory, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<Day> {
    let mut future = Future::new(policy, inventory, from);
    let (mut days, mut day, mut now) = (Vec::new(), Day::new(local_date(policy, from)), from);
    let alive = |future: &Future<'_>, now| {
        let mut alive = BTreeMap::new();
        for PruneVerdict { subject, snapshots, .. } in &future.decide(now).prunes {
            *alive.entry(format!("{}:{}", subject.host, subject.dataset)).or_default() += snapshots.len();
        }
        alive
    };
    while now <= to {
        let date = local_date(policy, now);
        if date != day.date {
            day.alive = alive(&future, now - TimeDelta::minutes(1));
            days.push(std::mem::replace(&mut day, Day::new(date)));
        }
        for entry in 0..policy.datasets.len() {
            let played = future.play(entry, now);
            for order in played.takes.iter().chain(&played.sends).chain(&played.destroys) {
                match order {
                    Order::Take { datasets, .. } => day.takes += datasets.len(),
                    Order::Send { .. } => day.sends += 1,
                    Order::Destroy { snapshots, .. } => day.destroys += snapshots.len(),
                }
            }
        }
        now += TimeDelta::minutes(1);
    }
    day.alive = alive(&future, to);
    days.push(day);
    days
}

#[test]
fn the_days_are_those_of_a_pass_every_minute() {
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
    ];
    let places = [("a", "t"), ("a", "t/x"), ("a", "t/y"), ("b", ""), ("c", "")];
    // Over a night in which the clock is put back, and from amidst an hour.
    let from: DateTime<Utc> = "2026-10-23T10:17:00Z".parse().unwrap();
    let to = from + TimeDelta::days(4);
    for text in policies {
        let policy = parse_policy("server.json", text).unwrap_or_else(|error| panic!("{error}"));
        let quick = simulate(&policy, world(&places, from), from, to - from, |_, _| true);
        let slow = minute_by_minute(&policy, world(&places, from), from, to);
        assert_eq!(quick.days.len(), slow.len());
        for (quick, slow) in quick.days.iter().zip(&slow) {
            assert_eq!((quick.date, quick.takes, quick.sends), (slow.date, slow.takes, slow.sends));
            assert_eq!(quick.alive, slow.alive, "{}", slow.date);
        }
        // What was taken since the last step is not pruned before it is sent: a few more come and go.
        let destroys = |days: &[Day]| -> usize { days.iter().map(|day| day.destroys).sum() };
        let (quick, slow) = (destroys(&quick.days), destroys(&slow));
        assert!(quick >= slow && (quick - slow) * 50 <= slow, "{quick} {slow}");
    }
}

#[test]
fn a_filter_changes_what_is_told_and_not_what_happens() {
    let text = r#"{ "datasets": [ { "hostname": "a", "dataset": "t/x", "backup": { "prefix": "B", "creation": "0 * * * *",
        "sync_on": "b", "sync_dataset": "t/copy", "retention": ["3 in last day"], "sync_retention": ["5 in last day"] } } ] }"#;
    let policy = parse_policy("server.json", text).unwrap_or_else(|error| panic!("{error}"));
    let from: DateTime<Utc> = "2026-11-23T00:00:00Z".parse().unwrap();
    let play = |counts: fn(&HostName, &DatasetName) -> bool| {
        let inventory = world(&[("a", "t/x"), ("b", "")], from);
        simulate(&policy, inventory, from, TimeDelta::days(1), counts).days.remove(0)
    };
    let (all, there) = (play(|_, _| true), play(|host, _| host.as_str() == "b"));
    assert_eq!((all.takes, all.sends, all.destroys), (24, 24, 21 + 19));
    assert_eq!((there.takes, there.sends, there.destroys), (0, 0, 19));
    assert_eq!(there.alive, BTreeMap::from([("b:t/copy".to_owned(), 5)]));
}
