//! Moments in messages and files.

use chrono::{DateTime, SecondsFormat, Utc};

/// A moment in UTC, to the second: `2026-11-29T10:00:00Z`.
#[must_use]
pub fn in_utc(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_in_whole_seconds() {
        assert_eq!(in_utc(DateTime::from_timestamp(1_795_946_400, 999_000_000).unwrap()), "2026-11-29T10:00:00Z");
    }
}
