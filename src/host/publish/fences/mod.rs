//! Recognises orders of a director that does not lead. The orders of directors that share a catalog carry a fence, and a
//! host remembers the highest fence that it has seen.
//!
//! The director that holds the lock in Consul has the highest fence. A director that lost the lock without noticing,
//! because it was suspended or disconnected, has a lower one. Every host that has received an order from its successor
//! refuses to destroy anything for it. A host that has seen a fence also refuses to destroy anything on an order without
//! one, because such an order comes from a director that asks nobody whether it leads.

mod refusal;
mod seen;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use refusal::Refusal;
use seen::Verdict;
pub use seen::{CatalogFence, DirectorFences, RefusedOrder, SeenFences};

use crate::model::HostName;
use crate::sys::{clock, files, runtime};
use crate::wire::Fence;

/// The highest fences that a host has seen, kept in a file.
pub struct Fences {
    file: PathBuf,
    /// `None` until the file was read.
    highest: async_lock::Mutex<Option<Remembered>>,
}

/// The highest fences, as this process remembers them.
struct Remembered {
    fences: SeenFences,
    /// The file when they were read, or saved, or could not be saved; it has changed if `zsync fences` was run.
    file: Option<FileId>,
    /// Whether there was no room to save them.
    unsaved: bool,
}

/// Distinguishes a file from the one that replaces it: inode, and time of the last change in seconds and nanoseconds.
type FileId = (u64, i64, i64);

fn file_id(file: &Path) -> Option<FileId> {
    std::fs::metadata(file).ok().map(|found| (found.ino(), found.mtime(), found.mtime_nsec()))
}

/// The file in the folder `state` in which an agent keeps the fences.
fn file_in(state: &Path) -> PathBuf {
    state.join("fence.json")
}

fn load(file: &Path) -> io::Result<SeenFences> {
    files::load::<SeenFences>(file).map(SeenFences::current)
}

/// The fences that the agent with this state folder has seen.
pub fn read(state: &Path) -> Result<SeenFences, String> {
    let file = file_in(state);
    load(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

/// Makes the agent with this state folder forget all fences, or those of one director. Returns what is forgotten. A file
/// that cannot be decoded is replaced as well if everything is to be forgotten.
///
/// The file changes in any case, so that a running agent also forgets what it could not save.
pub fn forget(state: &Path, director: Option<&HostName>) -> Result<Vec<DirectorFences>, String> {
    let file = file_in(state);
    let seen = match load(&file) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData && director.is_none() => SeenFences::default(),
        loaded => loaded.map_err(|error| format!("cannot read {}: {error}", file.display()))?,
    };
    let is_meant = |of: &DirectorFences| director.is_none() || of.director.as_ref() == director;
    let (forgotten, kept): (Vec<_>, Vec<_>) = seen.directors.into_iter().partition(is_meant);
    if !state.exists() {
        return Ok(forgotten);
    }
    // On a full disk, a file can still be removed.
    if kept.is_empty() && file.exists() {
        files::remove(&file).map_err(|error| format!("cannot remove {}: {error}", file.display()))?;
    } else {
        let kept = SeenFences { directors: kept, ..SeenFences::default() };
        save(&file, &kept).map_err(|error| format!("cannot save {}: {error}", file.display()))?;
    }
    Ok(forgotten)
}

fn save(file: &Path, seen: &SeenFences) -> io::Result<Option<FileId>> {
    files::save(file, &serde_json::to_vec(seen)?)?;
    Ok(file_id(file))
}

impl Fences {
    /// The fences that are kept in a file in `folder`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { file: file_in(folder), highest: async_lock::Mutex::new(None) }
    }

    /// Checks the fence of an order that only the director that leads may give, and remembers it if it is the highest.
    /// Fences of hosts for which `is_director` is false do not count. Orders are checked one after the other, so that
    /// the fence remembered last is the highest.
    ///
    /// While the disk is full, the fence is remembered until this process ends: the order may be the one that makes room.
    pub async fn check(
        &self,
        fence: Option<&Fence>,
        is_director: &(dyn Fn(&HostName) -> bool + Sync),
    ) -> Result<(), Refusal> {
        let mut highest = self.highest.lock().await;
        let seen = self.current(highest.take()).await?;
        let verdict = seen.fences.judge(fence, &|host| is_director(host), clock::now());
        let was_unsaved = seen.unsaved;
        let seen = highest.insert(seen);
        let (now, result) = match verdict {
            Verdict::Known if was_unsaved => (seen.fences.clone(), Ok(())),
            Verdict::Known => return Ok(()),
            Verdict::New(now) => (now, Ok(())),
            Verdict::Refused(refusal) => {
                let reason = refusal.to_string();
                if seen.fences.refused.as_ref().is_some_and(|before| before.reason == reason) {
                    return Err(refusal);
                }
                let refused = Some(RefusedOrder { at: clock::now(), reason });
                (SeenFences { refused, ..seen.fences.clone() }, Err(refusal))
            }
        };
        let (file, saving) = (self.file.clone(), now.clone());
        let saved = runtime::blocking(move || save(&file, &saving)).await;
        let unsaved = saved.as_ref().is_err_and(files::is_no_room);
        let cannot = |error: &io::Error| format!("cannot save the order's fence in {}: {error}", self.file.display());
        match &saved {
            Err(error) if unsaved && !was_unsaved => log::warn!("{}; it is remembered in memory", cannot(error)),
            Err(error) if !unsaved && result.is_ok() => return Err(Refusal::State(cannot(error))),
            _ => {}
        }
        let file = saved.unwrap_or(seen.file);
        *seen = Remembered { fences: now, file, unsaved };
        result
    }

    /// The fences that this process remembers. They are read again if the file was replaced since.
    async fn current(&self, remembered: Option<Remembered>) -> Result<Remembered, Refusal> {
        let file = self.file.clone();
        let loaded = runtime::blocking(move || {
            let id = file_id(&file);
            match remembered {
                Some(seen) if seen.file == id => Ok(seen),
                _ => load(&file).map(|fences| Remembered { fences, file: id, unsaved: false }),
            }
        });
        let cannot = |error| format!("cannot read the highest fence from {}: {error}", self.file.display());
        loaded.await.map_err(|error| Refusal::State(cannot(error)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn fence(catalog: u128, index: u64) -> Fence {
        Fence { catalog: Uuid::from_u128(catalog), index, director: "one".parse().ok() }
    }

    fn check(fences: &Fences, fence: Option<&Fence>) -> Result<(), Refusal> {
        runtime::block_on(fences.check(fence, &|_| true))
    }

    #[test]
    fn check_refuses_an_older_fence_even_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let fences = Fences::new(folder.path());
        for index in [5, 5, 9, 9] {
            check(&fences, Some(&fence(1, index))).unwrap();
        }
        for fences in [fences, Fences::new(folder.path())] {
            let reason = check(&fences, Some(&fence(1, 8))).unwrap_err().to_string();
            assert!(reason.contains("another director has taken over") && reason.contains('9'), "{reason}");
            assert!(matches!(check(&fences, None), Err(Refusal::NoFence(_))));
            check(&fences, Some(&fence(1, 9))).unwrap();
        }
        assert!(read(folder.path()).unwrap().refused.is_some(), "the host's administrator can see it");
    }

    #[test]
    fn check_accepts_concurrent_orders_of_one_director() {
        let folder = tempfile::tempdir().unwrap();
        let fences = std::sync::Arc::new(Fences::new(folder.path()));
        let orders = (0..64).map(|_| {
            let fences = std::sync::Arc::clone(&fences);
            async move { fences.check(Some(&fence(1, 7)), &|_| true).await }
        });
        let orders: Vec<_> = orders.collect();
        let ended = runtime::block_on(runtime::side_by_side(64, orders));
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    }

    #[test]
    fn running_agent_notices_that_fences_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let fences = Fences::new(folder.path());
        assert!(forget(folder.path(), None).unwrap().is_empty(), "there is nothing to forget");
        check(&fences, Some(&fence(1, 900))).unwrap();
        check(&fences, Some(&Fence { director: None, ..fence(1, 900) })).unwrap();
        check(&fences, Some(&fence(1, 3))).unwrap_err();
        assert!(forget(folder.path(), "two".parse().ok().as_ref()).unwrap().is_empty());
        assert_eq!(forget(folder.path(), "one".parse().ok().as_ref()).unwrap().len(), 1);
        check(&fences, Some(&fence(1, 3))).unwrap_err();
        assert_eq!(forget(folder.path(), None).unwrap().len(), 1);
        check(&fences, None).unwrap();
        check(&fences, Some(&fence(1, 3))).unwrap();
        std::fs::write(folder.path().join("fence.json"), "no JSON").unwrap();
        assert!(matches!(check(&fences, Some(&fence(1, 3))), Err(Refusal::State(_))));
        forget(folder.path(), None).unwrap();
        check(&fences, Some(&fence(1, 3))).unwrap();
    }

    #[test]
    fn running_agent_forgets_also_what_it_could_not_save() {
        for saved in [None, Some(fence(1, 5)), Some(Fence { director: None, ..fence(2, 5) })] {
            let folder = tempfile::tempdir().unwrap();
            let fences = Fences::new(folder.path());
            if let Some(saved) = &saved {
                check(&fences, Some(saved)).unwrap();
            }
            // There was no room for a higher fence.
            let file = file_id(&file_in(folder.path()));
            let highest = CatalogFence { catalog: Uuid::from_u128(1), index: 900, at: None };
            let unsaved = DirectorFences { director: "one".parse().ok(), catalogs: vec![highest] };
            let seen = SeenFences { directors: vec![unsaved], ..SeenFences::default() };
            *fences.highest.lock_blocking() = Some(Remembered { fences: seen, file, unsaved: true });
            forget(folder.path(), "one".parse().ok().as_ref()).unwrap();
            check(&fences, Some(&fence(1, 3))).unwrap();
        }
    }

    #[test]
    fn check_refuses_a_fence_that_cannot_be_saved() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let fences = Fences::new(&file.join("below"));
        let reason = check(&fences, Some(&fence(1, 1))).unwrap_err().to_string();
        assert!(reason.contains("cannot"), "{reason}");
    }
}
