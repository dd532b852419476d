//! `zsync tls revoke`: makes the list of the certificates that a CA has revoked (its CRL).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};

use crate::commands::tls::folder::{private_folder, write};
use crate::commands::tls::mint::{Authority, Minted, authority};
use crate::model::HostName;
use crate::sys::files;
use crate::transport::tls;

/// The folder of a CA with a copy of each certificate that it has issued.
const ISSUED: &str = "issued";

/// A certificate to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Its serial number.
    serial: Vec<u8>,
    /// The same, as in `01:9a:f3`.
    pub text: String,
}

/// Keeps a copy of a certificate that the CA in this folder has issued, so that it can be revoked later.
pub fn remember(folder: &Path, certificate: &str) -> anyhow::Result<()> {
    let issued = folder.join(ISSUED);
    private_folder(&issued)?;
    let serial = read(certificate)?.text.replace(':', "");
    write(&issued.join(format!("{serial}.crt")), certificate, files::PRIVATE, true)
}

fn read(pem: &str) -> anyhow::Result<Issued> {
    let all = tls::certificates_in(pem.as_bytes()).map_err(anyhow::Error::msg)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(all.first().context("it contains no certificate")?)?;
    Ok(Issued { serial: unsigned(parsed.raw_serial()), text: parsed.raw_serial_as_string() })
}

/// A serial number without leading zeros.
fn unsigned(raw: &[u8]) -> Vec<u8> {
    let zeros = raw.iter().take_while(|byte| **byte == 0).count().min(raw.len().saturating_sub(1));
    raw[zeros..].to_vec()
}

/// The certificate in a file, if this CA has issued it.
pub fn of_file(ca: &Minted, file: &Path) -> anyhow::Result<Issued> {
    let of = || format!("cannot revoke {}", file.display());
    let all = tls::certificates(file)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(all.first().with_context(of)?).with_context(of)?;
    ensure!(is_of(&authority(ca)?, &parsed), "cannot revoke {}: another CA has issued it", file.display());
    Ok(Issued { serial: unsigned(parsed.raw_serial()), text: parsed.raw_serial_as_string() })
}

fn is_of(ca: &Authority, certificate: &x509_parser::certificate::X509Certificate<'_>) -> bool {
    x509_parser::parse_x509_certificate(&ca.der)
        .is_ok_and(|(_, ca)| certificate.verify_signature(Some(ca.public_key())).is_ok())
}

/// Every certificate that the CA in this folder has issued to a host, and that has not expired. Certificates that were
/// issued before copies were kept are found if they are still in the folder of the host.
pub fn of_host(folder: &Path, ca: &Minted, host: &HostName, now: DateTime<Utc>) -> anyhow::Result<Vec<Issued>> {
    let ca = authority(ca)?;
    let mut found = Vec::new();
    for file in &kept(folder, host) {
        let of = || format!("cannot read {}", file.display());
        let all = tls::certificates(file)?;
        let der = all.first().with_context(of)?;
        let described = tls::certificate(der).map_err(anyhow::Error::msg).with_context(of)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(der).with_context(of)?;
        let is_valid = described.until.is_none_or(|until| until > now);
        if described.identity.is(host) && is_valid && is_of(&ca, &parsed) {
            let issued = Issued { serial: unsigned(parsed.raw_serial()), text: described.serial };
            if !found.contains(&issued) {
                found.push(issued);
            }
        }
    }
    Ok(found)
}

/// Checks that a certificate that was just made is not for the key of a revoked one: whoever has stolen that key would
/// have a valid certificate again. `more` are about to be revoked.
pub fn ensure_new_key(
    folder: &Path,
    list: &Path,
    certificate: &str,
    more: &[Issued],
    host: &HostName,
) -> anyhow::Result<()> {
    let mut revoked: Vec<Vec<u8>> = more.iter().map(|one| one.serial.clone()).collect();
    if list.exists() {
        let text = fs::read(list).with_context(|| format!("cannot read {}", list.display()))?;
        let cannot = || format!("cannot read the list of revoked certificates {}", list.display());
        let der = CertificateRevocationListDer::from_pem_slice(&text).ok().with_context(cannot)?;
        let (_, parsed) = x509_parser::parse_x509_crl(&der).with_context(cannot)?;
        revoked.extend(parsed.iter_revoked_certificates().map(|one| unsigned(one.raw_serial())));
    }
    let key_and_serial = |all: Vec<CertificateDer<'_>>| -> anyhow::Result<(Vec<u8>, Vec<u8>, String)> {
        let (_, parsed) = x509_parser::parse_x509_certificate(all.first().context("it contains no certificate")?)?;
        Ok((parsed.public_key().raw.to_vec(), unsigned(parsed.raw_serial()), parsed.raw_serial_as_string()))
    };
    let (key, ..) = key_and_serial(tls::certificates_in(certificate.as_bytes()).map_err(anyhow::Error::msg)?)?;
    for file in kept(folder, host) {
        let (other, serial, text) =
            key_and_serial(tls::certificates(&file)?).with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(
            other != key || !revoked.contains(&serial),
            "its key is that of the revoked certificate {text}, and somebody else may have it; hint: run zsync tls \
             request {host} --new-key on {host}"
        );
    }
    Ok(())
}

/// The files with certificates that the CA in this folder has issued to any host, and what is in the folder of this host.
fn kept(folder: &Path, host: &HostName) -> Vec<PathBuf> {
    let mut files = vec![folder.join(host.as_str()).join("host.crt")];
    if let Ok(entries) = fs::read_dir(folder.join(ISSUED)) {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.retain(|file| file.exists());
    files
}

/// Makes a list of revoked certificates, valid for so many days: those of the `previous` list and `more`.
pub fn revoke(
    ca: &Minted,
    previous: Option<&str>,
    more: &[Issued],
    now: DateTime<Utc>,
    days: u32,
) -> anyhow::Result<String> {
    let ca = authority(ca)?;
    let at = |seconds: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    };
    let entry = |serial: &[u8], revoked| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: at(revoked),
        reason_code: None,
        invalidity_date: None,
    };
    let (mut number, mut revoked, mut known) = (0, Vec::new(), Vec::new());
    if let Some(previous) = previous {
        let der = CertificateRevocationListDer::from_pem_slice(previous.as_bytes())
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let (_, list) = x509_parser::parse_x509_crl(&der)?;
        let (_, issuer) = x509_parser::parse_x509_certificate(&ca.der)?;
        ensure!(list.verify_signature(issuer.public_key()).is_ok(), "it is not a list of this CA");
        number = list.crl_number().and_then(|number| u64::try_from(number).ok()).context("it has no number")?;
        for one in list.iter_revoked_certificates() {
            let serial = unsigned(one.raw_serial());
            revoked.push(entry(&serial, one.revocation_date.timestamp()));
            known.push(serial);
        }
    }
    for one in more.iter().filter(|one| !known.contains(&one.serial)) {
        revoked.push(entry(&one.serial, now.timestamp()));
    }
    let Some(until) = now.checked_add_signed(TimeDelta::days(days.into())) else {
        bail!("{days} days from now is out of range")
    };
    let params = CertificateRevocationListParams {
        // Clocks differ.
        this_update: at((now - TimeDelta::days(1)).timestamp()),
        next_update: at(until.timestamp()),
        crl_number: SerialNumber::from(number + 1),
        issuing_distribution_point: None,
        revoked_certs: revoked,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(&ca.issuer)?.pem()?)
}
