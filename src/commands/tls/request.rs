//! Certificate signing requests: a host makes its key and a request, and only the request travels to the CA.

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, Utc};
use rcgen::{CertificateParams, CertificateSigningRequestParams, DnType, KeyPair, PublicKey, SanType};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as PublicKeyType;

use crate::commands::tls::mint::{Minted, Wanted, is_dns_name, sign};
use crate::model::HostName;
use crate::model::tags::ROLE;

/// The least size of an RSA key, in bits.
const LEAST_RSA: usize = 2048;

/// Makes a request for these names, signed with this key.
pub fn make(host: &HostName, also: &[HostName], key: &str) -> anyhow::Result<String> {
    let key = KeyPair::from_pem(key).map_err(|_| anyhow::anyhow!("cannot read the private key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, host.as_str());
    for name in std::iter::once(host).chain(also) {
        ensure!(is_dns_name(name), "{name} is not a DNS name, so a certificate cannot contain it");
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    Ok(params.serialize_request(&key)?.pem()?)
}

/// Issues a certificate for the key of a request, signed by a CA.
pub fn mint_requested(ca: &Minted, wanted: &Wanted, request: &str, now: DateTime<Utc>) -> anyhow::Result<String> {
    let key = key_of(request, wanted).context("cannot use the request")?;
    sign(ca, wanted, &key, now)
}

/// The public key in a request, if the request is signed with its own key, asks for nothing but what is wanted, and the
/// key is of a type that TLS 1.3 uses. The certificate is made from what is wanted alone, so that a request can never
/// get more than that. What it asks for besides shows that it is the wrong one.
fn key_of(request: &str, wanted: &Wanted) -> anyhow::Result<PublicKey> {
    let der = x509_parser::pem::parse_x509_pem(request.as_bytes())
        .map(|(_, pem)| pem.contents)
        .context("it contains no certificate signing request in PEM format")?;
    let (_, parsed) = X509CertificationRequest::from_der(&der).context("it is not a certificate signing request")?;
    let key = parsed.certification_request_info.subject_pki.parsed().context("its key is invalid")?;
    // Signatures of short keys are not even verified, so the size comes first.
    if let PublicKeyType::RSA(key) = &key {
        let size = key.key_size();
        ensure!(size >= LEAST_RSA, "its RSA key has {size} bits, and at least {LEAST_RSA} are required");
    }
    ensure!(
        parsed.verify_signature().is_ok(),
        "it is not signed with its own key, so whoever made it may not have that key"
    );
    let params = CertificateSigningRequestParams::from_der(&der.as_slice().into())
        .map_err(|error| anyhow::anyhow!("its key or what it asks for is not supported: {error}"))?;
    let is_known = matches!(key, PublicKeyType::RSA(_) | PublicKeyType::EC(_));
    ensure!(
        is_known || *params.public_key.algorithm() == rcgen::PKCS_ED25519,
        "its key is not of a type that TLS 1.3 uses: ECDSA P-256 or P-384, Ed25519, or RSA"
    );
    check_names(&params.params, wanted)?;
    Ok(params.public_key)
}

/// Checks that a request is for the host, and asks for nothing else.
fn check_names(asked: &CertificateParams, wanted: &Wanted) -> anyhow::Result<()> {
    let is_wanted = |name: &str| {
        std::iter::once(&wanted.host).chain(&wanted.also).any(|known| known.as_str().eq_ignore_ascii_case(name))
    };
    let mut names: Vec<String> = Vec::new();
    for asked in &asked.subject_alt_names {
        match asked {
            SanType::DnsName(name) => names.push(name.as_str().to_owned()),
            SanType::URI(uri) => {
                let role = uri.as_str().strip_prefix(ROLE).and_then(|role| role.parse().ok());
                ensure!(
                    role.is_some_and(|role| wanted.roles.contains(&role)),
                    "it asks for {:?}, which --role does not permit",
                    uri.as_str()
                );
            }
            other => bail!("it asks for {other:?}, and only DNS names are issued"),
        }
    }
    if names.is_empty()
        && let Some(rcgen::DnValue::Utf8String(name)) = asked.distinguished_name.get(&DnType::CommonName)
    {
        names.push(name.clone());
    }
    if let Some(other) = names.iter().find(|name| !is_wanted(name)) {
        bail!(
            "it asks for the name {other:?}, not only for {}; hint: check that it is the request of that host; if it \
             may have that name as well, add --also {other}",
            wanted.host
        );
    }
    let host = wanted.host.as_str();
    ensure!(
        names.iter().any(|name| name.eq_ignore_ascii_case(host)),
        "it does not ask for the name {host}; hint: make it there with zsync tls request {host}"
    );
    Ok(())
}
