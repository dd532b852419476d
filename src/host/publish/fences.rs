//! Recognises orders of a director that has lost its lock. Every order carries a fence, and a host remembers the
//! highest fence that it has seen.
//!
//! The director that holds the lock in Consul has the highest fence. A director that lost the lock without noticing,
//! because it was suspended or disconnected, has a lower one. Every host that has received an order from its successor
//! refuses to destroy anything for it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::sys::{files, runtime};
use crate::wire::Fence;

/// How many catalogs are remembered. A new one is made only when Consul has lost everything.
const MAX_CATALOGS: usize = 16;

/// The highest fences that a host has seen, kept in a file.
pub struct Fences {
    file: PathBuf,
    /// `None` until the file was read.
    highest: async_lock::Mutex<Option<Remembered>>,
}

/// The highest fences, as this process remembers them.
#[derive(Default)]
struct Remembered {
    fences: HighestFences,
    /// Whether there was no room to save them.
    unsaved: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct HighestFences {
    /// The catalogs in the order in which they were first seen, each with its highest fence.
    catalogs: Vec<(Uuid, u64)>,
}

/// How a fence compares with those that the host has seen.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is the highest one.
    Known,
    /// It is higher, and has to be remembered.
    New(HighestFences),
    /// It is outdated, for this reason.
    Old(String),
}

fn judge(seen: &HighestFences, fence: &Fence) -> Verdict {
    let mut now = seen.clone();
    match seen.catalogs.iter().position(|(catalog, _)| *catalog == fence.catalog) {
        None => {
            now.catalogs.push((fence.catalog, fence.index));
            let surplus = now.catalogs.len().saturating_sub(MAX_CATALOGS);
            now.catalogs.drain(..surplus);
            Verdict::New(now)
        }
        Some(index) if index + 1 < seen.catalogs.len() => {
            Verdict::Old("the order's catalog was replaced in Consul by another one".to_owned())
        }
        Some(index) => match now.catalogs.get_mut(index) {
            Some((_, highest)) if fence.index < *highest => {
                Verdict::Old(format!("the order's fence is {}, but this host has seen {highest}", fence.index))
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
    /// The fences that are kept in a file in `folder`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { file: folder.join("fence.json"), highest: async_lock::Mutex::new(None) }
    }

    /// Checks the fence of an order, and remembers it if it is the highest. An error says why the order does not come
    /// from the current director. Orders are checked one after the other, so that the fence remembered last is the
    /// highest.
    ///
    /// While the disk is full, the fence is remembered until this process ends: the order may be the one that makes room.
    pub async fn check(&self, fence: Fence) -> Result<(), String> {
        let mut highest = self.highest.lock().await;
        let seen = match highest.take() {
            Some(seen) => seen,
            None => {
                let file = self.file.clone();
                let loaded = runtime::blocking(move || files::load::<HighestFences>(&file)).await;
                let fences = loaded
                    .map_err(|error| format!("cannot read the highest fence from {}: {error}", self.file.display()))?;
                Remembered { fences, unsaved: false }
            }
        };
        let verdict = judge(&seen.fences, &fence);
        let was_unsaved = seen.unsaved;
        let seen = highest.insert(seen);
        let now = match verdict {
            Verdict::Known if was_unsaved => seen.fences.clone(),
            Verdict::Known => return Ok(()),
            Verdict::Old(reason) => return Err(format!("another director has taken over: {reason}")),
            Verdict::New(now) => now,
        };
        let (file, text) = (self.file.clone(), serde_json::to_vec(&now));
        let saved = runtime::blocking(move || files::save(&file, &text?)).await;
        let unsaved = saved.as_ref().is_err_and(files::is_no_room);
        match saved {
            Err(error) if unsaved && !was_unsaved => {
                log::warn!(
                    "cannot save the order's fence in {}: {error}; it is remembered in memory",
                    self.file.display()
                );
            }
            Err(error) if !unsaved => {
                return Err(format!("cannot save the order's fence in {}: {error}", self.file.display()));
            }
            _ => {}
        }
        *seen = Remembered { fences: now, unsaved };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(catalog: u128, index: u64) -> Fence {
        Fence { catalog: Uuid::from_u128(catalog), index }
    }

    #[test]
    fn check_refuses_an_older_fence_even_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        runtime::block_on(async {
            let fences = Fences::new(folder.path());
            for index in [5, 5, 9, 9] {
                fences.check(fence(1, index)).await.unwrap();
            }
            for fences in [fences, Fences::new(folder.path())] {
                let reason = fences.check(fence(1, 8)).await.unwrap_err();
                assert!(reason.contains("another director has taken over") && reason.contains('9'), "{reason}");
                fences.check(fence(1, 9)).await.unwrap();
            }
        });
    }

    #[test]
    fn check_accepts_concurrent_orders_of_one_director() {
        let folder = tempfile::tempdir().unwrap();
        let fences = std::sync::Arc::new(Fences::new(folder.path()));
        let orders = (0..64).map(|_| {
            let fences = std::sync::Arc::clone(&fences);
            async move { fences.check(fence(1, 7)).await }
        });
        let orders: Vec<_> = orders.collect();
        let ended = runtime::block_on(runtime::side_by_side(64, orders));
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    }

    #[test]
    fn check_refuses_the_director_of_a_replaced_catalog() {
        let folder = tempfile::tempdir().unwrap();
        runtime::block_on(async {
            let fences = Fences::new(folder.path());
            fences.check(fence(1, 900)).await.unwrap();
            fences.check(fence(2, 3)).await.unwrap();
            assert!(fences.check(fence(1, 901)).await.is_err());
            fences.check(fence(2, 4)).await.unwrap();
        });
    }

    #[test]
    fn check_refuses_a_fence_that_cannot_be_saved() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let fences = Fences::new(&file.join("below"));
        let reason = runtime::block_on(fences.check(fence(1, 1))).unwrap_err();
        assert!(reason.contains("cannot"), "{reason}");
    }
}
