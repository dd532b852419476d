//! Provides what the subcommands share: arguments, output, grouped failures, logging, exit statuses.

pub mod args;
pub mod causes;
pub mod exit;
pub mod logging;
pub mod report;
pub mod settings;
