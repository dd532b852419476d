//! Authenticates connections with TLS 1.3 and certificates on both sides.
//!
//! A peer is trusted if a configured CA issued its certificate. This module reads the names and roles in the
//! certificate. What a peer may do is decided by the code that talks with it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_lite::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use futures_rustls::rustls::client::WebPkiServerVerifier;
use futures_rustls::rustls::client::danger::ServerCertVerifier;
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::server::WebPkiClientVerifier;
use futures_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, Error as Rustls, RootCertStore, ServerConfig,
    version,
};
use futures_rustls::{TlsAcceptor, TlsConnector};
use parking_lot::RwLock;
use thiserror::Error;
use x509_parser::extensions::GeneralName;

use crate::model::{HostName, Identity, PeerRole, TlsFiles};
use crate::sys::runtime;

/// The largest accepted file with certificates or keys, in bytes.
const LARGEST_FILE: u64 = 1 << 20;
/// How long before the expiry of a certificate the warnings begin.
const EXPIRES_SOON: TimeDelta = TimeDelta::days(30);
/// After a failed handshake: how long, and in how many reads of 16 KiB, the rest of what the peer sends is discarded,
/// so that it receives the alert.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const MOST_DRAIN_READS: usize = 64;

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
    fn new(file: &Path, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), reason: reason.into() }
    }
}

/// The certificates and keys of this host. After they are reloaded, new connections use the new ones.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<Material>>,
}

struct Material {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    own: Certificate,
    /// The reason why peers with the same CAs would not trust this host's certificate; `None` if they would.
    doubt: Option<String>,
}

/// The content of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The names and roles in it.
    pub identity: Identity,
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

fn server_name(host: &HostName) -> Option<ServerName<'static>> {
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
    Ok(Certificate {
        identity: Identity::new(dns, uris),
        from: time(validity.not_before),
        until: time(validity.not_after),
    })
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
    let key = || {
        PrivateKeyDer::from_pem_slice(&read(&files.key)?)
            .map_err(|_| TlsError::new(&files.key, "it contains no unencrypted private key in PEM format"))
    };
    let fits = |error: Rustls| match error {
        Rustls::InconsistentKeys(_) => {
            TlsError::new(&files.key, format!("it is not the key of {}", files.certificate.display()))
        }
        error => TlsError::new(&files.key, error.to_string()),
    };
    let provider = Arc::new(ring::default_provider());
    let unusable = |error: &dyn ToString| TlsError::new(&files.ca, error.to_string());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| unusable(&error))?
        .with_client_cert_verifier(clients.build().map_err(|error| unusable(&error))?)
        .with_single_cert(chain.clone(), key()?)
        .map_err(fits)?;
    // A client that only writes would never read the tickets, and Linux resets a connection that is closed with unread
    // data, so that data sent before may be lost.
    server.send_tls13_tickets = 0;
    let servers = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let servers = servers.build().map_err(|error| unusable(&error))?;
    let doubt = doubt(&servers, &chain, &own.identity);
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| unusable(&error))?
        .with_webpki_verifier(servers)
        .with_client_auth_cert(chain, key()?)
        .map_err(fits)?;
    Ok(Material { server: Arc::new(server), client: Arc::new(client), own, doubt })
}

/// Verifies this host's own certificate as a peer would, and returns why a peer would not trust it.
fn doubt(verifier: &WebPkiServerVerifier, chain: &[CertificateDer<'_>], own: &Identity) -> Option<String> {
    let (first, intermediates) = chain.split_first()?;
    let name = server_name(own.names.first()?)?;
    verifier
        .verify_server_cert(first, intermediates, &name, &[], UnixTime::now())
        .err()
        .map(|error| describe_tls(&error))
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
        self.current().own.clone()
    }

    /// A warning if users other than the owner can read the private key.
    #[must_use]
    pub fn loose_key(&self) -> Option<String> {
        let file = &self.files.key;
        let mode = fs::metadata(file).ok()?.permissions().mode() & 0o7777;
        (mode & 0o077 != 0).then(|| {
            let file = file.display();
            format!(
                "the private key {file} has mode {mode:04o}, so users other than its owner can use it; hint: run chmod 600 {file}"
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
        if let Some(until) = own.until.filter(|until| *until > now && *until - now < EXPIRES_SOON) {
            warnings.push(format!("{file} expires on {}; hint: issue a new one", until.format("%Y-%m-%d")));
        }
        warnings
    }

    /// The reason why peers with the same CAs would not trust this host's certificate; `None` if they would.
    #[must_use]
    pub(crate) fn doubt(&self) -> Option<String> {
        self.current().doubt.clone()
    }

    /// Performs the handshake as the server.
    pub(super) async fn accept<S: TlsTransport>(&self, stream: S) -> Result<Secured, String> {
        let accepting = TlsAcceptor::from(Arc::clone(&self.current().server)).accept(stream).into_fallible();
        let stream = match accepting.await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                let reason = describe(&error);
                drain(stream).await;
                return Err(reason);
            }
        };
        let identity = peer_identity(stream.get_ref().1)?;
        Ok(Secured::new(stream, identity))
    }

    /// Performs the handshake as the client, with the host of this name.
    pub(super) async fn connect<S: TlsTransport>(&self, host: &HostName, stream: S) -> Result<Secured, String> {
        let name = server_name(host);
        let name = name.ok_or_else(|| format!("{host} is not a DNS name, so no certificate can name it"))?;
        let connecting = TlsConnector::from(Arc::clone(&self.current().client)).connect(name, stream).into_fallible();
        let stream = match connecting.await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                let reason = describe(&error);
                drain(stream).await;
                return Err(reason);
            }
        };
        let identity = peer_identity(stream.get_ref().1)?;
        // A wildcard certificate satisfies TLS, but its owner could be any host, so it is not accepted here.
        if !identity.is(host) {
            return Err(format!("its certificate is not that of {host}: it names {identity}"));
        }
        Ok(Secured::new(stream, identity))
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
}

impl Secured {
    fn new<S: TlsTransport>(stream: S, identity: Identity) -> Self {
        let (reader, writer) = futures_lite::io::split(stream);
        Self { reader: Box::new(DescribeErrors(reader)), writer: Box::new(writer), identity }
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

/// A reader that describes TLS errors for people. A peer's refusal of our certificate arrives with the first read.
struct DescribeErrors<R>(R);

impl<R: AsyncRead + Unpin> AsyncRead for DescribeErrors<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer).map_err(|error| match tls_error(&error) {
            Some(tls) if is_refusal(tls) => io::Error::new(io::ErrorKind::PermissionDenied, describe(&error)),
            Some(_) => io::Error::other(describe(&error)),
            None => error,
        })
    }
}

/// Whether the peer refuses this host, so that another attempt is pointless. (A record damaged in transit also leads to
/// an alert, but the next attempt may succeed.)
fn is_refusal(error: &Rustls) -> bool {
    use AlertDescription as Alert;
    let Rustls::AlertReceived(alert) = error else { return false };
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::ProtocolVersion
    )
}

fn tls_error(error: &io::Error) -> Option<&Rustls> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Describes an error of a connection, in a sentence about the peer.
fn describe(error: &io::Error) -> String {
    match tls_error(error) {
        Some(error) => describe_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        None => error.to_string(),
    }
}

fn describe_tls(error: &Rustls) -> String {
    match error {
        Rustls::NoCertificatesPresented => "it sent no certificate".to_owned(),
        Rustls::InvalidCertificate(error) => describe_certificate(error),
        Rustls::AlertReceived(alert) => describe_alert(*alert),
        Rustls::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        Rustls::PeerIncompatible(why) => format!("it does not support the TLS 1.3 parameters required here: {why:?}"),
        other => other.to_string(),
    }
}

fn describe_certificate(error: &CertificateError) -> String {
    use CertificateError as Bad;
    match error {
        // The name of the issuer is known, but its key is another one.
        Bad::BadSignature => {
            "its certificate was not issued by a CA that is known here, but by one of the same name".to_owned()
        }
        Bad::UnknownIssuer => "its certificate was not issued by a CA that is known here".to_owned(),
        Bad::Expired => "its certificate has expired".to_owned(),
        Bad::ExpiredContext { not_after, .. } => format!("its certificate expired {}", format_time(*not_after)),
        Bad::NotValidYet => "its certificate is not valid yet; hint: check the clocks of both hosts".to_owned(),
        Bad::NotValidYetContext { not_before, .. } => {
            format!(
                "its certificate is not valid before {}; hint: check the clocks of both hosts",
                format_time(*not_before)
            )
        }
        Bad::NotValidForName => "its certificate names another host".to_owned(),
        Bad::NotValidForNameContext { expected, presented } => {
            let names: Vec<String> = presented.iter().take(4).map(|name| bare_name(name)).collect();
            format!("its certificate is not that of {}: it names {}", expected.to_str(), names.join(", "))
        }
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
            "its certificate does not permit this use; it must permit server and client authentication".to_owned()
        }
        Bad::Revoked => "its certificate was revoked".to_owned(),
        other => format!("its certificate is invalid: {other}"),
    }
}

fn describe_alert(alert: AlertDescription) -> String {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => "it requires a certificate of this host, and got none".to_owned(),
        Alert::DecryptError => {
            "it does not know the CA of this host's certificate, but one of the same name".to_owned()
        }
        Alert::UnknownCA => "it does not know the CA of this host's certificate".to_owned(),
        Alert::CertificateExpired => "it says that this host's certificate has expired".to_owned(),
        Alert::CertificateRevoked => "it says that this host's certificate was revoked".to_owned(),
        Alert::ProtocolVersion => "it does not support TLS 1.3".to_owned(),
        other => format!("it aborted the handshake: {other:?}"),
    }
}

fn format_time(at: UnixTime) -> String {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    DateTime::from_timestamp(seconds, 0).map_or_else(String::new, |at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// `DnsName("beta")` as `beta`.
fn bare_name(name: &str) -> String {
    name.split('"').nth(1).unwrap_or(name).to_owned()
}
