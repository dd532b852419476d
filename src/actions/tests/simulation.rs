//! Simulates three years, hour by hour, and checks at every step that all snapshots exist that the rules promise to
//! keep.
//!
//! The check is independent of the engine. It records every snapshot that was ever taken or received: for each rule and
//! calendar period, the newest N must exist if they lie in the window.

use std::collections::{BTreeMap, HashSet};

use crate::policy::Zone;

use super::*;

/// The promise of one rule about all snapshots that a dataset ever had.
struct Promise {
    count: usize,
    /// The period as a `strftime` format; empty for a rule without a period.
    period: &'static str,
    window: TimeDelta,
    /// The newest `count` of each period, in order of arrival. The keys sort by time.
    newest: BTreeMap<String, Vec<(Guid, DateTime<Utc>)>>,
}

impl Promise {
    fn new(rule: &str) -> Self {
        let retention = rules(&[rule]).unwrap();
        let window = retention.rules()[0].window();
        let first = rule.split(' ').next().unwrap();
        let (count, period) = first.split_once('/').unwrap_or((first, ""));
        let period = match period {
            "" => "",
            "hour" => "%Y-%m-%dT%H%z",
            "day" => "%Y-%m-%d",
            "week" => "%G-%V",
            "month" => "%Y-%m",
            "year" => "%Y",
            other => panic!("{other}"),
        };
        Self { count: count.parse().unwrap_or(usize::MAX), period, window, newest: BTreeMap::new() }
    }

    fn add(&mut self, guid: Guid, creation: DateTime<Utc>, tz: Zone) {
        let period = creation.with_timezone(&tz).format(self.period).to_string();
        let newest = self.newest.entry(period).or_default();
        newest.push((guid, creation));
        if newest.len() > self.count {
            newest.remove(0);
        }
    }

    /// Asserts that all promised snapshots exist, and drops periods that the window has left for good.
    fn check(&mut self, there: &HashSet<Guid>, now: DateTime<Utc>, says: &dyn Fn() -> String) {
        self.newest.retain(|period, newest| {
            let mut in_window = newest.iter().filter(|(_, creation)| now - *creation <= self.window).peekable();
            let any = in_window.peek().is_some();
            for (guid, creation) in in_window {
                assert!(there.contains(guid), "{}: at {now}, {period} lacks the one of {creation}", says());
            }
            any
        });
    }
}

/// A generator of random numbers, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

struct Scenario {
    tz: Zone,
    creation: &'static str,
    sync_policy: &'static str,
    retention: &'static [&'static str],
    sync_retention: &'static [&'static str],
    /// Whether hosts and the director are down now and then, for hours or days.
    outages: bool,
    /// Whether the clocks of source and director are wrong now and then, by up to some hours.
    clock_steps: bool,
    seed: u64,
}

const ALPHA: &str = "alpha:tank/foo";
const BETA: &str = "beta:tank/copy";

/// Runs a scenario, and returns how many snapshots were taken, sent, and destroyed.
fn play(scenario: &Scenario) -> (usize, usize, usize) {
    let Scenario { tz, .. } = *scenario;
    let mut policy = policy([with_policy(entry(ALPHA, &[BETA]), |p| {
        p.creation = Some(scenario.creation.parse().unwrap());
        p.sync_policy = scenario.sync_policy.parse().unwrap();
        p.retention = rules(scenario.retention);
        p.sync_retention = rules(scenario.sync_retention);
    })]);
    policy.timezone = tz;
    let engine = Engine::new(&policy);
    let mut inventory = world("alpha:tank/foo\nbeta");
    let mut promises = [
        scenario.retention.iter().map(|r| Promise::new(r)).collect::<Vec<_>>(),
        scenario.sync_retention.iter().map(|r| Promise::new(r)).collect::<Vec<_>>(),
    ];
    let places = [place(ALPHA), place(BETA)];
    let mut known: [HashSet<Guid>; 2] = Default::default();
    let (mut taken, mut sent, mut destroyed) = (0, 0, 0);
    let mut dice = Dice(scenario.seed);
    let (mut director_away, mut beta_away) = (0, 0);
    let (mut host_ahead, mut director_ahead) = (TimeDelta::zero(), TimeDelta::zero());
    let mut latest = DateTime::<Utc>::MIN_UTC;

    let start = utc("2026-11-23T00:00:07Z");
    for hour in 0..3 * 366 * 24 {
        let real = start + TimeDelta::hours(hour);
        if scenario.outages {
            let away = |left: &mut u64, dice: &mut Dice| {
                *left = left.saturating_sub(1);
                if *left == 0 && dice.below(300) == 0 {
                    *left = 1 + [3, 20, 24 * 10][dice.below(3) as usize] * (1 + dice.below(2));
                }
            };
            away(&mut director_away, &mut dice);
            away(&mut beta_away, &mut dice);
        }
        if scenario.clock_steps && dice.below(200) == 0 {
            host_ahead = TimeDelta::minutes([0, 0, 7, -7, 90, -200, 60 * 30][dice.below(7) as usize]);
            director_ahead = TimeDelta::minutes([0, 0, 3, -3, 150, -90][dice.below(6) as usize]);
        }
        if director_away > 0 {
            continue;
        }
        let now = real + director_ahead;
        latest = latest.max(now);
        let orders = engine.decide(&inventory, now).orders(&policy);
        for order in &orders {
            let (is_beta, at) = match order {
                Order::Take { .. } => (false, real + host_ahead),
                Order::Send { .. } => (true, now),
                Order::Destroy { host, .. } => (host.as_str() == "beta", now),
            };
            if is_beta && beta_away > 0 {
                continue;
            }
            predict(&mut inventory, std::slice::from_ref(order), at);
            match order {
                Order::Take { .. } => taken += 1,
                Order::Send { .. } => sent += 1,
                Order::Destroy { snapshots, .. } => destroyed += snapshots.len(),
            }
        }
        // Record the new snapshots in order of arrival, then check the promises.
        for ((place, promises), known) in places.iter().zip(&mut promises).zip(&mut known) {
            let Some(dataset) = inventory.dataset(&place.host, &place.dataset) else { continue };
            for snapshot in &dataset.snapshots {
                if known.insert(snapshot.guid) {
                    promises.iter_mut().for_each(|p| p.add(snapshot.guid, snapshot.creation, tz));
                }
            }
            let there: HashSet<Guid> = dataset.snapshots.iter().map(|s| s.guid).collect();
            for (i, promise) in promises.iter_mut().enumerate() {
                promise.check(&there, latest, &|| format!("rule {i} of {}:{}", place.host, place.dataset));
            }
        }
        let there = |p: &Place| inventory.dataset(&p.host, &p.dataset);
        if let (Some(source), Some(copy)) = (there(&places[0]), there(&places[1])) {
            let newest = copy.newest().unwrap();
            assert!(source.by_guid(newest.guid).is_some(), "at {now}: the base is gone");
        }
    }
    // No snapshot is kept without a reason: it lies in the window of a rule, or is protected.
    let plan = engine.decide(&inventory, latest);
    for prune in &plan.prunes {
        let dataset = inventory.dataset(&prune.subject.host, &prune.subject.dataset).unwrap();
        assert_eq!(prune.snapshots.len(), dataset.snapshots.len());
        assert!(dataset.snapshots.len() < 400, "{} pile up", dataset.snapshots.len());
    }
    (taken, sent, destroyed)
}

const DESIGN: &[&str] = &["24 in last day", "1/day in last week", "1/week in last month", "1/month in last year"];
const DESIGN_SYNC: &[&str] = &["1/day in last month", "1/month in last 5 years"];

#[test]
fn promises_hold_for_three_undisturbed_years_in_berlin() {
    let (taken, sent, destroyed) = play(&Scenario {
        tz: "Europe/Berlin".parse().unwrap(),
        creation: "0 * * * *",
        sync_policy: "asap",
        retention: DESIGN,
        sync_retention: DESIGN_SYNC,
        outages: false,
        clock_steps: false,
        seed: 1,
    });
    assert_eq!(taken, 3 * 366 * 24, "one snapshot an hour, even on days on which the clock changes");
    assert!(sent >= taken - 1 && destroyed > 50_000, "{sent} {destroyed}");
}

#[test]
fn promises_hold_with_outages_and_late_sends_on_lord_howe() {
    let (taken, sent, destroyed) = play(&Scenario {
        tz: "Australia/Lord_Howe".parse().unwrap(),
        creation: "*/20 * * * *",
        sync_policy: "0 1 * * *",
        retention: &["5 in last 6 hours", "2/hour in last day", "3/week in last 3 months", "1/year in last 2 years"],
        sync_retention: &["7/week in last 2 months", "2/month in last year"],
        outages: true,
        clock_steps: false,
        seed: 2,
    });
    assert!(taken > 10_000 && sent > 300 && destroyed > 10_000, "{taken} {sent} {destroyed}");
}

#[test]
fn promises_hold_with_wrong_clocks_in_new_york() {
    let (taken, sent, destroyed) = play(&Scenario {
        tz: "America/New_York".parse().unwrap(),
        creation: "30 */2 * * *",
        sync_policy: "asap",
        retention: DESIGN,
        sync_retention: &["all in last 3 days", "1/day in last 2 weeks", "1/year in last 9 years"],
        outages: true,
        clock_steps: true,
        seed: 3,
    });
    assert!(taken > 4_000 && sent > 3_000 && destroyed > 5_000, "{taken} {sent} {destroyed}");
}

/// Windows shorter than the periods of other rules, and unusual combinations of rules.
#[test]
fn promises_hold_for_unusual_rules() {
    let (taken, sent, destroyed) = play(&Scenario {
        tz: "Europe/Berlin".parse().unwrap(),
        creation: "15 1,2,3,14 * * *",
        sync_policy: "30 */6 * * mon-fri",
        retention: &["1/month in last week", "2 in last 90 minutes", "1/week in last 4 days", "4/year in last month"],
        sync_retention: &["1/year in last 400 days", "3/day in last 2 days"],
        outages: true,
        clock_steps: false,
        seed: 4,
    });
    assert!(taken > 2_000 && sent > 300 && destroyed > 1_000, "{taken} {sent} {destroyed}");
}
