//! [`Consul`] sends requests to the API of Consul, and turns every failure into a [`ConsulError`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;
use surf::http::Method;
use surf::{Client, Url};

use crate::consul::error::ConsulError;
use crate::consul::http::{ANSWER_WITHIN, Deadline, HttpClient, HttpError};
use crate::consul::settings::ConsulSettings;
use crate::policy::Secret;

/// A client for one Consul. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Consul(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    base: Url,
    /// The address, for messages.
    address: String,
    datacenter: Option<String>,
    token: Option<Secret>,
    received_bytes: AtomicU64,
}

/// A request to the API.
pub(super) struct ApiRequest<'a> {
    pub method: Method,
    /// Segments of the path, not yet percent-encoded.
    pub path: &'a [&'a str],
    pub query: Vec<(&'a str, String)>,
    pub body: Vec<u8>,
    pub timeout: Duration,
    /// Statuses besides 200 that are not errors.
    pub accepted: &'a [u16],
}

impl<'a> ApiRequest<'a> {
    pub fn new(method: Method, path: &'a [&'a str]) -> Self {
        Self { method, path, query: Vec::new(), body: Vec::new(), timeout: ANSWER_WITHIN, accepted: &[] }
    }

    pub fn get(path: &'a [&'a str]) -> Self {
        Self::new(Method::Get, path)
    }

    pub fn put(path: &'a [&'a str], body: Vec<u8>) -> Self {
        Self { body, ..Self::new(Method::Put, path) }
    }

    pub fn with_query(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub fn consistent(self) -> Self {
        self.with_query("consistent", "")
    }
}

/// The response to an [`ApiRequest`].
pub(super) struct ApiResponse {
    pub status: u16,
    /// The header `X-Consul-Index`.
    pub index: u64,
    pub body: Vec<u8>,
    /// Method and path of the request, for messages.
    pub endpoint: String,
}

impl Consul {
    /// Creates a client. Does not connect yet. Fails if the settings cannot be used.
    pub fn new(settings: &ConsulSettings) -> Result<Self, ConsulError> {
        let unusable = |error: &dyn std::fmt::Display| ConsulError::Setup(error.to_string());
        let mut config = surf::Config::new().set_http_client(HttpClient::new(settings)?);
        if let Some(token) = &settings.token {
            config = config.add_header("X-Consul-Token", token.reveal()).map_err(|e| unusable(&e))?;
        }
        let client: Client = config.try_into().map_err(|e: std::convert::Infallible| unusable(&e))?;
        Ok(Self(Arc::new(Shared {
            client,
            base: settings.base.clone(),
            address: settings.display_address.clone(),
            datacenter: settings.datacenter.clone(),
            token: settings.token.clone(),
            received_bytes: AtomicU64::new(0),
        })))
    }

    /// The total size of all response bodies so far, in bytes.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.0.received_bytes.load(Ordering::Relaxed)
    }

    /// The address of Consul, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.address
    }

    fn url(&self, request: &ApiRequest<'_>) -> Result<Url, ConsulError> {
        let mut url = self.0.base.clone();
        {
            let mut path =
                url.path_segments_mut().map_err(|()| ConsulError::Setup("its address cannot have a path".into()))?;
            path.pop_if_empty().extend(request.path);
        }
        let datacenter = self.0.datacenter.iter().map(|dc| ("dc", dc.clone()));
        let query: Vec<_> = request.query.iter().cloned().chain(datacenter).collect();
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    pub(super) async fn send(&self, request: ApiRequest<'_>) -> Result<ApiResponse, ConsulError> {
        let url = self.url(&request)?;
        let accepted = request.accepted;
        let endpoint = format!("{} {}", request.method, url.path());
        let permission = permission(request.method, request.path);
        let mut built = self.0.client.request(request.method, &url).body(request.body).build();
        AsMut::<surf::http::Request>::as_mut(&mut built).ext_mut().insert(Deadline(request.timeout));
        let mut response = match self.0.client.send(built).await {
            Ok(response) => response,
            Err(error) => return Err(self.transport_error(endpoint, &error)),
        };
        let body = response.body_bytes().await.map_err(|error| self.transport_error(endpoint.clone(), &error))?;
        self.0.received_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        let status = u16::from(response.status());
        // Consul leaves out what the token may not read, and newer versions say so.
        let filtered =
            response.header("X-Consul-Results-Filtered-By-ACLs").is_some_and(|v| v.last().as_str() == "true");
        if filtered {
            let (address, text) = (self.0.address.clone(), "it left out what the token may not read".to_owned());
            return Err(ConsulError::Refused { address, endpoint, status: 403, text, permission });
        }
        let index = response.header("X-Consul-Index").and_then(|values| values.last().as_str().parse().ok());
        if status == 200 || accepted.contains(&status) {
            return Ok(ApiResponse { status, index: index.unwrap_or(0), body, endpoint });
        }
        let (address, text) = (self.0.address.clone(), self.error_text(&body));
        Err(ConsulError::Refused { address, endpoint, status, text, permission })
    }

    /// Consul's error message on one line, without the token.
    fn error_text(&self, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(body);
        let mut text: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
        if let Some(token) = &self.0.token {
            text = text.replace(token.reveal(), "(the token)");
        }
        if text.is_empty() { "no message".to_owned() } else { text }
    }

    fn transport_error(&self, endpoint: String, error: &surf::Error) -> ConsulError {
        let address = self.0.address.clone();
        match error.downcast_ref::<HttpError>() {
            Some(HttpError::Timeout(limit)) => ConsulError::Timeout { address, endpoint, limit: *limit },
            Some(error @ (HttpError::TooLarge | HttpError::Request(_))) => {
                ConsulError::InvalidResponse { address, endpoint, detail: error.to_string() }
            }
            Some(error) => ConsulError::Unreachable { address, endpoint, reason: error.to_string() },
            None => ConsulError::Unreachable { address, endpoint, reason: error.to_string() },
        }
    }

    pub(super) fn invalid_response(&self, response: &ApiResponse, detail: impl std::fmt::Display) -> ConsulError {
        let (address, endpoint) = (self.0.address.clone(), response.endpoint.clone());
        ConsulError::InvalidResponse { address, endpoint, detail: detail.to_string() }
    }

    pub(super) fn parse<T: DeserializeOwned>(&self, response: &ApiResponse) -> Result<T, ConsulError> {
        serde_json::from_slice(&response.body).map_err(|error| self.invalid_response(response, error))
    }

    /// Returns the leader's address, or an error while there is no leader.
    pub async fn leader(&self) -> Result<String, ConsulError> {
        let response = self.send(ApiRequest::get(&["v1", "status", "leader"])).await?;
        let leader: String = self.parse(&response)?;
        if leader.is_empty() {
            let (address, endpoint) = (self.0.address.clone(), response.endpoint);
            let text = "No cluster leader".into();
            return Err(ConsulError::Refused { address, endpoint, status: 500, text, permission: None });
        }
        Ok(leader)
    }
}

/// The permission that a request needs, in the words of Consul's documentation.
fn permission(method: Method, path: &[&str]) -> Option<String> {
    match path {
        ["v1", "kv", key @ ..] => {
            let access = if method == Method::Get { "read" } else { "write" };
            Some(format!("key:{access} on {}", key.join("/")))
        }
        ["v1", "session", ..] => Some("session:write on the node of this Consul agent".to_owned()),
        ["v1", "health", "service", name] => Some(format!("service:read on {name}, or node:read on its nodes")),
        ["v1", "agent", "service" | "check", ..] => Some("service:write".to_owned()),
        _ => None,
    }
}

/// Formats a duration for Consul.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs().max(1))
}
