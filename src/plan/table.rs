//! Renders plans, comparisons and simulations as text for a terminal of any width.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::actions::{NoticeKind, Order, SendVerdict, Side, TakeVerdict};
use crate::cli::report;
use crate::fleet::planned::{After, Estimate, PlannedOrder, Totals};
use crate::model::{DatasetName, HostName, counted, in_utc};
use crate::plan::compare::{Comparison, Difference, SnapshotsDifference};
use crate::plan::document::{Document, Explain, ExplainedPrune, WithReason};
use crate::plan::simulate::{Ages, Remaining, Simulation};

/// How many snapshots of one dataset a comparison names without `--explain`.
const MAX_NAMED: usize = 5;
/// The largest number of datasets for which the days of a simulation have columns. If there are more, none has one.
const MAX_COLUMNS: usize = 8;

fn snapshots(count: usize) -> String {
    counted(count, "snapshot")
}

/// Renders a plan: its orders, its notices, and its verdicts if they are explained.
#[must_use]
pub fn plan(document: &Document, width: Option<usize>) -> String {
    let mut rows: Vec<Vec<String>> = document.orders.iter().map(order).collect();
    let mut headings = vec!["ACTION", "DATASET", "SNAPSHOT", "TO", "WHY"];
    if document.estimate.is_some() {
        headings.insert(4, "BYTES");
        for (row, planned) in rows.iter_mut().zip(&document.orders) {
            row.insert(4, size(planned.estimate.as_ref()));
        }
    }
    let mut text = if rows.is_empty() {
        "nothing to do\n".to_owned()
    } else {
        report::table_with_reasons(&headings, &rows, width)
    };
    if let (Some(totals), false) = (&document.estimate, rows.is_empty()) {
        text.push_str(&report::wrap(&total(totals), 0, width));
    }
    for (host, listed) in &document.listed {
        text.push_str(&report::wrap(&age(host, *listed, document.at), 0, width));
    }
    for notice in &document.notices {
        text.push_str(&report::wrap(&format!("note: {}", notice.why), 0, width));
        let hint = match (&notice.what.kind, &document.here) {
            (NoticeKind::HostNotListed, Some((here, unknown))) if unknown.contains(&notice.what.host) => {
                Some(format!("check its name in server.json: this host is called {here}"))
            }
            (kind, _) => kind.hint().map(str::to_owned),
        };
        if let Some(hint) = hint {
            text.push_str(&report::wrap(&format!("hint: {hint}"), 2, width));
        }
    }
    if let Some(explain) = &document.explain {
        text.push_str(&verdicts(explain, width));
    }
    text
}

/// How old a host's part of the catalog is.
fn age(host: &HostName, listed: Option<DateTime<Utc>>, at: DateTime<Utc>) -> String {
    let Some(listed) = listed else { return format!("{host}: the catalog has no listing of it") };
    let seconds = u64::try_from((at - listed).num_seconds()).unwrap_or(0);
    let old = humantime::format_duration(Duration::from_secs(seconds));
    format!("{host}: as listed at {}, {old} ago", in_utc(listed))
}

/// The size of an order, right-aligned in five columns.
fn size(estimate: Option<&Estimate>) -> String {
    match estimate.map(|e| e.bytes) {
        None => String::new(),
        Some(None) => format!("{:>5}", "?"),
        Some(Some(bytes)) => format!("{:>5}", report::bytes(bytes)),
    }
}

fn total(Totals { send, free, unknown, at }: &Totals) -> String {
    let except = match unknown {
        0 => String::new(),
        1 => "; the size of 1 order is unknown".to_owned(),
        unknown => format!("; the sizes of {unknown} orders are unknown"),
    };
    let when = at.map(|at| format!(", as estimated at {}", in_utc(at))).unwrap_or_default();
    format!("about {} to send, {} freed{when}{except}", report::bytes(*send), report::bytes(*free))
}

fn order(PlannedOrder { order, after, refused, estimate }: &PlannedOrder) -> Vec<String> {
    let after = match (after, order) {
        (None, _) => "",
        (Some(After::Take), Order::Send { .. }) => "after it is taken: ",
        (Some(After::Take), _) => "after the take: ",
        (Some(After::Send), Order::Send { .. }) => "after it has arrived: ",
        (Some(After::Send), _) => "after the transfer: ",
    };
    let after = match refused {
        Some(why) => format!("will fail, because {why}; {after}"),
        None => after.to_owned(),
    };
    match order {
        Order::Take { host, datasets, name, reason, .. } => {
            let first = datasets.first().map(ToString::to_string).unwrap_or_default();
            let more = if datasets.len() > 1 { format!(" and {} more", datasets.len() - 1) } else { String::new() };
            let place = format!("{host}:{first}{more}");
            vec!["take".into(), place, name.to_string(), String::new(), format!("{after}{reason}")]
        }
        Order::Send { host, dataset, snapshot, to, reason, .. } => vec![
            "send".into(),
            format!("{host}:{dataset}"),
            snapshot.to_string(),
            format!("{}:{}", to.host, to.dataset),
            format!("{after}{reason}{}", remark(estimate.as_ref())),
        ],
        Order::Destroy { host, dataset, snapshots: destroyed, reason, bytes, .. } => {
            let named = match destroyed.as_slice() {
                [(_, only)] => only.to_string(),
                many => snapshots(many.len()),
            };
            let frees = match estimate {
                Some(_) => remark(estimate.as_ref()),
                None if *bytes == 0 => String::new(),
                None => format!("; frees {} or more", report::bytes(*bytes)),
            };
            vec!["destroy".into(), format!("{host}:{dataset}"), named, String::new(), format!("{after}{reason}{frees}")]
        }
    }
}

/// Why the size is unknown, or what the agent would leave out.
fn remark(estimate: Option<&Estimate>) -> String {
    let remark = estimate.map(|e| e.remark.as_str()).filter(|remark| !remark.is_empty());
    remark.map(|remark| format!(" ({remark})")).unwrap_or_default()
}

/// The verdicts about one dataset.
#[derive(Default)]
struct Verdicts<'a> {
    takes: Vec<&'a WithReason<TakeVerdict>>,
    sends: Vec<&'a WithReason<SendVerdict>>,
    prunes: Vec<&'a ExplainedPrune>,
}

/// Every verdict, by dataset.
fn verdicts(explain: &Explain, width: Option<usize>) -> String {
    let mut datasets: BTreeMap<(&HostName, &DatasetName), Verdicts<'_>> = BTreeMap::new();
    for take in &explain.takes {
        datasets.entry((&take.what.subject.host, &take.what.subject.dataset)).or_default().takes.push(take);
    }
    for send in &explain.sends {
        datasets.entry((&send.what.subject.host, &send.what.subject.dataset)).or_default().sends.push(send);
    }
    for prune in &explain.prunes {
        let subject = &prune.verdict.subject;
        datasets.entry((&subject.host, &subject.dataset)).or_default().prunes.push(prune);
    }
    let mut text = String::new();
    for ((host, dataset), Verdicts { takes, sends, prunes }) in datasets {
        text.push_str(&format!("\n{host}:{dataset}\n"));
        for WithReason { what, why } in takes {
            let due = what.due.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
            let line = format!("{} takes {due}: {why}", what.subject.policy);
            text.push_str(&report::wrap(&line, 2, width));
        }
        for WithReason { what, why } in sends {
            let due = what.due.as_ref().map_or_else(|| "nothing".to_owned(), |due| due.snapshot.to_string());
            let line = format!("{} sends {due} to {}:{}: {why}", what.subject.policy, what.to.host, what.to.dataset);
            text.push_str(&report::wrap(&line, 2, width));
        }
        for prune in prunes {
            text.push_str(&prune_verdict(prune, width));
        }
    }
    text
}

/// How many snapshots of a policy are kept and destroyed, then a line for each snapshot.
fn prune_verdict(ExplainedPrune { verdict, snapshots: explained }: &ExplainedPrune, width: Option<usize>) -> String {
    let side = match verdict.side {
        Side::Source => "",
        Side::Destination => " received here",
    };
    let others = match verdict.others {
        0 => String::new(),
        1 => "; 1 snapshot with another name is ignored".to_owned(),
        others => format!("; {} with other names are ignored", snapshots(others)),
    };
    let (kept, destroyed) = (snapshots(verdict.kept), verdict.destroy.len());
    let line = format!("{} keeps {kept}{side} and destroys {destroyed}{others}", verdict.subject.policy);
    let mut text = report::wrap(&line, 2, width);
    let name = explained.iter().map(|e| e.what.name.as_str().len()).max().unwrap_or(0);
    for WithReason { what, why } in explained {
        let verdict = if what.keep { "keep" } else { "destroy" };
        let line = format!("    {verdict:7}  {:name$}  {why}", what.name.as_str());
        if width.is_none_or(|width| line.chars().count() <= width) {
            text.push_str(&line);
            text.push('\n');
        } else {
            text.push_str(&format!("    {verdict:7}  {}\n", what.name));
            text.push_str(&report::wrap(why, 13, width));
        }
    }
    text
}

/// Renders what another policy would do differently.
#[must_use]
pub fn comparison(comparison: &Comparison, explain: bool, width: Option<usize>) -> String {
    if comparison.differences.is_empty() {
        return "the other policy would do the same\n".to_owned();
    }
    let rows: Vec<Vec<String>> = comparison.differences.iter().flat_map(|d| difference_rows(d, explain)).collect();
    let mut text = report::table_with_reasons(&["OTHER POLICY", "DATASET", "SNAPSHOT", "WHY"], &rows, width);
    let count = |wanted: fn(&Difference) -> Option<&SnapshotsDifference>| -> usize {
        comparison.differences.iter().filter_map(wanted).map(|of| of.snapshots.len()).sum()
    };
    let destroys = count(|d| if let Difference::Destroys(of) = d { Some(of) } else { None });
    let keeps = count(|d| if let Difference::Keeps(of) = d { Some(of) } else { None });
    let total = format!(
        "the other policy would destroy {} that this one keeps, and keep {} that this one destroys",
        snapshots(destroys),
        snapshots(keeps)
    );
    text.push_str(&report::wrap(&total, 0, width));
    text
}

fn difference_rows(difference: &Difference, explain: bool) -> Vec<Vec<String>> {
    let (host, dataset) = difference.place();
    let place = format!("{host}:{dataset}");
    let row = |what: &str, name: String, why: String| vec![what.to_owned(), place.clone(), name, why];
    match difference {
        Difference::Takes(take) => {
            vec![row("takes", take.name.to_string(), format!("other: {}; this: {}", take.other, take.this))]
        }
        Difference::DoesNotTake(take) => {
            vec![row("does not take", take.name.to_string(), format!("other: {}; this: {}", take.other, take.this))]
        }
        Difference::Sends(send) | Difference::DoesNotSend(send) => {
            let sends = matches!(difference, Difference::Sends(_));
            let what = if sends { "sends" } else { "does not send" };
            let why = format!("to {}:{}; other: {}; this: {}", send.to.host, send.to.dataset, send.other, send.this);
            vec![row(what, send.snapshot.to_string(), why)]
        }
        Difference::Destroys(of) | Difference::Keeps(of) => {
            let destroys = matches!(difference, Difference::Destroys(_));
            let (what, keeper) = if destroys { ("destroys", "this") } else { ("keeps", "other") };
            let named = if explain || of.snapshots.len() <= MAX_NAMED { of.snapshots.len() } else { MAX_NAMED - 1 };
            let (named, rest) = of.snapshots.split_at(named);
            let mut rows: Vec<Vec<String>> =
                named.iter().map(|s| row(what, s.name.to_string(), format!("{keeper}: {}", s.kept_because))).collect();
            if let Some(last) = rest.last() {
                rows.push(row(what, format!("{} more", rest.len()), format!("up to {}", last.name)));
            }
            rows
        }
    }
}

/// Renders a simulation: a line for each day, then the snapshots that remain.
#[must_use]
pub fn simulation(simulation: &Simulation, width: Option<usize>) -> String {
    let mut text = days(simulation);
    text.push_str(&format!("\nremaining at {}:\n", in_utc(simulation.to)));
    let mut before = None;
    for remaining in &simulation.end {
        let dataset = (&remaining.host, &remaining.dataset);
        if before != Some(dataset) {
            text.push_str(&format!("\n{}:{}\n", remaining.host, remaining.dataset));
        }
        before = Some(dataset);
        text.push_str(&remaining_by_rule(remaining, width));
    }
    text
}

/// A line for each day. If there are not too many datasets, the line has a column for each, whose heading is a letter
/// that is explained below the table.
fn days(simulation: &Simulation) -> String {
    let mut datasets: Vec<&String> = simulation.days.iter().flat_map(|day| day.alive.keys()).collect();
    datasets.sort();
    datasets.dedup();
    let letters: Vec<String> = ('A'..='Z').take(datasets.len().min(MAX_COLUMNS)).map(String::from).collect();
    let columns = if datasets.len() <= MAX_COLUMNS { letters.len() } else { 0 };
    let mut headings = vec!["DAY", "TAKEN", "SENT", "DESTROYED", "ALIVE"];
    if columns > 1 {
        headings.extend(letters.iter().map(String::as_str));
    }
    let rows = simulation.days.iter().map(|day| {
        let alive: usize = day.alive.values().sum();
        let numbers = [day.takes, day.sends, day.destroys, alive];
        let mut row = vec![day.date.to_string()];
        row.extend(numbers.map(|n| n.to_string()));
        if columns > 1 {
            row.extend(datasets.iter().map(|dataset| day.alive.get(*dataset).copied().unwrap_or(0).to_string()));
        }
        row
    });
    let right: Vec<usize> = (1..headings.len()).collect();
    let mut text = report::table(&headings, &right, rows.collect());
    if columns > 1 {
        for (letter, dataset) in letters.iter().zip(&datasets) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{letter} = {dataset}");
        }
    }
    text
}

/// The remaining snapshots of one policy in one dataset, in one line.
pub(crate) fn remaining_line(Remaining { snapshots: count, from_before, oldest, in_last, .. }: &Remaining) -> String {
    let mut text = snapshots(*count);
    if let Some(oldest) = oldest {
        text.push_str(&format!(", the oldest from {}", in_utc(*oldest)));
    }
    if *from_before > 0 {
        text.push_str(&format!(", {from_before} of them present now"));
    }
    if *count > 0 {
        let Ages { day, week, month, year } = in_last;
        text.push_str(&format!("; in the last day {day}, week {week}, month {month}, year {year}"));
    }
    text
}

/// The snapshots of one policy that remain in one dataset, and how many of them each retention rule keeps.
fn remaining_by_rule(remaining: &Remaining, width: Option<usize>) -> String {
    const PROTECTED: &str = "no rule, but protected";
    let received = if remaining.side == Side::Destination { " received here" } else { "" };
    let Remaining { policy, rules, protected, .. } = remaining;
    let mut text = report::wrap(&format!("{policy}{received}: {}", remaining_line(remaining)), 2, width);
    if remaining.snapshots == 0 {
        return text;
    }
    let names = rules.iter().map(|result| result.rule.as_str());
    let name = names.chain((*protected > 0).then_some(PROTECTED)).map(str::len).max().unwrap_or(0);
    for result in rules {
        let since = result.oldest.map(|oldest| format!("  since {}", in_utc(oldest))).unwrap_or_default();
        text.push_str(&format!("    {:name$}  keeps {:>5}{since}\n", result.rule, result.keeps));
    }
    if *protected > 0 {
        text.push_str(&format!("    {PROTECTED:name$}  keeps {protected:>5}\n"));
    }
    text
}
