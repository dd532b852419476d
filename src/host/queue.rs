//! Limits the number of concurrent transfers, and divides the slots between hosts.
//!
//! Where hosts send here, a free slot goes to the host that has the fewest; among several, to the one whose last turn was
//! longest ago. Among the transfers of one host, the one with the least slack goes first (see [`Turn`]). Deadlines, and
//! how long the data has waited, are the sender's claims, so they never count against another host.
//!
//! Where this host sends to others, the transfer with the least slack goes first, wherever it goes. A destination never
//! has all slots if there are others: it may be slow or full, and its transfers may run for days.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::model::{HostName, Turn};
use crate::sys::runtime;
use crate::sys::runtime::channel;
use crate::sys::runtime::channel::Sender;

/// How long an order waits for a slot. The transfers before it may be first copies of large datasets.
pub const WAIT_FOR_SLOT: Duration = Duration::from_secs(3600);

/// The slots of a host for transfers in one direction. Clones share them.
#[derive(Clone, Debug)]
pub struct TransferQueue(Arc<Mutex<Slots>>);

#[derive(Debug)]
struct Slots {
    limit: usize,
    kind: Kind,
    hosts: BTreeMap<HostName, Share>,
    /// How many slots were given so far.
    turns: u64,
    /// How many transfers had to wait so far.
    waited: u64,
    waiting: BTreeMap<Priority, (HostName, Sender<QueueSlot>)>,
}

/// Between which hosts the slots are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// There is only one.
    One,
    /// Several send here.
    Sources,
    /// This host may send to several.
    Destinations,
}

/// What a host has of the slots.
#[derive(Debug, Default)]
struct Share {
    slots: usize,
    /// Streams that gave up their slot because too little of them arrives.
    parked: usize,
    /// When the host got its last slot, counted in slots given.
    last_turn: u64,
}

/// The turn of the transfer, then the order of arrival. The lowest value goes first.
type Priority = (Turn, u64);

/// The right to run a transfer. The slot becomes free when this is dropped.
#[derive(Debug)]
pub struct QueueSlot {
    queue: TransferQueue,
    host: HostName,
}

/// A stream that runs without a slot because too little of it arrives. It counts until this is dropped.
#[derive(Debug)]
pub struct ParkedStream {
    queue: TransferQueue,
    host: HostName,
}

/// A transfer that waits for a slot. It leaves the queue when this is dropped.
struct Waiting<'a> {
    queue: &'a TransferQueue,
    priority: Priority,
}

/// The message for an order that got no slot in time.
#[must_use]
pub fn queue_timeout(key: &str, limit: usize) -> String {
    let waited = humantime::format_duration(WAIT_FOR_SLOT);
    format!(
        "no transfer slot became free within {waited}: {limit} other transfers were running, as many as \
         {key} in local.json allows"
    )
}

impl TransferQueue {
    /// Creates a queue with this number of slots, all of which one host may have.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self::with(limit, Kind::One)
    }

    /// Creates a queue with this number of slots for several hosts. One of the slots, if there are two or more, is
    /// never given to a host that has all the others.
    #[must_use]
    pub fn shared(limit: usize) -> Self {
        Self::with(limit, Kind::Sources)
    }

    /// Creates a queue with this number of slots for transfers to other hosts. Once it has had transfers to several, one
    /// of the slots, if there are two or more, is never given to a destination that has all the others.
    #[must_use]
    pub fn by_destination(limit: usize) -> Self {
        Self::with(limit, Kind::Destinations)
    }

    fn with(limit: usize, kind: Kind) -> Self {
        let (hosts, waiting) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(Slots { limit, kind, hosts, turns: 0, waited: 0, waiting })))
    }

    /// Whether a queue with these properties would be the same as this one.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let limits = |queue: &Self| {
            let slots = queue.slots();
            (slots.limit, slots.kind)
        };
        limits(self) == limits(other)
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock()
    }

    /// Changes the number of slots. Transfers that have a slot keep it, and count.
    pub fn set_limit(&self, limit: usize) {
        self.slots().limit = limit;
        self.serve();
    }

    /// Waits for a slot for a transfer of `host`. After [`WAIT_FOR_SLOT`] it fails with the number of slots.
    pub async fn take(&self, host: &HostName, turn: impl Into<Turn>) -> Result<QueueSlot, usize> {
        let limit = self.slots().limit;
        runtime::timeout(WAIT_FOR_SLOT, self.wait(host, turn.into())).await.map_err(|runtime::Elapsed| limit)
    }

    /// Waits for a slot for a transfer of `host`, however long that takes.
    pub async fn wait(&self, host: &HostName, turn: Turn) -> QueueSlot {
        loop {
            let (priority, receiver) = {
                let mut slots = self.slots();
                if slots.may_take(host) {
                    slots.give(host);
                    return QueueSlot { queue: self.clone(), host: host.clone() };
                }
                let (sender, receiver) = channel::bounded(1);
                let priority = (turn, slots.waited);
                slots.waited += 1;
                slots.waiting.insert(priority, (host.clone(), sender));
                (priority, receiver)
            };
            let _waiting = Waiting { queue: self, priority };
            if let Ok(slot) = receiver.recv().await {
                return slot;
            }
        }
    }

    /// Gives free slots to waiting transfers.
    fn serve(&self) {
        loop {
            let next = self.slots().next();
            let Some((host, sender)) = next else { return };
            // If the transfer has just stopped waiting, the slot is dropped, which passes it on to the next one.
            drop(sender.try_send(QueueSlot { queue: self.clone(), host }));
        }
    }
}

impl Slots {
    fn used(&self) -> usize {
        self.hosts.values().map(|share| share.slots).sum()
    }

    fn may_take(&self, host: &HostName) -> bool {
        self.used() < self.limit && self.has_room_for(host)
    }

    /// Whether a host has fewer slots than one host may have.
    fn has_room_for(&self, host: &HostName) -> bool {
        self.hosts.get(host).is_none_or(|share| share.slots < self.per_host(host))
    }

    fn per_host(&self, host: &HostName) -> usize {
        let is_other = |other: &HostName| other != host;
        let is_shared = match self.kind {
            Kind::One => false,
            Kind::Sources => true,
            Kind::Destinations => {
                self.hosts.keys().any(is_other) || self.waiting.values().any(|(other, _)| is_other(other))
            }
        };
        if is_shared { self.limit.saturating_sub(1).max(1) } else { self.limit }
    }

    fn give(&mut self, host: &HostName) {
        self.turns += 1;
        let share = self.hosts.entry(host.clone()).or_default();
        (share.slots, share.last_turn) = (share.slots + 1, self.turns);
    }

    /// Gives a free slot to the transfer whose turn it is, and removes it from those that wait.
    fn next(&mut self) -> Option<(HostName, Sender<QueueSlot>)> {
        let turn = |host: &HostName| match self.hosts.get(host) {
            Some(share) if self.kind != Kind::Destinations => (share.slots, share.last_turn),
            _ => (0, 0),
        };
        let may = self.waiting.iter().filter(|(_, (host, _))| self.may_take(host));
        let priority =
            may.min_by_key(|(priority, (host, _))| (turn(host), **priority)).map(|(priority, _)| *priority)?;
        let (host, sender) = self.waiting.remove(&priority)?;
        self.give(&host);
        Some((host, sender))
    }

    /// Forgets hosts that have and want nothing. They have waited longest for their turn when they return.
    fn forget(&mut self) {
        let wants = |host: &HostName| self.waiting.values().any(|(waiting, _)| waiting == host);
        if self.hosts.len() > self.limit {
            let idle = |(host, share): &(&HostName, &Share)| share.slots + share.parked == 0 && !wants(host);
            let idle: Vec<HostName> = self.hosts.iter().filter(idle).map(|(host, _)| host.clone()).collect();
            self.hosts.retain(|host, _| !idle.contains(host));
        }
    }
}

impl QueueSlot {
    /// Frees the slot, and lets the stream continue without one. Fails, and returns the slot, if the host has as many
    /// such streams as there are slots.
    pub fn park(self) -> Result<ParkedStream, Self> {
        {
            let mut slots = self.queue.slots();
            let limit = slots.limit;
            match slots.hosts.get_mut(&self.host) {
                Some(share) if share.parked < limit => share.parked += 1,
                _ => {
                    drop(slots);
                    return Err(self);
                }
            }
        }
        Ok(ParkedStream { queue: self.queue.clone(), host: self.host.clone() })
    }

    /// Whether a transfer of another host could use the slot now.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        let slots = self.queue.slots();
        slots.waiting.values().any(|(host, _)| *host != self.host && slots.has_room_for(host))
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        {
            let mut slots = self.queue.slots();
            if let Some(share) = slots.hosts.get_mut(&self.host) {
                share.slots -= 1;
            }
            slots.forget();
        }
        self.queue.serve();
    }
}

impl Drop for ParkedStream {
    fn drop(&mut self) {
        let mut slots = self.queue.slots();
        if let Some(share) = slots.hosts.get_mut(&self.host) {
            share.parked -= 1;
        }
        slots.forget();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.queue.slots().waiting.remove(&self.priority);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use chrono::{DateTime, TimeDelta, Utc};
    use futures_lite::future::{block_on, poll_once};
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn take_serves_the_longest_waiting_data_and_skips_dropped_callers() {
        block_on(async {
            let (queue, alpha) = (TransferQueue::new(1), host("alpha"));
            let first = queue.take(&alpha, at(50)).await.unwrap();
            let mut young = pin!(queue.take(&alpha, at(30)));
            let mut old = pin!(queue.take(&alpha, at(10)));
            let mut gone = Box::pin(queue.take(&alpha, at(5)));
            assert!(poll_once(&mut young).await.is_none());
            assert!(poll_once(&mut old).await.is_none());
            assert!(poll_once(&mut gone).await.is_none());
            assert!(!first.is_wanted(), "only its own host waits");
            drop(first);
            // It was given the slot, but never took it.
            drop(gone);
            assert!(poll_once(&mut young).await.is_none());
            let second = poll_once(&mut old).await.unwrap().unwrap();
            drop(second);
            let third = poll_once(&mut young).await.unwrap().unwrap();
            assert_eq!(queue.slots().used(), 1);
            assert!(!third.is_wanted());
            drop(third);
            let slots = queue.slots();
            assert_eq!((slots.used(), slots.waiting.len()), (0, 0));
        });
    }

    /// Plays a link with one slot, which is congested for hours: every dataset has a limit for the age of its copy. Returns
    /// for each transfer when it ended, and its deadline.
    fn play(by_slack: bool) -> Vec<(i64, i64)> {
        block_on(async {
            let (queue, alpha) = (TransferQueue::new(1), host("alpha"));
            let mut held = Some(queue.take(&alpha, at(0)).await.unwrap());
            let mut waiting = Vec::new();
            // Old data with a generous limit, and newer data with short ones: by age, the short ones come last.
            for n in 0..60_i64 {
                let (since, lasts) = (n * 10, 60 + n % 7 * 30);
                let limit = if n % 3 == 0 { 3600 + n * 60 } else { 6 * 3600 };
                let deadline = since + limit;
                let start_by = by_slack.then(|| at(deadline) - TimeDelta::seconds(lasts));
                let turn = if by_slack { Turn::new(at(since), start_by) } else { at(since).into() };
                let (queue, host) = (queue.clone(), alpha.clone());
                waiting.push((Box::pin(async move { queue.wait(&host, turn).await }), lasts, deadline));
            }
            for (waits, ..) in &mut waiting {
                assert!(poll_once(waits).await.is_none());
            }
            let (mut now, mut ended) = (600, Vec::new());
            while !waiting.is_empty() {
                drop(held.take());
                let mut given = None;
                for (index, (waits, ..)) in waiting.iter_mut().enumerate() {
                    if let Some(slot) = poll_once(waits).await {
                        given = Some((index, slot));
                        break;
                    }
                }
                let (index, slot) = given.unwrap();
                let (_, lasts, deadline) = waiting.remove(index);
                held = Some(slot);
                now += lasts;
                ended.push((now, deadline));
            }
            ended
        })
    }

    #[test]
    fn least_slack_meets_every_deadline_that_order_by_age_misses_on_a_congested_link() {
        let missed = |by_slack| play(by_slack).into_iter().filter(|(ended, deadline)| ended > deadline).count();
        assert!(missed(false) > 5, "{}", missed(false));
        assert_eq!(missed(true), 0);
    }

    #[test]
    fn transfer_without_limit_is_overtaken_for_a_day_only() {
        let (old, new) = (Turn::from(at(0)), |since: i64| Turn::new(at(since), Some(at(since + 3600))));
        assert!(new(22 * 3600) < old && new(24 * 3600) > old);
        assert!(Turn::new(at(0), Some(at(50))) < Turn::new(at(1), Some(at(50))), "then by age");
    }

    #[test]
    fn shared_queue_never_gives_one_host_all_slots() {
        block_on(async {
            let (queue, greedy, modest) = (TransferQueue::shared(4), host("greedy"), host("modest"));
            // However old the data is that it claims to have.
            let held: Vec<QueueSlot> = [queue.take(&greedy, at(0)).await, queue.take(&greedy, at(0)).await]
                .into_iter()
                .chain([queue.take(&greedy, at(0)).await])
                .map(Result::unwrap)
                .collect();
            let mut greedy_waits = pin!(queue.take(&greedy, at(0)));
            assert!(poll_once(&mut greedy_waits).await.is_none(), "the last slot is not for it");
            assert!(!held[0].is_wanted());
            let one = poll_once(pin!(queue.take(&modest, at(100)))).await.unwrap().unwrap();
            let mut two = pin!(queue.take(&modest, at(100)));
            assert!(poll_once(&mut two).await.is_none());
            // The next free slot goes to the host that has the fewest, whatever the other one claims.
            let mut held = held.into_iter();
            drop(held.next());
            let two = poll_once(&mut two).await.unwrap().unwrap();
            assert!(poll_once(&mut greedy_waits).await.is_none());
            drop((one, two));
            assert!(poll_once(&mut greedy_waits).await.is_some());
        });
    }

    #[test]
    fn slow_destination_never_has_all_slots_and_least_slack_goes_first() {
        block_on(async {
            let (queue, slow, fast) = (TransferQueue::by_destination(3), host("slow"), host("fast"));
            // As long as there is no other destination, it may have all.
            let mut held = Vec::new();
            for _ in 0..3 {
                held.push(queue.take(&slow, at(50)).await.unwrap());
            }
            let mut slow_waits = pin!(queue.take(&slow, at(50)));
            let mut fast_waits = pin!(queue.take(&fast, at(100)));
            assert!(poll_once(&mut slow_waits).await.is_none());
            assert!(poll_once(&mut fast_waits).await.is_none());
            // The next slot is not for the one that has all the others, though its data is older.
            held.pop();
            let first = poll_once(&mut fast_waits).await.unwrap().unwrap();
            assert!(poll_once(&mut slow_waits).await.is_none());
            // Of two that may have it, the one with the least slack comes first, whatever it has already.
            let mut second = pin!(queue.take(&fast, at(100)));
            assert!(poll_once(&mut second).await.is_none());
            held.pop();
            let third = poll_once(&mut slow_waits).await.unwrap().unwrap();
            assert!(poll_once(&mut second).await.is_none());
            drop(third);
            assert!(poll_once(&mut second).await.is_some());
            // The slot that is left is kept for others.
            drop(first);
            assert!(poll_once(pin!(queue.take(&slow, at(0)))).await.is_some());
        });
    }

    #[test]
    fn single_slot_goes_round_the_hosts() {
        block_on(async {
            let (queue, greedy, modest) = (TransferQueue::shared(1), host("greedy"), host("modest"));
            let first = queue.take(&greedy, at(0)).await.unwrap();
            let mut again = pin!(queue.take(&greedy, at(0)));
            let mut other = pin!(queue.take(&modest, at(100)));
            assert!(poll_once(&mut again).await.is_none());
            assert!(poll_once(&mut other).await.is_none());
            drop(first);
            assert!(poll_once(&mut again).await.is_none());
            drop(poll_once(&mut other).await.unwrap());
            assert!(poll_once(&mut again).await.is_some());
        });
    }

    #[test]
    fn parked_stream_makes_room_and_is_limited_per_host() {
        block_on(async {
            let (queue, slow, other) = (TransferQueue::shared(1), host("slow"), host("other"));
            let slot = queue.take(&slow, at(0)).await.unwrap();
            let mut waits = pin!(queue.take(&other, at(100)));
            assert!(poll_once(&mut waits).await.is_none());
            assert!(slot.is_wanted());
            let parked = slot.park().unwrap();
            drop(poll_once(&mut waits).await.unwrap());
            let again = queue.take(&slow, at(0)).await.unwrap();
            let again = again.park().unwrap_err();
            drop(parked);
            assert!(again.park().is_ok());
        });
    }

    proptest! {
        /// Whatever is taken, dropped and parked in whatever order: no more slots are used than there are, no host has
        /// more than its share, nobody waits who could have a slot, and in the end all slots are free.
        #[test]
        fn slots_are_never_lost_nor_exceeded(
            limit in 1usize..5, is_shared: bool, steps in prop::collection::vec((0usize..4, 0usize..3, 0i64..9), 1..80)
        ) {
            block_on(async {
                let queue = if is_shared { TransferQueue::shared(limit) } else { TransferQueue::new(limit) };
                let hosts = [host("a"), host("b"), host("c")];
                let (mut held, mut parked, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
                for (what, which, since) in steps {
                    match what {
                        0 | 1 => {
                            let (queue, host) = (queue.clone(), hosts[which].clone());
                            waiting.push(Box::pin(async move { queue.take(&host, at(since)).await.unwrap() }));
                        }
                        2 if which < held.len() => {
                            let slot: QueueSlot = held.swap_remove(which);
                            parked.extend(slot.park().ok());
                        }
                        3 if which < waiting.len() && since < 3 => drop(waiting.swap_remove(which)),
                        _ if which < held.len() => drop(held.swap_remove(which)),
                        _ => drop(parked.pop()),
                    }
                    let mut still = Vec::new();
                    for mut one in std::mem::take(&mut waiting) {
                        match poll_once(&mut one).await {
                            Some(slot) => held.push(slot),
                            None => still.push(one),
                        }
                    }
                    waiting = still;
                    let slots = queue.slots();
                    assert!(slots.used() == held.len() && held.len() <= limit);
                    let most = if is_shared { limit.saturating_sub(1).max(1) } else { limit };
                    assert!(slots.hosts.values().all(|share| share.slots <= most));
                    assert!(slots.waiting.values().all(|(host, _)| !slots.may_take(host)));
                }
                drop((held, waiting, parked));
                let slots = queue.slots();
                assert!(slots.waiting.is_empty() && slots.hosts.values().all(|s| s.slots + s.parked == 0));
            });
        }
    }
}
