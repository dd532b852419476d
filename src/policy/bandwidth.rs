//! Bandwidth limits: how fast a host may send to others, and when.

use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveTime, Utc, Weekday};
use thiserror::Error;

use crate::model::HostName;
use crate::policy::Zone;

/// The lowest rate, in bytes a second. A slower transfer could not be distinguished from one that hangs.
const MIN_RATE: f64 = 16_000.0;
/// The highest rate, in bytes a second. It is more than any network carries.
const MAX_RATE: f64 = 1e12;
/// The units, with their size in bytes.
const UNITS: &[(&str, f64)] = &[
    ("B", 1.0),
    ("kB", 1e3),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("bit", 0.125),
    ("kbit", 125.0),
    ("Mbit", 125e3),
    ("Gbit", 125e6),
];

/// A rate in bytes a second, written `20MB/s`, `512KiB/s` or `100Mbit/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

/// Why a text is not a rate.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{text:?} is not a rate: {reason}; hint: use a rate from \"16kB/s\" to \"1000GB/s\", as in \"20MB/s\", \"512KiB/s\" or \"100Mbit/s\""
)]
pub struct RateError {
    text: String,
    reason: String,
}

impl Rate {
    /// The rate in bytes a second.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let bad = |reason: &str| RateError { text: text.to_owned(), reason: reason.to_owned() };
        let amount = text.strip_suffix("/s").ok_or_else(|| bad("it does not end with \"/s\""))?;
        let digits = amount.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &amount[digits.len()..];
        let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| bad("its unit is unknown"))?;
        let number = digits.trim_end();
        let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let number: f64 =
            number.parse().ok().filter(|_| plain).ok_or_else(|| bad("it does not begin with a number"))?;
        let rate = number * bytes;
        if !(MIN_RATE..=MAX_RATE).contains(&rate) {
            return Err(bad("it is out of range"));
        }
        Ok(Self(rate as u64))
    }
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The rate.
    pub rate: Rate,
    /// The host that it applies to; `None` for all hosts together.
    pub destination: Option<HostName>,
    /// The hours of the day, from start to end. If the end is before the start, it is on the next day.
    pub hours: Option<(NaiveTime, NaiveTime)>,
    /// The days on which the hours begin; empty for all days.
    pub days: Vec<Weekday>,
}

/// The limits of a host. Each limit in force applies independently, to the sum of all streams that it covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// The time zone of `hours` and `days`.
    pub timezone: Zone,
    /// The limits.
    pub limits: Vec<Limit>,
}

impl Bandwidth {
    /// The limits that apply at a moment to streams to a host, as indices in the list and rates.
    pub fn in_force<'a>(&'a self, to: &'a HostName, now: DateTime<Utc>) -> impl Iterator<Item = (usize, Rate)> + 'a {
        let local = now.with_timezone(&self.timezone);
        let (day, time) = (local.weekday(), local.time());
        let applies = move |limit: &Limit| {
            let is_on = |day: Weekday| limit.days.is_empty() || limit.days.contains(&day);
            let is_now = match limit.hours {
                None => is_on(day),
                Some((from, until)) if from < until => is_on(day) && (from..until).contains(&time),
                // After midnight, the hours began on the previous day.
                Some((from, until)) => time >= from && is_on(day) || time < until && is_on(day.pred()),
            };
            is_now && limit.destination.as_ref().is_none_or(|host| host == to)
        };
        self.limits
            .iter()
            .enumerate()
            .filter(move |(_, limit)| applies(limit))
            .map(|(index, limit)| (index, limit.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_parses_units_within_range() {
        for (text, bytes) in [
            ("20MB/s", 20_000_000),
            ("1.5 MiB/s", 1_572_864),
            ("100Mbit/s", 12_500_000),
            ("16kB/s", 16_000),
            ("1000GB/s", 1_000_000_000_000),
        ] {
            assert_eq!(text.parse::<Rate>().map(Rate::bytes), Ok(bytes), "{text}");
        }
        for text in ["", "20", "20MB", "MB/s", "20mb/s", "-1MB/s", "1e9MB/s", "infMB/s", "15kB/s", "1001GB/s", "0B/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    fn limit(rate: &str, destination: Option<&str>, hours: Option<(&str, &str)>, days: &[Weekday]) -> Limit {
        let time = |text: &str| NaiveTime::parse_from_str(text, "%H:%M").unwrap();
        Limit {
            rate: rate.parse().unwrap(),
            destination: destination.map(|host| host.parse().unwrap()),
            hours: hours.map(|(from, until)| (time(from), time(until))),
            days: days.to_vec(),
        }
    }

    #[test]
    fn in_force_depends_on_host_day_and_hour() {
        use Weekday::{Fri, Mon, Sat, Thu, Tue, Wed};
        let limits = vec![
            limit("20MB/s", None, Some(("08:00", "18:00")), &[Mon, Tue, Wed, Thu, Fri]),
            limit("5MB/s", Some("beta"), None, &[]),
            limit("1MB/s", None, Some(("22:00", "06:00")), &[Sat]),
        ];
        let bandwidth = Bandwidth { timezone: "Europe/Berlin".parse().unwrap(), limits };
        // November 2026: the 23rd is a Monday, the 28th a Saturday; Berlin is an hour ahead of UTC.
        for (now, to, wanted) in [
            ("2026-11-23T06:59:59Z", "gamma", &[][..]),
            ("2026-11-23T07:00:00Z", "gamma", &[0][..]),
            ("2026-11-23T07:00:00Z", "beta", &[0, 1][..]),
            ("2026-11-23T16:59:59Z", "gamma", &[0][..]),
            ("2026-11-23T17:00:00Z", "gamma", &[][..]),
            ("2026-11-28T12:00:00Z", "beta", &[1][..]),
            ("2026-11-28T21:00:00Z", "gamma", &[2][..]),
            ("2026-11-29T04:59:59Z", "gamma", &[2][..]),
            ("2026-11-29T05:00:00Z", "gamma", &[][..]),
            ("2026-11-28T04:00:00Z", "gamma", &[][..]),
        ] {
            let found = bandwidth
                .in_force(&to.parse().unwrap(), now.parse().unwrap())
                .map(|(index, _)| index)
                .collect::<Vec<_>>();
            assert_eq!(found, wanted, "{now} to {to}");
        }
    }
}
