//! Determines when an order may begin: how many orders of each kind a host has at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_lock::{Semaphore, SemaphoreGuardArc};
use parking_lot::Mutex;

use crate::actions::Order;
use crate::host::queue::{QueueSlot, TransferQueue};
use crate::model::{HostName, Turn};

/// How many orders of one kind a host has at once. The host itself limits how many of them transfer data at the same
/// time. While some transfers send, the host lists the datasets of waiting transfers in one batch, and also batches the
/// work that follows a stream.
const PER_HOST: usize = 64;
/// How many takes, and how many destroys, all hosts together have at once.
const SHORT_ORDERS: usize = 128;
/// How many transfers all hosts together have at once. Each order to another host has a connection, and a process may
/// have 1024 files open by default.
const TRANSFERS: usize = 384;

/// The slots for the orders of all passes.
pub(super) struct OrderSlots {
    fleet: Kinds,
    hosts: Mutex<BTreeMap<HostName, Kinds>>,
}

/// The slots for each kind of order. A snapshot has to be taken at its time, so takes do not wait for transfers, which
/// may run for days.
#[derive(Clone)]
struct Kinds {
    takes: Arc<Semaphore>,
    transfers: TransferQueue,
    destroys: Arc<Semaphore>,
}

/// The right to give an order. It ends when this is dropped.
pub(super) struct OrderSlot {
    _running: [Slot; 2],
}

enum Slot {
    Short { _slot: SemaphoreGuardArc },
    Transfer { _slot: QueueSlot },
}

impl Kinds {
    fn new(short: usize, transfers: TransferQueue) -> Self {
        let room = |size| Arc::new(Semaphore::new(size));
        Self { takes: room(short), transfers, destroys: room(short) }
    }

    /// Waits for a slot. Transfers are divided between hosts by this `key`.
    async fn wait(self, order: &Order, turn: Turn, key: &HostName) -> Slot {
        match order {
            Order::Take { .. } => Slot::Short { _slot: self.takes.acquire_arc().await },
            Order::Send { .. } => Slot::Transfer { _slot: self.transfers.wait(key, turn).await },
            Order::Destroy { .. } => Slot::Short { _slot: self.destroys.acquire_arc().await },
        }
    }
}

impl Default for OrderSlots {
    fn default() -> Self {
        Self { fleet: Kinds::new(SHORT_ORDERS, TransferQueue::new(TRANSFERS)), hosts: Mutex::default() }
    }
}

impl OrderSlots {
    /// Waits until an order may begin.
    pub(super) async fn wait(&self, order: &Order, turn: Turn) -> OrderSlot {
        let of_host = {
            let mut hosts = self.hosts.lock();
            let new = || Kinds::new(PER_HOST, TransferQueue::by_destination(PER_HOST));
            hosts.entry(order.host().clone()).or_insert_with(new).clone()
        };
        let host = order.host();
        let destination = if let Order::Send { to, .. } = order { &to.host } else { host };
        // Orders that wait for one host do not occupy the slots of the others.
        let of_host = of_host.wait(order, turn, destination).await;
        OrderSlot { _running: [of_host, self.fleet.clone().wait(order, turn, host).await] }
    }
}
