//! What is asked of many datasets at a time, by one process: listings, new bookmarks, users' properties.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_lite::future;

use crate::model::{DatasetInventory, DatasetName, SnapName};
use crate::sys::runtime;
use crate::zfs::argv::Write;
use crate::zfs::system::System;
use crate::zfs::{Depth, ErrorKind, History, Listed, ZfsError, argv, parse};

/// How many pools are listed at once.
const POOLS_AT_ONCE: usize = 4;
/// How long those are waited for whose streams end soon: nothing else waits for what comes after a stream.
const LINGER: Duration = Duration::from_secs(2);
/// How long those are waited for who were answered together, and so ask the next question together.
const GATHER: Duration = Duration::from_millis(100);
/// How many snapshots one process holds or releases: it waits for a transaction group for each of them.
const HOLDS_PER_PROCESS: usize = 8;
/// How many such processes run at once for what is asked together.
const HOLDING_AT_ONCE: usize = 4;

/// What is done to holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tagging {
    Hold,
    Release,
}

impl Tagging {
    fn argv(self, tag: &str, full_names: &[String]) -> Vec<String> {
        match self {
            Self::Hold => argv::hold(tag, full_names),
            Self::Release => argv::release(tag, full_names),
        }
    }

    /// The failure that means that nothing was to be done.
    fn harmless(self) -> ErrorKind {
        match self {
            Self::Hold => ErrorKind::Exists,
            Self::Release => ErrorKind::NotFound,
        }
    }
}

impl System {
    /// Lists each pool's datasets with all below them, the pools side by side.
    pub(super) async fn list_by_pool(&self, roots: &[DatasetName]) -> Result<Vec<Listed>, ZfsError> {
        self.each_pool(roots, |this, roots| async move { this.list_now(&roots, Depth::Recursive).await }).await
    }

    /// Does something with the roots of each pool, the pools side by side.
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
        for listed in runtime::side_by_side(POOLS_AT_ONCE, pools).await {
            all.extend(listed?);
        }
        Ok(all)
    }

    /// Lists by two processes side by side, or by one without snapshots; `roots` are not empty.
    async fn list_now(&self, roots: &[DatasetName], depth: Depth) -> Result<Vec<Listed>, ZfsError> {
        if depth == Depth::Bare {
            let argv = argv::list_datasets(roots, depth);
            return parse::datasets(&self.listing(&argv).await?).map_err(|bad| self.unreadable(&argv, bad));
        }
        let around: BTreeSet<DatasetName> = match depth {
            Depth::Around => roots.iter().flat_map(DatasetName::ancestors).chain(roots.iter().cloned()).collect(),
            _ => BTreeSet::new(),
        };
        let around: Vec<DatasetName> = around.into_iter().collect();
        let named = if around.is_empty() { roots } else { &around };
        let (of_datasets, of_snapshots) = (argv::list_datasets(named, depth), argv::list_snapshots(roots, depth));
        let (datasets, snapshots) = future::zip(self.listing(&of_datasets), self.listing(&of_snapshots)).await;
        let datasets = parse::datasets(&datasets?).map_err(|bad| self.unreadable(&of_datasets, bad))?;
        let rows = parse::snapshots(&snapshots?).map_err(|bad| self.unreadable(&of_snapshots, bad))?;
        Ok(parse::join(datasets, rows))
    }

    /// Lists datasets themselves, by one process for all that are asked for at the same time.
    pub(super) async fn list_grouped(&self, roots: &[DatasetName], depth: Depth) -> Result<Vec<Listed>, ZfsError> {
        // A pool that is suspended answers nothing: only who asks for it waits for it.
        let pools: BTreeSet<&str> = roots.iter().map(DatasetName::pool).collect();
        let group = format!("{depth:?} {}", pools.into_iter().collect::<Vec<_>>().join(" "));
        let this = self.clone();
        let answer = move |questions| {
            let this = this.clone();
            async move { this.list_all(questions, depth).await }
        };
        // What surrounds a dataset is asked before a stream, which has its place already.
        let patience = self.patience(if depth == Depth::Around { GATHER } else { LINGER });
        let answer = self.lists.ask(&group, roots.to_vec(), patience, answer).await;
        answer.unwrap_or_else(|| Err(self.unanswered(&argv::list_datasets(roots, depth))))
    }

    /// How long others are waited for: as long as that, while there are streams that end soon.
    fn patience(&self, longest: Duration) -> impl Fn() -> Duration + Send + 'static {
        let streams = self.streams.clone();
        move || if streams.any_ends_soon() { longest } else { Duration::ZERO }
    }

    async fn list_all(&self, questions: Vec<Vec<DatasetName>>, depth: Depth) -> Vec<Result<Vec<Listed>, ZfsError>> {
        let mut all: Vec<DatasetName> = questions.iter().flatten().cloned().collect();
        all.sort();
        all.dedup();
        let listed = match self.list_now(&all, depth).await {
            Ok(listed) => listed,
            Err(error) if questions.len() == 1 => return vec![Err(error)],
            // What is wrong with one is none of the others' business.
            Err(_) => {
                let mut answers = Vec::with_capacity(questions.len());
                for roots in questions {
                    answers.push(self.list_now(&roots, depth).await);
                }
                return answers;
            }
        };
        if questions.len() == 1 {
            return vec![Ok(listed)];
        }
        let wanted = |name: &DatasetName, roots: &[DatasetName]| match depth {
            Depth::Around => roots.iter().any(|root| root.is_within(name)),
            _ => roots.contains(name),
        };
        let of = |roots: Vec<DatasetName>| {
            Ok(listed.iter().filter(|(name, _)| wanted(name, &roots)).cloned().collect::<Vec<_>>())
        };
        questions.into_iter().map(of).collect()
    }

    /// A dataset's snapshots and bookmarks, by one process for all that are asked for at the same time.
    pub(super) async fn snapshots_grouped(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        let this = self.clone();
        let answer = move |datasets| {
            let this = this.clone();
            async move { this.snapshots_all(datasets).await }
        };
        let answer = self.histories.ask(dataset.pool(), dataset.clone(), self.patience(LINGER), answer).await;
        answer
            .unwrap_or_else(|| Err(self.unanswered(&argv::list_snapshots(std::slice::from_ref(dataset), Depth::Only))))
    }

    async fn snapshots_all(&self, datasets: Vec<DatasetName>) -> Vec<Result<Option<History>, ZfsError>> {
        if let [dataset] = datasets.as_slice() {
            return vec![self.snapshots_of(dataset).await];
        }
        let mut names = datasets.clone();
        names.sort();
        names.dedup();
        // One that is missing, or has anything else the matter with it, tells so alone.
        let Ok(listed) = self.histories(&names).await else {
            let mut answers = Vec::with_capacity(datasets.len());
            for dataset in &datasets {
                answers.push(self.snapshots_of(dataset).await);
            }
            return answers;
        };
        let found: BTreeMap<DatasetName, History> = listed.into_iter().collect();
        datasets.iter().map(|dataset| Ok(found.get(dataset).cloned())).collect()
    }

    async fn snapshots_of(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        match self.histories(std::slice::from_ref(dataset)).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            listed => Ok(listed?.into_iter().next().map(|(_, history)| history)),
        }
    }

    /// The snapshots and bookmarks of datasets, all of which must be there, by one process.
    pub(super) async fn histories(&self, datasets: &[DatasetName]) -> Result<Vec<(DatasetName, History)>, ZfsError> {
        let argv = argv::list_snapshots(datasets, Depth::Only);
        let rows = parse::snapshots(&self.run(&argv).await?).map_err(|bad| self.unreadable(&argv, bad))?;
        let alone = datasets.iter().map(|name| (name.clone(), DatasetInventory::default())).collect();
        let history = |(name, found): Listed| (name, (found.snapshots, found.bookmarks));
        Ok(parse::join(alone, rows).into_iter().map(history).collect())
    }

    /// Writes something, by one script for all that is to be written at the same time; `false` where that did not do it:
    /// the command itself will tell why.
    pub(super) async fn write_grouped(&self, wanted: Write) -> bool {
        let (this, pool) = (self.clone(), wanted.pool().to_owned());
        let answer = move |wanted: Vec<Write>| {
            let this = this.clone();
            async move { this.write_all(&wanted).await }
        };
        self.writes.ask(&pool, wanted, self.patience(GATHER), answer).await.unwrap_or_default()
    }

    async fn write_all(&self, wanted: &[Write]) -> Vec<bool> {
        let Some(first) = wanted.first() else { return Vec::new() };
        let argv = argv::write(first.pool(), wanted);
        let said = match self.run_script(&argv, argv::WRITE).await {
            Ok(said) => parse::written(&said, wanted.len()).map_err(|bad| self.unreadable(&argv, bad)),
            Err(error) => Err(error),
        };
        said.unwrap_or_else(|error| {
            log::debug!("{error}");
            vec![false; wanted.len()]
        })
    }

    /// Holds or releases snapshots of one dataset, by few processes for all that are to get the same tag, or lose it, at
    /// the same time.
    pub(super) async fn tag_grouped(
        &self,
        how: Tagging,
        tag: &str,
        dataset: &DatasetName,
        names: &[SnapName],
    ) -> Result<(), ZfsError> {
        let full_names: Vec<String> = names.iter().map(|name| dataset.at(name)).collect();
        if full_names.is_empty() {
            return Ok(());
        }
        let (this, tag) = (self.clone(), tag.to_owned());
        let group = format!("{how:?} {} {tag}", dataset.pool());
        let argv = how.argv(&tag, &full_names);
        let answer = move |questions: Vec<Vec<String>>| {
            let (this, tag) = (this.clone(), tag.clone());
            async move { this.tag_all(how, &tag, questions).await }
        };
        let answer = self.tags.ask(&group, full_names, self.patience(GATHER), answer).await;
        answer.unwrap_or_else(|| Err(self.unanswered(&argv)))
    }

    async fn tag_all(&self, how: Tagging, tag: &str, questions: Vec<Vec<String>>) -> Vec<Result<(), ZfsError>> {
        let chunks = questions.chunks(HOLDS_PER_PROCESS).map(|chunk| {
            let (this, tag, chunk) = (self.clone(), tag.to_owned(), chunk.to_vec());
            async move { this.tag_some(how, &tag, &chunk).await }
        });
        let chunks: Vec<_> = chunks.collect();
        runtime::side_by_side(HOLDING_AT_ONCE, chunks).await.into_iter().flatten().collect()
    }

    async fn tag_some(&self, how: Tagging, tag: &str, questions: &[Vec<String>]) -> Vec<Result<(), ZfsError>> {
        let all: Vec<String> = questions.iter().flatten().cloned().collect();
        match self.run(&how.argv(tag, &all)).await {
            Ok(_) => return questions.iter().map(|_| Ok(())).collect(),
            Err(error) if all.len() == 1 => {
                return vec![if error.kind == how.harmless() { Ok(()) } else { Err(error) }];
            }
            Err(_) => {}
        }
        // What failed for one may have been done for the others, or not; each is told its own.
        let mut answers = Vec::with_capacity(questions.len());
        for names in questions {
            let mut answer = Ok(());
            for name in names {
                let done = self.run_unless(&how.argv(tag, std::slice::from_ref(name)), how.harmless()).await;
                answer = answer.and(done);
            }
            answers.push(answer);
        }
        answers
    }

    fn unanswered(&self, argv: &[String]) -> ZfsError {
        ZfsError {
            kind: ErrorKind::Killed,
            command: self.shown(argv),
            status: "did not run".into(),
            stderr: "the program is ending".into(),
        }
    }
}
