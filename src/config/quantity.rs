//! Durations and counts, each within bounds.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::json::Node;

/// A duration within bounds, which are written as people write them; `allowed` shows how that is.
pub fn duration(node: &Node<'_>, allowed: &str, [from, to]: [&str; 2]) -> Option<Duration> {
    let text = node.text(allowed)?;
    let bounds = [from, to].map(humantime::parse_duration);
    let reason = match (humantime::parse_duration(&text), bounds) {
        (Ok(duration), [Ok(least), Ok(most)]) if (least..=most).contains(&duration) => return Some(duration),
        (Ok(_), _) => format!("it is not between {from} and {to}"),
        (Err(error), _) => error.to_string(),
    };
    node.problem(format!("{} is not a duration for this: {reason}; allowed is {allowed}", node.raw()));
    None
}

/// A whole number within bounds.
pub fn count(node: &Node<'_>, bounds: RangeInclusive<usize>) -> Option<usize> {
    let number = node.raw().parse().ok().filter(|number| bounds.contains(number));
    if number.is_none() {
        node.wrong(&format!("a whole number from {} to {}", bounds.start(), bounds.end()));
    }
    number
}
