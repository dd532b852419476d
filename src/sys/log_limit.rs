//! Limits how many lines a peer can cause in the log, so that nobody can fill the journal from outside.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::sys::runtime;

/// The time for which lines are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// How many peers and kinds may be remembered before those without recent lines are forgotten.
const MAX_REMEMBERED: usize = 1024;

/// What a line in the log is about. Each kind has a limit of its own, so that one cannot hide another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Complaint {
    /// The peer has too many connections.
    TooMany,
    /// The peer could not prove who it is, or speaks another protocol.
    Rejected,
    /// The conversation failed: the peer violated the protocol or was silent.
    Failed,
    /// The peer asked for something that it may not do.
    Forbidden,
    /// An order of the peer failed. An honest director gives many orders.
    Order,
}

impl Complaint {
    /// How many lines of this kind a peer may cause within a minute.
    fn most(self) -> u32 {
        match self {
            Self::Order => 60,
            _ => 5,
        }
    }
}

/// Counts lines by peer and kind. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct LogLimiter(Arc<Mutex<HashMap<(IpAddr, Complaint), Window>>>);

#[derive(Debug)]
struct Window {
    began: Instant,
    logged: u32,
    suppressed: u64,
}

/// What happens to a line.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Logged,
    /// It is the first one that is not logged in a window that ends after this time.
    FirstSuppressed(Duration),
    Suppressed,
}

/// The log for lines that one peer causes.
#[derive(Clone, Debug, Default)]
pub struct PeerLog(Option<(LogLimiter, IpAddr)>);

impl PeerLog {
    /// Logs a line at the level of warnings, unless the peer caused too many of this kind within a minute.
    pub fn warn(&self, kind: Complaint, text: &str) {
        match &self.0 {
            Some((limiter, about)) => limiter.warn(*about, kind, text),
            None => log::warn!("{text}"),
        }
    }
}

/// The peer that an address is counted for. With IPv6, this is the network, because one host can use any number of
/// addresses in it.
#[must_use]
pub fn peer_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

impl LogLimiter {
    /// The log for a peer.
    #[must_use]
    pub fn of(&self, peer: IpAddr) -> PeerLog {
        PeerLog(Some((self.clone(), peer)))
    }

    /// Logs a line about a peer, unless there were too many of this kind within a minute. These are counted, and their
    /// number is logged at the end of the minute.
    pub fn warn(&self, about: IpAddr, kind: Complaint, text: &str) {
        match self.count(about, kind, Instant::now()) {
            Line::Logged => log::warn!("{text}"),
            Line::FirstSuppressed(left) => {
                let (limiter, text) = (self.clone(), text.to_owned());
                runtime::spawn(async move {
                    runtime::sleep(left).await;
                    if let Some(suppressed) = limiter.end(about, kind) {
                        log::warn!("{suppressed} more like this from {about} in the last minute: {text}");
                    }
                });
            }
            Line::Suppressed => {}
        }
    }

    fn count(&self, about: IpAddr, kind: Complaint, now: Instant) -> Line {
        let mut windows = self.0.lock();
        if windows.len() > MAX_REMEMBERED {
            windows.retain(|_, window| window.suppressed > 0 || now.duration_since(window.began) < WINDOW);
        }
        let window = windows.entry((peer_of(about), kind)).or_insert(Window { began: now, logged: 0, suppressed: 0 });
        let age = now.duration_since(window.began);
        if age >= WINDOW && window.suppressed == 0 {
            (window.began, window.logged) = (now, 0);
        }
        if window.logged < kind.most() {
            window.logged += 1;
            return Line::Logged;
        }
        window.suppressed += 1;
        if window.suppressed == 1 { Line::FirstSuppressed(WINDOW.saturating_sub(age)) } else { Line::Suppressed }
    }

    /// Ends a window, and returns how many of its lines were not logged.
    fn end(&self, about: IpAddr, kind: Complaint) -> Option<u64> {
        self.0.lock().remove(&(peer_of(about), kind)).map(|window| window.suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn lines_are_limited_per_peer_and_kind_and_the_rest_is_counted() {
        let (limiter, now) = (LogLimiter::default(), Instant::now());
        let count =
            |address: &str, kind, after: u64| limiter.count(ip(address), kind, now + Duration::from_secs(after));
        let lines: Vec<Line> = (0..1000).map(|_| count("10.0.0.1", Complaint::Failed, 10)).collect();
        assert_eq!(lines.iter().filter(|line| **line == Line::Logged).count(), 5);
        assert_eq!(lines[5], Line::FirstSuppressed(WINDOW));
        assert_eq!(lines[6], Line::Suppressed);
        // Another kind, another peer.
        assert_eq!(count("10.0.0.1", Complaint::Forbidden, 11), Line::Logged);
        assert_eq!(count("10.0.0.2", Complaint::Failed, 11), Line::Logged);
        // Until its number is logged, nothing else is.
        assert_eq!(count("::ffff:10.0.0.1", Complaint::Failed, 71), Line::Suppressed);
        assert_eq!(limiter.end(ip("10.0.0.1"), Complaint::Failed), Some(996));
        assert_eq!(count("10.0.0.1", Complaint::Failed, 72), Line::Logged);
        // A window in which everything was logged needs no end.
        assert_eq!(count("10.0.0.2", Complaint::Failed, 200), Line::Logged);
    }

    #[test]
    fn network_counts_as_one_peer_and_peers_are_forgotten() {
        let (limiter, now) = (LogLimiter::default(), Instant::now());
        let logged = (0..100)
            .filter(|n| limiter.count(ip(&format!("2001:db8::{n:x}")), Complaint::Rejected, now) == Line::Logged);
        assert_eq!(logged.count(), 5);
        for n in 0..5000u32 {
            limiter.count(IpAddr::from(n.to_be_bytes()), Complaint::Rejected, now);
        }
        limiter.count(ip("10.0.0.1"), Complaint::Rejected, now + 2 * WINDOW);
        assert!(limiter.0.lock().len() <= 2);
    }
}
