//! Defines the agent of one host, with everything that its orders share.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agent::cache::ListingCache;
use crate::agent::dedup::Dedup;
use crate::agent::journal::Journal;
use crate::agent::resumes::RefusedResumes;
use crate::host::locks::DatasetLocks;
use crate::host::publish::fences::Fences;
use crate::host::publish::publisher::Publisher;
use crate::host::queue::TransferQueue;
use crate::host::throttle::Throttle;
use crate::model::HostName;
use crate::policy::Local;
use crate::server::{Counters, counters};
use crate::slave::Slave;
use crate::slave::receive::Receiver;
use crate::transport::tls::{Tls, TlsError};
use crate::zfs::{Open, Zfs, open_snapshot};

/// The agent of one host.
pub struct Agent<Z> {
    pub(crate) host: HostName,
    pub(crate) zfs: Arc<Z>,
    pub(crate) local: Arc<Local>,
    /// The datasets that are being sent.
    pub(crate) locks: DatasetLocks,
    /// Limits how many datasets are sent at once.
    pub(crate) queue: TransferQueue,
    /// Limits the bandwidth towards other hosts.
    pub(crate) throttle: Arc<Throttle>,
    /// This host's certificate, which is presented to slaves.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Other hosts whose slaves are in this process, because they are reached through ssh.
    pub(crate) slaves: Arc<BTreeMap<HostName, Arc<Slave<Z>>>>,
    /// Receives copies from other pools of this host.
    pub(crate) receiver: Receiver<Z>,
    pub(crate) dedup: Arc<Dedup>,
    pub(crate) counters: Counters,
    pub(crate) cache: ListingCache,
    /// The partial receives that may be beyond repair.
    pub(crate) resumes: RefusedResumes,
    /// Publishes this host's datasets, if a shared catalog is configured.
    pub(crate) publisher: Option<Arc<Publisher>>,
    /// Distinguishes the director that leads from former leaders, if several directors share a catalog.
    pub(crate) fences: Option<Arc<Fences>>,
    /// Opens the files of snapshots.
    pub(crate) open: Open,
}

impl<Z: Zfs> Agent<Z> {
    /// Creates an agent with this host's ZFS and configuration.
    #[must_use]
    pub fn new(host: HostName, zfs: Arc<Z>, local: Arc<Local>) -> Self {
        Self {
            host,
            locks: DatasetLocks::default(),
            queue: TransferQueue::by_destination(local.max_sends),
            throttle: Throttle::new(local.bandwidth.clone()),
            tls: None,
            slaves: Arc::default(),
            receiver: Receiver::new(Arc::clone(&zfs), Arc::clone(&local)),
            dedup: Arc::default(),
            counters: Counters::new(counters::AGENT),
            cache: ListingCache::default(),
            resumes: RefusedResumes::default(),
            publisher: None,
            fences: None,
            open: Arc::new(open_snapshot),
            zfs,
            local,
        }
    }

    /// Makes the agent publish what its orders change.
    #[must_use]
    pub fn publishing(self, publisher: Option<Arc<Publisher>>) -> Self {
        let receiver = self.receiver.publishing(publisher.clone());
        Self { publisher, receiver, ..self }
    }

    /// Makes the agent refuse orders that may lose data if their director no longer leads.
    #[must_use]
    pub fn fenced(self, fences: Fences) -> Self {
        Self { fences: Some(Arc::new(fences)), ..self }
    }

    /// Makes the agent remember answered orders across restarts.
    #[must_use]
    pub fn remembering(self, journal: Journal) -> Self {
        Self { dedup: Arc::new(Dedup::remembering(journal)), ..self }
    }

    /// Makes the agent open the files of snapshots in another way.
    #[must_use]
    pub fn opening(self, open: Open) -> Self {
        Self { open, ..self }
    }

    /// Makes the agent present a certificate to slaves.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..self }
    }

    /// Makes the agent send to these hosts through slaves in this process.
    #[must_use]
    pub fn sending_within(self, slaves: BTreeMap<HostName, Arc<Slave<Z>>>) -> Self {
        Self { slaves: Arc::new(slaves), ..self }
    }

    /// Returns the agent with another configuration. Running orders keep their locks and slots, and get the new
    /// bandwidth limits.
    #[must_use]
    pub fn with_local(&self, host: HostName, local: Arc<Local>) -> Self {
        self.queue.set_limit(local.max_sends);
        self.throttle.set(local.bandwidth.clone());
        Self {
            host,
            zfs: Arc::clone(&self.zfs),
            locks: self.locks.clone(),
            queue: self.queue.clone(),
            throttle: Arc::clone(&self.throttle),
            tls: self.tls.clone(),
            slaves: Arc::clone(&self.slaves),
            receiver: self.receiver.with_local(Arc::clone(&local)),
            local,
            dedup: Arc::clone(&self.dedup),
            counters: self.counters.clone(),
            cache: self.cache.clone(),
            resumes: self.resumes.clone(),
            publisher: self.publisher.clone(),
            fences: self.fences.clone(),
            open: Arc::clone(&self.open),
        }
    }

    /// Returns the agent with the configuration and the certificate of another one.
    #[must_use]
    pub fn renewed(&self, by: &Self) -> Self {
        self.with_local(by.host.clone(), Arc::clone(&by.local)).with_tls(by.tls.clone())
    }

    /// Reads the certificate and key again. If that fails, the previous ones stay in use.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.reload())
    }

    /// Whether the published records of this host are out of date.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.publisher.as_ref().is_some_and(|publisher| publisher.behind().is_some())
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;
    use crate::zfs::fake::Fake;

    #[test]
    fn renewed_agent_counts_the_transfers_of_the_former_one() {
        let host: HostName = "alpha".parse().unwrap();
        let local = |max_sends| Arc::new(Local { max_sends, ..Local::of_entries("local.json".into(), []) });
        let agent = |max_sends| Agent::new(host.clone(), Arc::new(Fake::new(1)), local(max_sends));
        let (former, beta) = (agent(2), "beta".parse().unwrap());
        let source = "tank/a".parse().unwrap();
        block_on(async {
            let _sending = former.locks.claim(&source).unwrap();
            let slot = former.queue.take(&beta, chrono::DateTime::UNIX_EPOCH).await.unwrap();
            let renewed = former.renewed(&agent(1));
            assert!(renewed.locks.claim(&source).is_none(), "the dataset is being sent");
            let mut waits = Box::pin(renewed.queue.take(&beta, chrono::DateTime::UNIX_EPOCH));
            assert!(poll_once(&mut waits).await.is_none(), "the only slot is taken");
            drop(slot);
            assert!(poll_once(&mut waits).await.is_some());
        });
    }
}
