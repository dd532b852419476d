//! Decides when to retry an order that failed for a reason that may pass.

use std::time::{Duration, Instant};

/// The first pause.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How many attempts an order gets, whatever happens.
const MAX_ATTEMPTS: u32 = 20;

/// The attempts of one order. Pauses double up to a limit, each with some jitter, so that many agents that lost the
/// same peer do not all reconnect at once. The time limit counts from the order's arrival or, if later, from the last
/// attempt that moved any bytes.
#[derive(Debug)]
pub struct Retry {
    limit: Duration,
    since: Instant,
    attempts: u32,
    /// Attempts since any bytes were moved.
    fruitless: u32,
}

impl Retry {
    /// Begins the first attempt.
    #[must_use]
    pub fn within(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), attempts: 1, fruitless: 1 }
    }

    /// Whether this is still the first attempt.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.attempts == 1
    }

    /// Records that the attempt that just failed moved some bytes: the time limit and the pauses start from the
    /// beginning.
    pub fn moved(&mut self) {
        (self.since, self.fruitless) = (Instant::now(), 1);
    }

    /// How long to wait before the next attempt; `None` if the order has no time or attempts left.
    #[must_use]
    pub fn pause(&mut self) -> Option<Duration> {
        let pause = pause(self.fruitless, fastrand::f64());
        if self.attempts >= MAX_ATTEMPTS || self.since.elapsed() + pause > self.limit {
            return None;
        }
        self.attempts += 1;
        self.fruitless += 1;
        Some(pause)
    }
}

/// The pause after this number of fruitless attempts; `jitter` is between 0 and 1.
fn pause(fruitless: u32, jitter: f64) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << fruitless.saturating_sub(1).min(16)).min(MAX_PAUSE);
    full.mul_f64(0.5 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let bounds: Vec<(u128, u128)> =
            (1..8).map(|n| (pause(n, 0.0).as_millis(), pause(n, 1.0).as_millis())).collect();
        assert_eq!(
            bounds,
            [(500, 1000), (1000, 2000), (2000, 4000), (4000, 8000), (8000, 16000), (15000, 30000), (15000, 30000)]
        );
        assert!(pause(u32::MAX, 1.0) <= MAX_PAUSE);
    }

    #[test]
    fn retry_ends_with_its_time_and_its_attempts() {
        assert_eq!(Retry::within(Duration::ZERO).pause(), None);
        let mut retry = Retry::within(Duration::from_secs(86_400));
        let pauses = std::iter::from_fn(|| retry.pause()).count();
        assert_eq!(pauses, 19, "the first attempt has no pause before it");
    }
}
