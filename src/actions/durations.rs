//! How long transfers are expected to take, from how long earlier ones took.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{DatasetName, HostName, Place};

/// How much the latest transfer counts, compared with all before it.
const WEIGHT_OF_LATEST: f64 = 0.3;

/// How long the transfers of each dataset to each destination took.
#[derive(Clone, Debug, Default)]
pub struct Durations(BTreeMap<(HostName, DatasetName, Place), f64>);

impl Durations {
    /// Adds a transfer that succeeded, after those that ended before it.
    pub fn add(&mut self, host: HostName, dataset: DatasetName, to: Place, seconds: f64) {
        let average = self.0.entry((host, dataset, to)).or_insert(seconds);
        *average += WEIGHT_OF_LATEST * (seconds - *average);
    }

    /// How long the next transfer is expected to take; `None` if none was ever made.
    #[must_use]
    pub fn expected(&self, host: &HostName, dataset: &DatasetName, to: &Place) -> Option<Duration> {
        let seconds = self.0.get(&(host.clone(), dataset.clone(), to.clone()))?;
        Duration::try_from_secs_f64(*seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_duration_follows_the_latest_transfers() {
        let (host, dataset): (HostName, DatasetName) = ("alpha".parse().unwrap(), "tank/a".parse().unwrap());
        let to = Place { host: "beta".parse().unwrap(), dataset: "pool/a".parse().unwrap() };
        let mut durations = Durations::default();
        assert_eq!(durations.expected(&host, &dataset, &to), None);
        durations.add(host.clone(), dataset.clone(), to.clone(), 100.0);
        assert_eq!(durations.expected(&host, &dataset, &to), Some(Duration::from_secs(100)));
        durations.add(host.clone(), dataset.clone(), to.clone(), 200.0);
        assert_eq!(durations.expected(&host, &dataset, &to), Some(Duration::from_secs(130)));
    }
}
