//! Finds out what every host holds: how a pass begins, and how `zsync plan` gets to know the world.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::dispatch::{Dispatcher, blank};
use super::pass::{SIDE_BY_SIDE, hosts};
use super::standing::Standing;
use super::world::World;
use crate::catalog::{CatalogError, CatalogWrite};
use crate::clock;
use crate::commands::facts;
use crate::model::{Action, Counter, HostInventory, HostName};
use crate::policy::Policy;
use crate::runtime;
use crate::wire::Fence;
use crate::zfs::Zfs;

/// How long a host may take to tell all that it holds; a listing of millions of snapshots takes minutes.
const LISTED_WITHIN: Duration = Duration::from_secs(1800);

/// What to look for beyond what has to be looked for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// What is known of the hosts before anything is read.
    pub standing: Standing,
    /// Ask every host that was not listed since then, and tell what was wrong.
    pub resync_since: Option<DateTime<Utc>>,
    /// The fence of orders.
    pub fence: Option<Fence>,
}

/// What was found out besides the inventory.
#[derive(Debug, Default)]
pub struct Looked {
    /// Hosts that could not be listed, each with the reason.
    pub unseen: BTreeMap<HostName, String>,
    /// How what hosts hold differed from what was known.
    pub mended: Vec<(HostName, String)>,
}

/// Asks every host of the policy what it holds and writes it to the catalog, which the world then is. In a shared
/// catalog hosts write that themselves, and only those are asked whose records are not whole.
///
/// What comes back is what was found out besides. `asked` counts the hosts that were asked.
pub async fn look<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    world: &World<C>,
    wish: Wish,
    asked: &Counter,
) -> Result<Looked, CatalogError> {
    let Wish { standing, resync_since, fence } = wish;
    let hosts: BTreeSet<HostName> = hosts(policy);
    let whole = world.catch_up(&hosts).await?;
    let own_behind = dispatcher.own.as_ref().is_ok_and(|own| own.is_behind());
    let looks = hosts.iter().filter(|host| !standing.absent.contains_key(*host)).filter_map(|host| {
        let due = resync_since.is_some_and(|since| world.observed(host).is_none_or(|observed| observed < since));
        let behind = standing.ask.contains(host) || (own_behind && *host == dispatcher.here);
        if whole.contains(host) && !due && !behind {
            return None;
        }
        let host = host.clone();
        let (policy, dispatcher, world) = (Arc::clone(policy), Arc::clone(dispatcher), world.clone());
        let asked = asked.clone();
        Some(async move {
            let mut order = blank(Action::KvResync);
            order.fence = fence;
            let asking = dispatcher.ask(&policy, &host, &order, Counter::default());
            // One that is alive and never comes to an end must not keep the pass from the others.
            let answered = runtime::timeout(LISTED_WITHIN, asking).await;
            asked.add(1);
            let Ok((response, facts)) = answered else {
                let within = humantime::format_duration(LISTED_WITHIN);
                return Ok((host, Err(format!("it did not tell all that it holds within {within}"))));
            };
            if !response.is_success {
                return Ok((host, Err(response.error)));
            }
            let told = world.listed(&host, clock::now(), facts, due).await?;
            if response.unpublished {
                world.doubt(&host);
            }
            Ok((host, Ok(told)))
        })
    });
    let looks: Vec<_> = looks.collect();
    asked.expect(looks.len() as u64);
    let mut looked = Looked { unseen: standing.absent, ..Looked::default() };
    for result in runtime::side_by_side(SIDE_BY_SIDE, looks).await {
        let result: Result<(HostName, Result<Vec<String>, String>), CatalogError> = result;
        match result? {
            (host, Ok(told)) => looked.mended.extend(told.into_iter().map(|line| (host.clone(), line))),
            (host, Err(reason)) => drop(looked.unseen.insert(host, reason)),
        }
    }
    world.reload(hosts.into_iter().filter(|host| !looked.unseen.contains_key(host)).collect()).await?;
    Ok(looked)
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
                    datasets: facts::assemble(facts.into_iter().filter_map(|fact| fact.listing))
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
