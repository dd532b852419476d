//! Translates operations into arguments of the `zfs` command. No other module knows its flags.
//!
//! Names are checked types, so that none can be mistaken for an option. See zfs(8) and the pages of its subcommands for
//! what the flags mean.

mod change;
mod read;
mod stream;
mod words;

pub(crate) use change::*;
pub(crate) use read::*;
pub(crate) use stream::*;
