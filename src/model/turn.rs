//! When the turn of a transfer comes in a queue.

use chrono::{DateTime, TimeDelta, Utc};

/// How long data may wait if no policy limits the age of its copy. A transfer without a limit is therefore overtaken by
/// others for a limited time only.
const WITHOUT_LIMIT: TimeDelta = TimeDelta::days(1);

/// The turn of a transfer: the one with the least slack goes first. Of several, it is the one whose data has waited
/// longest.
///
/// The slack is the time until the deadline, less the time that the transfer is expected to take. As time passes, all
/// transfers lose the same slack, so the moments at which it is used up have the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    start_by: DateTime<Utc>,
    since: DateTime<Utc>,
}

impl Turn {
    /// The turn of a transfer whose data has waited since `since`, and which has to begin by `start_by` to meet its
    /// deadline.
    #[must_use]
    pub fn new(since: DateTime<Utc>, start_by: Option<DateTime<Utc>>) -> Self {
        let unlimited = || since.checked_add_signed(WITHOUT_LIMIT).unwrap_or(since);
        Self { start_by: start_by.unwrap_or_else(unlimited), since }
    }
}

impl From<DateTime<Utc>> for Turn {
    fn from(since: DateTime<Utc>) -> Self {
        Self::new(since, None)
    }
}
