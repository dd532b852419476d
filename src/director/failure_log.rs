//! Logs each failure when it begins and when it has ended, but not in every pass in between.

use std::collections::BTreeMap;

/// The subject of a failure that concerns neither a host nor an order.
pub(crate) const CATALOG: &str = "the catalog";

/// The failures that were logged and have not ended, by subject.
#[derive(Default)]
pub(crate) struct FailureLog(BTreeMap<String, String>);

impl FailureLog {
    /// Logs the failures that are new or have changed, and those that have ended.
    pub(crate) fn update(&mut self, failures: BTreeMap<String, String>) {
        for subject in self.0.keys().filter(|subject| !failures.contains_key(*subject)) {
            log::info!("{subject}: all is well again");
        }
        for (subject, text) in &failures {
            if self.0.get(subject) != Some(text) {
                log::error!("{text}");
            }
        }
        self.0 = failures;
    }

    /// Logs that a failure of the catalog has begun or ended. All other failures stay as they are.
    pub(crate) fn update_catalog(&mut self, failure: Option<String>) {
        let mut failures = self.0.clone();
        failures.remove(CATALOG);
        failures.extend(failure.map(|text| (CATALOG.to_owned(), text)));
        self.update(failures);
    }

    /// The failures that have not ended.
    pub(crate) fn current(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Forgets all failures without logging: another director reports on hosts and orders from now on.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
