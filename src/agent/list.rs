//! Carries out kv_resync: lists what this host holds.

use std::collections::BTreeMap;

use crate::agent::context::{OrderContext, Success};
use crate::agent::request::ListRequest;
use crate::agent::service::Agent;
use crate::host::error::OrderError;
use crate::model::{DatasetInventory, DatasetName, HostListing, ResponseStatus};
use crate::wire::{Facts, Listing, PER_LINE, Permit};
use crate::zfs::{Known, Zfs};

impl<Z: Zfs> Agent<Z> {
    /// Takes over a catalog's records of this host, so that datasets that have not changed since they were recorded,
    /// according to ZFS, need not be listed again.
    pub fn remember(&self, datasets: BTreeMap<DatasetName, DatasetInventory>) {
        self.cache.remember(datasets);
    }

    /// Lists everything that local.json permits zsync to touch, or one dataset and everything below it, and reports it
    /// to the director. A listing of the whole host is also compared with the published records, which are corrected,
    /// unless the director only asks.
    pub(crate) async fn list(&self, request: &ListRequest, context: &OrderContext) -> Result<Success, OrderError> {
        let HostListing { mut datasets, unlisted } = self.listed(request).await?;
        self.local.restrict(&mut datasets);
        let count = datasets.len();
        for (dataset, inventory) in datasets {
            for listing in Listing::parts(&self.host, &dataset, inventory) {
                context.report(Facts { listing: Some(listing), ..Facts::default() }).await;
            }
        }
        let mut remark = format!("listed {count} datasets");
        for (pool, reason) in &unlisted {
            remark = format!("{remark}; cannot list the pool {pool}: {reason}");
        }
        if !unlisted.is_empty() {
            context.report(Facts { unlisted, ..Facts::default() }).await;
        }
        if request.read_only {
            self.report_permits(context).await;
        }
        Ok(Success { datasets: Some(count as u64), ..Success::new(ResponseStatus::Done, remark) })
    }

    /// Reports what local.json permits, so that a preview can predict which orders this host will refuse.
    async fn report_permits(&self, context: &OrderContext) {
        let permits = self.local.datasets.values().map(|entry| Permit {
            dataset: entry.name.clone(),
            enable: entry.enable,
            slave: entry.slave,
            take: entry.take,
            append_only: entry.append_only,
            rollback: entry.rollback,
            sources: entry.sources.clone(),
            destinations: entry.destinations.clone(),
        });
        let permits: Vec<Permit> = permits.collect();
        for part in permits.chunks(PER_LINE) {
            context.report(Facts { permits: part.to_vec(), ..Facts::default() }).await;
        }
    }

    async fn listed(&self, request: &ListRequest) -> Result<HostListing, OrderError> {
        let known = if request.relist { Known::default() } else { self.cache.listed() };
        if let Some(root) = &request.root {
            self.local.permission_to_list(root)?;
            return Ok(self.zfs.list_pools(std::slice::from_ref(root), &known).await?);
        }
        if let Some(publisher) = self.publisher.as_ref().filter(|_| !request.read_only) {
            return Ok(publisher.publish_host(&self.local).await?);
        }
        let began = self.cache.begin();
        let listed = self.zfs.list_pools(&self.local.roots(), &known).await?;
        self.cache.set(began, &listed.datasets);
        Ok(listed)
    }
}
