//! Gives the orders that remove what transfers have left for destinations that are given up.

use std::collections::BTreeMap;

use crate::actions::Leftover;
use crate::fleet::dispatch::{Dispatcher, blank};
use crate::model::{Action, Counter, DatasetName, HostName, Place, hint};
use crate::policy::Policy;
use crate::wire::{DirectorsOrder, Forgotten, PER_LINE};
use crate::zfs::Zfs;

/// Has each host remove what was left on its sources, and the holds of its copies. Returns for each order the host and
/// what was removed, or what went wrong.
pub async fn remove<Z: Zfs>(
    policy: &Policy,
    dispatcher: &Dispatcher<Z>,
    sources: Vec<Leftover>,
    copies: Vec<Place>,
) -> Vec<Result<String, String>> {
    let mut by_host: BTreeMap<HostName, (Vec<Forgotten>, Vec<DatasetName>)> = BTreeMap::new();
    for Leftover { host, dataset, to, .. } in sources {
        by_host.entry(host).or_default().0.push(Forgotten { dataset, to });
    }
    for Place { host, dataset } in copies {
        by_host.entry(host).or_default().1.push(dataset);
    }
    let mut results = Vec::new();
    for (host, (sources, copies)) in by_host {
        let of_sources = sources.chunks(PER_LINE).map(|part| (part.to_vec(), Vec::new()));
        let of_copies = copies.chunks(PER_LINE).map(|part| (Vec::new(), part.to_vec()));
        for (forget, datasets) in of_sources.chain(of_copies) {
            let order = DirectorsOrder { forget, datasets, ..blank(Action::ForgetDestination) };
            let (response, _) = dispatcher.ask(policy, &host, &order, Counter::default()).await;
            results.push(if response.is_success {
                Ok(format!("{host}: {}", response.error))
            } else {
                let error = format!("cannot remove everything on {host}: {}", response.error);
                Err(hint::join(error, response.hint.as_deref()))
            });
        }
    }
    results
}
