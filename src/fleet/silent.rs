//! Remembers which hosts did not answer when they were polled last. Such a host may be down for weeks, and it takes long
//! to notice that it does not answer. So it is polled after all others, with one attempt, and not in every pass.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::model::HostName;
use crate::policy::{HostAddress, Policy};

/// A poll that failed sooner than this costs nothing, so it is repeated in every pass.
const QUICK: Duration = Duration::from_secs(5);
/// The pause after the second poll in a row that failed slowly. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(15 * 60);

/// The hosts that did not answer when they were polled last.
#[derive(Default)]
pub(super) struct SilentHosts {
    silent: BTreeMap<HostName, Silence>,
    /// How often each host has answered again.
    returns: BTreeMap<HostName, u64>,
}

/// What is known about a host that did not answer.
#[derive(Default)]
struct Silence {
    /// How many polls in a row failed slowly.
    slow_failures: u32,
    /// The host is not polled before this.
    until: Option<Instant>,
    /// Why the last poll failed.
    reason: String,
    /// Where the host was polled.
    address: Option<HostAddress>,
}

impl SilentHosts {
    /// The hosts.
    pub(super) fn names(&self) -> BTreeSet<HostName> {
        self.silent.keys().cloned().collect()
    }

    /// Forgets a host, because it has answered.
    pub(super) fn answered(&mut self, host: &HostName) {
        if self.silent.remove(host).is_some() {
            *self.returns.entry(host.clone()).or_default() += 1;
        }
    }

    /// How often a host has answered after it had not.
    pub(super) fn returns(&self, host: &HostName) -> u64 {
        self.returns.get(host).copied().unwrap_or_default()
    }

    /// Adds a host that did not answer to another process.
    pub(super) fn expect(&mut self, host: &HostName) {
        self.silent.entry(host.clone()).or_default();
    }

    /// Adds a host whose poll took this long and failed.
    pub(super) fn failed(&mut self, policy: &Policy, host: &HostName, reason: &str, took: Duration) {
        let known = self.silent.entry(host.clone()).or_default();
        known.slow_failures = if took < QUICK { 0 } else { known.slow_failures.saturating_add(1) };
        known.until = pause(known.slow_failures).map(|pause| Instant::now() + pause);
        reason.clone_into(&mut known.reason);
        known.address = policy.hosts.get(host).cloned();
    }

    /// The hosts that are not to be polled yet, each with the reason why its last poll failed. A host whose address has
    /// changed is polled at once.
    pub(super) fn resting(&self, policy: &Policy) -> BTreeMap<HostName, String> {
        let now = Instant::now();
        let rests = |(host, known): &(&HostName, &Silence)| {
            known.until.is_some_and(|until| now < until) && known.address.as_ref() == policy.hosts.get(*host)
        };
        self.silent.iter().filter(rests).map(|(host, known)| (host.clone(), known.reason.clone())).collect()
    }

    /// Lets every host be polled in the next pass.
    pub(super) fn wake(&mut self) {
        self.silent.values_mut().for_each(|known| known.until = None);
    }
}

/// How long a host is left alone after this number of polls in a row that failed slowly.
fn pause(slow_failures: u32) -> Option<Duration> {
    let doubled = slow_failures.checked_sub(2)?.min(16);
    Some(FIRST_PAUSE.saturating_mul(1 << doubled).min(MAX_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_begins_with_the_second_slow_failure_and_has_a_limit() {
        let pauses: Vec<Option<u64>> = (0..9).map(|n| pause(n).map(|pause| pause.as_secs())).collect();
        let expected = [None, None, Some(60), Some(120), Some(240), Some(480), Some(900), Some(900), Some(900)];
        assert_eq!(pauses, expected);
        assert_eq!(pause(u32::MAX), Some(MAX_PAUSE));
    }

    #[test]
    fn host_rests_until_its_address_changes_or_it_is_woken() {
        let policy = |address: &str| {
            let text = format!(r#"{{ "hosts": {{ "beta": {{ "address": "{address}" }} }}, "datasets": [] }}"#);
            crate::config::parse_policy("server.json", &text).unwrap()
        };
        let (policy, other, beta) = (policy("10.0.0.2"), policy("10.0.0.3"), "beta".parse().unwrap());
        let mut silent = SilentHosts::default();
        silent.failed(&policy, &beta, "no answer", Duration::from_secs(60));
        assert!(silent.resting(&policy).is_empty());
        silent.failed(&policy, &beta, "no answer", Duration::from_secs(60));
        assert_eq!(silent.resting(&policy), [(beta.clone(), "no answer".to_owned())].into());
        assert!(silent.resting(&other).is_empty());
        silent.wake();
        assert!(silent.resting(&policy).is_empty() && silent.names().contains(&beta));
        // Its agent is stopped: that is noticed at once.
        silent.failed(&policy, &beta, "connection refused", Duration::from_millis(1));
        assert!(silent.resting(&policy).is_empty());
        silent.answered(&beta);
        assert!(silent.names().is_empty());
    }
}
