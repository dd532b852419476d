//! Measures how fast a stream arrives. While another host waits, a stream that hardly flows does not keep its slot.

use std::time::{Duration, Instant};

use futures_lite::future;

use crate::host::queue::{ParkedStream, QueueSlot};
use crate::sys::runtime;
use crate::wire::codec::{Conn, WireError};

/// How much of a stream has to arrive within one window.
const LEAST_FLOW: u64 = 1 << 20;

/// The time in which a peer has to show that it needs its slot: 30 seconds, unless peers may be silent for less than a
/// minute.
pub(super) fn window_of(conn: &Conn) -> Duration {
    conn.patience / 2
}

/// A stream that is arriving.
pub(super) struct Flow {
    turn: Turn,
    window: Duration,
    /// How long the receiver has waited for the sender in the current window. The time that `zfs receive` takes does
    /// not count.
    waited: Duration,
    /// Since when it waits now.
    since: Instant,
    /// How much has arrived in the current window.
    arrived: u64,
}

enum Turn {
    Slot(QueueSlot),
    Parked(#[expect(dead_code, reason = "it is counted until it is dropped")] ParkedStream),
    /// The stream has to end.
    Lost,
}

impl Flow {
    pub(super) fn new(slot: QueueSlot, window: Duration) -> Self {
        Self { turn: Turn::Slot(slot), window, waited: Duration::ZERO, since: Instant::now(), arrived: 0 }
    }

    /// Waits for the next part of the stream. Meanwhile the slot is freed if another host waits and too little arrives.
    /// `None` if the stream has to end instead.
    pub(super) async fn measure<T>(&mut self, receiving: impl Future<Output = T>) -> Option<T> {
        self.since = Instant::now();
        let judging = async {
            loop {
                runtime::sleep(self.window.saturating_sub(self.waited)).await;
                if !self.end_window() {
                    return None;
                }
            }
        };
        let received = future::or(async { Some(receiving.await) }, judging).await;
        self.waited += self.since.elapsed();
        received
    }

    /// Judges the window that has ended, and begins the next one. Returns `false` if the stream has to end.
    fn end_window(&mut self) -> bool {
        let is_slow = std::mem::take(&mut self.arrived) < LEAST_FLOW;
        (self.waited, self.since) = (Duration::ZERO, Instant::now());
        self.turn = match std::mem::replace(&mut self.turn, Turn::Lost) {
            Turn::Slot(slot) if is_slow && slot.is_wanted() => slot.park().map_or(Turn::Lost, Turn::Parked),
            turn => turn,
        };
        !matches!(self.turn, Turn::Lost)
    }

    /// Counts what has arrived. Returns whether the stream needs a slot before it may continue.
    pub(super) fn needs_slot(&mut self, bytes: usize) -> bool {
        self.arrived += bytes as u64;
        !matches!(self.turn, Turn::Slot(_)) && self.arrived >= LEAST_FLOW
    }

    /// Continues with a slot.
    pub(super) fn resume(&mut self, slot: QueueSlot) {
        self.turn = Turn::Slot(slot);
    }

    /// The error for a stream that has to end.
    pub(super) fn too_slow(&self, conn: &Conn) -> WireError {
        WireError::Slow { peer: conn.peer.clone(), limit: self.window }
    }
}
