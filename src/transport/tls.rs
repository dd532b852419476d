//! TLS 1.3 with certificates on both sides.
//!
//! Who is believed is the CA's affair, which names a certificate has is read here; what its holder may do is decided
//! by whoever talks with it.

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

/// The largest file of certificates or keys that is read, in bytes.
const LARGEST_FILE: u64 = 1 << 20;
/// How long before it expires a certificate is warned of.
const EXPIRES_SOON: TimeDelta = TimeDelta::days(30);
/// How long a peer whose handshake failed may speak on, so that it hears why.
const LET_PASS: Duration = Duration::from_secs(2);
/// What is read at the most of what it says, in pieces of 16 KiB.
const MOST_LET_PASS: usize = 64;

/// Why this host cannot prove itself.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("cannot use {}: {reason}", file.display())]
pub struct TlsError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl TlsError {
    fn new(file: &Path, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), reason: reason.into() }
    }
}

/// What TLS is done with, and anew from the next connection on when it is read again.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<Material>>,
}

struct Material {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    own: Certificate,
    /// Why those who believe the same CAs would not believe this host, if so.
    doubt: Option<String>,
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it names, as what.
    pub identity: Identity,
    /// From when on it is valid.
    pub from: Option<DateTime<Utc>>,
    /// Until when.
    pub until: Option<DateTime<Utc>>,
}

/// Reads a file that is expected to be small.
pub fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(|error| {
        TlsError::new(
            file,
            match error.kind() {
                io::ErrorKind::NotFound => "there is no such file; see zsync-tls(8)".to_owned(),
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

/// Reads the certificates in a PEM text: at least one.
pub fn certificates_in(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err("there is no certificate in it (PEM)".to_owned()),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("its certificates cannot be read: {error}")),
    }
}

/// Reads the certificates of a PEM file: at least one.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates_in(&read(file)?).map_err(|reason| TlsError::new(file, reason))
}

/// Whether a certificate can name a host of this name.
#[must_use]
pub fn is_dns_name(host: &HostName) -> bool {
    server_name(host).is_some()
}

fn server_name(host: &HostName) -> Option<ServerName<'static>> {
    ServerName::try_from(host.as_str().to_owned()).ok().filter(|name| matches!(name, ServerName::DnsName(_)))
}

/// Reads what a certificate says.
pub fn certificate(der: &[u8]) -> Result<Certificate, String> {
    let (_, found) = x509_parser::parse_x509_certificate(der).map_err(|error| format!("no certificate: {error}"))?;
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
    let moment = |at: x509_parser::time::ASN1Time| DateTime::from_timestamp(at.timestamp(), 0);
    let validity = found.validity();
    Ok(Certificate {
        identity: Identity::new(dns, uris),
        from: moment(validity.not_before),
        until: moment(validity.not_after),
    })
}

fn load(files: &TlsFiles) -> Result<Material, TlsError> {
    let mut roots = RootCertStore::empty();
    for der in certificates(&files.ca)? {
        roots.add(der).map_err(|error| TlsError::new(&files.ca, format!("it has no CA's certificate: {error}")))?;
    }
    let roots = Arc::new(roots);
    let chain = certificates(&files.certificate)?;
    let own = match chain.first() {
        Some(first) => certificate(first).map_err(|error| TlsError::new(&files.certificate, error))?,
        None => return Err(TlsError::new(&files.certificate, "there is no certificate in it (PEM)")),
    };
    if own.identity.names.is_empty() {
        let reason = "it names no host: it needs a DNS name among its subject alternative names";
        return Err(TlsError::new(&files.certificate, reason));
    }
    // What the parser says of a broken key could have parts of it in it.
    let key = || {
        PrivateKeyDer::from_pem_slice(&read(&files.key)?)
            .map_err(|_| TlsError::new(&files.key, "there is no private key in it (PEM, not encrypted)"))
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
    // A client that only writes would never read them, and Linux takes back what was written when it closes a
    // connection with something unread.
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

/// Looks at the own certificate as others will.
fn doubt(verifier: &WebPkiServerVerifier, chain: &[CertificateDer<'_>], own: &Identity) -> Option<String> {
    let (first, between) = chain.split_first()?;
    let name = server_name(own.names.first()?)?;
    verifier.verify_server_cert(first, between, &name, &[], UnixTime::now()).err().map(|error| tls_in_words(&error))
}

impl Tls {
    /// Reads the files.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self { current: RwLock::new(Arc::new(load(files)?)), files: files.clone() })
    }

    /// Reads the files again, for connections that come after; if they are not right, what was read before stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let material = Arc::new(load(&self.files)?);
        *self.current.write() = material;
        Ok(())
    }

    fn current(&self) -> Arc<Material> {
        Arc::clone(&self.current.read())
    }

    /// What the own certificate says.
    #[must_use]
    pub fn own(&self) -> Certificate {
        self.current().own.clone()
    }

    /// What is wrong with who may read the private key; `None` if that is its owner alone.
    #[must_use]
    pub fn loose_key(&self) -> Option<String> {
        let file = &self.files.key;
        let mode = fs::metadata(file).ok()?.permissions().mode() & 0o7777;
        (mode & 0o077 != 0).then(|| {
            let file = file.display();
            format!("the private key {file} has the mode {mode:04o}: others than its owner may use it; chmod 600 it")
        })
    }

    /// What whoever runs this should know: what is wrong by now, or will be, or for a host of this name.
    #[must_use]
    pub fn warnings(&self, now: DateTime<Utc>, host: &HostName, role: PeerRole) -> Vec<String> {
        let (own, file) = (self.own(), self.files.certificate.display());
        let mut warnings: Vec<String> = self.loose_key().into_iter().collect();
        if !own.identity.is(host) {
            warnings.push(format!("{file} names {}, not {host}: others will not trust this host", own.identity));
        }
        if !own.identity.may_be(role) {
            warnings.push(format!("{file} is for {}, not for {role}", own.identity.roles_in_words()));
        }
        warnings.extend(self.doubt().map(|doubt| format!("others will not trust {file}: {doubt}")));
        if let Some(until) = own.until.filter(|until| *until > now && *until - now < EXPIRES_SOON) {
            warnings.push(format!("{file} expires {}: issue another one", until.format("%Y-%m-%d")));
        }
        warnings
    }

    /// Why those who believe the same CAs would not believe this host, if so.
    #[must_use]
    pub fn doubt(&self) -> Option<String> {
        self.current().doubt.clone()
    }

    /// Answers a handshake.
    pub(super) async fn accept<S: Stream>(&self, stream: S) -> Result<Secured, String> {
        let accepting = TlsAcceptor::from(Arc::clone(&self.current().server)).accept(stream).into_fallible();
        let stream = match accepting.await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                let reason = in_words(&error);
                let_pass(stream).await;
                return Err(reason);
            }
        };
        let identity = peer(stream.get_ref().1)?;
        Ok(Secured::new(stream, identity))
    }

    /// Makes a handshake with the host of this name.
    pub(super) async fn connect<S: Stream>(&self, host: &HostName, stream: S) -> Result<Secured, String> {
        let name = server_name(host);
        let name = name.ok_or_else(|| format!("{host} is no DNS name, and a certificate cannot name it"))?;
        let connecting = TlsConnector::from(Arc::clone(&self.current().client)).connect(name, stream).into_fallible();
        let stream = match connecting.await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                let reason = in_words(&error);
                let_pass(stream).await;
                return Err(reason);
            }
        };
        let identity = peer(stream.get_ref().1)?;
        // A wildcard is enough for TLS. It is not for us: whoever has it could be every host.
        if !identity.is(host) {
            return Err(format!("its certificate is not that of {host}, it names {identity}"));
        }
        Ok(Secured::new(stream, identity))
    }
}

/// What a connection needs to be for TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// A connection whose peer has proven who it is.
pub(super) struct Secured {
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    pub identity: Identity,
}

impl Secured {
    fn new<S: Stream>(stream: S, identity: Identity) -> Self {
        let (reader, writer) = futures_lite::io::split(stream);
        Self { reader: Box::new(Explaining(reader)), writer: Box::new(writer), identity }
    }
}

fn peer(session: &CommonState) -> Result<Identity, String> {
    let first = session.peer_certificates().and_then(|chain| chain.first());
    Ok(certificate(first.ok_or("it showed no certificate")?)?.identity)
}

/// Lets a peer hear the alert: a system that closes a connection with unread words in it takes back its own last ones.
async fn let_pass<S: Stream>(mut stream: S) {
    let passing = async {
        if stream.close().await.is_ok() {
            let mut words = vec![0; 16 * 1024];
            for _ in 0..MOST_LET_PASS {
                if !stream.read(&mut words).await.is_ok_and(|read| read > 0) {
                    return;
                }
            }
        }
    };
    // Whether it went silent by itself does not matter any more.
    let _: Result<(), runtime::Elapsed> = runtime::timeout(LET_PASS, passing).await;
}

/// A peer that refuses our certificate says so only when we read first: told in words.
struct Explaining<R>(R);

impl<R: AsyncRead + Unpin> AsyncRead for Explaining<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer).map_err(|error| match rustls(&error) {
            Some(tls) if refuses(tls) => io::Error::new(io::ErrorKind::PermissionDenied, in_words(&error)),
            Some(_) => io::Error::other(in_words(&error)),
            None => error,
        })
    }
}

/// Whether a peer does not want us for what we are: trying again changes nothing. (A record that was damaged on its way
/// also ends in an alert, and may well arrive the next time.)
fn refuses(error: &Rustls) -> bool {
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

fn rustls(error: &io::Error) -> Option<&Rustls> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// What went wrong with a handshake, said of the peer.
fn in_words(error: &io::Error) -> String {
    match rustls(error) {
        Some(error) => tls_in_words(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "it hung up".to_owned(),
        None => error.to_string(),
    }
}

fn tls_in_words(error: &Rustls) -> String {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    match error {
        Rustls::NoCertificatesPresented => "it showed no certificate".to_owned(),
        Rustls::InvalidCertificate(bad) => match bad {
            // The issuer's name is one that is known, and its key is not.
            Bad::BadSignature => {
                "its certificate is not of a CA that is known here, but of one of the same name".to_owned()
            }
            Bad::UnknownIssuer => "its certificate is not of a CA that is known here".to_owned(),
            Bad::Expired => "its certificate has expired".to_owned(),
            Bad::ExpiredContext { not_after, .. } => format!("its certificate expired {}", moment(*not_after)),
            Bad::NotValidYet => "its certificate is not valid yet; are the clocks right?".to_owned(),
            Bad::NotValidYetContext { not_before, .. } => {
                format!("its certificate is valid only from {} on; are the clocks right?", moment(*not_before))
            }
            Bad::NotValidForName => "its certificate names another host".to_owned(),
            Bad::NotValidForNameContext { expected, presented } => {
                let names: Vec<String> = presented.iter().take(4).map(|name| shown_name(name)).collect();
                format!("its certificate is not that of {}, it names {}", expected.to_str(), names.join(", "))
            }
            Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
                "its certificate is not for this use: it has to be for server and client authentication".to_owned()
            }
            Bad::Revoked => "its certificate was revoked".to_owned(),
            other => format!("its certificate is not right: {other}"),
        },
        Rustls::AlertReceived(alert) => match alert {
            Alert::CertificateRequired => "it wants a certificate of this host, and was shown none".to_owned(),
            Alert::DecryptError => {
                "it does not know the CA of this host's certificate, but one of the same name".to_owned()
            }
            Alert::UnknownCA => "it does not know the CA of this host's certificate".to_owned(),
            Alert::CertificateExpired => "it says that this host's certificate has expired".to_owned(),
            Alert::CertificateRevoked => "it says that this host's certificate was revoked".to_owned(),
            Alert::ProtocolVersion => "it does not speak TLS 1.3".to_owned(),
            other => format!("it breaks off the handshake: {other:?}"),
        },
        Rustls::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        Rustls::PeerIncompatible(why) => format!("it does not speak TLS 1.3 as it is wanted here: {why:?}"),
        other => other.to_string(),
    }
}

fn moment(at: UnixTime) -> String {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    DateTime::from_timestamp(seconds, 0).map_or_else(String::new, |at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// `DnsName("beta")` as `beta`.
fn shown_name(name: &str) -> String {
    name.split('"').nth(1).unwrap_or(name).to_owned()
}
