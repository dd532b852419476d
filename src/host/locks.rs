//! One transfer per dataset at a time: who comes second is told so, at once or after some patience.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::model::DatasetName;
use crate::sys::runtime;
use crate::sys::runtime::channel;
use crate::sys::runtime::channel::{Receiver, Sender};

/// The datasets that something works on, and how to hear that it does not any more.
#[derive(Clone, Debug, Default)]
pub struct DatasetLocks(Arc<Mutex<BTreeMap<DatasetName, Receiver<()>>>>);

/// Keeps a dataset busy until it is dropped.
#[derive(Debug)]
pub struct Claim {
    busy: DatasetLocks,
    dataset: DatasetName,
    /// Nothing is ever sent: that it is gone is the message.
    _end: Sender<()>,
}

impl DatasetLocks {
    /// Claims a dataset; `None` while somebody else has it.
    #[must_use]
    pub fn claim(&self, dataset: &DatasetName) -> Option<Claim> {
        self.try_claim(dataset).ok()
    }

    /// Claims a dataset, once who has it lets go; `None` when that takes longer than `patience`.
    pub async fn claim_within(&self, patience: Duration, dataset: &DatasetName) -> Option<Claim> {
        let claiming = async {
            loop {
                match self.try_claim(dataset) {
                    Ok(claim) => return claim,
                    Err(end) => end.recv().await.unwrap_or_default(),
                }
            }
        };
        runtime::timeout(patience, claiming).await.ok()
    }

    fn try_claim(&self, dataset: &DatasetName) -> Result<Claim, Receiver<()>> {
        let mut taken = self.0.lock();
        if let Some(end) = taken.get(dataset) {
            return Err(end.clone());
        }
        let (sender, end) = channel::bounded(1);
        taken.insert(dataset.clone(), end);
        Ok(Claim { busy: self.clone(), dataset: dataset.clone(), _end: sender })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.busy.0.lock().remove(&self.dataset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_waits_for_the_first_to_end() {
        let (busy, dataset) = (DatasetLocks::default(), "tank/a".parse().unwrap());
        let first = busy.claim(&dataset);
        assert!(first.is_some());
        assert!(busy.claim(&dataset).is_none());
        drop(first);
        assert!(busy.claim(&dataset).is_some());
    }

    #[test]
    fn who_has_patience_comes_once_the_first_lets_go() {
        let (busy, dataset) = (DatasetLocks::default(), "tank/a".parse().unwrap());
        let first = busy.claim(&dataset);
        runtime::block_on(async {
            assert!(busy.claim_within(Duration::ZERO, &dataset).await.is_none());
            let waiting = runtime::spawn({
                let (busy, dataset) = (busy.clone(), dataset.clone());
                async move { busy.claim_within(Duration::from_secs(60), &dataset).await.is_some() }
            });
            drop(first);
            assert!(waiting.await);
            assert!(busy.claim_within(Duration::ZERO, &dataset).await.is_some());
        });
    }
}
