//! Knows which datasets were listed by their own host since a pass began. What is destroyed in a dataset is decided on such a
//! listing alone: not on what another host reported after a transfer, and not on records in a shared catalog.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::actions::Order;
use crate::catalog::{CatalogError, CatalogWrite, Change};
use crate::fleet::Moment;
use crate::fleet::dispatch::{Contact, Dispatcher, blank};
use crate::fleet::facts;
use crate::fleet::poll::Poll;
use crate::fleet::state::FleetState;
use crate::model::{Action, DatasetName, HostName, Place};
use crate::policy::Policy;
use crate::sys::clock;
use crate::wire::{DirectorsOrder, Facts, Fence, Listing};
use crate::zfs::Zfs;

/// What hosts have said about their own datasets, and about those of others. Clones share one state.
#[derive(Clone, Default)]
pub(super) struct Firsthand(Arc<Mutex<Listed>>);

#[derive(Default)]
struct Listed {
    /// Datasets that their host was asked for alone, and when.
    own: BTreeMap<Place, Moment>,
    /// Datasets that another host has reported: which one, and when.
    reported: BTreeMap<Place, (HostName, Moment)>,
}

impl Firsthand {
    /// Drops listings that a host must not report. It may report its own datasets and the destination of the order, but
    /// a compromised host must not cause snapshots of others to be pruned.
    pub(super) fn admit(&self, order: &Order, mut facts: Vec<Facts>, now: Moment) -> Vec<Facts> {
        let host = order.host();
        let is_destination = |listing: &Listing| matches!(order, Order::Send { to, .. } if listing.host == to.host && listing.dataset == to.dataset);
        for fact in &mut facts {
            let foreign = fact.listing.take_if(|listing| listing.host != *host && !is_destination(listing));
            if let Some(Listing { host: of, dataset, .. }) = foreign {
                log::warn!("ignoring what {host} reports about {of}:{dataset}, which is not part of its order");
            }
        }
        let mut listed = self.0.lock();
        for listing in facts.iter().filter_map(|fact| fact.listing.as_ref()).filter(|listing| listing.host != *host) {
            let place = Place { host: listing.host.clone(), dataset: listing.dataset.clone() };
            listed.own.remove(&place);
            listed.reported.insert(place, (host.clone(), now));
        }
        drop(listed);
        facts
    }

    /// Notes that what an order has reported was stored only now. A listing that began before may have been replaced by
    /// it.
    pub(super) fn stored(&self, order: &Order, now: Moment) {
        if let Order::Send { to, .. } = order
            && let Some((_, at)) = self.0.lock().reported.get_mut(to)
        {
            *at = now;
        }
    }

    /// The datasets that have to be listed before these orders, by host. The dataset in which snapshots are destroyed
    /// must be known from its own host. The datasets that it is sent to or received from may also be known from a
    /// transfer in this pass, which has polled the hosts, but only from one of the host that would lose the snapshots:
    /// what another one says to have sent to a third host, which may be nothing at all, costs nobody a snapshot.
    fn missing(
        &self,
        orders: &[Order],
        began: Moment,
        polled: impl Fn(&HostName) -> bool,
    ) -> BTreeMap<HostName, BTreeSet<DatasetName>> {
        let listed = self.0.lock();
        let reporter = |place: &Place| listed.reported.get(place).filter(|(_, at)| *at > began).map(|(host, _)| host);
        let is_own = |place: &Place| listed.own.get(place).is_some_and(|at| *at > began);
        let mut missing: BTreeMap<HostName, BTreeSet<DatasetName>> = BTreeMap::new();
        let mut want = |place: &Place| missing.entry(place.host.clone()).or_default().insert(place.dataset.clone());
        for order in orders {
            let Order::Destroy { host, dataset, keep_common_with, .. } = order else { continue };
            let own = Place { host: host.clone(), dataset: dataset.clone() };
            if !is_own(&own) && (reporter(&own).is_some() || !polled(host)) {
                want(&own);
            }
            let is_unknown = |peer: &&Place| {
                !is_own(peer) && reporter(peer).map_or_else(|| !polled(&peer.host), |reporter| reporter != host)
            };
            keep_common_with.iter().filter(is_unknown).for_each(|peer| {
                want(peer);
            });
        }
        missing
    }

    /// Whether an order is decided on what hosts have said about their own datasets.
    pub(super) fn covers(&self, order: &Order, poll: &Poll) -> bool {
        self.missing(std::slice::from_ref(order), poll.began, |host| poll.has_listed(host)).is_empty()
    }

    /// Asks hosts for what these orders have to be decided on. Returns whether anything was asked, and the hosts that
    /// could not be asked, each with the reason.
    pub(super) async fn ask<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
        &self,
        orders: &[Order],
        poll: &Poll,
        (policy, dispatcher, state): (&Policy, &Dispatcher<Z>, &FleetState<C>),
        fence: Option<Fence>,
    ) -> Result<(bool, BTreeMap<HostName, String>), CatalogError> {
        let missing = self.missing(orders, poll.began, |host| poll.has_listed(host));
        let failed = self.ask_for(&missing, (policy, dispatcher, state), fence).await?;
        Ok((!missing.is_empty(), failed))
    }

    /// Asks hosts for these datasets of their own. Returns the hosts that could not be asked, each with the reason.
    pub(super) async fn ask_for<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
        &self,
        wanted: &BTreeMap<HostName, BTreeSet<DatasetName>>,
        (policy, dispatcher, state): (&Policy, &Dispatcher<Z>, &FleetState<C>),
        fence: Option<Fence>,
    ) -> Result<BTreeMap<HostName, String>, CatalogError> {
        let mut failed = BTreeMap::new();
        for (host, datasets) in wanted {
            let tops = datasets.iter().filter(|d| !datasets.iter().any(|top| top != *d && d.is_within(top)));
            for top in tops {
                let order =
                    DirectorsOrder { dest_dataset: top.to_string(), fence: fence.clone(), ..blank(Action::KvResync) };
                let began = state.moment();
                let (response, facts) = dispatcher.list(policy, host, order, &Contact::default()).await;
                if *host != dispatcher.here {
                    state.set_clock(host, facts::clock_behind(&response, clock::now()));
                }
                let unlisted = facts::unlisted(&facts);
                if let (false, reason) = (response.is_success && unlisted.is_empty(), response.message()) {
                    failed.insert(host.clone(), unlisted.into_values().next().unwrap_or(reason));
                    break;
                }
                let mut found = facts::assemble(facts.into_iter().filter_map(|fact| fact.listing));
                let within = datasets.iter().filter(|dataset| dataset.is_within(top));
                let changes = within.map(|dataset| {
                    let listing = found.remove(&(host.clone(), dataset.clone()));
                    let place = Place { host: host.clone(), dataset: dataset.clone() };
                    let mut listed = self.0.lock();
                    // What another host reported meanwhile may be newer.
                    if listed.reported.get(&place).is_none_or(|(_, at)| *at < began) {
                        listed.own.insert(place, began);
                    }
                    drop(listed);
                    (dataset.clone(), listing.map_or(Change::Gone, Change::Listed))
                });
                let changes: Vec<_> = changes.collect();
                state.apply_listings(host, began, changes).await?;
            }
        }
        Ok(failed)
    }
}

/// Whether a destroy is decided on what this host has.
pub(super) fn needs(order: &Order, host: &HostName) -> bool {
    let peers = match order {
        Order::Destroy { keep_common_with, .. } => keep_common_with.as_slice(),
        Order::Take { .. } | Order::Send { .. } => &[],
    };
    order.host() == host || peers.iter().any(|peer| peer.host == *host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::{Order, Side};

    fn destroy(host: &str, peer: &str) -> Order {
        Order::Destroy {
            entry: 0,
            host: host.parse().unwrap(),
            dataset: "pool/copy".parse().unwrap(),
            side: Side::Destination,
            snapshots: Vec::new(),
            keep_common_with: vec![Place { host: peer.parse().unwrap(), dataset: "tank/data".parse().unwrap() }],
            skip_if_renamed: true,
            skip_if_cloned: true,
            policy: "sync".into(),
            reason: String::new(),
            bytes: 0,
        }
    }

    #[test]
    fn destroy_waits_for_a_listing_by_the_host_itself() {
        let firsthand = Firsthand::default();
        let missing = |order: &Order, polled: &[&str]| {
            let polled = |host: &HostName| polled.contains(&host.as_str());
            let missing = firsthand.missing(std::slice::from_ref(order), Moment::default(), polled);
            missing.into_keys().map(|host| host.to_string()).collect::<Vec<_>>()
        };
        let order = destroy("beta", "alpha");
        assert!(missing(&order, &["alpha", "beta"]).is_empty());
        // A record in a shared catalog is not enough.
        assert_eq!(missing(&order, &[]), ["alpha", "beta"]);
        assert_eq!(missing(&order, &["alpha"]), ["beta"]);
        // The source has reported what the destination has.
        let copy = Place { host: "beta".parse().unwrap(), dataset: "pool/copy".parse().unwrap() };
        let state = FleetState::embedded(Arc::new(crate::catalog::MemoryCatalog::new()));
        let reported =
            |by: &str| firsthand.0.lock().reported.insert(copy.clone(), (by.parse().unwrap(), state.moment()));
        reported("alpha");
        assert_eq!(missing(&order, &["alpha", "beta"]), ["beta"]);
        // That costs the source its own snapshots, but no third host its own.
        let [at_source, at_third] = ["alpha", "gamma"].map(|host| {
            let mut order = destroy(host, "beta");
            let Order::Destroy { keep_common_with, .. } = &mut order else { unreachable!() };
            keep_common_with[0] = copy.clone();
            order
        });
        let all = ["alpha", "beta", "gamma"];
        assert!(missing(&at_source, &all).is_empty());
        assert_eq!(missing(&at_third, &all), ["beta"]);
        firsthand.0.lock().own.insert(copy, state.moment());
        assert!(missing(&order, &["alpha", "beta"]).is_empty());
        assert!(needs(&order, &"alpha".parse().unwrap()) && !needs(&order, &"gamma".parse().unwrap()));
    }
}
