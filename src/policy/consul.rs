//! How a Consul is reached, as configured: the same keys for directors, agents and slaves.

use std::fmt;
use std::path::PathBuf;

/// Text that no log and no error shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that has to send it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// The object `consul` of `server.json` and `local.json`. What is missing is taken from the environment's
/// `CONSUL_...` variables, which also win over what is written; then Consul's own defaults hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsulConfig {
    /// `host:port`, `http(s)://host:port[/path]` or `unix:///path`; by default `127.0.0.1:8500`.
    pub address: Option<String>,
    /// The ACL token.
    pub token: Option<Secret>,
    /// A file that holds the token.
    pub token_file: Option<PathBuf>,
    /// PEM file of the certificates that Consul's is to be signed by.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate that is shown to Consul.
    pub cert_file: Option<PathBuf>,
    /// PEM file of its key.
    pub key_file: Option<PathBuf>,
    /// The name that Consul's certificate is to have, if not the address'.
    pub tls_server_name: Option<String>,
    /// The datacenter, if not that of the agent asked.
    pub datacenter: Option<String>,
    /// What all keys begin with; by default `zsync`. Directors and hosts of one fleet need the same.
    pub prefix: Option<String>,
    /// The address under which other hosts reach this one: for the service catalog. Only in `local.json`.
    pub advertise: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_shown() {
        let config = ConsulConfig { token: Some(Secret::new("b1gs3cr3t")), ..ConsulConfig::default() };
        assert!(!format!("{config:?}").contains("b1gs3cr3t"));
    }
}
