//! So many transfers at once: who waits for a place gets the next one by how long its data has been waiting, not by
//! when it asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};

use crate::sys::runtime;
use crate::sys::runtime::channel;
use crate::sys::runtime::channel::Sender;

/// How long an order waits for a place. Those before it may be the first copies of large datasets.
pub const WAIT_FOR_SLOT: Duration = Duration::from_secs(3600);

/// The places of a host for transfers in one direction; clones share them.
#[derive(Clone, Debug)]
pub struct TransferQueue(Arc<Mutex<Places>>);

#[derive(Debug)]
struct Places {
    limit: usize,
    free: usize,
    asked: u64,
    waiting: BTreeMap<Turn, Sender<QueueSlot>>,
}

/// Since when the oldest data waits, then who asked first.
type Turn = (DateTime<Utc>, u64);

/// A place, given back when it is dropped.
#[derive(Debug)]
pub struct QueueSlot(TransferQueue);

/// A place in the queue, given up when it is dropped.
struct Waiting<'a> {
    slots: &'a TransferQueue,
    turn: Turn,
}

/// What is said to an order that found no place.
#[must_use]
pub fn queue_timeout(key: &str, limit: usize) -> String {
    let waited = humantime::format_duration(WAIT_FOR_SLOT);
    format!("{limit} other transfers, as many as {key} in local.json allows, were under way for {waited}")
}

impl TransferQueue {
    /// So many places.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Places { limit, free: limit, asked: 0, waiting: BTreeMap::new() })))
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock()
    }

    /// Waits for a place, not longer than [`WAIT_FOR_SLOT`]; the error tells how many there are.
    pub async fn take(&self, since: DateTime<Utc>) -> Result<QueueSlot, usize> {
        let limit = self.places().limit;
        runtime::timeout(WAIT_FOR_SLOT, self.wait(since)).await.map_err(|runtime::Elapsed| limit)
    }

    async fn wait(&self, since: DateTime<Utc>) -> QueueSlot {
        loop {
            let (turn, given) = {
                let mut places = self.places();
                if places.free > 0 {
                    places.free -= 1;
                    return QueueSlot(self.clone());
                }
                let (sender, given) = channel::bounded(1);
                let turn = (since, places.asked);
                places.asked += 1;
                places.waiting.insert(turn, sender);
                (turn, given)
            };
            let _waiting = Waiting { slots: self, turn };
            if let Ok(slot) = given.recv().await {
                return slot;
            }
        }
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        let next = {
            let mut places = self.0.places();
            let next = places.waiting.pop_first();
            if next.is_none() {
                places.free += 1;
            }
            next
        };
        if let Some((_, sender)) = next {
            // One who has just given up waiting hands it on: what cannot be sent, or is not received, is dropped.
            drop(sender.try_send(QueueSlot(self.0.clone())));
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.slots.places().waiting.remove(&self.turn);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn the_longest_waiting_data_goes_next_and_one_who_gives_up_holds_up_nobody() {
        block_on(async {
            let slots = TransferQueue::new(1);
            let first = slots.take(at(50)).await.unwrap();
            let mut young = pin!(slots.take(at(30)));
            let mut old = pin!(slots.take(at(10)));
            let mut gone = Box::pin(slots.take(at(5)));
            assert!(poll_once(&mut young).await.is_none());
            assert!(poll_once(&mut old).await.is_none());
            assert!(poll_once(&mut gone).await.is_none());
            drop(first);
            // It was given the place, and never took it.
            drop(gone);
            assert!(poll_once(&mut young).await.is_none());
            let second = poll_once(&mut old).await.unwrap().unwrap();
            drop(second);
            let third = poll_once(&mut young).await.unwrap().unwrap();
            assert_eq!(slots.places().free, 0);
            drop(third);
            let places = slots.places();
            assert_eq!((places.free, places.waiting.len()), (1, 0));
        });
    }
}
