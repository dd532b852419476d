//! All findings of a health report as lines of text, for `zsync check`, `zsync status` and logs.

use std::cmp::Reverse;
use std::fmt;

use crate::actions::health::{CertificateState, Finding, Health, HostState, Row, Severity};

/// The subject of a finding.
enum Subject<'a> {
    Host(&'a HostState),
    Row(&'a Row),
    Certificate(&'a CertificateState),
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(state) => write!(f, "{}", state.host),
            Self::Certificate(state) => write!(f, "{}", state.expiry.host),
            Self::Row(row) => {
                write!(f, "{}:{} ({})", row.host, row.dataset, row.policy)?;
                match &row.to {
                    Some(to) => write!(f, " to {}:{}", to.host, to.dataset),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Health {
    /// Every finding with its subject, the most severe first.
    #[must_use]
    pub fn findings(&self) -> Vec<(Severity, String)> {
        let hosts = self.hosts.iter().flat_map(|host| host.findings.iter().map(move |f| (Subject::Host(host), f)));
        let rows = self.rows.iter().flat_map(|row| row.findings.iter().map(move |f| (Subject::Row(row), f)));
        let certificates =
            self.certificates.iter().flat_map(|it| it.findings.iter().map(move |f| (Subject::Certificate(it), f)));
        let line = |(subject, finding): (Subject<'_>, &Finding)| (finding.severity(), format!("{subject}: {finding}"));
        let mut all: Vec<(Severity, String)> = hosts.chain(certificates).chain(rows).map(line).collect();
        all.extend(self.pass.iter().map(|finding| (finding.severity(), finding.to_string())));
        all.extend(self.notices.iter().map(|notice| (Severity::Critical, notice.to_string())));
        all.sort_by_key(|(severity, _)| Reverse(*severity));
        all
    }
}
