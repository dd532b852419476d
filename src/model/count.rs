//! Numbers of things in messages.

/// A number with its noun: `1 snapshot`, `2 snapshots`.
#[must_use]
pub fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
