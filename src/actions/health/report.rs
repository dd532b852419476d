//! The health report, which can be limited to one host or dataset.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Serialize, Serializer};

use crate::actions::health::finding::{Finding, Severity};
use crate::actions::notice::Notice;
use crate::model::{CertificateExpiry, DatasetName, HostName, Place, SnapName};
use crate::policy::Opening;

/// A snapshot by name and time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DatedSnapshot {
    /// The name after `@`.
    pub name: SnapName,
    /// When it was taken.
    pub creation: DateTime<Utc>,
}

/// The state of one dataset under one policy, and of one of its destinations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The index of the entry in `policy.datasets`.
    pub entry: usize,
    /// The policy's name: `backup`, `sync`, ...
    pub policy: String,
    /// The host that has the dataset.
    pub host: HostName,
    /// The dataset.
    pub dataset: DatasetName,
    /// The dataset's newest snapshot of the policy.
    pub newest: Option<DatedSnapshot>,
    /// The age of that snapshot, in seconds.
    pub age_seconds: Option<i64>,
    /// How many snapshots of the policy it has.
    pub snapshots: usize,
    /// The destination; `None` if the policy has none.
    pub to: Option<Place>,
    /// The newest of the policy's snapshots that is on both sides.
    pub replica: Option<DatedSnapshot>,
    /// How many of the policy's snapshots the destination lacks; `None` if unknown.
    pub behind: Option<usize>,
    /// Since when the destination lags: the creation of the oldest snapshot that it lacks.
    pub unsent_since: Option<DateTime<Utc>>,
    /// How long the destination has been lagging, in seconds; 0 if it lacks nothing.
    pub lag_seconds: Option<i64>,
    /// How old the newest snapshot on the destination may be, in seconds, by the policy's `lag`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_seconds: Option<i64>,
    /// How old the newest snapshot on the destination is expected to be when the next one arrives, in seconds; `None` if
    /// there is no limit for that, or if too little is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast_seconds: Option<i64>,
    /// Since when the newest snapshot on the destination ages.
    #[serde(skip)]
    pub fresh_since: Option<DateTime<Utc>>,
    /// How many bytes are unsent, by estimate; `None` if no estimate was requested, or if the size is unknown.
    pub unsent_bytes: Option<u64>,
    /// When this information was current: the earlier of the times at which the two sides were listed.
    pub observed: Option<DateTime<Utc>>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// The state of a host of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostState {
    /// Its name.
    pub host: HostName,
    /// When its datasets were last listed.
    pub observed: Option<DateTime<Utc>>,
    /// Why it could not be listed; `None` if it was listed.
    pub unseen: Option<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// When the certificate with which a host acts in a role expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateState {
    /// The host, its role, and the end of the validity.
    #[serde(flatten)]
    pub expiry: CertificateExpiry,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// How well the fleet meets the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The moment for which it was judged.
    pub at: DateTime<Utc>,
    /// The worst severity of all findings.
    pub severity: Severity,
    /// The hosts, sorted by name.
    pub hosts: Vec<HostState>,
    /// When certificates expire, by host and role; empty without TLS.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateState>,
    /// The datasets with their destinations, in the order of the policy.
    pub rows: Vec<Row>,
    /// Whether the last pass of the director was too long ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<Finding>,
    /// The notices about parts of the policy that cannot be carried out.
    #[serde(serialize_with = "as_text")]
    pub notices: Vec<Notice>,
    /// The notices about datasets of the policy that are left alone: they were excluded, or lost their source.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Vec::is_empty")]
    pub reminders: Vec<Notice>,
    /// What the configuration leaves open to others. It does not count as a problem.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<Opening>,
}

fn as_text<S: Serializer>(notices: &[Notice], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(notices.iter().map(ToString::to_string))
}

impl Row {
    /// The age of the newest snapshot.
    #[must_use]
    pub fn age(&self) -> Option<TimeDelta> {
        self.age_seconds.map(TimeDelta::seconds)
    }

    /// How far the destination lags: the age of the oldest snapshot that it lacks, zero if it lacks none.
    #[must_use]
    pub fn lag(&self) -> Option<TimeDelta> {
        self.lag_seconds.map(TimeDelta::seconds)
    }

    /// The worst severity of its findings.
    #[must_use]
    pub fn severity(&self) -> Severity {
        worst(&self.findings)
    }
}

/// A pass that ended longer ago than this is a warning: even a director that cron starts once a day makes a pass more
/// often.
const PASS_WARNING: TimeDelta = TimeDelta::hours(25);
/// A pass that ended longer ago than this is critical.
const PASS_CRITICAL: TimeDelta = TimeDelta::hours(49);

impl Health {
    /// Adds a finding if the director's last pass ended too long ago. Without passes nothing is taken, sent or pruned,
    /// and what the catalog says is as old as the last one.
    pub fn judge_pass(&mut self, ended: DateTime<Utc>) {
        let age = self.at - ended;
        let found = |(limit, severity)| Finding::NoPass { age, limit, severity };
        let over = [(PASS_CRITICAL, Severity::Critical), (PASS_WARNING, Severity::Warning)];
        self.pass = over.into_iter().find(|(limit, _)| age > *limit).map(found);
        self.update_severity();
    }

    /// Adds certificates, with a finding for each that has expired or expires soon.
    pub fn judge_certificates(&mut self, certificates: Vec<CertificateExpiry>) {
        let judge = |expiry: CertificateExpiry| {
            let findings = Finding::of_certificate(&expiry, self.at).into_iter().collect();
            CertificateState { expiry, findings }
        };
        self.certificates = certificates.into_iter().map(judge).collect();
        self.update_severity();
    }

    /// Adds a finding to a host whose list of revoked certificates expires soon, or has expired.
    pub fn judge_revocations(&mut self, host: &HostName, until: Option<DateTime<Utc>>) {
        let own = self.certificates.iter_mut().find(|state| state.expiry.host == *host);
        if let (Some(own), Some(until)) = (own, until) {
            own.findings.extend(Finding::of_revocation_list(until, self.at));
        }
        self.update_severity();
    }

    /// Adds notices about parts of the policy that cannot be carried out.
    pub fn add_notices(&mut self, notices: Vec<Notice>) {
        Notice::add(&mut self.notices, notices);
        self.update_severity();
    }

    /// Limits the report to a host, and to a dataset and its descendants.
    pub fn narrow(&mut self, host: Option<&HostName>, dataset: Option<&DatasetName>) {
        let of_host = |name: &HostName| host.is_none_or(|host| host == name);
        let within = |name: &DatasetName| dataset.is_none_or(|root| name.is_within(root));
        self.rows.retain(|row| {
            let to = row.to.as_ref();
            (of_host(&row.host) || to.is_some_and(|to| of_host(&to.host)))
                && (within(&row.dataset) || to.is_some_and(|to| within(&to.dataset)))
        });
        let named: BTreeSet<&HostName> =
            self.rows.iter().flat_map(|row| [Some(&row.host), row.to.as_ref().map(|to| &to.host)]).flatten().collect();
        self.hosts.retain(|state| match dataset {
            None => of_host(&state.host),
            Some(_) => named.contains(&state.host),
        });
        self.certificates.retain(|state| match dataset {
            None => of_host(&state.expiry.host),
            Some(_) => named.contains(&state.expiry.host),
        });
        let wanted = |n: &Notice| of_host(&n.host) && n.dataset.as_ref().is_none_or(within);
        self.notices.retain(wanted);
        self.reminders.retain(wanted);
        self.update_severity();
    }

    pub(super) fn update_severity(&mut self) {
        let rows = self.rows.iter().map(Row::severity);
        let certificates = self.certificates.iter().map(|state| worst(&state.findings));
        let hosts = self.hosts.iter().map(HostState::severity);
        let all = rows.chain(hosts).chain(certificates).chain(self.pass.iter().map(Finding::severity));
        let worst = all.max().unwrap_or_default();
        self.severity = if self.notices.is_empty() { worst } else { Severity::Critical };
    }
}

impl HostState {
    /// The worst severity of its findings.
    #[must_use]
    pub fn severity(&self) -> Severity {
        worst(&self.findings)
    }
}

fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(Finding::severity).max().unwrap_or_default()
}
