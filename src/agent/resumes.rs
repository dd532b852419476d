//! Remembers partial receives whose rest was refused. If what has arrived is damaged, its rest never fits.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::model::{DatasetName, Place};

/// How often a stream may fail at the same place before what has arrived of it is discarded.
const MAX_FAILURES: u32 = 3;

/// The partial receives whose resumed streams were refused, and how often in sequence. Clones share one state.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefusedResumes(Arc<Mutex<BTreeMap<(DatasetName, Place), Refused>>>);

/// The token with which a receive can be resumed, and how often its rest was refused in sequence.
type Refused = (String, u32);

impl RefusedResumes {
    /// Records that the receiver refused the rest of a stream, which could be resumed with `token` and now can with
    /// `next`. Returns whether the receive is hopeless: the same rest was refused several times, and nothing of it
    /// arrived.
    pub(crate) fn refused(&self, source: &DatasetName, to: &Place, token: &str, next: &str) -> bool {
        let mut refused = self.0.lock();
        let key = (source.clone(), to.clone());
        let (last, times) = refused.entry(key.clone()).or_default();
        *times = if token != next {
            0
        } else if last == token {
            *times + 1
        } else {
            1
        };
        next.clone_into(last);
        let is_hopeless = *times >= MAX_FAILURES;
        if is_hopeless {
            refused.remove(&key);
        }
        is_hopeless
    }

    /// Forgets a receive that ended.
    pub(crate) fn ended(&self, source: &DatasetName, to: &Place) {
        self.0.lock().remove(&(source.clone(), to.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receive_is_hopeless_if_the_same_rest_is_refused_three_times() {
        let (source, host) = ("tank/a".parse().unwrap(), "beta".parse().unwrap());
        let to = Place { host, dataset: "pool/a".parse().unwrap() };
        let resumes = RefusedResumes::default();
        let refused = |token: &str, next: &str| resumes.refused(&source, &to, token, next);
        assert!(!refused("1", "1") && !refused("1", "1"));
        assert!(!refused("1", "2"), "something arrived");
        assert!(!refused("2", "2") && !refused("2", "2") && refused("2", "2"));
        assert!(!refused("2", "2") && !refused("2", "2"), "it begins again");
        resumes.ended(&source, &to);
        assert!(!refused("2", "2"));
    }
}
