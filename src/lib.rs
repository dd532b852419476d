//! zsync keeps a fleet's ZFS snapshots taken, replicated and pruned by policy.
//!
//! A tour: [`config`] reads files into a [`policy`]; [`catalog`] and [`zfs`] tell what exists, as a
//! [`model::Inventory`]; [`actions`] decides, purely, what should be done; [`commands`] has it done, over
//! [`transport`] and [`wire`] where another host is to do it; [`report`] tells what happened.
//!
//! Deciding modules (`model`, `policy`, `actions`) perform no I/O and read no clock. Who may name whom is held by
//! `tests/architecture.rs`.

pub mod actions;
pub mod agent;
pub mod catalog;
pub mod cli;
pub mod commands;
pub mod config;
pub mod consul;
pub mod director;
pub mod fleet;
pub mod host;
pub mod model;
pub mod plan;
pub mod policy;
pub mod server;
pub mod slave;
pub mod sys;
pub mod transport;
pub mod wire;
pub mod zfs;

use std::sync::Arc;

use agent::{Agent, Journal};
use cli::args::{self, Cli, Command, TlsInit, TlsIssue, TlsShow};
use cli::exit::{Error, Exit};
use cli::{report, settings};
use commands::{check, clean, migrate, status};
use host::publish::fences::Fences;
use host::publish::presence::{self, ServiceRegistration};
use model::PeerRole;
use server::acceptor as serve;
use slave::Slave;
use sys::{runtime, service};
use zfs::ZfsRead;
use zfs::system::System;

/// Runs a subcommand to its end.
pub fn run(cli: Cli) -> Result<(), Error> {
    settings::logging(&cli);
    match cli.command {
        Command::Director(args) => {
            let zfs = Arc::new(System::new(&args.common.zfs));
            let settings = settings::director(args)?;
            runtime::block_on(ending(Arc::clone(&zfs), director::run(settings, zfs)))
        }
        Command::Plan(args) => {
            let zfs = System::new(&args.common.zfs);
            let settings = settings::plan(args)?;
            match settings.source {
                plan::Source::Agents => runtime::block_on(plan::survey(settings, Arc::new(zfs))),
                // There, it is a value that can only read.
                plan::Source::Catalog | plan::Source::File(_) => runtime::block_on(plan::preview(settings, &zfs)),
            }
        }
        Command::Status(args) => {
            let zfs = Arc::new(System::new(&args.common.zfs));
            runtime::block_on(status::run(settings::status(args)?, zfs))
        }
        Command::Check(args) => {
            // Here too.
            let zfs = System::new(&args.common.zfs);
            runtime::block_on(check::run(settings::check(args), &zfs))
        }
        Command::Clean(args) => runtime::block_on(clean::run(settings::clean(args)?)),
        Command::Migrate(args) => runtime::block_on(migrate::run(settings::migrate(args))),
        Command::Tls(command) => tls(command),
        Command::Completions(args) => {
            report::print(&String::from_utf8_lossy(&args.text()));
            Ok(())
        }
        Command::Schema(args) => {
            report::print(match args.file {
                args::ConfigFile::Server => config::SERVER_SCHEMA,
                args::ConfigFile::Local => config::LOCAL_SCHEMA,
            });
            Ok(())
        }
        Command::Agent(args) => {
            let new = |now: settings::Serving, zfs, post: Option<&Arc<ServiceRegistration>>| {
                let journal = Journal::open(&args.state.state)?;
                let agent = Agent::new(now.host, zfs, Arc::new(now.local)).with_tls(now.listening.security.tls());
                let agent = agent.publishing(post.map(|post| post.publisher()));
                Ok(agent.remembering(journal).fenced(Fences::new(&args.state.state)))
            };
            let again = |old: &Agent<System>, now: settings::Serving| {
                old.with_local(now.host, Arc::new(now.local)).with_tls(now.listening.security.tls())
            };
            listen(&args.common, &args.listen, &args.state, PeerRole::Agent, new, again)
        }
        Command::Slave(args) => {
            let new = |now: settings::Serving, zfs, post: Option<&Arc<ServiceRegistration>>| {
                let slave = Slave::new(zfs, Arc::new(now.local));
                Ok(slave.publishing(post.map(|post| post.publisher())))
            };
            let again = |old: &Slave<System>, now: settings::Serving| old.with_local(Arc::new(now.local));
            listen(&args.common, &args.listen, &args.state, PeerRole::Slave, new, again)
        }
    }
}

/// Runs an agent or a slave: made once, and made again from itself when its configuration is read again.
fn listen<R: serve::Role>(
    common: &args::Common,
    listen: &args::Listen,
    state: &args::State,
    role: PeerRole,
    new: impl FnOnce(settings::Serving, Arc<System>, Option<&Arc<ServiceRegistration>>) -> anyhow::Result<R>,
    again: impl Fn(&R, settings::Serving) -> R,
) -> Result<(), Error> {
    let read = || settings::serving(common, listen, role);
    let inherited = service::inherited().map_err(Error::unable)?;
    let settings = read().map_err(Error::unable)?;
    let listening = settings.listening.clone();
    let zfs = Arc::new(System::new(&common.zfs));
    runtime::block_on(ending(Arc::clone(&zfs), async {
        log::info!("uses {}", zfs.check_version().await.map_err(Error::unable)?);
        let bound = inherited.as_ref().and_then(|socket| socket.local_addr().ok());
        let address = bound.map_or_else(|| listening.address.clone(), |bound| bound.to_string());
        let consul = settings.local.consul.clone();
        let post = ServiceRegistration::of(role, &settings.host, &settings.local, &zfs, (&address, &state.state));
        let post = post.map_err(Error::unable)?.map(Arc::new);
        let reload = |old: &R| {
            let now = read()?;
            if now.listening.address != listening.address {
                log::warn!("listens on {} until it is restarted", listening.address);
            }
            if now.local.consul != consul {
                log::warn!("publishes as before, whatever \"consul\" says now, until it is restarted");
            }
            if let Some(post) = &post {
                post.set_local(Arc::new(now.local.clone()));
            }
            let security = now.listening.security.clone();
            Ok((again(old, now), security))
        };
        let role = new(settings, Arc::clone(&zfs), post.as_ref()).map_err(Error::unable)?;
        let serving = serve::serve(role, inherited, &listening, reload);
        presence::registered_during(serving, post.as_deref()).await.map_err(Error::unable)
    }))
}

/// Leaves no command of ZFS behind: work that was under way when the program was asked to end is broken off.
async fn ending<T>(zfs: Arc<System>, work: impl Future<Output = T>) -> T {
    let result = work.await;
    zfs.end().await;
    result
}

fn tls(command: args::Tls) -> Result<(), Error> {
    match command {
        args::Tls::Init(TlsInit { ca, name, days }) => commands::tls::init(&ca, &name, days).map_err(Error::unable),
        args::Tls::Issue(TlsIssue { host, role, also, days, ca, out, renew }) => {
            let wanted = commands::tls::Wanted { host, also, roles: role.into_iter().collect(), days };
            commands::tls::issue(&ca, &wanted, out, renew).map_err(Error::unable)
        }
        args::Tls::Show(TlsShow { files, format }) => {
            let right = commands::tls::show(&files, format).map_err(Error::unable)?;
            if right { Ok(()) } else { Err(Error::exit(Exit::Failed)) }
        }
    }
}
