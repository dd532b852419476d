//! How far a transfer is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the bytes of a transfer while it runs.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<Bytes>);

#[derive(Debug, Default)]
struct Bytes {
    done: AtomicU64,
    expected: AtomicU64,
}

impl Counter {
    /// Adds bytes.
    pub fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The bytes so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    /// So many bytes more are to come, about.
    pub fn expect(&self, bytes: u64) {
        self.0.expected.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The bytes that there are to be in all, about; `None` where nobody can tell.
    #[must_use]
    pub fn expected(&self) -> Option<u64> {
        Some(self.0.expected.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}
