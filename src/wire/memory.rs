//! Limits the memory of all listings that a process is receiving.
//!
//! A director asks many hosts at once, and keeps what they send until their listings are complete. If that exceeds
//! [`LIMIT`], the largest of these listings is given up, so that neither a hostile host nor a huge one uses up the memory
//! that the others need.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use parking_lot::Mutex;

use crate::model::{Bookmark, DatasetInventory, Snapshot};
use crate::sys::runtime::channel::{self, Receiver, Sender};
use crate::wire::Facts;

/// How much memory the listings may take that are being received: enough for one listing of about six million snapshots,
/// which is more than fits into one conversation.
pub const LIMIT: u64 = 1 << 30;

/// The memory of the listings that this process is receiving.
pub(crate) static LISTINGS: LazyLock<ListingMemory> = LazyLock::new(|| ListingMemory::new(LIMIT));

/// A limit for the memory of listings.
pub(crate) struct ListingMemory {
    limit: u64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// How many listings were begun so far.
    begun: u64,
    /// The size of each listing. If it is removed, the channel is closed, which gives up the listing.
    listings: BTreeMap<u64, (u64, Sender<()>)>,
}

/// A listing that is being received. Its memory counts until this is dropped.
pub(crate) struct Receiving<'a> {
    memory: &'a ListingMemory,
    id: u64,
    given_up: Receiver<()>,
}

/// Why a listing was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the listings that arrive at the same time exceed {} MiB, and this one was the largest; hint: check whether the \
     host has more snapshots than it should",
    limit >> 20
)]
pub(crate) struct TooMuchMemory {
    limit: u64,
}

impl ListingMemory {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, held: Mutex::default() }
    }

    /// Begins to receive a listing.
    pub(crate) fn receive(&self) -> Receiving<'_> {
        let (sender, given_up) = channel::bounded(1);
        let mut held = self.held.lock();
        let id = held.begun;
        held.begun += 1;
        held.listings.insert(id, (0, sender));
        Receiving { memory: self, id, given_up }
    }
}

impl Receiving<'_> {
    /// Counts more of this listing. If there is too much of all listings, gives up the largest.
    pub(crate) fn add(&self, bytes: u64) {
        let mut held = self.memory.held.lock();
        if let Some((size, _)) = held.listings.get_mut(&self.id) {
            *size += bytes;
        }
        while held.listings.values().map(|(size, _)| size).sum::<u64>() > self.memory.limit {
            let largest = held.listings.iter().max_by_key(|(_, (size, _))| *size).map(|(id, _)| *id);
            held.listings.remove(&largest.unwrap_or_default());
        }
    }

    /// Receives the listing, unless it has to be given up. Then what has arrived is dropped at once.
    pub(crate) async fn unless_too_much<T>(&self, receiving: impl Future<Output = T>) -> Result<T, TooMuchMemory> {
        let given_up = async {
            // The channel is only ever closed.
            self.given_up.recv().await.unwrap_or_default();
            Err(TooMuchMemory { limit: self.memory.limit })
        };
        // On the heap, because a whole order may be carried out in it.
        let receiving = Box::pin(receiving);
        futures_lite::future::or(given_up, async { Ok(receiving.await) }).await
    }

    /// Whether the listing has to be given up.
    pub(crate) fn is_given_up(&self) -> Option<TooMuchMemory> {
        self.given_up.is_closed().then_some(TooMuchMemory { limit: self.memory.limit })
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.memory.held.lock().listings.remove(&self.id);
    }
}

/// The approximate memory of an element of a list: its fields and, on the heap, a short name.
const fn element<T>(count: usize) -> u64 {
    (count * (size_of::<T>() + 32)) as u64
}

/// The approximate memory that facts take.
pub(crate) fn of_facts(facts: &Facts) -> u64 {
    let Facts { taken, not_written, destroyed, listing, unlisted, permits } = facts;
    element::<Facts>(1 + unlisted.len())
        + element::<(u64, Snapshot)>(taken.len() + not_written.len() + destroyed.len() + permits.len())
        + listing.as_ref().map_or(0, |listing| of_dataset(&listing.inventory))
}

/// The approximate memory that a part of a dataset's listing takes.
pub(crate) fn of_dataset(inventory: &DatasetInventory) -> u64 {
    let texts: usize = inventory.transfer_holds.iter().chain(&inventory.resume_token).map(String::len).sum();
    element::<DatasetInventory>(1)
        + element::<Snapshot>(inventory.snapshots.len())
        + element::<Bookmark>(inventory.bookmarks.len() + inventory.not_written.len() + inventory.transfer_holds.len())
        + texts as u64
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_lite::future::{block_on, pending, poll_once};

    use super::*;

    #[test]
    fn largest_listing_is_given_up_and_others_continue() {
        block_on(async {
            let memory = ListingMemory::new(1000);
            let (small, huge, late) = (memory.receive(), memory.receive(), memory.receive());
            let mut small_ends = pin!(small.unless_too_much(pending::<()>()));
            let mut huge_ends = pin!(huge.unless_too_much(pending::<()>()));
            small.add(200);
            huge.add(800);
            assert!(poll_once(&mut huge_ends).await.is_none());
            late.add(1);
            let error = poll_once(&mut huge_ends).await.unwrap().unwrap_err();
            assert!(error.to_string().contains("this one was the largest; hint: "), "{error}");
            assert!(poll_once(&mut small_ends).await.is_none());
            // What was given up counts no more, and what has ended neither.
            huge.add(5000);
            late.add(700);
            assert!(poll_once(&mut small_ends).await.is_none());
            drop(late);
            small.add(700);
            assert!(poll_once(&mut small_ends).await.is_none());
            small.add(200);
            assert!(poll_once(&mut small_ends).await.is_some());
            assert!(memory.held.lock().listings.is_empty());
        });
    }
}
