//! This module has what several test programs share. Each program compiles all of it and uses a part.

#![allow(dead_code, reason = "each test program uses a part")]

pub mod basics;
pub mod consul;
pub mod fleet;
pub mod loopback;
pub mod pair;
pub mod program;
pub mod storm;
pub mod tls;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

pub use basics::{carry_out, ds, host, local, order, snap};
use serde_json::Value;
use zsync::consul::{Consul, ConsulSettings};
use zsync::model::Guid;
use zsync::policy::ConsulConfig;
use zsync::zfs::fake::Fake;

/// The snapshots of a dataset by guid, oldest first; none if it does not exist.
pub fn guids(fake: &Fake, dataset: &str) -> Vec<Guid> {
    fake.dataset(&ds(dataset)).map(|d| d.snapshots.iter().map(|s| s.guid).collect()).unwrap_or_default()
}

/// The snapshots of a dataset by name, oldest first; none if it does not exist.
pub fn names(fake: &Fake, dataset: &str) -> Vec<String> {
    fake.dataset(&ds(dataset)).map(|d| d.snapshots.iter().map(|s| s.name.to_string()).collect()).unwrap_or_default()
}

/// A client of the Consul at an address. The environment is ignored.
pub fn consul_at(address: &str) -> Consul {
    let config = ConsulConfig { address: Some(address.to_owned()), ..ConsulConfig::default() };
    Consul::new(&ConsulSettings::with_environment(&config, |_| None).unwrap()).unwrap()
}

/// A schema of `examples/schema`.
pub fn schema(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/schema").join(file);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Fails if a document is invalid by its schema, with all the reasons.
#[track_caller]
pub fn assert_valid(schema: &Value, document: &Value) {
    let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
    let problems: Vec<String> =
        validator.iter_errors(document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(problems.is_empty(), "{problems:#?}\n{document:#}");
}

/// How long anything may take before it counts as hanging.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a condition holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The resident memory of a process in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}
