//! Asks every host what it holds: how a pass begins, and how `zsync plan` gets to know the world.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::dispatch::{Dispatcher, blank};
use super::pass::{SIDE_BY_SIDE, hosts};
use super::world::{World, assemble};
use crate::catalog::{CatalogError, CatalogWrite};
use crate::clock;
use crate::model::{Action, Counter, HostInventory, HostName};
use crate::policy::Policy;
use crate::runtime;
use crate::zfs::Zfs;

/// How long a host may take to tell all that it holds; a listing of millions of snapshots takes minutes.
const LISTED_WITHIN: Duration = Duration::from_secs(1800);

/// Asks every host of the policy what it holds and writes it to the catalog, which the world then is.
///
/// What comes back are the hosts that could not be listed, each with the reason.
pub async fn look<Z: Zfs, C: CatalogWrite + 'static>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    world: &World<C>,
) -> Result<BTreeMap<HostName, String>, CatalogError> {
    let hosts = hosts(policy);
    let looks = hosts.iter().cloned().map(|host| {
        let (policy, dispatcher, world) = (Arc::clone(policy), Arc::clone(dispatcher), world.clone());
        async move {
            let resync = blank(Action::KvResync);
            let asking = dispatcher.ask(&policy, &host, &resync, Counter::default());
            // One that is alive and never comes to an end must not keep the pass from the others.
            let Ok((response, facts)) = runtime::timeout(LISTED_WITHIN, asking).await else {
                let within = humantime::format_duration(LISTED_WITHIN);
                return Ok(Some((host, format!("it did not tell all that it holds within {within}"))));
            };
            if !response.is_success {
                return Ok(Some((host, response.error)));
            }
            world.listed(&host, clock::now(), facts).await?;
            Ok(None)
        }
    });
    let mut unseen = BTreeMap::new();
    for result in runtime::side_by_side(SIDE_BY_SIDE, looks).await {
        let result: Result<Option<_>, CatalogError> = result;
        unseen.extend(result?);
    }
    world.reload(hosts.into_iter().filter(|host| !unseen.contains_key(host)).collect()).await?;
    Ok(unseen)
}

/// How long a host may take to tell what it holds to somebody who only wants to see.
const GLANCE: Duration = Duration::from_secs(20);

/// What an agent answers: what its host holds, or why that is not known.
pub type Answer = Result<HostInventory, String>;

/// Asks every host of the policy that has an agent what it holds, once, and writes it nowhere.
pub async fn ask_all<Z: Zfs>(policy: &Arc<Policy>, dispatcher: &Arc<Dispatcher<Z>>) -> Vec<(HostName, Answer)> {
    let here = &dispatcher.here;
    let elsewhere = |host: &HostName| host != here || policy.hosts.get(host).is_some_and(|h| h.address.is_some());
    let asked: Vec<HostName> = hosts(policy).into_iter().filter(elsewhere).collect();
    let asking = asked.into_iter().map(|host| {
        let (policy, dispatcher) = (Arc::clone(policy), Arc::clone(dispatcher));
        async move {
            let order = blank(Action::KvResync);
            let answer = dispatcher.ask(&policy, &host, &order, Counter::default());
            let answer = match runtime::timeout(GLANCE, answer).await {
                Ok((response, facts)) if response.is_success => Ok(HostInventory {
                    observed: Some(clock::now()),
                    datasets: assemble(facts)
                        .into_iter()
                        .filter_map(|((of, dataset), listed)| (of == host).then_some((dataset, listed)))
                        .collect(),
                }),
                Ok((response, _)) => Err(response.error),
                Err(runtime::Elapsed) => Err(format!("no answer within {}", humantime::format_duration(GLANCE))),
            };
            (host, answer)
        }
    });
    let asking: Vec<_> = asking.collect();
    runtime::side_by_side(SIDE_BY_SIDE, asking).await
}
