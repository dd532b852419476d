//! What is done at a slot, between passes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use async_lock::Semaphore;
use chrono::{DateTime, Utc};

use crate::catalog::{CatalogError, CatalogWrite};
use crate::director::pass::Pass;
use crate::fleet::poll::SIDE_BY_SIDE;
use crate::model::HostName;
use crate::sys::runtime::{self, Tasks, channel};
use crate::zfs::Zfs;

impl<Z: Zfs, C: CatalogWrite + ?Sized + 'static> Pass<Z, C> {
    /// A pass like this one that begins now.
    fn again(&self, at: DateTime<Utc>) -> Self {
        let (pruning, over) = (Arc::new(Semaphore::new(SIDE_BY_SIDE)), channel::bounded(1));
        let pass =
            Self { at, began: Instant::now(), pruning, over, resync: false, destroyed: Arc::default(), ..self.clone() };
        Self { policy_number: self.policy_number, ..pass.beside(self.lanes.clone()) }
    }

    /// Begins a pass over these entries alone, whose slot has come: their snapshots are taken and sent. No host is
    /// polled, and nothing is pruned. The result tells when its orders have ended.
    pub(in crate::director) fn begin_slot(
        &self,
        tasks: &Tasks,
        entries: &BTreeSet<usize>,
        at: DateTime<Utc>,
    ) -> channel::Receiver<()> {
        let pass = self.again(at);
        let groups = pass.groups.iter().filter_map(|group| {
            let due: Vec<usize> = group.entries.iter().copied().filter(|entry| entries.contains(entry)).collect();
            (!due.is_empty()).then(|| pass.clone().work_at_slot(group.host.clone(), due))
        });
        let working: Vec<_> = groups.collect();
        let (has_ended, ended) = channel::bounded(1);
        let lanes = pass.lanes.clone();
        tasks.start(async move {
            for result in runtime::side_by_side(usize::MAX, working).await {
                result.unwrap_or_else(|error| lanes.failed(error));
            }
            has_ended.close();
        });
        ended
    }

    /// Takes and sends the snapshots of entries whose slot has come. They are of one dataset of `host`.
    async fn work_at_slot(self, host: HostName, entries: Vec<usize>) -> Result<(), CatalogError> {
        if self.state.last_listed(&host).is_none() {
            return Ok(());
        }
        let mut taken = Vec::new();
        for entry in entries {
            taken.push((entry, self.take_due(entry).await?));
        }
        for (entry, left) in taken {
            self.send_due(entry, left).await?;
        }
        Ok(())
    }
}
