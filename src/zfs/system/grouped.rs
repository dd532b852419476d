//! What is asked of many datasets at a time, by one process: listings, and new bookmarks.

use super::System;
use crate::model::{DatasetName, SnapName};
use crate::zfs::{Depth, ErrorKind, Listed, Named, ZfsError, argv, parse};

/// A bookmark to be made: of whose snapshot, under which name.
pub(super) type NewBookmark = (DatasetName, Named, SnapName);

impl System {
    /// Lists datasets themselves, by one process for all that are asked for at the same time.
    pub(super) async fn list_grouped(&self, roots: &[DatasetName]) -> Result<Vec<Listed>, ZfsError> {
        let pool = roots.first().map(DatasetName::pool).unwrap_or_default();
        if roots.iter().any(|root| root.pool() != pool) {
            return self.list_now(roots, Depth::Only).await;
        }
        let this = self.clone();
        let answer = move |questions| {
            let this = this.clone();
            async move { this.list_all(questions).await }
        };
        let answer = self.lists.ask(pool, roots.to_vec(), answer).await;
        answer.unwrap_or_else(|| Err(self.unanswered(&argv::list_datasets(roots, Depth::Only))))
    }

    async fn list_all(&self, questions: Vec<Vec<DatasetName>>) -> Vec<Result<Vec<Listed>, ZfsError>> {
        let mut all: Vec<DatasetName> = questions.iter().flatten().cloned().collect();
        all.sort();
        all.dedup();
        let listed = match self.list_now(&all, Depth::Only).await {
            Ok(listed) => listed,
            Err(error) if questions.len() == 1 => return vec![Err(error)],
            // What is wrong with one is none of the others' business.
            Err(_) => {
                let mut answers = Vec::with_capacity(questions.len());
                for roots in questions {
                    answers.push(self.list_now(&roots, Depth::Only).await);
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

    /// Makes a bookmark, by one script for all that are asked for at the same time; `false` where that did not do it:
    /// the command itself will tell why.
    pub(super) async fn bookmark_grouped(&self, wanted: NewBookmark) -> bool {
        let (this, pool) = (self.clone(), wanted.0.pool().to_owned());
        let answer = move |wanted: Vec<NewBookmark>| {
            let this = this.clone();
            async move { this.bookmark_all(&wanted).await }
        };
        self.bookmarks.ask(&pool, wanted, answer).await.unwrap_or_default()
    }

    async fn bookmark_all(&self, wanted: &[NewBookmark]) -> Vec<bool> {
        let Some((dataset, ..)) = wanted.first() else { return Vec::new() };
        let argv = argv::bookmarks(dataset.pool(), wanted);
        let said = match self.run_script(&argv, argv::BOOKMARKS).await {
            Ok(said) => parse::bookmarked(&said, wanted.len()).map_err(|bad| self.unreadable(&argv, bad)),
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
