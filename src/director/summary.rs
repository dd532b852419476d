//! Renders the report of a pass: as a table, as JSON, or as a line for a log.

use std::time::Duration;

use serde::Serialize;

use crate::catalog::Outcome;
use crate::cli::report;
use crate::cli::report::Format;
use crate::director::report::{Report, failures, subject, verb};
use crate::model::{HostName, ResponseStatus};

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
    match failures(report).count() {
        0 => format!("pass at {at}: {orders}, all well"),
        failed => format!("pass at {at}: {orders}, {}", counted(failed, "failure")),
    }
}

/// The whole report in this format.
#[must_use]
pub fn pass(report: &Report, format: Format) -> String {
    match format {
        Format::Table => as_table(report),
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

fn as_table(report: &Report) -> String {
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
    let headings = ["ACTION", "DATASET", "SNAPSHOT", "TO", "RESULT", "SENT", "RATE", "TOOK"];
    let mut text =
        if report.outcomes.is_empty() { String::new() } else { report::table(&headings, &[5, 6, 7], rows.collect()) };
    for notice in report.notices.iter().filter(|n| !n.kind.is_failure()) {
        text.push_str(&format!("note: {notice}\n"));
        if let Some(hint) = notice.kind.hint() {
            text.push_str(&format!("  hint: {hint}\n"));
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

fn counted(n: usize, of: &str) -> String {
    format!("{n} {of}{}", if n == 1 { "" } else { "s" })
}
