//! What can go wrong with Consul. Every error names the address, what was asked, and Consul's own words.

use std::time::Duration;

use thiserror::Error;

/// Why Consul could not be asked, or what it said instead.
#[derive(Debug, Error)]
pub enum ConsulError {
    /// What is configured, or in the environment, cannot be used.
    #[error("cannot use Consul: {0}")]
    Setup(String),
    /// No connection came about, or it broke.
    #[error("cannot reach Consul at {address} ({endpoint}): {reason}")]
    Unreachable {
        /// As configured.
        address: String,
        /// Method and path.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The deadline passed.
    #[error("Consul at {address} did not answer {endpoint} within {}", humantime::format_duration(*.within))]
    Silent {
        /// As configured.
        address: String,
        /// Method and path.
        endpoint: String,
        /// The deadline.
        within: Duration,
    },
    /// Consul says no.
    #[error("Consul at {address} answered {endpoint} with {status}: {text}{}", way_out(*.status, .text))]
    Refused {
        /// As configured.
        address: String,
        /// Method and path.
        endpoint: String,
        /// HTTP's status.
        status: u16,
        /// Consul's words.
        text: String,
    },
    /// The answer is not what Consul documents.
    #[error("Consul at {address} answered {endpoint} with something that is not understood: {detail}; is it a Consul?")]
    Nonsense {
        /// As configured.
        address: String,
        /// Method and path.
        endpoint: String,
        /// What is wrong.
        detail: String,
    },
}

fn way_out(status: u16, text: &str) -> &'static str {
    match status {
        403 => "; give a token that may do this: consul.token_file, or CONSUL_HTTP_TOKEN",
        400 if text.contains("HTTPS") => "; write https:// in consul.address",
        413 => "; the servers' limits kv_max_value_size and txn_max_req_len are below Consul's defaults",
        _ if text.contains("No cluster leader") => "; its servers are choosing a leader, or most of them are away",
        _ => "",
    }
}

impl ConsulError {
    /// Whether Consul said that the session is not there (any more).
    #[must_use]
    pub fn is_about_session(&self) -> bool {
        matches!(self, Self::Refused { status: 400.., text, .. } if text.contains("session"))
    }

    /// The same whatever the endpoint was: what is said once while it lasts.
    #[must_use]
    pub fn gist(&self) -> String {
        match self {
            Self::Unreachable { address, reason, .. } => format!("cannot reach Consul at {address}: {reason}"),
            Self::Silent { address, .. } => format!("Consul at {address} does not answer"),
            other => other.to_string(),
        }
    }
}
