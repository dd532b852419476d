//! Batches operations on single datasets, so that one process serves many of them: listings, properties, new bookmarks,
//! user properties, holds.
//!
//! The work after a stream is small, and most of its cost is that of starting a process. So a batch waits for a moment
//! while other streams are about to end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::{DatasetName, SnapName};
use crate::sys::batcher::Batcher;
use crate::sys::runtime;
use crate::zfs::argv::ScriptedChange;
use crate::zfs::system::runner::Runner;
use crate::zfs::{Depth, ErrorKind, History, Listed, ZfsError, argv, parse};

/// How long a batch waits for streams that are about to end. This delays nobody: it is work done after a stream.
const LINGER: Duration = Duration::from_secs(2);
/// How long a batch waits for callers that shared the previous batch, and so will make their next requests at about the
/// same time.
const GATHER: Duration = Duration::from_millis(100);
/// How many hold or release requests one process serves: it waits for a transaction group for each snapshot.
const HOLDS_PER_PROCESS: usize = 8;
/// How many such processes run at a time for one batch.
const CONCURRENT_HOLDS: usize = 4;

/// Listings are batched by depth and by the set of pools that they need, because a suspended pool does not answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ListKey {
    depth: Depth,
    pools: Vec<String>,
}

/// Holds are batched by pool and tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HoldKey {
    change: HoldChange,
    pool: String,
    tag: String,
}

/// Whether holds are added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HoldChange {
    Hold,
    Release,
}

impl HoldKey {
    fn argv(&self, full_names: &[String]) -> Vec<String> {
        match self.change {
            HoldChange::Hold => argv::hold(&self.tag, full_names),
            HoldChange::Release => argv::release(&self.tag, full_names),
        }
    }

    /// The kind of failure that means that there was nothing to do.
    fn harmless(&self) -> ErrorKind {
        match self.change {
            HoldChange::Hold => ErrorKind::Exists,
            HoldChange::Release => ErrorKind::NotFound,
        }
    }
}

/// The batched operations.
#[derive(Clone, Debug)]
pub(super) struct Grouped {
    runner: Runner,
    lists: Batcher<ListKey, Vec<DatasetName>, Result<Vec<Listed>, ZfsError>>,
    /// By pool.
    histories: Batcher<String, DatasetName, Result<Option<History>, ZfsError>>,
    /// By pool.
    properties: Batcher<String, DatasetName, Result<BTreeMap<String, String>, ZfsError>>,
    /// By pool.
    changes: Batcher<String, ScriptedChange, bool>,
    holds: Batcher<HoldKey, Vec<String>, Result<(), ZfsError>>,
}

/// A batcher whose batches wait for streams that are about to end.
fn batcher<K, Q, A, F>(
    runner: &Runner,
    patience: fn(&K) -> Duration,
    handle: fn(Runner, K, Vec<Q>) -> F,
) -> Batcher<K, Q, A>
where
    K: Ord + Clone + Send + Sync + 'static,
    Q: Send + 'static,
    A: Send + 'static,
    F: Future<Output = Vec<A>> + Send + 'static,
{
    let owned = runner.clone();
    Batcher::patient(&runner.streams, patience, move |key, requests| handle(owned.clone(), key, requests))
}

impl Grouped {
    pub(super) fn new(runner: &Runner) -> Self {
        // A listing with `Depth::Around` is made before a stream. The transfer waits for it, sometimes in a slot that
        // it occupies already.
        let list_patience = |key: &ListKey| if key.depth == Depth::Around { GATHER } else { LINGER };
        Self {
            runner: runner.clone(),
            lists: batcher(runner, list_patience, Runner::list_batch),
            histories: batcher(runner, |_| LINGER, Runner::history_batch),
            properties: batcher(runner, |_| GATHER, Runner::properties_batch),
            changes: batcher(runner, |_| GATHER, Runner::change_batch),
            holds: batcher(runner, |_| GATHER, Runner::hold_batch),
        }
    }

    /// Lists the datasets themselves, not what is below them.
    pub(super) async fn list(&self, roots: &[DatasetName], depth: Depth) -> Result<Vec<Listed>, ZfsError> {
        let pools: BTreeSet<&str> = roots.iter().map(DatasetName::pool).collect();
        let key = ListKey { depth, pools: pools.into_iter().map(str::to_owned).collect() };
        let answer = self.lists.ask(key, roots.to_vec()).await;
        answer.unwrap_or_else(|_| Err(self.runner.unanswered(&argv::list_snapshots(roots, depth))))
    }

    /// The snapshots and bookmarks of a dataset; `None` if it does not exist.
    pub(super) async fn history(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        let answer = self.histories.ask(dataset.pool().to_owned(), dataset.clone()).await;
        answer.unwrap_or_else(|_| {
            Err(self.runner.unanswered(&argv::list_snapshots(std::slice::from_ref(dataset), Depth::Only)))
        })
    }

    /// The properties that were set on a dataset itself, or received with it.
    pub(super) async fn properties(&self, dataset: &DatasetName) -> Result<BTreeMap<String, String>, ZfsError> {
        let answer = self.properties.ask(dataset.pool().to_owned(), dataset.clone()).await;
        answer.unwrap_or_else(|_| Err(self.runner.unanswered(&argv::properties(dataset))))
    }

    /// Makes a change by script. `false` means that it was not made; the command for this change will report why.
    pub(super) async fn change(&self, change: ScriptedChange) -> bool {
        self.changes.ask(change.pool().to_owned(), change).await.unwrap_or_default()
    }

    /// Holds snapshots of one dataset.
    pub(super) async fn hold(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        self.change_holds(HoldChange::Hold, tag, dataset, names).await
    }

    /// Releases holds on snapshots of one dataset.
    pub(super) async fn release(&self, tag: &str, dataset: &DatasetName, names: &[SnapName]) -> Result<(), ZfsError> {
        self.change_holds(HoldChange::Release, tag, dataset, names).await
    }

    async fn change_holds(
        &self,
        change: HoldChange,
        tag: &str,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> Result<(), ZfsError> {
        let full_names: Vec<String> = names.iter().map(|name| dataset.at(name)).collect();
        if full_names.is_empty() {
            return Ok(());
        }
        let key = HoldKey { change, pool: dataset.pool().to_owned(), tag: tag.to_owned() };
        let argv = key.argv(&full_names);
        self.holds.ask(key, full_names).await.unwrap_or_else(|_| Err(self.runner.unanswered(&argv)))
    }
}

impl Runner {
    async fn list_batch(self, key: ListKey, requests: Vec<Vec<DatasetName>>) -> Vec<Result<Vec<Listed>, ZfsError>> {
        let depth = key.depth;
        let mut all: Vec<DatasetName> = requests.iter().flatten().cloned().collect();
        all.sort();
        all.dedup();
        let listed = match self.list(&all, depth).await {
            Ok(listed) => listed,
            Err(error) if requests.len() == 1 => return vec![Err(error)],
            // The requests are repeated one by one, so that the problem of one does not fail the others.
            Err(_) => {
                let mut answers = Vec::with_capacity(requests.len());
                for roots in requests {
                    answers.push(self.list(&roots, depth).await);
                }
                return answers;
            }
        };
        if requests.len() == 1 {
            return vec![Ok(listed)];
        }
        let is_wanted = |name: &DatasetName, roots: &[DatasetName]| match depth {
            Depth::Around => roots.iter().any(|root| root.is_within(name)),
            _ => roots.contains(name),
        };
        let answer = |roots: Vec<DatasetName>| {
            Ok(listed.iter().filter(|(name, _)| is_wanted(name, &roots)).cloned().collect::<Vec<_>>())
        };
        requests.into_iter().map(answer).collect()
    }

    async fn history_batch(self, _: String, datasets: Vec<DatasetName>) -> Vec<Result<Option<History>, ZfsError>> {
        if let [dataset] = datasets.as_slice() {
            return vec![self.history(dataset).await];
        }
        let mut names = datasets.clone();
        names.sort();
        names.dedup();
        // If one dataset is missing, or has another problem, all are listed one by one.
        let Ok(histories) = self.histories(&names).await else {
            let mut answers = Vec::with_capacity(datasets.len());
            for dataset in &datasets {
                answers.push(self.history(dataset).await);
            }
            return answers;
        };
        let histories: BTreeMap<DatasetName, History> = histories.into_iter().collect();
        datasets.iter().map(|dataset| Ok(histories.get(dataset).cloned())).collect()
    }

    async fn properties_batch(
        self,
        _: String,
        datasets: Vec<DatasetName>,
    ) -> Vec<Result<BTreeMap<String, String>, ZfsError>> {
        if let [dataset] = datasets.as_slice() {
            return vec![self.properties(dataset).await];
        }
        let mut names = datasets.clone();
        names.sort();
        names.dedup();
        let output = self.run(&argv::properties_of(&names)).await.ok();
        // If one dataset is missing, or a value has several lines, all are asked for one by one.
        let Some(found) = output.and_then(|output| parse::properties_of(&output, &names)) else {
            let mut answers = Vec::with_capacity(datasets.len());
            for dataset in &datasets {
                answers.push(self.properties(dataset).await);
            }
            return answers;
        };
        datasets.iter().map(|dataset| Ok(found.get(dataset).cloned().unwrap_or_default())).collect()
    }

    async fn change_batch(self, pool: String, changes: Vec<ScriptedChange>) -> Vec<bool> {
        let argv = argv::change(&pool, &changes);
        let done = match self.run_script(&argv, argv::CHANGE_SCRIPT).await {
            Ok(output) => parse::changed(&output, changes.len()).map_err(|reason| self.unreadable(&argv, reason)),
            Err(error) => Err(error),
        };
        done.unwrap_or_else(|error| {
            log::debug!("{error}");
            vec![false; changes.len()]
        })
    }

    async fn hold_batch(self, key: HoldKey, requests: Vec<Vec<String>>) -> Vec<Result<(), ZfsError>> {
        let chunks = requests.chunks(HOLDS_PER_PROCESS).map(|chunk| {
            let (this, key, chunk) = (self.clone(), key.clone(), chunk.to_vec());
            async move { this.hold_chunk(&key, &chunk).await }
        });
        let chunks: Vec<_> = chunks.collect();
        runtime::side_by_side(CONCURRENT_HOLDS, chunks).await.into_iter().flatten().collect()
    }

    async fn hold_chunk(&self, key: &HoldKey, requests: &[Vec<String>]) -> Vec<Result<(), ZfsError>> {
        let all: Vec<String> = requests.iter().flatten().cloned().collect();
        match self.run(&key.argv(&all)).await {
            Ok(_) => return requests.iter().map(|_| Ok(())).collect(),
            Err(error) if all.len() == 1 => {
                return vec![if error.kind == key.harmless() { Ok(()) } else { Err(error) }];
            }
            Err(_) => {}
        }
        // If the command failed for one snapshot, it may or may not have changed the others. The requests are repeated
        // one by one, so that each gets its own result.
        let mut answers = Vec::with_capacity(requests.len());
        for names in requests {
            let mut answer = Ok(());
            for name in names {
                let done = self.run_unless(&key.argv(std::slice::from_ref(name)), key.harmless()).await;
                answer = answer.and(done);
            }
            answers.push(answer);
        }
        answers
    }
}
