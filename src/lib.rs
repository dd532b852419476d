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
pub mod consul;
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
use commands::presence::{self, Post};
use commands::{agent::Agent, clean, director, fences::Fences, migrate, plan, serve, slave::Slave};
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
            runtime::block_on(director::run(settings::director(args)?, zfs))
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
        Command::Clean(args) => runtime::block_on(clean::run(settings::clean(args)?)),
        Command::Migrate(args) => runtime::block_on(migrate::run(settings::migrate(args))),
        Command::Tls(command) => tls(command),
        Command::Agent(args) => {
            let settings = settings::serving(&args.common, &args.listen, PeerRole::Agent)?;
            runtime::block_on(async {
                let zfs = Arc::new(System::new(&args.common.zfs));
                log::info!("uses {}", zfs.check_version().await.map_err(Error::unable)?);
                let local = Arc::new(settings.local);
                let post = Post::new(presence::AGENTS, &settings.host, &local, &settings.listen)?;
                let agent = Agent::new(settings.host, Arc::clone(&zfs), Arc::clone(&local))
                    .with_tls(settings.security.tls())
                    .fenced(Fences::new(&local.state))
                    .publishing(post.as_ref().map(Post::publisher));
                let serving = serve::serve(agent, &settings.listen, settings.security);
                presence::during(serving, post, &zfs, &local).await.map_err(Error::unable)
            })
        }
        Command::Slave(args) => {
            let settings = settings::serving(&args.common, &args.listen, PeerRole::Slave)?;
            runtime::block_on(async {
                let zfs = Arc::new(System::new(&args.common.zfs));
                log::info!("uses {}", zfs.check_version().await.map_err(Error::unable)?);
                let local = Arc::new(settings.local);
                let post = Post::new(presence::SLAVES, &settings.host, &local, &settings.listen)?;
                let slave = Slave::new(Arc::clone(&zfs), Arc::clone(&local));
                let slave = slave.publishing(post.as_ref().map(Post::publisher));
                let serving = serve::serve(slave, &settings.listen, settings.security);
                presence::during(serving, post, &zfs, &local).await.map_err(Error::unable)
            })
        }
    }
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
