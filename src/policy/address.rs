//! Network addresses as written in configurations (a name or an IP address, with or without a port), and the default
//! ports.

use std::fmt;
use std::net::IpAddr;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::model::HostName;

/// The default port of agents.
pub const AGENT_PORT: u16 = 7711;
/// The default port of slaves.
pub const SLAVE_PORT: u16 = 7722;

/// A host with or without a port: `10.0.0.2:7711`, `beta.example.org`, `[::1]:7711`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name, an IPv4 address, or an IPv6 address in brackets.
    host: String,
    /// The port; `None` for the default of the service.
    port: Option<u16>,
}

/// Why a text is not an address.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not an address: {reason}; hint: write host:port, as in 10.0.0.2:7711, beta:7711 or [::1]:7711")]
pub struct AddressError {
    /// The text as found.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Address {
    /// The host; an IPv6 address is in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, if one was given.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether it is evident from its text that the address can be reached only from its own machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        self.host.eq_ignore_ascii_case("localhost")
            || bare.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback())
    }

    /// `host:port`, with the given port if the address has none.
    #[must_use]
    pub fn with_default_port(&self, port: u16) -> String {
        format!("{}:{}", self.host, self.port.unwrap_or(port))
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        split(text).map_err(|reason| AddressError { text: text.chars().take(80).collect(), reason })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

fn split(text: &str) -> Result<Address, String> {
    if text.contains("://") {
        return Err("it is a URL".to_owned());
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("the bracket is not closed")?;
        host.parse::<Ipv6Addr>().map_err(|_| format!("{host:?} in the brackets is not an IPv6 address"))?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(port),
            None if after.is_empty() => None,
            None => return Err(format!("{after:?} after the bracket is not a port")),
        };
        (format!("[{host}]"), port)
    } else if text.parse::<Ipv6Addr>().is_ok() {
        return Err("an IPv6 address must be in brackets".to_owned());
    } else {
        let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        check_host(host)?;
        (host.to_owned(), port)
    };
    let port = match port {
        None => None,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| format!("{digits} is not a port (1 to 65535)"))?)
        }
        Some(other) => return Err(format!("{other:?} is not a port (1 to 65535)")),
    };
    Ok(Address { host, port })
}

fn check_host(host: &str) -> Result<(), String> {
    // A resolver takes digits and dots for an IPv4 address, but not always for the intended one.
    if !host.is_empty() && host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return host.parse::<Ipv4Addr>().map(|_| ()).map_err(|_| format!("{host:?} is not an IPv4 address"));
    }
    HostName::try_from(host)
        .map(|_| ())
        .map_err(|error| format!("{:?} is not a host name: {}", error.text, error.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_without_port_gets_the_default() {
        for (text, full) in [
            ("10.0.0.2", "10.0.0.2:7711"),
            ("10.0.0.2:1", "10.0.0.2:1"),
            ("beta.example.org", "beta.example.org:7711"),
            ("[::1]", "[::1]:7711"),
            ("[fe80::1]:65535", "[fe80::1]:65535"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.with_default_port(AGENT_PORT), full);
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn address_that_cannot_be_dialled_is_rejected() {
        for text in [
            "",
            ":7711",
            "beta:",
            "beta:x",
            "beta:65536",
            "beta:-1",
            "beta:+1",
            "10.0.0.300",
            "10.0.0",
            "::1",
            "[::1",
            "[::1]7",
            "[beta]:1",
            "http://beta",
            "a b",
            "beta:1:2",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
