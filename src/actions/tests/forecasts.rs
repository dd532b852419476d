//! Compares forecasts with what then happens: in random worlds, datasets are sent to several destinations over links
//! that are often too slow, one transfer at a time for each dataset, the one with the least slack first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::actions::Durations;
use crate::actions::health::{Finding, Severity, Underway, health};

/// How often something begins or ends, and a forecast is made.
const TICK: TimeDelta = TimeDelta::seconds(30);
/// How far a forecast of when a snapshot arrives may be wrong. A transfer begins and ends at a tick.
const TOLERANCE: TimeDelta = TimeDelta::seconds(60);
const WORLDS: u64 = 40;
const TICKS: i32 = 3 * 120;
/// How many ticks there are between two slots of the most frequent schedule.
const TICKS_PER_SLOT: i32 = 10;

/// A source of choices: SplitMix64.
struct Choices(u64);

impl Choices {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A dataset with the place to which it is sent.
type Link = (DatasetName, Place);

struct Running {
    order: Order,
    link: Link,
    began: DateTime<Utc>,
    ends: DateTime<Utc>,
}

/// What was forecast for a link: when the limit is exceeded, and when the next snapshot arrives.
type Forecast = (DateTime<Utc>, DateTime<Utc>);

/// Plays one world. Returns how many limits were exceeded, and how many forecasts came true.
fn play(seed: u64) -> (usize, usize) {
    let mut choices = Choices(seed);
    let source = "alpha".parse::<HostName>().unwrap();
    let (mut entries, mut takes) = (Vec::new(), BTreeMap::new());
    for number in 0..1 + choices.below(3) {
        let dataset = format!("tank/d{number}");
        let targets: Vec<String> = ["beta", "gamma", "delta"][..1 + choices.below(3) as usize]
            .iter()
            .map(|h| format!("{h}:pool/d{number}"))
            .collect();
        for target in &targets {
            // Steady, but not the same for all.
            let ticks = 1 + choices.below(16) as i32;
            takes.insert((dataset.parse::<DatasetName>().unwrap(), place(target)), TICK * ticks);
        }
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let schedule = ["*/5 * * * *", "*/10 * * * *", "*/15 * * * *"][choices.below(3) as usize];
        let limit = Duration::from_secs(60 * (10 + choices.below(30)));
        entries.push(with_policy(entry(&format!("alpha:{dataset}"), &targets), |p| {
            (p.creation, p.lag) = (Some(schedule.parse().unwrap()), Some(limit));
            // Every decision costs the more, the more snapshots there are.
            let few = crate::policy::Retention::parse(&["2 in last day"]).unwrap();
            (p.retention, p.sync_retention) = (Some(few.clone()), Some(few));
        }));
    }
    let policy = policy(entries);
    let datasets: BTreeSet<&DatasetName> = takes.keys().map(|(dataset, _)| dataset).collect();
    let lines: Vec<String> = datasets.iter().map(|dataset| format!("alpha:{dataset}")).collect();
    let mut inventory = world(&(lines.join("\n") + "\nbeta\ngamma\ndelta"));
    let (mut durations, mut running): (Durations, Vec<Running>) = (Durations::default(), Vec::new());
    let mut sent: BTreeMap<Link, usize> = BTreeMap::new();
    // What was forecast last, and every arrival that was forecast and has not come.
    let mut forecasts: BTreeMap<Link, Forecast> = BTreeMap::new();
    let mut awaited: BTreeMap<Link, Vec<DateTime<Utc>>> = BTreeMap::new();
    let mut exceeded: BTreeSet<Link> = BTreeSet::new();
    let (mut missed, mut true_ones) = (0, 0);
    let mut now = utc("11-23T10:00");
    for tick in 0..TICKS {
        let (ended, still): (Vec<Running>, Vec<Running>) =
            running.into_iter().partition(|transfer| transfer.ends <= now);
        running = still;
        // Nothing becomes due but at a slot or after a transfer.
        let is_slot = tick % TICKS_PER_SLOT == 0;
        let has_changed = is_slot || !ended.is_empty();
        for Running { order, link, began, .. } in ended {
            assert_eq!(predict(&mut inventory, std::slice::from_ref(&order), now), [true]);
            durations.add(
                source.clone(),
                link.0.clone(),
                link.1.clone(),
                (now - began).num_milliseconds() as f64 / 1000.0,
            );
            *sent.entry(link.clone()).or_default() += 1;
            for arrives in awaited.remove(&link).unwrap_or_default() {
                assert!(
                    (arrives - now).abs() <= TOLERANCE,
                    "world {seed} at {now}: {link:?} was expected at {arrives}"
                );
            }
            if let Some((at, _)) = forecasts.remove(&link) {
                assert!(at < now, "world {seed} at {now}: {link:?} was forecast to be late at {at}");
                true_ones += 1;
            }
        }
        if is_slot {
            let orders = decide(&policy, &inventory, now).orders(&policy);
            let others = |order: &Order| !matches!(order, Order::Send { .. });
            predict(&mut inventory, &orders.into_iter().filter(others).collect::<Vec<_>>(), now);
        }
        if has_changed {
            let mut due: Vec<(Turn, Order, Link)> = Vec::new();
            for order in decide(&policy, &inventory, now).orders(&policy) {
                let Order::Send { dataset, to, oldest_unsent, deadline, .. } = &order else { continue };
                let link = (dataset.clone(), to.clone());
                let expected = durations.expected(&source, dataset, to).unwrap_or_default();
                let start_by = deadline.map(|deadline| deadline - TimeDelta::from_std(expected).unwrap());
                due.push((Turn::new(*oldest_unsent, start_by), order, link));
            }
            due.sort_by_key(|(turn, ..)| *turn);
            for (_, order, link) in due {
                if running.iter().all(|transfer| transfer.link.0 != link.0) {
                    let ends = now + takes[&link];
                    running.push(Running { order, link, began: now, ends });
                }
            }
        }
        let mut health = health(&policy, &inventory, &Default::default(), now);
        health.forecast(&policy, &durations, |row| {
            let is_this =
                |transfer: &&Running| transfer.link.0 == row.dataset && Some(&transfer.link.1) == row.to.as_ref();
            let transfer = running.iter().find(is_this)?;
            Some(Underway { elapsed: (now - transfer.began).to_std().unwrap(), left: None })
        });
        for row in &health.rows {
            let Some(to) = &row.to else { continue };
            let link = (row.dataset.clone(), to.clone());
            // The first transfers say nothing yet, nor does what the other destinations wait for.
            let is_known =
                takes.keys().filter(|(of, _)| *of == link.0).all(|link| sent.get(link).is_some_and(|n| *n > 2));
            let is_old =
                |finding: &Finding| matches!(finding, Finding::ReplicaOld { severity: Severity::Critical, .. });
            if !row.findings.iter().any(is_old) {
                exceeded.remove(&link);
            } else if exceeded.insert(link.clone()) && is_known {
                missed += 1;
                assert!(
                    forecasts.contains_key(&link),
                    "world {seed} at {now}: {link:?} is late, which was not forecast"
                );
            }
            if !is_known {
                continue;
            }
            if let (Some(seconds), Some(since)) = (row.forecast_seconds, row.fresh_since) {
                awaited.entry(link.clone()).or_default().push(since + TimeDelta::seconds(seconds));
            }
            for finding in &row.findings {
                if let Finding::ReplicaLate { at, arrives, .. } = finding {
                    forecasts.insert(link.clone(), (*at, *arrives));
                }
            }
        }
        now += TICK;
    }
    (missed, true_ones)
}

#[test]
fn what_is_forecast_happens_and_nothing_is_late_that_was_not_forecast() {
    let (mut missed, mut true_ones) = (0, 0);
    for seed in 0..WORLDS {
        let (of_world, forecast) = play(seed);
        missed += of_world;
        true_ones += forecast;
    }
    assert!(missed > 10 && true_ones > 10, "{missed} {true_ones}: otherwise the worlds prove little");
}
