//! Writes a `server.json` for a policy that was inferred.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::{HostName, TlsFiles};
use crate::policy::{DatasetPolicy, Policy, Retention, SnapshotPolicy};

/// The keys of the file, in the order in which they are written.
#[derive(Serialize)]
struct File<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<Tls>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    hosts: BTreeMap<&'a HostName, Addresses<'a>>,
    datasets: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Tls {
    ca: String,
    certificate: String,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    crl: Option<String>,
}

#[derive(Serialize)]
struct Addresses<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_address: Option<&'a str>,
}

#[derive(Serialize)]
struct Entry<'a> {
    hostname: &'a HostName,
    dataset: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    recursive: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exclude: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<Of<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sync: Option<Of<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    policies: BTreeMap<&'a str, Of<'a>>,
}

#[derive(Serialize)]
struct Of<'a> {
    prefix: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    creation: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sync_on: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retention: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sync_retention: Option<Vec<String>>,
}

/// The text of a `server.json` with the certificate, the hosts and the entries of a policy. Of each entry, it has what
/// can be inferred from snapshots: datasets, prefixes, schedules, destinations and retention. All other keys have their
/// defaults.
pub fn draft(policy: &Policy) -> Result<String, serde_json::Error> {
    let hosts = policy.hosts.iter().map(|(name, of)| {
        (name, Addresses { address: of.address.as_deref(), receive_address: of.receive_address.as_deref() })
    });
    let datasets = policy.datasets.iter().map(entry).collect();
    let file = File { tls: policy.tls.as_ref().map(tls), hosts: hosts.collect(), datasets };
    serde_json::to_string_pretty(&file).map(|text| text + "\n")
}

fn tls(files: &TlsFiles) -> Tls {
    let text = |path: &std::path::Path| path.display().to_string();
    Tls {
        ca: text(&files.ca),
        certificate: text(&files.certificate),
        key: text(&files.key),
        crl: files.crl.as_deref().map(text),
    }
}

fn entry(entry: &DatasetPolicy) -> Entry<'_> {
    let named = |name: &str| entry.policies.iter().find(|of| of.name == name).map(of);
    let others = entry.policies.iter().filter(|of| of.name != "backup" && of.name != "sync");
    Entry {
        hostname: &entry.hostname,
        dataset: entry.dataset.as_str(),
        recursive: entry.recursive,
        exclude: entry.exclude.patterns().collect(),
        backup: named("backup"),
        sync: named("sync"),
        policies: others.map(|policy| (policy.name.as_str(), of(policy))).collect(),
    }
}

fn of(policy: &SnapshotPolicy) -> Of<'_> {
    let rules = |of: &Retention| of.rules().iter().map(ToString::to_string).collect();
    Of {
        prefix: policy.prefix.as_str(),
        creation: policy.creation.as_ref().map(ToString::to_string),
        sync_on: policy.sync_on.iter().map(ToString::to_string).collect(),
        retention: policy.retention.as_ref().map(rules),
        // Without it, the rules of the source apply to the copies as well.
        sync_retention: policy.sync_retention.as_ref().filter(|of| Some(*of) != policy.retention.as_ref()).map(rules),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_policy;

    #[test]
    fn draft_is_parsed_as_the_same_policy() {
        let text = r#"{ "tls": { "crl": "/etc/zsync/tls/ca.crl" }, "hosts": { "beta": { "address": "10.0.0.2" }, "gamma": {} },
            "datasets": [
              { "hostname": "alpha", "dataset": "tank/a b", "recursive": true, "exclude": ["tmp[[]1]"],
                "backup": { "prefix": "B", "creation": "0 * * * *", "sync_on": ["beta:pool/a b", "gamma:pool/x:y"],
                            "retention": ["all in last day"], "sync_retention": ["1/day in last year"] } },
              { "hostname": "beta", "dataset": "tank/b",
                "sync": { "prefix": "S", "sync_on": "gamma:pool/s" },
                "policies": { "w": { "prefix": "W", "retention": ["1/week in last year"] } } } ] }"#;
        let policy = parse_policy("server.json", text).unwrap();
        let written = draft(&policy).unwrap();
        let again = parse_policy("server.json", &written).unwrap_or_else(|error| panic!("{error}\n{written}"));
        assert_eq!(format!("{policy:?}"), format!("{again:?}"), "{written}");
    }
}
