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
pub mod model;
pub mod policy;
pub mod report;
pub mod runtime;
pub mod settings;
pub mod transport;
pub mod wire;
pub mod zfs;

use std::sync::Arc;

use cli::{Cli, Command, TlsInit, TlsIssue, TlsShow};
use commands::agent::{Agent, Journal};
use commands::{director, plan, serve, slave::Slave};
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
        Command::Tls(command) => tls(command),
        Command::Agent(args) => {
            let settings = settings::serving(&args.common, &args.listen, PeerRole::Agent)?;
            let zfs = Arc::new(System::new(&args.common.zfs));
            runtime::block_on(ending(Arc::clone(&zfs), async {
                log::info!("uses {}", zfs.check_version().await.map_err(Error::unable)?);
                let journal = Journal::open(&args.state).map_err(Error::unable)?;
                let agent = Agent::new(settings.host, zfs, Arc::new(settings.local));
                let agent = agent.with_tls(settings.security.tls()).remembering(journal);
                serve::serve(agent, &settings.listen, settings.security).await.map_err(Error::unable)
            }))
        }
        Command::Slave(args) => {
            let settings = settings::serving(&args.common, &args.listen, PeerRole::Slave)?;
            let zfs = Arc::new(System::new(&args.common.zfs));
            runtime::block_on(ending(Arc::clone(&zfs), async {
                log::info!("uses {}", zfs.check_version().await.map_err(Error::unable)?);
                let slave = Slave::new(zfs, Arc::new(settings.local));
                serve::serve(slave, &settings.listen, settings.security).await.map_err(Error::unable)
            }))
        }
    }
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
