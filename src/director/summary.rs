//! What a pass did, told.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::actions::Notice;
use crate::catalog::Outcome;
use crate::cli::report;
use crate::cli::report::Format;
use crate::director::pass::Report;
use crate::model::{Action, HostName, ResponseStatus};

/// Something that went wrong in a pass.
pub enum Failure<'a> {
    /// A host could not be looked at.
    Unseen(&'a HostName, &'a str),
    /// The policy asks for something that no order can bring about.
    Policy(&'a Notice),
    /// An order failed.
    Order(&'a Outcome),
    /// The pass did not come to its end.
    BrokenOff(&'a str),
}

impl Failure<'_> {
    /// What it is about: the same from pass to pass.
    #[must_use]
    pub fn about(&self) -> String {
        match self {
            Self::Unseen(host, _) => host.to_string(),
            Self::Policy(notice) => {
                let dataset = notice.dataset.as_ref().map(ToString::to_string).unwrap_or_default();
                format!("entry {} of the policy, {}:{dataset}", notice.entry, notice.host)
            }
            Self::Order(outcome) => subject(outcome),
            Self::BrokenOff(_) => "the pass".to_owned(),
        }
    }
}

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unseen(host, reason) => write!(f, "{host} cannot be looked at: {reason}"),
            Self::Policy(notice) => {
                write!(f, "{notice}")?;
                notice.kind.hint().map_or(Ok(()), |hint| write!(f, "; {hint}"))
            }
            Self::Order(outcome) => write!(f, "{} failed: {}", subject(outcome), message(outcome)),
            Self::BrokenOff(reason) => write!(f, "the pass is not complete: {reason}"),
        }
    }
}

/// Everything that went wrong.
pub fn failures(report: &Report) -> impl Iterator<Item = Failure<'_>> {
    let unseen = report.unseen.iter().map(|(host, reason)| Failure::Unseen(host, reason));
    let policy = report.notices.iter().filter(|n| n.kind.is_failure()).map(Failure::Policy);
    let orders = report.outcomes.iter().filter(|o| !o.success).map(Failure::Order);
    let broken_off = report.broken_off.iter().map(|reason| Failure::BrokenOff(reason));
    unseen.chain(policy).chain(orders).chain(broken_off)
}

fn subject(outcome: &Outcome) -> String {
    let dataset = outcome.dataset.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut text = format!("{} of {}:{dataset}", verb(outcome.action), outcome.host);
    if let Some(to) = &outcome.to {
        text = format!("{text} to {}:{}", to.host, to.dataset);
    }
    text
}

fn message(outcome: &Outcome) -> &str {
    outcome.error.as_deref().unwrap_or("it is not said why")
}

fn snapshot(outcome: &Outcome) -> String {
    outcome.snapshot.as_ref().map_or_else(|| "several".to_owned(), ToString::to_string)
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::TakeSnapshot => "take",
        Action::SendSnapshot => "send",
        Action::DestroySnapshot => "destroy",
        Action::KvResync => "resync",
        Action::EstimateSend | Action::EstimateDestroy => "estimate",
    }
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

/// One outcome in a line, for the log.
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

/// The pass in a line, for a service manager's status.
#[must_use]
pub fn in_a_line(report: &Report) -> String {
    let (orders, at) = (counted(report.outcomes.len(), "order"), report.at.format("%H:%M:%S UTC"));
    match failures(report).count() {
        0 => format!("the pass of {at}: {orders}, all well"),
        failed => format!("the pass of {at}: {orders}, {}", counted(failed, "failure")),
    }
}

/// The whole pass.
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mended: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    broken_off: Option<&'a str>,
}

impl<'a> From<&'a Report> for Document<'a> {
    fn from(report: &'a Report) -> Self {
        Self {
            at: report.at,
            millis: report.took.as_millis(),
            unseen: &report.unseen,
            notices: report.notices.iter().map(ToString::to_string).collect(),
            outcomes: &report.outcomes,
            mended: report.mended.iter().map(|(host, line)| format!("{host}: {line}")).collect(),
            broken_off: report.broken_off.as_deref(),
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
    }
    let failed = failures(report).count();
    let took = report.took.as_secs_f64();
    let (orders, failures) = (counted(report.outcomes.len(), "order"), counted(failed, "failure"));
    text.push_str(&match (report.outcomes.len(), failed) {
        (0, 0) => format!("nothing to do; looked at everything in {took:.1}s\n"),
        (_, 0) => format!("{orders} in {took:.1}s, all well\n"),
        (0, _) => format!("no orders; {failures}; looked at everything in {took:.1}s\n"),
        (_, _) => format!("{orders} in {took:.1}s, {failures}\n"),
    });
    text
}

fn counted(n: usize, of: &str) -> String {
    format!("{n} {of}{}", if n == 1 { "" } else { "s" })
}
