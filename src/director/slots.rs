//! Determines when an order of a pass may begin: how many orders of each kind a host has at once, and that a dataset is
//! sent to one destination at a time.

use std::collections::BTreeMap;

use async_lock::{Semaphore, SemaphoreGuard};

use crate::actions::Order;
use crate::host::locks::{Claim, DatasetLocks};
use crate::model::HostName;
use crate::policy::Policy;

/// How many orders of one kind a host has at once. The host itself limits how many of them transfer data at the same
/// time. While some transfers send, the host lists the datasets of waiting transfers in one batch, and also batches the
/// work that follows a stream.
const PER_HOST: usize = 64;
/// How many takes, and how many destroys, all hosts together have at once.
const SHORT_ORDERS: usize = 128;
/// How many transfers all hosts together have at once. Each order to another host has a connection, and a process may
/// have 1024 files open by default.
const TRANSFERS: usize = 384;

/// The slots for all orders of a pass.
pub(super) struct OrderSlots {
    fleet: Kinds,
    hosts: BTreeMap<HostName, HostSlots>,
}

/// The slots for each kind of order. A snapshot has to be taken at its time, so takes do not wait for transfers, which
/// may run for days.
struct Kinds {
    takes: Semaphore,
    transfers: Semaphore,
    destroys: Semaphore,
}

struct HostSlots {
    running: Kinds,
    /// The datasets that are being sent. Entries of the policy may overlap, and an agent refuses to send a dataset that
    /// it is sending already.
    sending: DatasetLocks,
}

/// The right to give an order. It ends when this is dropped.
pub(super) struct OrderSlot<'a> {
    _running: [SemaphoreGuard<'a>; 2],
    _sending: Option<Claim>,
}

impl Kinds {
    fn new(short: usize, transfers: usize) -> Self {
        let (takes, destroys) = (Semaphore::new(short), Semaphore::new(short));
        Self { takes, transfers: Semaphore::new(transfers), destroys }
    }

    fn of(&self, order: &Order) -> &Semaphore {
        match order {
            Order::Take { .. } => &self.takes,
            Order::Send { .. } => &self.transfers,
            Order::Destroy { .. } => &self.destroys,
        }
    }
}

impl OrderSlots {
    /// Creates the slots for the hosts of a policy.
    pub(super) fn new(policy: &Policy) -> Self {
        let slots = || HostSlots { running: Kinds::new(PER_HOST, PER_HOST), sending: DatasetLocks::default() };
        let hosts = policy.hosts_named().into_iter().map(|host| (host, slots())).collect();
        Self { fleet: Kinds::new(SHORT_ORDERS, TRANSFERS), hosts }
    }

    /// Waits until an order may begin. An order for a host that the policy does not name may begin at once.
    pub(super) async fn wait(&self, order: &Order) -> Option<OrderSlot<'_>> {
        let host = self.hosts.get(order.host())?;
        // A transfer that waits for another one of the same dataset does not occupy a slot.
        let sending = match order {
            Order::Send { dataset, .. } => Some(host.sending.claim_when_free(dataset).await),
            Order::Take { .. } | Order::Destroy { .. } => None,
        };
        // Orders that wait for one host do not occupy the slots of the others.
        let of_host = host.running.of(order).acquire().await;
        Some(OrderSlot { _running: [of_host, self.fleet.of(order).acquire().await], _sending: sending })
    }
}
