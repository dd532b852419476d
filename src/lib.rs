//! zsync keeps a fleet's ZFS snapshots taken, replicated and pruned by policy.
//!
//! A tour, in the order in which a pass flows: the [`director`] reads a [`policy`] ([`config`] parses it), learns through
//! the [`fleet`] what every host holds, and lets the pure [`actions`] decide what to do. An [`agent`] on each host carries
//! the orders out with [`zfs`]; what it sends to another host is received there by a [`slave`]. [`plan`] previews all that.
//!
//! Below them stand what agent and slave of one [`host`] share, the [`server`] that accepts their connections, the
//! [`catalog`] that remembers, with [`consul`] for fleets, and the conversation between hosts: messages in [`wire`], bytes
//! in [`transport`]. [`model`] has the words that all speak: names, guids, snapshots, inventories. [`sys`] has clock, tasks,
//! processes and files. [`commands`] holds the subcommands and [`cli`] what they share.
//!
//! `actions`, `policy` and `model` perform no I/O and read no clock. `tests/architecture` holds who may use whom.

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
