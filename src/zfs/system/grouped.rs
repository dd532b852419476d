//! What is asked of many datasets at a time, by one process: listings, new bookmarks, users' properties.

use std::collections::{BTreeMap, BTreeSet};

use futures_lite::future;

use super::System;
use crate::model::{DatasetInventory, DatasetName};
use crate::runtime;
use crate::zfs::argv::Write;
use crate::zfs::{Depth, ErrorKind, History, Listed, ZfsError, argv, parse};

/// How many pools are listed at once.
const POOLS_AT_ONCE: usize = 4;

impl System {
    /// Lists each pool's datasets with all below them, the pools side by side.
    pub(super) async fn list_by_pool(&self, roots: &[DatasetName]) -> Result<Vec<Listed>, ZfsError> {
        let mut by_pool: BTreeMap<&str, Vec<DatasetName>> = BTreeMap::new();
        for root in roots {
            by_pool.entry(root.pool()).or_default().push(root.clone());
        }
        let pools = by_pool.into_values().map(|roots| {
            let this = self.clone();
            async move { this.list_now(&roots, Depth::Recursive).await }
        });
        let pools: Vec<_> = pools.collect();
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
        let (of_datasets, of_snapshots) = (argv::list_datasets(roots, depth), argv::list_snapshots(roots, depth));
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
        let answer = self.lists.ask(&group, roots.to_vec(), answer).await;
        answer.unwrap_or_else(|| Err(self.unanswered(&argv::list_datasets(roots, depth))))
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
        let of =
            |roots: Vec<DatasetName>| Ok(listed.iter().filter(|(name, _)| roots.contains(name)).cloned().collect());
        questions.into_iter().map(of).collect()
    }

    /// A dataset's snapshots and bookmarks, by one process for all that are asked for at the same time.
    pub(super) async fn snapshots_grouped(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        let this = self.clone();
        let answer = move |datasets| {
            let this = this.clone();
            async move { this.snapshots_all(datasets).await }
        };
        let answer = self.histories.ask(dataset.pool(), dataset.clone(), answer).await;
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
        let argv = argv::list_snapshots(&names, Depth::Only);
        // One that is missing, or has anything else the matter with it, tells so alone.
        let listed = match self.run(&argv).await {
            Ok(output) => parse::snapshots(&output).ok(),
            Err(_) => None,
        };
        let Some(rows) = listed else {
            let mut answers = Vec::with_capacity(datasets.len());
            for dataset in &datasets {
                answers.push(self.snapshots_of(dataset).await);
            }
            return answers;
        };
        let alone = names.into_iter().map(|name| (name, DatasetInventory::default())).collect();
        let found: BTreeMap<DatasetName, DatasetInventory> = parse::join(alone, rows).into_iter().collect();
        let history = |found: &DatasetInventory| (found.snapshots.clone(), found.bookmarks.clone());
        datasets.iter().map(|dataset| Ok(found.get(dataset).map(history))).collect()
    }

    async fn snapshots_of(&self, dataset: &DatasetName) -> Result<Option<History>, ZfsError> {
        let argv = argv::list_snapshots(std::slice::from_ref(dataset), Depth::Only);
        let output = match self.run(&argv).await {
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
            output => output?,
        };
        let rows = parse::snapshots(&output).map_err(|bad| self.unreadable(&argv, bad))?;
        let alone = vec![(dataset.clone(), DatasetInventory::default())];
        Ok(parse::join(alone, rows).into_iter().next().map(|(_, found)| (found.snapshots, found.bookmarks)))
    }

    /// Writes something, by one script for all that is to be written at the same time; `false` where that did not do it:
    /// the command itself will tell why.
    pub(super) async fn write_grouped(&self, wanted: Write) -> bool {
        let (this, pool) = (self.clone(), wanted.pool().to_owned());
        let answer = move |wanted: Vec<Write>| {
            let this = this.clone();
            async move { this.write_all(&wanted).await }
        };
        self.writes.ask(&pool, wanted, answer).await.unwrap_or_default()
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

    fn unanswered(&self, argv: &[String]) -> ZfsError {
        ZfsError {
            kind: ErrorKind::Killed,
            command: self.shown(argv),
            status: "did not run".into(),
            stderr: "the program is ending".into(),
        }
    }
}
