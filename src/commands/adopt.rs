//! `zsync adopt`: prints a policy that is inferred from what hosts have, for when the director's disk is lost.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::actions::{self, Adopted};
use crate::cli::args::CommonArgs;
use crate::cli::exit::Error;
use crate::cli::report;
use crate::cli::settings::{host_name, local_if_exists};
use crate::config;
use crate::director::bars;
use crate::director::connect::{OwnHost, dispatcher_for, load_tls};
use crate::fleet::ask_these;
use crate::model::{Counter, HostName, Inventory, TlsFiles};
use crate::policy::{Address, HostAddress, Local, Policy};
use crate::sys::{clock, runtime};
use crate::zfs::Zfs;
use crate::zfs::system::System;

/// What a printed policy always leaves to be checked.
const REMINDERS: &str = "\
check the policy before you use it: schedules are in UTC, since names do not show a time zone; transfers begin as soon as \
possible (\"sync_policy\"); everything else has its default
the rules of retention keep all that exists now, for at least a day from now, whether or not the lost policy did; hint: \
save the policy, see what it does with zsync plan --dry-run, and shorten the rules later
";

/// A host, as it is typed: `HOST` or `HOST=ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedHost {
    /// Its name in the policy.
    pub name: HostName,
    /// The address of its agent.
    pub address: Option<Address>,
}

impl FromStr for AskedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text.split_once('=').map_or((text, None), |(name, address)| (name, Some(address)));
        Ok(Self {
            name: name.parse().map_err(|error| format!("{error}"))?,
            address: address.map(str::parse::<Address>).transpose().map_err(|error| error.to_string())?,
        })
    }
}

/// Arguments of `zsync adopt`.
#[derive(Args, Debug)]
#[command(
    after_help = "The policy is printed on standard output, and what could not be known on standard error. Nothing \
                        is changed, and no server.json is read.\n\n\
                        Exit status: 0 success; 1 a host or a pool could not be listed; 2 nothing could be done."
)]
pub struct AdoptArgs {
    /// The hosts of the fleet, with the addresses of their agents if their names do not resolve; this host needs no
    /// agent [default: this host]
    #[arg(value_name = "HOST[=ADDRESS]")]
    pub hosts: Vec<AskedHost>,
    /// Folder of this host's certificate (ca.crt, host.crt and host.key) [default: as "tls" in local.json]
    #[arg(long, value_name = "FOLDER")]
    pub tls: Option<PathBuf>,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The settings of `zsync adopt`.
#[derive(Clone, Debug)]
pub struct AdoptSettings {
    /// The path of `local.json`, for this host's own agent.
    pub local_file: PathBuf,
    /// Its content, if the file exists.
    pub local: Option<Local>,
    /// This host's name.
    pub host_name: HostName,
    /// The hosts that are asked; none: this host.
    pub hosts: Vec<AskedHost>,
    /// The certificate for connections to agents.
    pub tls: Option<TlsFiles>,
}

/// The policy that was inferred.
#[derive(Clone, Debug)]
pub struct AdoptReport {
    /// The text of a `server.json`.
    pub text: String,
    /// What could not be known.
    pub notes: Vec<String>,
    /// What could not be listed.
    pub problems: Vec<String>,
}

/// Infers a policy, and prints it.
pub fn run(args: AdoptArgs) -> Result<(), Error> {
    let zfs = Arc::new(System::new(&args.common.zfs));
    let local = local_if_exists(&args.common)?;
    let of_folder = |folder: PathBuf| TlsFiles {
        ca: folder.join("ca.crt"),
        certificate: folder.join("host.crt"),
        key: folder.join("host.key"),
        crl: Some(folder.join("ca.crl")).filter(|list| list.exists()),
    };
    let settings = AdoptSettings {
        host_name: host_name(&args.common, local.as_ref()).map_err(Error::unable)?,
        tls: args.tls.map(of_folder).or_else(|| local.as_ref()?.tls.clone()),
        local_file: args.common.local,
        local,
        hosts: args.hosts,
    };
    let AdoptReport { text, notes, problems } = runtime::block_on(adopt(&settings, zfs)).map_err(Error::unable)?;
    report::print(&text);
    let lines: String = notes.iter().map(|note| format!("{note}\n")).collect();
    // If nobody reads standard error, the policy is still on standard output.
    drop(write!(io::stderr(), "{lines}{REMINDERS}"));
    problems.iter().for_each(report::print_error);
    if problems.is_empty() { Ok(()) } else { Err(Error::reported()) }
}

/// Asks the hosts what they have, and infers a policy from it. Nothing is changed.
pub async fn adopt<Z: Zfs>(settings: &AdoptSettings, zfs: Arc<Z>) -> anyhow::Result<AdoptReport> {
    let AdoptSettings { local_file, local, host_name: here, hosts, tls } = settings;
    let own = AskedHost { name: here.clone(), address: None };
    let asked_hosts = if hosts.is_empty() { std::slice::from_ref(&own) } else { hosts.as_slice() };
    let with_address = asked_hosts.iter().filter(|host| host.address.is_some());
    // A user waits for the answers, so nothing is retried.
    let base = Policy {
        hosts: with_address.map(|host| (host.name.clone(), HostAddress::new(host.address.as_ref(), None))).collect(),
        tls: tls.clone(),
        retry_for: Duration::ZERO,
        ..config::parse_policy("(empty)", "{ \"datasets\": [] }")?
    };
    let is_own_asked = asked_hosts.contains(&own);
    let base = Arc::new(base);
    let own = OwnHost { name: here, local: local_file, state: None };
    let agents = dispatcher_for(own, is_own_asked, &base, load_tls(&base)?, zfs).await;
    let counter = Counter::default();
    let names = asked_hosts.iter().map(|host| host.name.clone());
    let agents = Arc::new(agents);
    let answers = bars::counted("hosts asked", &counter, ask_these(&base, &agents, names, &counter)).await;
    let (mut inventory, mut problems) = (Inventory { hosts: BTreeMap::new() }, Vec::new());
    for (host, answer) in answers {
        match answer {
            Ok(listed) => {
                let of_pools = listed.unlisted.iter();
                problems.extend(of_pools.map(|(pool, why)| format!("cannot list the pool {pool} of {host}: {why}")));
                inventory.hosts.insert(host, listed);
            }
            Err(reason) => problems.push(format!("cannot list the snapshots of {host}: {reason}")),
        }
    }
    if inventory.hosts.is_empty() {
        anyhow::bail!("cannot infer a policy: {}", problems.join("; "));
    }
    let Adopted { policy, mut notes } = actions::adopt(Arc::unwrap_or_clone(base), &inventory, clock::now());
    let text = config::draft(&policy)?;
    config::parse_policy("server.json", &text)
        .with_context(|| format!("the policy that was inferred is invalid, and needs to be corrected:\n{text}"))?;
    if local.as_ref().is_some_and(|local| local.consul.is_some()) {
        notes.push(
            "local.json names Consul; hint: if the catalog was there, add \"catalog\": { \"consul\": {} }".into(),
        );
    }
    if policy.datasets.is_empty() {
        notes.push("nothing was found: no snapshot has a name with a prefix and a time".to_owned());
    }
    Ok(AdoptReport { text, notes, problems })
}
