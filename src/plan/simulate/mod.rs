//! `plan --simulate`: the policy played forward, with every order succeeding, every host up and something written
//! before every slot.
//!
//! Pure: what is decided is decided by the engine, and what comes of it is predicted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

use chrono::{DateTime, DurationRound, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc};
use serde::Serialize;

use crate::actions::{Order, Plan, PruneReason, PruneVerdict, Side, TakeReason, TakeVerdict};
use crate::model::{DatasetName, Guid, HostName, Inventory};
use crate::plan::foresee::Future;
use crate::policy::{DatasetPolicy, Policy, SyncPolicy};

/// How things would be over time.
#[derive(Debug, Serialize)]
pub struct Simulation {
    /// The moment that it begins with.
    pub from: DateTime<Utc>,
    /// The moment that it ends with.
    pub to: DateTime<Utc>,
    /// The zone of the days.
    pub timezone: String,
    /// Every day, the first and the last one in part.
    pub days: Vec<Day>,
    /// What is left at the end, by place and policy.
    pub end: Vec<Place>,
}

/// What happens in a day.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Day {
    /// The day in the policy's zone.
    pub date: NaiveDate,
    /// Snapshots taken.
    pub takes: usize,
    /// Transfers.
    pub sends: usize,
    /// Snapshots destroyed.
    pub destroys: usize,
    /// The policies' snapshots at the end of the day, by `host:dataset`.
    pub alive: BTreeMap<String, usize>,
}

/// What is left of one policy's snapshots in one dataset.
#[derive(Debug, Serialize)]
pub struct Place {
    /// The host.
    pub host: HostName,
    /// The dataset there.
    pub dataset: DatasetName,
    /// Whether it is the policy's source or a destination.
    pub side: Side,
    /// The policy's name.
    pub policy: String,
    /// Its snapshots, those about to be destroyed left out.
    pub snapshots: usize,
    /// How many of them were there when it began.
    pub from_before: usize,
    /// When the oldest of them was taken.
    pub oldest: Option<DateTime<Utc>>,
    /// How many of them are how old.
    pub in_last: Ages,
    /// What each retention rule keeps.
    pub rules: Vec<Kept>,
    /// How many stay though no rule keeps them: the newest, what is held, what is not sent yet, ...
    pub protected: usize,
}

/// How many snapshots are how old at the most; each counts those before it too.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ages {
    /// 24 hours.
    pub day: usize,
    /// 7 days.
    pub week: usize,
    /// 31 days.
    pub month: usize,
    /// 366 days.
    pub year: usize,
}

/// What one retention rule keeps.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The rule.
    pub rule: String,
    /// How many snapshots it keeps.
    pub keeps: usize,
    /// When the oldest of them was taken.
    pub oldest: Option<DateTime<Utc>>,
}

/// Which snapshots were in each place when it began.
type Before = HashMap<(HostName, DatasetName), HashSet<Guid>>;

/// Plays a policy forward. `counts` says which places are told of.
pub fn simulate(
    policy: &Policy,
    inventory: Inventory,
    from: DateTime<Utc>,
    length: TimeDelta,
    counts: impl Fn(&HostName, &DatasetName) -> bool,
) -> Simulation {
    let to = from.checked_add_signed(length).unwrap_or(from);
    let before: Before = snapshots_of(&inventory, &counts);
    let mut play = Play::new(policy, inventory, from, &counts);
    let mut days = Vec::new();
    let all: Vec<usize> = (0..policy.datasets.len()).collect();
    let (mut now, mut entries, mut midnight) = (from, all.clone(), next_midnight(policy, from));
    loop {
        if now == midnight {
            // What the day's last slots left belongs to it.
            let end = now - TimeDelta::seconds(1);
            play.step(&all, end);
            play.settle(end);
            days.push(std::mem::replace(&mut play.day, Day::new(local_date(policy, now))));
            midnight = next_midnight(policy, now);
        }
        play.step(&entries, now);
        let hour = now.duration_trunc(TimeDelta::hours(1)).unwrap_or(now) + TimeDelta::hours(1);
        let full = hour.min(midnight);
        let next = play.slots.peek().map_or(full, |Reverse((slot, _))| full.min(*slot));
        if next > to {
            break;
        }
        now = next;
        entries = play.due(now);
        if now == full {
            entries.clone_from(&all);
        }
    }
    play.step(&all, to);
    play.settle(to);
    let plan = play.future.decide(to);
    days.push(play.day);
    let told = plan.prunes.iter().filter(|p| counts(&p.subject.host, &p.subject.dataset));
    let mut end: Vec<Place> = told.map(|prune| place(prune, &play.future.inventory, &before, to)).collect();
    end.sort_by(|a, b| (&a.host, &a.dataset, a.side).cmp(&(&b.host, &b.dataset, b.side)));
    Simulation { from, to, timezone: policy.timezone.to_string(), days, end }
}

/// A dataset and whose snapshots of it are meant: the entry's index, and the policy's in it.
type Taker = (usize, usize, HostName, DatasetName);

/// The world between two steps.
///
/// A step is at each full hour, for everything, and at each slot of a sync policy, for the entry that has it. What was
/// taken at the slots in between is added first; it is sent and pruned at the step, where only the newest of it would
/// be left to decide about anyway. That makes a schedule of every five minutes as cheap as one of every hour.
struct Play<'p, C> {
    policy: &'p Policy,
    future: Future<'p>,
    counts: C,
    /// The next slot of each entry's sync policy.
    slots: BinaryHeap<Reverse<(DateTime<Utc>, usize)>>,
    /// When each dataset's next snapshot is due.
    takers: BTreeMap<Taker, DateTime<Utc>>,
    /// How many snapshots of a dataset were taken since it was last decided about.
    taken: HashMap<Taker, usize>,
    day: Day,
}

impl<'p, C: Fn(&HostName, &DatasetName) -> bool> Play<'p, C> {
    fn new(policy: &'p Policy, inventory: Inventory, from: DateTime<Utc>, counts: C) -> Self {
        let mut play = Self {
            policy,
            future: Future::new(policy, inventory, from),
            counts,
            slots: BinaryHeap::new(),
            takers: BTreeMap::new(),
            taken: HashMap::new(),
            day: Day::new(local_date(policy, from)),
        };
        (0..policy.datasets.len()).for_each(|entry| play.queue(entry, from));
        play
    }

    fn queue(&mut self, entry: usize, after: DateTime<Utc>) {
        if let Some(next) = self.policy.datasets.get(entry).and_then(|e| next_sync(self.policy, e, after)) {
            self.slots.push(Reverse((next, entry)));
        }
    }

    /// The entries whose sync policies have a slot now.
    fn due(&mut self, now: DateTime<Utc>) -> Vec<usize> {
        let mut due = Vec::new();
        while self.slots.peek().is_some_and(|Reverse((slot, _))| *slot <= now) {
            if let Some(Reverse((_, entry))) = self.slots.pop() {
                due.push(entry);
                self.queue(entry, now);
            }
        }
        due.sort_unstable();
        due
    }

    fn step(&mut self, entries: &[usize], now: DateTime<Utc>) {
        for entry in entries {
            self.catch_up(*entry, now);
            let mut plan = self.future.decide_entry(*entry, now);
            if plan.takes.iter().any(|take| take.due.is_some()) {
                let takes: Vec<Order> = plan.orders(self.policy).into_iter().filter(is_take).collect();
                takes.iter().for_each(|order| self.take(order, now));
                plan = self.future.decide_entry(*entry, now);
            }
            self.remember(&plan);
            for order in plan.orders(self.policy) {
                match &order {
                    Order::Take { .. } => continue,
                    Order::Send { host, dataset, policy, .. } => {
                        let sends = self.sends(*entry, policy, host, dataset);
                        self.day.sends += if (self.counts)(host, dataset) { sends } else { 0 };
                    }
                    Order::Destroy { .. } => self.count_destroyed(&order),
                }
                self.future.carry_out(&[order], now);
            }
            self.taken.retain(|(of, ..), _| of != entry);
        }
    }

    /// How many transfers stand for one that is due now: with `asap`, each snapshot would have had its own.
    fn sends(&self, entry: usize, policy: &str, host: &HostName, dataset: &DatasetName) -> usize {
        let policies = &self.policy.datasets[entry].policies;
        let Some(index) = policies.iter().position(|p| p.name == policy && p.sync_policy == SyncPolicy::Asap) else {
            return 1;
        };
        self.taken.get(&(entry, index, host.clone(), dataset.clone())).copied().unwrap_or(1)
    }

    /// Adds what an entry's schedules have had taken since the last step, each at its time.
    fn catch_up(&mut self, entry: usize, now: DateTime<Utc>) {
        let of = &self.policy.datasets[entry];
        let mut due: Vec<(DateTime<Utc>, Order)> = Vec::new();
        for ((_, index, host, dataset), first) in self.takers.iter().filter(|((of, ..), _)| *of == entry) {
            let Some(policy) = of.policies.get(*index) else { continue };
            let mut slot = Some(*first);
            while let Some(at) = slot.filter(|slot| *slot <= now) {
                let order = Order::Take {
                    entry,
                    host: host.clone(),
                    name: policy.prefix.stamp(at),
                    datasets: vec![dataset.clone()],
                    policy: policy.name.clone(),
                    skip_if_not_written: of.skip_if_not_written,
                    reason: String::new(),
                };
                due.push((at, order));
                slot = policy.creation.as_ref().and_then(|s| s.next_slot(self.policy.timezone, at));
            }
        }
        due.sort_by_key(|(at, _)| *at);
        due.iter().for_each(|(at, order)| self.take(order, *at));
    }

    /// Carries out a take, and counts what it takes.
    fn take(&mut self, order: &Order, at: DateTime<Utc>) {
        let Order::Take { entry, host, datasets, skip_if_not_written, policy, .. } = order else { return };
        let policies = &self.policy.datasets[*entry].policies;
        let index = policies.iter().position(|p| p.name == *policy).unwrap_or(0);
        for dataset in datasets {
            let held = self.future.inventory.dataset(host, dataset);
            let idle = held.is_some_and(|held| held.written == Some(0) && !held.snapshots.is_empty());
            if idle && *skip_if_not_written {
                continue;
            }
            *self.taken.entry((*entry, index, host.clone(), dataset.clone())).or_default() += 1;
            self.day.takes += usize::from((self.counts)(host, dataset));
        }
        self.future.carry_out(std::slice::from_ref(order), at);
    }

    /// When the datasets of a plan have their next snapshots due; those that have none are left to the next plan.
    fn remember(&mut self, plan: &Plan) {
        for TakeVerdict { subject, reason, .. } in &plan.takes {
            let taker = (subject.entry, subject.policy_index, subject.host.clone(), subject.dataset.clone());
            match reason {
                TakeReason::UpToDate { next: Some(next), .. }
                | TakeReason::SlotTaken { next: Some(next), .. }
                | TakeReason::TooLate { next: Some(next), .. } => drop(self.takers.insert(taker, *next)),
                _ => drop(self.takers.remove(&taker)),
            }
        }
    }

    fn count_destroyed(&mut self, order: &Order) {
        if let Order::Destroy { host, dataset, snapshots, .. } = order
            && (self.counts)(host, dataset)
        {
            self.day.destroys += snapshots.len();
        }
    }

    /// Ends a day: has destroyed what its last transfers allow, and counts what is left.
    fn settle(&mut self, now: DateTime<Utc>) {
        let plan = self.future.decide(now);
        let destroys: Vec<Order> =
            plan.orders(self.policy).into_iter().filter(|o| matches!(o, Order::Destroy { .. })).collect();
        destroys.iter().for_each(|order| self.count_destroyed(order));
        self.future.carry_out(&destroys, now);
        for PruneVerdict { subject, kept, .. } in &plan.prunes {
            if (self.counts)(&subject.host, &subject.dataset) {
                *self.day.alive.entry(format!("{}:{}", subject.host, subject.dataset)).or_default() += kept;
            }
        }
    }
}

fn is_take(order: &Order) -> bool {
    matches!(order, Order::Take { .. })
}

fn local_date(policy: &Policy, at: DateTime<Utc>) -> NaiveDate {
    at.with_timezone(&policy.timezone).date_naive()
}

/// When the next day begins in the policy's zone.
fn next_midnight(policy: &Policy, after: DateTime<Utc>) -> DateTime<Utc> {
    let later = after + TimeDelta::days(1);
    let tomorrow = local_date(policy, after).succ_opt().map(|date| date.and_time(NaiveTime::MIN));
    let at = |local: NaiveDateTime| policy.timezone.from_local_datetime(&local).earliest();
    // Where the clock is put forward at midnight, the day begins an hour later.
    let begins = tomorrow.and_then(|local| at(local).or_else(|| at(local + TimeDelta::hours(1))));
    begins.map_or(later, |begins| begins.with_timezone(&Utc)).max(after + TimeDelta::seconds(1))
}

/// The next slot of an entry's sync policies.
fn next_sync(policy: &Policy, entry: &DatasetPolicy, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let schedules = entry.policies.iter().filter(|p| !p.sync_on.is_empty()).filter_map(|p| match &p.sync_policy {
        SyncPolicy::Cron(schedule) => Some(schedule),
        SyncPolicy::Asap => None,
    });
    schedules.filter_map(|schedule| schedule.next_slot(policy.timezone, after)).min()
}

impl Day {
    fn new(date: NaiveDate) -> Self {
        Self { date, takes: 0, sends: 0, destroys: 0, alive: BTreeMap::new() }
    }
}

/// What is in each place that is told of.
fn snapshots_of(inventory: &Inventory, counts: impl Fn(&HostName, &DatasetName) -> bool) -> Before {
    let places = inventory.hosts.iter().flat_map(|(host, known)| known.datasets.iter().map(move |d| (host, d)));
    let told = places.filter(|(host, (dataset, _))| counts(host, dataset));
    let guids = told.map(|(host, (name, dataset))| {
        ((host.clone(), name.clone()), dataset.snapshots.iter().map(|s| s.guid).collect())
    });
    guids.collect()
}

fn place(prune: &PruneVerdict, inventory: &Inventory, before: &Before, at: DateTime<Utc>) -> Place {
    let subject = prune.subject.clone();
    let before = before.get(&(subject.host.clone(), subject.dataset.clone()));
    let mut from_before = 0;
    let held = inventory.dataset(&subject.host, &subject.dataset);
    let mut rules: Vec<Kept> =
        prune.rules.iter().map(|rule| Kept { rule: rule.clone(), keeps: 0, oldest: None }).collect();
    let (mut oldest, mut in_last, mut protected) = (None, Ages::default(), 0);
    for explained in held.map(|held| prune.explain(held)).unwrap_or_default().iter().filter(|e| e.keep) {
        oldest.get_or_insert(explained.creation);
        from_before += usize::from(before.is_some_and(|before| before.contains(&explained.guid)));
        let age = at - explained.creation;
        let ages = [(1, &mut in_last.day), (7, &mut in_last.week), (31, &mut in_last.month), (366, &mut in_last.year)];
        for (days, count) in ages {
            *count += usize::from(age <= TimeDelta::days(days));
        }
        let mut by_rule = false;
        for kept in &mut rules {
            let is_this = |reason: &PruneReason| matches!(reason, PruneReason::Rule { rule } if *rule == kept.rule);
            if explained.reasons.iter().any(is_this) {
                by_rule = true;
                kept.keeps += 1;
                kept.oldest.get_or_insert(explained.creation);
            }
        }
        protected += usize::from(!by_rule);
    }
    Place {
        host: subject.host,
        dataset: subject.dataset,
        side: prune.side,
        policy: subject.policy,
        snapshots: prune.kept,
        from_before,
        oldest,
        in_last,
        rules,
        protected,
    }
}

#[cfg(test)]
mod tests;
