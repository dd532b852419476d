//! Reads `server.json` and `local.json`, strictly, and tells everything that is wrong with them at once.
//!
//! The files are read here; what they say is understood by pure functions. What comes out is valid:
//! nobody checks it again.

mod bandwidth;
mod check;
mod compression;
mod consul;
mod hooks;
mod json;
mod local;
mod nearest;
mod problem;
mod properties;
mod quantity;
mod server;
mod thresholds;
mod tls;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use local::parse_local;
pub use problem::{ConfigError, Problem};
pub use server::{DEFAULT_CATALOG, parse_policy};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::policy::{Local, Policy};

/// The JSON schema of `server.json`: its keys are those that [`parse_policy`] knows.
pub const SERVER_SCHEMA: &str = include_str!("../../examples/schema/server.schema.json");
/// The JSON schema of `local.json`: its keys are those that [`parse_local`] knows.
pub const LOCAL_SCHEMA: &str = include_str!("../../examples/schema/local.schema.json");
/// Where the director's policy is unless `--config` says otherwise.
pub const DEFAULT_SERVER_FILE: &str = "/etc/zsync/server.json";
/// Where the agent's and the slave's configuration is unless `--local` says otherwise.
pub const DEFAULT_LOCAL_FILE: &str = "/etc/zsync/local.json";

/// Reads the director's policy.
pub fn load_policy(path: &Path) -> Result<Policy, ConfigError> {
    load_policy_with_fingerprint(path).map(|(policy, _)| policy)
}

/// Reads the director's policy, with what tells it from any other.
pub fn load_policy_with_fingerprint(path: &Path) -> Result<(Policy, Fingerprint), ConfigError> {
    let file = path.display().to_string();
    let text = read(path, &file, "zsync-server.json(5)")?;
    Ok((parse_policy(&file, &text)?, Fingerprint::of(&text)))
}

/// What tells one policy from another: the same for the same JSON, however it is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(Uuid);

impl Fingerprint {
    const NAMESPACE: Uuid = Uuid::from_u128(0x7a73_796e_6300_5a46_8000_706f_6c69_6379);

    /// The fingerprint of the text of a `server.json`.
    #[must_use]
    pub fn of(text: &str) -> Self {
        // Read and written again, so that blanks and the order of keys do not matter.
        let value: Option<serde_json::Value> = serde_json::from_str(text).ok();
        let canonical = value.map_or_else(|| text.to_owned(), |value| value.to_string());
        Self(Uuid::new_v5(&Self::NAMESPACE, canonical.as_bytes()))
    }
}

/// Reads the configuration of an agent or a slave.
pub fn load_local(path: &Path) -> Result<Local, ConfigError> {
    let file = path.display().to_string();
    let text = read(path, &file, "zsync-local.json(5)")?;
    parse_local(&file, &text)
}

fn read(path: &Path, file: &str, manual: &str) -> Result<String, ConfigError> {
    let fail = |message: String| ConfigError::of_file(file, message);
    let cannot = |error: &io::Error| fail(cannot_read(error, manual));
    let opened = File::open(path).map_err(|error| cannot(&error))?;
    let is_folder = opened.metadata().map_err(|error| cannot(&error))?.is_dir();
    if is_folder {
        return Err(fail(format!("it is a folder; name the file in it with --config (see {manual})")));
    }
    let mut bytes = Vec::new();
    // Not the file's length: a pipe has none, and /dev/zero has no end.
    opened.take(json::MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| cannot(&error))?;
    if bytes.len() > json::MAX_BYTES {
        return Err(fail(format!("it is larger than the {} MiB that are allowed", json::MAX_BYTES >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes().iter().take(error.utf8_error().valid_up_to()).filter(|b| **b == b'\n').count();
        fail(format!("it is not UTF-8 text, first on line {line}; save it as UTF-8"))
    })
}

fn cannot_read(error: &io::Error, manual: &str) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no such file; write it (see {manual}) or name another one with --config")
        }
        io::ErrorKind::PermissionDenied => {
            "it may not be read by this user; run as a user who may, or name another one with --config".to_owned()
        }
        _ => format!("it cannot be read: {error}; name another one with --config"),
    }
}

#[cfg(test)]
mod tests;
