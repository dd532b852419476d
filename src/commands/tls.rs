//! `zsync tls`: makes a CA, issues certificates to hosts, explains one.
//!
//! A convenience for fleets without a CA of their own: nothing else in zsync asks who issued a certificate.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, Datelike, TimeDelta, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use serde::Serialize;

use crate::cli::report;
use crate::cli::report::Format;
use crate::model::tags::ROLE;
use crate::model::{HostName, PeerRole, TlsFiles};
use crate::sys::{clock, files};
use crate::transport::tls;

/// The CA's files in its folder.
const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
/// How much a certificate is valid before it is made: clocks differ.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::days(1);

/// A certificate to be issued.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The host, as the policy names it.
    pub host: HostName,
    /// Further names of it.
    pub also: Vec<HostName>,
    /// What it may be.
    pub roles: BTreeSet<PeerRole>,
    /// How many days it is valid.
    pub days: u32,
}

/// A certificate and its private key, as PEM.
pub struct Minted {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

fn dates(params: &mut CertificateParams, now: DateTime<Utc>, days: u32) -> anyhow::Result<()> {
    let until = now.checked_add_signed(TimeDelta::days(days.into())).filter(|until| until.year() < 9999);
    let until = until.with_context(|| format!("{days} days from now are out of range"))?;
    let date = |at: DateTime<Utc>| {
        let (month, day) = (u8::try_from(at.month()).unwrap_or(1), u8::try_from(at.day()).unwrap_or(1));
        rcgen::date_time_ymd(at.year(), month, day)
    };
    // The day after the last one begins when that ends.
    (params.not_before, params.not_after) = (date(now - CLOCKS_DIFFER), date(until + TimeDelta::days(1)));
    // A positive number of at most 20 bytes (RFC 5280), of which 74 bits are random.
    params.serial_number = Some(SerialNumber::from_slice(uuid::Uuid::now_v7().as_bytes()));
    Ok(())
}

/// Makes a CA: its certificate signs those of hosts and nothing else.
pub fn mint_ca(name: &str, now: DateTime<Utc>, days: u32) -> anyhow::Result<Minted> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    dates(&mut params, now, days)?;
    let key = KeyPair::generate()?;
    Ok(Minted { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// Issues a certificate by a CA.
pub fn mint(ca: &Minted, wanted: &Wanted, now: DateTime<Utc>) -> anyhow::Result<Minted> {
    let ca_key = KeyPair::from_pem(&ca.key).map_err(|_| anyhow::anyhow!("the CA's key cannot be read"))?;
    let pem = tls::certificates_in(ca.certificate.as_bytes()).map_err(anyhow::Error::msg)?;
    let der = pem.first().context("there is no certificate of the CA")?;
    let (_, parsed) = x509_parser::parse_x509_certificate(der).context("the CA's certificate cannot be read")?;
    ensure!(parsed.is_ca(), "the certificate is not a CA's");
    ensure!(
        parsed.public_key().subject_public_key.data.as_ref() == ca_key.public_key_raw(),
        "the CA's key is not that of its certificate"
    );
    let until = now + TimeDelta::days(wanted.days.into());
    let ca_until = DateTime::from_timestamp(parsed.validity().not_after.timestamp(), 0).unwrap_or(now);
    ensure!(until <= ca_until, "the CA's own certificate is valid only until {}", ca_until.format("%Y-%m-%d"));

    let issuer = Issuer::from_ca_cert_der(der, ca_key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, wanted.host.as_str());
    for name in std::iter::once(&wanted.host).chain(&wanted.also) {
        ensure!(is_dns_name(name), "{name} is no DNS name, and a certificate cannot name it");
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    for role in &wanted.roles {
        params.subject_alt_names.push(SanType::URI(format!("{ROLE}{role}").as_str().try_into()?));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // An agent is called by directors and calls slaves.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    dates(&mut params, now, wanted.days)?;
    let key = KeyPair::generate()?;
    Ok(Minted { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
}

fn is_dns_name(name: &HostName) -> bool {
    let all_digits = name.as_str().bytes().all(|b| b.is_ascii_digit() || b == b'.');
    !all_digits && tls::is_dns_name(name)
}

/// Makes a folder that only its owner enters, if it is not there yet.
fn private_folder(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Writes a new file, or replaces one. Nobody else can read a key at any moment.
fn write(file: &Path, text: &str, permissions: u32, replace: bool) -> anyhow::Result<()> {
    let mode = if replace { files::Mode::Replace } else { files::Mode::Create };
    files::write(file, permissions, mode, |new| new.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// `zsync tls init`.
pub fn init(folder: &Path, name: &str, days: u32) -> anyhow::Result<()> {
    let (certificate, key) = (folder.join(CA_CERTIFICATE), folder.join(CA_KEY));
    for file in [&certificate, &key] {
        if file.exists() {
            let file = file.display();
            bail!(
                "there is {file} already; every certificate that it issued would be worth nothing without it: \
                   name another folder with --ca, or move it away"
            );
        }
    }
    let minted = mint_ca(name, clock::now(), days)?;
    private_folder(folder)?;
    write(&key, &minted.key, files::PRIVATE, false)?;
    write(&certificate, &minted.certificate, files::PUBLIC, false)?;
    report::print(&format!(
        "made a CA in {}\nwhoever has {} can be any host: keep it here or on no machine of the fleet, and back it up\n",
        folder.display(),
        key.display()
    ));
    Ok(())
}

/// `zsync tls issue`.
pub fn issue(folder: &Path, wanted: &Wanted, out: Option<PathBuf>, renew: bool) -> anyhow::Result<()> {
    let out = out.unwrap_or_else(|| folder.join(wanted.host.as_str()));
    let (ca_file, ca_key) = (folder.join(CA_CERTIFICATE), folder.join(CA_KEY));
    let text = |file: &Path| -> anyhow::Result<String> {
        let bytes =
            tls::read(file).with_context(|| "there is no CA to issue it: zsync tls init makes one".to_owned())?;
        String::from_utf8(bytes).ok().with_context(|| format!("{} is not PEM", file.display()))
    };
    let ca = Minted { certificate: text(&ca_file)?, key: text(&ca_key)? };
    let names = TlsFiles::default();
    let place = |default: &Path| out.join(default.file_name().unwrap_or_default());
    let (ca_copy, certificate, key) = (place(&names.ca), place(&names.certificate), place(&names.key));
    for file in [&certificate, &key] {
        if file.exists() && !renew {
            bail!("there is {} already; replace it with --renew, or name another folder with --out", file.display());
        }
    }
    let minted =
        mint(&ca, wanted, clock::now()).with_context(|| format!("cannot issue it by {}", ca_file.display()))?;
    private_folder(&out)?;
    write(&key, &minted.key, files::PRIVATE, true)?;
    write(&certificate, &minted.certificate, files::PUBLIC, true)?;
    write(&ca_copy, &ca.certificate, files::PUBLIC, true)?;
    let home = names.ca.parent().unwrap_or(Path::new("/")).display().to_string();
    report::print(&format!(
        "issued {} to {}; this folder, as it is, becomes {home} on {}\n",
        certificate.display(),
        wanted.host,
        wanted.host
    ));
    Ok(())
}

/// What a certificate says, told.
#[derive(Debug, Serialize)]
struct Shown {
    file: String,
    names: Vec<HostName>,
    /// `None`: its CA does not say.
    roles: Option<Vec<&'static str>>,
    is_ca: bool,
    subject: String,
    issuer: String,
    serial: String,
    valid_from: Option<DateTime<Utc>>,
    valid_until: Option<DateTime<Utc>>,
    /// What is wrong with it, or with its key beside it.
    problems: Vec<String>,
}

fn look(file: &Path, now: DateTime<Utc>) -> anyhow::Result<Vec<Shown>> {
    let mut all = Vec::new();
    for der in tls::certificates(file)? {
        let said = tls::certificate(&der).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).context("it cannot be read")?;
        all.push(Shown {
            file: file.display().to_string(),
            names: said.identity.names,
            roles: said.identity.roles.map(|roles| roles.into_iter().map(PeerRole::as_str).collect()),
            is_ca: parsed.is_ca(),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            serial: parsed.raw_serial_as_string(),
            valid_from: said.from,
            valid_until: said.until,
            problems: Vec::new(),
        });
    }
    for one in &mut all {
        match (one.valid_from, one.valid_until) {
            (Some(from), _) if from > now => one.problems.push("it is not valid yet".to_owned()),
            (_, Some(until)) if until <= now => one.problems.push("it has expired".to_owned()),
            _ => {}
        }
    }
    // As a host has them: does it all fit together?
    let beside = |file_name: &str| file.with_file_name(file_name);
    let files = TlsFiles { ca: beside("ca.crt"), certificate: file.to_owned(), key: file.with_extension("key") };
    if let Some(first) = all.first_mut().filter(|first| !first.is_ca && files.ca.exists() && files.key.exists()) {
        match tls::Tls::load(&files) {
            Ok(loaded) => {
                first.problems.extend(loaded.loose_key());
                if first.problems.is_empty() {
                    first.problems.extend(loaded.doubt());
                }
            }
            Err(error) => first.problems.push(error.to_string()),
        }
    }
    Ok(all)
}

fn in_words(shown: &Shown, now: DateTime<Utc>) -> String {
    let day = |at: Option<DateTime<Utc>>| at.map_or_else(|| "?".to_owned(), |at| at.format("%Y-%m-%d").to_string());
    let left = shown.valid_until.map_or(0, |until| (until - now).num_days());
    let names: Vec<&str> = shown.names.iter().map(HostName::as_str).collect();
    let roles = match &shown.roles {
        Some(roles) if roles.is_empty() => "none that is known here".to_owned(),
        Some(roles) => roles.join(", "),
        None => "not said: whatever local.json of others names it for".to_owned(),
    };
    let mut text = format!("{}\n", shown.file);
    let mut line = |what: &str, value: &str| text.push_str(&format!("  {what:<8} {value}\n"));
    if shown.is_ca {
        line("a CA", &shown.subject);
    } else {
        line("names", &if names.is_empty() { "nobody".to_owned() } else { names.join(", ") });
        line("roles", &roles);
        line("subject", &shown.subject);
    }
    line("issuer", &shown.issuer);
    line("valid", &format!("{} to {}, {left} days left", day(shown.valid_from), day(shown.valid_until)));
    line("serial", &shown.serial);
    for problem in &shown.problems {
        line("WRONG", problem);
    }
    text
}

/// `zsync tls show`. Gives whether all is right.
pub fn show(files: &[PathBuf], format: Format) -> anyhow::Result<bool> {
    let now = clock::now();
    let mut all = Vec::new();
    for file in files {
        all.extend(look(file, now)?);
    }
    report::print(&match format {
        Format::Table => all.iter().map(|one| in_words(one, now)).collect::<String>(),
        Format::Json => report::json(&all),
        Format::Ndjson => report::ndjson(&all),
    });
    Ok(all.iter().all(|one| one.problems.is_empty()))
}
