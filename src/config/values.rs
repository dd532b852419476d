//! Reads single values that occur in several parts of the configuration: durations, counts, paths, times, time zones.
//!
//! Each function reports what is wrong with the value, and returns `None`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use chrono::NaiveTime;

use crate::config::json::{Node, Object};
use crate::config::nearest::distance;
use crate::policy::Zone;

/// Reads a duration between two bounds, which are written as in a configuration file. `expected` describes the value.
pub(super) fn duration(node: &Node<'_>, expected: &str, [from, to]: [&str; 2]) -> Option<Duration> {
    let text = node.text(expected)?;
    let bounds = [from, to].map(humantime::parse_duration);
    let reason = match (humantime::parse_duration(&text), bounds) {
        (Ok(duration), [Ok(least), Ok(most)]) if (least..=most).contains(&duration) => return Some(duration),
        (Ok(_), _) => format!("is not between {from} and {to}"),
        (Err(error), _) => format!("is not a duration: {error}"),
    };
    node.problem(format!("{} {reason}; expected {expected}", node.raw()));
    None
}

/// Reads a whole number between two bounds.
pub(super) fn count(node: &Node<'_>, bounds: RangeInclusive<usize>) -> Option<usize> {
    let number = node.raw().parse().ok().filter(|number| bounds.contains(number));
    if number.is_none() {
        node.unexpected(&format!("a whole number from {} to {}", bounds.start(), bounds.end()));
    }
    number
}

/// Reads a percentage.
pub(super) fn percentage(node: &Node<'_>) -> Option<u8> {
    let expected = "a percentage from \"0%\" to \"100%\"";
    let text = node.text(expected)?;
    let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let percent = digits.and_then(|digits| digits.parse().ok()).filter(|percent| *percent <= 100);
    if percent.is_none() {
        node.unexpected(expected);
    }
    percent
}

/// Reads an absolute path, which does not depend on the folder in which the process was started.
pub(super) fn absolute_path(node: &Node<'_>, expected: &str) -> Option<PathBuf> {
    let text = node.text(expected)?;
    if !text.starts_with('/') || text.contains('\0') {
        node.unexpected(expected);
        return None;
    }
    Some(PathBuf::from(text.as_ref()))
}

/// Reads two times of the day.
pub(super) fn hours(node: &Node<'_>) -> Option<(NaiveTime, NaiveTime)> {
    let expected = "a list of two times [from, to], as in [\"19:00\", \"19:10\"]";
    let items = node.list(expected)?;
    let [from, to] = items.as_slice() else {
        node.problem(format!("expected {expected}, found a list of {}", items.len()));
        return None;
    };
    let (from, to) = (time_of_day(from), time_of_day(to));
    let window = (from?, to?);
    if window.0 == window.1 {
        node.problem("the window ends at the time at which it begins; hint: set two different times");
        return None;
    }
    Some(window)
}

fn time_of_day(node: &Node<'_>) -> Option<NaiveTime> {
    let expected = "a time \"HH:MM\" from \"00:00\" to \"23:59\"";
    let text = node.text(expected)?;
    let time = NaiveTime::parse_from_str(&text, "%H:%M").ok().filter(|_| text.len() == 5);
    if time.is_none() {
        node.unexpected(expected);
    }
    time
}

/// Reads the name of a time zone.
pub(super) fn timezone(node: &Node<'_>) -> Option<Zone> {
    let text = node.text("the IANA name of a time zone, as in \"Europe/Paris\"")?;
    if let Ok(zone) = Zone::from_str(&text) {
        return Some(zone);
    }
    let similar = similar_zones(&text);
    let hint = if similar.is_empty() {
        "expected an IANA name, as in \"Europe/Paris\" or \"UTC\"".to_owned()
    } else {
        format!("did you mean {}?", similar.join(" or "))
    };
    node.problem(format!("{} is not a time zone; {hint}", node.raw_shortened()));
    None
}

/// Returns up to three zones whose name, or whose city, differs from `text` only by a typing mistake.
fn similar_zones(text: &str) -> Vec<String> {
    let city = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let mut similar: Vec<(usize, &'static str)> = Zone::names()
        .filter_map(|name| {
            // A wrong continent counts less than a wrong city.
            let by_city = distance(&city(text), &city(name)).map(|distance| 2 * distance + 1);
            let by_name = distance(text, name).map(|distance| 2 * distance);
            by_name.into_iter().chain(by_city).min().map(|distance| (distance, name))
        })
        .collect();
    similar.sort_unstable();
    let best = similar.first().map_or(0, |(distance, _)| *distance);
    let close = similar.iter().take_while(|(distance, _)| *distance <= best + 1);
    close.take(3).map(|(_, name)| format!("{name:?}")).collect()
}

/// Accepts `$schema`, which is for editors only.
pub(super) fn skip_schema(object: &mut Object<'_>) {
    if let Some(schema) = object.get_unlisted("$schema") {
        schema.text("the address of a JSON schema");
    }
}
