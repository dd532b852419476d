//! How far the clocks of hosts are behind the director's.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::catalog::CatalogWrite;
use crate::fleet::state::FleetState;
use crate::model::HostName;

impl<C: CatalogWrite + ?Sized + 'static> FleetState<C> {
    /// Records how far the clock of a host is behind this director's; `None` if the host has not told.
    pub(crate) fn set_clock(&self, host: &HostName, behind: Option<Duration>) {
        if let Some(known) = self.inventory().hosts.get_mut(host) {
            known.clock_behind = behind;
        }
    }

    /// By how many seconds the clocks of hosts are behind this director's, for those that are.
    pub(crate) fn clocks_behind(&self) -> BTreeMap<HostName, u64> {
        let inventory = self.inventory();
        let behind = inventory.hosts.iter().filter_map(|(host, known)| Some((host.clone(), known.clock_behind?)));
        behind.map(|(host, behind)| (host, behind.as_secs())).filter(|(_, seconds)| *seconds > 0).collect()
    }
}
