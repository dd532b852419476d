//! Prints output for people and for programs: tables, JSON, numbers with units, and errors.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::model::hint;

/// Format of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for people to read
    #[default]
    Table,
    /// One JSON document
    Json,
    /// One JSON object per line
    Ndjson,
}

/// A table with these headings. The columns whose indices are in `right` are right-aligned.
#[must_use]
pub fn table(headings: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // Names are not broken into pieces: a terminal wraps a line that is too long, and it can still be copied whole.
    table.set_content_arrangement(ContentArrangement::Disabled);
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

/// The width of the terminal; `None` if standard output is not a terminal, so that lines may be of any length.
#[must_use]
pub fn width() -> Option<usize> {
    Table::new().width().map(usize::from)
}

/// A table whose last column is a sentence. If the table is wider than `width`, each sentence is wrapped and printed
/// below its row.
#[must_use]
pub fn table_with_reasons(headings: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let cells = |row: &[String]| -> Vec<usize> { row.iter().map(|cell| cell.chars().count()).collect() };
    let mut widths: Vec<usize> = headings.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(cells(row)) {
            *width = cell.max(*width);
        }
    }
    let last = headings.len().saturating_sub(1);
    let total = widths.iter().sum::<usize>() + 2 * last;
    let fits = width.is_none_or(|width| total <= width);
    let mut text = String::new();
    let header: Vec<String> = headings.iter().map(|h| (*h).to_owned()).collect();
    let rows = std::iter::once(&header).chain(rows);
    for (i, row) in rows.enumerate() {
        let columns = if fits { row.len() } else { last.min(row.len()) };
        let mut line = String::new();
        for (cell, width) in row[..columns].iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
        if !fits && i > 0 {
            text.push_str(&wrap(row.last().map(String::as_str).unwrap_or_default(), 4, width));
        }
    }
    text
}

/// Wraps a text into indented lines of at most `width` columns. A word that is longer gets a line of its own.
#[must_use]
pub fn wrap(text: &str, indent: usize, width: Option<usize>) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let length = indent + line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && width.is_some_and(|width| length > width) {
            lines.push_str(&format!("{:indent$}{line}\n", ""));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push_str(&format!("{:indent$}{line}\n", ""));
    }
    lines
}

/// A value as one JSON document.
pub fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).map_or_else(|e| format!("{{\"error\": {:?}}}\n", e.to_string()), |t| t + "\n")
}

/// Values as JSON, one per line.
pub fn ndjson<T: Serialize>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().filter_map(|value| serde_json::to_string(&value).ok()).map(|line| line + "\n").collect()
}

/// Bytes in binary units with three significant digits, as `zfs list` prints them.
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

/// Bytes per second; empty if nothing was moved or no time has passed.
#[must_use]
pub fn rate(moved: u64, took: Duration) -> String {
    if moved == 0 || took.is_zero() {
        return String::new();
    }
    format!("{}/s", bytes((moved as f64 / took.as_secs_f64()) as u64))
}

/// Prints a value as one JSON document, without building the whole text in memory.
pub fn print_json<T: Serialize>(value: &T) {
    check_written(stream(|out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    }));
}

/// Prints values as JSON, one per line.
pub fn print_ndjson<T: Serialize>(values: impl IntoIterator<Item = T>) {
    check_written(stream(|out| {
        for value in values {
            serde_json::to_writer(&mut *out, &value)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }));
}

fn stream(
    write: impl FnOnce(&mut std::io::BufWriter<std::io::StdoutLock<'_>>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    write(&mut out)?;
    out.flush()
}

/// Prints to standard output. A reader that has closed the pipe (`| head`) is not an error.
pub fn print(text: &str) {
    try_print(text);
}

/// Prints to standard output. Returns false if the output could not be written, usually because the reader has closed
/// the pipe.
pub fn try_print(text: &str) -> bool {
    check_written(stream(|out| out.write_all(text.as_bytes())))
}

/// Logs an error. Returns whether the output was written.
fn check_written(result: std::io::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => false,
        Err(error) => {
            log::error!("cannot write to standard output: {error}");
            false
        }
    }
}

/// Whether errors are printed as log messages.
static ERRORS_TO_LOG: AtomicBool = AtomicBool::new(false);

/// Makes [`print_error`] write to the log, so that errors have the format of the log.
pub fn print_errors_to_log() {
    ERRORS_TO_LOG.store(true, Ordering::Relaxed);
}

/// Prints an error to standard error, with its hint on a line of its own, or both in one line to the log. Failing to do
/// so is ignored: the exit status remains.
pub fn print_error(error: &impl std::fmt::Display) {
    if ERRORS_TO_LOG.load(Ordering::Relaxed) {
        return log::error!("{error}");
    }
    let text = error.to_string().replace(hint::MARK, "\n  hint: ");
    drop(writeln!(std::io::stderr().lock(), "zsync: {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_rate_use_binary_units() {
        for (number, text) in [(0, "0B"), (999, "999B"), (1024, "1.00K"), (1536, "1.50K"), (1 << 30, "1.00G")] {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(bytes(u64::MAX), "16.0E");
        assert_eq!(rate(10 << 20, Duration::from_secs(2)), "5.00M/s");
    }

    #[test]
    fn table_with_reasons_wraps_reasons_on_a_narrow_terminal() {
        let rows = [vec!["take".to_owned(), "tank".to_owned(), "the slot has passed since".to_owned()]];
        let wide = "DO    WHAT  WHY\ntake  tank  the slot has passed since\n";
        assert_eq!(table_with_reasons(&["DO", "WHAT", "WHY"], &rows, None), wide);
        assert_eq!(table_with_reasons(&["DO", "WHAT", "WHY"], &rows, Some(37)), wide);
        let narrow = "DO    WHAT\ntake  tank\n    the slot has passed\n    since\n";
        assert_eq!(table_with_reasons(&["DO", "WHAT", "WHY"], &rows, Some(24)), narrow);
    }

    #[test]
    fn table_has_no_trailing_blanks() {
        let text = table(&["A", "B"], &[1], vec![vec!["x".into(), "10".into()], vec!["long".into(), "7".into()]]);
        assert_eq!(text, "A      B\nx     10\nlong   7\n");
    }
}
