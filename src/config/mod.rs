//! Reads `server.json` (a [`Policy`]) and `local.json` (a [`Local`]), strictly, and reports all problems of a file at
//! once.
//!
//! This module opens the files. [`parse_policy`] and [`parse_local`] are pure functions of the text. Their results are
//! valid, and need no further checks. `json` parses JSON with positions, `problem` has the errors, `values` reads
//! values that both files have, `check` compares the entries of a policy with each other, and each of the other modules
//! reads one key or file.

mod bandwidth;
mod check;
mod compression;
mod consul;
mod draft;
mod hooks;
mod json;
mod local;
mod nearest;
mod problem;
mod properties;
mod retention;
mod server;
mod thresholds;
mod tls;
mod values;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use draft::draft;
pub use local::parse_local;
pub use problem::{ConfigError, Problem};
pub use server::{DEFAULT_CATALOG, parse_policy};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::policy::{Local, Policy};

/// The JSON schema of `server.json`, with the same keys as [`parse_policy`].
pub const SERVER_SCHEMA: &str = include_str!("schema/server.schema.json");
/// The JSON schema of `local.json`, with the same keys as [`parse_local`].
pub const LOCAL_SCHEMA: &str = include_str!("schema/local.schema.json");
/// The director's policy, unless `--config` names another file.
pub const DEFAULT_SERVER_FILE: &str = "/etc/zsync/server.json";
/// A host's own configuration, unless `--local` names another file.
pub const DEFAULT_LOCAL_FILE: &str = "/etc/zsync/local.json";

/// Reads the director's policy.
pub fn load_policy(path: &Path) -> Result<Policy, ConfigError> {
    load_policy_with_fingerprint(path).map(|(policy, _)| policy)
}

/// Reads another policy, which `option` names.
pub fn load_other_policy(path: &Path, option: &str) -> Result<Policy, ConfigError> {
    let file = path.display().to_string();
    parse_policy(&file, &read(path, &file, option, "zsync-server.json(5)")?)
}

/// Reads the director's policy, and computes its fingerprint.
pub fn load_policy_with_fingerprint(path: &Path) -> Result<(Policy, Fingerprint), ConfigError> {
    let file = path.display().to_string();
    let text = read(path, &file, "--config", "zsync-server.json(5)")?;
    Ok((parse_policy(&file, &text)?, Fingerprint::of(&text)))
}

/// Identifies a policy. It does not depend on the layout of the file, only on its JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(Uuid);

impl Fingerprint {
    const NAMESPACE: Uuid = Uuid::from_u128(0x7a73_796e_6300_5a46_8000_706f_6c69_6379);

    /// The fingerprint of the text of a `server.json`.
    #[must_use]
    pub fn of(text: &str) -> Self {
        // The text is parsed and printed again, so that blanks and the order of keys do not matter.
        let value: Option<serde_json::Value> = serde_json::from_str(text).ok();
        let canonical = value.map_or_else(|| text.to_owned(), |value| value.to_string());
        Self(Uuid::new_v5(&Self::NAMESPACE, canonical.as_bytes()))
    }
}

/// Reads a host's own configuration.
pub fn load_local(path: &Path) -> Result<Local, ConfigError> {
    let file = path.display().to_string();
    let text = read(path, &file, "--local", "zsync-local.json(5)")?;
    parse_local(&file, &text)
}

/// Reads a file. Hints name the `option` and the manual page of the file.
fn read(path: &Path, file: &str, option: &str, manual: &str) -> Result<String, ConfigError> {
    let fail = |message: String| ConfigError::of_file(file, message);
    let cannot = |error: &io::Error| fail(read_error(error, option, manual));
    let opened = File::open(path).map_err(|error| cannot(&error))?;
    let is_folder = opened.metadata().map_err(|error| cannot(&error))?.is_dir();
    if is_folder {
        return Err(fail(format!(
            "cannot read the file: it is a folder; hint: name the file in it with {option} (see {manual})"
        )));
    }
    let mut bytes = Vec::new();
    // This does not rely on the length that the system reports: a pipe has none, and /dev/zero has no end.
    opened.take(json::MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| cannot(&error))?;
    if bytes.len() > json::MAX_BYTES {
        return Err(fail(format!(
            "cannot read the file: it is larger than the {} MiB that are allowed",
            json::MAX_BYTES >> 20
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes().iter().take(error.utf8_error().valid_up_to()).filter(|b| **b == b'\n').count();
        fail(format!("cannot read the file: line {line} is not UTF-8 text; hint: save the file as UTF-8"))
    })
}

fn read_error(error: &io::Error, option: &str, manual: &str) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!(
                "cannot read the file: it does not exist; hint: create it (see {manual}), or name another one with {option}"
            )
        }
        io::ErrorKind::PermissionDenied => format!(
            "cannot read the file: permission denied; hint: run zsync as a user who may read it, or name another one with {option}"
        ),
        _ => format!("cannot read the file: {error}; hint: name another one with {option}"),
    }
}

#[cfg(test)]
mod tests;
