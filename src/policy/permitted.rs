//! Compares a policy with `local.json` of one of its hosts: what the policy asks of the host, but the host forbids.

use crate::model::{DatasetName, HostName};
use crate::policy::{Denied, Local, Policy};

/// Something that a policy asks of a host, and that the host forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// The index of the entry in `policy.datasets`.
    pub entry: usize,
    /// The dataset on the host.
    pub dataset: DatasetName,
    /// Why the host forbids it.
    pub denied: Denied,
}

impl Policy {
    /// What `local` forbids on `host`, of all that the policy's entries ask of the datasets that they name: to take and
    /// send snapshots of the sources, and to receive into the destinations.
    #[must_use]
    pub fn forbidden(&self, host: &HostName, local: &Local) -> Vec<Forbidden> {
        let mut found: Vec<Forbidden> = Vec::new();
        let mut check = |entry: usize, dataset: &DatasetName, allowed: Result<(), Denied>| {
            // A dataset that is not listed at all would be named once for each of its uses.
            let is_known = |known: &Forbidden| known.entry == entry && known.dataset == *dataset;
            if let Err(denied) = allowed
                && !found.iter().any(is_known)
            {
                found.push(Forbidden { entry, dataset: dataset.clone(), denied });
            }
        };
        for (index, entry) in self.datasets.iter().enumerate() {
            for policy in &entry.policies {
                if entry.hostname == *host {
                    let receives = self.receives(host, &entry.dataset);
                    if policy.creation.is_some() && !receives {
                        check(index, &entry.dataset, local.permission_to_take(&entry.dataset).map(drop));
                    }
                    for target in &policy.sync_on {
                        let allowed = local.permission_to_send(&entry.dataset, &target.host).map(drop);
                        check(index, &entry.dataset, allowed);
                    }
                }
                for target in policy.sync_on.iter().filter(|target| target.host == *host) {
                    let allowed = local.permission_to_receive(&target.dataset, &entry.hostname).map(drop);
                    check(index, &target.dataset, allowed);
                }
            }
        }
        found
    }

    /// Whether the policy sends into a dataset, so that no snapshots are taken of it.
    fn receives(&self, host: &HostName, dataset: &DatasetName) -> bool {
        let mut targets = self.datasets.iter().flat_map(|entry| &entry.policies).flat_map(|policy| &policy.sync_on);
        targets.any(|target| target.host == *host && dataset.is_within(&target.dataset))
    }
}
