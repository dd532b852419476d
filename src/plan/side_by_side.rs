//! `plan --simulate` together with `--compare`: renders the simulations of two policies side by side.

use std::collections::{BTreeMap, BTreeSet};

use chrono::NaiveDate;
use serde::Serialize;

use crate::actions::Side;
use crate::cli::report;
use crate::model::in_utc;
use crate::plan::simulate::{Day, Remaining, Simulation};
use crate::plan::table::remaining_line;

/// Two simulations that begin with the same inventory.
#[derive(Debug, Serialize)]
pub struct Simulations {
    /// With the policy in force.
    pub this: Simulation,
    /// With the other policy.
    pub other: Simulation,
}

/// A line of `--format ndjson`: a day or a dataset, and the simulation to which it belongs.
#[derive(Serialize)]
struct Line<'a, T> {
    simulation: &'static str,
    #[serde(flatten)]
    value: &'a T,
}

/// What each of the two simulations leaves of one policy's snapshots; `None` if one of the policies does not cover
/// them.
type Pair<'a> = (Key<'a>, Option<&'a Remaining>, Option<&'a Remaining>);
/// Host, dataset, side and policy.
type Key<'a> = (&'a str, &'a str, Side, &'a str);

fn by_key(simulation: &Simulation) -> BTreeMap<Key<'_>, &Remaining> {
    let remaining = simulation.end.iter();
    remaining.map(|r| ((r.host.as_str(), r.dataset.as_str(), r.side, r.policy.as_str()), r)).collect()
}

impl Simulations {
    /// Whether the two simulations differ.
    #[must_use]
    pub fn differ(&self) -> bool {
        let counts = |days: &[Day]| days.iter().map(|d| (d.takes, d.sends, d.destroys)).collect::<Vec<_>>();
        counts(&self.this.days) != counts(&self.other.days) || !self.compare_ends().0.is_empty()
    }

    /// The pairs of dataset and policy that end differently in the two simulations, and the number of pairs that
    /// end the same.
    fn compare_ends(&self) -> (Vec<Pair<'_>>, usize) {
        let (this, other) = (by_key(&self.this), by_key(&self.other));
        let keys: BTreeSet<Key<'_>> = this.keys().chain(other.keys()).copied().collect();
        let all = keys.len();
        let end = |r: &Remaining| (r.snapshots, r.from_before, r.oldest);
        let both = keys.into_iter().map(|key| (key, this.get(&key).copied(), other.get(&key).copied()));
        let different: Vec<_> = both.filter(|(_, this, other)| this.map(end) != other.map(end)).collect();
        let same = all - different.len();
        (different, same)
    }
}

/// Renders one JSON object per line: for each simulation, its days and the snapshots that remain.
#[must_use]
pub fn lines(both: &Simulations) -> String {
    let of = |name: &'static str, simulation: &Simulation| {
        report::ndjson(simulation.days.iter().map(|value| Line { simulation: name, value }))
            + &report::ndjson(simulation.end.iter().map(|value| Line { simulation: name, value }))
    };
    of("this", &both.this) + &of("other", &both.other)
}

/// Renders a table with a line for each day, which has the numbers of both simulations. Below it are the remaining
/// snapshots of each pair of dataset and policy for which the simulations differ.
#[must_use]
pub fn table(both: &Simulations, width: Option<usize>) -> String {
    let (this, other) = (by_date(&both.this), by_date(&both.other));
    let dates: BTreeSet<NaiveDate> = this.keys().chain(other.keys()).copied().collect();
    let rows = dates.into_iter().map(|date| {
        let numbers = |day: Option<&&Day>| {
            day.map_or([const { String::new() }; 4], |day| {
                [day.takes, day.sends, day.destroys, day.alive.values().sum()].map(|n| n.to_string())
            })
        };
        let (this, other) = (numbers(this.get(&date)), numbers(other.get(&date)));
        let pairs = this.into_iter().zip(other).flat_map(|(this, other)| [this, other]);
        std::iter::once(date.to_string()).chain(pairs).collect()
    });
    let headings = ["DAY", "TAKEN", "other", "SENT", "other", "DESTROYED", "other", "ALIVE", "other"];
    let mut text = report::table(&headings, &[1, 2, 3, 4, 5, 6, 7, 8], rows.collect());
    let (different, same) = both.compare_ends();
    text.push_str(&format!("\nremaining at {}, with this policy and with the other:\n", in_utc(both.this.to)));
    for ((host, dataset, side, policy), this, other) in different {
        let received = if side == Side::Destination { ", received here" } else { "" };
        text.push_str(&format!("\n{host}:{dataset}, {policy}{received}\n"));
        for (name, remaining) in [("this", this), ("other", other)] {
            let line = remaining.map_or_else(|| "not covered".to_owned(), remaining_line);
            text.push_str(&report::wrap(&format!("{name}: {line}"), 2, width));
        }
    }
    match same {
        0 => {}
        1 => text.push_str("\n1 pair of dataset and policy ends the same with both policies\n"),
        same => text.push_str(&format!("\n{same} pairs of dataset and policy end the same with both policies\n")),
    }
    let total = |s: &Simulation, of: fn(&Remaining) -> usize| s.end.iter().map(of).sum::<usize>();
    let destroyed = |s: &Simulation| s.days.iter().map(|d| d.destroys).sum::<usize>();
    let summary = format!(
        "this policy destroys {} and leaves {}, {} of them present now; the other destroys {} and leaves {}, {} of them present \
         now",
        destroyed(&both.this),
        total(&both.this, |r| r.snapshots),
        total(&both.this, |r| r.from_before),
        destroyed(&both.other),
        total(&both.other, |r| r.snapshots),
        total(&both.other, |r| r.from_before),
    );
    text.push('\n');
    text.push_str(&report::wrap(&summary, 0, width));
    text
}

fn by_date(simulation: &Simulation) -> BTreeMap<NaiveDate, &Day> {
    simulation.days.iter().map(|day| (day.date, day)).collect()
}
