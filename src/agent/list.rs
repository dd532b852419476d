//! kv_resync: lists what this host holds.

use std::collections::BTreeMap;

use crate::agent::context::{OrderContext, Success};
use crate::agent::request::ListRequest;
use crate::agent::service::Agent;
use crate::host::error::OrderError;
use crate::model::{DatasetInventory, DatasetName, ResponseStatus};
use crate::wire::{Facts, Listing};
use crate::zfs::{Known, Listed, Zfs};

impl<Z: Zfs> Agent<Z> {
    /// Takes over what a catalog knows of this host: datasets that ZFS calls unchanged since then need not be listed.
    pub fn remember(&self, datasets: BTreeMap<DatasetName, DatasetInventory>) {
        self.cache.remember(datasets);
    }

    /// Reports everything that local.json permits zsync to touch, or one dataset and everything below it. A whole listing
    /// is also compared with the published records, which are corrected.
    pub(crate) async fn list(&self, request: &ListRequest, context: &OrderContext) -> Result<Success, OrderError> {
        let mut datasets = 0;
        for (dataset, inventory) in self.listed(request).await? {
            if self.local.permission_to_take(&dataset).is_err() {
                continue;
            }
            datasets += 1;
            for listing in Listing::parts(&self.host, &dataset, inventory) {
                context.report(Facts { listing: Some(listing), ..Facts::default() }).await;
            }
        }
        Ok(Success::new(ResponseStatus::Done, format!("listed {datasets} datasets")))
    }

    async fn listed(&self, request: &ListRequest) -> Result<Vec<Listed>, OrderError> {
        let known = if request.relist { Known::default() } else { self.cache.listed() };
        if let Some(root) = &request.root {
            self.local.permission_to_take(root)?;
            return Ok(self.zfs.list_changed(std::slice::from_ref(root), &known).await?);
        }
        if let Some(publisher) = &self.publisher {
            return Ok(publisher.publish_host(&self.local).await?.into_iter().collect());
        }
        let began = self.cache.begin();
        let listed = self.zfs.list_changed(&self.local.roots(), &known).await?;
        self.cache.set(began, &listed);
        Ok(listed)
    }
}
