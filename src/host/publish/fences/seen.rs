//! Decides whether a fence is outdated, from the fences that a host has seen before.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::host::publish::fences::refusal::Refusal;
use crate::model::HostName;
use crate::wire::Fence;

/// How many catalogs of one director are remembered. A new one is made only when Consul has lost everything.
const MAX_CATALOGS: usize = 16;
/// How many directors are remembered.
const MAX_DIRECTORS: usize = 64;
/// The highest index that Consul can have. Consul raises its index by one for each write, so that even a million writes
/// per second would take 285 years to get there.
const MAX_INDEX: u64 = 1 << 53;

/// The fences that a host has seen, by the directors that gave them.
///
/// The director that leads has the highest index among all directors that share its catalog. So an index counts against
/// all directors of its catalog. A director that has changed to another catalog shows that the former one was replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SeenFences {
    /// The directors, in the order in which they were first seen.
    pub directors: Vec<DirectorFences>,
    /// The last order that was refused, if any was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedOrder>,
    /// Fences that a version without directors has saved.
    #[serde(skip_serializing)]
    pub(super) catalogs: Vec<(Uuid, u64)>,
}

/// The fences of one director.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectorFences {
    /// The director's host; `None` if its orders do not say.
    pub director: Option<HostName>,
    /// Its catalogs in the order in which they were first seen. The last one is its present catalog.
    pub catalogs: Vec<CatalogFence>,
}

/// The highest fence that a director gave for one catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogFence {
    /// The catalog.
    pub catalog: Uuid,
    /// The highest index.
    pub index: u64,
    /// When it was first seen; `None` if that was not recorded.
    #[serde(default)]
    pub at: Option<DateTime<Utc>>,
}

/// An order that was refused because of its fence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedOrder {
    /// When an order was first refused for this reason.
    pub at: DateTime<Utc>,
    /// The reason.
    pub reason: String,
}

/// How a fence compares with those that the host has seen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the highest one.
    Known,
    /// It is higher, and has to be remembered.
    New(SeenFences),
    /// The order may not come from the director that leads.
    Refused(Refusal),
}

impl DirectorFences {
    /// The director, in words.
    #[must_use]
    pub fn name(&self) -> String {
        name_of(self.director.as_ref())
    }
}

fn name_of(director: Option<&HostName>) -> String {
    director.map_or_else(|| "a director that gave no name".to_owned(), ToString::to_string)
}

impl SeenFences {
    /// Converts what an earlier version has saved, and leaves out what no Consul can have issued.
    pub(super) fn current(mut self) -> Self {
        if !self.catalogs.is_empty() {
            let convert = |(catalog, index)| CatalogFence { catalog, index, at: None };
            let catalogs = std::mem::take(&mut self.catalogs).into_iter().map(convert).collect();
            self.directors.push(DirectorFences { director: None, catalogs });
        }
        self.directors.iter_mut().for_each(|of| of.catalogs.retain(|seen| seen.index <= MAX_INDEX));
        self.directors.retain(|of| !of.catalogs.is_empty());
        self
    }

    /// Compares the fence of an order with those of the directors that count. A director counts if this host still takes
    /// orders from it.
    pub(super) fn judge(
        &self,
        fence: Option<&Fence>,
        counts: &dyn Fn(&HostName) -> bool,
        now: DateTime<Utc>,
    ) -> Verdict {
        let counting = || self.directors.iter().filter(|of| of.director.as_ref().is_none_or(counts));
        let Some(fence) = fence else {
            return match counting().next_back() {
                None => Verdict::Known,
                Some(of) => Verdict::Refused(Refusal::NoFence(of.name())),
            };
        };
        if fence.index > MAX_INDEX {
            let (index, director) = (fence.index, name_of(fence.director.as_ref()));
            return Verdict::Refused(Refusal::Impossible(format!(
                "the order's fence is {index}, which no Consul can have issued: something else gives orders as {director}"
            )));
        }
        for of in counting() {
            let position = of.catalogs.iter().position(|seen| seen.catalog == fence.catalog);
            if position.is_some_and(|position| position + 1 < of.catalogs.len()) {
                let reason = format!(
                    "{} now has another catalog than that of the order, or two directors have that name",
                    of.name()
                );
                return Verdict::Refused(Refusal::Outdated(reason));
            }
        }
        let rivals = counting().filter_map(|of| Some((of, of.catalogs.iter().find(|s| s.catalog == fence.catalog)?)));
        if let Some((of, highest)) = rivals.max_by_key(|(_, seen)| seen.index)
            && highest.index > fence.index
        {
            let reason = format!(
                "the order's fence is {}, but this host has seen {} from {}",
                fence.index,
                highest.index,
                of.name()
            );
            return Verdict::Refused(Refusal::Outdated(reason));
        }
        self.with(fence, now).map_or(Verdict::Known, Verdict::New)
    }

    /// Adds a fence that is not outdated; `None` if it is known.
    fn with(&self, fence: &Fence, now: DateTime<Utc>) -> Option<Self> {
        let mut seen = self.clone();
        let new = CatalogFence { catalog: fence.catalog, index: fence.index, at: Some(now) };
        let Some(of) = seen.directors.iter_mut().find(|of| of.director == fence.director) else {
            seen.directors.push(DirectorFences { director: fence.director.clone(), catalogs: vec![new] });
            let surplus = seen.directors.len().saturating_sub(MAX_DIRECTORS);
            seen.directors.drain(..surplus);
            return Some(seen);
        };
        match of.catalogs.last_mut() {
            Some(last) if last.catalog == new.catalog && last.index == new.index => return None,
            Some(last) if last.catalog == new.catalog => *last = new,
            _ => {
                of.catalogs.push(new);
                let surplus = of.catalogs.len().saturating_sub(MAX_CATALOGS);
                of.catalogs.drain(..surplus);
            }
        }
        Some(seen)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn fence(director: &str, catalog: u128, index: u64) -> Fence {
        Fence { catalog: Uuid::from_u128(catalog), index, director: director.parse().ok() }
    }

    /// What becomes of orders with these fences, one after the other: `ok`, or the kind of refusal.
    fn verdicts(counts: &dyn Fn(&HostName) -> bool, orders: &[Option<(&str, u128, u64)>]) -> String {
        let mut seen = SeenFences::default();
        let mut words = Vec::new();
        for order in orders {
            let fence = order.map(|(director, catalog, index)| fence(director, catalog, index));
            words.push(match seen.judge(fence.as_ref(), counts, DateTime::UNIX_EPOCH) {
                Verdict::Known => "ok",
                Verdict::New(now) => {
                    seen = now;
                    "ok"
                }
                Verdict::Refused(Refusal::NoFence(_)) => "none",
                Verdict::Refused(Refusal::Outdated(_)) => "old",
                Verdict::Refused(Refusal::Impossible(_)) => "impossible",
                Verdict::Refused(Refusal::State(_)) => "state",
            });
        }
        words.join(" ")
    }

    #[test]
    fn judge_refuses_orders_that_do_not_come_from_the_director_that_leads() {
        let all = |_: &HostName| true;
        for (what, orders, expected) in [
            ("an embedded director", &[None, None][..], "ok ok"),
            ("one director", &[Some(("one", 1, 5)), Some(("one", 1, 5)), Some(("one", 1, 9))], "ok ok ok"),
            (
                "a successor",
                &[Some(("one", 1, 5)), Some(("two", 1, 9)), Some(("one", 1, 5)), Some(("two", 1, 9))],
                "ok ok old ok",
            ),
            (
                "the leader is elected again",
                &[Some(("one", 1, 5)), Some(("two", 1, 9)), Some(("one", 1, 12))],
                "ok ok ok",
            ),
            ("no fence once one was seen", &[None, Some(("one", 1, 5)), None, Some(("one", 1, 5))], "ok ok none ok"),
            (
                "Consul has lost everything",
                &[Some(("one", 1, 900)), Some(("one", 2, 3)), Some(("two", 1, 901)), Some(("two", 2, 4))],
                "ok ok old ok",
            ),
            (
                "two directors of one name with catalogs of their own",
                &[Some(("one", 1, 900)), Some(("one", 2, 3)), Some(("one", 1, 901)), Some(("one", 2, 4))],
                "ok ok old ok",
            ),
            (
                "two fleets with catalogs of their own",
                &[Some(("one", 1, 900)), Some(("other", 2, 3)), Some(("one", 1, 900)), Some(("other", 2, 3))],
                "ok ok ok ok",
            ),
            (
                "a fence from the future",
                &[Some(("one", 1, 5)), Some(("two", 1, 1 << 63)), Some(("one", 1, 5)), Some(("one", 1, u64::MAX))],
                "ok impossible ok impossible",
            ),
            ("directors without a name", &[Some(("", 1, 5)), Some(("", 2, 1)), Some(("", 1, 6))], "ok ok old"),
        ] {
            assert_eq!(verdicts(&all, orders), expected, "{what}");
        }
    }

    #[test]
    fn judge_ignores_fences_of_a_director_that_was_removed() {
        let orders = [Some(("taken", 1, 1 << 50)), Some(("one", 1, 7)), None];
        assert_eq!(verdicts(&|_| true, &orders), "ok old none");
        let only_one = |host: &HostName| host.as_str() == "one";
        assert_eq!(verdicts(&only_one, &orders), "ok ok none");
    }

    #[test]
    fn fences_of_an_earlier_version_still_count() {
        let id = Uuid::from_u128(1);
        let text = format!(r#"{{"catalogs":[["{}",3],["{id}",900],["{id}",{}]]}}"#, Uuid::from_u128(7), u64::MAX);
        let seen = serde_json::from_str::<SeenFences>(&text).unwrap().current();
        let verdict = seen.judge(Some(&fence("one", 1, 899)), &|_| true, DateTime::UNIX_EPOCH);
        assert!(matches!(verdict, Verdict::Refused(Refusal::Outdated(_))), "{verdict:?}");
        let verdict = seen.judge(Some(&fence("one", 1, 901)), &|_| true, DateTime::UNIX_EPOCH);
        let Verdict::New(now) = verdict else { panic!("{verdict:?}") };
        let again: SeenFences = serde_json::from_slice(&serde_json::to_vec(&now).unwrap()).unwrap();
        assert_eq!(again.current(), now);
    }
}
