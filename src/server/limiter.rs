//! Limits the connections of each peer and of all peers, and how many complaints about a peer are logged.
//!
//! Because of these limits, a peer that opens many connections cannot use up those of other peers.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// The limits for connections that have not sent their first line yet. A director opens up to 64 connections to one
/// agent.
const WAITING: Limits = Limits { per_peer: 64, total: 256 };
/// The limits for conversations.
const TALKING: Limits = Limits { per_peer: 256, total: 512 };
/// How many complaints about one peer are logged within [`WINDOW`]. Further ones are only counted.
const MAX_COMPLAINTS: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// How many peers may be remembered before those without connections are forgotten.
const MAX_REMEMBERED: usize = 1024;

#[derive(Clone, Copy)]
struct Limits {
    per_peer: usize,
    total: usize,
}

/// Counts the connections of all peers. Clones share the counts.
#[derive(Clone, Default)]
pub struct ConnectionLimiter(Arc<Mutex<Connections>>);

#[derive(Default)]
struct Connections {
    peers: HashMap<IpAddr, Peer>,
    waiting: usize,
    talking: usize,
}

#[derive(Default)]
struct Peer {
    waiting: usize,
    talking: usize,
    /// Complaints that were logged and suppressed in the current window.
    logged: u32,
    suppressed: u64,
    /// When the current window began.
    window: Option<Instant>,
}

/// A connection that was admitted. It counts until this is dropped.
pub struct Admitted {
    limiter: ConnectionLimiter,
    peer: IpAddr,
    talks: bool,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// How many connections are open.
    pub count: usize,
    /// Whether these are the connections of this peer (`true`) or of all peers.
    pub of_peer: bool,
}

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whose = if self.of_peer { "of the same host" } else { "in all" };
        write!(f, "{} connections {whose} are already open", self.count)
    }
}

/// The peer that a connection is counted for. With IPv6, this is the network, because one host can use any number of
/// addresses in it.
fn peer_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

fn check(of_peer: usize, of_all: usize, limits: Limits) -> Result<(), Full> {
    if of_peer >= limits.per_peer {
        return Err(Full { count: of_peer, of_peer: true });
    }
    if of_all >= limits.total { Err(Full { count: of_all, of_peer: false }) } else { Ok(()) }
}

impl ConnectionLimiter {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.0.lock()
    }

    /// Admits a connection that has not sent anything yet. Fails if a limit is reached.
    pub fn admit(&self, from: IpAddr) -> Result<Admitted, Full> {
        let from = peer_of(from);
        let mut connections = self.connections();
        let of_all = connections.waiting;
        let peer = connections.peers.entry(from).or_default();
        check(peer.waiting, of_all, WAITING)?;
        peer.waiting += 1;
        connections.waiting += 1;
        Ok(Admitted { limiter: self.clone(), peer: from, talks: false })
    }

    /// Logs a complaint about a peer, unless there were many within the last minute.
    pub fn complain(&self, about: IpAddr, text: &str) {
        if let Some(suppressed) = self.may_log(about, Instant::now()) {
            log::warn!("{text}");
            if suppressed > 0 {
                log::warn!("{suppressed} more complaints about {about} were not logged");
            }
        }
    }

    /// Whether one more complaint may be logged; if so, returns how many were suppressed before.
    fn may_log(&self, about: IpAddr, now: Instant) -> Option<u64> {
        let mut connections = self.connections();
        connections.forget(now);
        let peer = connections.peers.entry(peer_of(about)).or_default();
        if peer.window.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            (peer.window, peer.logged) = (Some(now), 0);
        }
        if peer.logged >= MAX_COMPLAINTS {
            peer.suppressed += 1;
            return None;
        }
        peer.logged += 1;
        Some(std::mem::take(&mut peer.suppressed))
    }
}

impl Connections {
    /// If many peers are remembered, forgets those that have neither connections nor recent complaints.
    fn forget(&mut self, now: Instant) {
        if self.peers.len() > MAX_REMEMBERED {
            let is_recent = |window: Option<Instant>| window.is_some_and(|began| now.duration_since(began) < WINDOW);
            self.peers.retain(|_, peer| peer.waiting + peer.talking > 0 || is_recent(peer.window));
        }
    }
}

impl Admitted {
    /// Counts the connection as a conversation, now that it has sent its first line. Fails if a limit is reached.
    pub fn begin_conversation(&mut self) -> Result<(), Full> {
        let mut connections = self.limiter.connections();
        let of_all = connections.talking;
        let peer = connections.peers.entry(self.peer).or_default();
        check(peer.talking, of_all, TALKING)?;
        peer.talking += 1;
        peer.waiting -= 1;
        connections.talking += 1;
        connections.waiting -= 1;
        self.talks = true;
        Ok(())
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut connections = self.limiter.connections();
        let peer = connections.peers.entry(self.peer).or_default();
        let of_peer = if self.talks { &mut peer.talking } else { &mut peer.waiting };
        *of_peer -= 1;
        let is_gone = peer.waiting + peer.talking == 0 && peer.window.is_none();
        let of_all = if self.talks { &mut connections.talking } else { &mut connections.waiting };
        *of_all -= 1;
        if is_gone {
            connections.peers.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn admit_limits_the_waiting_connections_of_a_peer() {
        let limiter = ConnectionLimiter::default();
        let mut all: Vec<Admitted> = (0..WAITING.per_peer).map(|_| limiter.admit(ip("10.0.0.1")).unwrap()).collect();
        assert_eq!(limiter.admit(ip("10.0.0.1")).err(), Some(Full { count: WAITING.per_peer, of_peer: true }));
        assert_eq!(limiter.admit(ip("::ffff:10.0.0.1")).err(), Some(Full { count: WAITING.per_peer, of_peer: true }));
        assert!(limiter.admit(ip("10.0.0.2")).is_ok());
        // A connection that begins its conversation makes room, and so does one that is closed.
        all[0].begin_conversation().unwrap();
        let next = limiter.admit(ip("10.0.0.1")).unwrap();
        assert!(limiter.admit(ip("10.0.0.1")).is_err());
        drop(next);
        assert!(limiter.admit(ip("10.0.0.1")).is_ok());
        drop(all);
        let connections = limiter.connections();
        assert_eq!((connections.waiting, connections.talking, connections.peers.len()), (0, 0, 0));
    }

    #[test]
    fn admit_counts_an_ipv6_network_as_one_peer() {
        let limiter = ConnectionLimiter::default();
        let one = |n: usize| limiter.admit(ip(&format!("2001:db8::{n:x}")));
        let all: Vec<_> = (1..=WAITING.per_peer).map(|n| one(n).unwrap()).collect();
        assert!(one(999).is_err());
        assert!(limiter.admit(ip("2001:db8:0:1::1")).is_ok());
        drop(all);
    }

    #[test]
    fn admit_limits_the_connections_of_all_peers() {
        let limiter = ConnectionLimiter::default();
        let mut all: Vec<Admitted> = Vec::new();
        let full = loop {
            match limiter.admit(ip(&format!("10.0.{}.{}", all.len() / 200, all.len() % 200))) {
                Ok(admitted) => all.push(admitted),
                Err(full) => break full,
            }
        };
        assert_eq!(full, Full { count: WAITING.total, of_peer: false });
    }

    #[test]
    fn complaints_are_limited_per_peer() {
        let (limiter, now) = (ConnectionLimiter::default(), Instant::now());
        let logged = (0..1000).filter(|_| limiter.may_log(ip("10.0.0.1"), now).is_some()).count();
        assert_eq!(logged, 5);
        assert_eq!(limiter.may_log(ip("10.0.0.2"), now), Some(0));
        assert_eq!(limiter.may_log(ip("10.0.0.1"), now + WINDOW), Some(995));
        assert_eq!(limiter.may_log(ip("10.0.0.1"), now + WINDOW), Some(0));
        // Peers without connections are forgotten after a while.
        for n in 0..5000u32 {
            limiter.may_log(IpAddr::from(n.to_be_bytes()), now);
        }
        limiter.may_log(ip("10.0.0.1"), now + 2 * WINDOW);
        assert!(limiter.connections().peers.len() <= 2);
    }
}
