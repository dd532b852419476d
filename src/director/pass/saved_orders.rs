//! Carries out the orders of a saved plan.

use crate::actions::{Order, Plan};
use crate::catalog::{CatalogError, CatalogWrite};
use crate::director::pass::{Pass, is_take};
use crate::director::saved;
use crate::fleet::poll::Poll;
use crate::model::ResponseStatus;
use crate::zfs::Zfs;

impl<Z: Zfs, C: CatalogWrite + ?Sized + 'static> Pass<Z, C> {
    /// Takes the snapshots of a saved plan for one entry, and returns the other orders. Outdated orders are refused.
    pub(super) async fn take_saved(&self, orders: Vec<Order>) -> Result<Vec<Order>, CatalogError> {
        let (takes, left): (Vec<Order>, Vec<Order>) = orders.into_iter().partition(is_take);
        let takes = self.refuse_outdated(takes, None).await?;
        self.carry_out_chains([takes.into_iter().map(|order| (order, None)).collect()]).await?;
        Ok(left)
    }

    /// Carries out the transfers and the destroys of a saved plan for one entry. Outdated orders are refused.
    pub(super) async fn finish_saved(&self, entry: usize, orders: Vec<Order>, poll: &Poll) -> Result<(), CatalogError> {
        let (sends, destroys): (Vec<Order>, Vec<Order>) =
            orders.into_iter().partition(|order| matches!(order, Order::Send { .. }));
        let sends = self.refuse_outdated(sends, None).await?;
        self.send(sends, self.state.moment()).await?;
        let _pruning = self.pruning.acquire().await;
        let (_, failed) = self.ask_before(&destroys, poll).await?;
        let destroys = self.without_unasked(destroys, &failed).await?;
        let plan = self.decide(Some(entry));
        let destroys = self.refuse_outdated(destroys, Some(&plan)).await?;
        self.destroy(destroys).await.map(drop)
    }

    /// Returns the orders that can still be carried out. The others are refused, which is recorded as their outcome.
    async fn refuse_outdated(&self, orders: Vec<Order>, plan: Option<&Plan>) -> Result<Vec<Order>, CatalogError> {
        let mut valid = Vec::new();
        for order in orders {
            let reason = saved::outdated(&order, &self.state.inventory(), plan);
            let Some(reason) = reason else {
                valid.push(order);
                continue;
            };
            self.refuse(&order, ResponseStatus::Refused, reason).await?;
        }
        Ok(valid)
    }
}
