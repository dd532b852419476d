//! Values as people and machines read them: tables and JSON.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

/// How output is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Ndjson,
}

/// A table with these headings; columns named in `right` are aligned to the right.
#[must_use]
pub fn table(headings: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headings.iter().copied());
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in rows {
        table.add_row(row);
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end().strip_prefix(' ').unwrap_or(line.trim_end()));
        text.push('\n');
    }
    text
}

/// A value as one JSON document.
pub fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).map_or_else(|e| format!("{{\"error\": {:?}}}\n", e.to_string()), |t| t + "\n")
}

/// Values as JSON, one a line.
pub fn ndjson<T: Serialize>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().filter_map(|value| serde_json::to_string(&value).ok()).map(|line| line + "\n").collect()
}

/// Bytes in binary units with three significant digits, as `zfs list` shows them.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "K", "M", "G", "T", "P", "E"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

/// Bytes per second; empty where there is nothing to tell.
#[must_use]
pub fn rate(moved: u64, took: Duration) -> String {
    if moved == 0 || took.is_zero() {
        return String::new();
    }
    format!("{}/s", bytes((moved as f64 / took.as_secs_f64()) as u64))
}

/// Prints to standard output. A reader that went away (`| head`) is no error.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        log::error!("cannot write to standard output: {error}");
    }
}

/// Whether complaints go where the log goes, in its form.
static BY_LOG: AtomicBool = AtomicBool::new(false);

/// Has complaints written as errors in the log, where somebody reads that in a form of its own.
pub fn complain_by_log() {
    BY_LOG.store(true, Ordering::Relaxed);
}

/// Complains on standard error. Where nobody reads that, the exit status has to do.
pub fn complain(what: &impl std::fmt::Display) {
    if BY_LOG.load(Ordering::Relaxed) {
        return log::error!("{what}");
    }
    drop(writeln!(std::io::stderr().lock(), "zsync: {what}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_as_zfs_writes_them() {
        for (number, text) in [(0, "0B"), (999, "999B"), (1024, "1.00K"), (1536, "1.50K"), (1 << 30, "1.00G")] {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(bytes(u64::MAX), "16.0E");
        assert_eq!(rate(10 << 20, Duration::from_secs(2)), "5.00M/s");
    }

    #[test]
    fn tables_have_no_trailing_blanks() {
        let text = table(&["A", "B"], &[1], vec![vec!["x".into(), "10".into()], vec!["long".into(), "7".into()]]);
        assert_eq!(text, "A      B\nx     10\nlong   7\n");
    }
}
