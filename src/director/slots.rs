//! Determines when an order of a pass may begin: how many orders a host has at once, and that a dataset is sent to one
//! destination at a time.

use std::collections::BTreeMap;

use async_lock::{Semaphore, SemaphoreGuard};

use crate::actions::Order;
use crate::host::locks::{Claim, DatasetLocks};
use crate::model::HostName;
use crate::policy::Policy;

/// How many orders one host has at once. The host itself limits how many of them transfer data at the same time. While
/// some transfers send, the host lists the datasets of waiting transfers in one batch, and also batches the work that
/// follows a stream.
const ORDERS_AT_ONCE: usize = 64;

/// The slots of all hosts of a policy.
pub(super) struct OrderSlots(BTreeMap<HostName, HostSlots>);

struct HostSlots {
    running: Semaphore,
    /// The datasets that are being sent. Entries of the policy may overlap, and an agent refuses to send a dataset that
    /// it is sending already.
    sending: DatasetLocks,
}

/// The right to give an order. It ends when this is dropped.
pub(super) struct OrderSlot<'a> {
    _running: SemaphoreGuard<'a>,
    _sending: Option<Claim>,
}

impl OrderSlots {
    /// Creates the slots for the hosts of a policy.
    pub(super) fn new(policy: &Policy) -> Self {
        let slots = || HostSlots { running: Semaphore::new(ORDERS_AT_ONCE), sending: DatasetLocks::default() };
        Self(policy.hosts_named().into_iter().map(|host| (host, slots())).collect())
    }

    /// Waits until an order may begin. An order for a host that the policy does not name may begin at once.
    pub(super) async fn wait(&self, order: &Order) -> Option<OrderSlot<'_>> {
        let host = self.0.get(order.host())?;
        // A transfer that waits for another one of the same dataset does not occupy a slot.
        let sending = match order {
            Order::Send { dataset, .. } => Some(host.sending.claim_when_free(dataset).await),
            Order::Take { .. } | Order::Destroy { .. } => None,
        };
        Some(OrderSlot { _running: host.running.acquire().await, _sending: sending })
    }
}
