//! From what was typed and configured to what is meant, with every check that needs both.

use anyhow::Context;
use chrono::TimeDelta;

use crate::cli::{self, Cli, Command, Common, Listen};
use crate::commands::plan::{Filter, Question, Source};
use crate::commands::{clean, director, migrate, plan};
use crate::config::{self, Local};
use crate::error::Error;
use crate::model::HostName;

/// What an agent or a slave runs with.
pub struct Serving {
    /// This host.
    pub host: HostName,
    /// What it lets in.
    pub local: Local,
    /// Where it listens.
    pub listen: String,
    /// Whether it may do so in plaintext beyond this machine.
    pub plaintext: bool,
}

/// Sets up logging to standard error: by `--log`, else by `RUST_LOG`, else by what the subcommand is.
pub fn logging(cli: &Cli) {
    let (common, service) = match &cli.command {
        Command::Director(args) => (&args.common, !args.once),
        Command::Agent(args) => (&args.common, true),
        Command::Slave(args) => (&args.common, true),
        Command::Plan(args) => (&args.common, false),
        Command::Clean(args) => (&args.common, false),
        Command::Migrate(args) => (&args.common, false),
    };
    let default = if service { "zsync=info,warn" } else { "warn" };
    let mut builder = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default));
    if let Some(level) = common.log {
        builder.filter_module("zsync", level);
    }
    builder.format_target(false);
    // A second initialisation happens only in tests within one process.
    drop(builder.try_init());
}

/// This host's name: as typed, as configured, as the system says.
fn host(common: &Common, local: Option<&Local>) -> Result<HostName, Error> {
    if let Some(host) = common.hostname.clone().or_else(|| local.and_then(|l| l.hostname.clone())) {
        return Ok(host);
    }
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    name.parse()
        .with_context(|| format!("the system calls itself {name:?}; give this host a name with --hostname"))
        .map_err(Error::unable)
}

/// The local configuration, where it is of use only if it is there. One that is there and wrong is not passed over: it
/// may be what names this host.
fn local_if_there(common: &Common) -> Result<Option<Local>, Error> {
    match std::fs::metadata(&common.local) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => config::load_local(&common.local).map(Some).map_err(Error::unable),
    }
}

/// This host's name; local.json is read only where it has to tell it.
fn host_of(common: &Common) -> Result<HostName, Error> {
    match &common.hostname {
        Some(typed) => Ok(typed.clone()),
        None => host(common, local_if_there(common)?.as_ref()),
    }
}

/// For `director`.
pub fn director(args: cli::Director) -> Result<director::Settings, Error> {
    let host = host_of(&args.common)?;
    Ok(director::Settings {
        config: args.config,
        local: args.common.local,
        host,
        once: args.once,
        resync: args.resync,
        interval: args.interval,
        verbose: args.verbose,
        format: args.format,
        plan: args.plan,
    })
}

/// For `plan`.
pub fn plan(args: cli::Plan) -> Result<plan::Settings, Error> {
    let exports = args.export_catalog.is_some();
    if args.exit_code && args.simulate.is_some() && args.compare.is_none() {
        let text = "--exit-code has no meaning with --simulate alone; with --compare it tells whether the two differ";
        return Err(Error::unable(anyhow::anyhow!(text)));
    }
    let (source, opened) = match args.catalog {
        Some(file) => (Source::File(file), None),
        None if args.dry_run || exports => (Source::Catalog, local_if_there(&args.common)?),
        None => (Source::Agents, None),
    };
    let here = match (&source, &args.common.hostname) {
        (_, Some(typed)) => typed.clone(),
        // Nothing but the file is read, so that it does not matter where.
        (Source::File(_), None) => "localhost".parse().map_err(Error::unable)?,
        (Source::Catalog, None) => host(&args.common, opened.as_ref())?,
        (Source::Agents, None) => host_of(&args.common)?,
    };
    let question = match (args.export_catalog, args.simulate, args.compare) {
        (Some(file), _, _) => Question::Export(file),
        (None, Some(length), other) => {
            Question::Simulate { length: TimeDelta::from_std(length).map_err(Error::unable)?, other }
        }
        (None, None, Some(other)) => Question::Compare { other, explain: args.explain },
        (None, None, None) => Question::Orders { explain: args.explain, out: args.out },
    };
    Ok(plan::Settings {
        config: args.config,
        local: args.common.local,
        opened,
        here,
        source,
        question,
        filter: Filter { host: args.host, dataset: args.dataset },
        format: args.format,
        at: args.at,
        exit_code: args.exit_code,
    })
}

/// For `clean`.
pub fn clean(args: cli::Clean) -> Result<clean::Settings, Error> {
    let older_than = TimeDelta::from_std(args.older_than).context("--older-than").map_err(Error::unable)?;
    Ok(clean::Settings { config: args.config, older_than })
}

/// For `migrate`.
#[must_use]
pub fn migrate(args: cli::Migrate) -> migrate::Settings {
    migrate::Settings { config: args.config }
}

/// For `agent` and `slave`.
pub fn serving(common: &Common, listen: &Listen, port: u16) -> Result<Serving, Error> {
    let local = config::load_local(&common.local).map_err(Error::unable)?;
    let host = host(common, Some(&local))?;
    let listen_on = match (&listen.listen, &local.listen) {
        (Some(typed), _) => {
            let address: config::Address = typed.parse().context("--listen").map_err(Error::unable)?;
            address.with_default_port(port)
        }
        (None, Some(configured)) => configured.with_default_port(port),
        (None, None) => format!("127.0.0.1:{port}"),
    };
    Ok(Serving { host, local, listen: listen_on, plaintext: listen.insecure_plaintext })
}
