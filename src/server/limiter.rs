//! Limits the connections of each peer and of all peers.
//!
//! Because of these limits, a peer that opens many connections cannot use up those of other peers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::sys::log_limit::peer_of;

/// The limits for connections that have not sent their first line yet. A director opens up to 64 connections to one
/// agent.
const WAITING: Limits = Limits { per_peer: 64, total: 256 };
/// The limits for conversations.
const TALKING: Limits = Limits { per_peer: 256, total: 512 };

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
        let is_gone = peer.waiting + peer.talking == 0;
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
}
