//! From what was typed and configured to what is meant, with every check that needs both.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use chrono::TimeDelta;

use crate::cli::args;
use crate::cli::args::{Cli, Command, Common, Listen};
use crate::cli::exit::Error;
use crate::cli::logging;
use crate::commands::{check, clean, migrate, status};
use crate::config;
use crate::model::{HostName, PeerRole};
use crate::plan::{Filter, Question, Source};
use crate::policy::Local;
use crate::server::acceptor::{Listening, Security};
use crate::sys::clock;
use crate::transport::tls::Tls;
use crate::{director, plan};

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
        Command::Director(args) => (Some(&args.common), !args.once),
        Command::Agent(args) => (Some(&args.common), true),
        Command::Slave(args) => (Some(&args.common), true),
        Command::Plan(args) => (Some(&args.common), false),
        Command::Check(args) => (Some(&args.common), false),
        Command::Status(args) => (Some(&args.common), false),
        Command::Clean(args) => (Some(&args.common), false),
        Command::Migrate(args) => (Some(&args.common), false),
        Command::Tls(_) | Command::Completions(_) | Command::Schema(_) => (None, false),
    };
    let (level, format) = common.map_or_else(Default::default, |common| (common.log, common.log_format));
    logging::start(level, format, if service { "zsync=info,warn" } else { "warn" });
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
pub fn director(args: args::Director) -> Result<director::Settings, Error> {
    let host = host_of(&args.common)?;
    warn_of_loose_mode(&args.config);
    warn_of_loose_mode(&args.common.local);
    Ok(director::Settings {
        config: args.config,
        local: args.common.local,
        state: args.state.state,
        host,
        once: args.once,
        resync: args.resync,
        interval: args.interval,
        timeout: args.timeout,
        grace: args.grace,
        verbose: args.verbose,
        format: args.format,
        metrics: metrics(args.metrics.as_deref()).map_err(Error::unable)?,
        metrics_file: args.metrics_file,
        plan: args.plan,
    })
}

/// For `plan`.
pub fn plan(args: args::Plan) -> Result<plan::Settings, Error> {
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

/// For `status`.
pub fn status(args: args::Status) -> Result<status::Settings, Error> {
    Ok(status::Settings {
        here: host_of(&args.common)?,
        opened: local_if_there(&args.common)?,
        config: args.config,
        local: args.common.local,
        host: args.host,
        dataset: args.dataset,
        offline: args.offline,
        watch: args.watch,
        format: args.format,
    })
}

/// For `check`, which tells itself what is wrong.
pub fn check(args: args::Check) -> check::Settings {
    check::Settings {
        here: host_of(&args.common).map_err(|error| error.to_string()),
        opened: local_if_there(&args.common).ok().flatten(),
        config: args.config,
        local: args.common.local,
        config_only: args.config_only,
        host: args.host,
        dataset: args.dataset,
        verbose: args.verbose,
        json: args.format == args::CheckFormat::Json,
    }
}

/// For `clean`.
pub fn clean(args: args::Clean) -> Result<clean::Settings, Error> {
    let older_than = TimeDelta::from_std(args.older_than).context("--older-than").map_err(Error::unable)?;
    Ok(clean::Settings { config: args.config, older_than })
}

/// For `migrate`.
#[must_use]
pub fn migrate(args: args::Migrate) -> migrate::Settings {
    migrate::Settings { config: args.config }
}

/// For `agent` and `slave`.
pub fn serving(common: &Common, listen: &Listen, role: PeerRole) -> anyhow::Result<Serving> {
    let local = config::load_local(&common.local)?;
    warn_of_loose_mode(&common.local);
    let host = host(common, Some(&local))?;
    let port = if role == PeerRole::Slave { crate::policy::SLAVE_PORT } else { crate::policy::AGENT_PORT };
    let address = match (&listen.listen, &local.listen) {
        (Some(typed), _) => {
            let address: crate::policy::Address = typed.parse().context("--listen")?;
            address.with_default_port(port)
        }
        (None, Some(configured)) => configured.with_default_port(port),
        (None, None) => format!("127.0.0.1:{port}"),
    };
    let security = security(&local, listen, &host, role)?;
    let metrics = metrics(listen.metrics.as_deref())?;
    let listening = Listening { address, security, metrics, grace: listen.grace };
    Ok(Serving { host, local, listening })
}

/// Where metrics are told: nowhere but on this machine, unless another address is typed.
fn metrics(typed: Option<&str>) -> anyhow::Result<Option<String>> {
    let Some(typed) = typed else { return Ok(None) };
    if let Ok(port) = typed.parse::<u16>() {
        return Ok(Some(format!("127.0.0.1:{port}")));
    }
    let address: crate::policy::Address = typed.parse().context("--metrics")?;
    match address.port() {
        Some(_) => Ok(Some(address.to_string())),
        None => bail!("--metrics: {typed:?} has no port; write a port, as in 9771, or host:port"),
    }
}

/// How it is known who a peer is.
fn security(local: &Local, listen: &Listen, host: &HostName, role: PeerRole) -> anyhow::Result<Security> {
    let (file, beyond_this_machine) = (&local.file, listen.insecure_plaintext);
    let Some(files) = &local.tls else { return Ok(Security::Plaintext { beyond_this_machine }) };
    if beyond_this_machine {
        bail!("{file} sets \"tls\", and --insecure-plaintext is for doing without: leave one out");
    }
    if role == PeerRole::Agent && local.directors.is_empty() {
        bail!(
            "{file} sets \"tls\" and does not say whose orders are carried out: add \"directors\": [\"HOST\"], with the \
             name in the director's certificate"
        );
    }
    let tls = Tls::load(files)?;
    for warning in tls.warnings(clock::now(), host, role) {
        log::warn!("{warning}");
    }
    Ok(Security::Tls(Arc::new(tls)))
}

/// Whoever can write to a configuration file decides what this program does, as whoever it runs as.
fn warn_of_loose_mode(file: &Path) {
    let Ok(metadata) = std::fs::metadata(file) else { return };
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_file() && mode & 0o022 != 0 {
        log::warn!("{} has the mode {mode:04o}: others than its owner may change it; chmod go-w it", file.display());
    }
}
