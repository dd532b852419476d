//! `zsync tls`: makes a CA, issues certificates to hosts, and describes certificates.
//!
//! This is a convenience for fleets without a CA of their own. No other part of zsync depends on who issued a
//! certificate.

mod folder;
mod mint;
mod request;
mod revoke;
mod show;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};

pub use mint::{Minted, Wanted, mint, mint_ca};
pub use request::{make as make_request, mint_requested};
pub use revoke::{Issued, of_file, of_host, revoke};

use crate::cli::exit::{Error, Exit};
use crate::cli::report::{self, Format};
use crate::commands::tls::folder::{private_folder, write};
use crate::model::{HostName, PeerRole, TlsFiles};
use crate::sys::{clock, files};
use crate::transport::tls;

/// How long a list of revoked certificates is valid, in days.
const LIST_DAYS: u32 = 365;
/// The CA's files in its folder.
const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
/// The list of revoked certificates, also in the folders of hosts.
const CA_LIST: &str = "ca.crl";

/// Arguments of `zsync tls`.
#[derive(Debug, Subcommand)]
#[command(after_help = "To set up TLS for two hosts, with the CA on a stick:\n  \
    zsync tls init --ca /media/stick/ca\n  \
    zsync tls issue alpha --role director,agent --ca /media/stick/ca\n  \
    zsync tls issue beta --role agent,slave --ca /media/stick/ca\n  \
    scp -pr /media/stick/ca/alpha alpha:/etc/zsync/tls\n  \
    scp -pr /media/stick/ca/beta beta:/etc/zsync/tls\n\
    With zsync tls request on each host and issue --csr, private keys never leave their hosts.\n\
    Then set \"tls\": {} in server.json and local.json, and \"directors\" in local.json. See zsync-tls(8).")]
pub enum TlsCommand {
    /// Create a certificate authority (CA) for the fleet
    Init(InitArgs),
    /// Make a private key and a certificate signing request, on the host itself
    Request(RequestArgs),
    /// Issue a certificate to a host
    Issue(IssueArgs),
    /// Revoke a host's certificates, or renew the list of revoked ones
    Revoke(RevokeArgs),
    /// Describe certificates, and report problems with them
    Show(ShowArgs),
}

/// Arguments of `zsync tls init`.
#[derive(Args, Debug)]
pub struct InitArgs {
    /// Folder of the CA
    #[arg(long, value_name = "DIR", default_value = "/etc/zsync/ca")]
    pub ca: PathBuf,
    /// Name of the CA in its certificate; no other CA may have it [default: zsync CA, the date and a random number]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Validity in days
    #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
}

/// Arguments of `zsync tls request`.
#[derive(Args, Debug)]
#[command(
    after_help = "Send host.csr to the machine of the CA, and run there zsync tls issue HOST --csr FILE. A key that \
                        exists in the folder is used again, unless --new-key replaces it."
)]
pub struct RequestArgs {
    /// The host's name in the policy
    #[arg(value_name = "HOST")]
    pub host: HostName,
    /// Another name of the host; may be repeated
    #[arg(long, value_name = "NAME")]
    pub also: Vec<HostName>,
    /// Replace an existing key, which somebody else may have; until the new certificate is there, do not restart services
    #[arg(long)]
    pub new_key: bool,
    /// Folder for the key and the request
    #[arg(long, value_name = "DIR", default_value = "/etc/zsync/tls")]
    pub out: PathBuf,
}

/// Arguments of `zsync tls issue`.
#[derive(Args, Debug)]
pub struct IssueArgs {
    /// The host's name in the policy
    #[arg(value_name = "HOST")]
    pub host: HostName,
    /// Roles that the certificate is valid for: director, agent, slave (separated by commas)
    #[arg(long, value_name = "ROLE", required = true, value_delimiter = ',')]
    pub role: Vec<PeerRole>,
    /// Another name of the host; may be repeated
    #[arg(long, value_name = "NAME")]
    pub also: Vec<HostName>,
    /// Sign this certificate signing request; the private key stays on the host
    #[arg(long, value_name = "FILE")]
    pub csr: Option<PathBuf>,
    /// Validity in days
    #[arg(long, value_name = "N", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// Folder of the CA
    #[arg(long, value_name = "DIR", default_value = "/etc/zsync/ca")]
    pub ca: PathBuf,
    /// Folder for the host's files [default: a folder named after the host, in the CA's folder]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Replace the files of an earlier certificate
    #[arg(long)]
    pub renew: bool,
    /// Revoke the earlier certificates of the host
    #[arg(long, requires = "renew")]
    pub revoke: bool,
}

/// Arguments of `zsync tls revoke`.
#[derive(Args, Debug)]
#[command(
    after_help = "Without HOST and --certificate, only the validity of the list is renewed. Copy ca.crl to every \
                        host, as the file that \"crl\" in server.json and local.json names."
)]
pub struct RevokeArgs {
    /// The host whose certificates are revoked: every one that this CA has issued to it
    #[arg(value_name = "HOST", conflicts_with = "certificate")]
    pub host: Option<HostName>,
    /// Revoke only the certificate in this file
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// Validity of the list in days
    #[arg(long, value_name = "N", default_value_t = LIST_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// Folder of the CA
    #[arg(long, value_name = "DIR", default_value = "/etc/zsync/ca")]
    pub ca: PathBuf,
}

/// Arguments of `zsync tls show`.
#[derive(Args, Debug)]
#[command(
    after_help = "Exit status: 0 no problem found; 1 something is wrong with a certificate; 2 nothing could be done."
)]
pub struct ShowArgs {
    /// Certificate files (PEM); ca.crt and the key in the same folder are checked against them
    #[arg(value_name = "FILE", default_value = "/etc/zsync/tls/host.crt")]
    pub files: Vec<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Runs the subcommand of `zsync tls`.
pub fn run(command: TlsCommand) -> Result<(), Error> {
    match command {
        TlsCommand::Init(InitArgs { ca, name, days }) => init(&ca, name, days).map_err(Error::unable),
        TlsCommand::Request(RequestArgs { host, also, new_key, out }) => {
            request_certificate(&host, &also, new_key, &out).map_err(Error::unable)
        }
        TlsCommand::Issue(args) => issue(args).map_err(Error::unable),
        TlsCommand::Revoke(args) => revoke_certificates(&args).map_err(Error::unable),
        TlsCommand::Show(ShowArgs { files, format }) => {
            let is_right = show::show(&files, format).map_err(Error::unable)?;
            if is_right { Ok(()) } else { Err(Error::exit(Exit::Failed)) }
        }
    }
}

fn init(folder: &Path, name: Option<String>, days: u32) -> anyhow::Result<()> {
    let (certificate, key) = (folder.join(CA_CERTIFICATE), folder.join(CA_KEY));
    for file in [&certificate, &key] {
        if file.exists() {
            let file = file.display();
            bail!(
                "cannot make a CA: {file} exists, and a new CA could not verify the certificates that the existing CA issued; \
                 hint: name another folder with --ca, or move the file away"
            );
        }
    }
    let now = clock::now();
    let minted = mint_ca(&name.unwrap_or_else(|| unique_name(now)), now, days)?;
    private_folder(folder)?;
    write(&key, &minted.key, files::PRIVATE, false)?;
    write(&certificate, &minted.certificate, files::PUBLIC, false)?;
    report::print(&format!(
        "made a CA in {}\nanyone who has {} can pose as any host: keep it on this machine only, or better on no machine of the fleet, and back it up\n",
        folder.display(),
        key.display()
    ));
    Ok(())
}

/// A name for a CA that no other CA has. A certificate and a list of revoked ones name the CA that signed them: while a CA
/// is being replaced, hosts have both, and would take the one for the other.
fn unique_name(now: DateTime<Utc>) -> String {
    let (_, random) = uuid::Uuid::now_v7().as_u64_pair();
    format!("zsync CA {} {:08x}", now.format("%Y-%m-%d"), random as u32)
}

/// Makes a request for a certificate in a folder, and a private key if there is none. An existing key is kept unless a
/// new one is wanted, because the host may be using it until it has the new certificate.
fn request_certificate(host: &HostName, also: &[HostName], new_key: bool, folder: &Path) -> anyhow::Result<()> {
    let names = TlsFiles::default();
    let key_file = folder.join(names.key.file_name().unwrap_or_default());
    let request_file = key_file.with_extension("csr");
    private_folder(folder)?;
    let existing = key_file.exists() && !new_key;
    if !existing {
        write(&key_file, &mint::new_key()?, files::PRIVATE, new_key)?;
    }
    let key = String::from_utf8(tls::read(&key_file)?).ok();
    let key = key.with_context(|| format!("{} is not PEM", key_file.display()))?;
    let request =
        make_request(host, also, &key).with_context(|| format!("cannot make a request with {}", key_file.display()))?;
    write(&request_file, &request, files::PUBLIC, true)?;
    let (key, request) = (key_file.display(), request_file.display());
    let which = if existing { "the existing key" } else { "the new key" };
    report::print(&format!(
        "made {request} with {which} {key}; copy the request to the machine of the CA, and run there: zsync tls issue \
         {host} --csr host.csr --role ROLE\n"
    ));
    Ok(())
}

/// Reads the certificate and the key of the CA in a folder.
fn load_ca(folder: &Path) -> anyhow::Result<Minted> {
    let text = |name: &str| -> anyhow::Result<String> {
        let file = folder.join(name);
        let bytes =
            tls::read(&file).with_context(|| "cannot find the CA; hint: make one with zsync tls init".to_owned())?;
        String::from_utf8(bytes).ok().with_context(|| format!("{} is not PEM", file.display()))
    };
    Ok(Minted { certificate: text(CA_CERTIFICATE)?, key: text(CA_KEY)? })
}

fn issue(args: IssueArgs) -> anyhow::Result<()> {
    let IssueArgs { host, role, also, csr, days, ca: folder, out, renew, revoke } = args;
    let wanted = Wanted { host, also, roles: role.into_iter().collect(), days };
    let out = out.unwrap_or_else(|| folder.join(wanted.host.as_str()));
    let ca = load_ca(&folder)?;
    let names = TlsFiles::default();
    let place = |default: &Path| out.join(default.file_name().unwrap_or_default());
    let (ca_copy, certificate, key) = (place(&names.ca), place(&names.certificate), place(&names.key));
    if csr.is_some() && key.exists() {
        bail!(
            "cannot issue a certificate: {} exists, but the key of a request stays on its host; hint: remove that file, or \
             name another folder with --out",
            key.display()
        );
    }
    for file in [&certificate, &key] {
        if file.exists() && !renew {
            bail!(
                "cannot issue a certificate: {} exists; hint: replace it with --renew, or name another folder with --out",
                file.display()
            );
        }
    }
    let earlier = if revoke { of_host(&folder, &ca, &wanted.host, clock::now())? } else { Vec::new() };
    let (issued, new_key) = match &csr {
        None => mint(&ca, &wanted, clock::now()).map(|minted| (minted.certificate, Some(minted.key))),
        Some(file) => {
            let request = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            let list = folder.join(CA_LIST);
            let issued = mint_requested(&ca, &wanted, &request, clock::now()).and_then(|issued| {
                revoke::ensure_new_key(&folder, &list, &issued, &earlier, &wanted.host).map(|()| issued)
            });
            issued.with_context(|| format!("cannot sign {}", file.display())).map(|issued| (issued, None))
        }
    }
    .with_context(|| format!("cannot issue a certificate with {}", folder.join(CA_CERTIFICATE).display()))?;
    private_folder(&out)?;
    revoke::remember(&folder, &issued)?;
    if let Some(new_key) = &new_key {
        write(&key, new_key, files::PRIVATE, true)?;
    }
    write(&certificate, &issued, files::PUBLIC, true)?;
    write(&ca_copy, &ca.certificate, files::PUBLIC, true)?;
    let home = names.ca.parent().unwrap_or(Path::new("/")).display().to_string();
    let copy = if new_key.is_some() { "copy its folder unchanged" } else { "copy the files in its folder" };
    report::print(&format!(
        "issued {} to {}; {copy} to {home} on {}\n",
        certificate.display(),
        wanted.host,
        wanted.host
    ));
    if revoke {
        write_list(&folder, &ca, &earlier, LIST_DAYS)?;
    }
    // A host whose configuration names the list needs it, too.
    if let Ok(list) = std::fs::read_to_string(folder.join(CA_LIST)) {
        write(&out.join(CA_LIST), &list, files::PUBLIC, true)?;
    }
    Ok(())
}

fn revoke_certificates(args: &RevokeArgs) -> anyhow::Result<()> {
    let RevokeArgs { host, certificate, days, ca: folder } = args;
    let ca = load_ca(folder)?;
    let revoked = match (host, certificate) {
        (Some(host), _) => {
            let found = of_host(folder, &ca, host, clock::now())?;
            if found.is_empty() {
                bail!(
                    "cannot revoke: no valid certificate of {host} was found in {}; hint: name the file of its \
                     certificate with --certificate",
                    folder.display()
                );
            }
            found
        }
        (None, Some(file)) => vec![of_file(&ca, file)?],
        (None, None) => Vec::new(),
    };
    write_list(folder, &ca, &revoked, *days)
}

/// Writes the CA's list of revoked certificates, with more of them in it.
fn write_list(folder: &Path, ca: &Minted, more: &[Issued], days: u32) -> anyhow::Result<()> {
    let file = folder.join(CA_LIST);
    let cannot = || format!("cannot continue the list of revoked certificates {}", file.display());
    let previous = match std::fs::read_to_string(&file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(cannot),
    };
    let list = revoke(ca, previous.as_deref(), more, clock::now(), days).with_context(cannot)?;
    write(&file, &list, files::PUBLIC, true)?;
    let mut text: String = more.iter().map(|one| format!("revoked the certificate {}\n", one.text)).collect();
    text.push_str(&format!(
        "wrote {}, valid for {days} days; copy it to every host, as the file that \"crl\" in its configuration names, \
         and reload agents and slaves\n",
        file.display()
    ));
    report::print(&text);
    Ok(())
}
