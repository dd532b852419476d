//! Locks datasets, so that only one operation at a time works on each. A second operation fails at once, or waits for a
//! limited time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::model::DatasetName;
use crate::sys::runtime;
use crate::sys::runtime::channel;
use crate::sys::runtime::channel::{Receiver, Sender};

/// The claimed datasets, each with a channel that closes when its claim ends. All clones of this value share them.
#[derive(Clone, Debug, Default)]
pub struct DatasetLocks(Arc<Mutex<BTreeMap<DatasetName, Receiver<()>>>>);

/// The exclusive right to work on a dataset, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    locks: DatasetLocks,
    dataset: DatasetName,
    /// Nothing is ever sent on this channel: closing it is the signal.
    _end: Sender<()>,
}

impl DatasetLocks {
    /// Claims a dataset; `None` if it is claimed already.
    #[must_use]
    pub fn claim(&self, dataset: &DatasetName) -> Option<Claim> {
        self.try_claim(dataset).ok()
    }

    /// Claims a dataset, and waits until it is free if necessary; `None` if that takes longer than `limit`.
    pub async fn claim_within(&self, limit: Duration, dataset: &DatasetName) -> Option<Claim> {
        runtime::timeout(limit, self.claim_when_free(dataset)).await.ok()
    }

    /// Claims a dataset, and waits until it is free if necessary, however long that takes.
    pub async fn claim_when_free(&self, dataset: &DatasetName) -> Claim {
        loop {
            match self.try_claim(dataset) {
                Ok(claim) => return claim,
                Err(end) => end.recv().await.unwrap_or_default(),
            }
        }
    }

    /// Claims a dataset, or returns a channel that closes when it is free.
    fn try_claim(&self, dataset: &DatasetName) -> Result<Claim, Receiver<()>> {
        let mut claimed = self.0.lock();
        if let Some(end) = claimed.get(dataset) {
            return Err(end.clone());
        }
        let (sender, end) = channel::bounded(1);
        claimed.insert(dataset.clone(), end);
        Ok(Claim { locks: self.clone(), dataset: dataset.clone(), _end: sender })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.locks.0.lock().remove(&self.dataset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_fails_while_the_dataset_is_claimed() {
        let (locks, dataset) = (DatasetLocks::default(), "tank/a".parse().unwrap());
        let first = locks.claim(&dataset);
        assert!(first.is_some());
        assert!(locks.claim(&dataset).is_none());
        drop(first);
        assert!(locks.claim(&dataset).is_some());
    }

    #[test]
    fn claim_within_waits_until_the_claim_is_dropped() {
        let (locks, dataset) = (DatasetLocks::default(), "tank/a".parse().unwrap());
        let first = locks.claim(&dataset);
        runtime::block_on(async {
            assert!(locks.claim_within(Duration::ZERO, &dataset).await.is_none());
            let waiting = runtime::spawn({
                let (locks, dataset) = (locks.clone(), dataset.clone());
                async move { locks.claim_within(Duration::from_secs(60), &dataset).await.is_some() }
            });
            drop(first);
            assert!(waiting.await);
            assert!(locks.claim_within(Duration::ZERO, &dataset).await.is_some());
        });
    }
}
