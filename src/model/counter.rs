//! The progress of a transfer, shared by the task that moves the bytes and the code that displays them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Counts the bytes of a transfer while it runs. Clones share one count.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<Bytes>);

#[derive(Debug, Default)]
struct Bytes {
    done: AtomicU64,
    expected: AtomicU64,
    waits_for: Mutex<Option<String>>,
}

impl Counter {
    /// Counts bytes that were moved.
    pub fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The bytes moved so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    /// Sets what the transfer waits for before it can continue; `None` if it does not wait.
    pub fn set_waiting(&self, waits_for: Option<String>) {
        *self.0.waits_for.lock() = waits_for;
    }

    /// Waits for something, and says so meanwhile.
    pub async fn waiting_for<T>(&self, what: &str, event: impl Future<Output = T>) -> T {
        self.set_waiting(Some(what.to_owned()));
        let happened = event.await;
        self.set_waiting(None);
        happened
    }

    /// What the transfer waits for before it can continue, as a noun phrase.
    #[must_use]
    pub fn waits_for(&self) -> Option<String> {
        self.0.waits_for.lock().clone()
    }

    /// Adds to the estimate of how many bytes there will be in total.
    pub fn expect(&self, bytes: u64) {
        self.0.expected.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The estimated total in bytes; `None` if there is no estimate.
    #[must_use]
    pub fn expected(&self) -> Option<u64> {
        Some(self.0.expected.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}
