//! Retention rules: which snapshots to keep.
//!
//! A rule is `N in last WINDOW` or `N/PERIOD in last WINDOW`. It makes a promise, which the tests assert hour by hour
//! over three simulated years:
//!
//! > Of all snapshots that were ever taken, those that the rule would keep *now* exist *now*: the newest N in the
//! > window, or the newest N of each calendar period, if they lie in the window.
//!
//! To keep the promise, every rule considers the whole window, back from now. A rule can then stop keeping a snapshot,
//! but never start again: newer snapshots of its period are added, never older ones, and the window only moves forward.
//! A snapshot that a rule keeps now was therefore kept by the same rule at every moment since it was taken, and cannot
//! have been destroyed. This is true for any combination of rules, whatever their periods and windows, however rarely
//! pruning runs, and wherever a window cuts a period, because the newest snapshots of a period are the last ones to
//! leave the window.
//!
//! The promise requires that `now` moves forward. If pruning ever ran with a `now` far in the future, the snapshots
//! that were outside the window at that time are gone.

mod floor;

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use thiserror::Error;

use crate::policy::Zone;
pub use floor::{Arrival, Dated, Kept, arrival_from_text, arrival_to_text};

/// The rules of one `retention` list; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention(Vec<Rule>);

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    text: Box<str>,
    /// How many snapshots to keep: `u32::MAX` for `all`, since no dataset has that many.
    count: u32,
    period: Option<Period>,
    window: TimeDelta,
}

/// A calendar period in the policy's time zone. The same words are the units of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// From second 0 to 59.
    Minute,
    /// From minute 0 to 59. An hour that the clock repeats is a separate period.
    Hour,
    /// From midnight to midnight, which may be 23 or 25 hours.
    Day,
    /// From Monday to Sunday.
    Week,
    /// From the 1st to the last day.
    Month,
    /// From 1 January to 31 December.
    Year,
}

/// Why a text is not a retention rule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a retention rule: {reason}")]
pub struct RetentionError {
    /// The rule as found.
    pub text: String,
    /// The range of bytes in `text` that is wrong.
    pub at: std::ops::Range<usize>,
    /// What is wrong there, and what is permitted.
    pub reason: String,
}

/// The largest number of rules in one list.
pub const MAX_RULES: usize = 32;
/// The largest number in a rule.
const MAX_NUMBER: u32 = 1_000_000;
const SHAPE: &str =
    "a rule is \"N in last WINDOW\" or \"N/PERIOD in last WINDOW\", for example \"1/day in last 2 weeks\"";

impl Retention {
    /// Parses the rules of one list, and reports all invalid rules with their indices.
    ///
    /// An empty list is rejected, because it would mean "keep nothing".
    pub fn parse<S: AsRef<str>>(rules: &[S]) -> Result<Self, Vec<(usize, RetentionError)>> {
        let whole_list =
            |index, reason: String| vec![(index, RetentionError { text: String::new(), at: 0..0, reason })];
        if rules.is_empty() {
            return Err(whole_list(0, "the list is empty, which would keep nothing; omit it to keep all".to_owned()));
        }
        if rules.len() > MAX_RULES {
            return Err(whole_list(MAX_RULES, format!("the list has more than {MAX_RULES} rules")));
        }
        let (mut parsed, mut errors) = (Vec::with_capacity(rules.len()), Vec::new());
        for (index, text) in rules.iter().map(AsRef::as_ref).enumerate() {
            match Rule::parse(text) {
                Ok(rule) => parsed.push(rule),
                Err((at, reason)) => errors.push((index, RetentionError { text: text.to_owned(), at, reason })),
            }
        }
        if errors.is_empty() { Ok(Self(parsed)) } else { Err(errors) }
    }

    /// The rules, in the order of the list.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.0
    }
}

impl Period {
    const ALL: [(&'static str, Self); 6] = [
        ("minute", Self::Minute),
        ("hour", Self::Hour),
        ("day", Self::Day),
        ("week", Self::Week),
        ("month", Self::Month),
        ("year", Self::Year),
    ];
    /// Units as they are written in durations elsewhere, as in `30d`.
    const SHORT: &'static [(&'static str, &'static str)] =
        &[("min", "minute"), ("h", "hour"), ("d", "day"), ("w", "week"), ("y", "year")];
    const NAMES: &'static str = "minute, hour, day, week, month or year";

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| *name == word).map(|(_, period)| *period)
    }

    /// Its length as the unit of a window: a fixed time, so that the edge of a window never jumps.
    fn length(self) -> TimeDelta {
        match self {
            Self::Minute => TimeDelta::minutes(1),
            Self::Hour => TimeDelta::hours(1),
            Self::Day => TimeDelta::days(1),
            Self::Week => TimeDelta::days(7),
            Self::Month => TimeDelta::days(31),
            Self::Year => TimeDelta::days(366),
        }
    }

    /// The number of the period that contains a moment. `local` is the moment in the zone, and `offset` the zone's
    /// offset at that moment, in seconds.
    fn number(self, local: NaiveDateTime, offset: i64) -> i64 {
        let date = local.date();
        let days = || i64::from(date.num_days_from_ce());
        // The start is in UTC, so that a repeated hour has a number of its own.
        let start = |length: i64| local.and_utc().timestamp().div_euclid(length) * length - offset;
        match self {
            Self::Minute => start(60),
            Self::Hour => start(3600),
            Self::Day => days(),
            // Day 1, 1 January of the year 1, was a Monday.
            Self::Week => (days() - 1).div_euclid(7),
            Self::Month => i64::from(date.year()) * 12 + i64::from(date.month0()),
            Self::Year => date.year().into(),
        }
    }
}

/// A word of a rule with its position.
type Word<'a> = (std::ops::Range<usize>, &'a str);

fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    text.split_ascii_whitespace().map(move |word| {
        let start = word.as_ptr() as usize - text.as_ptr() as usize;
        (start..start + word.len(), word)
    })
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u32::MAX))
}

impl Rule {
    fn parse(text: &str) -> Result<Self, (std::ops::Range<usize>, String)> {
        let end = text.len()..text.len();
        let mut words = words(text);
        let mut next = |what: &str| words.next().ok_or_else(|| (end.clone(), format!("{what} is missing; {SHAPE}")));

        let (at, first) = next("the number")?;
        let (count_text, period_text) = first.split_once('/').map_or((first, None), |(n, p)| (n, Some(p)));
        let count_at = at.start..at.start + count_text.len();
        let count = match number(count_text) {
            _ if count_text == "all" => u32::MAX,
            Some(0) => return Err((count_at, "0 would keep nothing; omit the rule".to_owned())),
            Some(n) if n > MAX_NUMBER => return Err((count_at, format!("the number is larger than {MAX_NUMBER}"))),
            Some(n) => n,
            None => return Err((count_at, format!("{count_text:?} is neither a number nor \"all\"; {SHAPE}"))),
        };
        let period = match period_text {
            None => None,
            Some(word) => {
                let wrong =
                    || (count_at.end + 1..at.end, format!("{word:?} is not a period; expected {}", Period::NAMES));
                Some(Period::parse(word).ok_or_else(wrong)?)
            }
        };
        for expected in ["in", "last"] {
            let (at, word) = next(&format!("\"{expected}\""))?;
            if word != expected {
                return Err((at, format!("found {word:?}, expected \"{expected}\"; {SHAPE}")));
            }
        }
        let (mut at, mut word) = next("the window")?;
        let mut length = 1;
        let digits = word.len() - word.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if let Some(n) = number(&word[..digits]) {
            if n == 0 || n > MAX_NUMBER {
                return Err((at.start..at.start + digits, format!("the window's count is not from 1 to {MAX_NUMBER}")));
            }
            length = n;
            (at, word) = match &word[digits..] {
                "" => next("the window's unit")?,
                unit => (at.start + digits..at.end, unit),
            };
        }
        let singular = Period::SHORT.iter().find(|(short, _)| *short == word);
        let singular = singular.map_or(word.strip_suffix('s').unwrap_or(word), |(_, name)| name);
        let Some(unit) = Period::parse(singular) else {
            return Err((
                at,
                format!(
                    "{word:?} is not a unit of time; expected {}, their plurals, or min, h, d, w or y",
                    Period::NAMES
                ),
            ));
        };
        if let Some((at, word)) = words.next() {
            return Err((at.start..text.trim_ascii_end().len(), format!("{word:?} is unexpected; {SHAPE}")));
        }
        let window = i32::try_from(length).map_or(TimeDelta::MAX, |n| unit.length() * n);
        Ok(Self { text: text.trim_ascii().into(), count, period, window })
    }

    /// The length of the rule's window.
    #[must_use]
    pub fn window(&self) -> TimeDelta {
        self.window
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Applies several rules to the snapshots of one dataset, newest first.
///
/// "Newest" refers to the order of the calls of [`Tally::keep`] (that of createtxg), which a wrong clock cannot change.
/// Window and period depend on the creation time. A snapshot dated in the future is in every window. A snapshot that is
/// not [in order](in_order) is kept like any other, but takes no other snapshot's place.
#[derive(Debug)]
pub struct Tally<'a> {
    tz: Zone,
    now: DateTime<Utc>,
    rules: Vec<&'a Rule>,
    /// Per rule: how many snapshots of each period were seen. In the usual order only the last count grows.
    seen: Vec<Vec<(i64, u32)>>,
    /// Whether a snapshot has a later creation time than a newer one, as happens if a clock was set back.
    disorder: bool,
}

impl<'a> Tally<'a> {
    /// A tally without rules; [`Tally::restart`] adds them.
    #[must_use]
    pub fn new(tz: Zone, now: DateTime<Utc>) -> Self {
        Self { tz, now, rules: Vec::new(), seen: Vec::new(), disorder: false }
    }

    /// The moment for which the tally decides.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// Starts over with the rules for another dataset.
    pub fn restart(&mut self, rules: impl IntoIterator<Item = &'a Rule>) {
        self.rules.clear();
        self.rules.extend(rules);
        self.seen.resize_with(self.rules.len().max(self.seen.len()), Vec::new);
        self.seen.iter_mut().for_each(Vec::clear);
        self.disorder = false;
    }

    /// The rules that keep the next snapshot, as bits in the order of the rules. The 64th bit stands for all further
    /// rules. A snapshot that does not `count` takes no other one's place.
    pub fn keep(&mut self, creation: DateTime<Utc>, counts: bool) -> u64 {
        let age = self.now.signed_duration_since(creation);
        let mut mask = 0;
        let mut local = None;
        for (i, (rule, seen)) in self.rules.iter().zip(&mut self.seen).enumerate() {
            let number = match rule.period {
                None => 0,
                Some(period) => {
                    let (local, offset) = *local.get_or_insert_with(|| local_time(self.tz, creation));
                    period.number(local, offset)
                }
            };
            if !counts {
                let newer = seen.iter().rfind(|(n, _)| *n == number).map_or(0, |(_, count)| *count);
                if newer < rule.count && age <= rule.window {
                    mask |= 1 << i.min(63);
                }
                continue;
            }
            let position = match seen.last() {
                Some((last, _)) if *last == number => Some(seen.len() - 1),
                Some((last, _)) if *last > number && !self.disorder => None,
                None => None,
                Some(_) => {
                    self.disorder = true;
                    seen.iter().rposition(|(n, _)| *n == number)
                }
            };
            let count = match position {
                Some(position) => &mut seen[position].1,
                None => {
                    seen.push((number, 0));
                    let end = seen.len() - 1;
                    &mut seen[end].1
                }
            };
            // Snapshots outside the window count as well, so that a snapshot once dropped is never kept again: see the
            // promise.
            *count = count.saturating_add(1);
            if *count <= rule.count && age <= rule.window {
                mask |= 1 << i.min(63);
            }
        }
        mask
    }
}

/// How far apart the clocks of two hosts may be. A snapshot whose creation time lies further in the future was taken
/// while a clock was wrong.
pub const CLOCK_TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// Whether each of these dates, oldest snapshot first (by createtxg), is in order: not before that of an older snapshot,
/// and not in the future. A date that is not was given by a wrong clock, or by somebody who wants to push other
/// snapshots out of a rule.
#[must_use]
pub fn in_order(dates: impl IntoIterator<Item = DateTime<Utc>>, now: DateTime<Utc>) -> Vec<bool> {
    let mut latest = DateTime::<Utc>::MIN_UTC;
    let is_in_order = |date: DateTime<Utc>| {
        let in_order = date >= latest && date.signed_duration_since(now) <= CLOCK_TOLERANCE;
        if in_order {
            latest = date;
        }
        in_order
    };
    dates.into_iter().map(is_in_order).collect()
}

fn local_time(tz: Zone, at: DateTime<Utc>) -> (NaiveDateTime, i64) {
    let utc = at.naive_utc();
    let offset = i64::from(tz.offset_from_utc_datetime(&utc).fix().local_minus_utc());
    // The sum overflows only at the limits of the type.
    (utc.checked_add_signed(TimeDelta::seconds(offset)).unwrap_or(utc), offset)
}

#[cfg(test)]
mod tests;
