//! What the `keep` of a host's `local.json` keeps: the snapshots that no order destroys.
//!
//! The host decides by its own clock. The creation time of a received snapshot is what its sender says, so each rule is
//! applied twice: to the times at which the snapshots arrived on this host, and to the times at which they were created.
//! A snapshot stays if either keeps it. A sender can therefore add snapshots that stay, but no date in a stream makes
//! another snapshot go.

use std::fmt;

use chrono::{DateTime, Utc};

use crate::policy::Zone;
use crate::policy::retention::{Retention, Rule, Tally, in_order};

/// When a snapshot appeared on its host, according to that host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// At this time.
    At(DateTime<Utc>),
    /// At an unknown time, not later than this.
    Before(DateTime<Utc>),
}

/// The times of a snapshot on which a floor depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dated {
    /// When it was created, according to the host that created it.
    pub creation: DateTime<Utc>,
    /// When it appeared on this host.
    pub arrival: Arrival,
}

/// Why a snapshot stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept<'a> {
    /// A rule keeps it.
    ByRule(&'a Rule),
    /// It is not known when it arrived. Such a snapshot stays until the longest window of the rules has passed since it
    /// was first found.
    Unrecorded {
        /// Until when it stays.
        until: DateTime<Utc>,
    },
}

impl fmt::Display for Kept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByRule(rule) => write!(f, "\"keep\" in local.json keeps it by \"{rule}\""),
            Self::Unrecorded { until } => {
                write!(
                    f,
                    "\"keep\" in local.json keeps it until {}, because it is not known when it arrived",
                    until.format("%F %TZ")
                )
            }
        }
    }
}

impl Retention {
    /// Decides about all snapshots of a dataset, oldest first (by createtxg). Returns for each why it stays; `None` if
    /// no rule keeps it.
    #[must_use]
    pub fn floor(&self, snapshots: &[Dated], tz: Zone, now: DateTime<Utc>) -> Vec<Option<Kept<'_>>> {
        let longest = self.rules().iter().map(Rule::window).max().unwrap_or_default();
        let arrivals: Vec<Option<DateTime<Utc>>> = snapshots
            .iter()
            .map(|s| match s.arrival {
                Arrival::At(at) => Some(at),
                Arrival::Before(_) => None,
            })
            .collect();
        // Nothing is created after it arrives, so a later date is wrong.
        let creations = snapshots.iter().map(|s| match s.arrival {
            Arrival::At(at) | Arrival::Before(at) => Some(s.creation.min(at)),
        });
        let by_arrival = self.apply(&arrivals, tz, now);
        let by_creation = self.apply(&creations.collect::<Vec<_>>(), tz, now);
        let decide = |(i, snapshot): (usize, &Dated)| match snapshot.arrival {
            Arrival::Before(at) if now - at <= longest => {
                Some(Kept::Unrecorded { until: at.checked_add_signed(longest).unwrap_or(DateTime::<Utc>::MAX_UTC) })
            }
            _ => by_arrival[i].or(by_creation[i]).map(Kept::ByRule),
        };
        snapshots.iter().enumerate().map(decide).collect()
    }

    /// The first rule that keeps each snapshot, by these times. Snapshots without a time are left out.
    fn apply(&self, times: &[Option<DateTime<Utc>>], tz: Zone, now: DateTime<Utc>) -> Vec<Option<&Rule>> {
        let known: Vec<DateTime<Utc>> = times.iter().flatten().copied().collect();
        let mut counts = in_order(known, now).into_iter().rev();
        let mut tally = Tally::new(tz, now);
        tally.restart(self.rules());
        let mut kept: Vec<Option<&Rule>> = times
            .iter()
            .rev()
            .map(|time| {
                let mask = tally.keep((*time)?, counts.next().unwrap_or_default());
                self.rules().get(usize::try_from(mask.trailing_zeros()).ok()?)
            })
            .collect();
        kept.reverse();
        kept
    }
}

/// The value of the property that records when a snapshot arrived: seconds since 1970, after `<` if that is only the
/// time at which it was first found.
#[must_use]
pub fn arrival_to_text(arrival: Arrival) -> String {
    match arrival {
        Arrival::At(at) => at.timestamp().to_string(),
        Arrival::Before(at) => format!("<{}", at.timestamp()),
    }
}

/// Parses what [`arrival_to_text`] wrote.
#[must_use]
pub fn arrival_from_text(text: &str) -> Option<Arrival> {
    let time = |seconds: &str| DateTime::from_timestamp(seconds.parse().ok()?, 0);
    match text.strip_prefix('<') {
        Some(seconds) => time(seconds).map(Arrival::Before),
        None => time(text).map(Arrival::At),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 86_400;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_000_000 + seconds, 0).unwrap()
    }

    fn dated(creation: i64, arrival: i64) -> Dated {
        Dated { creation: at(creation), arrival: Arrival::At(at(arrival)) }
    }

    fn kept(rules: &[&str], snapshots: &[Dated], now: i64) -> Vec<bool> {
        let rules = Retention::parse(rules).unwrap();
        rules.floor(snapshots, Zone::UTC, at(now)).iter().map(Option::is_some).collect()
    }

    #[test]
    fn history_that_arrives_at_once_counts_by_creation() {
        let all: Vec<Dated> = (0..4).map(|day| dated(day * DAY, 4 * DAY)).collect();
        assert_eq!(kept(&["1/day in last 30 days"], &all, 5 * DAY), [true; 4]);
    }

    #[test]
    fn snapshots_that_claim_the_past_push_out_none_that_arrived_before() {
        // Ten genuine snapshots, then one with junk for the end of each of these days.
        let genuine: Vec<Dated> = (0..10).map(|day| dated(day * DAY, day * DAY)).collect();
        let junk = (0..10).map(|day| dated(day * DAY + 3600, 10 * DAY));
        let all: Vec<Dated> = genuine.iter().copied().chain(junk).collect();
        let kept = kept(&["1/day in last 30 days"], &all, 11 * DAY);
        assert_eq!(kept[..10], [true; 10]);
    }

    #[test]
    fn unrecorded_snapshot_stays_until_the_longest_window_has_passed() {
        let found = Dated { creation: at(-900 * DAY), arrival: Arrival::Before(at(0)) };
        let rules = ["1 in last day", "1/day in last 30 days"];
        assert_eq!(kept(&rules, &[found, dated(DAY, DAY)], 30 * DAY), [true, true]);
        assert_eq!(kept(&rules, &[found, dated(DAY, DAY)], 31 * DAY), [false, true]);
    }

    #[test]
    fn arrival_round_trips_through_text() {
        for arrival in [Arrival::At(at(7)), Arrival::Before(at(8))] {
            assert_eq!(arrival_from_text(&arrival_to_text(arrival)), Some(arrival));
        }
        assert_eq!(arrival_from_text("soon"), None);
    }

    proptest! {
        /// Whatever dates a hostile source gives to what it sends later, what it sends takes no place that is counted by
        /// arrival on an earlier day, nor one that is counted by creation.
        #[test]
        fn hostile_dates_push_nothing_out(
            genuine in prop::collection::vec(60..2 * DAY, 1..20),
            hostile in prop::collection::vec((-400 * DAY..400 * DAY, 0..3 * DAY), 0..30),
            rule in prop::sample::select(vec!["1/day in last 30 days", "2/week in last 2 months", "all in last week"]),
            pause in DAY..20 * DAY,
        ) {
            let mut time = 0;
            let mut all: Vec<Dated> = genuine.iter().map(|gap| { time += gap; dated(time, time) }).collect();
            // The takeover begins on a later day and in a later week, so that what arrives then is the newest of its own
            // periods only.
            let before = all.len();
            time += 8 * DAY;
            for (claim, gap) in &hostile {
                time += gap;
                all.push(dated(*claim, time));
            }
            let now = time + pause;
            let alone = kept(&[rule], &all[..before], now);
            let together = kept(&[rule], &all, now);
            for (i, was) in alone.iter().enumerate() {
                prop_assert!(!was || together[i], "snapshot {i} was pushed out");
            }
        }
    }
}
