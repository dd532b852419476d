//! `zsync slave`: receives streams from agents.

use std::sync::Arc;

use clap::Args;

use crate::cli::args::{CommonArgs, StateArgs};
use crate::cli::exit::Error;
use crate::commands::daemon::{self, DaemonSettings, ListenArgs, Publishing};
use crate::model::PeerRole;
use crate::slave::Slave;
use crate::zfs::system::System;

/// Arguments of `zsync slave`.
#[derive(Args, Debug)]
pub struct SlaveArgs {
    /// Options of services that listen.
    #[command(flatten)]
    pub listen: ListenArgs,
    /// The folder for state that must survive restarts.
    #[command(flatten)]
    pub state: StateArgs,
    /// Options that nearly every subcommand has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Runs the slave until SIGTERM.
pub fn run(args: &SlaveArgs) -> Result<(), Error> {
    let create = |settings: DaemonSettings, zfs, publishing: Publishing<'_>| {
        Ok(Slave::new(zfs, Arc::new(settings.local)).publishing(daemon::publisher(publishing)))
    };
    let renew = |old: &Slave<System>, new: DaemonSettings| old.with_local(Arc::new(new.local));
    daemon::run(&args.common, &args.listen, &args.state, PeerRole::Slave, create, renew)
}
