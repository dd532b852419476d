//! Describes errors of TLS for people: what is wrong with a certificate, whose it is, and what to do.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use chrono::DateTime;
use futures_lite::io::AsyncRead;
use futures_rustls::pki_types::UnixTime;
use futures_rustls::rustls::{AlertDescription, CertRevocationListError, CertificateError, Error as Rustls};

use crate::sys::clock;
use crate::transport::tls::certificate::Certificate;

/// This host's certificate.
#[derive(Clone)]
pub(super) struct Own {
    pub certificate: Certificate,
    /// The file from which it was read.
    pub file: PathBuf,
    /// The file with the lists of revoked certificates.
    pub crl: Option<PathBuf>,
}

impl Own {
    fn crl_file(&self) -> String {
        self.crl.as_ref().map_or_else(|| "(none)".to_owned(), |file| file.display().to_string())
    }
}

/// A reader that describes TLS errors for people. A peer's refusal of our certificate arrives with the first read.
pub(super) struct DescribeErrors<R> {
    reader: R,
    own: Box<Own>,
}

impl<R> DescribeErrors<R> {
    pub fn new(reader: R, own: Own) -> Self {
        Self { reader, own: Box::new(own) }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for DescribeErrors<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        Pin::new(&mut this.reader).poll_read(cx, buffer).map_err(|error| match tls_error(&error) {
            Some(tls) if is_refusal(tls) => {
                io::Error::new(io::ErrorKind::PermissionDenied, describe(&error, &this.own, None))
            }
            Some(_) => io::Error::other(describe(&error, &this.own, None)),
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

/// Whether the connection itself failed, not what the peer sent on it.
pub(super) fn is_interruption(error: &io::Error) -> bool {
    tls_error(error).is_none()
}

fn tls_error(error: &io::Error) -> Option<&Rustls> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Describes an error of a connection, in a sentence about the peer. `presented` is the certificate that the peer has
/// presented.
pub(super) fn describe(error: &io::Error, own: &Own, presented: Option<&Certificate>) -> String {
    match tls_error(error) {
        Some(error) => describe_tls(error, own, presented),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        None => error.to_string(),
    }
}

/// Describes an error of TLS, in a sentence about the peer.
pub(super) fn describe_tls(error: &Rustls, own: &Own, presented: Option<&Certificate>) -> String {
    match error {
        Rustls::NoCertificatesPresented => "it sent no certificate".to_owned(),
        Rustls::InvalidCertificate(error) => describe_certificate(error, own, presented),
        Rustls::AlertReceived(alert) => describe_alert(*alert, own),
        Rustls::NoApplicationProtocol => {
            "it asked for another protocol than zsync/1: it is another program, or another version of zsync".to_owned()
        }
        Rustls::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        Rustls::PeerIncompatible(why) => format!("it does not support the TLS 1.3 parameters required here: {why:?}"),
        Rustls::InvalidCertRevocationList(CertRevocationListError::BadSignature) => format!(
            "its certificate cannot be checked: the list of revoked certificates in {} is that of another CA with the \
             same name; hint: replace one of the two CAs by one with a name of its own, see zsync-tls(8)",
            own.crl_file()
        ),
        other => other.to_string(),
    }
}

fn describe_certificate(error: &CertificateError, own: &Own, presented: Option<&Certificate>) -> String {
    use CertificateError as Bad;
    match error {
        // The name of the issuer is known, but its key is another one. With two CAs of this name, it may also be the list.
        Bad::BadSignature => {
            let list = own.crl.as_ref().map(|crl| {
                format!(
                    "; hint: if two CAs that are known here have this name, replace one of them by a CA with a name of its \
                     own, because the lists of revoked certificates in {} cannot be told apart",
                    crl.display()
                )
            });
            let reason = "its certificate was not issued by a CA that is known here, but by one of the same name";
            format!("{reason}{}", list.unwrap_or_default())
        }
        Bad::UnknownIssuer => "its certificate was not issued by a CA that is known here".to_owned(),
        Bad::Expired => "its certificate has expired".to_owned(),
        Bad::ExpiredContext { not_after, .. } => describe_expired(*not_after, presented),
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
        Bad::Revoked => describe_revoked(presented),
        Bad::ExpiredRevocationListContext { next_update, .. } => format!(
            "its certificate cannot be checked: the list of revoked certificates {} expired {}; hint: run zsync tls \
             revoke where the CA is, and copy the new ca.crl here",
            own.crl_file(),
            format_time(*next_update)
        ),
        Bad::UnknownRevocationStatus => format!(
            "its certificate cannot be checked: {} has no list of revoked certificates of its CA; hint: append that list",
            own.crl_file()
        ),
        other => format!("its certificate is invalid: {other}"),
    }
}

fn describe_revoked(presented: Option<&Certificate>) -> String {
    match presented {
        Some(Certificate { identity, serial, .. }) => {
            format!("its certificate, that of {identity} with the serial number {serial}, was revoked")
        }
        None => "its certificate was revoked".to_owned(),
    }
}

/// Says whose certificate expired, when, and how to renew it. It is the peer's, or one of those that lead to its CA.
fn describe_expired(not_after: UnixTime, presented: Option<&Certificate>) -> String {
    let at = format_time(not_after);
    let Some(Certificate { identity, until, .. }) = presented else { return format!("its certificate expired {at}") };
    let is_own = until.is_none_or(|until| u64::try_from(until.timestamp()).is_ok_and(|it| it == not_after.as_secs()));
    if is_own {
        // Its signature has not been verified yet, so anybody may have written names and roles into it.
        format!(
            "its certificate, that of {identity}, expired {at}; hint: renew it with the CA that issued it, for the names \
             and roles of your own plan (zsync tls issue HOST --role ROLES --renew)"
        )
    } else {
        format!(
            "a CA's certificate behind its certificate, that of {identity}, expired {at}; hint: replace the CA, see \
             zsync-tls(8)"
        )
    }
}

/// Describes that the peer says that this host's certificate is not valid at present.
fn describe_own_expired(own: &Own) -> String {
    let Certificate { identity, until, .. } = &own.certificate;
    let file = own.file.display();
    match until {
        Some(until) if *until <= clock::now() => format!(
            "it says that this host's certificate has expired: {file}, that of {identity}, expired {}; hint: {}",
            until.format("%Y-%m-%dT%H:%M:%SZ"),
            identity.renewal()
        ),
        _ => format!(
            "it says that this host's certificate has expired, but by this host's clock {file} has not; hint: compare \
             the clocks of both hosts, and run zsync tls show"
        ),
    }
}

fn describe_alert(alert: AlertDescription, own: &Own) -> String {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => "it requires a certificate of this host, and got none".to_owned(),
        Alert::DecryptError => {
            "it does not know the CA of this host's certificate, but one of the same name".to_owned()
        }
        Alert::UnknownCA => {
            "it does not know the CA of this host's certificate, or has no valid list of what that CA has revoked; \
             hint: its log says which"
                .to_owned()
        }
        Alert::CertificateExpired => describe_own_expired(own),
        Alert::CertificateRevoked => format!(
            "it says that this host's certificate was revoked: {}, that of {}; hint: to trust this host again, issue a \
             new one to it: {}",
            own.file.display(),
            own.certificate.identity,
            own.certificate.identity.renewal()
        ),
        Alert::NoApplicationProtocol => {
            "it does not speak the protocol zsync/1; hint: check the address, and the version of zsync there".to_owned()
        }
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
