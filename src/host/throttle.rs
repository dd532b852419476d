//! Keeps the streams that are sent to other hosts within the bandwidth limits. The limits in force are determined for
//! each piece of a stream, so a time window that begins or ends, or a reloaded configuration, affects running
//! transfers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};

use crate::model::HostName;
use crate::policy::{Bandwidth, Rate};
use crate::sys::{clock, runtime};
use crate::wire::codec::{Pace, Wait};

/// After a pause, a stream may use the unused bandwidth of at most this time.
const BURST: Duration = Duration::from_millis(100);
/// How many pieces per second a limited stream is sent in. A change of the limits takes effect with the next piece.
const PIECES: u64 = 8;
/// The size of the smallest piece, in bytes.
const MIN_PIECE: u64 = 4 << 10;

/// The clocks of a throttle, so that tests need not wait.
trait Time: Send + Sync {
    /// The wall clock time, for time windows.
    fn now(&self) -> DateTime<Utc>;
    /// The time since some moment. It never goes backwards.
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

/// How far one limit is used up.
#[derive(Clone, Copy, Default)]
struct Bucket {
    /// The moment until which the rate is used up by what was sent.
    used_up_to: Duration,
}

impl Bucket {
    /// Counts sent bytes, and returns for how long nothing more may be sent.
    fn charge(&mut self, bytes: u64, rate: Rate, now: Duration) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.bytes().max(1));
        let took = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.used_up_to = self.used_up_to.max(now.saturating_sub(BURST)) + took;
        self.used_up_to.saturating_sub(now)
    }
}

#[derive(Default)]
struct Usage {
    bandwidth: Bandwidth,
    /// One bucket per limit.
    buckets: Vec<Bucket>,
}

/// The bandwidth limits of a host, shared by all its transfers.
pub struct Throttle {
    usage: Mutex<Usage>,
    time: Box<dyn Time>,
}

impl Throttle {
    /// Creates a throttle with these limits.
    #[must_use]
    pub fn new(bandwidth: Bandwidth) -> Arc<Self> {
        Self::with_time(bandwidth, Box::new(RealTime(Instant::now())))
    }

    fn with_time(bandwidth: Bandwidth, time: Box<dyn Time>) -> Arc<Self> {
        let throttle = Self { usage: Mutex::default(), time };
        throttle.set(bandwidth);
        Arc::new(throttle)
    }

    /// Changes the limits, also for running transfers.
    pub fn set(&self, bandwidth: Bandwidth) {
        let mut usage = self.usage();
        if usage.bandwidth != bandwidth {
            let buckets = vec![Bucket::default(); bandwidth.limits.len()];
            *usage = Usage { bandwidth, buckets };
        }
    }

    /// The pace of streams to a host.
    pub fn towards<'a>(&'a self, to: &'a HostName) -> impl Pace + 'a {
        Towards { throttle: self, to }
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock()
    }

    /// How many bytes may be sent at once; `None` if there is no limit.
    fn piece(&self, to: &HostName) -> Option<usize> {
        let usage = self.usage();
        let least = usage.bandwidth.in_force(to, self.time.now()).map(|(_, rate)| rate).min()?;
        usize::try_from((least.bytes() / PIECES).max(MIN_PIECE)).ok()
    }

    /// Counts sent bytes, and returns for how long nothing more may be sent.
    fn charge(&self, to: &HostName, bytes: usize) -> Duration {
        let mut usage = self.usage();
        let Usage { bandwidth, buckets } = &mut *usage;
        let (now, bytes) = (self.time.elapsed(), bytes as u64);
        let waits = bandwidth.in_force(to, self.time.now()).filter_map(|(index, rate)| {
            let bucket = buckets.get_mut(index)?;
            Some(bucket.charge(bytes, rate, now))
        });
        waits.max().unwrap_or_default()
    }
}

/// The pace of streams to one host. The bytes on the wire count, after compression.
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

    /// Clocks that advance only by sleeping.
    #[derive(Clone)]
    struct FakeTime(Arc<Mutex<Duration>>, DateTime<Utc>);

    impl FakeTime {
        fn from(start: &str) -> Self {
            Self(Arc::default(), start.parse().unwrap())
        }
    }

    impl Time for FakeTime {
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

    /// Sends bytes over a connection in memory, and returns how many seconds that took.
    fn send(throttle: &Throttle, time: &FakeTime, to: &str, bytes: usize) -> f64 {
        send_compressed(throttle, time, to, bytes, None)
    }

    fn send_compressed(throttle: &Throttle, time: &FakeTime, to: &str, bytes: usize, zstd: Option<i32>) -> f64 {
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

    /// The input of a peer that never sends anything.
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
    fn stream_is_limited_by_the_lowest_limit() {
        let time = FakeTime::from("2026-11-23T12:00:00Z");
        let bandwidth = limits([limit("1MB/s", None, None), limit("250kB/s", Some("beta"), None)]);
        let throttle = Throttle::with_time(bandwidth, Box::new(time.clone()));
        assert!(about(send(&throttle, &time, "gamma", 2_000_000), 2.0));
        assert!(about(send(&throttle, &time, "beta", 1_000_000), 4.0), "the lower of two limits applies");
    }

    #[test]
    fn stream_without_a_limit_does_not_wait() {
        let time = FakeTime::from("2026-11-23T12:00:00Z");
        let throttle = Throttle::with_time(limits([limit("1MB/s", Some("beta"), None)]), Box::new(time.clone()));
        assert_eq!(send(&throttle, &time, "gamma", 20_000_000), 0.0);
        assert_eq!(throttle.piece(&host("gamma")), None, "pieces are not limited either");
    }

    #[test]
    fn time_window_affects_a_running_transfer() {
        let office_hours =
            || limits([limit("100kB/s", None, Some(("08:00:00", "18:00:00"))), limit("1MB/s", None, None)]);
        let time = FakeTime::from("2026-11-23T07:59:58Z");
        let throttle = Throttle::with_time(office_hours(), Box::new(time.clone()));
        // Two seconds at 1 MB/s, then the last 500 kB at 100 kB/s.
        assert!(about(send(&throttle, &time, "beta", 2_500_000), 7.0));
        let time = FakeTime::from("2026-11-23T17:59:55Z");
        let throttle = Throttle::with_time(office_hours(), Box::new(time.clone()));
        assert!(about(send(&throttle, &time, "beta", 2_500_000), 7.0));
    }

    #[test]
    fn set_affects_a_running_transfer() {
        let time = FakeTime::from("2026-11-23T12:00:00Z");
        let throttle = Throttle::with_time(limits([limit("100kB/s", None, None)]), Box::new(time.clone()));
        let to = host("beta");
        let pace = throttle.towards(&to);
        let send = |bytes: usize| {
            let piece = pace.at_once().unwrap();
            for _ in 0..bytes / piece {
                drop(pace.went_out(piece));
            }
        };
        send(100_000);
        throttle.set(limits([limit("1MB/s", None, None)]));
        send(1_000_000);
        assert!(about(time.elapsed().as_secs_f64(), 2.0), "{:?}", time.elapsed());
    }

    #[test]
    fn limit_applies_to_the_compressed_stream() {
        let time = FakeTime::from("2026-11-23T12:00:00Z");
        let throttle = Throttle::with_time(limits([limit("1MB/s", None, None)]), Box::new(time.clone()));
        let seconds = send_compressed(&throttle, &time, "beta", 100_000_000, Some(1));
        assert!(seconds < 2.0, "{seconds}");
    }

    #[test]
    fn transfers_share_limits() {
        let time = FakeTime::from("2026-11-23T12:00:00Z");
        let throttle = Throttle::with_time(limits([limit("1MB/s", None, None)]), Box::new(time.clone()));
        for _ in 0..50 {
            for to in ["beta", "gamma"] {
                drop(throttle.towards(&host(to)).went_out(10_000));
            }
        }
        assert!(about(time.elapsed().as_secs_f64(), 1.0), "{:?}", time.elapsed());
    }
}
