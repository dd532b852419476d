//! Lets an order that fails again and again rest for growing times. Otherwise each pass would try, for years, a transfer
//! to a destination that has diverged or is full.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::actions::Order;
use crate::fleet::live_status::RestingOrder;
use crate::model::{Action, Guid, Inventory, Place};

/// The longest rest, unless the interval between passes is longer.
const MAX_REST: Duration = Duration::from_secs(15 * 60);

/// What rests: transfers from a dataset to a destination, or destroys in a dataset. Snapshots never rest: one that was
/// not taken at its time is missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Send { from: Place, to: Place },
    Destroy(Place),
}

impl Lane {
    fn of(order: &Order) -> Option<Self> {
        let place = |host: &_, dataset: &_| Place { host: Clone::clone(host), dataset: Clone::clone(dataset) };
        match order {
            Order::Take { .. } => None,
            Order::Send { host, dataset, to, .. } => Some(Self::Send { from: place(host, dataset), to: to.clone() }),
            Order::Destroy { host, dataset, .. } => Some(Self::Destroy(place(host, dataset))),
        }
    }
}

/// What a listing says about a lane that no failed order changes. If it has changed, somebody has done something about
/// the failure, so the next order may succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    /// Whether the place where the order failed could be listed.
    is_listed: bool,
    /// The newest snapshot at the destination of a transfer; `None` if the destination does not exist.
    newest: Option<Option<Guid>>,
    /// How often each of the hosts has answered again after it had not.
    returns: u64,
}

impl Listed {
    fn of(lane: &Lane, inventory: &Inventory, returns: impl Fn(&Place) -> u64) -> Self {
        let (place, returns) = match lane {
            Lane::Send { from, to } => (to, returns(from) + returns(to)),
            Lane::Destroy(place) => (place, returns(place)),
        };
        let is_listed = inventory.hosts.get(&place.host).is_some_and(|host| host.covers(&place.dataset));
        let newest = match lane {
            Lane::Send { to, .. } => inventory.dataset(&to.host, &to.dataset).map(|to| to.newest().map(|s| s.guid)),
            // A dataset gets snapshots however its destroys fail.
            Lane::Destroy(_) => None,
        };
        Self { is_listed, newest, returns }
    }
}

/// A lane whose last order has failed.
#[derive(Debug)]
struct Failing {
    /// How many orders in a row have failed.
    failures: u32,
    ended: DateTime<Utc>,
    rest: TimeDelta,
    listed: Listed,
}

impl Failing {
    fn rests_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let until = self.ended.checked_add_signed(self.rest)?;
        // A clock that was put back prolongs no rest.
        (now < until && self.ended <= now).then_some(until)
    }
}

/// The lanes whose last orders have failed.
#[derive(Debug, Default)]
pub(super) struct Rests {
    interval: Duration,
    failing: BTreeMap<Lane, Failing>,
}

impl Rests {
    /// Sets the interval between passes, from which the rests follow.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Lets every order be given again.
    pub fn wake(&mut self) {
        self.failing.clear();
    }

    /// Records that an order has ended at `now`. `inventory` is what is known since.
    pub fn ended(
        &mut self,
        order: &Order,
        success: bool,
        now: DateTime<Utc>,
        inventory: &Inventory,
        returns: impl Fn(&Place) -> u64,
    ) {
        let Some(lane) = Lane::of(order) else { return };
        if success {
            self.failing.remove(&lane);
            return;
        }
        let listed = Listed::of(&lane, inventory, returns);
        let before = self.failing.get(&lane).filter(|before| before.listed == listed);
        let failures = before.map_or(0, |before| before.failures).saturating_add(1);
        let rest = TimeDelta::from_std(rest(self.interval, failures)).unwrap_or_default();
        self.failing.insert(lane, Failing { failures, ended: now, rest, listed });
    }

    /// Whether an order is not to be given yet.
    pub fn rests(
        &self,
        order: &Order,
        now: DateTime<Utc>,
        inventory: &Inventory,
        returns: impl Fn(&Place) -> u64,
    ) -> bool {
        let Some(lane) = Lane::of(order) else { return false };
        let failing = self.failing.get(&lane).filter(|failing| failing.rests_until(now).is_some());
        failing.is_some_and(|failing| failing.listed == Listed::of(&lane, inventory, returns))
    }

    /// What rests now.
    pub fn resting(&self, now: DateTime<Utc>) -> Vec<RestingOrder> {
        let resting = self.failing.iter().filter_map(|(lane, failing)| {
            let (action, place, to) = match lane {
                Lane::Send { from, to } => (Action::SendSnapshot, from, Some(to.clone())),
                Lane::Destroy(place) => (Action::DestroySnapshot, place, None),
            };
            let (until, failures) = (failing.rests_until(now)?, failing.failures);
            let (host, dataset) = (place.host.clone(), place.dataset.clone());
            Some(RestingOrder { action, host, dataset, to, failures, until })
        });
        resting.collect()
    }
}

/// How long a lane rests after this number of failures in a row. The first one may have a cause that has passed already.
fn rest(interval: Duration, failures: u32) -> Duration {
    let Some(doubled) = failures.checked_sub(1).filter(|doubled| *doubled > 0) else { return Duration::ZERO };
    interval.saturating_mul(1 << doubled.min(20)).min(MAX_REST.max(interval))
}
