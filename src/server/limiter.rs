//! Who gets in: how many connections a peer may have, and how much the log tells of it.
//!
//! One peer, however many connections it opens, leaves the others theirs.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Connections that have not said yet what they want: of one peer (a director opens up to 64 to one agent), and of all.
const WAITING: Most = Most { of_one: 64, of_all: 256 };
/// Conversations under way: of one peer, and of all.
const TALKING: Most = Most { of_one: 256, of_all: 512 };
/// How many complaints about one peer are logged in [`WINDOW`]; the others are counted.
const TOLD: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// How many peers are remembered that have no connection any more.
const REMEMBERED: usize = 1024;

/// A limit.
#[derive(Clone, Copy)]
struct Most {
    of_one: usize,
    of_all: usize,
}

/// The connections of all peers.
#[derive(Clone, Default)]
pub struct ConnectionLimiter(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    peers: HashMap<IpAddr, Peer>,
    waiting: usize,
    talking: usize,
}

#[derive(Default)]
struct Peer {
    waiting: usize,
    talking: usize,
    told: u32,
    untold: u64,
    since: Option<Instant>,
}

/// A connection that was let in; it counts until this is dropped.
pub struct Admitted {
    gate: ConnectionLimiter,
    peer: IpAddr,
    talks: bool,
}

/// Why a connection is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// How many there are already.
    pub count: usize,
    /// Whether they are all of the same peer.
    pub of_one: bool,
}

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whose = if self.of_one { "of the same host" } else { "in all" };
        write!(f, "{} connections {whose} are open already", self.count)
    }
}

/// Whose connection it is: of IPv6 the network, for one host has as many addresses as it likes in it.
fn owner(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

fn room(of_one: usize, of_all: usize, most: Most) -> Result<(), Full> {
    if of_one >= most.of_one {
        return Err(Full { count: of_one, of_one: true });
    }
    if of_all >= most.of_all { Err(Full { count: of_all, of_one: false }) } else { Ok(()) }
}

impl ConnectionLimiter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Lets a connection in that has not said anything yet.
    pub fn enter(&self, from: IpAddr) -> Result<Admitted, Full> {
        let from = owner(from);
        let mut state = self.state();
        let of_all = state.waiting;
        let peer = state.peers.entry(from).or_default();
        room(peer.waiting, of_all, WAITING)?;
        peer.waiting += 1;
        state.waiting += 1;
        Ok(Admitted { gate: self.clone(), peer: from, talks: false })
    }

    /// Logs a complaint about a peer, unless there were many in the last minute.
    pub fn complain(&self, about: IpAddr, text: &str) {
        if let Some(untold) = self.may_tell(about, Instant::now()) {
            log::warn!("{text}");
            if untold > 0 {
                log::warn!("{untold} more complaints about {about} were not logged");
            }
        }
    }

    /// Whether one more complaint is told; how many were not, before.
    fn may_tell(&self, about: IpAddr, now: Instant) -> Option<u64> {
        let mut state = self.state();
        state.forget(now);
        let peer = state.peers.entry(owner(about)).or_default();
        if peer.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            (peer.since, peer.told) = (Some(now), 0);
        }
        if peer.told >= TOLD {
            peer.untold += 1;
            return None;
        }
        peer.told += 1;
        Some(std::mem::take(&mut peer.untold))
    }
}

impl State {
    /// Drops what is remembered of peers that went away, where it becomes much.
    fn forget(&mut self, now: Instant) {
        if self.peers.len() > REMEMBERED {
            let recent = |since: Option<Instant>| since.is_some_and(|since| now.duration_since(since) < WINDOW);
            self.peers.retain(|_, peer| peer.waiting + peer.talking > 0 || recent(peer.since));
        }
    }
}

impl Admitted {
    /// The connection has said what it wants: from now on it counts among the conversations.
    pub fn talks(&mut self) -> Result<(), Full> {
        let mut state = self.gate.state();
        let of_all = state.talking;
        let peer = state.peers.entry(self.peer).or_default();
        room(peer.talking, of_all, TALKING)?;
        peer.talking += 1;
        peer.waiting -= 1;
        state.talking += 1;
        state.waiting -= 1;
        drop(state);
        self.talks = true;
        Ok(())
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        let peer = state.peers.entry(self.peer).or_default();
        let (of_one, talks) = if self.talks { (&mut peer.talking, true) } else { (&mut peer.waiting, false) };
        *of_one -= 1;
        let gone = peer.waiting + peer.talking == 0 && peer.since.is_none();
        let of_all = if talks { &mut state.talking } else { &mut state.waiting };
        *of_all -= 1;
        if gone {
            state.peers.remove(&self.peer);
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
    fn one_peer_leaves_the_others_theirs() {
        let gate = ConnectionLimiter::default();
        let mut all: Vec<Admitted> = (0..WAITING.of_one).map(|_| gate.enter(ip("10.0.0.1")).unwrap()).collect();
        assert_eq!(gate.enter(ip("10.0.0.1")).err(), Some(Full { count: WAITING.of_one, of_one: true }));
        assert_eq!(gate.enter(ip("::ffff:10.0.0.1")).err(), Some(Full { count: WAITING.of_one, of_one: true }));
        assert!(gate.enter(ip("10.0.0.2")).is_ok());
        // One that has said what it wants makes room, one that goes away too.
        all[0].talks().unwrap();
        let next = gate.enter(ip("10.0.0.1")).unwrap();
        assert!(gate.enter(ip("10.0.0.1")).is_err());
        drop(next);
        assert!(gate.enter(ip("10.0.0.1")).is_ok());
        drop(all);
        let state = gate.state();
        assert_eq!((state.waiting, state.talking, state.peers.len()), (0, 0, 0));
    }

    #[test]
    fn a_network_of_addresses_is_one_peer() {
        let gate = ConnectionLimiter::default();
        let one = |n: usize| gate.enter(ip(&format!("2001:db8::{n:x}")));
        let all: Vec<_> = (1..=WAITING.of_one).map(|n| one(n).unwrap()).collect();
        assert!(one(999).is_err());
        assert!(gate.enter(ip("2001:db8:0:1::1")).is_ok());
        drop(all);
    }

    #[test]
    fn all_together_are_limited_too() {
        let gate = ConnectionLimiter::default();
        let mut all: Vec<Admitted> = Vec::new();
        let full = loop {
            match gate.enter(ip(&format!("10.0.{}.{}", all.len() / 200, all.len() % 200))) {
                Ok(admitted) => all.push(admitted),
                Err(full) => break full,
            }
        };
        assert_eq!(full, Full { count: WAITING.of_all, of_one: false });
    }

    #[test]
    fn the_log_does_not_scroll() {
        let (gate, now) = (ConnectionLimiter::default(), Instant::now());
        let told = (0..1000).filter(|_| gate.may_tell(ip("10.0.0.1"), now).is_some()).count();
        assert_eq!(told, 5);
        assert_eq!(gate.may_tell(ip("10.0.0.2"), now), Some(0));
        assert_eq!(gate.may_tell(ip("10.0.0.1"), now + WINDOW), Some(995));
        assert_eq!(gate.may_tell(ip("10.0.0.1"), now + WINDOW), Some(0));
        // Peers that are gone are not remembered for ever.
        for n in 0..5000u32 {
            gate.may_tell(IpAddr::from(n.to_be_bytes()), now);
        }
        gate.may_tell(ip("10.0.0.1"), now + 2 * WINDOW);
        assert!(gate.state().peers.len() <= 2);
    }
}
