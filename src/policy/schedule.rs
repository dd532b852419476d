//! When: five-field cron, and `asap`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A cron schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(String);

/// Why a text is not a schedule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a cron schedule: {reason}")]
pub struct ScheduleError {
    /// The text as found.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl FromStr for Schedule {
    type Err = ScheduleError;
    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// When snapshots go to their destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Whenever the newest one is not there.
    Asap,
    /// When a slot has passed since the newest one was taken.
    Cron(Schedule),
}

impl FromStr for SyncPolicy {
    type Err = ScheduleError;
    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        if text == "asap" { Ok(Self::Asap) } else { text.parse().map(Self::Cron) }
    }
}
