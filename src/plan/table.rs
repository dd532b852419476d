//! Plans, comparisons and simulations as people read them, on a terminal of any width.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};

use crate::actions::{Order, SendVerdict, Side, TakeVerdict};
use crate::cli::report;
use crate::fleet::planned::{After, Estimate, PlannedOrder, Totals};
use crate::model::{DatasetName, HostName};
use crate::plan::compare::{Comparison, Difference, Snapshots};
use crate::plan::document::{Document, Explain, Prune, Told};
use crate::plan::simulate::{Ages, Place, Simulation};

/// How many snapshots of one dataset a comparison names without `--explain`.
const NAMED: usize = 5;
/// How many places a simulation's days have columns for.
const MOST_COLUMNS: usize = 8;

/// A moment as it is told, in UTC, to the second.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn snapshots(count: usize) -> String {
    format!("{count} snapshot{}", if count == 1 { "" } else { "s" })
}

/// A plan: its orders, its notices, and the verdicts if they are in it.
#[must_use]
pub fn plan(document: &Document, width: Option<usize>) -> String {
    let mut rows: Vec<Vec<String>> = document.orders.iter().map(order).collect();
    let mut headings = vec!["ACTION", "DATASET", "SNAPSHOT", "TO", "WHY"];
    if document.estimate.is_some() {
        headings.insert(4, "BYTES");
        for (row, foreseen) in rows.iter_mut().zip(&document.orders) {
            row.insert(4, estimated(foreseen.estimate.as_ref()));
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
    for notice in &document.notices {
        text.push_str(&report::wrap(&format!("note: {}", notice.why), 0, width));
    }
    if let Some(explain) = &document.explain {
        text.push_str(&verdicts(explain, width));
    }
    text
}

/// Bytes in five places, so that they stand below each other.
fn estimated(estimate: Option<&Estimate>) -> String {
    match estimate.map(|e| e.bytes) {
        None => String::new(),
        Some(None) => format!("{:>5}", "?"),
        Some(Some(bytes)) => format!("{:>5}", report::bytes(bytes)),
    }
}

fn total(Totals { send, free, unknown, at }: &Totals) -> String {
    let besides = match unknown {
        0 => String::new(),
        1 => "; of 1 order nobody can tell".to_owned(),
        unknown => format!("; of {unknown} orders nobody can tell"),
    };
    let when = at.map(|at| format!(", as estimated at {}", time(at))).unwrap_or_default();
    format!("about {} to send, {} freed{besides}{when}", report::bytes(*send), report::bytes(*free))
}

fn order(PlannedOrder { order, after, estimate }: &PlannedOrder) -> Vec<String> {
    let waits = match (after, order) {
        (None, _) => "",
        (Some(After::Take), Order::Send { .. }) => "after it is taken: ",
        (Some(After::Take), _) => "after the take: ",
        (Some(After::Send), Order::Send { .. }) => "after it has come: ",
        (Some(After::Send), _) => "after the transfer: ",
    };
    match order {
        Order::Take { host, datasets, name, reason, .. } => {
            let first = datasets.first().map(ToString::to_string).unwrap_or_default();
            let more = if datasets.len() > 1 { format!(" and {} more", datasets.len() - 1) } else { String::new() };
            let place = format!("{host}:{first}{more}");
            vec!["take".into(), place, name.to_string(), String::new(), format!("{waits}{reason}")]
        }
        Order::Send { host, dataset, snapshot, to, reason, .. } => vec![
            "send".into(),
            format!("{host}:{dataset}"),
            snapshot.to_string(),
            format!("{}:{}", to.host, to.dataset),
            format!("{waits}{reason}{}", remark(estimate.as_ref())),
        ],
        Order::Destroy { host, dataset, snapshots: going, reason, bytes, .. } => {
            let named = match going.as_slice() {
                [(_, only)] => only.to_string(),
                many => snapshots(many.len()),
            };
            let frees = match estimate {
                Some(_) => remark(estimate.as_ref()),
                None if *bytes == 0 => String::new(),
                None => format!("; frees {} or more", report::bytes(*bytes)),
            };
            vec!["destroy".into(), format!("{host}:{dataset}"), named, String::new(), format!("{waits}{reason}{frees}")]
        }
    }
}

/// Why an estimate is none, or what the agent would leave out.
fn remark(estimate: Option<&Estimate>) -> String {
    let remark = estimate.map(|e| e.remark.as_str()).filter(|remark| !remark.is_empty());
    remark.map(|remark| format!(" ({remark})")).unwrap_or_default()
}

#[derive(Default)]
struct Verdicts<'a> {
    takes: Vec<&'a Told<TakeVerdict>>,
    sends: Vec<&'a Told<SendVerdict>>,
    prunes: Vec<&'a Prune>,
}

/// Every verdict, by dataset.
fn verdicts(explain: &Explain, width: Option<usize>) -> String {
    let mut places: BTreeMap<(&HostName, &DatasetName), Verdicts<'_>> = BTreeMap::new();
    for take in &explain.takes {
        places.entry((&take.what.subject.host, &take.what.subject.dataset)).or_default().takes.push(take);
    }
    for send in &explain.sends {
        places.entry((&send.what.subject.host, &send.what.subject.dataset)).or_default().sends.push(send);
    }
    for prune in &explain.prunes {
        let subject = &prune.verdict.subject;
        places.entry((&subject.host, &subject.dataset)).or_default().prunes.push(prune);
    }
    let mut text = String::new();
    for ((host, dataset), Verdicts { takes, sends, prunes }) in places {
        text.push_str(&format!("\n{host}:{dataset}\n"));
        for Told { what, why } in takes {
            let due = what.due.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
            let line = format!("{} takes {due}: {why}", what.subject.policy);
            text.push_str(&report::wrap(&line, 2, width));
        }
        for Told { what, why } in sends {
            let due = what.due.as_ref().map_or_else(|| "nothing".to_owned(), |due| due.snapshot.to_string());
            let line = format!("{} sends {due} to {}:{}: {why}", what.subject.policy, what.to.host, what.to.dataset);
            text.push_str(&report::wrap(&line, 2, width));
        }
        for Prune { verdict, snapshots: explained } in prunes {
            let side = match verdict.side {
                Side::Source => "",
                Side::Destination => " received here",
            };
            let others = match verdict.others {
                0 => String::new(),
                1 => "; 1 snapshot with another name is none of its".to_owned(),
                others => format!("; {} with other names are none of its", snapshots(others)),
            };
            let (kept, goes) = (snapshots(verdict.kept), verdict.destroy.len());
            let line = format!("{} keeps {kept}{side} and destroys {goes}{others}", verdict.subject.policy);
            text.push_str(&report::wrap(&line, 2, width));
            let name = explained.iter().map(|e| e.what.name.as_str().len()).max().unwrap_or(0);
            for Told { what, why } in explained {
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
        }
    }
    text
}

/// What another policy would do otherwise.
#[must_use]
pub fn comparison(comparison: &Comparison, explain: bool, width: Option<usize>) -> String {
    if comparison.differences.is_empty() {
        return "the other policy would do the same\n".to_owned();
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    for difference in &comparison.differences {
        let (host, dataset) = difference.place();
        let place = format!("{host}:{dataset}");
        let mut row = |what: &str, name: String, why: String| rows.push(vec![what.into(), place.clone(), name, why]);
        match difference {
            Difference::Takes(take) => {
                row("takes", take.name.to_string(), format!("there: {}; here: {}", take.other, take.this));
            }
            Difference::DoesNotTake(take) => {
                row("does not take", take.name.to_string(), format!("there: {}; here: {}", take.other, take.this));
            }
            Difference::Sends(send) | Difference::DoesNotSend(send) => {
                let does = matches!(difference, Difference::Sends(_));
                let what = if does { "sends" } else { "does not send" };
                let why =
                    format!("to {}:{}; there: {}; here: {}", send.to.host, send.to.dataset, send.other, send.this);
                row(what, send.snapshot.to_string(), why);
            }
            Difference::Destroys(of) | Difference::Keeps(of) => {
                let destroys = matches!(difference, Difference::Destroys(_));
                let (what, keeper) = if destroys { ("destroys", "here") } else { ("keeps", "there") };
                let shown = if explain || of.snapshots.len() <= NAMED { of.snapshots.len() } else { NAMED - 1 };
                for snapshot in &of.snapshots[..shown] {
                    let why = format!("{keeper}: {}", snapshot.kept_because);
                    row(what, snapshot.name.to_string(), why);
                }
                if let (rest @ 1.., Some(last)) = (of.snapshots.len() - shown, of.snapshots.last()) {
                    row(what, format!("{rest} more"), format!("up to {}", last.name));
                }
            }
        }
    }
    let mut text = report::table_with_reasons(&["OTHER POLICY", "DATASET", "SNAPSHOT", "WHY"], &rows, width);
    let count = |wanted: fn(&Difference) -> Option<&Snapshots>| -> usize {
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

/// How things would be over time: a line a day, then what is left.
#[must_use]
pub fn simulation(simulation: &Simulation, width: Option<usize>) -> String {
    let mut places: Vec<&String> = simulation.days.iter().flat_map(|day| day.alive.keys()).collect();
    places.sort();
    places.dedup();
    let letters: Vec<String> = ('A'..='Z').take(places.len().min(MOST_COLUMNS)).map(String::from).collect();
    let columns = if places.len() <= MOST_COLUMNS { letters.len() } else { 0 };
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
            row.extend(places.iter().map(|place| day.alive.get(*place).copied().unwrap_or(0).to_string()));
        }
        row
    });
    let right: Vec<usize> = (1..headings.len()).collect();
    let mut text = report::table(&headings, &right, rows.collect());
    if columns > 1 {
        for (letter, place) in letters.iter().zip(&places) {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{letter} = {place}");
        }
    }
    text.push_str(&format!("\nleft at {}:\n", time(simulation.to)));
    let mut before = None;
    for place in &simulation.end {
        let here = (&place.host, &place.dataset);
        if before != Some(here) {
            text.push_str(&format!("\n{}:{}\n", place.host, place.dataset));
        }
        before = Some(here);
        text.push_str(&crate::plan::table::place(place, width));
    }
    text
}

/// What is left of one policy in one place, in a line.
pub(crate) fn left(Place { snapshots: count, from_before, oldest, in_last, .. }: &Place) -> String {
    let mut text = snapshots(*count);
    if let Some(oldest) = oldest {
        text.push_str(&format!(", the oldest of {}", time(*oldest)));
    }
    if *from_before > 0 {
        text.push_str(&format!(", {from_before} of them there now"));
    }
    if *count > 0 {
        let Ages { day, week, month, year } = in_last;
        text.push_str(&format!("; in the last day {day}, week {week}, month {month}, year {year}"));
    }
    text
}

fn place(place: &Place, width: Option<usize>) -> String {
    const PROTECTED: &str = "no rule, but protected";
    let received = if place.side == Side::Destination { " received here" } else { "" };
    let Place { policy, rules, protected, .. } = place;
    let mut text = report::wrap(&format!("{policy}{received}: {}", left(place)), 2, width);
    if place.snapshots == 0 {
        return text;
    }
    let names = rules.iter().map(|kept| kept.rule.as_str());
    let name = names.chain((*protected > 0).then_some(PROTECTED)).map(str::len).max().unwrap_or(0);
    for kept in rules {
        let since = kept.oldest.map(|oldest| format!("  since {}", time(oldest))).unwrap_or_default();
        text.push_str(&format!("    {:name$}  keeps {:>5}{since}\n", kept.rule, kept.keeps));
    }
    if *protected > 0 {
        text.push_str(&format!("    {PROTECTED:name$}  keeps {protected:>5}\n"));
    }
    text
}
