//! Logs each failure when it begins and when it has ended, but not in every pass in between.

use std::collections::{BTreeMap, BTreeSet};

/// The subject of a failure that concerns neither a host nor an order.
pub(crate) const CATALOG: &str = "the catalog";

/// Failures by subject. One subject may have several.
#[derive(Clone, Default)]
pub(crate) struct Failures(BTreeMap<String, BTreeSet<String>>);

impl Failures {
    /// Adds a failure.
    pub(crate) fn add(&mut self, subject: &str, text: String) {
        self.0.entry(subject.to_owned()).or_default().insert(text);
    }

    /// The text of one of the failures.
    pub(crate) fn first(&self) -> Option<&str> {
        self.0.values().flatten().next().map(String::as_str)
    }

    /// Adds other failures, except those of the catalog.
    fn add_all_but_catalog(&mut self, others: &Self) {
        for (subject, texts) in others.0.iter().filter(|(subject, _)| *subject != CATALOG) {
            self.0.entry(subject.clone()).or_default().extend(texts.iter().cloned());
        }
    }

    /// Those of these failures that others have not.
    fn without<'a>(&'a self, others: &'a Self) -> impl Iterator<Item = &'a String> {
        self.0.iter().flat_map(|(subject, texts)| {
            let known = others.0.get(subject);
            texts.iter().filter(move |text| known.is_none_or(|known| !known.contains(*text)))
        })
    }
}

/// The failures that were logged and have not ended.
#[derive(Default)]
pub(crate) struct FailureLog(Failures);

impl FailureLog {
    /// Logs the failures that are new or have changed, and the subjects that have none any more.
    pub(crate) fn update(&mut self, failures: Failures) {
        for subject in self.0.0.keys().filter(|subject| !failures.0.contains_key(*subject)) {
            log::info!("{subject}: all is well again");
        }
        for text in failures.without(&self.0) {
            log::error!("{text}");
        }
        self.0 = failures;
    }

    /// Adds the failures of a subject that were logged and have not ended, if there are any.
    pub(crate) fn keep(&self, subject: &str, failures: &mut Failures) {
        for text in self.0.0.get(subject).into_iter().flatten() {
            failures.add(subject, text.clone());
        }
    }

    /// Logs that a failure of the catalog has begun or ended. All other failures stay as they are, and `more` are added.
    pub(crate) fn update_catalog(&mut self, failure: Option<String>, more: Failures) {
        let mut failures = more;
        failures.add_all_but_catalog(&self.0);
        if let Some(text) = failure {
            failures.add(CATALOG, text);
        }
        self.update(failures);
    }

    /// Forgets all failures without logging: another director reports on hosts and orders from now on.
    pub(crate) fn clear(&mut self) {
        self.0 = Failures::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_of_a_subject_is_logged_once() {
        let failures = |texts: &[&str]| {
            let mut all = Failures::default();
            texts.iter().for_each(|text| all.add("beta", (*text).to_owned()));
            all
        };
        let new = |now: &[&str], before: &[&str]| {
            let (now, before) = (failures(now), failures(before));
            now.without(&before).cloned().collect::<Vec<_>>()
        };
        assert_eq!(new(&["one", "two"], &[]), ["one", "two"]);
        assert_eq!(new(&["two", "one", "one"], &["one"]), ["two"]);
        assert_eq!(new(&["one"], &["one", "two"]), Vec::<String>::new());
    }
}
