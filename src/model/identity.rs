//! The identity that a peer proved with its certificate: the hosts that it names and the roles that it permits.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::tags::ROLE;
use crate::model::{HostName, some_of};

/// A role that the holder of a certificate may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerRole {
    /// It sends orders to agents.
    Director,
    /// It carries out orders, and sends to slaves.
    Agent,
    /// It receives from agents.
    Slave,
}

impl PeerRole {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Director, Self::Agent, Self::Slave];

    /// The word for the role on the command line and in certificates.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Director => "director",
            Self::Agent => "agent",
            Self::Slave => "slave",
        }
    }
}

impl fmt::Display for PeerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for PeerRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| format!("{text:?} is not a role; roles are director, agent and slave"))
    }
}

/// The identity that a certificate states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its DNS names. Wildcards are left out: they identify no host.
    pub names: Vec<HostName>,
    /// The roles that it permits. `None` if the certificate names no role, as is the case if its CA knows nothing of
    /// zsync: then the configuration of the other side decides.
    pub roles: Option<BTreeSet<PeerRole>>,
    /// When the certificate expires, if that is known.
    pub until: Option<DateTime<Utc>>,
}

impl Identity {
    /// Reads the DNS names and the URIs among a certificate's subject alternative names.
    #[must_use]
    pub fn new<'a>(dns: impl IntoIterator<Item = &'a str>, uris: impl IntoIterator<Item = &'a str>) -> Self {
        let names = dns.into_iter().filter_map(|name| name.parse().ok()).collect();
        let mut roles: Option<BTreeSet<PeerRole>> = None;
        for uri in uris {
            // URI schemes are case-insensitive, and a role must not be overlooked because a CA writes capitals.
            let uri = uri.to_ascii_lowercase();
            // An unknown role permits nothing, but the certificate counts as one that names its roles.
            if let Some(role) = uri.strip_prefix(ROLE) {
                roles.get_or_insert_default().extend(role.parse::<PeerRole>());
            }
        }
        Self { names, roles, until: None }
    }

    /// Whether it names this host. The comparison ignores case, as DNS does.
    #[must_use]
    pub fn is(&self, host: &HostName) -> bool {
        self.names.iter().any(|name| name.as_str().eq_ignore_ascii_case(host.as_str()))
    }

    /// Whether it permits a role: it names this role, or no role at all.
    #[must_use]
    pub fn may_be(&self, role: PeerRole) -> bool {
        self.roles.as_ref().is_none_or(|roles| roles.contains(&role))
    }

    /// How to renew the certificate, as an imperative for a hint.
    #[must_use]
    pub fn renewal(&self) -> String {
        match (self.names.split_first(), &self.roles) {
            (Some((host, others)), Some(roles)) if !roles.is_empty() => {
                let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
                let also: String = others.iter().map(|name| format!(" --also {name}")).collect();
                let roles = roles.join(",");
                format!("renew it where its CA is: zsync tls issue {host} --role {roles}{also} --renew")
            }
            _ => "renew it with the CA that issued it".to_owned(),
        }
    }

    /// The roles that it names, in words.
    #[must_use]
    pub fn roles_in_words(&self) -> String {
        match &self.roles {
            None => "no particular role".to_owned(),
            Some(roles) if roles.is_empty() => "no role known here".to_owned(),
            Some(roles) => roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", "),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            return f.write_str("nobody");
        }
        // A company's certificate may have dozens of names.
        f.write_str(&some_of(&self.names.iter().map(HostName::as_str).collect::<Vec<_>>(), 4))
    }
}

/// The files with which a process authenticates itself and its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates of the trusted CAs.
    pub ca: PathBuf,
    /// The process's own certificate, followed by the intermediate ones.
    pub certificate: PathBuf,
    /// The private key of that certificate.
    pub key: PathBuf,
    /// The lists of revoked certificates; `None` if nothing is checked for revocation.
    pub crl: Option<PathBuf>,
}

impl Default for TlsFiles {
    /// The files in the folder in which the help of `zsync tls` recommends installing them.
    fn default() -> Self {
        let file = |name| PathBuf::from("/etc/zsync/tls").join(name);
        Self { ca: file("ca.crt"), certificate: file("host.crt"), key: file("host.key"), crl: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn identity_matches_whole_names_and_ignores_wildcards() {
        let identity = Identity::new(["alpha.example.org", "Beta", "*.example.org", "-x", ""], []);
        assert_eq!(identity.names, [host("alpha.example.org"), host("Beta")]);
        assert!(identity.is(&host("ALPHA.example.org")) && identity.is(&host("beta")));
        for other in ["alpha", "gamma.example.org", "x.alpha.example.org", "example.org"] {
            assert!(!identity.is(&host(other)), "{other}");
        }
        assert_eq!(identity.to_string(), "alpha.example.org, Beta");
        assert_eq!(Identity::default().to_string(), "nobody");
    }

    #[test]
    fn renewal_repeats_names_and_roles() {
        let identity = Identity::new(["alpha", "alpha.example.org"], ["zsync:role:agent", "zsync:role:director"]);
        let command = "zsync tls issue alpha --role director,agent --also alpha.example.org --renew";
        assert!(identity.renewal().ends_with(command), "{}", identity.renewal());
        assert_eq!(Identity::new(["alpha"], []).renewal(), "renew it with the CA that issued it");
    }

    #[test]
    fn identity_permits_only_the_roles_that_it_names() {
        let roles = |uris: &[&str]| {
            let identity = Identity::new(["alpha"], uris.iter().copied());
            PeerRole::ALL.map(|role| identity.may_be(role))
        };
        assert_eq!(roles(&[]), [true; 3]);
        assert_eq!(roles(&["spiffe://example.org/alpha"]), [true; 3]);
        assert_eq!(roles(&["zsync:role:director"]), [true, false, false]);
        assert_eq!(roles(&["zsync:role:agent", "zsync:role:slave"]), [false, true, true]);
        assert_eq!(roles(&["zsync:role:"]), [false; 3]);
        assert_eq!(roles(&["zsync:role:observer"]), [false; 3]);
        assert_eq!(roles(&["ZSYNC:role:Agent"]), [false, true, false]);
    }
}
