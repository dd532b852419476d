//! `zsync tls show`: prints what certificates contain, and what is wrong with them.

use std::path::{Path, PathBuf};

use anyhow::Context;
use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::cli::report::{self, Format};
use crate::model::{HostName, PeerRole, TlsFiles};
use crate::sys::clock;
use crate::transport::tls;

/// A certificate as it is printed.
#[derive(Debug, Serialize)]
struct Description {
    file: String,
    names: Vec<HostName>,
    /// The roles that its CA permits; `None` if the certificate names no roles of zsync.
    roles: Option<Vec<&'static str>>,
    is_ca: bool,
    subject: String,
    issuer: String,
    serial: String,
    valid_from: Option<DateTime<Utc>>,
    valid_until: Option<DateTime<Utc>>,
    /// What is wrong with it, or with the key beside it.
    problems: Vec<String>,
}

fn describe(file: &Path, now: DateTime<Utc>) -> anyhow::Result<Vec<Description>> {
    let mut all = Vec::new();
    for der in tls::certificates(file)? {
        let certificate = tls::certificate(&der).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).context("cannot parse the certificate")?;
        all.push(Description {
            file: file.display().to_string(),
            names: certificate.identity.names,
            roles: certificate.identity.roles.map(|roles| roles.into_iter().map(PeerRole::as_str).collect()),
            is_ca: parsed.is_ca(),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            serial: parsed.raw_serial_as_string(),
            valid_from: certificate.from,
            valid_until: certificate.until,
            problems: Vec::new(),
        });
    }
    for one in &mut all {
        match (one.valid_from, one.valid_until) {
            (Some(from), _) if from > now => one.problems.push("it is not valid yet".to_owned()),
            (_, Some(until)) if until <= now => one.problems.push("it has expired".to_owned()),
            _ => {}
        }
    }
    // A host has the CA's certificate and the key in the folder of its own certificate: check that they belong
    // together.
    let beside = |file_name: &str| file.with_file_name(file_name);
    let crl = Some(beside("ca.crl")).filter(|crl| crl.exists());
    let files = TlsFiles { ca: beside("ca.crt"), certificate: file.to_owned(), key: file.with_extension("key"), crl };
    if let Some(first) = all.first_mut().filter(|first| !first.is_ca && files.ca.exists() && files.key.exists()) {
        match tls::Tls::load(&files) {
            Ok(loaded) => {
                first.problems.extend(loaded.loose_key());
                if first.problems.is_empty() {
                    first.problems.extend(loaded.doubt());
                }
            }
            Err(error) => first.problems.push(error.to_string()),
        }
    }
    Ok(all)
}

fn text(certificate: &Description, now: DateTime<Utc>) -> String {
    let day = |at: Option<DateTime<Utc>>| at.map_or_else(|| "?".to_owned(), |at| at.format("%Y-%m-%d").to_string());
    let left = certificate.valid_until.map_or(0, |until| (until - now).num_days());
    let names: Vec<&str> = certificate.names.iter().map(HostName::as_str).collect();
    let roles = match &certificate.roles {
        Some(roles) if roles.is_empty() => "none that this zsync knows".to_owned(),
        Some(roles) => roles.join(", "),
        None => "none named: local.json of the other hosts decides".to_owned(),
    };
    let mut out = format!("{}\n", certificate.file);
    let mut line = |what: &str, value: &str| out.push_str(&format!("  {what:<8} {value}\n"));
    if certificate.is_ca {
        line("a CA", &certificate.subject);
    } else {
        line("names", &if names.is_empty() { "none".to_owned() } else { names.join(", ") });
        line("roles", &roles);
        line("subject", &certificate.subject);
    }
    line("issuer", &certificate.issuer);
    line("valid", &format!("{} to {}, {left} days left", day(certificate.valid_from), day(certificate.valid_until)));
    line("serial", &certificate.serial);
    for problem in &certificate.problems {
        line("WRONG", problem);
    }
    out
}

/// Prints the certificates in these files; `true` if nothing is wrong with any.
pub fn show(files: &[PathBuf], format: Format) -> anyhow::Result<bool> {
    let now = clock::now();
    let mut all = Vec::new();
    for file in files {
        all.extend(describe(file, now)?);
    }
    report::print(&match format {
        Format::Table => all.iter().map(|one| text(one, now)).collect::<String>(),
        Format::Json => report::json(&all),
        Format::Ndjson => report::ndjson(&all),
    });
    Ok(all.iter().all(|one| one.problems.is_empty()))
}
