//! Provides what the subcommands share: arguments, output, logging, exit statuses.

pub mod args;
pub mod exit;
pub mod logging;
pub mod report;
pub mod settings;
