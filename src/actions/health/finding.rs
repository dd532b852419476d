//! Findings: what can be wrong, and how severe it is.

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Serialize, Serializer};

use crate::actions::leftovers::Leftovers;
use crate::model::expiry::{Urgency, urgency};
use crate::model::tags::held_by;
use crate::model::{CertificateExpiry, HostName, PeerRole, Place, SnapName, in_utc};

/// How severe something is, in the words of monitoring systems. Later values are worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is wrong.
    #[default]
    Ok,
    /// The state is unknown.
    Unknown,
    /// Somebody should look into it.
    Warning,
    /// Somebody must look into it.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "OK",
            Self::Unknown => "UNKNOWN",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        })
    }
}

/// Something that is wrong. `Display` writes a clause that does not name the dataset or host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// There is no snapshot of the policy, but there should be one.
    NoSnapshot,
    /// The newest snapshot is too old.
    SnapshotOld {
        /// Its age or, if a slot was skipped later because nothing had been written, the time since then.
        age: TimeDelta,
        /// The limit that the age exceeds.
        limit: TimeDelta,
        /// How severe that is.
        severity: Severity,
    },
    /// The oldest unsent snapshot or the newest replica is too old.
    ReplicaOld {
        /// How far the destination lags.
        age: TimeDelta,
        /// The limit that the lag exceeds.
        limit: TimeDelta,
        /// How many snapshots it lacks.
        behind: usize,
        /// How severe that is.
        severity: Severity,
    },
    /// The newest replica will be too old before the next one arrives.
    ReplicaLate {
        /// When it will be.
        at: DateTime<Utc>,
        /// When the next one is expected to arrive.
        arrives: DateTime<Utc>,
        /// The limit that it will exceed.
        limit: TimeDelta,
    },
    /// The source does not have the destination's newest snapshot, so no increment can be sent.
    Diverged {
        /// The destination's newest snapshot.
        newest: SnapName,
        /// The newest common snapshot, if there is any.
        base: Option<SnapName>,
    },
    /// There are more snapshots of the policy than it allows.
    TooMany {
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
        /// The destination that has them; `None` for the source.
        at: Option<Place>,
    },
    /// A snapshot has been held for too long.
    HeldLong {
        /// The oldest held snapshot.
        snapshot: SnapName,
        /// Its age.
        age: TimeDelta,
        /// The limit that the age exceeds.
        limit: TimeDelta,
        /// The tags of its holds; empty if they are unknown.
        tags: Vec<String>,
    },
    /// Transfers have left holds or cursors for destinations that the policy no longer has.
    Leftovers(Leftovers),
    /// A host could not be listed.
    Unreachable {
        /// When it was last listed; `None` if never.
        since: Option<DateTime<Utc>>,
        /// Why.
        reason: String,
    },
    /// A host was never listed.
    NeverListed {
        /// What this host is called; `None` if nobody said. The other name may be a misspelt one of this host.
        here: Option<HostName>,
    },
    /// The host's certificate expires soon, or has expired.
    CertificateExpires {
        /// The role for which the host uses it.
        role: PeerRole,
        /// When it expires.
        until: DateTime<Utc>,
        /// How long it is still valid; negative if it has expired.
        left: TimeDelta,
        /// How urgent its renewal is.
        urgency: Urgency,
    },
    /// The host's list of revoked certificates expires soon, or has expired.
    RevocationListExpires {
        /// When it expires.
        until: DateTime<Utc>,
        /// How long it is still valid; negative if it has expired.
        left: TimeDelta,
        /// How urgent its renewal is.
        urgency: Urgency,
    },
    /// The director has made no pass for too long.
    NoPass {
        /// How long ago the last pass ended.
        age: TimeDelta,
        /// The limit that the age exceeds.
        limit: TimeDelta,
        /// How severe that is.
        severity: Severity,
    },
}

impl Finding {
    /// What is wrong with a certificate that expires then; `None` if it is valid for long enough.
    #[must_use]
    pub fn of_certificate(expiry: &CertificateExpiry, now: DateTime<Utc>) -> Option<Self> {
        let CertificateExpiry { role, until, .. } = *expiry;
        let left = until - now;
        urgency(left).map(|urgency| Self::CertificateExpires { role, until, left, urgency })
    }

    /// What is wrong with a list of revoked certificates that expires then; `None` if it is valid for long enough.
    #[must_use]
    pub fn of_revocation_list(until: DateTime<Utc>, now: DateTime<Utc>) -> Option<Self> {
        let left = until - now;
        urgency(left).map(|urgency| Self::RevocationListExpires { until, left, urgency })
    }

    /// How severe it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::SnapshotOld { severity, .. } | Self::ReplicaOld { severity, .. } | Self::NoPass { severity, .. } => {
                *severity
            }
            Self::Diverged { .. }
            | Self::CertificateExpires { urgency: Urgency::Urgent, .. }
            | Self::RevocationListExpires { urgency: Urgency::Urgent, .. } => Severity::Critical,
            // There is still time to prevent it.
            Self::ReplicaLate { .. }
            | Self::NoSnapshot
            | Self::TooMany { .. }
            | Self::HeldLong { .. }
            | Self::Leftovers(_)
            | Self::CertificateExpires { urgency: Urgency::Soon, .. }
            | Self::RevocationListExpires { urgency: Urgency::Soon, .. }
            | Self::Unreachable { since: Some(_), .. } => Severity::Warning,
            // The state of a host that was never listed is unknown.
            Self::Unreachable { since: None, .. } | Self::NeverListed { .. } => Severity::Unknown,
        }
    }

    /// Whether it is about the source of a policy, and not about a destination or a host.
    #[must_use]
    pub fn is_of_source(&self) -> bool {
        matches!(
            self,
            Self::NoSnapshot | Self::SnapshotOld { .. } | Self::HeldLong { .. } | Self::TooMany { at: None, .. }
        )
    }

    /// Its name in JSON and metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoSnapshot => "no_snapshot",
            Self::SnapshotOld { .. } => "snapshot_old",
            Self::ReplicaOld { .. } => "replica_old",
            Self::ReplicaLate { .. } => "replica_late",
            Self::Diverged { .. } => "diverged",
            Self::TooMany { .. } => "too_many",
            Self::HeldLong { .. } => "held_long",
            Self::Leftovers(_) => "leftovers",
            Self::Unreachable { .. } => "out_of_reach",
            Self::NeverListed { .. } => "never_listed",
            Self::CertificateExpires { .. } => "certificate_expires",
            Self::RevocationListExpires { .. } => "revocation_list_expires",
            Self::NoPass { .. } => "no_pass",
        }
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Json {
            kind: &'static str,
            severity: Severity,
            text: String,
        }
        Json { kind: self.kind(), severity: self.severity(), text: self.to_string() }.serialize(s)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSnapshot => f.write_str("there is no snapshot of this policy"),
            Self::SnapshotOld { age, limit, .. } => {
                write!(f, "the newest snapshot is {} old (limit {})", span(*age), span(*limit))
            }
            Self::ReplicaOld { age, limit, behind, .. } => {
                write!(f, "the replica lags {} behind (limit {}, {behind} unsent)", span(*age), span(*limit))
            }
            Self::ReplicaLate { at, arrives, limit } => {
                let (at, arrives, limit) = (in_utc(*at), in_utc(*arrives), span(*limit));
                write!(f, "the replica will exceed its limit of {limit} at {at}: the next one is expected at {arrives}")
            }
            Self::Diverged { newest, base: Some(base) } => {
                write!(f, "diverged: only the destination has @{newest}; the newest common snapshot is @{base}")
            }
            Self::Diverged { newest, base: None } => {
                write!(f, "diverged: only the destination has @{newest}, and no snapshot is in common")
            }
            Self::TooMany { count, limit, at: None } => write!(f, "{count} snapshots (limit {limit})"),
            Self::TooMany { count, limit, at: Some(_) } => write!(f, "{count} snapshots there (limit {limit})"),
            Self::HeldLong { snapshot, age, limit, tags } => {
                write!(f, "the held snapshot @{snapshot} is {} old (limit {})", span(*age), span(*limit))?;
                if tags.is_empty() { Ok(()) } else { write!(f, ": {}", held_by(tags)) }
            }
            Self::Leftovers(left) => write!(f, "{left}; see {}", left.command()),
            Self::Unreachable { since: Some(since), reason } => {
                write!(f, "unreachable, last listed {}: {reason}", in_utc(*since))
            }
            Self::Unreachable { since: None, reason } => write!(f, "unreachable, never listed: {reason}"),
            Self::NeverListed { here } => {
                f.write_str("has never been listed")?;
                here.iter().try_for_each(|here| write!(f, " (this host is called {here})"))
            }
            Self::CertificateExpires { role, until, left, .. } => {
                let (day, how) = (until.format("%Y-%m-%d"), "renew it as zsync-tls(8) describes");
                if left.num_seconds() > 0 {
                    write!(f, "the certificate of its {role} expires on {day}, in {}; {how}", span(*left))
                } else {
                    write!(f, "the certificate of its {role} expired on {day}; {how}")
                }
            }
            Self::RevocationListExpires { until, left, .. } => {
                let (day, list) = (until.format("%Y-%m-%d"), "its list of revoked certificates");
                let how = "renew it as zsync-tls(8) describes";
                if left.num_seconds() > 0 {
                    write!(f, "{list} expires on {day}, in {}; {how}", span(*left))
                } else {
                    write!(f, "{list} expired on {day}; {how}")
                }
            }
            Self::NoPass { age, limit, .. } => {
                write!(f, "the director's last pass ended {} ago (limit {})", span(*age), span(*limit))
            }
        }
    }
}

/// A duration in its two largest units, as in `2d 3h`.
#[must_use]
pub fn span(span: TimeDelta) -> String {
    let seconds = span.num_seconds().max(0);
    let units = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let Some(first) = units.iter().position(|(_, length)| seconds >= *length) else { return "0s".into() };
    let (name, length) = units[first];
    let text = format!("{}{name}", seconds / length);
    match units.get(first + 1).map(|(name, next)| (name, seconds % length / next)) {
        Some((name, rest)) if rest > 0 => format!("{text} {rest}{name}"),
        _ => text,
    }
}
