//! When the certificates of the fleet expire: those that peers have presented, and those in this host's files.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;

use crate::fleet::live_status::LiveStatus;
use crate::model::{CertificateExpiry, HostName, PeerRole, TlsFiles};
use crate::policy::{Local, Policy};
use crate::transport::tls;

/// When the certificate of a host in a role expires.
type Expiries = BTreeMap<(HostName, PeerRole), DateTime<Utc>>;

/// The expiry of each certificate that this process has seen. Clones share one state.
#[derive(Clone, Default)]
pub struct SeenCertificates(Arc<Mutex<Expiries>>);

impl SeenCertificates {
    /// Notes when the certificate expires with which a host acted in a role; `None` if it presented none.
    pub fn note(&self, host: &HostName, role: PeerRole, until: Option<DateTime<Utc>>) {
        if let Some(until) = until {
            self.0.lock().insert((host.clone(), role), until);
        }
    }

    /// Adds what an earlier process has seen of the hosts of a policy. It knows nothing of directors, because each one
    /// reads its own certificate.
    pub fn restore(&self, policy: &Policy, earlier: Vec<CertificateExpiry>) {
        let hosts = policy.hosts_named();
        for CertificateExpiry { host, role, until } in earlier {
            if role != PeerRole::Director && policy.tls.is_some() && hosts.contains(&host) {
                self.0.lock().entry((host, role)).or_insert(until);
            }
        }
    }

    /// Forgets the hosts that a policy does not name, and everything if it does not use TLS.
    pub fn forget_others(&self, policy: &Policy) {
        let hosts = policy.hosts_named();
        self.0
            .lock()
            .retain(|(host, role), _| policy.tls.is_some() && (*role == PeerRole::Director || hosts.contains(host)));
    }

    /// All that is known, by host and role.
    #[must_use]
    pub fn all(&self) -> Vec<CertificateExpiry> {
        let expiry = |((host, role), until): (&(HostName, PeerRole), &DateTime<Utc>)| CertificateExpiry {
            host: host.clone(),
            role: *role,
            until: *until,
        };
        self.0.lock().iter().map(expiry).collect()
    }
}

/// What is known without asking anybody: what the director has seen, and the certificates in this host's files.
#[must_use]
pub(super) fn known(
    policy: &Policy,
    here: &HostName,
    local: Option<&Local>,
    live: Option<&LiveStatus>,
) -> Vec<CertificateExpiry> {
    let seen = SeenCertificates::default();
    let until = |files: &TlsFiles| {
        let certificates = tls::certificates(&files.certificate).ok()?;
        tls::certificate(certificates.first()?).ok()?.until
    };
    seen.note(here, PeerRole::Director, policy.tls.as_ref().and_then(until));
    if let Some(files) = local.and_then(|local| local.tls.as_ref()) {
        seen.note(here, PeerRole::Agent, until(files));
    }
    if let Some(live) = live {
        seen.restore(policy, live.certificates.clone());
        let directors = live.certificates.iter().filter(|seen| seen.role == PeerRole::Director);
        directors.filter(|of| of.host != *here).for_each(|of| seen.note(&of.host, of.role, Some(of.until)));
    }
    seen.all()
}

/// When the first of this host's lists of revoked certificates expires.
pub(super) fn list_until(policy: &Policy, local: Option<&Local>) -> Option<DateTime<Utc>> {
    let files = policy.tls.iter().chain(local.and_then(|local| local.tls.as_ref()));
    files.filter_map(|files| tls::list_until(files.crl.as_ref()?)).min()
}
