//! Limits a preview to a host or a dataset.

use crate::actions::{Notice, Order, check_names};
use crate::fleet::planned::PlannedOrder;
use crate::model::{DatasetName, HostName, Inventory};
use crate::policy::Policy;

/// The hosts and datasets that are shown; by default all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only orders to this host.
    pub host: Option<HostName>,
    /// Only orders about this dataset and its descendants.
    pub dataset: Option<DatasetName>,
}

impl Filter {
    /// Whether orders about a dataset are wanted.
    #[must_use]
    pub fn wants(&self, host: &HostName, dataset: &DatasetName) -> bool {
        self.wants_host(host) && self.dataset.as_ref().is_none_or(|root| dataset.is_within(root))
    }

    fn wants_host(&self, host: &HostName) -> bool {
        self.host.as_ref().is_none_or(|wanted| wanted == host)
    }

    pub(crate) fn wants_notice(&self, notice: &Notice) -> bool {
        match &notice.dataset {
            Some(dataset) => self.wants(&notice.host, dataset),
            None => self.wants_host(&notice.host),
        }
    }

    /// The part of an order that is wanted.
    fn narrow(&self, mut order: Order) -> Option<Order> {
        match &mut order {
            Order::Take { host, datasets, .. } => {
                datasets.retain(|dataset| self.wants(host, dataset));
                (!datasets.is_empty()).then_some(order)
            }
            Order::Send { host, dataset, .. } | Order::Destroy { host, dataset, .. } => {
                self.wants(host, dataset).then_some(order)
            }
        }
    }

    /// The parts of these orders that are wanted.
    pub(crate) fn narrow_all(&self, orders: Vec<Order>) -> Vec<Order> {
        orders.into_iter().filter_map(|order| self.narrow(order)).collect()
    }

    /// The parts of these planned orders that are wanted.
    pub(crate) fn narrow_planned(&self, orders: Vec<PlannedOrder>) -> Vec<PlannedOrder> {
        let narrow = |PlannedOrder { order, after, refused, estimate }| {
            self.narrow(order).map(|order| PlannedOrder { order, after, refused, estimate })
        };
        orders.into_iter().filter_map(narrow).collect()
    }

    /// Rejects a name that occurs neither in the policy nor in the inventory, because it is almost certainly a typo.
    pub(crate) fn check(&self, policy: &Policy, inventory: &Inventory) -> anyhow::Result<()> {
        Ok(check_names(policy, inventory, self.host.as_ref(), self.dataset.as_ref())?)
    }
}
