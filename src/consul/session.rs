//! Sessions, and locks on pairs.

use std::time::Duration;

use serde::Deserialize;
use surf::http::Method;

use crate::consul::kv::kv_path;
use crate::consul::{Ask, Consul, ConsulError, seconds};

impl Consul {
    /// A session that ends when it is not renewed within `ttl` (Consul may wait up to twice that); what it has locked
    /// is released then, and can be locked again after `lock_delay`.
    pub async fn create_session(&self, name: &str, ttl: Duration, lock_delay: Duration) -> Result<String, ConsulError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            #[serde(rename = "ID")]
            id: String,
        }
        let body = serde_json::json!({
            "Name": name, "TTL": seconds(ttl), "LockDelay": seconds(lock_delay), "Behavior": "release",
        });
        let answer = self.ask(Ask::put(&["v1", "session", "create"], self.json(&body)?)).await?;
        self.understand::<Created>(&answer).map(|created| created.id)
    }

    /// Renews a session; `false`: it is not there any more.
    pub async fn renew_session(&self, session: &str, within: Duration) -> Result<bool, ConsulError> {
        let path = ["v1", "session", "renew", session];
        let ask = Ask { also: &[404], within, ..Ask::put(&path, Vec::new()) };
        Ok(self.ask(ask).await?.status != 404)
    }

    /// Ends a session.
    pub async fn destroy_session(&self, session: &str) -> Result<(), ConsulError> {
        self.ask(Ask::put(&["v1", "session", "destroy", session], Vec::new())).await.map(drop)
    }

    /// Locks a pair for a session and writes its value; `false`: somebody else has it, or had it a moment ago, or the
    /// session is not there any more.
    pub async fn acquire(&self, key: &str, value: Vec<u8>, session: &str) -> Result<bool, ConsulError> {
        let path = kv_path(key);
        match self.ask(Ask::put(&path, value).with("acquire", session)).await {
            Ok(answer) => self.understand(&answer),
            // Newer versions of Consul say so instead of `false`.
            Err(error) if error.is_about_session() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Releases a pair and writes its value.
    pub async fn release(&self, key: &str, value: Vec<u8>, session: &str) -> Result<bool, ConsulError> {
        let path = kv_path(key);
        let answer = self.ask(Ask { method: Method::Put, ..Ask::put(&path, value).with("release", session) }).await?;
        self.understand(&answer)
    }
}
