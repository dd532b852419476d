//! The subcommands: thin doing around what the deciding modules decided.

pub mod check;
pub mod clean;
pub mod migrate;
pub mod status;
pub mod tls;
