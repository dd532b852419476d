//! Listings: which commands list datasets, snapshots and bookmarks, and how their outputs are put together.

use std::collections::{BTreeMap, BTreeSet};

use futures_lite::future;

use crate::model::{DatasetInventory, DatasetName, SnapName};
use crate::sys::runtime;
use crate::zfs::system::runner::Runner;
use crate::zfs::{Depth, ErrorKind, History, Listed, ZfsError, argv, parse};

/// How many pools are listed at a time.
const CONCURRENT_POOLS: usize = 4;
/// How many snapshots one command names at most.
const MAX_NAMED: usize = 1000;

impl Runner {
    /// Lists datasets by two commands at the same time, or by one if snapshots are not wanted. Without any roots,
    /// `zfs list` would list every pool, so callers make sure that there are some.
    pub(super) async fn list(&self, roots: &[DatasetName], depth: Depth) -> Result<Vec<Listed>, ZfsError> {
        if depth == Depth::Bare {
            let argv = argv::list_datasets(roots, depth);
            return parse::datasets(&self.run_listing(&argv).await?).map_err(|reason| self.unreadable(&argv, reason));
        }
        let with_ancestors: BTreeSet<DatasetName> = match depth {
            Depth::Around => roots.iter().flat_map(DatasetName::ancestors).chain(roots.iter().cloned()).collect(),
            _ => BTreeSet::new(),
        };
        let with_ancestors: Vec<DatasetName> = with_ancestors.into_iter().collect();
        let named = if with_ancestors.is_empty() { roots } else { &with_ancestors };
        let (of_datasets, of_snapshots) = (argv::list_datasets(named, depth), argv::list_snapshots(roots, depth));
        let (datasets, snapshots) = future::zip(self.run_listing(&of_datasets), self.run_listing(&of_snapshots)).await;
        let datasets = parse::datasets(&datasets?).map_err(|reason| self.unreadable(&of_datasets, reason))?;
        let rows = parse::snapshots(&snapshots?).map_err(|reason| self.unreadable(&of_snapshots, reason))?;
        Ok(parse::join(datasets, rows))
    }

    /// Lists datasets with everything below them, several pools at a time.
    pub(super) async fn list_by_pool(&self, roots: &[DatasetName]) -> Result<Vec<Listed>, ZfsError> {
        self.each_pool(roots, |this, roots| async move { this.list(&roots, Depth::Recursive).await }).await
    }

    /// Runs `list` with the roots of each pool, several pools at a time.
    pub(super) async fn each_pool<F>(
        &self,
        roots: &[DatasetName],
        list: impl Fn(Self, Vec<DatasetName>) -> F,
    ) -> Result<Vec<Listed>, ZfsError>
    where
        F: Future<Output = Result<Vec<Listed>, ZfsError>> + Send + 'static,
    {
        let mut by_pool: BTreeMap<&str, Vec<DatasetName>> = BTreeMap::new();
        for root in roots {
            by_pool.entry(root.pool()).or_default().push(root.clone());
        }
        let pools: Vec<_> = by_pool.into_values().map(|roots| list(self.clone(), roots)).collect();
        let mut all = Vec::new();
        for listed in runtime::side_by_side(CONCURRENT_POOLS, pools).await {
            all.extend(listed?);
        }
        Ok(all)
    }

    /// The snapshots and bookmarks of datasets, by one command. It fails if any of the datasets is missing.
    pub(super) async fn histories(&self, datasets: &[DatasetName]) -> Result<Vec<(DatasetName, History)>, ZfsError> {
        let argv = argv::list_snapshots(datasets, Depth::Only);
        let rows = self.query(&argv, parse::snapshots).await?;
        let bare = datasets.iter().map(|name| (name.clone(), DatasetInventory::default())).collect();
        let history = |(name, inventory): Listed| (name, (inventory.snapshots, inventory.bookmarks));
        Ok(parse::join(bare, rows).into_iter().map(history).collect())
    }

    /// The snapshots and bookmarks of one dataset; `None` if it does not exist.
    pub(super) async fn history(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        match self.histories(std::slice::from_ref(dataset)).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            histories => Ok(histories?.into_iter().next().map(|(_, history)| history)),
        }
    }

    /// Which of these snapshots of a dataset have clones.
    pub(super) async fn cloned(&self, dataset: &DatasetName, names: &[SnapName]) -> Result<Vec<SnapName>, ZfsError> {
        let mut cloned = Vec::new();
        for batch in names.chunks(MAX_NAMED) {
            let argv = argv::list_clones(dataset, batch);
            let output = self.run_listing(&argv).await?;
            cloned.extend(parse::cloned(&output).map_err(|reason| self.unreadable(&argv, reason))?);
        }
        Ok(cloned)
    }
}
