//! Reads lists of revoked certificates (CRLs).

use std::path::Path;

use chrono::{DateTime, Utc};
use futures_rustls::pki_types::CertificateRevocationListDer;
use futures_rustls::pki_types::pem::PemObject;

use crate::transport::tls::certificate::{TlsError, read};

/// The lists in a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Revocations {
    pub lists: Vec<CertificateRevocationListDer<'static>>,
    /// When the first of them expires.
    pub until: Option<DateTime<Utc>>,
}

impl Revocations {
    /// Reads a PEM file. It is an error if it cannot be read or contains no list: nothing could be checked with it, and
    /// a revoked certificate must not be accepted because a file is missing.
    pub fn load(file: &Path) -> Result<Self, TlsError> {
        let hint = "hint: make it with zsync tls revoke where the CA is, and copy it here; see zsync-tls(8)";
        if !file.exists() {
            return Err(TlsError::new(file, format!("the list of revoked certificates does not exist; {hint}")));
        }
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&read(file)?).collect();
        let lists =
            lists.map_err(|error| TlsError::new(file, format!("invalid list of revoked certificates: {error}")))?;
        if lists.is_empty() {
            let reason = format!("it contains no list of revoked certificates in PEM format; {hint}");
            return Err(TlsError::new(file, reason));
        }
        let mut until: Option<DateTime<Utc>> = None;
        for list in &lists {
            let (_, list) = x509_parser::parse_x509_crl(list)
                .map_err(|error| TlsError::new(file, format!("invalid list of revoked certificates: {error}")))?;
            let next = list.next_update().and_then(|next| DateTime::from_timestamp(next.timestamp(), 0));
            until = until.into_iter().chain(next).min();
        }
        Ok(Self { lists, until })
    }
}

/// When the first of the lists in a file expires; `None` if the file cannot be read.
pub(crate) fn until(file: &Path) -> Option<DateTime<Utc>> {
    Revocations::load(file).ok()?.until
}
