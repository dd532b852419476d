//! Registers services with health checks, and finds the instances of a service.

use std::time::Duration;

use serde::Deserialize;

use crate::consul::client::{ApiRequest, Consul, seconds};
use crate::consul::error::ConsulError;

/// A service of this host, to be registered with the local Consul agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The name of the service.
    pub service: String,
    /// An id that is unique at this Consul agent.
    pub id: String,
    /// The host that offers the service, by its name in policies.
    pub host: String,
    /// The address of the service; empty for the address of Consul's node.
    pub address: String,
    /// The port of the service.
    pub port: u16,
    /// How long a report of the service's health is valid.
    pub ttl: Duration,
    /// How long the service may be critical before Consul removes it.
    pub forget_after: Duration,
}

/// The health of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// The service reports no problem.
    Passing,
    /// The service reports a problem.
    Warning,
    /// The service has not reported for too long, or its node is down.
    Critical,
}

impl Health {
    fn status(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// One registered instance of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The host that offers the service, by its name in policies.
    pub host: String,
    /// `host:port`.
    pub address: String,
    /// The health by its worst check.
    pub health: Health,
    /// The output of that check.
    pub output: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthEntry {
    node: EntryNode,
    service: EntryService,
    #[serde(default)]
    checks: Option<Vec<EntryCheck>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryNode {
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryService {
    #[serde(default)]
    address: String,
    port: u16,
    #[serde(default)]
    meta: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryCheck {
    status: String,
    #[serde(default)]
    output: String,
}

impl Consul {
    /// Registers a service, or updates its registration. It is critical until the first [`Consul::report`].
    pub async fn register(&self, service: &Registration) -> Result<(), ConsulError> {
        let Registration { service, id, host, address, port, ttl, forget_after } = service;
        let body = serde_json::json!({
            "Name": service, "ID": id, "Address": address, "Port": port, "Meta": { "host": host },
            "Check": {
                "CheckID": check_id(id), "Name": "reported by zsync", "TTL": seconds(*ttl),
                "DeregisterCriticalServiceAfter": seconds(*forget_after),
            },
        });
        let path = ["v1", "agent", "service", "register"];
        self.send(ApiRequest::put(&path, self.json(&body)?)).await.map(drop)
    }

    /// Reports the health of a service. Returns `false` if the service is not, or no longer, registered.
    pub async fn report(&self, id: &str, health: Health, output: &str) -> Result<bool, ConsulError> {
        let body = serde_json::json!({ "Status": health.status(), "Output": output });
        let check = check_id(id);
        let path = ["v1", "agent", "check", "update", check.as_str()];
        // How Consul reports an unknown check depends on its version.
        match self.send(ApiRequest { accepted: &[404], ..ApiRequest::put(&path, self.json(&body)?) }).await {
            Ok(response) => Ok(response.status != 404),
            Err(ConsulError::Refused { text, .. }) if text.contains("CheckID") || text.contains("TTL") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a registration.
    pub async fn deregister(&self, id: &str) -> Result<(), ConsulError> {
        let path = ["v1", "agent", "service", "deregister", id];
        self.send(ApiRequest { accepted: &[404], ..ApiRequest::put(&path, Vec::new()) }).await.map(drop)
    }

    /// Returns all instances of a service in the datacenter.
    pub async fn instances(&self, service: &str) -> Result<Vec<Instance>, ConsulError> {
        let path = ["v1", "health", "service", service];
        let response = self.send(ApiRequest::get(&path).consistent()).await?;
        let entries: Vec<HealthEntry> = self.parse(&response)?;
        Ok(entries.into_iter().filter_map(instance).collect())
    }
}

fn check_id(service: &str) -> String {
    format!("service:{service}")
}

/// Converts an entry. One that names no host in its metadata was not registered by zsync.
fn instance(entry: HealthEntry) -> Option<Instance> {
    let host = entry.service.meta.unwrap_or_default().remove("host")?;
    let address = if entry.service.address.is_empty() { entry.node.address } else { entry.service.address };
    let address = if address.contains(':') && !address.starts_with('[') { format!("[{address}]") } else { address };
    let worst = entry.checks.unwrap_or_default().into_iter().map(|check| {
        let health = match check.status.as_str() {
            "passing" => Health::Passing,
            "warning" => Health::Warning,
            _ => Health::Critical,
        };
        (health, check.output)
    });
    let (health, output) = worst.max_by_key(|(health, _)| *health).unwrap_or((Health::Passing, String::new()));
    Some(Instance { host, address: format!("{address}:{}", entry.service.port), health, output })
}
