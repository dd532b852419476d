//! `zsync tls`: makes a CA, issues certificates to hosts, and describes certificates.
//!
//! This is a convenience for fleets without a CA of their own. No other part of zsync depends on who issued a
//! certificate.

mod mint;
mod show;

use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

pub use mint::{Minted, Wanted, mint, mint_ca};

use crate::cli::exit::{Error, Exit};
use crate::cli::report::{self, Format};
use crate::model::{HostName, PeerRole, TlsFiles};
use crate::sys::{clock, files};
use crate::transport::tls;

/// The CA's files in its folder.
const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";

/// Arguments of `zsync tls`.
#[derive(Debug, Subcommand)]
#[command(after_help = "To set up TLS for two hosts, run on alpha:\n  \
    zsync tls init\n  \
    zsync tls issue alpha --role director,agent\n  \
    zsync tls issue beta --role agent,slave\n  \
    cp -r /etc/zsync/ca/alpha /etc/zsync/tls\n  \
    scp -pr /etc/zsync/ca/beta beta:/etc/zsync/tls\n\
    Then set \"tls\": {} in server.json and local.json, and \"directors\" in local.json. See zsync-tls(8).")]
pub enum TlsCommand {
    /// Create a certificate authority (CA) for the fleet
    Init(InitArgs),
    /// Issue a certificate to a host
    Issue(IssueArgs),
    /// Describe certificates, and report problems with them
    Show(ShowArgs),
}

/// Arguments of `zsync tls init`.
#[derive(Args, Debug)]
pub struct InitArgs {
    /// Folder of the CA
    #[arg(long, value_name = "DIR", default_value = "/etc/zsync/ca")]
    pub ca: PathBuf,
    /// Name of the CA in its certificate
    #[arg(long, value_name = "NAME", default_value = "zsync CA")]
    pub name: String,
    /// Validity in days
    #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
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
        TlsCommand::Init(InitArgs { ca, name, days }) => init(&ca, &name, days).map_err(Error::unable),
        TlsCommand::Issue(IssueArgs { host, role, also, days, ca, out, renew }) => {
            let wanted = Wanted { host, also, roles: role.into_iter().collect(), days };
            issue(&ca, &wanted, out, renew).map_err(Error::unable)
        }
        TlsCommand::Show(ShowArgs { files, format }) => {
            let is_right = show::show(&files, format).map_err(Error::unable)?;
            if is_right { Ok(()) } else { Err(Error::exit(Exit::Failed)) }
        }
    }
}

/// Makes a folder that only its owner can enter, unless it exists.
fn private_folder(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot create the folder {}", folder.display()))
}

/// Writes a new file, or replaces one. Nobody else can read a key at any moment.
fn write(file: &Path, text: &str, permissions: u32, replace: bool) -> anyhow::Result<()> {
    let mode = if replace { files::Mode::Replace } else { files::Mode::Create };
    files::write(file, permissions, mode, |new| new.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn init(folder: &Path, name: &str, days: u32) -> anyhow::Result<()> {
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
    let minted = mint_ca(name, clock::now(), days)?;
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

fn issue(folder: &Path, wanted: &Wanted, out: Option<PathBuf>, renew: bool) -> anyhow::Result<()> {
    let out = out.unwrap_or_else(|| folder.join(wanted.host.as_str()));
    let (ca_file, ca_key) = (folder.join(CA_CERTIFICATE), folder.join(CA_KEY));
    let text = |file: &Path| -> anyhow::Result<String> {
        let bytes =
            tls::read(file).with_context(|| "cannot find the CA; hint: make one with zsync tls init".to_owned())?;
        String::from_utf8(bytes).ok().with_context(|| format!("{} is not PEM", file.display()))
    };
    let ca = Minted { certificate: text(&ca_file)?, key: text(&ca_key)? };
    let names = TlsFiles::default();
    let place = |default: &Path| out.join(default.file_name().unwrap_or_default());
    let (ca_copy, certificate, key) = (place(&names.ca), place(&names.certificate), place(&names.key));
    for file in [&certificate, &key] {
        if file.exists() && !renew {
            bail!(
                "cannot issue a certificate: {} exists; hint: replace it with --renew, or name another folder with --out",
                file.display()
            );
        }
    }
    let minted = mint(&ca, wanted, clock::now())
        .with_context(|| format!("cannot issue a certificate with {}", ca_file.display()))?;
    private_folder(&out)?;
    write(&key, &minted.key, files::PRIVATE, true)?;
    write(&certificate, &minted.certificate, files::PUBLIC, true)?;
    write(&ca_copy, &ca.certificate, files::PUBLIC, true)?;
    let home = names.ca.parent().unwrap_or(Path::new("/")).display().to_string();
    report::print(&format!(
        "issued {} to {}; copy its folder unchanged to {home} on {}\n",
        certificate.display(),
        wanted.host,
        wanted.host
    ));
    Ok(())
}
