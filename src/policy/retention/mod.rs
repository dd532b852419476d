//! How long: the retention grammar and its meaning.
//!
//! A rule is `N in last WINDOW` or `N/PERIOD in last WINDOW`. Its promise, which the tests assert hour by hour over
//! three simulated years:
//!
//! > Of all snapshots that were ever taken, those that the rule would keep *now* exist *now*: the newest N of the
//! > window, or the newest N of each calendar period as far as they lie in the window.
//!
//! This needs every rule to look at the whole window, back from now. Then a snapshot can only ever lose its place in a
//! rule: newer ones of its period come, never older ones; and the window only moves on. So what a rule keeps now it
//! has kept at every earlier moment since the snapshot was taken, and no other rule can have taken it away. That holds
//! for all rules in any combination, whatever their periods and windows, however rarely pruning runs, and wherever a
//! window cuts a period: the newest of a period are the last that the window leaves behind.
//!
//! It holds as far as `now` runs forward. What a `now` far in the future has once found outside the window is gone.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use thiserror::Error;

use crate::policy::Zone;

/// The rules of one `retention` list; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention(Vec<Rule>);

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    text: Box<str>,
    /// `u32::MAX` for `all`: no dataset has that many.
    count: u32,
    period: Option<Period>,
    window: TimeDelta,
}

/// A calendar period in the policy's time zone, and as `day` and so on the unit of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// From second 0 to 59.
    Minute,
    /// From minute 0 to 59; an hour that the clock repeats is another one.
    Hour,
    /// From midnight to midnight, which may be 23 or 25 hours.
    Day,
    /// From Monday to Sunday.
    Week,
    /// From the 1st on.
    Month,
    /// From 1 January on.
    Year,
}

/// Why a text is not a retention rule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a retention rule: {reason}")]
pub struct RetentionError {
    /// The rule as found.
    pub text: String,
    /// The bytes of `text` that are wrong.
    pub at: std::ops::Range<usize>,
    /// What is wrong with them, and what is allowed.
    pub reason: String,
}

/// The most rules of one list.
pub const MAX_RULES: usize = 32;
/// The largest number in a rule.
const MAX_NUMBER: u32 = 1_000_000;
const SHAPE: &str =
    "a rule is \"N in last WINDOW\" or \"N/PERIOD in last WINDOW\", for example \"1/day in last 2 weeks\"";

impl Retention {
    /// Parses the rules of one list; every wrong rule is reported, with its index.
    ///
    /// An empty list is refused: it would read as "keep nothing".
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
    const NAMES: &'static str = "minute, hour, day, week, month or year";

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| *name == word).map(|(_, period)| *period)
    }

    /// How long it is as the unit of a window: a fixed time, so that a window's edge never jumps.
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

    /// A number that two moments share if they are in the same period. `local` is the moment in the zone, `offset` the
    /// zone's offset then, in seconds.
    fn number(self, local: NaiveDateTime, offset: i64) -> i64 {
        let date = local.date();
        let days = || i64::from(date.num_days_from_ce());
        // The start of the period in UTC, so that a repeated hour has a number of its own.
        let start = |length: i64| local.and_utc().timestamp().div_euclid(length) * length - offset;
        match self {
            Self::Minute => start(60),
            Self::Hour => start(3600),
            Self::Day => days(),
            // 1 January of the year 1, day 1, was a Monday.
            Self::Week => (days() - 1).div_euclid(7),
            Self::Month => i64::from(date.year()) * 12 + i64::from(date.month0()),
            Self::Year => date.year().into(),
        }
    }
}

/// A word of a rule, and where it is.
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
            Some(0) => return Err((count_at, "0 would keep nothing; leave the rule out".to_owned())),
            Some(n) if n > MAX_NUMBER => return Err((count_at, format!("the number is larger than {MAX_NUMBER}"))),
            Some(n) => n,
            None => return Err((count_at, format!("{count_text:?} is neither a number nor \"all\"; {SHAPE}"))),
        };
        let period = match period_text {
            None => None,
            Some(word) => {
                let wrong = || (count_at.end + 1..at.end, format!("{word:?} is not a period: {}", Period::NAMES));
                Some(Period::parse(word).ok_or_else(wrong)?)
            }
        };
        for expected in ["in", "last"] {
            let (at, word) = next(&format!("\"{expected}\""))?;
            if word != expected {
                return Err((at, format!("{word:?} stands where \"{expected}\" belongs; {SHAPE}")));
            }
        }
        let (mut at, mut word) = next("the window")?;
        let mut length = 1;
        if let Some(n) = number(word) {
            if n == 0 || n > MAX_NUMBER {
                return Err((at, format!("the window's count is not from 1 to {MAX_NUMBER}")));
            }
            length = n;
            (at, word) = next("the window's unit")?;
        }
        let singular = word.strip_suffix('s').unwrap_or(word);
        let Some(unit) = Period::parse(singular) else {
            return Err((at, format!("{word:?} is not a unit of time: {}, or several of them", Period::NAMES)));
        };
        if let Some((at, word)) = words.next() {
            return Err((at.start..text.trim_ascii_end().len(), format!("{word:?} is too much; {SHAPE}")));
        }
        let window = i32::try_from(length).map_or(TimeDelta::MAX, |n| unit.length() * n);
        Ok(Self { text: text.trim_ascii().into(), count, period, window })
    }

    /// How far back the rule looks.
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

/// Asks several rules about the snapshots of one dataset, newest first.
///
/// "Newest" is the order in which it is asked (that of createtxg), which a wrong clock cannot change; window and
/// period come from the creation time. A snapshot from the future is in every window; one that a wrong clock dated
/// into the past still counts as the newest of the period that it is dated into.
#[derive(Debug)]
pub struct Tally<'a> {
    tz: Zone,
    now: DateTime<Utc>,
    rules: Vec<&'a Rule>,
    /// Per rule: how many snapshots of which period were seen. In the usual order only the last one grows.
    seen: Vec<Vec<(i64, u32)>>,
    /// Whether some snapshot was created later than a newer one, as after a clock was put back.
    disorder: bool,
}

impl<'a> Tally<'a> {
    /// Makes the rules ready for a first dataset.
    #[must_use]
    pub fn new(tz: Zone, now: DateTime<Utc>) -> Self {
        Self { tz, now, rules: Vec::new(), seen: Vec::new(), disorder: false }
    }

    /// Makes the rules ready for another dataset.
    pub fn restart(&mut self, rules: impl IntoIterator<Item = &'a Rule>) {
        self.rules.clear();
        self.rules.extend(rules);
        self.seen.resize_with(self.rules.len().max(self.seen.len()), Vec::new);
        self.seen.iter_mut().for_each(Vec::clear);
        self.disorder = false;
    }

    /// Which rules keep the next snapshot, as bits in the order of the rules. The 64th bit stands for all beyond it.
    pub fn keep(&mut self, creation: DateTime<Utc>) -> u64 {
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
            let place = match seen.last() {
                Some((last, _)) if *last == number => Some(seen.len() - 1),
                Some((last, _)) if *last > number && !self.disorder => None,
                None => None,
                Some(_) => {
                    self.disorder = true;
                    seen.iter().rposition(|(n, _)| *n == number)
                }
            };
            let count = match place {
                Some(place) => &mut seen[place].1,
                None => {
                    seen.push((number, 0));
                    let end = seen.len() - 1;
                    &mut seen[end].1
                }
            };
            // Counted even outside the window, so that a place once lost is never regained: see the promise.
            *count = count.saturating_add(1);
            if *count <= rule.count && age <= rule.window {
                mask |= 1 << i.min(63);
            }
        }
        mask
    }
}

fn local_time(tz: Zone, at: DateTime<Utc>) -> (NaiveDateTime, i64) {
    let utc = at.naive_utc();
    let offset = i64::from(tz.offset_from_utc_datetime(&utc).fix().local_minus_utc());
    // Only at the ends of time does the sum not exist.
    (utc.checked_add_signed(TimeDelta::seconds(offset)).unwrap_or(utc), offset)
}

#[cfg(test)]
mod tests;
