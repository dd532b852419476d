//! The status as tables for people, and as one JSON object per line for programs.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use crate::actions::health::{DatedSnapshot, Finding, HostState, Row, Severity, span};
use crate::cli::{causes, report};
use crate::commands::status::query::{FailedOrder, Status};
use crate::fleet::live_status::{LiveStatus, RunningTransfer};
use crate::model::{Action, DatasetName, HostName, Place, in_utc};

/// A line of `--format ndjson`.
#[derive(Serialize)]
#[serde(tag = "line", rename_all = "snake_case")]
enum Line<'a> {
    Host(&'a HostState),
    Row(&'a Row),
    Transfer(&'a RunningTransfer),
    Error(&'a FailedOrder),
}

/// One JSON object per line.
#[must_use]
pub fn as_lines(status: &Status) -> String {
    let Status { health, pass, errors } = status;
    let transfers = pass.iter().flat_map(|live| &live.running);
    let lines = health.hosts.iter().map(Line::Host).chain(health.rows.iter().map(Line::Row));
    report::ndjson(lines.chain(transfers.map(Line::Transfer)).chain(errors.iter().map(Line::Error)))
}

fn place(host: &HostName, dataset: Option<&DatasetName>) -> String {
    dataset.map_or_else(|| host.to_string(), |dataset| format!("{host}:{dataset}"))
}

/// Tables and sentences in lines of at most `width` columns, unless a word is longer.
#[must_use]
pub fn as_text(status: &Status, width: Option<usize>) -> String {
    let Status { health, pass, errors } = status;
    let running = pass.as_ref().map(|live| live.running.as_slice()).unwrap_or_default();
    let mut text = String::new();
    if health.rows.is_empty() {
        text.push_str(match pass {
            None => "no dataset is known yet\n",
            Some(_) => "none of the policy's datasets exists on the hosts that could be listed\n",
        });
    } else {
        let headings = ["DATASET", "POLICY", "NEWEST", "BEHIND", "UNSENT", "STATE"];
        text.push_str(&report::table(&headings, &[2, 4], rows(status, running)));
    }
    if !running.is_empty() {
        let rows = running.iter().map(running_row).collect();
        text.push('\n');
        text.push_str(&report::table(&["RUNNING", "DONE", "OF", "RATE", "LEFT"], &[1, 2, 3, 4], rows));
    }
    let found = health.findings();
    if !found.is_empty() || !errors.is_empty() || !health.reminders.is_empty() {
        text.push('\n');
    }
    for (severity, finding) in found {
        text.push_str(&sentence(&format!("{severity}: {finding}"), width));
    }
    let orders: Vec<causes::FailedOrder<'_>> = errors.iter().map(FailedOrder::for_grouping).collect();
    for group in causes::by_cause(&orders) {
        let FailedOrder { at, host, dataset, to, error, hint, not_before, .. } = &errors[group[0]];
        let to = to.as_ref().map(|to| format!(" to {}:{}", to.host, to.dataset)).unwrap_or_default();
        let others = causes::others(&orders, &group);
        let rests = not_before.map(|until| format!("; not tried again before {}", in_utc(until))).unwrap_or_default();
        let failed = format!("failed {}: {}{to}: {error}{others}{rests}", in_utc(*at), place(host, dataset.as_ref()));
        text.push_str(&sentence(&failed, width));
        if let Some(hint) = hint {
            text.push_str(&report::wrap(&format!("hint: {hint}"), 2, width));
        }
    }
    for reminder in &health.reminders {
        text.push_str(&sentence(&format!("note: {reminder}"), width));
    }
    text.push('\n');
    text.push_str(&last_pass(health.at, pass.as_ref()));
    text
}

/// A sentence with a hanging indent.
fn sentence(text: &str, width: Option<usize>) -> String {
    // The first line is not indented.
    let lines = report::wrap(text, 2, width);
    lines.strip_prefix("  ").unwrap_or(&lines).to_owned()
}

fn last_pass(now: DateTime<Utc>, pass: Option<&LiveStatus>) -> String {
    let text = match pass {
        None => "no pass has run yet".to_owned(),
        Some(LiveStatus { ended: Some(ended), .. }) => format!("the last pass ended {} ago", span(now - *ended)),
        Some(live) if live.is_alive(now) => format!("a pass has been running for {}", span(now - live.began)),
        Some(live) => format!("the last pass stopped before its end, {} ago", span(now - live.at)),
    };
    format!("{}; {text}\n", in_utc(now))
}

/// A row for each dataset, followed by a row for each of its destinations.
fn rows(Status { health, errors, .. }: &Status, running: &[RunningTransfer]) -> Vec<Vec<String>> {
    let now = health.at;
    // A finding says more than an order that failed.
    let state = |row: &Row, to: Option<&Place>, worst: Severity| match worst {
        Severity::Ok if errors.iter().any(|failed| failed.is_of(row, to)) => "failed".to_owned(),
        Severity::Ok if to.is_some() && row.behind.is_none() => "unknown".to_owned(),
        Severity::Ok => "ok".to_owned(),
        severity => severity.to_string(),
    };
    let of = |row: &Row| (row.entry, row.policy.clone(), row.host.clone(), row.dataset.clone());
    let mut table = Vec::new();
    for same in health.rows.chunk_by(|a, b| of(a) == of(b)) {
        let Some(source) = same.first() else { continue };
        let own = worst(same.iter().flat_map(|row| &row.findings).filter(|finding| finding.is_of_source()));
        table.push(vec![
            place(&source.host, Some(&source.dataset)),
            source.policy.clone(),
            age(source.newest.as_ref(), now),
            String::new(),
            String::new(),
            state(source, None, own),
        ]);
        for row in same {
            let Some(to) = &row.to else { continue };
            let there = worst(row.findings.iter().filter(|finding| !finding.is_of_source()));
            let sending = running.iter().find(|transfer| transfer.is_of(row));
            let behind = match (row.behind, row.lag()) {
                (None, _) => "?".to_owned(),
                (Some(0), _) => "0".to_owned(),
                (Some(behind), lag) => format!("{behind} ({})", lag.map(span).unwrap_or_default()),
            };
            table.push(vec![
                format!("  to {}", place(&to.host, Some(&to.dataset))),
                String::new(),
                age(row.replica.as_ref(), now),
                behind,
                match row.unsent_bytes {
                    Some(0) => String::new(),
                    bytes => bytes.map_or_else(|| "?".to_owned(), report::bytes),
                },
                sending.map_or_else(|| state(row, Some(to), there), sent),
            ]);
        }
    }
    table
}

fn age(point: Option<&DatedSnapshot>, now: DateTime<Utc>) -> String {
    point.map_or_else(|| "-".to_owned(), |point| span(now - point.creation))
}

fn worst<'a>(findings: impl Iterator<Item = &'a Finding>) -> Severity {
    findings.map(Finding::severity).max().unwrap_or_default()
}

/// The progress of a transfer.
fn sent(transfer: &RunningTransfer) -> String {
    if transfer.waits_for.is_some() {
        return "queued".to_owned();
    }
    match transfer.total {
        Some(total) if total > 0 => format!("sending {}%", (transfer.bytes.saturating_mul(100) / total).min(100)),
        _ => "sending".to_owned(),
    }
}

fn running_row(transfer: &RunningTransfer) -> Vec<String> {
    let (action, bytes) = match transfer.action {
        Action::SendSnapshot => ("send", report::bytes(transfer.bytes)),
        Action::TakeSnapshot => ("take", String::new()),
        Action::DestroySnapshot => ("destroy", String::new()),
        Action::ForgetDestination => ("forget", String::new()),
        Action::UndeleteSnapshot => ("undelete", String::new()),
        Action::RestoreDataset => ("restore", String::new()),
        Action::JoinKeys => ("join keys", String::new()),
        Action::KvResync | Action::EstimateSend | Action::EstimateDestroy => ("list", String::new()),
    };
    let to = transfer.to.as_ref().map(|to| format!(" to {}", place(&to.host, Some(&to.dataset)))).unwrap_or_default();
    let waiting = transfer.waits_for.as_ref().map(|what| format!("; waits for {what}")).unwrap_or_default();
    vec![
        format!("{action} {}{to}{waiting}", place(&transfer.host, transfer.dataset.as_ref())),
        bytes,
        transfer.total.map(report::bytes).unwrap_or_default(),
        transfer.rate().map(|rate| format!("{}/s", report::bytes(rate as u64))).unwrap_or_default(),
        transfer.left().map(|left| span(TimeDelta::from_std(left).unwrap_or(TimeDelta::MAX))).unwrap_or_default(),
    ]
}
