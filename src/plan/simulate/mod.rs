//! `plan --simulate`: simulates the passes of a director over time. The simulation assumes that every order succeeds,
//! that every host is up, and that something is written before every slot.
//!
//! This is pure: the engine decides, and the results of its orders are predicted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

use chrono::{DateTime, DurationRound, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc};
use serde::Serialize;

use crate::actions::{Order, Plan, PruneReason, PruneVerdict, Side, TakeReason, TakeVerdict, is_idle};
use crate::model::{DatasetName, Guid, HostName, Inventory};
use crate::plan::foresee::PredictedFleet;
use crate::policy::{DatasetPolicy, Policy, SyncPolicy};

/// What would be done and kept over time.
#[derive(Debug, Serialize)]
pub struct Simulation {
    /// The moment at which it begins.
    pub from: DateTime<Utc>,
    /// The moment at which it ends.
    pub to: DateTime<Utc>,
    /// The time zone of the days.
    pub timezone: String,
    /// Every day. The first and the last day are incomplete.
    pub days: Vec<Day>,
    /// The remaining snapshots at the end, by dataset and policy.
    pub end: Vec<Remaining>,
}

/// What happens in one day.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Day {
    /// The date in the policy's time zone.
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

/// The remaining snapshots of one policy in one dataset.
#[derive(Debug, Serialize)]
pub struct Remaining {
    /// The host.
    pub host: HostName,
    /// The dataset there.
    pub dataset: DatasetName,
    /// Whether the dataset is the policy's source or a destination.
    pub side: Side,
    /// The policy's name.
    pub policy: String,
    /// How many snapshots remain, without those that are about to be destroyed.
    pub snapshots: usize,
    /// How many of them existed at the beginning.
    pub from_before: usize,
    /// When the oldest of them was taken.
    pub oldest: Option<DateTime<Utc>>,
    /// How many of them are not older than a day, a week, a month and a year.
    pub in_last: Ages,
    /// What each retention rule keeps.
    pub rules: Vec<RuleResult>,
    /// How many are kept although no rule keeps them: the newest, held ones, unsent ones, ...
    pub protected: usize,
}

/// How many snapshots are at most this old. Each number includes the numbers before it.
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
pub struct RuleResult {
    /// The rule.
    pub rule: String,
    /// How many snapshots it keeps.
    pub keeps: usize,
    /// When the oldest of them was taken.
    pub oldest: Option<DateTime<Utc>>,
}

/// The guids of the snapshots that each dataset had at the beginning.
type InitialSnapshots = HashMap<(HostName, DatasetName), HashSet<Guid>>;

/// Simulates a policy over time. Only datasets for which `is_shown` returns true are counted.
pub fn simulate(
    policy: &Policy,
    inventory: Inventory,
    from: DateTime<Utc>,
    length: TimeDelta,
    is_shown: impl Fn(&HostName, &DatasetName) -> bool,
) -> Simulation {
    let to = from.checked_add_signed(length).unwrap_or(from);
    let initial = snapshots_of(&inventory, &is_shown);
    let mut simulator = Simulator::new(policy, inventory, from, &is_shown);
    let mut days = Vec::new();
    let all: Vec<usize> = (0..policy.datasets.len()).collect();
    let (mut now, mut midnight, mut at_full_hour) = (from, next_midnight(policy, from), true);
    loop {
        if now == midnight {
            // The last second of a day belongs to that day, together with everything that the last slots of the day
            // left to do.
            let end = now - TimeDelta::seconds(1);
            simulator.step(&all, end);
            simulator.end_day(end);
            days.push(std::mem::replace(&mut simulator.day, Day::new(local_date(policy, now))));
            midnight = next_midnight(policy, now);
        }
        let syncing = simulator.syncing(now);
        let is_due =
            |entry: &usize| syncing.contains(entry) || (at_full_hour && simulator.is_worth_a_step(*entry, now));
        let entries: Vec<usize> = all.iter().copied().filter(is_due).collect();
        simulator.step(&entries, now);
        let hour = now.duration_trunc(TimeDelta::hours(1)).unwrap_or(now) + TimeDelta::hours(1);
        let full = hour.min(midnight);
        let next = simulator.next_sync().map_or(full, |slot| full.min(slot));
        if next > to {
            break;
        }
        (now, at_full_hour) = (next, next == full);
    }
    simulator.step(&all, to);
    simulator.end_day(to);
    let plan = simulator.fleet.decide(to);
    days.push(simulator.day);
    let shown = plan.prunes.iter().filter(|p| is_shown(&p.subject.host, &p.subject.dataset));
    let mut end: Vec<Remaining> =
        shown.map(|prune| remaining(prune, &simulator.fleet.inventory, &initial, to)).collect();
    end.sort_by(|a, b| (&a.host, &a.dataset, a.side).cmp(&(&b.host, &b.dataset, b.side)));
    Simulation { from, to, timezone: policy.timezone.to_string(), days, end }
}

/// From this number of snapshots on, an entry does not get a step at every full hour.
const MANY: usize = 1000;

/// One policy's snapshots of one dataset: the index of the entry, the index of the policy in it, host and dataset.
type Series = (usize, usize, HostName, DatasetName);

/// The predicted fleet between two steps.
///
/// There is a step at each full hour, for all entries, and at each slot of a sync policy, for its entry. A step first
/// adds the snapshots of the slots since the last step. They are sent and pruned only at the step, because by then
/// only the newest of them still needs a decision. A schedule of every five minutes therefore costs no more than one of
/// every hour. An entry with very many snapshots gets a step only once enough of them are new, or at midnight,
/// because each step decides about all of its snapshots.
struct Simulator<'p, F> {
    policy: &'p Policy,
    fleet: PredictedFleet<'p>,
    is_shown: F,
    /// The next slot of each entry's sync policies.
    sync_slots: BinaryHeap<Reverse<(DateTime<Utc>, usize)>>,
    /// When the next snapshot of each series is due.
    next_takes: BTreeMap<Series, DateTime<Utc>>,
    /// How many snapshots of each series were taken since the last step.
    taken: HashMap<Series, usize>,
    /// How many snapshots each entry had after its last step, on all hosts.
    kept: Vec<usize>,
    day: Day,
}

impl<'p, F: Fn(&HostName, &DatasetName) -> bool> Simulator<'p, F> {
    fn new(policy: &'p Policy, inventory: Inventory, from: DateTime<Utc>, is_shown: F) -> Self {
        let mut simulator = Self {
            policy,
            fleet: PredictedFleet::new(policy, inventory, from),
            is_shown,
            sync_slots: BinaryHeap::new(),
            next_takes: BTreeMap::new(),
            taken: HashMap::new(),
            kept: vec![0; policy.datasets.len()],
            day: Day::new(local_date(policy, from)),
        };
        (0..policy.datasets.len()).for_each(|entry| simulator.schedule_sync(entry, from));
        simulator
    }

    fn schedule_sync(&mut self, entry: usize, after: DateTime<Utc>) {
        if let Some(next) = self.policy.datasets.get(entry).and_then(|e| next_sync_slot(self.policy, e, after)) {
            self.sync_slots.push(Reverse((next, entry)));
        }
    }

    fn next_sync(&self) -> Option<DateTime<Utc>> {
        self.sync_slots.peek().map(|Reverse((slot, _))| *slot)
    }

    /// The entries whose sync policies have a slot now.
    fn syncing(&mut self, now: DateTime<Utc>) -> Vec<usize> {
        let mut entries = Vec::new();
        while self.next_sync().is_some_and(|slot| slot <= now) {
            if let Some(Reverse((_, entry))) = self.sync_slots.pop() {
                entries.push(entry);
                self.schedule_sync(entry, now);
            }
        }
        entries.sort_unstable();
        entries
    }

    /// Whether an entry gets a step now. An entry with very many snapshots only takes those that are due, as long as
    /// few of them are new.
    fn is_worth_a_step(&mut self, entry: usize, now: DateTime<Utc>) -> bool {
        if self.kept[entry] < MANY || !self.next_takes.keys().any(|(of, ..)| *of == entry) {
            return true;
        }
        self.catch_up(entry, now);
        let taken: usize = self.taken.iter().filter(|((of, ..), _)| *of == entry).map(|(_, taken)| taken).sum();
        self.kept[entry] < MANY + taken * 8
    }

    /// Carries out everything that is due in these entries.
    fn step(&mut self, entries: &[usize], now: DateTime<Utc>) {
        for entry in entries {
            self.catch_up(*entry, now);
            let mut plan = self.fleet.decide_entry(*entry, now);
            if plan.takes.iter().any(|take| take.due.is_some()) {
                let takes: Vec<Order> = plan.approved_orders(self.policy).into_iter().filter(is_take).collect();
                takes.iter().for_each(|order| self.take(order, now));
                plan = self.fleet.decide_entry(*entry, now);
            }
            self.schedule_takes(&plan);
            for order in plan.approved_orders(self.policy) {
                match &order {
                    Order::Take { .. } => continue,
                    Order::Send { host, dataset, policy, .. } => {
                        let sends = self.sends(*entry, policy, host, dataset);
                        self.day.sends += if (self.is_shown)(host, dataset) { sends } else { 0 };
                    }
                    Order::Destroy { .. } => self.count_destroyed(&order),
                }
                self.fleet.apply(&[order], now);
            }
            self.taken.retain(|(of, ..), _| of != entry);
            self.kept[*entry] = plan.prunes.iter().map(|prune| prune.kept).sum();
        }
    }

    /// The number of transfers for which one transfer at this step stands: with `asap`, each snapshot would have been
    /// sent by itself.
    fn sends(&self, entry: usize, policy: &str, host: &HostName, dataset: &DatasetName) -> usize {
        let policies = &self.policy.datasets[entry].policies;
        let Some(index) = policies.iter().position(|p| p.name == policy && p.sync_policy == SyncPolicy::Asap) else {
            return 1;
        };
        self.taken.get(&(entry, index, host.clone(), dataset.clone())).copied().unwrap_or(1)
    }

    /// Takes the snapshots of an entry that were due until now, each at its time.
    fn catch_up(&mut self, entry: usize, now: DateTime<Utc>) {
        let of = &self.policy.datasets[entry];
        let mut due: Vec<(DateTime<Utc>, Order)> = Vec::new();
        for ((_, index, host, dataset), next) in self.next_takes.iter_mut().filter(|((of, ..), _)| *of == entry) {
            let Some(policy) = of.policies.get(*index) else { continue };
            while *next <= now {
                let at = *next;
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
                let later = policy.creation.as_ref().and_then(|s| s.next_slot(self.policy.timezone, at));
                *next = later.unwrap_or(DateTime::<Utc>::MAX_UTC);
            }
        }
        due.sort_by_key(|(at, _)| *at);
        due.iter().for_each(|(at, order)| self.take(order, *at));
    }

    /// Takes snapshots, and counts them.
    fn take(&mut self, order: &Order, at: DateTime<Utc>) {
        let Order::Take { entry, host, name, datasets, skip_if_not_written, policy, .. } = order else { return };
        let policies = &self.policy.datasets[*entry].policies;
        let index = policies.iter().position(|p| p.name == *policy).unwrap_or(0);
        for dataset in datasets {
            let present = self.fleet.inventory.dataset(host, dataset);
            let is_unwritten = present.is_some_and(|dataset| is_idle(dataset, name));
            if is_unwritten && *skip_if_not_written {
                continue;
            }
            *self.taken.entry((*entry, index, host.clone(), dataset.clone())).or_default() += 1;
            self.day.takes += usize::from((self.is_shown)(host, dataset));
        }
        self.fleet.apply(std::slice::from_ref(order), at);
    }

    /// Records when the next snapshot of each series of a plan is due. If the plan knows no slot for a series, the next
    /// plan schedules it.
    fn schedule_takes(&mut self, plan: &Plan) {
        for TakeVerdict { subject, reason, .. } in &plan.takes {
            let series = (subject.entry, subject.policy_index, subject.host.clone(), subject.dataset.clone());
            match reason {
                TakeReason::UpToDate { next: Some(next), .. }
                | TakeReason::SlotTaken { next: Some(next), .. }
                | TakeReason::TooLate { next: Some(next), .. } => drop(self.next_takes.insert(series, *next)),
                _ => drop(self.next_takes.remove(&series)),
            }
        }
    }

    fn count_destroyed(&mut self, order: &Order) {
        if let Order::Destroy { host, dataset, snapshots, .. } = order
            && (self.is_shown)(host, dataset)
        {
            self.day.destroys += snapshots.len();
        }
    }

    /// Ends a day: carries out the destroys that the day's last transfers allow, and counts the remaining snapshots.
    fn end_day(&mut self, now: DateTime<Utc>) {
        let plan = self.fleet.decide(now);
        let destroys: Vec<Order> =
            plan.approved_orders(self.policy).into_iter().filter(|o| matches!(o, Order::Destroy { .. })).collect();
        destroys.iter().for_each(|order| self.count_destroyed(order));
        self.fleet.apply(&destroys, now);
        for PruneVerdict { subject, kept, .. } in &plan.prunes {
            if (self.is_shown)(&subject.host, &subject.dataset) {
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

/// When the next day begins in the policy's time zone.
fn next_midnight(policy: &Policy, after: DateTime<Utc>) -> DateTime<Utc> {
    let later = after + TimeDelta::days(1);
    let tomorrow = local_date(policy, after).succ_opt().map(|date| date.and_time(NaiveTime::MIN));
    let at = |local: NaiveDateTime| policy.timezone.from_local_datetime(&local).earliest();
    // If the clock is put forward at midnight, the day begins an hour later.
    let begins = tomorrow.and_then(|local| at(local).or_else(|| at(local + TimeDelta::hours(1))));
    begins.map_or(later, |begins| begins.with_timezone(&Utc)).max(after + TimeDelta::seconds(1))
}

/// The next slot of an entry's sync policies.
fn next_sync_slot(policy: &Policy, entry: &DatasetPolicy, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
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

/// The guids of the snapshots in each dataset that is shown.
fn snapshots_of(inventory: &Inventory, is_shown: impl Fn(&HostName, &DatasetName) -> bool) -> InitialSnapshots {
    let datasets = inventory.hosts.iter().flat_map(|(host, known)| known.datasets.iter().map(move |d| (host, d)));
    let shown = datasets.filter(|(host, (name, _))| is_shown(host, name));
    let guids = shown.map(|(host, (name, dataset))| {
        ((host.clone(), name.clone()), dataset.snapshots.iter().map(|s| s.guid).collect())
    });
    guids.collect()
}

fn remaining(prune: &PruneVerdict, inventory: &Inventory, initial: &InitialSnapshots, at: DateTime<Utc>) -> Remaining {
    let subject = prune.subject.clone();
    let initial = initial.get(&(subject.host.clone(), subject.dataset.clone()));
    let mut from_before = 0;
    let present = inventory.dataset(&subject.host, &subject.dataset);
    let mut rules: Vec<RuleResult> =
        prune.rules.iter().map(|rule| RuleResult { rule: rule.clone(), keeps: 0, oldest: None }).collect();
    let (mut oldest, mut in_last, mut protected) = (None, Ages::default(), 0);
    for explained in present.map(|present| prune.explain(present)).unwrap_or_default().iter().filter(|e| e.keep) {
        oldest.get_or_insert(explained.creation);
        from_before += usize::from(initial.is_some_and(|initial| initial.contains(&explained.guid)));
        let age = at - explained.creation;
        let ages = [(1, &mut in_last.day), (7, &mut in_last.week), (31, &mut in_last.month), (366, &mut in_last.year)];
        for (days, count) in ages {
            *count += usize::from(age <= TimeDelta::days(days));
        }
        let mut by_rule = false;
        for result in &mut rules {
            let is_this = |reason: &PruneReason| matches!(reason, PruneReason::Rule { rule } if *rule == result.rule);
            if explained.reasons.iter().any(is_this) {
                by_rule = true;
                result.keeps += 1;
                result.oldest.get_or_insert(explained.creation);
            }
        }
        protected += usize::from(!by_rule);
    }
    Remaining {
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
