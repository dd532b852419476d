//! The configuration of access to Consul, which is the same for directors, agents and slaves.

use std::fmt;
use std::path::PathBuf;

/// Text that never appears in logs or errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the code that sends it to Consul.
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

/// The object `consul` of `server.json` and `local.json`. The environment variables `CONSUL_...` take precedence over
/// it. If neither sets a value, the default of Consul applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsulConfig {
    /// `host:port`, `http(s)://host:port[/path]` or `unix:///path`; by default `127.0.0.1:8500`.
    pub address: Option<String>,
    /// The ACL token.
    pub token: Option<Secret>,
    /// A file that holds the token.
    pub token_file: Option<PathBuf>,
    /// The PEM file of the CAs that may sign Consul's certificate.
    pub ca_file: Option<PathBuf>,
    /// The PEM file of the client certificate.
    pub cert_file: Option<PathBuf>,
    /// The PEM file of its key.
    pub key_file: Option<PathBuf>,
    /// The name expected in Consul's certificate, if it is not the one in the address.
    pub tls_server_name: Option<String>,
    /// The datacenter, if it is not that of the Consul agent.
    pub datacenter: Option<String>,
    /// The prefix of all keys, by default `zsync`. Directors and hosts of one fleet must use the same one.
    pub prefix: Option<String>,
    /// The address of this host in Consul's service catalog. Only in `local.json`.
    pub advertise: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_hidden_in_debug_output() {
        let config = ConsulConfig { token: Some(Secret::new("b1gs3cr3t")), ..ConsulConfig::default() };
        assert!(!format!("{config:?}").contains("b1gs3cr3t"));
    }
}
