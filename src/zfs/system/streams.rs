//! The streams that processes of this program send and receive: what comes after one is little, and most of it costs a
//! process, so it is done together with the same of others that end soon.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A stream that is no older will probably end soon, too. What is older is large, and nobody waits for it.
const YOUNG: Duration = Duration::from_secs(20);

/// The streams under way, each with the moment when it began; shared by clones.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams(Arc<Mutex<Began>>);

#[derive(Debug, Default)]
struct Began {
    count: u64,
    at: BTreeMap<u64, Instant>,
}

/// A stream under way, until this is dropped.
#[derive(Debug)]
pub(super) struct Underway {
    streams: Streams,
    number: u64,
}

impl Streams {
    fn began(&self) -> MutexGuard<'_, Began> {
        self.0.lock()
    }

    pub(super) fn begin(&self) -> Underway {
        let mut began = self.began();
        began.count += 1;
        let number = began.count;
        began.at.insert(number, Instant::now());
        Underway { streams: self.clone(), number }
    }

    /// Whether one of them will probably end soon.
    pub(super) fn any_ends_soon(&self) -> bool {
        // They have begun one after the other.
        self.began().at.values().next_back().is_some_and(|at| at.elapsed() < YOUNG)
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.streams.began().at.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_is_over_is_waited_for_no_more() {
        let streams = Streams::default();
        let (first, second) = (streams.begin(), streams.begin());
        drop(second);
        assert!(streams.clone().any_ends_soon());
        drop(first);
        assert!(!streams.any_ends_soon());
    }
}
