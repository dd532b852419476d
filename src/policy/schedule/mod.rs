//! Schedules: five-field cron, and `asap`.
//!
//! A moment at which a schedule fires is called a slot. The crate croner parses the fields. The slots on days when the
//! clock changes are computed here: cron implementations differ about them, and a snapshot must be neither missed nor
//! taken twice.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeDelta, TimeZone, Utc};
use croner::parser::{CronParser, Seconds, Year};
use thiserror::Error;

use crate::policy::Zone;

/// A cron schedule as crontab(5) defines it: minute, hour, day of month, month, day of week; `@hourly`, `@daily`,
/// `@midnight`, `@weekly`, `@monthly`, `@yearly` and `@annually`.
///
/// - Months and weekdays may be written as their first three letters; Sunday is 0 or 7.
/// - If both day fields are restricted, a day must match either. A field that begins with `*` does not count as
///   restricted: with `*/2`, a day must match both.
/// - When the clock is set forward, a slot in the gap fires once, at the first moment after the gap. When it is set
///   back, a slot that occurs twice fires once, at the first occurrence. A schedule for every hour of the day is an
///   interval, and continues in real time through both changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Schedule {
    text: Box<str>,
    /// Bit i stands for minute i, and likewise in the other fields.
    minutes: u64,
    hours: u32,
    days: u32,
    months: u16,
    /// Bit 0 is Sunday.
    weekdays: u8,
    /// Whether both day fields must match, because one of them begins with `*`.
    both_days: bool,
}

/// Why a text is not a schedule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a cron schedule: {reason}")]
pub struct ScheduleError {
    /// The text as found.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

const EVERY_HOUR: u32 = (1 << 24) - 1;
/// How many days to search for a slot. If both day fields must match, 29 February on a given weekday can be 40 years
/// away, because 2100 is no leap year.
const SEARCH_DAYS: u64 = 41 * 366;

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        parse(text.trim()).map_err(|reason| ScheduleError { text: text.chars().take(200).collect(), reason })
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One of the five fields.
struct Field {
    name: &'static str,
    min: u16,
    max: u16,
    /// The names of the values, starting with `min`.
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { name: "minute", min: 0, max: 59, names: &[] },
    Field { name: "hour", min: 0, max: 23, names: &[] },
    Field { name: "day of month", min: 1, max: 31, names: &[] },
    Field {
        name: "month",
        min: 1,
        max: 12,
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Field { name: "day of week", min: 0, max: 7, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

const NICKNAMES: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

impl Field {
    /// Checks the text of a field. croner accepts some mistakes, and its messages about others are terse.
    fn check(&self, text: &str) -> Result<(), String> {
        for part in text.split(',') {
            self.check_part(part).map_err(|reason| format!("in the {} {text:?}, {reason}", self.name))?;
        }
        Ok(())
    }

    fn check_part(&self, part: &str) -> Result<(), String> {
        if part.is_empty() {
            return Err("an element of the list is empty".to_owned());
        }
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        if let Some(step) = step {
            if !step.parse::<u16>().is_ok_and(|s| (1..=self.max).contains(&s)) || step.starts_with('+') {
                return Err(format!("the step {step:?} is not a number from 1 to {}", self.max));
            }
            if range != "*" && !range.contains('-') {
                return Err(format!("a step follows a range or \"*\", not {range:?}"));
            }
        }
        if range == "*" {
            return Ok(());
        }
        let Some((from, to)) = range.split_once('-') else { return self.value(range).map(drop) };
        let (first, mut last) = (self.value(from)?, self.value(to)?);
        if to.eq_ignore_ascii_case("sun") {
            last = 7;
        }
        if first > last { Err(format!("the range {range:?} runs backwards")) } else { Ok(()) }
    }

    fn value(&self, text: &str) -> Result<u16, String> {
        if let Some(i) = self.names.iter().position(|n| n.eq_ignore_ascii_case(text)) {
            return Ok(self.min + u16::try_from(i).unwrap_or(0));
        }
        let (min, max) = (self.min, self.max);
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let value = text.parse().unwrap_or(u16::MAX);
            return if (min..=max).contains(&value) { Ok(value) } else { Err(format!("{text} is not in {min}-{max}")) };
        }
        let names = match self.names {
            [] => String::new(),
            [first, .., last] | [first @ last] => format!(" or a name from {first} to {last}"),
        };
        Err(format!("{text:?} is not a number from {min} to {max}{names}"))
    }
}

fn parse(text: &str) -> Result<Schedule, String> {
    let expanded = match NICKNAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
        Some((_, meaning)) => meaning,
        None if text.eq_ignore_ascii_case("@reboot") => {
            return Err("@reboot is not a time; missed snapshots are taken anyway (see catch_up)".to_owned());
        }
        None if text.starts_with('@') => {
            let names: Vec<&str> = NICKNAMES.iter().map(|(name, _)| *name).collect();
            return Err(format!("the known names are {}", names.join(", ")));
        }
        None => text,
    };
    let fields: Vec<&str> = expanded.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        if NICKNAMES.iter().any(|(name, _)| name[1..].eq_ignore_ascii_case(text)) {
            return Err(format!("the name lacks its @; hint: write \"@{}\"", text.to_lowercase()));
        }
        let found = fields.len();
        return Err(format!("expected five fields (minute, hour, day of month, month and day of week), found {found}"));
    }
    for (field, text) in FIELDS.iter().zip(&fields) {
        field.check(text)?;
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    let cron = parser.parse(expanded).map_err(|e| e.to_string())?;
    let mask = |values: Vec<u16>| values.into_iter().fold(0u64, |mask, v| mask | 1 << (v % 64));
    let pattern = cron.pattern;
    let narrow = |values| u32::try_from(mask(values)).unwrap_or(0);
    // Only the bits are kept: croner's type takes more than 5 KB per schedule.
    let schedule = Schedule {
        text: text.into(),
        minutes: mask(pattern.minutes.values()),
        hours: narrow(pattern.hours.values()),
        days: narrow(pattern.days.values()),
        months: (narrow(pattern.months.values()) & 0x1fff) as u16,
        weekdays: (narrow(pattern.days_of_week.values()) & 0x7f) as u8,
        both_days: fields[2].starts_with('*') || fields[4].starts_with('*'),
    };
    // Within 28 years, every date falls on every weekday.
    let mut days = NaiveDate::from_ymd_opt(2001, 1, 1).into_iter().flat_map(|d| d.iter_days().take(28 * 366));
    if schedule.minutes == 0 || schedule.hours == 0 || !days.any(|d| schedule.has_day(d)) {
        return Err("it never fires: none of these months has such a day".to_owned());
    }
    Ok(schedule)
}

/// The offset of a zone at a moment in UTC.
fn offset_at(tz: Zone, utc: NaiveDateTime) -> TimeDelta {
    TimeDelta::seconds(tz.offset_from_utc_datetime(&utc).fix().local_minus_utc().into())
}

fn local_at(tz: Zone, at: DateTime<Utc>) -> Option<NaiveDateTime> {
    at.naive_utc().checked_add_signed(offset_at(tz, at.naive_utc()))
}

/// The offset of a zone throughout a local day and some hours around it; `None` if it changes.
fn offset_all_day(tz: Zone, date: NaiveDate) -> Option<TimeDelta> {
    let midnight = date.and_time(NaiveTime::MIN);
    // No zone is more than 15 hours from UTC, and two changes that cancel each other out within these hours have never
    // occurred.
    let before = offset_at(tz, midnight.checked_sub_signed(TimeDelta::hours(16))?);
    let after = offset_at(tz, midnight.checked_add_signed(TimeDelta::hours(40))?);
    (before == after).then_some(before)
}

/// The first moment after the gap that contains `local`.
fn after_gap(tz: Zone, local: NaiveDateTime) -> Option<DateTime<Utc>> {
    // Local time only jumps forward here, so the moment can be found by bisection.
    let mut before = local.checked_sub_signed(TimeDelta::hours(27))?;
    let mut after = local.checked_add_signed(TimeDelta::hours(27))?;
    while after - before > TimeDelta::seconds(1) {
        let middle = before + (after - before) / 2;
        if middle + offset_at(tz, middle) > local {
            after = middle;
        } else {
            before = middle;
        }
    }
    // Bisection leaves fractions of a second; changes happen at whole seconds.
    DateTime::from_timestamp(after.and_utc().timestamp(), 0)
}

impl Schedule {
    /// The longest time between two slots that follow each other, if no clock is ever changed; zero if there is none.
    #[must_use]
    pub fn longest_gap(&self) -> std::time::Duration {
        let times = std::iter::successors(self.next_time(None), |time| self.next_time(Some(*time)));
        let times: Vec<NaiveTime> = times.collect();
        let (Some(first), Some(last)) = (times.first(), times.last()) else { return std::time::Duration::ZERO };
        let within_days = times.windows(2).map(|pair| pair[1] - pair[0]);
        // In this time, every date falls on every day of the week.
        let start = NaiveDate::from_ymd_opt(2001, 1, 1).unwrap_or_default();
        let days: Vec<NaiveDate> = start.iter_days().take(28 * 366).filter(|date| self.has_day(*date)).collect();
        let between_days = days.windows(2).map(|pair| pair[1].and_time(*first) - pair[0].and_time(*last));
        within_days.chain(between_days).max().and_then(|gap| gap.to_std().ok()).unwrap_or_default()
    }

    fn has_day(&self, date: NaiveDate) -> bool {
        let day = self.days >> date.day() & 1 == 1;
        let weekday = self.weekdays >> date.weekday().num_days_from_sunday() & 1 == 1;
        self.months >> date.month() & 1 == 1 && if self.both_days { day && weekday } else { day || weekday }
    }

    /// The slots of a local day, oldest first. This is needed only for days on which the offset changes.
    fn slots_of(&self, tz: Zone, date: NaiveDate) -> Vec<DateTime<Utc>> {
        let mut slots = Vec::new();
        let times = (0..24).filter(|h| self.hours >> h & 1 == 1).flat_map(|h| {
            (0..60).filter(|m| self.minutes >> m & 1 == 1).filter_map(move |m| NaiveTime::from_hms_opt(h, m, 0))
        });
        for local in times.map(|t| date.and_time(t)) {
            let found = tz.from_local_datetime(&local).map(|t| t.with_timezone(&Utc));
            if self.hours == EVERY_HOUR {
                slots.extend(found.earliest());
                slots.extend(found.latest());
            } else {
                slots.extend(found.earliest().or_else(|| after_gap(tz, local)));
            }
        }
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// The newest time of day in the schedule at or before `limit`.
    fn last_time(&self, limit: NaiveTime) -> Option<NaiveTime> {
        use chrono::Timelike;
        let up_to = |mask: u64, n: u32| (mask & (u64::MAX >> (63 - n))).checked_ilog2();
        if self.hours >> limit.hour() & 1 == 1
            && let Some(minute) = up_to(self.minutes, limit.minute())
        {
            return NaiveTime::from_hms_opt(limit.hour(), minute, 0);
        }
        let hour = up_to(self.hours.into(), limit.hour().checked_sub(1)?)?;
        NaiveTime::from_hms_opt(hour, self.minutes.checked_ilog2()?, 0)
    }

    /// The oldest time of day in the schedule after `limit`, or the first of all without a limit.
    fn next_time(&self, limit: Option<NaiveTime>) -> Option<NaiveTime> {
        use chrono::Timelike;
        let from = |mask: u64, n: u32| {
            let rest = mask.checked_shr(n).unwrap_or(0);
            (rest != 0).then(|| n + rest.trailing_zeros())
        };
        let Some(limit) = limit else {
            return NaiveTime::from_hms_opt(from(self.hours.into(), 0)?, from(self.minutes, 0)?, 0);
        };
        if self.hours >> limit.hour() & 1 == 1
            && let Some(minute) = from(self.minutes, limit.minute() + 1)
        {
            return NaiveTime::from_hms_opt(limit.hour(), minute, 0);
        }
        NaiveTime::from_hms_opt(from(self.hours.into(), limit.hour() + 1)?, from(self.minutes, 0)?, 0)
    }

    /// The newest slot at or before a moment; `None` only near the earliest date.
    #[must_use]
    pub fn last_slot(&self, tz: Zone, at_or_before: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = local_at(tz, at_or_before)?;
        let newest_on = |date: NaiveDate| match self.has_day(date).then(|| offset_all_day(tz, date)) {
            None => None,
            Some(Some(offset)) => {
                let limit = match local.date().cmp(&date) {
                    std::cmp::Ordering::Less => return None,
                    std::cmp::Ordering::Equal => local.time(),
                    std::cmp::Ordering::Greater => NaiveTime::from_hms_opt(23, 59, 59)?,
                };
                Some(date.and_time(self.last_time(limit)?).checked_sub_signed(offset)?.and_utc())
            }
            Some(None) => self.slots_of(tz, date).into_iter().rfind(|s| *s <= at_or_before),
        };
        // Start with the next day: if the clock is set back across midnight, that day begins twice.
        let mut date = local.date().checked_add_days(Days::new(1))?;
        let stop = date.checked_sub_days(Days::new(SEARCH_DAYS)).unwrap_or(NaiveDate::MIN);
        while date > stop {
            if self.months >> date.month() & 1 == 0 {
                date = date.with_day(1)?.checked_sub_days(Days::new(1))?;
                continue;
            }
            let yesterday = date.checked_sub_days(Days::new(1))?;
            if let Some(slot) = newest_on(date) {
                // If a day begins twice, the day before it may have the newer slot.
                let changes = offset_all_day(tz, date).is_none();
                let other = if changes { newest_on(yesterday) } else { None };
                return Some(other.map_or(slot, |other| other.max(slot)));
            }
            date = yesterday;
        }
        None
    }

    /// The oldest slot after a moment; `None` only near the latest date.
    #[must_use]
    pub fn next_slot(&self, tz: Zone, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = local_at(tz, after)?;
        let oldest_on = |date: NaiveDate| match self.has_day(date).then(|| offset_all_day(tz, date)) {
            None => None,
            Some(Some(offset)) => {
                let limit = match local.date().cmp(&date) {
                    std::cmp::Ordering::Less => None,
                    std::cmp::Ordering::Equal => Some(local.time()),
                    std::cmp::Ordering::Greater => return None,
                };
                Some(date.and_time(self.next_time(limit)?).checked_sub_signed(offset)?.and_utc())
            }
            Some(None) => self.slots_of(tz, date).into_iter().find(|s| *s > after),
        };
        // Start with an earlier day: a slot in a gap across midnight fires on the day after its own.
        let mut date = local.date().checked_sub_days(Days::new(2))?;
        let stop = date.checked_add_days(Days::new(SEARCH_DAYS)).unwrap_or(NaiveDate::MAX);
        while date < stop {
            let tomorrow = date.checked_add_days(Days::new(1))?;
            if let Some(slot) = oldest_on(date) {
                let other = if offset_all_day(tz, date).is_none() { oldest_on(tomorrow) } else { None };
                return Some(other.map_or(slot, |other| other.min(slot)));
            }
            let skip = if self.months >> date.month() & 1 == 0 { 32 - u64::from(date.day()) } else { 1 };
            date = date.checked_add_days(Days::new(skip))?;
            if skip > 1 {
                date = date.with_day(1)?;
            }
        }
        None
    }
}

/// When to send snapshots to their destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// As soon as the destination lacks the newest snapshot.
    Asap,
    /// As soon as a slot has passed since the newest snapshot was taken.
    Cron(Schedule),
}

impl FromStr for SyncPolicy {
    type Err = ScheduleError;
    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        if text == "asap" { Ok(Self::Asap) } else { text.parse().map(Self::Cron) }
    }
}

impl fmt::Display for SyncPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asap => f.write_str("asap"),
            Self::Cron(schedule) => schedule.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
