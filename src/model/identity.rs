//! Who a peer has proven to be, and what it may be.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::model::HostName;

/// What a mark in a certificate begins with, as the URI of a subject alternative name: `zsync:role:agent`. Any CA can
/// issue it.
pub const ROLE_MARK: &str = "zsync:role:";

/// What the holder of a certificate may be towards others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerRole {
    /// Gives orders to agents.
    Director,
    /// Carries out orders, and sends to slaves.
    Agent,
    /// Receives.
    Slave,
}

impl PeerRole {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Director, Self::Agent, Self::Slave];

    /// As it is typed and as marks name it.
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

/// Who a certificate says that its holder is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its DNS names. A wildcard names nobody, and is left out.
    pub names: Vec<HostName>,
    /// What it may be; `None` where the CA does not say, as one that knows nothing of zsync: then it is what others'
    /// configuration names it for.
    pub roles: Option<BTreeSet<PeerRole>>,
}

impl Identity {
    /// From the DNS names and the URIs among a certificate's subject alternative names.
    #[must_use]
    pub fn new<'a>(dns: impl IntoIterator<Item = &'a str>, uris: impl IntoIterator<Item = &'a str>) -> Self {
        let names = dns.into_iter().filter_map(|name| name.parse().ok()).collect();
        let mut roles: Option<BTreeSet<PeerRole>> = None;
        for uri in uris {
            // A scheme has no capital letters, however a CA writes it: a mark must never count as none.
            let uri = uri.to_ascii_lowercase();
            // One that is not known yet is none of those that are: the certificate is marked all the same.
            if let Some(mark) = uri.strip_prefix(ROLE_MARK) {
                roles.get_or_insert_default().extend(mark.parse::<PeerRole>());
            }
        }
        Self { names, roles }
    }

    /// Whether it is this host. DNS does not tell capital letters from small ones.
    #[must_use]
    pub fn is(&self, host: &HostName) -> bool {
        self.names.iter().any(|name| name.as_str().eq_ignore_ascii_case(host.as_str()))
    }

    /// Whether nothing in it says that it may not be this.
    #[must_use]
    pub fn may_be(&self, role: PeerRole) -> bool {
        self.roles.as_ref().is_none_or(|roles| roles.contains(&role))
    }

    /// What it is marked for, in words.
    #[must_use]
    pub fn roles_in_words(&self) -> String {
        match &self.roles {
            None => "no role in particular".to_owned(),
            Some(roles) if roles.is_empty() => "no role that is known here".to_owned(),
            Some(roles) => roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", "),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            return f.write_str("nobody");
        }
        // A certificate of a company may have dozens.
        let shown: Vec<&str> = self.names.iter().take(4).map(HostName::as_str).collect();
        f.write_str(&shown.join(", "))?;
        if self.names.len() > shown.len() { write!(f, " and {} more", self.names.len() - shown.len()) } else { Ok(()) }
    }
}

/// The files that a process proves itself with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates of the CAs whose word counts.
    pub ca: PathBuf,
    /// The own certificate, with those between it and the CA behind it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Default for TlsFiles {
    /// Where `zsync tls issue` has its files put.
    fn default() -> Self {
        let file = |name| PathBuf::from("/etc/zsync/tls").join(name);
        Self { ca: file("ca.crt"), certificate: file("host.crt"), key: file("host.key") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn a_certificate_names_hosts_letter_by_letter() {
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
    fn a_marked_certificate_is_only_what_it_is_marked_for() {
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
