//! How much a host may send to others, and when.

use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveTime, Utc, Weekday};
use thiserror::Error;

use crate::model::HostName;
use crate::policy::Zone;

/// Slower, a transfer could not be told from one that hangs.
const LEAST: f64 = 16_000.0;
/// More than any network has.
const MOST: f64 = 1e12;
/// Units and how many bytes each is; a bit is an eighth.
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

/// Bytes a second: `20MB/s`, `512KiB/s`, `100Mbit/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

/// Why a text is no rate.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{text:?} is not a rate: {reason}; allowed is one from \"16kB/s\" to \"1000GB/s\", as in \"20MB/s\", \"512KiB/s\" or \"100Mbit/s\""
)]
pub struct RateError {
    text: String,
    reason: String,
}

impl Rate {
    /// Bytes a second.
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
        let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| bad("its unit is not known"))?;
        let number = digits.trim_end();
        let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let number: f64 =
            number.parse().ok().filter(|_| plain).ok_or_else(|| bad("it does not begin with a number"))?;
        let rate = number * bytes;
        if !(LEAST..=MOST).contains(&rate) {
            return Err(bad("it is out of bounds"));
        }
        Ok(Self(rate as u64))
    }
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How much.
    pub rate: Rate,
    /// The host that it is for; `None`: all hosts together.
    pub destination: Option<HostName>,
    /// From when to when in the day; one that ends before it begins goes over midnight.
    pub hours: Option<(NaiveTime, NaiveTime)>,
    /// The days on which it begins; empty: all.
    pub days: Vec<Weekday>,
}

/// All limits of a host. Each that is in force holds by itself, for everything together that it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// The zone of `hours` and `days`.
    pub timezone: Zone,
    /// The limits.
    pub limits: Vec<Limit>,
}

impl Bandwidth {
    /// What is in force at a moment for what goes to a host: each limit's place in the list, and its rate.
    pub fn in_force<'a>(&'a self, to: &'a HostName, now: DateTime<Utc>) -> impl Iterator<Item = (usize, Rate)> + 'a {
        let local = now.with_timezone(&self.timezone);
        let (day, time) = (local.weekday(), local.time());
        let counts = move |limit: &Limit| {
            let is_on = |day: Weekday| limit.days.is_empty() || limit.days.contains(&day);
            let is_now = match limit.hours {
                None => is_on(day),
                Some((from, until)) if from < until => is_on(day) && (from..until).contains(&time),
                // Past midnight it is yesterday's.
                Some((from, until)) => time >= from && is_on(day) || time < until && is_on(day.pred()),
            };
            is_now && limit.destination.as_ref().is_none_or(|host| host == to)
        };
        self.limits.iter().enumerate().filter(move |(_, limit)| counts(limit)).map(|(place, limit)| (place, limit.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_people_write_them() {
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
    fn what_is_in_force_depends_on_host_day_and_hour() {
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
                .map(|(place, _)| place)
                .collect::<Vec<_>>();
            assert_eq!(found, wanted, "{now} to {to}");
        }
    }
}
