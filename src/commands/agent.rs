//! `zsync agent`: carries out a director's orders on this host.

use std::sync::Arc;

use clap::Args;

use crate::agent::{Agent, Journal};
use crate::cli::args::{CommonArgs, StateArgs};
use crate::cli::exit::Error;
use crate::commands::daemon::{self, DaemonSettings, ListenArgs, Publishing};
use crate::host::publish::fences::Fences;
use crate::model::PeerRole;
use crate::zfs::system::System;

/// Arguments of `zsync agent`.
#[derive(Args, Debug)]
#[command(after_help = "To send an order to a running agent by hand:\n  \
    order='{\"OrderUUID\":\"%s\",\"Action\":\"take_snapshot\",\"DestDataset\":\"tank/foo\",'\n  \
    order=$order'\"SnapshotName\":\"by-hand\"}'\n  \
    printf \"$order\" \"$(cat /proc/sys/kernel/random/uuid)\" | nc -N localhost 7711")]
pub struct AgentArgs {
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

/// Runs the agent until SIGTERM.
pub fn run(args: &AgentArgs) -> Result<(), Error> {
    let create = |settings: DaemonSettings, zfs, publishing: Publishing<'_>| {
        let journal = Journal::open(&args.state.state)?;
        let agent = Agent::new(settings.host, zfs, Arc::new(settings.local));
        let agent = agent.with_tls(settings.listening.security.tls()).publishing(daemon::publisher(publishing));
        Ok(agent.remembering(journal).fenced(Fences::new(&args.state.state)))
    };
    let renew = |old: &Agent<System>, new: DaemonSettings| {
        old.with_local(new.host, Arc::new(new.local)).with_tls(new.listening.security.tls())
    };
    daemon::run(&args.common, &args.listen, &args.state, PeerRole::Agent, create, renew)
}
