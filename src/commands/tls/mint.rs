//! Makes certificates: that of a CA, and those that the CA issues to hosts.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use chrono::{DateTime, Datelike, TimeDelta, Utc};
use futures_rustls::pki_types::CertificateDer;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};

use crate::model::tags::ROLE;
use crate::model::{HostName, PeerRole};
use crate::transport::tls;

/// How long before its creation a certificate is already valid, because clocks differ.
const CLOCK_SKEW: TimeDelta = TimeDelta::days(1);

/// The certificate to issue.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The host, as the policy names it.
    pub host: HostName,
    /// Other names of the host.
    pub also: Vec<HostName>,
    /// The roles in which the host may act.
    pub roles: BTreeSet<PeerRole>,
    /// Validity in days.
    pub days: u32,
}

/// A certificate and its private key, as PEM.
pub struct Minted {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

fn set_validity(params: &mut CertificateParams, now: DateTime<Utc>, days: u32) -> anyhow::Result<()> {
    let until = now.checked_add_signed(TimeDelta::days(days.into())).filter(|until| until.year() < 9999);
    let until = until.with_context(|| format!("{days} days from now is out of range"))?;
    let date = |at: DateTime<Utc>| {
        let (month, day) = (u8::try_from(at.month()).unwrap_or(1), u8::try_from(at.day()).unwrap_or(1));
        rcgen::date_time_ymd(at.year(), month, day)
    };
    // Dates have no time of day: the last day ends when the next one begins.
    (params.not_before, params.not_after) = (date(now - CLOCK_SKEW), date(until + TimeDelta::days(1)));
    // A positive number of at most 20 bytes (RFC 5280), of which 74 bits are random.
    params.serial_number = Some(SerialNumber::from_slice(uuid::Uuid::now_v7().as_bytes()));
    Ok(())
}

/// Makes a CA, whose certificate signs those of hosts and nothing else.
pub fn mint_ca(name: &str, now: DateTime<Utc>, days: u32) -> anyhow::Result<Minted> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, days)?;
    let key = KeyPair::generate()?;
    Ok(Minted { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// A CA that can sign.
pub(super) struct Authority {
    pub issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub der: CertificateDer<'static>,
    until: DateTime<Utc>,
}

/// Reads the certificate and the key of a CA.
pub(super) fn authority(ca: &Minted) -> anyhow::Result<Authority> {
    let ca_key = KeyPair::from_pem(&ca.key).map_err(|_| anyhow::anyhow!("cannot read the CA's key"))?;
    let pem = tls::certificates_in(ca.certificate.as_bytes()).map_err(anyhow::Error::msg)?;
    let der = pem.into_iter().next().context("the CA's certificate file has no certificate in it")?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).context("cannot read the CA's certificate")?;
    ensure!(parsed.is_ca(), "the certificate is not that of a CA");
    ensure!(
        parsed.public_key().subject_public_key.data.as_ref() == ca_key.public_key_raw(),
        "the CA's key does not belong to its certificate"
    );
    let until = DateTime::from_timestamp(parsed.validity().not_after.timestamp(), 0).unwrap_or_default();
    let issuer = Issuer::from_ca_cert_der(&der, ca_key)?;
    Ok(Authority { issuer, der, until })
}

/// Makes a private key.
pub(super) fn new_key() -> anyhow::Result<String> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// Issues a certificate with a new key, signed by a CA.
pub fn mint(ca: &Minted, wanted: &Wanted, now: DateTime<Utc>) -> anyhow::Result<Minted> {
    let key = KeyPair::generate()?;
    Ok(Minted { certificate: sign(ca, wanted, &key, now)?, key: key.serialize_pem() })
}

/// Signs a certificate for this public key.
pub(super) fn sign(
    ca: &Minted,
    wanted: &Wanted,
    key: &impl PublicKeyData,
    now: DateTime<Utc>,
) -> anyhow::Result<String> {
    let ca = authority(ca)?;
    let until = now + TimeDelta::days(wanted.days.into());
    ensure!(
        until <= ca.until,
        "the CA's own certificate is valid only until {}; hint: pass a smaller --days, or make a new CA",
        ca.until.format("%Y-%m-%d")
    );

    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, wanted.host.as_str());
    for name in std::iter::once(&wanted.host).chain(&wanted.also) {
        ensure!(is_dns_name(name), "{name} is not a DNS name, so a certificate cannot contain it");
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    for role in &wanted.roles {
        params.subject_alt_names.push(SanType::URI(format!("{ROLE}{role}").as_str().try_into()?));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // An agent is a server to directors and a client of slaves.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, wanted.days)?;
    Ok(params.signed_by(key, &ca.issuer)?.pem())
}

pub(super) fn is_dns_name(name: &HostName) -> bool {
    let all_digits = name.as_str().bytes().all(|b| b.is_ascii_digit() || b == b'.');
    !all_digits && tls::is_dns_name(name)
}
