//! Reads the wall clock, which no other module does: all code that decides gets `now` as an argument.

use chrono::{DateTime, Utc};

/// The current time, in whole seconds, because ZFS counts creation times in seconds.
#[must_use]
pub fn now() -> DateTime<Utc> {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    let now = Utc::now();
    DateTime::from_timestamp(now.timestamp(), 0).unwrap_or(now)
}
