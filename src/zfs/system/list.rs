//! Lists datasets, snapshots and bookmarks with separate commands, and joins their outputs.

use std::collections::{BTreeMap, BTreeSet};

use futures_lite::future;

use crate::model::inventory::NOT_IMPORTED;
use crate::model::tags::set_holds;
use crate::model::{DatasetInventory, DatasetName, Guid, HostListing, SnapName};
use crate::sys::runtime;
use crate::zfs::parse::{DatasetRow, Histories};
use crate::zfs::system::runner::Runner;
use crate::zfs::{Depth, ErrorKind, History, Listed, ZfsError, argv, parse};

/// How many pools are listed at a time.
const CONCURRENT_POOLS: usize = 4;
/// How many snapshots one command names at most.
const MAX_NAMED: usize = 1000;

/// The listing of one pool.
enum PoolListing {
    /// The datasets that were found.
    Listed(Vec<Listed>),
    /// The pool is not imported.
    Away,
}

/// The datasets of a listing without the times when their snapshots changed.
fn without_times(rows: Vec<DatasetRow>) -> Vec<Listed> {
    rows.into_iter().map(|(listed, _)| listed).collect()
}

impl Runner {
    /// Lists datasets by two commands at the same time, or by one if snapshots are not wanted. Without any roots,
    /// `zfs list` would list every pool, so callers make sure that there are some.
    pub(super) async fn list(&self, roots: &[DatasetName], depth: Depth) -> Result<Vec<Listed>, ZfsError> {
        if depth == Depth::Bare {
            return Ok(without_times(self.datasets(roots, depth, false).await?));
        }
        let with_ancestors: BTreeSet<DatasetName> = match depth {
            Depth::Around => roots.iter().flat_map(DatasetName::ancestors).chain(roots.iter().cloned()).collect(),
            _ => BTreeSet::new(),
        };
        let with_ancestors: Vec<DatasetName> = with_ancestors.into_iter().collect();
        let named = if with_ancestors.is_empty() { roots } else { &with_ancestors };
        let of_snapshots = argv::list_snapshots(roots, depth);
        let (datasets, histories) =
            future::try_zip(self.datasets(named, depth, false), self.found_histories(&of_snapshots)).await?;
        Ok(histories.join(without_times(datasets)))
    }

    /// Lists the snapshots and bookmarks of those datasets that exist.
    pub(super) async fn found_histories(&self, argv: &[String]) -> Result<Histories, ZfsError> {
        let mut histories = Histories::default();
        self.read_listing(argv, |line| histories.read(line)).await?;
        Ok(histories)
    }

    /// Lists datasets with everything below them, several pools at a time, by `list` for the roots of each pool. A pool
    /// that cannot be listed does not hide the others.
    pub(super) async fn each_pool<F>(
        &self,
        roots: &[DatasetName],
        list: impl Fn(Self, Vec<DatasetName>) -> F,
    ) -> Result<HostListing, ZfsError>
    where
        F: Future<Output = Result<Vec<Listed>, ZfsError>> + Send + 'static,
    {
        let mut by_pool: BTreeMap<String, Vec<DatasetName>> = BTreeMap::new();
        for root in roots {
            by_pool.entry(root.pool().to_owned()).or_default().push(root.clone());
        }
        let pools = by_pool.into_iter().map(|(pool, roots)| {
            let (this, listing) = (self.clone(), list(self.clone(), roots));
            async move {
                let listed = this.unless_away(&pool, listing.await).await;
                (pool, listed)
            }
        });
        let pools: Vec<_> = pools.collect();
        let mut whole = HostListing::default();
        for (pool, listed) in runtime::side_by_side(CONCURRENT_POOLS, pools).await {
            match listed {
                Ok(PoolListing::Listed(datasets)) => whole.datasets.extend(datasets),
                Ok(PoolListing::Away) => drop(whole.unlisted.insert(pool, NOT_IMPORTED.into())),
                Err(error) if error.kind.is_about_program() => return Err(error),
                Err(error) => drop(whole.unlisted.insert(pool, error.to_string())),
            }
        }
        Ok(whole)
    }

    /// Finds out whether a pool in which nothing was found is imported at all: a dataset in a pool that is not imported
    /// is as unknown as one in a pool that cannot be read.
    async fn unless_away(&self, pool: &str, listed: Result<Vec<Listed>, ZfsError>) -> Result<PoolListing, ZfsError> {
        let listed = listed?;
        if let (true, Ok(root)) = (listed.is_empty(), pool.parse::<DatasetName>())
            && self.datasets(&[root], Depth::Bare, false).await?.is_empty()
        {
            return Ok(PoolListing::Away);
        }
        Ok(PoolListing::Listed(listed))
    }

    /// The snapshots and bookmarks of datasets, by one command. It fails if any of the datasets is missing.
    pub(super) async fn histories(&self, datasets: &[DatasetName]) -> Result<Vec<(DatasetName, History)>, ZfsError> {
        let mut histories = Histories::default();
        self.read_whole_listing(&argv::list_snapshots(datasets, Depth::Only), |line| histories.read(line)).await?;
        let bare = datasets.iter().map(|name| (name.clone(), DatasetInventory::default())).collect();
        let history = |(name, inventory): Listed| (name, (inventory.snapshots, inventory.bookmarks));
        Ok(histories.join(bare).into_iter().map(history).collect())
    }

    /// The snapshots and bookmarks of one dataset; `None` if it does not exist.
    pub(super) async fn history(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        match self.histories(std::slice::from_ref(dataset)).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            histories => Ok(histories?.into_iter().next().map(|(_, history)| history)),
        }
    }

    /// The holds on snapshots. Snapshots that do not exist have none.
    pub(super) async fn holds<'a>(
        &self,
        snapshots: impl IntoIterator<Item = (&'a DatasetName, &'a SnapName)>,
    ) -> Result<Vec<parse::Hold>, ZfsError> {
        let argv = argv::holds(snapshots);
        // If a snapshot was destroyed meanwhile, the holds of the others are printed all the same.
        let output = self.run_listing(&argv).await?;
        parse::holds(&output).map_err(|reason| self.unreadable(&argv, reason))
    }

    /// Adds to datasets what their holds say: which transfers have left holds, and what is in the trash. If the holds
    /// cannot be listed, they are unknown.
    pub(super) async fn add_holds(&self, datasets: &mut [Listed]) {
        let held = datasets.iter().flat_map(|(name, found)| found.held_by_unknown().map(move |s| (name, &s.name)));
        let held: Vec<(&DatasetName, &SnapName)> = held.collect();
        let mut by_dataset: BTreeMap<DatasetName, Vec<(SnapName, String)>> = BTreeMap::new();
        for batch in held.chunks(MAX_NAMED) {
            match self.holds(batch.iter().copied()).await {
                Ok(holds) => holds
                    .into_iter()
                    .for_each(|(dataset, name, tag)| by_dataset.entry(dataset).or_default().push((name, tag))),
                Err(error) => log::debug!("{error}"),
            }
        }
        for (name, found) in &mut *datasets {
            set_holds(found, by_dataset.remove(name).unwrap_or_default());
        }
        self.add_used(datasets).await;
    }

    /// Adds to what is in the trash how much space it uses, as far as ZFS says. For all snapshots, that would take much
    /// longer than the listing.
    async fn add_used(&self, datasets: &mut [Listed]) {
        let in_trash = datasets.iter().flat_map(|(name, found)| {
            let of = found.snapshots.iter().filter(|snapshot| found.trashed(snapshot.guid).is_some());
            of.map(move |snapshot| (name, &snapshot.name))
        });
        let in_trash: Vec<(&DatasetName, &SnapName)> = in_trash.collect();
        let mut used: BTreeMap<(DatasetName, SnapName), u64> = BTreeMap::new();
        for batch in in_trash.chunks(MAX_NAMED) {
            let argv = argv::used(batch.iter().copied());
            match self.run_listing(&argv).await.map(|output| parse::used(&output)) {
                Ok(Ok(found)) => used.extend(found.into_iter().map(|(dataset, name, used)| ((dataset, name), used))),
                Ok(Err(reason)) => log::debug!("{}", self.unreadable(&argv, reason)),
                Err(error) => log::debug!("{error}"),
            }
        }
        for (dataset, found) in datasets {
            let names: BTreeMap<Guid, SnapName> = found.snapshots.iter().map(|s| (s.guid, s.name.clone())).collect();
            for trashed in found.trashed.iter_mut().flatten() {
                let name = names.get(&trashed.guid).cloned();
                trashed.used = name.and_then(|name| used.remove(&(dataset.clone(), name))).unwrap_or_default();
            }
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
