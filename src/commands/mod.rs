//! The subcommands: one file or folder for each, with its arguments and the function that runs it.
//!
//! The roles are implemented in modules of their own ([`director`](crate::director), [`agent`](crate::agent),
//! [`slave`](crate::slave), [`plan`](crate::plan)); the subcommands only start them.

pub mod adopt;
pub mod agent;
pub mod check;
pub mod clean;
pub mod completions;
pub mod copy;
mod daemon;
pub mod director;
pub mod fences;
pub mod find;
pub mod forget;
pub mod migrate;
pub mod plan;
pub mod restore;
pub mod schema;
pub mod slave;
pub mod snapshots;
pub mod status;
pub mod tls;
pub mod trash;
pub mod undelete;

use clap::{CommandFactory, Parser, Subcommand};

use crate::cli::args::CommonArgs;
use crate::cli::exit::Error;
use crate::cli::logging;

/// Takes, replicates and prunes the ZFS snapshots of a fleet by policy.
#[derive(Debug, Parser)]
#[command(name = "zsync", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "One machine:  zsync director --once      (from cron; nothing else has to run)\n\
                        Fleet:        zsync director on one host,\n\
                        \u{20}             zsync agent on every other host,\n\
                        \u{20}             zsync slave on each host that receives from another\n\
                        Preview:      zsync plan --dry-run\n\
                        Status:       zsync status\n\
                        Certificates: zsync tls init, then zsync tls issue for each host\n\n\
                        Files: /etc/zsync/server.json (the policy), /etc/zsync/local.json (what a host permits). \
                        Exit status: 0 success; 1 an order failed, a host or a pool could not be listed, or the \
                        policy asks for something impossible; 2 nothing could be done; 3 plan --exit-code: there are \
                        orders. See zsync(8).")]
pub struct Cli {
    /// The subcommand
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Decide by policy which snapshots to take, send and destroy, and send orders to the agents
    Director(director::DirectorArgs),
    /// Carry out a director's orders on this host
    Agent(agent::AgentArgs),
    /// Receive streams from agents into this host's datasets
    Slave(slave::SlaveArgs),
    /// Preview the orders that the director would give
    Plan(plan::PlanArgs),
    /// Show the state of the fleet: newest snapshots, lagging replicas, running transfers, failed orders
    Status(status::StatusArgs),
    /// Check whether the fleet meets the policy, for Nagios, Icinga or cron
    Check(check::CheckArgs),
    /// Delete old records (destroyed snapshots, skipped slots) from the catalog
    Clean(clean::CleanArgs),
    /// List and remove what transfers have left in ZFS for destinations that the policy no longer has
    Forget(forget::ForgetArgs),
    /// Show or forget the fences by which this host's agent recognises the director that leads
    Fences(fences::FencesArgs),
    /// List the snapshots of a host that orders would have destroyed and that its trash keeps
    Trash(trash::TrashArgs),
    /// Take snapshots back from the trash of their host
    Undelete(undelete::UndeleteArgs),
    /// Restore datasets from their copies
    Restore(restore::RestoreArgs),
    /// Copy a dataset or a tree to another pool or host, through ssh and without any configuration
    Copy(copy::CopyArgs),
    /// Print a policy that is inferred from what hosts have, after the director's disk was lost
    Adopt(adopt::AdoptArgs),
    /// Show the versions of files in the snapshots on this host
    Find(find::FindArgs),
    /// Show where in the fleet each snapshot of a dataset exists
    Snapshots(snapshots::SnapshotsArgs),
    /// Import zeplic's records about snapshots from Consul
    Migrate(migrate::MigrateArgs),
    /// Create and inspect the certificates with which hosts authenticate each other
    #[command(subcommand)]
    Tls(tls::TlsCommand),
    /// Print the completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Print the JSON schema of a configuration file, for editors
    Schema(schema::SchemaArgs),
}

impl Cli {
    /// Runs the subcommand.
    pub fn run(self) -> Result<(), Error> {
        self.start_logging();
        match self.command {
            Command::Director(args) => director::run(args),
            Command::Agent(args) => agent::run(&args),
            Command::Slave(args) => slave::run(&args),
            Command::Plan(args) => plan::run(args),
            Command::Status(args) => status::run(args),
            Command::Check(args) => check::run(&args),
            Command::Clean(args) => clean::run(&args),
            Command::Forget(args) => forget::run(args),
            Command::Fences(args) => fences::run(&args),
            Command::Trash(args) => trash::run(args),
            Command::Undelete(args) => undelete::run(args),
            Command::Restore(args) => restore::run(args),
            Command::Copy(args) => copy::run(&args),
            Command::Adopt(args) => adopt::run(args),
            Command::Find(args) => find::run(args),
            Command::Snapshots(args) => snapshots::run(args),
            Command::Migrate(args) => migrate::run(args),
            Command::Tls(command) => tls::run(command),
            Command::Completions(args) => completions::run(&args, Self::command()),
            Command::Schema(args) => schema::run(&args),
        }
    }

    /// Starts logging. The level is that of `--log`, otherwise of `RUST_LOG`. By default, a service logs what it does,
    /// and a command only warnings and errors.
    fn start_logging(&self) {
        let (common, is_service): (Option<&CommonArgs>, bool) = match &self.command {
            Command::Director(args) => (Some(&args.common), !args.once),
            Command::Agent(args) => (Some(&args.common), true),
            Command::Slave(args) => (Some(&args.common), true),
            Command::Plan(args) => (Some(&args.common), false),
            Command::Check(args) => (Some(&args.common), false),
            Command::Status(args) => (Some(&args.common), false),
            Command::Clean(args) => (Some(&args.common), false),
            Command::Forget(args) => (Some(&args.common), false),
            Command::Trash(args) => (Some(&args.common), false),
            Command::Undelete(args) => (Some(&args.common), false),
            Command::Restore(args) => (Some(&args.common), false),
            Command::Copy(args) => (Some(&args.common), false),
            Command::Adopt(args) => (Some(&args.common), false),
            Command::Find(args) => (Some(&args.common), false),
            Command::Snapshots(args) => (Some(&args.common), false),
            Command::Migrate(args) => (Some(&args.common), false),
            Command::Fences(_) | Command::Tls(_) | Command::Completions(_) | Command::Schema(_) => (None, false),
        };
        let (level, format) = common.map_or_else(Default::default, |common| (common.log, common.log_format));
        logging::start(level, format, if is_service { "zsync=info,warn" } else { "warn" });
    }
}
