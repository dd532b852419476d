//! Sets up the log, which is written to standard error: for people, for systemd's journal, or as JSON.

use std::io::{self, Write};

use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Record};
use serde::Serialize;

use crate::cli::args::LogFormat;
use crate::cli::report;

/// Sets up the log. The level of zsync's own messages is `level` if it was given, otherwise that of `RUST_LOG`,
/// otherwise `default`.
pub fn start(level: Option<LevelFilter>, format: LogFormat, default: &str) {
    let mut builder = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default));
    if let Some(level) = level {
        builder.filter_module("zsync", level);
    }
    match format {
        LogFormat::Json => {
            builder.format(json);
            report::print_errors_to_log();
        }
        LogFormat::Text if is_journal() => {
            builder.format(journal);
            report::print_errors_to_log();
        }
        LogFormat::Text => {
            builder.format_target(false);
        }
    }
    // A second initialisation happens only in tests within one process.
    drop(builder.try_init());
}

/// Whether systemd's journal reads standard error, which adds the time itself; see systemd.exec(5), `$JOURNAL_STREAM`.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writes a message with the priority prefix of sd-daemon(3), by which `journalctl -p` filters.
fn journal(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    // Each line needs the prefix.
    for line in record.args().to_string().lines() {
        writeln!(out, "<{priority}>{line}")?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    level: &'static str,
    target: &'a str,
    message: String,
}

fn json(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let line = Line {
        time: out.timestamp_millis().to_string(),
        level: match record.level() {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        },
        target: record.target(),
        message: record.args().to_string(),
    };
    let text = serde_json::to_string(&line).map_err(io::Error::other)?;
    writeln!(out, "{text}")
}
