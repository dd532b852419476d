//! Which director's word counts: fences that orders carry, and the highest one that was seen.
//!
//! A director has the lock in Consul, and so the highest fence. One that lost the lock without noticing, frozen or cut
//! off, carries an older one: what it orders destroyed is refused by every host that heard of its successor.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::sys::{files, runtime};
use crate::wire::Fence;

/// How many catalogs are remembered: a new one is made only when Consul lost everything.
const MOST_CATALOGS: usize = 16;

/// The fences that a host has seen.
pub struct Fences {
    file: PathBuf,
    seen: async_lock::Mutex<Option<Seen>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    /// Catalogs in the order in which they were first heard of, each with its highest fence.
    catalogs: Vec<(Uuid, u64)>,
}

/// What a fence means to a host that has seen others.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Known,
    New(Seen),
    Old(String),
}

fn judge(seen: &Seen, fence: &Fence) -> Verdict {
    let mut now = seen.clone();
    match seen.catalogs.iter().position(|(catalog, _)| *catalog == fence.catalog) {
        None => {
            now.catalogs.push((fence.catalog, fence.index));
            let surplus = now.catalogs.len().saturating_sub(MOST_CATALOGS);
            now.catalogs.drain(..surplus);
            Verdict::New(now)
        }
        Some(place) if place + 1 < seen.catalogs.len() => {
            Verdict::Old("it is of a catalog that another one has replaced in Consul since".to_owned())
        }
        Some(place) => match now.catalogs.get_mut(place) {
            Some((_, highest)) if fence.index < *highest => {
                Verdict::Old(format!("its fence is {}, and one of {highest} was seen", fence.index))
            }
            Some((_, highest)) if fence.index > *highest => {
                *highest = fence.index;
                Verdict::New(now)
            }
            _ => Verdict::Known,
        },
    }
}

impl Fences {
    /// Those that a file in `folder` remembers.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { file: folder.join("fence.json"), seen: async_lock::Mutex::new(None) }
    }

    /// Takes note of an order's fence; an error says why the order is not of the director that counts. One order after
    /// the other: what was remembered last is the highest.
    pub async fn pass(&self, fence: Fence) -> Result<(), String> {
        let mut known = self.seen.lock().await;
        let seen = match known.take() {
            Some(seen) => seen,
            None => {
                let file = self.file.clone();
                let loaded = runtime::blocking(move || files::load::<Seen>(&file)).await;
                loaded
                    .map_err(|error| format!("the highest fence in {} cannot be read: {error}", self.file.display()))?
            }
        };
        let verdict = judge(&seen, &fence);
        *known = Some(seen);
        match verdict {
            Verdict::Known => Ok(()),
            Verdict::Old(reason) => Err(format!("another director has taken over: {reason}")),
            Verdict::New(now) => {
                let (file, text) = (self.file.clone(), serde_json::to_vec(&now));
                let saving = runtime::blocking(move || files::save(&file, &text?));
                saving
                    .await
                    .map_err(|error| format!("its fence cannot be remembered in {}: {error}", self.file.display()))?;
                *known = Some(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(catalog: u128, index: u64) -> Fence {
        Fence { catalog: Uuid::from_u128(catalog), index }
    }

    #[test]
    fn an_older_fence_is_refused_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        runtime::block_on(async {
            let fences = Fences::new(folder.path());
            for index in [5, 5, 9, 9] {
                fences.pass(fence(1, index)).await.unwrap();
            }
            for fences in [fences, Fences::new(folder.path())] {
                let said = fences.pass(fence(1, 8)).await.unwrap_err();
                assert!(said.contains("another director has taken over") && said.contains('9'), "{said}");
                fences.pass(fence(1, 9)).await.unwrap();
            }
        });
    }

    #[test]
    fn orders_at_once_bring_the_same_fence() {
        let folder = tempfile::tempdir().unwrap();
        let fences = std::sync::Arc::new(Fences::new(folder.path()));
        let orders = (0..64).map(|_| {
            let fences = std::sync::Arc::clone(&fences);
            async move { fences.pass(fence(1, 7)).await }
        });
        let orders: Vec<_> = orders.collect();
        let ended = runtime::block_on(runtime::side_by_side(64, orders));
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    }

    #[test]
    fn after_a_new_catalog_the_old_ones_director_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        runtime::block_on(async {
            let fences = Fences::new(folder.path());
            fences.pass(fence(1, 900)).await.unwrap();
            fences.pass(fence(2, 3)).await.unwrap();
            assert!(fences.pass(fence(1, 901)).await.is_err());
            fences.pass(fence(2, 4)).await.unwrap();
        });
    }

    #[test]
    fn a_fence_that_cannot_be_remembered_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let fences = Fences::new(&file.join("below"));
        let said = runtime::block_on(fences.pass(fence(1, 1))).unwrap_err();
        assert!(said.contains("cannot be"), "{said}");
    }
}
