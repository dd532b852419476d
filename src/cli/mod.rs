//! The command line: arguments, what is printed and logged, exit statuses.

pub mod args;
pub mod exit;
pub mod logging;
pub mod report;
pub mod settings;
