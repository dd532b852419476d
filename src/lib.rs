//! zsync keeps a fleet's ZFS snapshots taken, replicated and pruned by policy.
//!
//! A tour: [`config`] reads files into a [`policy`]; [`catalog`] and [`zfs`] tell what exists, as a
//! [`model::Inventory`]; [`actions`] decides, purely, what should be done; [`commands`] has it done, over
//! [`transport`] and [`wire`] where another host is to do it; [`report`] tells what happened.
//!
//! Deciding modules (`model`, `policy`, `actions`) perform no I/O and read no clock. Who may name whom is held by
//! `tests/architecture.rs`.

pub mod actions;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod error;
pub mod logging;
pub mod model;
pub mod policy;
mod process;
pub mod report;
pub mod runtime;
pub mod service;
pub mod settings;
pub mod transport;
pub mod wire;
pub mod zfs;

use std::sync::Arc;

use cli::{Cli, Command, TlsInit, TlsIssue, TlsShow};
use commands::agent::{Agent, Journal};
use commands::{check, director, plan, serve, slave::Slave, status};
use error::{Error, Exit};
use model::PeerRole;
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
        Command::Tls(command) => tls(command),
        Command::Completions(args) => {
            report::print(&String::from_utf8_lossy(&args.text()));
            Ok(())
        }
        Command::Schema(args) => {
            report::print(match args.file {
                cli::ConfigFile::Server => config::SERVER_SCHEMA,
                cli::ConfigFile::Local => config::LOCAL_SCHEMA,
            });
            Ok(())
        }
        Command::Agent(args) => {
            let new = |now: settings::Serving, zfs| {
                let journal = Journal::open(&args.state)?;
                let agent = Agent::new(now.host, zfs, Arc::new(now.local)).with_tls(now.listening.security.tls());
                Ok(agent.remembering(journal))
            };
            let again = |old: &Agent<System>, now: settings::Serving| {
                old.with_local(now.host, Arc::new(now.local)).with_tls(now.listening.security.tls())
            };
            listen(&args.common, &args.listen, PeerRole::Agent, new, again)
        }
        Command::Slave(args) => {
            let new = |now: settings::Serving, zfs| Ok(Slave::new(zfs, Arc::new(now.local)));
            let again = |old: &Slave<System>, now: settings::Serving| old.with_local(Arc::new(now.local));
            listen(&args.common, &args.listen, PeerRole::Slave, new, again)
        }
    }
}

/// Runs an agent or a slave: made once, and made again from itself when its configuration is read again.
fn listen<R: serve::Role>(
    common: &cli::Common,
    listen: &cli::Listen,
    role: PeerRole,
    new: impl FnOnce(settings::Serving, Arc<System>) -> anyhow::Result<R>,
    again: impl Fn(&R, settings::Serving) -> R,
) -> Result<(), Error> {
    let read = || settings::serving(common, listen, role);
    let inherited = service::inherited().map_err(Error::unable)?;
    let settings = read().map_err(Error::unable)?;
    let listening = settings.listening.clone();
    let zfs = Arc::new(System::new(&common.zfs));
    runtime::block_on(ending(Arc::clone(&zfs), async {
        log::info!("uses {}", zfs.check_version().await.map_err(Error::unable)?);
        let reload = |old: &R| {
            let now = read()?;
            if now.listening.address != listening.address {
                log::warn!("listens on {} until it is restarted", listening.address);
            }
            let security = now.listening.security.clone();
            Ok((again(old, now), security))
        };
        let role = new(settings, zfs).map_err(Error::unable)?;
        serve::serve(role, inherited, &listening, reload).await.map_err(Error::unable)
    }))
}

/// Leaves no command of ZFS behind: work that was under way when the program was asked to end is broken off.
async fn ending<T>(zfs: Arc<System>, work: impl Future<Output = T>) -> T {
    let result = work.await;
    zfs.end().await;
    result
}

fn tls(command: cli::Tls) -> Result<(), Error> {
    match command {
        cli::Tls::Init(TlsInit { ca, name, days }) => commands::tls::init(&ca, &name, days).map_err(Error::unable),
        cli::Tls::Issue(TlsIssue { host, role, also, days, ca, out, renew }) => {
            let wanted = commands::tls::Wanted { host, also, roles: role.into_iter().collect(), days };
            commands::tls::issue(&ca, &wanted, out, renew).map_err(Error::unable)
        }
        cli::Tls::Show(TlsShow { files, format }) => {
            let right = commands::tls::show(&files, format).map_err(Error::unable)?;
            if right { Ok(()) } else { Err(Error::exit(Exit::Failed)) }
        }
    }
}
