//! Services: what a host offers, and whether it is well.

use std::time::Duration;

use serde::Deserialize;

use crate::consul::{Ask, Consul, ConsulError, seconds};

/// A service of this host, to be registered with the Consul agent that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The service's name.
    pub service: String,
    /// What tells it from others at this agent.
    pub id: String,
    /// The host that it belongs to, as policies call it.
    pub host: String,
    /// Where it is reached; empty: at the address of Consul's node.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// How long it is well without saying so again.
    pub ttl: Duration,
    /// After how long of not being well it is forgotten.
    pub forget_after: Duration,
}

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// It says that all is well.
    Passing,
    /// It says that something is not as it should be.
    Warning,
    /// It has said nothing for too long, or its node is down.
    Critical,
}

impl Health {
    fn word(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// A service as Consul knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The host that it belongs to.
    pub host: String,
    /// `host:port`.
    pub address: String,
    /// The worst of its checks.
    pub health: Health,
    /// What that check says.
    pub output: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(default)]
    address: String,
    port: u16,
    #[serde(default)]
    meta: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    status: String,
    #[serde(default)]
    output: String,
}

impl Consul {
    /// Registers a service, or changes what it is registered with. Its check is critical until [`Consul::report`].
    pub async fn register(&self, service: &Registration) -> Result<(), ConsulError> {
        let Registration { service, id, host, address, port, ttl, forget_after } = service;
        let body = serde_json::json!({
            "Name": service, "ID": id, "Address": address, "Port": port, "Meta": { "host": host },
            "Check": {
                "CheckID": check_id(id), "Name": "says that it is well", "TTL": seconds(*ttl),
                "DeregisterCriticalServiceAfter": seconds(*forget_after),
            },
        });
        let path = ["v1", "agent", "service", "register"];
        self.ask(Ask::put(&path, self.json(&body)?)).await.map(drop)
    }

    /// Says how a service is; `false`: it is not registered (any more).
    pub async fn report(&self, id: &str, health: Health, output: &str) -> Result<bool, ConsulError> {
        let body = serde_json::json!({ "Status": health.word(), "Output": output });
        let check = check_id(id);
        let path = ["v1", "agent", "check", "update", check.as_str()];
        // Versions differ in how they say that they do not know it.
        match self.ask(Ask { also: &[404], ..Ask::put(&path, self.json(&body)?) }).await {
            Ok(answer) => Ok(answer.status != 404),
            Err(ConsulError::Refused { text, .. }) if text.contains("CheckID") || text.contains("TTL") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends a registration.
    pub async fn deregister(&self, id: &str) -> Result<(), ConsulError> {
        let path = ["v1", "agent", "service", "deregister", id];
        self.ask(Ask { also: &[404], ..Ask::put(&path, Vec::new()) }).await.map(drop)
    }

    /// All services of a name, wherever they are registered.
    pub async fn instances(&self, service: &str) -> Result<Vec<Instance>, ConsulError> {
        let path = ["v1", "health", "service", service];
        let answer = self.ask(Ask::get(&path).consistent()).await?;
        let entries: Vec<Entry> = self.understand(&answer)?;
        Ok(entries.into_iter().filter_map(instance).collect())
    }
}

fn check_id(service: &str) -> String {
    format!("service:{service}")
}

/// One that says no host is somebody else's.
fn instance(entry: Entry) -> Option<Instance> {
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
