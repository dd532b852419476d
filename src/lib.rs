//! zsync takes, replicates and prunes the ZFS snapshots of a fleet by policy.
//!
//! The modules, in the order in which a pass uses them: [`config`] parses `server.json` into a [`policy`]. The
//! [`director`] lists the snapshots of every host through the [`fleet`], and the [`actions`] decide what to do. An
//! [`agent`] on each host carries out the director's orders with [`zfs`]. A [`slave`] on the destination receives what
//! an agent on another host sends. [`plan`] previews a pass without carrying it out.
//!
//! These modules rest on others. [`host`] has the code that the agent and the slave of one host share, and [`server`]
//! accepts connections to them. [`catalog`] stores what is known of every host between passes, in a file or in
//! [`consul`]. [`wire`] defines the messages between hosts, and [`transport`] carries their bytes. [`model`] has the
//! types that all modules share: names, guids, snapshots, inventories. [`sys`] has the clock, tasks, processes and
//! files. [`commands`] has the subcommands, and [`cli`] the code that they share.
//!
//! `actions`, `policy` and `model` perform no I/O and read no clock. The test `tests/architecture` checks which module
//! may use which.

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
