//! Reads certificates, and the files with them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{CertificateDer, ServerName};
use thiserror::Error;
use x509_parser::extensions::GeneralName;

use crate::model::{HostName, Identity};

/// The largest accepted file with certificates or keys, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// Why this host's certificates cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("cannot use {}: {reason}", file.display())]
pub struct TlsError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with the file.
    pub reason: String,
}

impl TlsError {
    pub(super) fn new(file: &Path, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), reason: reason.into() }
    }
}

/// The content of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The names and roles in it.
    pub identity: Identity,
    /// The serial number that its CA gave it, as in `01:9a:f3`.
    pub serial: String,
    /// The beginning of its validity.
    pub from: Option<DateTime<Utc>>,
    /// The end of its validity.
    pub until: Option<DateTime<Utc>>,
}

/// Reads a file with certificates or keys. A file above 1 MiB is an error.
pub fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(|error| {
        TlsError::new(
            file,
            match error.kind() {
                io::ErrorKind::NotFound => {
                    "the file does not exist; hint: create it as zsync-tls(8) describes".to_owned()
                }
                _ => error.to_string(),
            },
        )
    })?;
    opened.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(|error| TlsError::new(file, error.to_string()))?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(TlsError::new(file, "it is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// Parses the certificates in a PEM text. It is an error if there are none.
pub fn certificates_in(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err("it contains no certificate in PEM format".to_owned()),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("invalid certificate: {error}")),
    }
}

/// Reads the certificates in a PEM file. It is an error if there are none.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates_in(&read(file)?).map_err(|reason| TlsError::new(file, reason))
}

/// Whether a certificate can name a host of this name.
#[must_use]
pub(crate) fn is_dns_name(host: &HostName) -> bool {
    server_name(host).is_some()
}

pub(super) fn server_name(host: &HostName) -> Option<ServerName<'static>> {
    ServerName::try_from(host.as_str().to_owned()).ok().filter(|name| matches!(name, ServerName::DnsName(_)))
}

/// Parses a certificate in DER format.
pub fn certificate(der: &[u8]) -> Result<Certificate, String> {
    let (_, found) =
        x509_parser::parse_x509_certificate(der).map_err(|error| format!("invalid certificate: {error}"))?;
    let (mut dns, mut uris) = (Vec::new(), Vec::new());
    if let Some(alternatives) = found.subject_alternative_name().map_err(|error| error.to_string())? {
        for name in &alternatives.value.general_names {
            match name {
                GeneralName::DNSName(name) => dns.push(*name),
                GeneralName::URI(uri) => uris.push(*uri),
                _ => {}
            }
        }
    }
    let time = |at: x509_parser::time::ASN1Time| DateTime::from_timestamp(at.timestamp(), 0);
    let validity = found.validity();
    let (from, until) = (time(validity.not_before), time(validity.not_after));
    Ok(Certificate {
        identity: Identity { until, ..Identity::new(dns, uris) },
        serial: found.raw_serial_as_string(),
        from,
        until,
    })
}
