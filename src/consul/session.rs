//! Manages sessions, and the locks on pairs that they hold.

use std::time::Duration;

use serde::Deserialize;

use crate::consul::client::{ApiRequest, Consul, seconds};
use crate::consul::error::ConsulError;
use crate::consul::kv::kv_path;

impl Consul {
    /// Creates a session that ends unless it is renewed within `ttl` (Consul may wait up to twice as long). Its locks
    /// are released then, and can be acquired again after `lock_delay`.
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
        let response = self.send(ApiRequest::put(&["v1", "session", "create"], self.json(&body)?)).await?;
        self.parse::<Created>(&response).map(|created| created.id)
    }

    /// Renews a session. Returns `false` if it no longer exists.
    pub async fn renew_session(&self, session: &str, timeout: Duration) -> Result<bool, ConsulError> {
        let path = ["v1", "session", "renew", session];
        let request = ApiRequest { accepted: &[404], timeout, ..ApiRequest::put(&path, Vec::new()) };
        Ok(self.send(request).await?.status != 404)
    }

    /// Ends a session.
    pub async fn destroy_session(&self, session: &str) -> Result<(), ConsulError> {
        self.send(ApiRequest::put(&["v1", "session", "destroy", session], Vec::new())).await.map(drop)
    }

    /// Locks a pair for a session, and writes its value. Returns `false` if another session has the lock or had it
    /// until a moment ago, or if the session no longer exists.
    pub async fn acquire(&self, key: &str, value: Vec<u8>, session: &str) -> Result<bool, ConsulError> {
        let path = kv_path(key);
        match self.send(ApiRequest::put(&path, value).with_query("acquire", session)).await {
            Ok(response) => self.parse(&response),
            // Newer versions of Consul answer with this error instead of `false`.
            Err(error) if error.is_about_session() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Releases the lock on a pair, and writes its value. Returns `false` if the session does not hold the lock.
    pub async fn release(&self, key: &str, value: Vec<u8>, session: &str) -> Result<bool, ConsulError> {
        let path = kv_path(key);
        let response = self.send(ApiRequest::put(&path, value).with_query("release", session)).await?;
        self.parse(&response)
    }
}
