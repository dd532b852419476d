//! Judges whether the director's loop still makes progress. Only then is the watchdog of the service manager told that
//! the process is alive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::director::progress::PassProgress;

/// How long a pass may begin and end nothing, and move no byte. Everything that it waits for has a deadline. The longest
/// is a day, the largest `stall_timeout`; before that, an order may wait an hour for each of two slots.
const STUCK_AFTER: Duration = Duration::from_secs(27 * 3600);

/// What the loop is doing. Clones share one state.
#[derive(Clone, Default)]
pub(crate) struct Heartbeat(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The running pass, or the last one, and its activity when it was seen last.
    pass: Option<(PassProgress, (u64, u64))>,
    /// When the loop counts as stuck; `None` while it waits for something that may never come.
    stuck_at: Option<Instant>,
}

impl Heartbeat {
    /// The loop has reached its next step.
    pub(crate) fn step(&self) {
        self.wait(Some(Duration::ZERO));
    }

    /// The loop waits: for this long, or, with `None`, as long as it takes.
    pub(crate) fn wait(&self, limit: Option<Duration>) {
        let limit = limit.map(|limit| limit.saturating_add(STUCK_AFTER));
        self.0.lock().stuck_at = limit.and_then(|limit| Instant::now().checked_add(limit));
    }

    /// The loop makes a pass.
    pub(crate) fn works(&self, pass: PassProgress) {
        self.step();
        self.0.lock().pass = Some((pass, (0, 0)));
    }

    /// Whether the loop has made progress recently enough.
    pub(crate) fn is_alive(&self, now: Instant) -> bool {
        let mut state = self.0.lock();
        let State { pass, stuck_at } = &mut *state;
        if let (Some((pass, seen)), Some(stuck_at)) = (pass, &mut *stuck_at) {
            let activity = pass.activity();
            if activity != *seen {
                *seen = activity;
                *stuck_at = (*stuck_at).max(now + STUCK_AFTER);
            }
        }
        stuck_at.is_none_or(|stuck_at| now < stuck_at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn pass_without_activity_is_alive_for_a_while_only() {
        let (heartbeat, pass, began) = (Heartbeat::default(), PassProgress::default(), Instant::now());
        heartbeat.works(pass.clone());
        assert!(heartbeat.is_alive(began + 26 * HOUR) && !heartbeat.is_alive(began + 28 * HOUR));
        pass.unseen(&BTreeMap::new());
        assert!(heartbeat.is_alive(began + 28 * HOUR), "a host was polled");
        assert!(heartbeat.is_alive(began + 54 * HOUR) && !heartbeat.is_alive(began + 56 * HOUR));
        heartbeat.step();
        assert!(heartbeat.is_alive(began + HOUR));
    }

    #[test]
    fn waiting_loop_is_alive_as_long_as_it_should_wait() {
        let (heartbeat, began) = (Heartbeat::default(), Instant::now());
        heartbeat.wait(Some(24 * HOUR));
        assert!(heartbeat.is_alive(began + 50 * HOUR) && !heartbeat.is_alive(began + 52 * HOUR));
        heartbeat.wait(None);
        assert!(heartbeat.is_alive(began + 1000 * HOUR));
        heartbeat.wait(Some(Duration::MAX));
        assert!(heartbeat.is_alive(began));
    }
}
