//! From what was typed and configured to what is meant, with every check that needs both.

use anyhow::Context;
use chrono::TimeDelta;

use crate::cli::{self, Cli, Command, Common, Listen};
use crate::commands::plan::{Filter, Question, Source};
use crate::commands::serve::Listening;
use crate::commands::{director, plan};
use crate::config::{self, Local};
use crate::error::Error;
use crate::logging;
use crate::model::HostName;

/// What an agent or a slave runs with.
pub struct Serving {
    /// This host.
    pub host: HostName,
    /// What it lets in.
    pub local: Local,
    /// Where and how it listens.
    pub listening: Listening,
}

/// Sets up logging: by `--log`, else by `RUST_LOG`, else by what the subcommand is.
pub fn logging(cli: &Cli) {
    let (common, service) = match &cli.command {
        Command::Director(args) => (&args.common, !args.once),
        Command::Agent(args) => (&args.common, true),
        Command::Slave(args) => (&args.common, true),
        Command::Plan(args) => (&args.common, false),
    };
    logging::start(common.log, common.log_format, if service { "zsync=info,warn" } else { "warn" });
}

/// This host's name: as typed, as configured, as the system says.
fn host(common: &Common, local: Option<&Local>) -> anyhow::Result<HostName> {
    if let Some(host) = common.hostname.clone().or_else(|| local.and_then(|l| l.hostname.clone())) {
        return Ok(host);
    }
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    name.parse().with_context(|| format!("the system calls itself {name:?}; give this host a name with --hostname"))
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
        None => host(common, local_if_there(common)?.as_ref()).map_err(Error::unable),
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
        interval: args.interval,
        timeout: args.timeout,
        grace: args.grace,
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
        (Source::Catalog, None) => host(&args.common, opened.as_ref()).map_err(Error::unable)?,
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

/// For `agent` and `slave`.
pub fn serving(common: &Common, listen: &Listen, port: u16) -> anyhow::Result<Serving> {
    let local = config::load_local(&common.local)?;
    let host = host(common, Some(&local))?;
    let address = match (&listen.listen, &local.listen) {
        (Some(typed), _) => {
            let address: config::Address = typed.parse().context("--listen")?;
            address.with_default_port(port)
        }
        (None, Some(configured)) => configured.with_default_port(port),
        (None, None) => format!("127.0.0.1:{port}"),
    };
    let listening = Listening { address, plaintext: listen.insecure_plaintext, grace: listen.grace };
    Ok(Serving { host, local, listening })
}
