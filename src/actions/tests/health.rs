//! Tests of the health report: a table of states, with the findings that follow from each.

use std::time::Duration;

use super::*;
use crate::actions::Durations;
use crate::actions::health::{Health, Severity, Underway, health};

fn evaluated(policy: &Policy, world_text: &str, now: &str) -> Health {
    health(policy, &world(world_text), &Default::default(), utc(now))
}

fn found(health: &Health) -> Vec<String> {
    let rows = health.rows.iter().flat_map(|row| &row.findings);
    let findings = health.hosts.iter().flat_map(|host| &host.findings).chain(rows);
    findings.map(|finding| format!("{}: {finding}", finding.severity())).collect()
}

/// It is 12:30 on 11-23.
#[test]
fn findings_follow_schedules_and_thresholds() {
    let hours = |n: u64| Some(Duration::from_secs(n * 3600));
    let hourly = || policy([entry("alpha:tank/foo", &["beta:tank/copy"])]);
    let checked =
        |check: Thresholds| policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| p.check = check)]);
    let ages = Thresholds { warn_age: hours(1), crit_age: hours(3), ..Thresholds::default() };
    let sync_ages = Thresholds { sync_warn_age: hours(1), sync_crit_age: hours(3), ..Thresholds::default() };
    let few = Thresholds { max_snapshots: Some(1), ..Thresholds::default() };
    let held = Thresholds { max_held: hours(1), ..Thresholds::default() };
    let lag = policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| p.lag = hours(2))]);
    let days = policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| p.lag = hours(48))]);
    for (policy, source, destination, expected) in [
        // The limit of the policy counts from the newest replica, whether or not something is unsent.
        (
            lag.clone(),
            "B@11-23T10:00 B@11-23T12:00",
            "beta:tank/copy B@11-23T10:00",
            vec!["CRITICAL: the replica lags 2h 30m behind (limit 2h, 1 unsent)"],
        ),
        (lag, "B@11-23T11:00 B@11-23T12:00", "beta:tank/copy B@11-23T11:00", vec![]),
        // It leaves the schedule's warning, but not what is critical by the schedule.
        (
            days.clone(),
            "B@11-23T08:00 B@11-23T10:00 B@11-23T12:00",
            "beta:tank/copy B@11-23T08:00",
            vec!["WARNING: the replica lags 2h 30m behind (limit 1h 30m, 2 unsent)"],
        ),
        (
            days,
            "B@11-23T07:00 B@11-23T08:00 B@11-23T12:00",
            "beta:tank/copy B@11-23T07:00",
            vec!["WARNING: the replica lags 4h 30m behind (limit 1h 30m, 2 unsent)"],
        ),
        // Limits by the schedule: one slot (12:00) may be missing, two are a warning, four are critical.
        (hourly(), "B@11-23T12:00", "beta:tank/copy B@11-23T12:00", vec![]),
        (hourly(), "B@11-23T11:00", "beta:tank/copy B@11-23T11:00", vec![]),
        (
            hourly(),
            "B@11-23T10:00",
            "beta:tank/copy B@11-23T10:00",
            vec!["WARNING: the newest snapshot is 2h 30m old (limit 1h 30m)"],
        ),
        (
            hourly(),
            "B@11-23T08:00",
            "beta:tank/copy B@11-23T08:00",
            vec!["CRITICAL: the newest snapshot is 4h 30m old (limit 3h 30m)"],
        ),
        (hourly(), "", "beta:tank/copy", vec!["WARNING: there is no snapshot of this policy"]),
        // A NotWritten mark counts as a snapshot.
        (hourly(), "B@11-23T08:00 -B@11-23T12:00", "beta:tank/copy B@11-23T08:00", vec![]),
        // The lag is the age of the oldest unsent snapshot.
        (hourly(), "B@11-23T08:00 B@11-23T12:00", "beta:tank/copy B@11-23T08:00", vec![]),
        (
            hourly(),
            "B@11-23T08:00 B@11-23T10:00 B@11-23T12:00",
            "beta:tank/copy B@11-23T08:00",
            vec!["WARNING: the replica lags 2h 30m behind (limit 1h 30m, 2 unsent)"],
        ),
        (
            hourly(),
            "B@11-23T07:00 B@11-23T08:00 B@11-23T12:00",
            "beta",
            vec!["CRITICAL: the replica lags 5h 30m behind (limit 3h 30m, 3 unsent)"],
        ),
        // Snapshots older than the common point, here a bookmark, do not count as unsent.
        (hourly(), "B@11-23T05:00 #B@11-23T11:00 B@11-23T12:00", "beta:tank/copy B@11-23T11:00", vec![]),
        // Snapshots that only the destination has matter as soon as there is something to send.
        (
            hourly(),
            "B@11-23T11:00 B@11-23T12:00",
            "beta:tank/copy B@11-23T11:00 own",
            vec![
                "CRITICAL: diverged: only the destination has @own; the newest common snapshot is @B_2026-11-23_11:00:00",
            ],
        ),
        (
            hourly(),
            "B@11-23T12:00",
            "beta:tank/copy own",
            vec!["CRITICAL: diverged: only the destination has @own, and no snapshot is in common"],
        ),
        (hourly(), "B@11-23T12:00", "beta:tank/copy B@11-23T12:00 own", vec![]),
        (hourly(), "B@11-23T12:00", "beta?", vec!["UNKNOWN: has never been listed"]),
        // Limits by configured thresholds.
        (
            checked(ages),
            "B@11-23T11:00",
            "beta:tank/copy B@11-23T11:00",
            vec!["WARNING: the newest snapshot is 1h 30m old (limit 1h)"],
        ),
        (
            checked(ages),
            "B@11-23T09:00",
            "beta:tank/copy B@11-23T09:00",
            vec!["CRITICAL: the newest snapshot is 3h 30m old (limit 3h)"],
        ),
        (
            checked(sync_ages),
            "B@11-23T11:00 B@11-23T12:00",
            "beta:tank/copy B@11-23T11:00",
            vec!["WARNING: the replica lags 1h 30m behind (limit 1h, 1 unsent)"],
        ),
        (checked(sync_ages), "B@11-23T11:00 -B@11-23T12:00", "beta:tank/copy B@11-23T11:00", vec![]),
        (
            checked(few),
            "B@11-23T11:00 B@11-23T12:00",
            "beta:tank/copy B@11-23T11:00 B@11-23T12:00",
            vec!["WARNING: 2 snapshots (limit 1)", "WARNING: 2 snapshots there (limit 1)"],
        ),
        (
            checked(held),
            "B@11-23T10:00! B@11-23T11:00! B@11-23T12:00",
            "beta:tank/copy B@11-23T10:00! B@11-23T12:00",
            vec!["WARNING: the held snapshot @B_2026-11-23_10:00:00 is 2h 30m old (limit 1h)"],
        ),
    ] {
        let text = format!("alpha:tank/foo {source}\n{destination}");
        let health = evaluated(&policy, &text, "11-23T12:30");
        assert_eq!(found(&health), expected, "{text}");
        let worst = expected
            .iter()
            .map(|e| e.split(':').next().unwrap())
            .min_by_key(|name| ["CRITICAL", "WARNING", "UNKNOWN"].iter().position(|n| n == name));
        assert_eq!(health.severity.to_string(), worst.unwrap_or("OK"), "{text}");
    }
}

/// It is 12:30 on 11-23, snapshots are taken each hour, and the newest one on the destination may be two hours old.
#[test]
fn forecast_tells_which_destination_will_exceed_its_limit() {
    let minutes = |n: u64| Duration::from_secs(n * 60);
    let lag = |sync: SyncPolicy| {
        policy([with_policy(entry("alpha:tank/foo", &["beta:tank/copy"]), |p| {
            (p.lag, p.sync_policy) = (Some(minutes(120)), sync.clone());
        })])
    };
    let (asap, at_two) = (lag(SyncPolicy::Asap), lag("0 14 * * *".parse().unwrap()));
    let (behind, current) = ("B@11-23T11:00 B@11-23T12:00", "B@11-23T12:00");
    let late = |at: &str, arrives: &str| {
        vec![format!(
            "WARNING: the replica will exceed its limit of 2h at 2026-11-23T{at}:00Z: the next one is expected at 2026-11-23T{arrives}:00Z"
        )]
    };
    let running = |elapsed, left: Option<u64>| Some(Underway { elapsed: minutes(elapsed), left: left.map(minutes) });
    for (policy, source, there, took, underway, age, expected) in [
        // The copy of 11:00 may be two hours old at 13:00.
        (&asap, behind, "B@11-23T11:00", &[20, 20][..], None, Some(110), vec![]),
        (&asap, behind, "B@11-23T11:00", &[40, 40], None, Some(130), late("13:00", "13:10")),
        // The first copy took long, and too little is known of the next ones.
        (&asap, behind, "B@11-23T11:00", &[4000], None, None, vec![]),
        (&asap, behind, "B@11-23T11:00", &[4000, 20], None, Some(110), vec![]),
        // A transfer is running.
        (&asap, behind, "B@11-23T11:00", &[40, 40], running(30, None), Some(100), vec![]),
        (&asap, behind, "B@11-23T11:00", &[], running(30, None), None, vec![]),
        (&asap, behind, "B@11-23T11:00", &[20, 20], running(10, Some(50)), Some(140), late("13:00", "13:20")),
        // The next snapshot is that of 13:00.
        (&asap, current, current, &[30, 30], None, Some(90), vec![]),
        (&asap, current, current, &[70, 70], None, Some(130), late("14:00", "14:10")),
        // That of 12:00 was not taken yet.
        (&asap, "B@11-23T11:00", "B@11-23T11:00", &[20, 20], None, Some(110), vec![]),
        // It is sent at 14:00.
        (&at_two, behind, "B@11-23T11:00", &[1, 1], None, Some(181), late("13:00", "14:01")),
    ] {
        let world = format!("alpha:tank/foo {source}\nbeta:tank/copy {there}");
        let mut health = evaluated(policy, &world, "11-23T12:30");
        let mut durations = Durations::default();
        let (from, to) = (place("alpha:tank/foo"), place("beta:tank/copy"));
        for took in took {
            durations.add(from.host.clone(), from.dataset.clone(), to.clone(), f64::from(*took) * 60.0);
        }
        health.forecast(policy, &durations, |_| underway);
        assert_eq!(health.rows[0].forecast_seconds.map(|seconds| seconds / 60), age, "{world} {took:?} {underway:?}");
        assert_eq!(found(&health), expected, "{world} {took:?} {underway:?}");
    }
    // What exceeds the limit already is reported only once.
    let mut health =
        evaluated(&asap, "alpha:tank/foo B@11-23T10:00 B@11-23T12:00\nbeta:tank/copy B@11-23T10:00", "11-23T12:30");
    health.forecast(&asap, &Durations::default(), |_| running(1, Some(9)));
    assert_eq!(found(&health), ["CRITICAL: the replica lags 2h 30m behind (limit 2h, 1 unsent)"]);
}

#[test]
fn source_finding_appears_once_for_several_destinations() {
    let policy = policy([entry("alpha:tank/foo", &["beta:tank/copy", "gamma:tank/copy"])]);
    let health = evaluated(&policy, "alpha:tank/foo\nbeta\ngamma", "11-23T12:30");
    assert_eq!(health.rows.len(), 2);
    assert_eq!(found(&health), ["WARNING: there is no snapshot of this policy"]);
}

#[test]
fn receiving_dataset_needs_no_snapshots_of_its_own() {
    let policy = policy([entry("alpha:tank/foo", &["beta:tank/copy"]), entry("beta:tank/copy", &["gamma:tank/copy"])]);
    let world = "alpha:tank/foo B@11-23T12:00\nbeta:tank/copy B@11-23T12:00\ngamma:tank/copy B@11-23T12:00";
    assert_eq!(evaluated(&policy, world, "11-23T12:30").severity, Severity::Ok);
}

#[test]
fn unreachable_host_is_a_warning_with_time_of_last_listing() {
    let policy = policy([entry("alpha:tank/foo", &["beta:tank/copy"])]);
    let world = world("alpha:tank/foo B@11-23T12:00\nbeta:tank/copy B@11-23T12:00");
    let unseen = [("beta".parse().unwrap(), "refused".to_owned())].into();
    let health = health(&policy, &world, &unseen, utc("11-23T12:30"));
    assert_eq!(found(&health), ["WARNING: unreachable, last listed 2026-11-23T00:00:00Z: refused"]);
    assert_eq!(health.rows[0].observed, Some(utc("11-23T00:00")));
}

#[test]
fn missing_dataset_is_critical() {
    let policy = policy([entry("alpha:tank/missing", &[])]);
    let health = evaluated(&policy, "alpha:tank/foo", "11-23T12:30");
    assert_eq!(health.severity, Severity::Critical);
    assert!(health.notices[0].to_string().contains("does not exist"), "{:?}", health.notices);
}

#[test]
fn narrowed_report_has_severity_of_its_rows() {
    let policy = policy([entry("alpha:tank/foo", &["beta:tank/copy"]), entry("gamma:tank/old", &[])]);
    let text = "alpha:tank/foo B@11-23T12:00\nbeta:tank/copy B@11-23T12:00\ngamma:tank/old B@11-22T12:00";
    let health = evaluated(&policy, text, "11-23T12:30");
    assert_eq!(health.severity, Severity::Critical);
    let narrowed = |host: Option<&str>, dataset: Option<&str>| {
        let mut health = health.clone();
        let (host, dataset) = (host.map(|h| h.parse().unwrap()), dataset.map(|d| d.parse().unwrap()));
        health.narrow(host.as_ref(), dataset.as_ref());
        (health.severity, health.rows.len(), health.hosts.len())
    };
    assert_eq!(narrowed(Some("beta"), None), (Severity::Ok, 1, 1));
    assert_eq!(narrowed(Some("gamma"), None), (Severity::Critical, 1, 1));
    assert_eq!(narrowed(None, Some("tank/foo")), (Severity::Ok, 1, 2));
    assert_eq!(narrowed(None, Some("tank/copy")), (Severity::Ok, 1, 2));
}

#[test]
fn director_that_makes_no_passes_is_found() {
    let now = "11-23T12:30";
    let policy = policy([entry("alpha:tank/foo", &[])]);
    for (ended, severity) in
        [("11-22T12:00", Severity::Ok), ("11-22T11:00", Severity::Warning), ("08-23T12:00", Severity::Critical)]
    {
        let mut health = evaluated(&policy, "alpha:tank/foo B@11-23T12:00", now);
        health.judge_pass(utc(ended));
        assert_eq!(health.severity, severity, "{ended}");
        let found: Vec<_> = health.findings().into_iter().map(|(_, text)| text).collect();
        assert_eq!(found.len(), usize::from(severity != Severity::Ok), "{found:?}");
        assert!(found.iter().all(|text| text.starts_with("the director's last pass ended ")), "{found:?}");
    }
}
