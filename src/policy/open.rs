//! Finds what the configuration of a host leaves open to others, although nothing forbids it.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::model::{DatasetName, HostName};
use crate::policy::{AGENT_PORT, Address, CatalogConfig, ConsulConfig, Local, Policy, SLAVE_PORT};

/// Something that is open. It is no error, but an administrator should have decided so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Any host may send into an entry.
    AnySource {
        /// The file of the entry.
        file: String,
        /// The entry.
        entry: DatasetName,
    },
    /// Directors may have all snapshots of received copies destroyed.
    NoFloor {
        /// The file of the entry.
        file: String,
        /// The entry.
        entry: DatasetName,
    },
    /// The agent and the slave listen in plaintext where other machines reach them.
    ListensInPlaintext {
        /// The file that says so.
        file: String,
        /// The address.
        address: Address,
    },
    /// Orders go to other machines in plaintext.
    OrdersInPlaintext {
        /// The hosts that get them.
        hosts: Vec<HostName>,
    },
    /// Records and the token go to a Consul on another machine in plaintext.
    ConsulInPlaintext {
        /// The file that says so: that of the policy if `None`.
        file: Option<String>,
        /// The address.
        address: String,
    },
}

impl Opening {
    /// What can be done about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::AnySource { .. } => "name the hosts that may send in \"sources\"",
            Self::NoFloor { .. } => {
                "set \"keep\" to the snapshots that no order may destroy, for example [\"7 in last 7 days\"]"
            }
            Self::ListensInPlaintext { .. } | Self::OrdersInPlaintext { .. } => "set \"tls\", see zsync-tls(8)",
            Self::ConsulInPlaintext { .. } => "use the Consul agent of this machine, or an address with https://",
        }
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnySource { file, entry } => {
                write!(f, "{file}: any host may send into {entry}, because its entry has no \"sources\"")
            }
            Self::NoFloor { file, entry } => write!(
                f,
                "{file}: a director may have all but the newest snapshots of the copies in {entry} destroyed, because its \
                 entry has \"append_only\": false and no \"keep\""
            ),
            Self::ListensInPlaintext { file, address } => write!(
                f,
                "{file}: \"listen\" is {}, which other machines may reach, and without \"tls\" anyone there can give \
                 orders and send",
                address.host()
            ),
            Self::OrdersInPlaintext { hosts } => {
                let hosts: Vec<&str> = hosts.iter().map(HostName::as_str).collect();
                write!(
                    f,
                    "server.json: without \"tls\", orders to {} go over the network in plaintext, and nobody proves who \
                     they are",
                    hosts.join(", ")
                )
            }
            Self::ConsulInPlaintext { file, address } => write!(
                f,
                "{}: records and the token go to Consul at {address} in plaintext",
                file.as_deref().unwrap_or("server.json")
            ),
        }
    }
}

impl Serialize for Opening {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self}; hint: {}", self.hint()))
    }
}

fn consul_in_plaintext(config: &ConsulConfig, file: Option<&str>) -> Option<Opening> {
    let address = config.address.as_deref()?;
    let plain = match address.split_once("://") {
        Some(("http", rest)) => rest.split('/').next().unwrap_or(rest),
        None => address,
        Some(_) => return None,
    };
    let is_local = plain.parse().is_ok_and(|address: Address| address.is_loopback());
    (!is_local).then(|| Opening::ConsulInPlaintext { file: file.map(str::to_owned), address: address.to_owned() })
}

impl Local {
    /// What this file leaves open.
    #[must_use]
    pub fn openings(&self) -> Vec<Opening> {
        let file = &self.file;
        let receiving = self.datasets.values().filter(|entry| entry.enable && entry.slave);
        let of_entries = receiving.flat_map(|entry| {
            let name = || entry.name.clone();
            let any = entry.sources.is_none().then(|| Opening::AnySource { file: file.clone(), entry: name() });
            let has_floor = entry.append_only || entry.keep.is_some();
            [any, (!has_floor).then(|| Opening::NoFloor { file: file.clone(), entry: name() })]
        });
        let listens = self.listen.clone().filter(|address| self.tls.is_none() && !address.is_loopback());
        let listens = listens.map(|address| Opening::ListensInPlaintext { file: file.clone(), address });
        let consul = self.consul.as_ref().and_then(|consul| consul_in_plaintext(consul, Some(file)));
        of_entries.flatten().chain(listens).chain(consul).collect()
    }
}

impl Policy {
    /// What this file leaves open, if its director is on the host `here`.
    #[must_use]
    pub fn openings(&self, here: Option<&HostName>) -> Vec<Opening> {
        let is_beyond = |host: &HostName| {
            let addresses = self.hosts.get(host);
            let agent = addresses.and_then(|a| a.address.clone());
            if agent.is_none() && here == Some(host) {
                return false;
            }
            let slave = addresses.and_then(|a| a.receive_address.clone());
            let agent = agent.unwrap_or_else(|| format!("{host}:{AGENT_PORT}"));
            let slave = slave.unwrap_or_else(|| format!("{host}:{SLAVE_PORT}"));
            [agent, slave].iter().any(|text| text.parse().is_ok_and(|address: Address| !address.is_loopback()))
        };
        let hosts: Vec<HostName> = match self.tls {
            Some(_) => Vec::new(),
            None => self.hosts_named().into_iter().filter(is_beyond).collect(),
        };
        let orders = (!hosts.is_empty()).then_some(Opening::OrdersInPlaintext { hosts });
        let consul = match &self.catalog {
            CatalogConfig::Consul(consul) => consul_in_plaintext(consul, None),
            CatalogConfig::Embedded { .. } => None,
        };
        orders.into_iter().chain(consul).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consul_is_in_plaintext_only_over_the_network_and_without_tls() {
        for (address, open) in [
            ("127.0.0.1:8500", false),
            ("localhost:8500", false),
            ("http://[::1]:8500/prefix", false),
            ("unix:///run/consul.sock", false),
            ("https://consul.example.org:8501", false),
            ("http://10.0.0.1:8500/prefix", true),
            ("consul:8500", true),
        ] {
            let config = ConsulConfig { address: Some(address.to_owned()), ..ConsulConfig::default() };
            assert_eq!(consul_in_plaintext(&config, None).is_some(), open, "{address}");
        }
    }
}
