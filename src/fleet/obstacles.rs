//! What stands in the way of orders, as far as it is known before they are given: hosts that do not answer, and what
//! their local.json forbids.

use std::collections::BTreeMap;

use crate::actions::{Intervention, Order};
use crate::model::HostName;
use crate::policy::{Denied, Local};

/// What stands in the way of orders.
#[derive(Clone, Debug, Default)]
pub struct Obstacles {
    /// Hosts that were asked and could not be listed, each with the reason.
    pub unseen: BTreeMap<HostName, String>,
    /// What hosts permit. A host that has not said so permits everything.
    pub permits: BTreeMap<HostName, Local>,
}

impl Obstacles {
    /// Why an order will fail; `None` if nothing is known that stands in its way. The checks are those that the hosts
    /// and the director make themselves.
    #[must_use]
    pub fn objection(&self, order: &Order) -> Option<String> {
        let host = order.host();
        let local = self.permits.get(host);
        let denied = match (order, local) {
            (Order::Take { datasets, .. }, Some(local)) => {
                datasets.iter().find_map(|dataset| local.permission_to_take(dataset).err())
            }
            (Order::Send { dataset, to, .. }, local) => {
                let sends = |local: &Local| local.permission_to_send(dataset, &to.host).err();
                let receives = |there: &Local| there.permission_to_receive(&to.dataset, host).err();
                local.and_then(sends).or_else(|| self.permits.get(&to.host).and_then(receives))
            }
            (Order::Destroy { dataset, .. }, Some(local)) => local.permission_to_destroy(dataset).err(),
            (Order::Take { .. } | Order::Destroy { .. }, None) => None,
        };
        denied.as_ref().map(Denied::to_string).or_else(|| self.unreachable(order))
    }

    /// Whether the destination's host permits what a transfer from `source` does there besides receiving.
    #[must_use]
    pub fn permits(&self, intervention: Intervention<'_>, source: &HostName) -> bool {
        let (Intervention::RollBack(to) | Intervention::SetAside(to) | Intervention::FollowRename(_, to)) =
            intervention;
        let Some(local) = self.permits.get(&to.host) else { return true };
        match intervention {
            Intervention::RollBack(to) => local.permission_to_roll_back(&to.dataset).is_ok(),
            Intervention::SetAside(to) => {
                // The new name stands beside the old one.
                let aside = format!("{}_diverged", to.dataset).parse();
                aside.is_ok_and(|aside| local.permission_to_rename(&to.dataset, &aside).is_ok())
            }
            Intervention::FollowRename(old, to) => {
                local.permission_to_receive(old, source).is_ok() && local.permission_to_rename(old, &to.dataset).is_ok()
            }
        }
    }

    /// The host without which an order cannot be carried out.
    fn unreachable(&self, order: &Order) -> Option<String> {
        match order {
            Order::Take { .. } => None,
            Order::Send { to, .. } => {
                self.unseen.contains_key(&to.host).then(|| format!("{} does not answer", to.host))
            }
            // What is destroyed is decided on what the other side says itself.
            Order::Destroy { keep_common_with, .. } => {
                let silent = keep_common_with.iter().find(|peer| self.unseen.contains_key(&peer.host));
                silent.map(|peer| format!("{} cannot be asked what it has", peer.host))
            }
        }
    }
}
