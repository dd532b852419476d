//! Authenticates connections with TLS 1.3 and certificates on both sides.
//!
//! A peer is trusted if a configured CA issued its certificate. This module reads the names and roles in the
//! certificate. What a peer may do is decided by the code that talks with it.

mod certificate;
mod describe;
mod revocation;
mod witness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_lite::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use futures_rustls::rustls::client::WebPkiServerVerifier;
use futures_rustls::rustls::client::danger::ServerCertVerifier;
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::server::danger::ClientCertVerifier;
use futures_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use futures_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use futures_rustls::rustls::{
    ClientConfig, CommonState, ConfigBuilder, Error as Rustls, RootCertStore, ServerConfig, WantsVerifier, version,
};
use futures_rustls::{TlsAcceptor, TlsConnector};
use parking_lot::RwLock;

use crate::model::{HostName, Identity, PeerRole, TlsFiles, expiry, hint};
use crate::sys::runtime;
pub(crate) use crate::transport::tls::certificate::is_dns_name;
use crate::transport::tls::certificate::server_name;
pub use crate::transport::tls::certificate::{Certificate, TlsError, certificate, certificates, certificates_in, read};
use crate::transport::tls::describe::{DescribeErrors, Own, describe, describe_tls, is_interruption};
use crate::transport::tls::revocation::Revocations;
pub(crate) use crate::transport::tls::revocation::until as list_until;
use crate::transport::tls::witness::Witness;

/// The protocol that both sides name in the handshake (ALPN). A certificate of a company's CA may also serve other
/// programs on the same host, and a connection must not end at one of these, or come from one.
const PROTOCOL: &[u8] = b"zsync/1";
/// After a failed handshake: how long, and in how many reads of 16 KiB, the rest of what the peer sends is discarded,
/// so that it receives the alert.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const MOST_DRAIN_READS: usize = 64;

/// The certificates and keys of this host. After they are reloaded, new connections use the new ones.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<Material>>,
}

struct Material {
    /// A server's configuration up to the verifier, of which each connection gets its own.
    server: ConfigBuilder<ServerConfig, WantsVerifier>,
    client: ClientConfig,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<dyn ServerCertVerifier>,
    key: Arc<SingleCertAndKey>,
    own: Own,
    /// When the list of revoked certificates expires, if there is one.
    crl_until: Option<DateTime<Utc>>,
    /// The reason why peers with the same CAs would not trust this host's certificate; `None` if they would.
    doubt: Option<String>,
}

impl Material {
    /// The configuration of one connection with a client, and the verifier in it.
    fn server(&self) -> (ServerConfig, Arc<Witness<dyn ClientCertVerifier>>) {
        let witness = Witness::new(&self.clients);
        let builder = self.server.clone().with_client_cert_verifier(Arc::clone(&witness) as _);
        let mut config = builder.with_cert_resolver(Arc::clone(&self.key) as _);
        // A client that only writes would never read the tickets, and Linux resets a connection that is closed with
        // unread data, so that data sent before may be lost.
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        (config, witness)
    }

    /// The configuration of one connection with a server, and the verifier in it.
    fn client(&self) -> (ClientConfig, Arc<Witness<dyn ServerCertVerifier>>) {
        let witness = Witness::new(&self.servers);
        let mut config = self.client.clone();
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.dangerous().set_certificate_verifier(Arc::clone(&witness) as _);
        (config, witness)
    }
}

fn load(files: &TlsFiles) -> Result<Material, TlsError> {
    let mut roots = RootCertStore::empty();
    for der in certificates(&files.ca)? {
        roots.add(der).map_err(|error| {
            TlsError::new(&files.ca, format!("it contains a certificate that is not a CA certificate: {error}"))
        })?;
    }
    let roots = Arc::new(roots);
    let chain = certificates(&files.certificate)?;
    let own = match chain.first() {
        Some(first) => certificate(first).map_err(|error| TlsError::new(&files.certificate, error))?,
        None => return Err(TlsError::new(&files.certificate, "it contains no certificate in PEM format")),
    };
    if own.identity.names.is_empty() {
        let reason = "it names no host: a DNS name among its subject alternative names is required";
        return Err(TlsError::new(&files.certificate, reason));
    }
    // The parser's error is not shown, because it could contain parts of the key.
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| TlsError::new(&files.key, "it contains no unencrypted private key in PEM format"))?;
    let provider = Arc::new(ring::default_provider());
    let key = CertifiedKey::from_der(chain.clone(), key, &provider).map_err(|error| match error {
        Rustls::InconsistentKeys(_) => {
            TlsError::new(&files.key, format!("it is not the key of {}", files.certificate.display()))
        }
        error => TlsError::new(&files.key, error.to_string()),
    })?;
    let key = Arc::new(SingleCertAndKey::from(key));
    let unusable = |error: &dyn ToString| TlsError::new(&files.ca, error.to_string());
    let revocations = files.crl.as_deref().map(Revocations::load).transpose()?.unwrap_or_default();
    // Only a list can be at fault in a verifier with valid CAs.
    let unverifiable = |error: &dyn ToString| match &files.crl {
        Some(crl) => TlsError::new(crl, format!("invalid list of revoked certificates: {}", error.to_string())),
        None => unusable(error),
    };
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .with_crls(revocations.lists.clone())
        .only_check_end_entity_revocation()
        .enforce_revocation_expiration();
    let clients = clients.build().map_err(|error| unverifiable(&error))?;
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| unusable(&error))?;
    let servers = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .with_crls(revocations.lists)
        .only_check_end_entity_revocation()
        .enforce_revocation_expiration();
    let servers = servers.build().map_err(|error| unverifiable(&error))?;
    let own = Own { certificate: own, file: files.certificate.clone(), crl: files.crl.clone() };
    let doubt = doubt(&servers, &chain, &own);
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| unusable(&error))?
        .with_webpki_verifier(Arc::clone(&servers))
        .with_client_cert_resolver(Arc::clone(&key) as _);
    Ok(Material { server, client, clients, servers, key, own, crl_until: revocations.until, doubt })
}

/// Verifies this host's own certificate as a peer would, and returns why a peer would not trust it.
fn doubt(verifier: &WebPkiServerVerifier, chain: &[CertificateDer<'_>], own: &Own) -> Option<String> {
    let (first, intermediates) = chain.split_first()?;
    let name = server_name(own.certificate.identity.names.first()?)?;
    verifier
        .verify_server_cert(first, intermediates, &name, &[], UnixTime::now())
        .err()
        .map(|error| describe_tls(&error, own, Some(&own.certificate)))
}

impl Tls {
    /// Loads the certificate and key files. Fails if a file cannot be read, or if they do not fit together.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self { current: RwLock::new(Arc::new(load(files)?)), files: files.clone() })
    }

    /// Loads the files again, for new connections. After an error, the previous certificates stay in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let material = Arc::new(load(&self.files)?);
        *self.current.write() = material;
        Ok(())
    }

    fn current(&self) -> Arc<Material> {
        Arc::clone(&self.current.read())
    }

    /// This host's own certificate.
    #[must_use]
    pub fn own(&self) -> Certificate {
        self.current().own.certificate.clone()
    }

    /// A warning if users other than the owner can read the private key.
    #[must_use]
    pub fn loose_key(&self) -> Option<String> {
        let file = &self.files.key;
        let mode = fs::metadata(file).ok()?.permissions().mode() & 0o7777;
        (mode & 0o077 != 0).then(|| {
            let (file, word) = (file.display(), hint::word(&file.display()));
            format!(
                "the private key {file} has mode {mode:04o}, so users other than its owner can use it; hint: run chmod 600 {word}"
            )
        })
    }

    /// Warnings for the administrator: what is wrong with the files for this host and role, now or soon.
    #[must_use]
    pub fn warnings(&self, now: DateTime<Utc>, host: &HostName, role: PeerRole) -> Vec<String> {
        let (own, file) = (self.own(), self.files.certificate.display());
        let mut warnings: Vec<String> = self.loose_key().into_iter().collect();
        if !own.identity.is(host) {
            warnings.push(format!("{file} names {}, not {host}: other hosts will not trust this host", own.identity));
        }
        if !own.identity.may_be(role) {
            warnings.push(format!("{file} is for {}, not for {role}", own.identity.roles_in_words()));
        }
        warnings.extend(self.doubt().map(|doubt| format!("other hosts will not trust {file}: {doubt}")));
        warnings.extend(self.expires_soon(now));
        warnings.extend(self.list_trouble(now));
        warnings
    }

    /// When the list of revoked certificates expires, if there is one.
    #[must_use]
    pub fn list_until(&self) -> Option<DateTime<Utc>> {
        self.current().crl_until
    }

    /// A warning if the list of revoked certificates expires soon or has expired.
    #[must_use]
    pub fn list_trouble(&self, now: DateTime<Utc>) -> Option<String> {
        let (file, until) = (self.files.crl.as_ref()?.display(), self.list_until()?);
        let left = until - now;
        expiry::urgency(left)?;
        let day = until.format("%Y-%m-%d");
        let hint = "hint: run zsync tls revoke where the CA is, and copy the new ca.crl to every host";
        Some(if left.num_seconds() > 0 {
            format!("{file} expires on {day}, in {} days, and then no peer is trusted; {hint}", left.num_days())
        } else {
            format!("{file} expired on {day}, so no peer is trusted; {hint}")
        })
    }

    /// A warning if this host's certificate expires soon, but is still valid.
    #[must_use]
    pub fn expires_soon(&self, now: DateTime<Utc>) -> Option<String> {
        let own = self.own();
        let left = own.until? - now;
        expiry::urgency(left).filter(|_| left.num_seconds() > 0)?;
        let (file, until) = (self.files.certificate.display(), own.until?.format("%Y-%m-%d"));
        Some(format!("{file} expires on {until}, in {} days; hint: {}", left.num_days(), own.identity.renewal()))
    }

    /// A warning if this host's certificate expires soon, or if peers do not trust it any more.
    #[must_use]
    pub fn trouble(&self, now: DateTime<Utc>) -> Option<String> {
        let file = self.files.certificate.display();
        let own = self.own();
        match own.until.filter(|until| *until <= now) {
            Some(until) => Some(format!(
                "{file} expired on {}, so other hosts refuse this host; hint: {}",
                until.format("%Y-%m-%d"),
                own.identity.renewal()
            )),
            None => self.expires_soon(now),
        }
    }

    /// The reason why peers with the same CAs would not trust this host's certificate; `None` if they would.
    #[must_use]
    pub(crate) fn doubt(&self) -> Option<String> {
        self.current().doubt.clone()
    }

    /// Performs the handshake as the server.
    pub(super) async fn accept<S: TlsTransport>(&self, stream: S) -> Result<Secured, String> {
        let current = self.current();
        let (config, witness) = current.server();
        let accepting = TlsAcceptor::from(Arc::new(config)).accept(stream).into_fallible();
        let stream = match accepting.await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                let reason = describe(&error, &current.own, witness.presented().as_ref());
                drain(stream).await;
                return Err(reason);
            }
        };
        let session = stream.get_ref().1;
        let (identity, names_protocol) = (peer_identity(session)?, session.alpn_protocol() == Some(PROTOCOL));
        Ok(Secured { names_protocol, ..Secured::new(stream, identity, &current.own) })
    }

    /// Performs the handshake as the client, with the host of this name.
    pub(super) async fn connect<S: TlsTransport>(&self, host: &HostName, stream: S) -> Result<Secured, HandshakeError> {
        let name = server_name(host);
        let name = name.ok_or_else(|| format!("{host} is not a DNS name, so no certificate can name it"))?;
        let current = self.current();
        let (config, witness) = current.client();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream).into_fallible();
        let stream = match connecting.await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                let reason = describe(&error, &current.own, witness.presented().as_ref());
                if is_interruption(&error) {
                    return Err(HandshakeError::Interrupted(reason));
                }
                drain(stream).await;
                return Err(reason.into());
            }
        };
        let identity = peer_identity(stream.get_ref().1)?;
        // A wildcard certificate satisfies TLS, but its owner could be any host, so it is not accepted here.
        if !identity.is(host) {
            return Err(format!("its certificate is not that of {host}: it names {identity}").into());
        }
        if stream.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
            return Err(
                "it speaks TLS, but not zsync's protocol zsync/1: it is another program, or an older zsync; hint: \
                        check the address, or update zsync there"
                    .to_owned()
                    .into(),
            );
        }
        Ok(Secured::new(stream, identity, &current.own))
    }
}

/// Why a handshake with a server failed.
pub(super) enum HandshakeError {
    /// The peer has not proven to be the expected host, for this reason.
    Untrusted(String),
    /// The connection failed before the peer could prove anything.
    Interrupted(String),
}

impl From<String> for HandshakeError {
    fn from(reason: String) -> Self {
        Self::Untrusted(reason)
    }
}

/// A stream that TLS can run on.
pub(super) trait TlsTransport: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> TlsTransport for S {}

/// A connection whose peer has proven its identity.
pub(super) struct Secured {
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    pub identity: Identity,
    /// Whether the peer has named zsync's protocol.
    pub names_protocol: bool,
}

impl Secured {
    fn new<S: TlsTransport>(stream: S, identity: Identity, own: &Own) -> Self {
        let (reader, writer) = futures_lite::io::split(stream);
        Self {
            reader: Box::new(DescribeErrors::new(reader, own.clone())),
            writer: Box::new(writer),
            identity,
            names_protocol: true,
        }
    }
}

fn peer_identity(session: &CommonState) -> Result<Identity, String> {
    let first = session.peer_certificates().and_then(|chain| chain.first());
    Ok(certificate(first.ok_or("it sent no certificate")?)?.identity)
}

/// Closes a connection so that the peer receives the alert. A system that closes a connection with unread data resets
/// it, and the alert would be lost.
async fn drain<S: TlsTransport>(mut stream: S) {
    let draining = async {
        if stream.close().await.is_ok() {
            let mut discarded = vec![0; 16 * 1024];
            for _ in 0..MOST_DRAIN_READS {
                if !stream.read(&mut discarded).await.is_ok_and(|read| read > 0) {
                    return;
                }
            }
        }
    };
    // Whether the peer stopped sending or the time was up does not matter.
    let _: Result<(), runtime::Elapsed> = runtime::timeout(DRAIN_TIMEOUT, draining).await;
}
