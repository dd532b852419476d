//! TLS for connections to Consul, which trusts only the configured CA.

use std::path::Path;
use std::sync::Arc;

use futures_rustls::TlsConnector;
pub(super) use futures_rustls::rustls::pki_types::ServerName as Name;
use futures_rustls::rustls::pki_types::pem::PemObject;
use futures_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use futures_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::consul::error::ConsulError;
use crate::consul::settings::ConsulSettings;

/// The name that the server's certificate must have.
pub(super) type ServerName = Name<'static>;

fn setup<T>(message: String) -> Result<T, ConsulError> {
    Err(ConsulError::Setup(message))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConsulError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match read {
        Ok(found) => {
            let found: Vec<_> = found;
            if found.is_empty() {
                setup(format!("{} contains no certificate in PEM format", path.display()))
            } else {
                Ok(found)
            }
        }
        Err(error) => setup(format!("cannot read the certificates in {}: {error}", path.display())),
    }
}

/// Creates the TLS connector and the expected server name, or `None` without TLS.
pub(super) fn connector(settings: &ConsulSettings) -> Result<Option<(TlsConnector, ServerName)>, ConsulError> {
    let Some(name) = &settings.tls_name else { return Ok(None) };
    let bare = name.trim_start_matches('[').trim_end_matches(']').to_owned();
    let Ok(server_name) = ServerName::try_from(bare) else {
        return setup(format!(
            "a certificate cannot have the name {name:?}; hint: set consul.tls_server_name to the name in Consul's certificate"
        ));
    };
    let Some(ca) = &settings.ca_file else {
        return setup(format!(
            "{} uses https, but no CA is configured; hint: set consul.ca_file or CONSUL_CACERT",
            settings.display_address
        ));
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        if let Err(error) = roots.add(certificate) {
            return setup(format!("a certificate in {} is not a CA certificate: {error}", ca.display()));
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
                Err(error) => return setup(format!("cannot read the key in {}: {error}", key.display())),
            };
            match builder.with_client_auth_cert(chain, key) {
                Ok(config) => config,
                Err(error) => {
                    return setup(format!("the certificate {} does not match its key: {error}", cert.display()));
                }
            }
        }
    };
    Ok(Some((TlsConnector::from(Arc::new(config)), server_name)))
}
