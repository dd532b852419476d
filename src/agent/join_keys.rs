//! Carries out join_keys: has restored datasets use the keys that the lost ones used.
//!
//! A raw stream carries the key of its dataset, so every dataset that is restored from one has a key of its own, wrapped
//! as it was before. Where the lost datasets used the key of one above them, a restore has noted that one
//! (`zsync:key_from`). Once the keys are loaded, ZFS can have the datasets share that key again.
//!
//! That must not be done to a copy: the next raw increment would bring the previous key, and ZFS would accept it, which
//! makes the copy unreadable.

use std::collections::{BTreeMap, BTreeSet};

use crate::agent::context::{OrderContext, Success};
use crate::agent::request::JoinKeysRequest;
use crate::agent::service::Agent;
use crate::host::error::OrderError;
use crate::model::tags::KEY_FROM;
use crate::model::{DatasetInventory, DatasetName, KeyJoin, KeyState, ResponseStatus, hint};
use crate::zfs::{Depth, Zfs};

impl<Z: Zfs> Agent<Z> {
    /// Finds the restored datasets whose keys can be joined, and joins those of them that the order names. A dataset in
    /// trouble does not stop the others.
    pub(crate) async fn join_keys(
        &self,
        request: &JoinKeysRequest,
        context: &OrderContext,
    ) -> Result<Success, OrderError> {
        self.local.permission_to_restore(&request.root)?;
        let listed = self.zfs.list(std::slice::from_ref(&request.root), Depth::Recursive).await?;
        if listed.is_empty() {
            return Err(OrderError::refused(format!("{} does not exist", request.root)));
        }
        let keys = self.zfs.keys(&request.root).await?;
        let mut wanted: BTreeMap<DatasetName, Wanted> = BTreeMap::new();
        let may_join = |name: &DatasetName, found: &DatasetInventory| {
            found.encrypted && found.flags.is_none() && self.local.permission_to_restore(name).is_ok()
        };
        for (name, _) in listed.iter().filter(|(name, found)| may_join(name, found)) {
            let properties = self.zfs.properties(name).await?;
            if let Some(Ok(root)) = properties.get(KEY_FROM).map(|root| root.parse()) {
                let is_unfinished = self.receiver.is_unfinished(name).await?;
                wanted.insert(name.clone(), Wanted { root, is_unfinished });
            }
        }
        let mut joins = joins(&keys, &wanted);
        if request.read_only {
            return Ok(Success { joins, ..Success::new(ResponseStatus::Done, "") });
        }
        joins.retain(|join| request.datasets.contains(&join.dataset));
        let mut failed: BTreeSet<DatasetName> = BTreeSet::new();
        for join in &mut joins {
            let above = join.dataset.ancestors().find(|above| failed.contains(above));
            let done = match (join.problem.take(), above) {
                (Some(problem), _) => Err(problem),
                (None, Some(above)) => Err(format!("{above} could not be joined")),
                (None, None) => self.join_key(&join.dataset, context).await.map_err(|error| error.message()),
            };
            if let Err(problem) = done {
                failed.insert(join.dataset.clone());
                join.problem = Some(problem);
            }
        }
        let status = if joins.is_empty() { ResponseStatus::NothingToDo } else { ResponseStatus::Done };
        Ok(Success { joins, ..Success::new(status, "") })
    }

    /// Joins the key of one dataset. Nothing is sent from it meanwhile.
    async fn join_key(&self, dataset: &DatasetName, context: &OrderContext) -> Result<(), OrderError> {
        let Some(_changing) = self.locks.claim(dataset) else {
            return Err(OrderError::busy(format!("{dataset} is being sent")));
        };
        self.cache.invalidate(dataset);
        self.zfs.inherit_key(dataset).await?;
        context.record_changed(dataset);
        Ok(self.zfs.inherit(dataset, KEY_FROM).await?)
    }
}

/// What a restore has noted about a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    /// The dataset whose key the lost one used.
    root: DatasetName,
    /// Whether the restore has not been completed.
    is_unfinished: bool,
}

/// Which datasets can use the keys of which ones again, those that contain others first. Datasets that use them already
/// are left out.
fn joins(keys: &BTreeMap<DatasetName, KeyState>, wanted: &BTreeMap<DatasetName, Wanted>) -> Vec<KeyJoin> {
    // Whose keys the datasets use after the joins before.
    let mut roots: BTreeMap<&DatasetName, &DatasetName> = keys.iter().map(|(name, key)| (name, &key.root)).collect();
    let mut joins = Vec::new();
    for (dataset, Wanted { root, is_unfinished }) in wanted {
        let Some(own) = keys.get(dataset).filter(|own| own.root != *root) else { continue };
        let problem = match keys.get(root).filter(|key| key.root == *root) {
            _ if *is_unfinished => Some("its restore has not been completed".to_owned()),
            _ if own.root != *dataset => Some(format!("it uses the key of {}", own.root)),
            None => Some(format!("{root} does not exist, or has no key of its own")),
            Some(key) if !key.is_loaded => Some(hint::join(
                format!("the key of {root} is not loaded"),
                Some(&format!("zfs load-key {}", hint::word(root))),
            )),
            Some(_) if !own.is_loaded => {
                Some(hint::join("its own key is not loaded", Some(&format!("zfs load-key {}", hint::word(dataset)))))
            }
            Some(_) => {
                let other = dataset.parent().filter(|above| roots.get(above) != Some(&root));
                other.map(|above| format!("{above}, which contains it, does not use the key of {root}"))
            }
        };
        if problem.is_none() {
            roots.insert(dataset, root);
        }
        joins.push(KeyJoin { dataset: dataset.clone(), root: root.clone(), problem });
    }
    joins
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ds(name: &str) -> DatasetName {
        name.parse().unwrap()
    }

    /// "a b- c:a": a and b have keys of their own, that of b is not loaded, and c uses that of a.
    fn keys(text: &str) -> BTreeMap<DatasetName, KeyState> {
        let key = |word: &str| {
            let (name, root) = word.split_once(':').unwrap_or((word, word));
            let name = name.trim_end_matches('-');
            let state = KeyState { root: ds(root.trim_end_matches('-')), is_loaded: !word.ends_with('-') };
            (ds(name), state)
        };
        text.split_whitespace().map(key).collect()
    }

    fn wanted(text: &str) -> BTreeMap<DatasetName, Wanted> {
        let of = |word: &str| {
            let (name, root) = word.split_once(':').unwrap();
            (ds(name), Wanted { root: ds(root.trim_end_matches('!')), is_unfinished: root.ends_with('!') })
        };
        text.split_whitespace().map(of).collect()
    }

    #[test]
    fn joins_says_what_can_be_joined_and_why_not() {
        for (what, keys_now, noted, expected) in [
            ("a tree", "t/a t/a/b t/a/b/c", "t/a/b:t/a t/a/b/c:t/a", "t/a/b t/a/b/c"),
            ("it is joined already", "t/a t/a/b:t/a", "t/a/b:t/a", ""),
            ("the rest of a tree", "t/a t/a/b:t/a t/a/b/c", "t/a/b/c:t/a", "t/a/b/c"),
            ("nothing is noted", "t/a t/a/b", "", ""),
            ("it is not encrypted", "t/a", "t/a/b:t/a", ""),
            (
                "a root is locked",
                "t/a- t/a/b",
                "t/a/b:t/a",
                "t/a/b: the key of t/a is not loaded; hint: zfs load-key t/a",
            ),
            ("it is locked", "t/a t/a/b-", "t/a/b:t/a", "t/a/b: its own key is not loaded; hint: zfs load-key t/a/b"),
            ("no root", "t/a/b", "t/a/b:t/a", "t/a/b: t/a does not exist, or has no key of its own"),
            ("the root is none", "t t/a:t t/a/b", "t/a/b:t/a", "t/a/b: t/a does not exist, or has no key of its own"),
            (
                "one between has another key",
                "t/a t/a/b- t/a/b/c",
                "t/a/b:t/a t/a/b/c:t/a",
                "t/a/b: its own key is not loaded; hint: zfs load-key t/a/b | \
                 t/a/b/c: t/a/b, which contains it, does not use the key of t/a",
            ),
            ("it uses another key", "t t/a t/a/b:t", "t/a/b:t/a", "t/a/b: it uses the key of t"),
            ("it is not complete", "t/a t/a/b", "t/a/b:t/a!", "t/a/b: its restore has not been completed"),
        ] {
            let (mut possible, mut problems) = (Vec::new(), Vec::new());
            for KeyJoin { dataset, problem, .. } in joins(&keys(keys_now), &wanted(noted)) {
                match problem {
                    None => possible.push(dataset.to_string()),
                    Some(problem) => problems.push(format!("{dataset}: {problem}")),
                }
            }
            let said = [possible.join(" "), problems.join(" | ")].concat();
            assert_eq!(said, expected, "{what}");
        }
    }
}
