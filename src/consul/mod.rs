//! Consul by its HTTP API: pairs, sessions with their locks, services.
//!
//! surf is the API, over a client of our own (`http`). What is read is read from the leader after it has made sure
//! that it still is one (Consul's `consistent` mode): by default a leader that was cut off may answer from the past
//! for a moment, and an order must never come from there.

mod error;
mod http;
mod kv;
mod services;
mod session;
mod settings;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;
use surf::http::Method;
use surf::{Client, Url};

pub use error::ConsulError;
pub use kv::{Committed, MOST_BYTES, MOST_OPS, Op, Pair};
pub use services::{Health, Instance, Registration};
pub use settings::Settings;

use crate::consul::http::{ANSWER_WITHIN, Fail, Http, Within};
use crate::policy::Secret;

/// A Consul; cheap to clone, clones share connections.
#[derive(Clone, Debug)]
pub struct Consul(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    base: Url,
    shown: String,
    datacenter: Option<String>,
    token: Option<Secret>,
    received: AtomicU64,
}

/// One request to make.
struct Ask<'a> {
    method: Method,
    /// Segments of the path, each to be encoded.
    path: &'a [&'a str],
    query: Vec<(&'a str, String)>,
    body: Vec<u8>,
    within: Duration,
    /// Statuses besides 200 that are answers, not errors.
    also: &'a [u16],
}

impl<'a> Ask<'a> {
    fn new(method: Method, path: &'a [&'a str]) -> Self {
        Self { method, path, query: Vec::new(), body: Vec::new(), within: ANSWER_WITHIN, also: &[] }
    }

    fn get(path: &'a [&'a str]) -> Self {
        Self::new(Method::Get, path)
    }

    fn put(path: &'a [&'a str], body: Vec<u8>) -> Self {
        Self { body, ..Self::new(Method::Put, path) }
    }

    fn with(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    fn consistent(self) -> Self {
        self.with("consistent", "")
    }
}

/// What came back.
struct Answer {
    status: u16,
    /// `X-Consul-Index`.
    index: u64,
    body: Vec<u8>,
    endpoint: String,
}

impl Consul {
    /// A client; nothing is asked yet.
    pub fn new(settings: &Settings) -> Result<Self, ConsulError> {
        let unusable = |error: &dyn std::fmt::Display| ConsulError::Setup(error.to_string());
        let mut config = surf::Config::new().set_http_client(Http::new(settings)?);
        if let Some(token) = &settings.token {
            config = config.add_header("X-Consul-Token", token.reveal()).map_err(|e| unusable(&e))?;
        }
        let client: Client = config.try_into().map_err(|e: std::convert::Infallible| unusable(&e))?;
        Ok(Self(Arc::new(Inner {
            client,
            base: settings.base.clone(),
            shown: settings.shown.clone(),
            datacenter: settings.datacenter.clone(),
            token: settings.token.clone(),
            received: AtomicU64::new(0),
        })))
    }

    /// How many bytes its answers had so far, without their heads.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    /// The address, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.shown
    }

    fn url(&self, ask: &Ask<'_>) -> Result<Url, ConsulError> {
        let mut url = self.0.base.clone();
        {
            let mut path =
                url.path_segments_mut().map_err(|()| ConsulError::Setup("the address has no path".into()))?;
            path.pop_if_empty().extend(ask.path);
        }
        let datacenter = self.0.datacenter.iter().map(|dc| ("dc", dc.clone()));
        let query: Vec<_> = ask.query.iter().cloned().chain(datacenter).collect();
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    async fn ask(&self, ask: Ask<'_>) -> Result<Answer, ConsulError> {
        let url = self.url(&ask)?;
        let endpoint = format!("{} {}", ask.method, url.path());
        let mut request = self.0.client.request(ask.method, &url).body(ask.body).build();
        AsMut::<surf::http::Request>::as_mut(&mut request).ext_mut().insert(Within(ask.within));
        let mut response = match self.0.client.send(request).await {
            Ok(response) => response,
            Err(error) => return Err(self.failed(endpoint, &error)),
        };
        let body = response.body_bytes().await.map_err(|error| self.failed(endpoint.clone(), &error))?;
        self.0.received.fetch_add(body.len() as u64, Ordering::Relaxed);
        let status = u16::from(response.status());
        let index = response.header("X-Consul-Index").and_then(|values| values.last().as_str().parse().ok());
        if status == 200 || ask.also.contains(&status) {
            return Ok(Answer { status, index: index.unwrap_or(0), body, endpoint });
        }
        Err(ConsulError::Refused { address: self.0.shown.clone(), endpoint, status, text: self.words(&body) })
    }

    /// Consul's words, in a line, without what is secret.
    fn words(&self, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(body);
        let mut text: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
        if let Some(token) = &self.0.token {
            text = text.replace(token.reveal(), "(the token)");
        }
        if text.is_empty() { "without a word".to_owned() } else { text }
    }

    fn failed(&self, endpoint: String, error: &surf::Error) -> ConsulError {
        let address = self.0.shown.clone();
        match error.downcast_ref::<Fail>() {
            Some(Fail::Silent(within)) => ConsulError::Silent { address, endpoint, within: *within },
            Some(fail @ (Fail::TooLong | Fail::Request(_))) => {
                ConsulError::Nonsense { address, endpoint, detail: fail.to_string() }
            }
            Some(fail) => ConsulError::Unreachable { address, endpoint, reason: fail.to_string() },
            None => ConsulError::Unreachable { address, endpoint, reason: error.to_string() },
        }
    }

    fn nonsense(&self, answer: &Answer, detail: impl std::fmt::Display) -> ConsulError {
        let (address, endpoint) = (self.0.shown.clone(), answer.endpoint.clone());
        ConsulError::Nonsense { address, endpoint, detail: detail.to_string() }
    }

    fn understand<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, ConsulError> {
        serde_json::from_slice(&answer.body).map_err(|error| self.nonsense(answer, error))
    }

    /// The leader's address; an error while there is none.
    pub async fn leader(&self) -> Result<String, ConsulError> {
        let answer = self.ask(Ask::get(&["v1", "status", "leader"])).await?;
        let leader: String = self.understand(&answer)?;
        if leader.is_empty() {
            let (address, endpoint) = (self.0.shown.clone(), answer.endpoint);
            return Err(ConsulError::Refused { address, endpoint, status: 500, text: "No cluster leader".into() });
        }
        Ok(leader)
    }
}

/// A duration as Consul reads it.
fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs().max(1))
}
