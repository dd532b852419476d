//! When certificates expire, and when that is worth a warning.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::model::{HostName, PeerRole};

/// How long before the expiry of a certificate the warnings begin.
const WARNING: TimeDelta = TimeDelta::days(30);
/// How long before the expiry of a certificate it becomes critical.
const CRITICAL: TimeDelta = TimeDelta::days(7);

/// How urgent it is to renew a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// It expires within 30 days.
    Soon,
    /// It expires within 7 days, or has expired.
    Urgent,
}

/// How urgent it is to renew what expires after this time; `None` if it is not.
#[must_use]
pub fn urgency(left: TimeDelta) -> Option<Urgency> {
    if left < CRITICAL { Some(Urgency::Urgent) } else { (left < WARNING).then_some(Urgency::Soon) }
}

/// When the certificate with which a host acts in a role expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateExpiry {
    /// The host.
    pub host: HostName,
    /// The role.
    pub role: PeerRole,
    /// When it expires.
    pub until: DateTime<Utc>,
}

/// Lets something through at most once a day.
#[derive(Debug, Default)]
pub struct Daily(Option<DateTime<Utc>>);

impl Daily {
    /// One that has let something through now.
    #[must_use]
    pub fn since(now: DateTime<Utc>) -> Self {
        Self(Some(now))
    }

    /// Whether a day has passed since this last returned `true`. A clock that was put back counts as a day.
    pub fn is_due(&mut self, now: DateTime<Utc>) -> bool {
        let is_due = self.0.is_none_or(|last| (now - last).abs() >= TimeDelta::days(1));
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgency_begins_a_month_and_a_week_before() {
        let of = |seconds| urgency(TimeDelta::days(7) + TimeDelta::seconds(seconds));
        assert_eq!([of(-1), of(0)], [Some(Urgency::Urgent), Some(Urgency::Soon)]);
        assert_eq!(urgency(TimeDelta::days(30)), None);
        assert_eq!(urgency(TimeDelta::days(29)), Some(Urgency::Soon));
        assert_eq!(urgency(TimeDelta::days(-400)), Some(Urgency::Urgent));
    }

    #[test]
    fn daily_is_due_once_a_day_whatever_the_clock_does() {
        let at = |hours| DateTime::UNIX_EPOCH + TimeDelta::hours(hours);
        let mut daily = Daily::since(at(100));
        assert_eq!(
            [101, 123, 124, 125, 148, 20, 21].map(|hours| daily.is_due(at(hours))),
            [false, false, true, false, true, true, false]
        );
        assert!(Daily::default().is_due(at(0)));
    }
}
