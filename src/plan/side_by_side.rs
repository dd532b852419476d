//! `plan --simulate` together with `--compare`: two policies played forward from the same world, side by side.

use std::collections::{BTreeMap, BTreeSet};

use chrono::NaiveDate;
use serde::Serialize;

use crate::actions::Side;
use crate::cli::report;
use crate::plan::simulate::{Day, Place, Simulation};
use crate::plan::table::{left, time};

/// Both simulations.
#[derive(Debug, Serialize)]
pub struct Simulations {
    /// By the policy in force.
    pub this: Simulation,
    /// By the other one.
    pub other: Simulation,
}

/// A line of `--format ndjson`: whose it is, and what is told.
#[derive(Serialize)]
struct Line<'a, T> {
    simulation: &'static str,
    #[serde(flatten)]
    told: &'a T,
}

/// A place as each of the two leaves it; `None` where one does not decide about it.
type Ends<'a> = (Key<'a>, Option<&'a Place>, Option<&'a Place>);
type Key<'a> = (&'a str, &'a str, Side, &'a str);

fn by_place(simulation: &Simulation) -> BTreeMap<Key<'_>, &Place> {
    let places = simulation.end.iter();
    places.map(|p| ((p.host.as_str(), p.dataset.as_str(), p.side, p.policy.as_str()), p)).collect()
}

impl Simulations {
    /// Whether it makes any difference which of the two is in force.
    #[must_use]
    pub fn differ(&self) -> bool {
        let counts = |days: &[Day]| days.iter().map(|d| (d.takes, d.sends, d.destroys)).collect::<Vec<_>>();
        counts(&self.this.days) != counts(&self.other.days) || !self.different_places().0.is_empty()
    }

    /// The places that end otherwise, and how many end alike.
    fn different_places(&self) -> (Vec<Ends<'_>>, usize) {
        let (this, other) = (by_place(&self.this), by_place(&self.other));
        let keys: BTreeSet<Key<'_>> = this.keys().chain(other.keys()).copied().collect();
        let all = keys.len();
        let ends = |p: &Place| (p.snapshots, p.from_before, p.oldest);
        let both = keys.into_iter().map(|key| (key, this.get(&key).copied(), other.get(&key).copied()));
        let different: Vec<_> = both.filter(|(_, this, other)| this.map(ends) != other.map(ends)).collect();
        let alike = all - different.len();
        (different, alike)
    }
}

/// As JSON, a line for each day and place of each policy.
#[must_use]
pub fn lines(both: &Simulations) -> String {
    let of = |simulation: &'static str, told: &Simulation| {
        report::ndjson(told.days.iter().map(|told| Line { simulation, told }))
            + &report::ndjson(told.end.iter().map(|told| Line { simulation, told }))
    };
    of("this", &both.this) + &of("other", &both.other)
}

/// For people: a line a day with the numbers of both, then the places that end otherwise.
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
    let (different, alike) = both.different_places();
    text.push_str(&format!("\nleft at {}, by this policy and by the other:\n", time(both.this.to)));
    for ((host, dataset, side, policy), this, other) in different {
        let received = if side == Side::Destination { ", received here" } else { "" };
        text.push_str(&format!("\n{host}:{dataset}, {policy}{received}\n"));
        for (whose, place) in [("this", this), ("other", other)] {
            let told = place.map_or_else(|| "nothing of it is decided about".to_owned(), left);
            text.push_str(&report::wrap(&format!("{whose}: {told}"), 2, width));
        }
    }
    match alike {
        0 => {}
        1 => text.push_str("\n1 place is left alike by both\n"),
        alike => text.push_str(&format!("\n{alike} places are left alike by both\n")),
    }
    let total = |s: &Simulation, of: fn(&Place) -> usize| s.end.iter().map(of).sum::<usize>();
    let destroyed = |s: &Simulation| s.days.iter().map(|d| d.destroys).sum::<usize>();
    let summary = format!(
        "this policy destroys {} and leaves {}, {} of them there now; the other destroys {} and leaves {}, {} of them there now",
        destroyed(&both.this),
        total(&both.this, |p| p.snapshots),
        total(&both.this, |p| p.from_before),
        destroyed(&both.other),
        total(&both.other, |p| p.snapshots),
        total(&both.other, |p| p.from_before),
    );
    text.push('\n');
    text.push_str(&report::wrap(&summary, 0, width));
    text
}

fn by_date(simulation: &Simulation) -> BTreeMap<NaiveDate, &Day> {
    simulation.days.iter().map(|day| (day.date, day)).collect()
}
