//! Durations and counts, each within bounds.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::json::Node;

/// A duration within bounds; `allowed` shows how it is written.
pub fn duration(node: &Node<'_>, allowed: &str, bounds: RangeInclusive<Duration>) -> Option<Duration> {
    let text = node.text(allowed)?;
    let reason = match humantime::parse_duration(&text) {
        Ok(duration) if bounds.contains(&duration) => return Some(duration),
        Ok(_) => {
            let (from, to) = (humantime::format_duration(*bounds.start()), humantime::format_duration(*bounds.end()));
            format!("it is not between {from} and {to}")
        }
        Err(error) => error.to_string(),
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
