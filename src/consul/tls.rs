//! TLS to Consul: rustls, with the CA that is configured and no other.

use std::path::Path;
use std::sync::Arc;

use futures_rustls::TlsConnector;
pub(super) use futures_rustls::rustls::pki_types::ServerName as Name;
use futures_rustls::rustls::pki_types::pem::PemObject;
use futures_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use futures_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::consul::error::ConsulError;
use crate::consul::settings::Settings;

/// The name that a certificate is checked for.
pub(super) type ServerName = Name<'static>;

fn setup<T>(message: String) -> Result<T, ConsulError> {
    Err(ConsulError::Setup(message))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConsulError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match read {
        Ok(found) => {
            let found: Vec<_> = found;
            if found.is_empty() { setup(format!("{} holds no certificate in PEM", path.display())) } else { Ok(found) }
        }
        Err(error) => setup(format!("the certificates in {} cannot be read: {error}", path.display())),
    }
}

/// What makes TLS out of a stream; `None` where none is wanted.
pub(super) fn connector(settings: &Settings) -> Result<Option<(TlsConnector, ServerName)>, ConsulError> {
    let Some(name) = &settings.tls_name else { return Ok(None) };
    let bare = name.trim_start_matches('[').trim_end_matches(']').to_owned();
    let Ok(server_name) = ServerName::try_from(bare) else {
        return setup(format!("{name:?} is no name that a certificate can have; set tls_server_name"));
    };
    let Some(ca) = &settings.ca_file else {
        return setup(format!(
            "{} is https, and nothing says which CA to trust: set consul.ca_file, or CONSUL_CACERT",
            settings.shown
        ));
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        if let Err(error) = roots.add(certificate) {
            return setup(format!("a certificate in {} is none of a CA: {error}", ca.display()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = match versions {
        Ok(builder) => builder.with_root_certificates(roots),
        Err(error) => return setup(format!("TLS: {error}")),
    };
    let config = match &settings.identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert)?;
            let key = match PrivateKeyDer::from_pem_file(key) {
                Ok(key) => key,
                Err(error) => return setup(format!("the key in {} cannot be read: {error}", key.display())),
            };
            match builder.with_client_auth_cert(chain, key) {
                Ok(config) => config,
                Err(error) => {
                    return setup(format!(
                        "the certificate {} and its key do not go together: {error}",
                        cert.display()
                    ));
                }
            }
        }
    };
    Ok(Some((TlsConnector::from(Arc::new(config)), server_name)))
}
