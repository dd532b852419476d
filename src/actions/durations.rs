//! How long transfers are expected to take, from how long earlier ones took.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::model::{DatasetName, HostName, Place};

/// How many of the latest transfers count.
const LATEST: usize = 5;

/// How long the latest transfers of each dataset to each destination took, in seconds.
#[derive(Clone, Debug, Default)]
pub struct Durations(BTreeMap<(HostName, DatasetName, Place), VecDeque<f64>>);

impl Durations {
    /// Adds a transfer that succeeded and sent something, after those that ended before it.
    pub fn add(&mut self, host: HostName, dataset: DatasetName, to: Place, seconds: f64) {
        let latest = self.0.entry((host, dataset, to)).or_default();
        latest.push_back(seconds);
        if latest.len() > LATEST {
            latest.pop_front();
        }
    }

    /// How long the next transfer is expected to take: as long as the middle one of the latest. A single long one, such
    /// as the first full copy, therefore says nothing about the increments after it. `None` until two were made.
    #[must_use]
    pub fn expected(&self, host: &HostName, dataset: &DatasetName, to: &Place) -> Option<Duration> {
        let latest = self.0.get(&(host.clone(), dataset.clone(), to.clone())).filter(|latest| latest.len() > 1)?;
        let mut sorted: Vec<f64> = latest.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        Duration::try_from_secs_f64(*sorted.get((sorted.len() - 1) / 2)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_full_copy_says_nothing_about_increments() {
        let (host, dataset): (HostName, DatasetName) = ("alpha".parse().unwrap(), "tank/a".parse().unwrap());
        let to = Place { host: "beta".parse().unwrap(), dataset: "pool/a".parse().unwrap() };
        let mut durations = Durations::default();
        let mut after = |seconds: f64| {
            durations.add(host.clone(), dataset.clone(), to.clone(), seconds);
            durations.expected(&host, &dataset, &to).map(|expected| expected.as_secs())
        };
        assert_eq!(after(400_000.0), None);
        assert_eq!(after(60.0), Some(60));
        assert_eq!(after(70.0), Some(70));
        assert_eq!(after(50.0), Some(60));
        // A later full copy changes little, longer increments count soon.
        assert_eq!(after(500_000.0), Some(70));
        assert_eq!(after(600.0), Some(70));
        assert_eq!(after(600.0), Some(600));
    }
}
