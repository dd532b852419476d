//! Remembers what was due when a single pass began, and what follows from it. As long as any of that is left, the
//! director also carries out what becomes due meanwhile; otherwise such a pass would never end where something becomes
//! due more often than all is done.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;

use crate::actions::Order;
use crate::model::{DatasetName, Guid, HostName, Inventory, Place, Prefix, SnapName};
use crate::sys::runtime::channel;

/// What was due at the beginning, and what has become of it.
pub(super) struct Initial {
    state: Mutex<State>,
    /// Has a message after the last of the orders has ended.
    ended: (channel::Sender<()>, channel::Receiver<()>),
}

#[derive(Default)]
struct State {
    /// When the pass began; `None` if no order is initial.
    began: Option<DateTime<Utc>>,
    /// When the last snapshot was taken that was due at the beginning. What is not newer follows from it.
    taken: Option<DateTime<Utc>>,
    /// How many of the orders are running or wait for a slot.
    running: usize,
    given: BTreeSet<Given>,
    /// The transfers that have failed. The next pass from cron tries them again.
    failed: BTreeSet<(Place, Place)>,
}

/// An order that was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Given {
    Take(HostName, Vec<DatasetName>, SnapName),
    Send(Place, Place, Guid),
}

impl Given {
    fn of(order: &Order) -> Option<Self> {
        match order {
            Order::Take { host, datasets, name, .. } => Some(Self::Take(host.clone(), datasets.clone(), name.clone())),
            Order::Send { host, dataset, to, guid, .. } => {
                Some(Self::Send(Place { host: host.clone(), dataset: dataset.clone() }, to.clone(), *guid))
            }
            Order::Destroy { .. } => None,
        }
    }
}

impl State {
    fn includes(&self, order: &Order) -> bool {
        let Some(began) = self.began else { return false };
        match order {
            Order::Take { name, .. } => {
                Prefix::of(name).and_then(|prefix| prefix.time_in(name)).is_none_or(|slot| slot <= began)
            }
            Order::Send { oldest_unsent, .. } => *oldest_unsent <= self.taken.map_or(began, |taken| taken.max(began)),
            // What becomes superfluous follows from the time.
            Order::Destroy { .. } => false,
        }
    }
}

impl Default for Initial {
    fn default() -> Self {
        Self { state: Mutex::default(), ended: channel::bounded(1) }
    }
}

impl Initial {
    /// What is due now is initial.
    pub fn begin(&self, now: DateTime<Utc>) {
        *self.state.lock() = State { began: Some(now), ..State::default() };
    }

    /// Counts an order among those that are running, if it is initial. [`Initial::release`] ends that.
    pub fn keep(&self, order: &Order) -> bool {
        let mut state = self.state.lock();
        let is_initial = state.includes(order);
        state.running += usize::from(is_initial);
        is_initial
    }

    /// Ends what [`Initial::keep`] has begun.
    pub fn release(&self) {
        let mut state = self.state.lock();
        state.running -= 1;
        if state.running == 0 {
            // If the channel is full, there is a message already.
            let _ = self.ended.0.try_send(());
        }
    }

    /// Records that an order is given.
    pub fn given(&self, order: &Order) {
        let mut state = self.state.lock();
        if state.includes(order) {
            state.given.extend(Given::of(order));
        }
    }

    /// Records how an order has ended at `now`. `inventory` is what is known since.
    pub fn ended(&self, order: &Order, success: bool, now: DateTime<Utc>, inventory: &Inventory) {
        let mut state = self.state.lock();
        match (order, Given::of(order)) {
            (Order::Take { host, datasets, name, .. }, _) if success && state.includes(order) => {
                // By the clock of its own host, the snapshot may be newer.
                let datasets = datasets.iter().filter_map(|dataset| inventory.dataset(host, dataset));
                let snapshots = datasets.flat_map(|dataset| &dataset.snapshots).filter(|s| s.name == *name);
                state.taken = state.taken.max(snapshots.map(|s| s.creation).max()).max(Some(now));
            }
            (_, Some(Given::Send(from, to, _))) if !success => drop(state.failed.insert((from, to))),
            _ => {}
        }
    }

    /// Whether any order is running or waits for a slot.
    pub fn is_running(&self) -> bool {
        self.state.lock().running > 0
    }

    /// How many orders were given so far.
    pub fn count(&self) -> usize {
        self.state.lock().given.len()
    }

    /// Whether an order is initial and was neither given nor has it failed.
    pub fn awaits(&self, order: &Order) -> bool {
        let state = self.state.lock();
        let has_failed = |given: &Given| match given {
            Given::Send(from, to, _) => state.failed.contains(&(from.clone(), to.clone())),
            Given::Take(..) => false,
        };
        state.includes(order)
            && Given::of(order).is_some_and(|order| !state.given.contains(&order) && !has_failed(&order))
    }

    /// Waits until no order is running.
    pub async fn quiet(&self) {
        while self.is_running() {
            // This value has a sender.
            let _ = self.ended.1.recv().await;
        }
    }
}
