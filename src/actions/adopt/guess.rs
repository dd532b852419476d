//! Guesses the schedule by which snapshots were taken, and rules that keep all that exist.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, TimeDelta, Timelike, Utc};

use crate::policy::{Retention, Schedule, Zone};

/// How many of the newest snapshots show the schedule. Older ones have been thinned out.
const SHOWN: usize = 60;
/// What part of them has to be on a schedule, in percent.
const MOST: usize = 80;
/// On how many whole days the same hours have to occur, so that they are the schedule.
const DAYS: usize = 3;
const HOUR: i64 = 60;
const DAY: i64 = 24 * HOUR;

/// The schedule that is evident from the times of snapshots, in UTC; `None` if there are too few.
pub(super) fn schedule(times: &BTreeSet<DateTime<Utc>>) -> Option<Schedule> {
    // Slots are whole minutes.
    let times: Vec<DateTime<Utc>> = times.iter().rev().filter(|t| t.second() == 0).take(SHOWN).copied().collect();
    let newest = times.first()?;
    if let Some(of_hours) = certain_hours(&times) {
        return Some(of_hours);
    }
    let mut steps: BTreeMap<i64, usize> = BTreeMap::new();
    for pair in times.windows(2) {
        *steps.entry((pair[0] - pair[1]).num_minutes()).or_default() += 1;
    }
    // What occurs most often counts, and the shorter of two: nothing is taken while nothing is written.
    let mut steps: Vec<(i64, usize)> = steps.into_iter().collect();
    steps.sort_by_key(|(step, count)| (std::cmp::Reverse(*count), *step));
    let possible: Vec<Schedule> = steps.iter().filter_map(|(step, _)| every(*step, *newest, &times)).collect();
    let fits = |schedule: &&Schedule| share_on(schedule, &times) >= MOST;
    possible.iter().find(fits).or(possible.first()).cloned()
}

/// What part of the times are slots of a schedule, in percent.
fn share_on(schedule: &Schedule, times: &[DateTime<Utc>]) -> usize {
    let on = times.iter().filter(|at| schedule.last_slot(Zone::UTC, **at) == Some(**at)).count();
    on * 100 / times.len().max(1)
}

/// The schedule of the same few hours every day, if several whole days show them.
fn certain_hours(times: &[DateTime<Utc>]) -> Option<Schedule> {
    let mut days: BTreeMap<i32, BTreeSet<u32>> = BTreeMap::new();
    for at in times {
        days.entry(at.num_days_from_ce()).or_default().insert(at.hour());
    }
    let minute = times.first()?.minute();
    let whole: Vec<&BTreeSet<u32>> = days.values().skip(1).take(days.len().saturating_sub(2)).collect();
    let hours = whole.first().filter(|hours| (2..12).contains(&hours.len()))?;
    if whole.len() < DAYS || whole.iter().any(|other| other != hours) || times.iter().any(|at| at.minute() != minute) {
        return None;
    }
    let gaps: BTreeSet<u32> = hours.iter().zip(hours.iter().skip(1)).map(|(a, b)| b - a).collect();
    let gap = gaps.first().filter(|gap| gaps.len() == 1 && 24 % **gap == 0);
    if gap.is_some_and(|gap| hours.len() as u32 == 24 / gap) {
        return None;
    }
    let hours: Vec<String> = hours.iter().map(ToString::to_string).collect();
    format!("{minute} {} * * *", hours.join(",")).parse().ok()
}

/// The schedule with this many minutes between two slots, as far as cron can say that.
fn every(step: i64, newest: DateTime<Utc>, times: &[DateTime<Utc>]) -> Option<Schedule> {
    let (minute, hour) = (newest.minute(), newest.hour());
    let text = if step <= 0 {
        return None;
    } else if step < HOUR {
        format!("{} * * * *", stepped(step, 60, minute, times.iter().map(Timelike::minute)))
    } else if step < DAY && step % HOUR == 0 {
        format!("{minute} {} * * *", stepped(step / HOUR, 24, hour, times.iter().map(Timelike::hour)))
    } else if step < DAY {
        format!("{} * * * *", stepped(gcd(step, HOUR), 60, minute, times.iter().map(Timelike::minute)))
    } else {
        let days = step / DAY;
        let same = |of: fn(&DateTime<Utc>) -> u32| times.iter().all(|at| of(at) == of(&newest));
        match days {
            365..=366 if same(Datelike::day) => format!("{minute} {hour} {} {} *", newest.day(), newest.month()),
            28..=31 if same(Datelike::day) => format!("{minute} {hour} {} * *", newest.day()),
            _ if days % 7 == 0 => format!("{minute} {hour} * * {}", newest.weekday().num_days_from_sunday()),
            _ => format!("{minute} {hour} * * *"),
        }
    };
    text.parse().ok()
}

/// A field of cron that begins with the remainder of `value`, and in which every `step`th number follows.
fn stepped(step: i64, whole: i64, value: u32, seen: impl Iterator<Item = u32>) -> String {
    let seen: Vec<i64> = seen.map(i64::from).collect();
    // A step that does not divide the whole begins at 0 each time.
    let step = if whole % step == 0 || seen.iter().all(|v| v % step == 0) { step } else { gcd(step, whole) };
    match (step, i64::from(value) % step) {
        (1, _) => "*".to_owned(),
        (step, 0) => format!("*/{step}"),
        (step, first) => format!("{first}-{}/{step}", whole - 1),
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The periods of a rule, the longest first.
const PERIODS: [Period; 5] = [Period::Year, Period::Month, Period::Week, Period::Day, Period::Hour];

#[derive(Clone, Copy)]
enum Period {
    Year,
    Month,
    Week,
    Day,
    Hour,
}

impl Period {
    fn word(self) -> &'static str {
        match self {
            Self::Year => "year",
            Self::Month => "month",
            Self::Week => "week",
            Self::Day => "day",
            Self::Hour => "hour",
        }
    }

    /// The number of the period that contains a moment.
    fn number(self, at: DateTime<Utc>) -> i64 {
        let day = i64::from(at.num_days_from_ce());
        match self {
            Self::Year => at.year().into(),
            Self::Month => i64::from(at.year()) * 12 + i64::from(at.month0()),
            Self::Week => (day - 1).div_euclid(7),
            Self::Day => day,
            Self::Hour => at.timestamp().div_euclid(3600),
        }
    }
}

/// Rules that keep all snapshots that exist, for at least as long as `margin`: all of the recent ones, and of older ones
/// one for each period, as far as there is only one. Each item of `datasets` has the creation times of one dataset's
/// snapshots, sorted.
pub(super) fn retention(datasets: &[Vec<DateTime<Utc>>], now: DateTime<Utc>, margin: TimeDelta) -> Option<Retention> {
    let mut oldest = *datasets.iter().flatten().min()?;
    let newest = *datasets.iter().flatten().max()?;
    let days = |since: DateTime<Utc>| (now - since + margin).num_hours().div_euclid(24) + 1;
    let mut sparse: Vec<(&str, i64)> = Vec::new();
    for period in PERIODS {
        let crowded = datasets.iter().filter_map(|times| first_crowded(times, period)).min();
        let is_sparse = |at: &&DateTime<Utc>| **at >= oldest && crowded.is_none_or(|crowded| **at < crowded);
        // A single snapshot shows no rule.
        if datasets.iter().all(|times| times.iter().filter(is_sparse).count() < 2) {
            continue;
        }
        sparse.push((period.word(), days(oldest)));
        oldest = crowded.unwrap_or(newest);
        if crowded.is_none() {
            break;
        }
    }
    let all = days(oldest);
    let mut rules = vec![format!("all in last {}", window(all))];
    let longer = sparse.iter().rev().filter(|(_, days)| *days > all);
    rules.extend(longer.map(|(period, days)| format!("1/{period} in last {}", window(*days))));
    Retention::parse(&rules).ok()
}

/// The oldest snapshot that is not the newest one of its period.
fn first_crowded(times: &[DateTime<Utc>], period: Period) -> Option<DateTime<Utc>> {
    let same = |pair: &&[DateTime<Utc>]| period.number(pair[0]) == period.number(pair[1]);
    times.windows(2).find(same).map(|pair| pair[0])
}

/// A window of at least this many days, in the unit in which people would write it.
fn window(days: i64) -> String {
    let (number, unit) = match days {
        ..=21 => (days, "day"),
        22..=70 => ((days + 6) / 7, "week"),
        71..=744 => ((days + 30) / 31, "month"),
        _ => ((days + 365) / 366, "year"),
    };
    if number == 1 { unit.to_owned() } else { format!("{number} {unit}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(texts: &[&str]) -> Vec<DateTime<Utc>> {
        texts.iter().map(|text| format!("2026-{text}:00Z").parse().unwrap()).collect()
    }

    fn series(from: &str, step: TimeDelta, count: i32) -> Vec<DateTime<Utc>> {
        let from = times(&[from])[0];
        (0..count).map(|n| from + step * n).collect()
    }

    #[test]
    fn schedule_is_recognised_by_the_usual_step() {
        let day = TimeDelta::days(1);
        for (taken, expected) in [
            (series("11-01T00:07", TimeDelta::hours(1), 30), "7 * * * *"),
            (series("11-01T00:00", TimeDelta::minutes(5), 30), "*/5 * * * *"),
            (series("11-01T00:02", TimeDelta::minutes(15), 30), "2-59/15 * * * *"),
            (series("11-01T00:00", TimeDelta::minutes(1), 30), "* * * * *"),
            (series("11-01T01:30", TimeDelta::hours(6), 30), "30 1-23/6 * * *"),
            (series("11-01T00:00", TimeDelta::hours(8), 30), "0 */8 * * *"),
            (series("11-01T02:00", day, 20), "0 2 * * *"),
            (series("11-01T02:00", day * 7, 4), "0 2 * * 0"),
            (times(&["08-01T00:00", "09-01T00:00", "10-01T00:00", "11-01T00:00"]), "0 0 1 * *"),
            // Nothing was written at times, and older snapshots have been thinned out.
            (times(&["10-30T23:00", "11-01T08:00", "11-01T09:00", "11-01T12:00", "11-01T13:00"]), "0 * * * *"),
            // The clock of another time zone was changed.
            ([series("10-20T00:00", day, 5), series("10-25T01:00", day, 5)].concat(), "0 1 * * *"),
            (
                (1..6)
                    .flat_map(|d| {
                        times(&[&format!("11-{d:02}T08:00"), &format!("11-{d:02}T12:00"), &format!("11-{d:02}T18:00")])
                    })
                    .collect(),
                "0 8,12,18 * * *",
            ),
        ] {
            let found = schedule(&taken.into_iter().collect()).map(|schedule| schedule.to_string());
            assert_eq!(found.as_deref(), Some(expected));
        }
        assert_eq!(schedule(&times(&["11-01T00:00"]).into_iter().collect()), None);
        assert_eq!(schedule(&BTreeSet::new()), None);
    }

    #[test]
    fn rules_are_those_that_the_snapshots_show() {
        let now = times(&["11-23T12:30"])[0];
        let hourly = series("11-22T13:00", TimeDelta::hours(1), 24);
        let daily = series("11-01T23:00", TimeDelta::days(1), 21);
        let both = [daily.clone(), hourly.clone()].concat();
        let rules = |datasets: &[Vec<DateTime<Utc>>]| {
            let found = retention(datasets, now, TimeDelta::days(1)).unwrap();
            found.rules().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(rules(std::slice::from_ref(&hourly)), "all in last 2 days");
        assert_eq!(rules(std::slice::from_ref(&both)), "all in last 2 days, 1/day in last 4 weeks");
        assert_eq!(rules(&[both, daily.clone()]), "all in last 2 days, 1/day in last 4 weeks");
        assert_eq!(rules(&[times(&["10-01T00:00"])]), "all in last 8 weeks");
        assert_eq!(retention(&[Vec::new()], now, TimeDelta::days(1)), None);
    }
}
