//! Defines arguments that several subcommands share, and parsers for the values of arguments.
//!
//! The arguments of each subcommand are defined with the subcommand, in [`commands`](crate::commands).

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;

use crate::model::{HostName, Place};

/// Options that nearly every subcommand has.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Common options")]
pub struct CommonArgs {
    /// This host's name in the policy [default: "hostname" in local.json, else the system's host name]
    #[arg(long, env = "ZSYNC_HOSTNAME", value_name = "NAME")]
    pub hostname: Option<HostName>,
    /// Local configuration file: what zsync may do with this host's datasets
    #[arg(long, value_name = "FILE", default_value = "/etc/zsync/local.json")]
    pub local: PathBuf,
    /// The zfs program
    #[arg(long, value_name = "PROGRAM", default_value = "zfs")]
    pub zfs: PathBuf,
    /// Log level: error, warn, info, debug or trace [default: RUST_LOG, else info for agent, slave and a
    /// continuously running director, else warn]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<log::LevelFilter>,
    /// Log format
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
}

/// The folder for state that must survive restarts.
#[derive(Args, Clone, Debug)]
pub struct StateArgs {
    /// Folder for state that must survive a restart: an agent's answers to recent orders and, with Consul, unpublished
    /// results and the newest fences that an agent has seen
    #[arg(long, env = "ZSYNC_STATE", value_name = "FOLDER", default_value = "/var/lib/zsync")]
    pub state: PathBuf,
}

/// The policy's file.
#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    /// Policy file
    #[arg(long, short, value_name = "FILE", default_value = "/etc/zsync/server.json")]
    pub config: PathBuf,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines of text with time, level and message; in systemd's journal, with a priority and without the time
    #[default]
    Text,
    /// One JSON object per line, with time, level, target and message
    Json,
}

/// Parses a duration such as `90s` or `1h 30m`; zero is allowed.
pub fn duration_or_zero(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Parses a duration such as `90s` or `1h 30m`; zero is an error.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration = duration_or_zero(text)?;
    if duration.is_zero() { Err("the duration is zero".into()) } else { Ok(duration) }
}

/// Parses a moment such as `2026-11-23T10:30:00Z`. The error shows this form.
pub fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    humantime::parse_rfc3339_weak(text)
        .map(DateTime::from)
        .or_else(|_| text.parse::<DateTime<Utc>>())
        .map_err(|_| "write it like 2026-11-23T10:30:00Z".to_owned())
}

/// Parses a dataset of a host, such as `alpha:tank/home`. The error shows this form.
pub fn place(text: &str) -> Result<Place, String> {
    let (host, dataset) = text.split_once(':').ok_or("write it like alpha:tank/home")?;
    Ok(Place {
        host: host.parse().map_err(|error| format!("{error}"))?,
        dataset: dataset.parse().map_err(|error| format!("{error}"))?,
    })
}
