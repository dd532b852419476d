//! Limits how long an agent may keep a conversation open without sending anything that can be received. While a stream
//! flows, only `flow` judges it.

use std::time::{Duration, Instant};

use futures_lite::future;

use crate::host::queue::QueueSlot;
use crate::server::acceptor::BETWEEN_STEPS;
use crate::slave::flow::window_of;
use crate::sys::runtime;
use crate::wire::Step;
use crate::wire::codec::{Conn, WireError};

/// How many steps in a row may bring nothing. An agent gives up a transfer after eight streams, and takes few other steps.
const MOST_FRUITLESS: u32 = 32;
/// How long a slave waits for all these steps together.
const LONGEST_WAIT: Duration = BETWEEN_STEPS.saturating_mul(4);

/// The steps of a conversation since the last stream that arrived.
#[derive(Debug, Default)]
pub(super) struct Idleness {
    steps: u32,
    /// How long the slave has waited for these steps.
    waited: Duration,
    /// How long the first slot of the conversation was unused.
    unused: Duration,
}

impl Idleness {
    /// Notes that a stream has arrived.
    pub(super) fn arrived(&mut self) {
        (self.steps, self.waited) = (0, Duration::ZERO);
    }

    /// Receives the next step. A slot that the agent leaves unused for too long is freed; its stream takes another.
    pub(super) async fn next_step(&mut self, conn: &mut Conn, slot: &mut Option<QueueSlot>) -> Result<Step, WireError> {
        let fruitless = |steps| WireError::Fruitless { peer: conn.peer.clone(), steps };
        let left = LONGEST_WAIT.saturating_sub(self.waited);
        if self.steps >= MOST_FRUITLESS || left.is_zero() {
            return Err(fruitless(self.steps));
        }
        let unused = window_of(conn).saturating_sub(self.unused);
        let since = Instant::now();
        let freeing = async {
            runtime::sleep(unused).await;
            drop(slot.take());
            future::pending().await
        };
        // Between two steps an agent may wait for its own ZFS.
        let received = future::or(conn.recv(BETWEEN_STEPS.min(left)), freeing).await;
        self.steps += 1;
        self.waited += since.elapsed();
        self.unused += since.elapsed();
        received
    }
}
