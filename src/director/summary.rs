//! Renders the report of a pass: as a table, as JSON, or as a line for a log.

use std::time::Duration;

use serde::Serialize;

use crate::catalog::Outcome;
use crate::cli::report;
use crate::cli::report::Format;
use crate::director::report::{Report, failures, subject, verb};
use crate::model::{HostName, ResponseStatus, counted};

fn snapshot(outcome: &Outcome) -> String {
    outcome.snapshot.as_ref().map_or_else(|| "several".to_owned(), ToString::to_string)
}

fn result(outcome: &Outcome) -> &'static str {
    match (outcome.success, outcome.status) {
        (false, Some(ResponseStatus::Busy)) => "busy",
        (false, _) => "FAILED",
        (true, Some(ResponseStatus::Full)) => "full",
        (true, Some(ResponseStatus::Incremental)) => "incremental",
        (true, Some(ResponseStatus::MostActual)) => "newer there",
        (true, Some(ResponseStatus::WasRenamed)) => "renamed there",
        (true, Some(ResponseStatus::NothingToDo)) => "nothing to do",
        (true, _) => "done",
    }
}

/// The outcome of an order as a line for the log.
#[must_use]
pub fn outcome_line(outcome: &Outcome) -> String {
    let mut line = format!("{}: {}, {}", subject(outcome), snapshot(outcome), result(outcome));
    if outcome.bytes > 0 {
        let took = Duration::from_secs_f64(outcome.seconds);
        line = format!("{line}, {} at {}", report::bytes(outcome.bytes), report::rate(outcome.bytes, took));
    }
    if let Some(message) = &outcome.error {
        line = format!("{line} ({message})");
    }
    line
}

/// The result of a pass in one line, for the status that the service manager shows.
#[must_use]
pub fn in_a_line(report: &Report) -> String {
    let (orders, at) = (counted(report.outcomes.len(), "order"), report.at.format("%H:%M:%S UTC"));
    let rest = match report.resting.len() {
        0 => String::new(),
        resting => format!(", {} not tried again yet", counted(resting, "failed order")),
    };
    match (failures(report).count(), report.resting.is_empty()) {
        (0, true) => format!("pass at {at}: {orders}, all well"),
        (0, false) => format!("pass at {at}: {orders}{rest}"),
        (failed, _) => format!("pass at {at}: {orders}, {}{rest}", counted(failed, "failure")),
    }
}

/// The whole report in this format.
#[must_use]
pub fn pass(report: &Report, format: Format) -> String {
    match format {
        Format::Table => as_table(report, report::width()),
        Format::Json => report::json(&Document::from(report)),
        Format::Ndjson => report::ndjson(&report.outcomes),
    }
}

#[derive(Serialize)]
struct Document<'a> {
    at: chrono::DateTime<chrono::Utc>,
    millis: u128,
    unseen: &'a std::collections::BTreeMap<HostName, String>,
    notices: Vec<String>,
    outcomes: &'a [Outcome],
    #[serde(rename = "mended", skip_serializing_if = "Vec::is_empty")]
    corrected: Vec<String>,
    #[serde(rename = "broken_off", skip_serializing_if = "Option::is_none")]
    interrupted: Option<&'a str>,
}

impl<'a> From<&'a Report> for Document<'a> {
    fn from(report: &'a Report) -> Self {
        Self {
            at: report.at,
            millis: report.took.as_millis(),
            unseen: &report.unseen,
            notices: report.notices.iter().map(ToString::to_string).collect(),
            outcomes: &report.outcomes,
            corrected: report.corrected.iter().map(|(host, line)| format!("{host}: {line}")).collect(),
            interrupted: report.interrupted.as_deref(),
        }
    }
}

/// The columns of the table.
const HEADINGS: [&str; 8] = ["ACTION", "DATASET", "SNAPSHOT", "TO", "RESULT", "SENT", "RATE", "TOOK"];
/// Those of them whose numbers are right-aligned.
const NUMBERS: [usize; 3] = [5, 6, 7];

/// The orders as a table. If it is wider than `width`, what became of each order follows below the order, so that names
/// stay whole.
fn table(rows: Vec<Vec<String>>, width: Option<usize>) -> String {
    let text = report::table(&HEADINGS, &NUMBERS, rows.clone());
    if width.is_none_or(|width| text.lines().all(|line| line.chars().count() <= width)) {
        return text;
    }
    let narrow = rows.into_iter().map(|row| {
        let (order, rest) = row.split_at(3);
        let [to, result, sent, rate, took] = rest else { return row };
        let to = if to.is_empty() { String::new() } else { format!("to {to}: ") };
        let sent = match (sent.as_str(), rate.as_str()) {
            ("", _) => String::new(),
            (sent, "") => format!(", {sent}"),
            (sent, rate) => format!(", {sent} at {rate}"),
        };
        order.iter().cloned().chain([format!("{to}{result}{sent}, {took}")]).collect()
    });
    report::table_with_reasons(&["ACTION", "DATASET", "SNAPSHOT", "RESULT"], &narrow.collect::<Vec<_>>(), width)
}

fn as_table(report: &Report, width: Option<usize>) -> String {
    let rows = report.outcomes.iter().map(|o| {
        let took = Duration::from_secs_f64(o.seconds);
        let dataset = o.dataset.as_ref().map(ToString::to_string).unwrap_or_default();
        vec![
            verb(o.action).to_owned(),
            format!("{}:{dataset}", o.host),
            snapshot(o),
            o.to.as_ref().map(|t| format!("{}:{}", t.host, t.dataset)).unwrap_or_default(),
            result(o).to_owned(),
            if o.bytes == 0 { String::new() } else { report::bytes(o.bytes) },
            report::rate(o.bytes, took),
            format!("{:.1}s", took.as_secs_f64()),
        ]
    });
    let mut text = if report.outcomes.is_empty() { String::new() } else { table(rows.collect(), width) };
    for notice in report.notices.iter().filter(|n| !n.kind.is_failure()) {
        text.push_str(&report::wrap(&format!("note: {notice}"), 0, width));
        if let Some(hint) = notice.kind.hint() {
            text.push_str(&report::wrap(&format!("hint: {hint}"), 2, width));
        }
    }
    let failed = failures(report).count();
    let took = report.took.as_secs_f64();
    let (orders, failures) = (counted(report.outcomes.len(), "order"), counted(failed, "failure"));
    text.push_str(&match (report.outcomes.len(), failed) {
        (0, 0) => format!("nothing to do; everything was checked in {took:.1}s\n"),
        (_, 0) => format!("{orders} in {took:.1}s, all well\n"),
        (0, _) => format!("no orders; {failures}; everything was checked in {took:.1}s\n"),
        (_, _) => format!("{orders} in {took:.1}s, {failures}\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_table_keeps_names_whole() {
        let row = |cells: [&str; 8]| cells.map(str::to_owned).to_vec();
        let rows = vec![
            row(["take", "alpha:tank/home", "S_2026-11-23_10:00:00", "", "done", "", "", "0.1s"]),
            row([
                "send",
                "alpha:tank/home",
                "S_2026-11-23_10:00:00",
                "beta:pool/home",
                "incremental",
                "8.80K",
                "1M/s",
                "0.2s",
            ]),
        ];
        let wide = table(rows.clone(), Some(200));
        assert_eq!(wide, table(rows.clone(), None));
        assert!(
            wide.lines().count() == 3 && wide.contains("S_2026-11-23_10:00:00  beta:pool/home  incremental"),
            "{wide}"
        );
        let narrow = "ACTION  DATASET          SNAPSHOT\n\
            take    alpha:tank/home  S_2026-11-23_10:00:00\n    done, 0.1s\n\
            send    alpha:tank/home  S_2026-11-23_10:00:00\n    to beta:pool/home: incremental, 8.80K at 1M/s,\n    0.2s\n";
        assert_eq!(table(rows, Some(50)), narrow);
    }
}
