//! When to try again what failed for a reason that may pass.

use std::time::{Duration, Instant};

/// The first pause, the longest one, and how many tries an order gets whatever happens.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
const MOST_TRIES: u32 = 20;

/// The tries of one order: pauses double up to a limit, each with some jitter, so that many who lost the same peer do
/// not all come back at once. The time is that since the order came or, if later, since a try that moved some bytes.
#[derive(Debug)]
pub struct Retry {
    limit: Duration,
    since: Instant,
    tries: u32,
    /// Tries since something moved.
    fruitless: u32,
}

impl Retry {
    /// The first try begins now.
    #[must_use]
    pub fn within(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), tries: 1, fruitless: 1 }
    }

    /// Whether nothing was tried again yet.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.tries == 1
    }

    /// The try that just failed moved something: the time begins anew.
    pub fn moved(&mut self) {
        (self.since, self.fruitless) = (Instant::now(), 1);
    }

    /// How long to wait before the next try; `None` when it would come too late.
    #[must_use]
    pub fn pause(&mut self) -> Option<Duration> {
        let pause = pause(self.fruitless, fastrand::f64());
        if self.tries >= MOST_TRIES || self.since.elapsed() + pause > self.limit {
            return None;
        }
        self.tries += 1;
        self.fruitless += 1;
        Some(pause)
    }
}

/// The pause after so many tries that moved nothing; `jitter` is between 0 and 1.
fn pause(fruitless: u32, jitter: f64) -> Duration {
    let whole = FIRST.saturating_mul(1 << fruitless.saturating_sub(1).min(16)).min(LONGEST);
    whole.mul_f64(0.5 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_within_bounds_and_end_with_the_time() {
        let shown: Vec<(u128, u128)> = (1..8).map(|n| (pause(n, 0.0).as_millis(), pause(n, 1.0).as_millis())).collect();
        assert_eq!(
            shown,
            [(500, 1000), (1000, 2000), (2000, 4000), (4000, 8000), (8000, 16000), (15000, 30000), (15000, 30000)]
        );
        assert!(pause(u32::MAX, 1.0) <= LONGEST);
        assert_eq!(Retry::within(Duration::ZERO).pause(), None);
        let mut retry = Retry::within(Duration::from_secs(86_400));
        let tries = std::iter::from_fn(|| retry.pause()).count();
        assert_eq!(tries, 19, "the first one comes before");
    }
}
