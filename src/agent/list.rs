//! kv_resync: tells what this host holds.

use std::collections::BTreeMap;

use crate::agent::{Agent, Failure, OrderContext, Success};
use crate::model::{DatasetInventory, DatasetName, ResponseStatus};
use crate::wire::{DirectorsOrder, Facts, Listing};
use crate::zfs::{Known, Zfs};

impl<Z: Zfs> Agent<Z> {
    /// Takes it that this is what the host held, from whoever has written it down.
    pub fn remember(&self, datasets: BTreeMap<DatasetName, DatasetInventory>) {
        self.held.remember(datasets);
    }

    /// Lists everything that local.json lets zsync touch, or the order's dataset and what is below it. What is
    /// published of this host is compared with that, and mended.
    pub(crate) async fn resync(&self, order: &DirectorsOrder, desk: &OrderContext) -> Result<Success, Failure> {
        let listed: Vec<_> = match &self.publisher {
            Some(publisher) if order.dest_dataset.is_empty() => {
                publisher.publish_host(&self.local).await?.into_iter().collect()
            }
            _ => {
                let known = if order.anew { Known::default() } else { self.held.listed() };
                let began = self.held.begin();
                let listed = self.zfs.list_changed(&self.roots(order)?, &known).await?;
                if order.dest_dataset.is_empty() {
                    self.held.set(began, &listed);
                }
                listed
            }
        };
        let mut datasets = 0;
        for (dataset, inventory) in listed {
            if self.local.permission_to_take(&dataset).is_err() {
                continue;
            }
            datasets += 1;
            for listing in Listing::parts(&self.host, &dataset, inventory) {
                desk.tell(Facts { listing: Some(listing), ..Facts::default() }).await;
            }
        }
        Ok(Success::new(ResponseStatus::Done, format!("listed {datasets} datasets")))
    }

    fn roots(&self, order: &DirectorsOrder) -> Result<Vec<DatasetName>, Failure> {
        if order.dest_dataset.is_empty() {
            return Ok(self.local.roots());
        }
        let root: DatasetName =
            order.dest_dataset.parse().map_err(|e| Failure::refused(format!("DestDataset: {e}")))?;
        self.local.permission_to_take(&root).map_err(|denied| Failure::refused(denied.to_string()))?;
        Ok(vec![root])
    }
}
