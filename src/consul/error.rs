//! Defines the errors of the Consul client. Each names the address, the request, and Consul's message.

use std::time::Duration;

use thiserror::Error;

/// Why a request to Consul failed.
#[derive(Debug, Error)]
pub enum ConsulError {
    /// The configuration, or the environment, is not usable.
    #[error("cannot use Consul: {0}")]
    Setup(String),
    /// The connection failed.
    #[error("cannot reach Consul at {address} ({endpoint}): {reason}")]
    Unreachable {
        /// The address, as configured.
        address: String,
        /// Method and path of the request.
        endpoint: String,
        /// The cause.
        reason: String,
    },
    /// No response arrived in time.
    #[error("Consul at {address} did not answer {endpoint} within {}", humantime::format_duration(*.limit))]
    Timeout {
        /// The address, as configured.
        address: String,
        /// Method and path of the request.
        endpoint: String,
        /// How long the client waited.
        limit: Duration,
    },
    /// Consul answered with an error.
    #[error(
        "Consul at {address} refused {endpoint} with status {status}: {text}{}{}",
        lacks(*.status, .text, .permission), hint(*.status, .text)
    )]
    Refused {
        /// The address, as configured.
        address: String,
        /// Method and path of the request.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// Consul's message.
        text: String,
        /// The permission that the request needs, such as `key:write on zsync/catalog`.
        permission: Option<String>,
    },
    /// The response is not what Consul documents.
    #[error(
        "cannot parse the response of {address} to {endpoint}: {detail}; hint: check that Consul is what listens there"
    )]
    InvalidResponse {
        /// The address, as configured.
        address: String,
        /// Method and path of the request.
        endpoint: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// The permission that is missing, because Consul itself often does not name it.
fn lacks(status: u16, text: &str, permission: &Option<String>) -> String {
    match permission {
        Some(permission) if status == 403 && !text.contains(UNKNOWN_TOKEN) => format!("; the token lacks {permission}"),
        _ => String::new(),
    }
}

/// What Consul says of a token that it does not know.
const UNKNOWN_TOKEN: &str = "ACL not found";

fn hint(status: u16, text: &str) -> &'static str {
    match status {
        403 if text.contains(UNKNOWN_TOKEN) => {
            "; hint: Consul does not know the token: configure another one in consul.token_file or CONSUL_HTTP_TOKEN"
        }
        403 => {
            "; hint: configure a token with this permission in consul.token_file or CONSUL_HTTP_TOKEN; \
              zsync-director(8) has the policies"
        }
        400 if text.contains("HTTPS") => "; hint: begin consul.address with https://",
        413 => {
            "; hint: raise kv_max_value_size and txn_max_req_len on the Consul servers at least to Consul's defaults"
        }
        _ if text.contains("No cluster leader") => "; the servers are electing a leader, or most of them are down",
        _ => "",
    }
}

impl ConsulError {
    /// Whether Consul refused because the session does not exist (any more).
    #[must_use]
    pub(super) fn is_about_session(&self) -> bool {
        matches!(self, Self::Refused { status: 400.., text, .. } if text.contains("session"))
    }

    /// The error without the endpoint, so that a lasting failure always reads the same, and can be logged only once.
    #[must_use]
    pub fn gist(&self) -> String {
        match self {
            Self::Unreachable { address, reason, .. } => format!("cannot reach Consul at {address}: {reason}"),
            Self::Timeout { address, .. } => format!("Consul at {address} does not answer"),
            other => other.to_string(),
        }
    }
}
