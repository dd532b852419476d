//! One transfer per dataset at a time: who comes second is told so at once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::DatasetName;

/// The datasets that something works on.
#[derive(Clone, Debug, Default)]
pub struct Busy(Arc<Mutex<BTreeSet<DatasetName>>>);

/// Keeps a dataset busy until it is dropped.
#[derive(Debug)]
pub struct Claim {
    busy: Busy,
    dataset: DatasetName,
}

impl Busy {
    /// Claims a dataset; `None` while somebody else has it.
    #[must_use]
    pub fn claim(&self, dataset: &DatasetName) -> Option<Claim> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(dataset.clone()).then(|| Claim { busy: self.clone(), dataset: dataset.clone() })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.busy.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.dataset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_waits_for_the_first_to_end() {
        let (busy, dataset) = (Busy::default(), "tank/a".parse().unwrap());
        let first = busy.claim(&dataset);
        assert!(first.is_some());
        assert!(busy.claim(&dataset).is_none());
        drop(first);
        assert!(busy.claim(&dataset).is_some());
    }
}
