//! The key `bandwidth` of `local.json`: how fast a host may send, and when.

use std::collections::BTreeSet;

use chrono::Weekday;

use crate::config::json::{Node, Object};
use crate::config::values::hours;
use crate::model::HostName;
use crate::policy::{Bandwidth, Limit, Zone};

const DAYS: &str = "a list of days, as in [\"mon\", \"tue\", \"wed\", \"thu\", \"fri\"]";

/// Reads the limits, whose hours and days are in `timezone`. Returns `None` if a problem was reported.
pub(super) fn bandwidth(object: &mut Object<'_>, timezone: Option<Zone>) -> Option<Bandwidth> {
    let limits = object.get("bandwidth");
    let Some(node) = limits else { return Some(Bandwidth::default()) };
    let items = node.list("a list of limits, as in [{ \"rate\": \"20MB/s\", \"hours\": [\"08:00\", \"18:00\"] }]")?;
    if items.is_empty() {
        node.problem("the list is empty; hint: add a limit, or remove \"bandwidth\"");
    }
    let limits: Vec<Option<Limit>> = items.iter().map(limit).collect();
    Some(Bandwidth { timezone: timezone?, limits: limits.into_iter().collect::<Option<_>>()? })
}

fn limit(node: &Node<'_>) -> Option<Limit> {
    let mut object = node.object("an object with \"rate\"")?;
    let rate = object.require("rate", "the rate of the limit, as in \"20MB/s\"");
    let rate = rate.and_then(|node| node.parse("a rate, as in \"20MB/s\""));
    let destination = object.get("destination").map(|node| node.parse::<HostName>("a host name"));
    let hours = object.get("hours").map(|node| hours(&node));
    let days = object.get("days").map_or(Some(Vec::new()), |node| days(&node));
    object.finish();
    // An invalid value must not be treated as a missing one.
    let (destination, hours) =
        (destination.map_or(Some(None), |d| d.map(Some)), hours.map_or(Some(None), |h| h.map(Some)));
    Some(Limit { rate: rate?, destination: destination?, hours: hours?, days: days? })
}

fn days(node: &Node<'_>) -> Option<Vec<Weekday>> {
    let items = node.list(DAYS)?;
    if items.is_empty() {
        node.problem("the list is empty; hint: name a day, or remove \"days\" for all days");
    }
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for item in items {
        let text = item.text("a day, as in \"mon\"")?;
        // chrono also accepts long names and any case, but one spelling is enough.
        let short = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"].contains(&&*text);
        let Some(day) = text.parse::<Weekday>().ok().filter(|_| short) else {
            item.unexpected("one of \"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sat\" and \"sun\"");
            return None;
        };
        if !seen.insert(day.num_days_from_monday()) {
            item.problem(format!("duplicate value {}; hint: remove one of them", item.raw()));
        }
        all.push(day);
    }
    Some(all)
}
