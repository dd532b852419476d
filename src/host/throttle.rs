//! Keeps what is sent to other hosts within the limits that are in force, at every moment anew: a window that begins
//! or ends, and a configuration that is read again, count amidst a transfer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};

use crate::model::HostName;
use crate::policy::{Bandwidth, Rate};
use crate::sys::{clock, runtime};
use crate::wire::codec::{Pace, Wait};

/// What was not used in a pause may be made up for at once, so far.
const BURST: Duration = Duration::from_millis(100);
/// How many pieces a second a limited stream has: each is waited for before the next, so that limits hold soon.
const PIECES: u64 = 8;
const LEAST_PIECE: u64 = 4 << 10;

/// Time, as a throttle sees it.
trait Time: Send + Sync {
    /// The time of day.
    fn now(&self) -> DateTime<Utc>;
    /// Since some moment, and never backwards.
    fn elapsed(&self) -> Duration;
    fn sleep(&self, duration: Duration) -> Wait;
}

struct RealTime(Instant);

impl Time for RealTime {
    fn now(&self) -> DateTime<Utc> {
        clock::now()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Wait {
        Box::pin(runtime::sleep(duration))
    }
}

/// What has gone by one limit.
#[derive(Clone, Copy, Default)]
struct Bucket {
    /// Up to when what was sent has used the rate up.
    used_up_to: Duration,
}

impl Bucket {
    /// Counts what was sent, and says how long nothing more may be.
    fn charge(&mut self, bytes: u64, rate: Rate, now: Duration) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.bytes().max(1));
        let took = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.used_up_to = self.used_up_to.max(now.saturating_sub(BURST)) + took;
        self.used_up_to.saturating_sub(now)
    }
}

#[derive(Default)]
struct State {
    bandwidth: Bandwidth,
    /// One for each limit.
    buckets: Vec<Bucket>,
}

/// A host's limits, and how far they are used up; of all its transfers together.
pub struct Throttle {
    state: Mutex<State>,
    time: Box<dyn Time>,
}

impl Throttle {
    /// With these limits.
    #[must_use]
    pub fn new(bandwidth: Bandwidth) -> Arc<Self> {
        Self::with_time(bandwidth, Box::new(RealTime(Instant::now())))
    }

    fn with_time(bandwidth: Bandwidth, time: Box<dyn Time>) -> Arc<Self> {
        let throttle = Self { state: Mutex::default(), time };
        throttle.set(bandwidth);
        Arc::new(throttle)
    }

    /// Other limits, also for what is under way.
    pub fn set(&self, bandwidth: Bandwidth) {
        let mut state = self.state();
        if state.bandwidth != bandwidth {
            let buckets = vec![Bucket::default(); bandwidth.limits.len()];
            *state = State { bandwidth, buckets };
        }
    }

    /// How fast streams to a host may go out.
    pub fn towards<'a>(&'a self, to: &'a HostName) -> impl Pace + 'a {
        Towards { throttle: self, to }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// How much may go out at once; `None` where there is no limit.
    fn piece(&self, to: &HostName) -> Option<usize> {
        let state = self.state();
        let least = state.bandwidth.in_force(to, self.time.now()).map(|(_, rate)| rate).min()?;
        usize::try_from((least.bytes() / PIECES).max(LEAST_PIECE)).ok()
    }

    /// Counts what was sent, and says for how long nothing more may be.
    fn charge(&self, to: &HostName, bytes: usize) -> Duration {
        let mut state = self.state();
        let State { bandwidth, buckets } = &mut *state;
        let (now, bytes) = (self.time.elapsed(), bytes as u64);
        let waits = bandwidth.in_force(to, self.time.now()).filter_map(|(place, rate)| {
            let bucket = buckets.get_mut(place)?;
            Some(bucket.charge(bytes, rate, now))
        });
        waits.max().unwrap_or_default()
    }
}

/// How fast streams to one host may go out: what is on the wire counts.
struct Towards<'a> {
    throttle: &'a Throttle,
    to: &'a HostName,
}

impl Pace for Towards<'_> {
    fn at_once(&self) -> Option<usize> {
        self.throttle.piece(self.to)
    }

    fn went_out(&self, bytes: usize) -> Option<Wait> {
        let wait = self.throttle.charge(self.to, bytes);
        (!wait.is_zero()).then(|| self.throttle.time.sleep(wait))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures_lite::io::{AsyncRead, Cursor};

    use super::*;
    use crate::model::Counter;
    use crate::policy::Limit;
    use crate::wire::codec::{Conn, Sent, StreamOptions};

    /// Time that passes only by waiting.
    #[derive(Clone)]
    struct Waited(Arc<Mutex<Duration>>, DateTime<Utc>);

    impl Waited {
        fn from(start: &str) -> Self {
            Self(Arc::default(), start.parse().unwrap())
        }
    }

    impl Time for Waited {
        fn now(&self) -> DateTime<Utc> {
            self.1 + self.elapsed()
        }

        fn elapsed(&self) -> Duration {
            *self.0.lock()
        }

        fn sleep(&self, duration: Duration) -> Wait {
            *self.0.lock() += duration;
            Box::pin(async {})
        }
    }

    fn limit(rate: &str, destination: Option<&str>, hours: Option<(&str, &str)>) -> Limit {
        let time = |text: &str| text.parse().unwrap();
        Limit {
            rate: rate.parse().unwrap(),
            destination: destination.map(|host| host.parse().unwrap()),
            hours: hours.map(|(from, until)| (time(from), time(until))),
            days: Vec::new(),
        }
    }

    fn limits<const N: usize>(limits: [Limit; N]) -> Bandwidth {
        Bandwidth { limits: limits.into(), ..Bandwidth::default() }
    }

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    /// Sends so many bytes over a connection in memory; gives how long that took.
    fn send(throttle: &Throttle, time: &Waited, to: &str, bytes: usize) -> f64 {
        send_packed(throttle, time, to, bytes, None)
    }

    fn send_packed(throttle: &Throttle, time: &Waited, to: &str, bytes: usize, zstd: Option<i32>) -> f64 {
        let before = time.elapsed();
        let counter = Counter::default();
        runtime::block_on(async {
            let mut conn = Conn::new(Box::new(Silence), Box::new(Cursor::new(Vec::new())), "peer".into());
            let (to, mut stream) = (host(to), Cursor::new(vec![7; bytes]));
            let way = StreamOptions { pace: Some(&throttle.towards(&to)), zstd };
            assert_eq!(conn.send_stream(&mut stream, way, &counter).await.unwrap(), Sent::All);
        });
        assert_eq!(counter.get(), bytes as u64);
        (time.elapsed() - before).as_secs_f64()
    }

    /// Nobody speaks at the other end.
    struct Silence;

    impl AsyncRead for Silence {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
    }

    fn about(seconds: f64, wanted: f64) -> bool {
        (seconds - wanted).abs() <= 0.3
    }

    #[test]
    fn a_stream_is_as_fast_as_its_limit_says() {
        let time = Waited::from("2026-11-23T12:00:00Z");
        let bandwidth = limits([limit("1MB/s", None, None), limit("250kB/s", Some("beta"), None)]);
        let throttle = Throttle::with_time(bandwidth, Box::new(time.clone()));
        assert!(about(send(&throttle, &time, "gamma", 2_000_000), 2.0));
        assert!(about(send(&throttle, &time, "beta", 1_000_000), 4.0), "the lesser of two holds");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let time = Waited::from("2026-11-23T12:00:00Z");
        let throttle = Throttle::with_time(limits([limit("1MB/s", Some("beta"), None)]), Box::new(time.clone()));
        assert_eq!(send(&throttle, &time, "gamma", 20_000_000), 0.0);
        assert_eq!(throttle.piece(&host("gamma")), None, "it is read in pieces as large as ever");
    }

    #[test]
    fn a_window_that_begins_or_ends_counts_amidst_a_transfer() {
        let work = || limits([limit("100kB/s", None, Some(("08:00:00", "18:00:00"))), limit("1MB/s", None, None)]);
        let time = Waited::from("2026-11-23T07:59:58Z");
        let throttle = Throttle::with_time(work(), Box::new(time.clone()));
        // Two seconds at 1 MB, the last 500 kB at 100 kB.
        assert!(about(send(&throttle, &time, "beta", 2_500_000), 7.0));
        let time = Waited::from("2026-11-23T17:59:55Z");
        let throttle = Throttle::with_time(work(), Box::new(time.clone()));
        assert!(about(send(&throttle, &time, "beta", 2_500_000), 7.0));
    }

    #[test]
    fn limits_that_are_read_again_count_amidst_a_transfer() {
        let time = Waited::from("2026-11-23T12:00:00Z");
        let throttle = Throttle::with_time(limits([limit("100kB/s", None, None)]), Box::new(time.clone()));
        let to = host("beta");
        let pace = throttle.towards(&to);
        let pass = |bytes: usize| {
            let piece = pace.at_once().unwrap();
            for _ in 0..bytes / piece {
                drop(pace.went_out(piece));
            }
        };
        pass(100_000);
        throttle.set(limits([limit("1MB/s", None, None)]));
        pass(1_000_000);
        assert!(about(time.elapsed().as_secs_f64(), 2.0), "{:?}", time.elapsed());
    }

    #[test]
    fn of_a_compressed_stream_the_limit_counts_what_is_on_the_wire() {
        let time = Waited::from("2026-11-23T12:00:00Z");
        let throttle = Throttle::with_time(limits([limit("1MB/s", None, None)]), Box::new(time.clone()));
        let took = send_packed(&throttle, &time, "beta", 100_000_000, Some(1));
        assert!(took < 2.0, "{took}");
    }

    #[test]
    fn transfers_share_a_limit() {
        let time = Waited::from("2026-11-23T12:00:00Z");
        let throttle = Throttle::with_time(limits([limit("1MB/s", None, None)]), Box::new(time.clone()));
        for _ in 0..50 {
            for to in ["beta", "gamma"] {
                drop(throttle.towards(&host(to)).went_out(10_000));
            }
        }
        assert!(about(time.elapsed().as_secs_f64(), 1.0), "{:?}", time.elapsed());
    }
}
