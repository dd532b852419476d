//! Limits the number of concurrent transfers. A free slot goes to the transfer whose data has been waiting longest, not
//! to the one that asked first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};

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
    free: usize,
    /// How many transfers had to wait so far.
    waited: u64,
    waiting: BTreeMap<Priority, Sender<QueueSlot>>,
}

/// Since when the oldest data has been waiting, then the order of arrival. The lowest value goes first.
type Priority = (DateTime<Utc>, u64);

/// The right to run a transfer. The slot becomes free when this is dropped.
#[derive(Debug)]
pub struct QueueSlot(TransferQueue);

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
    /// Creates a queue with this number of slots.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Slots { limit, free: limit, waited: 0, waiting: BTreeMap::new() })))
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock()
    }

    /// Waits for a slot, for data that has been waiting since `since`. After [`WAIT_FOR_SLOT`] it fails with the number
    /// of slots.
    pub async fn take(&self, since: DateTime<Utc>) -> Result<QueueSlot, usize> {
        let limit = self.slots().limit;
        runtime::timeout(WAIT_FOR_SLOT, self.wait(since)).await.map_err(|runtime::Elapsed| limit)
    }

    async fn wait(&self, since: DateTime<Utc>) -> QueueSlot {
        loop {
            let (priority, receiver) = {
                let mut slots = self.slots();
                if slots.free > 0 {
                    slots.free -= 1;
                    return QueueSlot(self.clone());
                }
                let (sender, receiver) = channel::bounded(1);
                let priority = (since, slots.waited);
                slots.waited += 1;
                slots.waiting.insert(priority, sender);
                (priority, receiver)
            };
            let _waiting = Waiting { queue: self, priority };
            if let Ok(slot) = receiver.recv().await {
                return slot;
            }
        }
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        let next = {
            let mut slots = self.0.slots();
            let next = slots.waiting.pop_first();
            if next.is_none() {
                slots.free += 1;
            }
            next
        };
        if let Some((_, sender)) = next {
            // If the transfer has just stopped waiting, the slot is dropped, which passes it on to the next one.
            drop(sender.try_send(QueueSlot(self.0.clone())));
        }
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

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn take_serves_the_longest_waiting_data_and_skips_dropped_callers() {
        block_on(async {
            let queue = TransferQueue::new(1);
            let first = queue.take(at(50)).await.unwrap();
            let mut young = pin!(queue.take(at(30)));
            let mut old = pin!(queue.take(at(10)));
            let mut gone = Box::pin(queue.take(at(5)));
            assert!(poll_once(&mut young).await.is_none());
            assert!(poll_once(&mut old).await.is_none());
            assert!(poll_once(&mut gone).await.is_none());
            drop(first);
            // It was given the slot, but never took it.
            drop(gone);
            assert!(poll_once(&mut young).await.is_none());
            let second = poll_once(&mut old).await.unwrap().unwrap();
            drop(second);
            let third = poll_once(&mut young).await.unwrap().unwrap();
            assert_eq!(queue.slots().free, 0);
            drop(third);
            let slots = queue.slots();
            assert_eq!((slots.free, slots.waiting.len()), (1, 0));
        });
    }
}
