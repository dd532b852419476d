//! Finds out what every host holds: how a pass begins, and how `zsync plan` gets to know the world.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::dispatch::{Dispatcher, blank};
use super::pass::{SIDE_BY_SIDE, hosts};
use super::standing::Standing;
use super::world::World;
use crate::catalog::{CatalogError, CatalogWrite};
use crate::clock;
use crate::model::{Action, HostName};
use crate::policy::Policy;
use crate::runtime;
use crate::wire::Fence;
use crate::zfs::Zfs;

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
/// What comes back are the hosts that could not be listed, each with the reason.
pub async fn look<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    world: &World<C>,
) -> Result<BTreeMap<HostName, String>, CatalogError> {
    Ok(look_for(policy, dispatcher, world, Wish::default()).await?.unseen)
}

/// [`look`] with more to look for.
pub async fn look_for<Z: Zfs, C: CatalogWrite + ?Sized + 'static>(
    policy: &Arc<Policy>,
    dispatcher: &Arc<Dispatcher<Z>>,
    world: &World<C>,
    wish: Wish,
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
        Some(async move {
            let mut order = blank(Action::KvResync);
            order.fence = fence;
            let (response, facts) = dispatcher.ask(&policy, &host, &order).await;
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
